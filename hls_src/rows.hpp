// SPDX-License-Identifier: BSD-3-Clause
// CIRCULANT of few pixels on a processor: not output pixels but LANES block rows of one are computed side by
// side, and when the input is transformed, LANES blocks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "circ_spec.hpp"
#include "finish.hpp"
#include "kernels.hpp"
#include "row_sums.hpp"
#include "runs.hpp"
#include "tables.hpp"

namespace circ {

class RowUnit {
  public:
    void execute(const Instruction& i, int width, const RowTable& table, const Magnitudes& magnitudes,
                 Halves* map) {
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
        Processor<>::with_block(static_cast<int>(i.log2_block), [&](auto block) {
            constexpr int K = decltype(block)::size();
            if constexpr (K >= 4) {
                const std::uint32_t items = pixels * i.in_blocks(),
                                    plane = (items + LANES - 1) / LANES * LANES;
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
            for (std::uint32_t c = i.in_channels; c < words * MAP_WORD; ++c)
                to[c / MAP_WORD].element[c % MAP_WORD] = 0;
        }
    }

    // `items` of x make a pixel.
    template <int K>
    void outputs(const Instruction& i, int width, const RowTable& table, const std::int32_t* x,
                 std::uint32_t plane, std::uint32_t items, Halves* map) {
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
                        finish_block(finish, samples_[h / HALF], entries, h, K, map, residual + h, 0,
                                     pool == 0, best_[h / HALF]);
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
