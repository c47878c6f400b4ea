// SPDX-License-Identifier: BSD-3-Clause
// CIRCULANT as a processor walks it: LANES output pixels side by side, plan.hpp says how. All spectra of the
// input are formed first.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "circ_spec.hpp"
#include "finish.hpp"
#include "kernels.hpp"
#include "lane_sums.hpp"
#include "mac.hpp"
#include "plan.hpp"
#include "tables.hpp"
#include "transform.hpp"

namespace circ {

class LaneUnit {
  public:
    void execute(const Instruction& i, int width, const Plan& plan, const Table& table,
                 const Magnitudes& magnitudes, const Entries& entries, Halves* map) {
        width_ = width;

        if (planes_.size() < std::size_t{plan.planes} * plan.plane)
            planes_.resize(std::size_t{plan.planes} * plan.plane);
        if (plan.padded) std::fill_n(planes_.begin(), std::size_t{plan.planes} * plan.plane, 0);
        if (!i.compressed()) {
            split_input(i, plan, map);
            narrow_[0] = magnitudes.fit(0, peaks_[0]);
            outputs<4>(i, plan, table, entries, map);  // four channels at a time
            return;
        }
        Processor<>::with_block(static_cast<int>(i.log2_block), [&](auto block) {
            constexpr int K = decltype(block)::size();
            if constexpr (K >= 4) {
                if (i.gathers()) {
                    split_input(i, plan, map);
                    gathered_.resize(std::size_t{i.in_blocks()} * K * LANES);
                    gathered_steps_.resize(i.in_blocks());
                    for (std::uint32_t j = 0; j < i.in_blocks(); ++j) gathered_steps_[j] = j * K * LANES;
                    // invariant: no part of a spectrum exceeds K times its largest element, and K roundings
                    const Ints bound = (peaks_[0] + 1) * K;
                    for (std::uint32_t w = 0; w < K / 2; ++w) narrow_[w] = magnitudes.fit(w, bound);
                } else {
                    std::fill_n(peaks_, K / 2, Ints{});
                    for (const Group& group : plan.groups)
                        forward_group<K>(map, group, i.in_channels, plan.plane, planes_.data(), peaks_);
                    for (std::uint32_t w = 0; w < K / 2; ++w) narrow_[w] = magnitudes.fit(w, peaks_[w]);
                }
                outputs<K>(i, plan, table, entries, map);
            }
        });
    }

  private:
    void split_input(const Instruction& i, const Plan& plan, const Halves* map) {
        peaks_[0] = Ints{};
        for (const Group& group : plan.groups)
            split_group(map, group, i.in_channels, plan.plane, planes_.data(), peaks_[0]);
    }

    // Blocks of K channels; k = 1: of four.
    template <int K>
    void outputs(const Instruction& i, const Plan& plan, const Table& table, const Entries& entries,
                 Halves* map) {
        const RealFinish finish(i, width_);
        const std::uint32_t blocks = (i.out_channels + K - 1) / K;
        for (const Tile& tile : plan.tiles) {
            std::size_t at = 0;  // in the table
            for (std::uint32_t first = 0, count = 0; first < blocks; first += count) {
                count = i.compressed() ? Table::group(blocks - first) : 1;
                for (std::uint32_t pool = 0; pool < plan.pools; ++pool) {
                    const std::uint32_t* steps = plan.steps.data() + std::size_t{pool} * plan.steps_of_result;
                    if (i.gathers() && (first == 0 || plan.pools > 1)) {  // the tile's windows as vectors
                        gather_blocks<K>(planes_.data() + tile.position, steps, plan.steps_of_result,
                                         tile.count, gathered_.data());
                    }
                    sums<K>(i, plan, table, tile, steps, at, first, count);
                    const std::uint32_t shift =
                        (pool / i.pool_columns * i.out_width * i.pool_columns + pool % i.pool_columns) *
                        i.add_pitch;
                    for (std::uint32_t r = 0; r < count; ++r) {
                        const std::uint32_t c = (first + r) * K,
                                            channels = std::min(i.out_channels - c, std::uint32_t{K});
                        for (std::uint32_t h = 0; h < tile.count; h += HALF) {
                            Reals* y = samples_[r][h / HALF];
                            if (i.compressed()) inverse_block<K>(y);
                            finish_block(finish, y, SameEntry{&entries.scale[c], &entries.bias[c]}, 0,
                                         channels, map, tile.residual + h, shift + c / 4, pool == 0,
                                         best_[r][h / HALF]);
                        }
                    }
                }
                for (std::uint32_t r = 0; r < count; ++r) {
                    const std::uint32_t c = (first + r) * K,
                                        channels = std::min(i.out_channels - c, std::uint32_t{K});
                    for (std::uint32_t h = 0; h < tile.count; h += HALF)
                        write_block(best_[r][h / HALF], channels, map, tile.pixel + h, c / 4, Tile::NONE);
                }
                at += std::size_t{count} * i.row_words();
            }
        }
    }

    template <int K>
    void sums(const Instruction& i, const Plan& plan, const Table& table, const Tile& tile,
              const std::uint32_t* steps, std::size_t at, std::uint32_t first, std::uint32_t count) {
        const auto products = static_cast<std::uint32_t>(i.row_blocks());
        const RealShift shift(i.acc_shift);
        const std::int32_t* x = planes_.data() + tile.position;
        if (!i.compressed()) {
            const auto* weights =
                reinterpret_cast<const Four*>(&table.plain[std::size_t{first} * plan.steps_of_result * 4]);
            (narrow_[0] ? narrow_plain : wide_plain)(x, steps, plan.steps_of_result, weights, shift,
                                                     samples_[0][0], MAX_BLOCK);
            return;
        }
        Sums s{x,     plan.plane, steps,   products,  nullptr,      false,
               shift, nullptr,    nullptr, MAX_BLOCK, 2 * MAX_BLOCK};
        if (i.gathers()) {
            s.x = gathered_.data();
            s.plane = LANES;
            s.steps = gathered_steps_.data();
        }
        for (std::uint32_t w = 0; w < K / 2; ++w) {
            const Place place(static_cast<int>(w));
            s.table = &table.factors[at + std::size_t{w} * products * count];
            s.real = w == 0;
            s.re = &samples_[0][0][place.re];
            s.im = &samples_[0][0][place.im];
            if (count == 4) {
                narrow_[w] ? narrow_sums<4>(s) : wide_sums<4>(s);
            } else if (count == 2) {
                narrow_[w] ? narrow_sums<2>(s) : wide_sums<2>(s);
            } else {
                narrow_[w] ? narrow_sums<1>(s) : wide_sums<1>(s);
            }
            s.x += 2 * std::size_t{s.plane};
        }
    }

    std::vector<std::int32_t> planes_, gathered_;
    std::vector<std::uint32_t> gathered_steps_;
    int width_ = 0;
    Ints peaks_[MAX_BLOCK / 2];
    bool narrow_[MAX_BLOCK / 2];
    Reals samples_[4][2][MAX_BLOCK] = {}, best_[4][2][MAX_BLOCK] = {};
};

}  // namespace circ
