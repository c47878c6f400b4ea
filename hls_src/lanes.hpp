// SPDX-License-Identifier: BSD-3-Clause
// CIRCULANT as a processor walks it: LANES output pixels side by side, plan.hpp says how. All spectra of the input
// are formed first.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "affine.hpp"
#include "circ_spec.hpp"
#include "kernels.hpp"
#include "loader.hpp"
#include "mac.hpp"
#include "plan.hpp"
#include "transform.hpp"

namespace circ {

// Weights of an instruction in the order in which its sums take them: rows in groups of 4, then 2 or 1.
struct Table {
    std::vector<Triple> factors;             // group by group, word by word, step by step, row by row
    std::vector<std::int32_t> plain;         // k = 1: by four outputs, step by step, output by output
    std::uint64_t magnitude[MAX_BLOCK / 2];  // of a word: no sum exceeds it times the word's largest part

    template <class Weights>
    void make(const Instruction& i, Weights& weights) {
        const std::uint32_t half = i.block_words(), row = i.row_words(), steps = row / half, rows = i.out_blocks();
        factors.clear();
        plain.clear();
        std::fill(std::begin(magnitude), std::end(magnitude), 0);
        measure(i, weights);
        if (!i.compressed()) {
            plain.resize(std::size_t{(rows + 3) / 4} * steps * 16);
            for (std::uint32_t r = 0; r < rows; ++r) {
                for (std::uint32_t n = 0; n < row; ++n) {
                    const auto& word = weights[i.weight_base + r * row + n];
                    std::int32_t* to = &plain[((std::size_t{r / 4} * steps + n / 2) * 4 + r % 4) * 4 + n % 2 * 2];
                    to[0] = word.re;
                    to[1] = word.im;
                }
            }
            return;
        }
        factors.reserve(std::size_t{rows} * row);
        for (std::uint32_t first = 0, count = 0; first < rows; first += count) {
            count = group(rows - first);
            for (std::uint32_t w = 0; w < half; ++w) {
                for (std::uint32_t n = 0; n < steps; ++n) {
                    for (std::uint32_t r = 0; r < count; ++r) {
                        const auto& word = weights[i.weight_base + (first + r) * row + n * half + w];
                        const Factors f = Factors::of(word, w == 0);
                        factors.push_back({f.first, f.minus, f.plus});
                    }
                }
            }
        }
    }

    // Rows that are summed side by side where `left` remain.
    static std::uint32_t group(std::uint32_t left) { return left >= 4 ? 4 : left >= 2 ? 2 : 1; }

  private:
    // The largest sum over a row of |re| + |im|, for two real products the larger one. k = 1: all in word 0.
    template <class Weights>
    void measure(const Instruction& i, Weights& weights) {
        const std::uint32_t half = i.block_words(), row = i.row_words();
        const auto absolute = [](std::int32_t v) { return static_cast<std::uint64_t>(v < 0 ? -v : v); };
        for (std::uint32_t r = 0; r < i.out_blocks(); ++r) {
            std::uint64_t re[MAX_BLOCK / 2] = {}, im[MAX_BLOCK / 2] = {};
            for (std::uint32_t n = 0; n < row; ++n) {
                const auto& word = weights[i.weight_base + r * row + n];
                re[i.compressed() ? n % half : 0] += absolute(word.re);
                im[i.compressed() ? n % half : 0] += absolute(word.im);
            }
            for (std::uint32_t w = 0; w < half; ++w) {
                const bool real = i.compressed() && w == 0;
                magnitude[w] = std::max(magnitude[w], real ? std::max(re[w], im[w]) : re[w] + im[w]);
            }
        }
    }
};

template <int W, class Capacity>
class LaneUnit {
    using Program = ProgramMemory<W, Capacity>;

  public:
    void execute(const Instruction& i, const Plan& plan, const Table& table, Program& program, Halves* map) {
        if (planes_.size() < std::size_t{plan.planes} * plan.plane) planes_.resize(std::size_t{plan.planes} * plan.plane);
        if (plan.padded) std::fill_n(planes_.begin(), std::size_t{plan.planes} * plan.plane, 0);
        clear(peaks_[0]);
        if (!i.compressed()) {
            split_input(i, plan, map);
            narrow_[0] = fits(table, 0, peaks_[0]);
            outputs(StaticBlock<2>{}, i, plan, table, program, map);  // four channels at a time
            return;
        }
        Processor<1>::with_block(static_cast<int>(i.log2_block), [&](auto block) {
            if constexpr (decltype(block)::size() >= 4) {
                if (i.gathers()) {
                    split_input(i, plan, map);
                    gathered_.resize(std::size_t{i.in_blocks()} * i.block_size() * LANES);
                } else {
                    for (std::uint32_t w = 0; w < i.block_words(); ++w) clear(peaks_[w]);
                    for (const Group& group : plan.groups)
                        forward_group(block, map, group, i.in_channels, plan.plane, planes_.data(), peaks_);
                    for (std::uint32_t w = 0; w < i.block_words(); ++w) narrow_[w] = fits(table, w, peaks_[w]);
                }
                outputs(block, i, plan, table, program, map);
            }
        });
    }

  private:
    // invariant: |sum| <= magnitude * peak; below 2**31, a sum modulo 2**32 is the sum itself
    static bool fits(const Table& table, std::uint32_t w, const Lanes<Sample, LANES>& peaks) {
        const auto peak = static_cast<std::uint64_t>(*std::max_element(peaks.lane, peaks.lane + LANES));
        return table.magnitude[w] * peak < std::uint64_t{1} << 31;
    }

    void split_input(const Instruction& i, const Plan& plan, const Halves* map) {
        for (const Group& group : plan.groups)
            split(map, group, i.in_channels, plan.plane, planes_.data(), peaks_[0]);
    }

    template <class Block>
    void outputs(Block block, const Instruction& i, const Plan& plan, const Table& table, Program& program,
                 Halves* map) {
        const Finish<W> finish(i);
        for (const Tile& tile : plan.tiles) {
            const std::uint32_t rows = i.out_blocks();
            std::size_t at = 0;  // in the table
            for (std::uint32_t first = 0, count = 0; first < rows; first += count) {
                count = i.compressed() ? Table::group(rows - first) : 4;
                for (std::uint32_t pool = 0; pool < plan.pools; ++pool) {
                    const std::uint32_t* steps = plan.steps.data() + std::size_t{pool} * plan.steps_of_result;
                    if (i.gathers() && (first == 0 || plan.pools > 1)) gather(block, i, plan, table, tile, steps);
                    if (!i.compressed()) {
                        plain(i, plan, table, tile, steps, first);
                    } else if (count == 4) {
                        sums<4>(i, plan, table, tile, steps, at);
                    } else if (count == 2) {
                        sums<2>(i, plan, table, tile, steps, at);
                    } else {
                        sums<1>(i, plan, table, tile, steps, at);
                    }
                    const std::uint32_t shift =
                        (pool / i.pool_columns * i.out_width * i.pool_columns + pool % i.pool_columns) * i.add_pitch;
                    for (std::uint32_t r = 0; r < (i.compressed() ? count : 1); ++r) {
                        if (i.compressed()) inverse(block, samples_[r]);
                        finish_block(block, i, finish, program, map, tile, (first + r) << i.log2_block, shift, pool == 0,
                                     samples_[r], best_[r]);
                    }
                }
                for (std::uint32_t r = 0; r < (i.compressed() ? count : 1); ++r)
                    write(block, i, map, tile, (first + r) << i.log2_block, best_[r]);
                at += std::size_t{count} * i.row_words();
            }
        }
    }

    // The tile's windows as vectors: spectra to gathered_, which are planes of LANES positions.
    template <class Block>
    void gather(Block block, const Instruction& i, const Plan& plan, const Table& table, const Tile& tile,
                const std::uint32_t* steps) {
        for (std::uint32_t w = 0; w < i.block_words(); ++w) clear(peaks_[w]);
        gather_blocks(block, planes_.data() + tile.position, steps, plan.steps_of_result, gathered_.data(), peaks_);
        for (std::uint32_t w = 0; w < i.block_words(); ++w) narrow_[w] = fits(table, w, peaks_[w]);
        if (gathered_steps_.size() < i.in_blocks()) {
            gathered_steps_.resize(i.in_blocks());
        }
        for (std::uint32_t j = 0; j < i.in_blocks(); ++j) gathered_steps_[j] = j * i.block_size() * LANES;
    }

    template <int ROWS>
    void sums(const Instruction& i, const Plan& plan, const Table& table, const Tile& tile, const std::uint32_t* steps,
              std::size_t at) {
        const RoundShift<spec::ACC_BITS + 1> round(static_cast<int>(i.acc_shift));
        const bool local = i.gathers();
        const std::uint32_t plane = local ? LANES : plan.plane;
        const std::int32_t* x = local ? gathered_.data() : planes_.data() + tile.position;
        const auto count = static_cast<std::uint32_t>(i.row_blocks());
        for (std::uint32_t w = 0; w < i.block_words(); ++w) {
            const Triple* factors = &table.factors[at + std::size_t{w} * count * ROWS];
            const auto of = [&](auto& acc) {
                lane_sums<ROWS>(x + std::size_t{2} * w * plane, plane, local ? gathered_steps_.data() : steps, count,
                                    factors, acc);
                const Place place(static_cast<int>(w));
                round_sums<ROWS>(acc, w == 0, round, samples_, place);
            };
            if (narrow_[w]) {
                ComplexSum<Modular, LANES> acc[std::size_t{ROWS}];
                of(acc);
            } else {
                ComplexSum<Exact, LANES> acc[std::size_t{ROWS}];
                of(acc);
            }
        }
    }

    void plain(const Instruction& i, const Plan& plan, const Table& table, const Tile& tile, const std::uint32_t* steps,
               std::uint32_t first) {
        const RoundShift<spec::ACC_BITS + 1> round(static_cast<int>(i.acc_shift));
        const auto count = static_cast<std::uint32_t>(i.row_blocks());
        using Quad = std::int32_t[4][4];
        const auto* quads = reinterpret_cast<const Quad*>(&table.plain[std::size_t{first} * count * 4]);
        const auto of = [&](auto& acc) {
            lane_plain_sums(planes_.data() + tile.position, plan.plane, steps, count, quads, acc);
            round_plain(acc, round, samples_[0]);
        };
        if (narrow_[0]) {
            Lanes<Modular::Value, LANES> acc[4];
            of(acc);
        } else {
            Lanes<Exact::Value, LANES> acc[4];
            of(acc);
        }
    }

    template <class Block>
    void finish_block(Block, const Instruction& i, const Finish<W>& finish, Program& program, const Halves* map,
                      const Tile& tile, std::uint32_t first, std::uint32_t shift, bool begins,
                      const Samples<LANES>& y, Lanes<std::int16_t, LANES>* best) {
        for (std::uint32_t n = 0; n < std::uint32_t{Block::size()} && first + n < i.out_channels; n += 4) {
            Words residual = {};
            if (finish.adds()) {
                for (std::uint32_t l = 0; l < LANES; ++l)
                    residual[l] = packed(map[tile.residual[l] + shift + (first + n) / 4]);
            }
            OneEntry entries[4];
            const std::uint32_t channels = std::min(i.out_channels - first - n, 4U);
            for (std::uint32_t e = 0; e < channels; ++e) entries[e] = {program.affine[i.affine_base + first + n + e]};
            finish_word(finish, y + n, entries, channels, residual, begins, best + n);
        }
    }

    template <class Block>
    void write(Block, const Instruction& i, Halves* map, const Tile& tile, std::uint32_t first,
               const Lanes<std::int16_t, LANES>* best) {
        for (std::uint32_t n = 0; n < std::uint32_t{Block::size()} && first + n < i.out_channels; n += 4) {
            Words words;
            join(best + n, words);
            for (std::uint32_t l = 0; l < LANES; ++l) {
                if (tile.pixel[l] != Tile::NONE) unpack(words[l], map[tile.pixel[l] + (first + n) / 4]);
            }
        }
    }

    std::vector<std::int32_t> planes_, gathered_;
    std::vector<std::uint32_t> gathered_steps_;
    Lanes<Sample, LANES> peaks_[MAX_BLOCK / 2];
    bool narrow_[MAX_BLOCK / 2];
    Samples<LANES> samples_[4];
    Lanes<std::int16_t, LANES> best_[4][MAX_BLOCK];
};

}  // namespace circ
