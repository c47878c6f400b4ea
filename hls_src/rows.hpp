// SPDX-License-Identifier: BSD-3-Clause
// CIRCULANT of few pixels on a processor: not output pixels but LANES block rows of one are computed side by side,
// and when the input is transformed, LANES blocks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "circ_spec.hpp"
#include "finish.hpp"
#include "kernels.hpp"
#include "runs.hpp"
#include "tables.hpp"

namespace circ {

// Weights and affine entries of LANES block rows side by side, zero where there are no more.
struct RowTable {
    std::vector<std::int16_t> weights;  // rows by LANES, word by word, step by step, re before im, lane by lane
    std::vector<double> scale, bias;    // rows by LANES, channel of a block by channel, lane by lane

    template <class Program>
    void make(const Instruction& i, Program& program) {
        const std::uint32_t rows = i.out_blocks(), k = i.block_size(), half = i.block_words(), row = i.row_words();
        const std::uint32_t groups = (rows + LANES - 1) / LANES, steps = row / half;
        weights.assign(std::size_t{groups} * row * 2 * LANES, 0);
        scale.assign(std::size_t{groups} * k * LANES + 3 * LANES, 0);  // k = 1: read by fours
        bias.assign(scale.size(), 0);
        for (std::uint32_t r = 0; r < rows; ++r) {
            for (std::uint32_t n = 0; n < row; ++n) {
                const auto& word = program.weights[i.weight_base + r * row + n];
                // k = 1: words follow one another as they are used
                const std::uint32_t place = i.compressed() ? n % half * steps + n / half : n;
                std::int16_t* to = &weights[(std::size_t{r / LANES} * row + place) * 2 * LANES + r % LANES];
                to[0] = word.re;
                to[LANES] = word.im;
            }
            for (std::uint32_t n = 0; n < k && r * k + n < i.out_channels; ++n) {
                const auto& entry = program.affine[i.affine_base + r * k + n];
                const std::size_t to = (std::size_t{r / LANES} * k + n) * LANES + r % LANES;
                scale[to] = entry.scale;
                bias[to] = static_cast<double>(entry.bias);
            }
        }
    }
};

// What LANES block rows of a result sum: `runs` tap rows of `length` steps.
struct RowSums {
    const std::int32_t* x;       // k > 1: planes of spectra; k = 1: elements
    std::uint32_t plane;         // numbers in a plane
    const std::int16_t* weights;
    std::uint32_t steps;         // of a whole window
    std::uint32_t runs, length, x_first, x_next, w_first, w_next;  // items and steps: first, from run to run
    const bool* narrow;
    RealShift shift;
};

inline void load_weights(const std::int16_t* at, Wide& v) {
    Shorts s;
    std::memcpy(&s, at, sizeof s);
    v = __builtin_convertvector(s, Wide);
}

// Spectral sums, for two halves of lanes.
template <int K>
CIRC_KERNEL void row_sums(const RowSums& s, Reals (*out)[MAX_BLOCK]) {
    for (std::uint32_t w = 0; w < K / 2; ++w) {
        const std::int32_t* x = s.x + 2 * std::size_t{w} * s.plane;
        const std::int16_t* weights = s.weights + std::size_t{w} * s.steps * 2 * LANES;
        Reals re[2] = {}, im[2] = {};
        if (s.narrow[w]) {
            Wide sum_re = {}, sum_im = {};
            for (std::uint32_t run = 0; run < s.runs; ++run) {
                const std::int32_t* a = x + s.x_first + run * s.x_next;
                const std::int16_t* at = weights + std::size_t{s.w_first + run * s.w_next} * 2 * LANES;
                for (std::uint32_t n = 0; n < s.length; ++n) {
                    const auto re_x = static_cast<std::uint32_t>(a[n]);
                    const auto im_x = static_cast<std::uint32_t>(a[n + s.plane]);
                    Wide c, d;
                    load_weights(at + 2 * LANES * n, c);
                    load_weights(at + 2 * LANES * n + LANES, d);
                    if (w == 0) {
                        sum_re += c * re_x;
                        sum_im += d * im_x;
                    } else {
                        sum_re += c * re_x - d * im_x;
                        sum_im += c * im_x + d * re_x;
                    }
                }
            }
            halves(sum_re, re);
            halves(sum_im, im);
        } else {
            for (std::uint32_t run = 0; run < s.runs; ++run) {
                const std::int32_t* a = x + s.x_first + run * s.x_next;
                const std::int16_t* at = weights + std::size_t{s.w_first + run * s.w_next} * 2 * LANES;
                for (std::uint32_t n = 0; n < s.length; ++n) {
                    const double re_x = a[n], im_x = a[n + s.plane];
                    Wide c, d;
                    Reals cs[2], ds[2];
                    load_weights(at + 2 * LANES * n, c);
                    load_weights(at + 2 * LANES * n + LANES, d);
                    halves(c, cs);
                    halves(d, ds);
                    for (int h = 0; h < 2; ++h) {
                        re[h] += w == 0 ? cs[h] * re_x : cs[h] * re_x - ds[h] * im_x;
                        im[h] += w == 0 ? ds[h] * im_x : cs[h] * im_x + ds[h] * re_x;
                    }
                }
            }
        }
        const Place place(static_cast<int>(w));
        for (int h = 0; h < 2; ++h) {
            settle(re[h], s.shift);
            settle(im[h], s.shift);
            out[h][place.re] = re[h];
            out[h][place.im] = im[h];
        }
    }
}

// k = 1: sums of elements times weights of LANES outputs.
CIRC_KERNEL inline void row_plain(const RowSums& s, Reals (*out)[MAX_BLOCK]) {
    Wide acc = {};
    Reals wide[2] = {};
    for (std::uint32_t run = 0; run < s.runs; ++run) {
        const std::int32_t* x = s.x + s.x_first + run * s.x_next;
        const std::int16_t* at = s.weights + std::size_t{s.w_first + run * s.w_next} * LANES;
        for (std::uint32_t n = 0; n < s.length; ++n) {
            Wide c;
            load_weights(at + LANES * n, c);
            if (s.narrow[0]) {
                acc += c * static_cast<std::uint32_t>(x[n]);
            } else {
                Reals cs[2];
                halves(c, cs);
                wide[0] += cs[0] * static_cast<double>(x[n]);
                wide[1] += cs[1] * static_cast<double>(x[n]);
            }
        }
    }
    if (s.narrow[0]) halves(acc, wide);
    for (int h = 0; h < 2; ++h) {
        settle(wide[h], s.shift);
        out[h][0] = wide[h];
    }
}

// Spectra of blocks that lie one behind the other: an item of the planes each.
template <int K>
CIRC_KERNEL void forward_blocks(const Halves* blocks, std::uint32_t count, std::uint32_t plane, std::int32_t* planes,
                                Ints* peaks) {
    for (std::uint32_t first = 0; first < count; first += HALF) {
        std::uint32_t from[HALF];
        for (std::uint32_t n = 0; n < HALF; ++n) from[n] = (first + n) * (K / 4);
        Reals x[std::size_t{K}];
        fetch<K>(blocks, from, 0, K, x);
        forward_reals<K>(x);
        std::int32_t* to = planes;
        each<K / 2>([&](auto w) {
            const Place place(w);
            put(x[place.re], to, &first, true, peaks[w]);
            put(x[place.im], to + plane, &first, true, peaks[w]);
            to += 2 * std::size_t{plane};
        });
    }
}

class RowUnit {
  public:
    void execute(const Instruction& i, int width, const RowTable& table, const Magnitudes& magnitudes, Halves* map) {
        const std::uint32_t k = i.block_size(), padded = i.in_blocks() * (i.compressed() ? k : MAP_WORD);
        const std::uint32_t pixels = i.in_height * i.in_width;
        collect(i, map, pixels, padded);
        if (!i.compressed()) {
            elements_.resize(std::size_t{pixels} * padded);
            Ints peak = {};
            for (std::size_t n = 0; n < elements_.size(); ++n) {
                elements_[n] = blocks_[n / MAP_WORD].element[n % MAP_WORD];
                peak[0] = std::max(peak[0], std::abs(elements_[n]));
            }
            narrow_[0] = magnitudes.fit(0, peak);
            outputs<1>(i, width, table, elements_.data(), 0, padded, map);
            return;
        }
        Processor<1>::with_block(static_cast<int>(i.log2_block), [&](auto block) {
            constexpr int K = decltype(block)::size();
            if constexpr (K >= 4) {
                const std::uint32_t items = pixels * i.in_blocks(), plane = (items + LANES - 1) / LANES * LANES;
                if (elements_.size() < std::size_t{plane} * K) elements_.resize(std::size_t{plane} * K);
                Ints peaks[MAX_BLOCK / 2] = {};
                forward_blocks<K>(blocks_.data(), items, plane, elements_.data(), peaks);
                for (std::uint32_t w = 0; w < K / 2; ++w) narrow_[w] = magnitudes.fit(w, peaks[w]);
                outputs<K>(i, width, table, elements_.data(), plane, i.in_blocks(), map);
            }
        });
    }

  private:
    // The input's pixels one behind the other, each filled up with zeros to `padded` elements.
    void collect(const Instruction& i, const Halves* map, std::uint32_t pixels, std::uint32_t padded) {
        const std::uint32_t words = pixel_words(i.in_channels), room = padded / MAP_WORD;
        const std::size_t all = std::size_t{pixels} * room + MAX_BLOCK * LANES / MAP_WORD;
        if (blocks_.size() < all) blocks_.resize(all);
        for (std::uint32_t n = 0; n < pixels; ++n) {
            Halves* to = &blocks_[std::size_t{n} * room];
            std::copy_n(map + i.in_base + n * i.in_pitch, words, to);
            std::fill(to + words, to + room, Halves{});
            for (std::uint32_t c = i.in_channels; c < words * MAP_WORD; ++c) to[c / MAP_WORD].element[c % MAP_WORD] = 0;
        }
    }

    // `items` of x make a pixel.
    template <int K>
    void outputs(const Instruction& i, int width, const RowTable& table, const std::int32_t* x, std::uint32_t plane,
                 std::uint32_t items, Halves* map) {
        const RealFinish finish(i, width);
        const std::uint32_t rows = i.out_blocks(), words = pixel_words(i.out_channels), per_row = K / 4;
        for (std::uint32_t pixel = 0; pixel < i.out_height * i.out_width; ++pixel) {
            const std::uint32_t target = i.out_base + pixel * i.out_pitch;
            for (std::uint32_t row = 0; row < rows; row += LANES) {
                const std::uint32_t lanes = std::min(rows - row, LANES), group = row / LANES;
                const LaneEntries entries{&table.scale[std::size_t{group} * K * LANES],
                                          &table.bias[std::size_t{group} * K * LANES]};
                for (std::uint32_t pool = 0; pool < i.pool_rows * i.pool_columns; ++pool) {
                    const std::uint32_t oy = pixel / i.out_width * i.pool_rows + pool / i.pool_columns;
                    const std::uint32_t ox = pixel % i.out_width * i.pool_columns + pool % i.pool_columns;
                    sums<K>(i, table, x, plane, items, group, oy, ox);
                    std::uint32_t residual[LANES];
                    for (std::uint32_t n = 0; n < LANES; ++n)
                        residual[n] = i.add_base + (oy * i.out_width * i.pool_columns + ox) * i.add_pitch +
                                      std::min(row + n, rows - 1) * per_row;
                    for (std::uint32_t h = 0; h < lanes; h += HALF) {
                        if constexpr (K > 1) inverse_block<K>(samples_[h / HALF]);
                        finish_block(finish, samples_[h / HALF], entries, h, K, map, residual + h, 0, pool == 0,
                                     best_[h / HALF]);
                    }
                }
                for (std::uint32_t h = 0; h < lanes; h += HALF) {
                    if constexpr (K > 1) {
                        std::uint32_t to[HALF];
                        for (std::uint32_t n = 0; n < HALF; ++n) to[n] = target + (row + h + n) * per_row;
                        write_block(best_[h / HALF], K, map, to, 0, target + words);
                    } else {
                        for (std::uint32_t n = row + h; n < std::min(row + h + HALF, i.out_channels); ++n)
                            map[target + n / MAP_WORD].element[n % MAP_WORD] =
                                static_cast<std::int16_t>(best_[h / HALF][0][n - row - h]);
                    }
                }
            }
            for (std::uint32_t c = i.out_channels; c < words * MAP_WORD; ++c)
                map[target + c / MAP_WORD].element[c % MAP_WORD] = 0;
        }
    }

    template <int K>
    void sums(const Instruction& i, const RowTable& table, const std::int32_t* x, std::uint32_t plane,
              std::uint32_t items, std::uint32_t group, std::uint32_t oy, std::uint32_t ox) {
        const Overlap rows(oy, i.stride_rows, i.pad_top, i.tap_rows, i.in_height);
        const Overlap columns(ox, i.stride_columns, i.pad_left, i.tap_columns, i.in_width);
        const RowSums s{x,
                        plane,
                        &table.weights[std::size_t{group} * i.row_words() * 2 * LANES],
                        static_cast<std::uint32_t>(i.row_blocks()),
                        rows.count,
                        columns.count * items,
                        (rows.begin * i.in_width + columns.begin) * items,
                        i.in_width * items,
                        (rows.skipped * i.tap_columns + columns.skipped) * items,
                        i.tap_columns * items,
                        narrow_,
                        RealShift(i.acc_shift)};
        if constexpr (K > 1) {
            row_sums<K>(s, samples_);
        } else {
            row_plain(s, samples_);
        }
    }

    std::vector<Halves> blocks_;
    std::vector<std::int32_t> elements_;
    bool narrow_[MAX_BLOCK / 2];
    Reals samples_[2][MAX_BLOCK] = {}, best_[2][MAX_BLOCK] = {};
};

}  // namespace circ
