// SPDX-License-Identifier: BSD-3-Clause
// MAX, SUM and PRODUCT: reductions without weights, channel by channel. A map word's elements side by side.
#pragma once

#include "affine.hpp"
#include "circ_spec.hpp"
#include "image.hpp"
#include "loader.hpp"
#include "policy.hpp"
#include "runs.hpp"
#include "types.hpp"

namespace circ {

// Affine entries of neighbouring channels, one for each lane.
template <int N>
struct NextEntries {
    Affine entry[std::size_t{N}];
    Int<spec::SCALE_BITS> scale(int n) const { return entry[n].scale; }
    Int<spec::BIAS_BITS> bias(int n) const { return entry[n].bias; }
};

template <int W, class Capacity>
class PixelwiseUnit {
    static constexpr int N = spec::MAP_WORD;
    using Map = Maps<typename Capacity::template Memory<MapWord<Stored<W>>, Role::Map>>;
    using Program = ProgramMemory<W, Capacity>;
    using Acc = Int<spec::ACC_BITS>;

  public:
    void execute(const Instruction& i, Program& program, Map map) {
        const Finish<W> finish(i);
    OUT_ROW:
        for (std::uint32_t y = 0; y < i.out_height; ++y) {
        OUT_COLUMN:
            for (std::uint32_t x = 0; x < i.out_width; ++x) {
            MAP_WORDS:
                for (std::uint32_t m = 0; m < pixel_words(i.out_channels); ++m) {
                    NextEntries<N> entries;
                ENTRY:
                    for (std::uint32_t n = 0; n < std::uint32_t{N}; ++n) {
#pragma HLS PIPELINE II = 1
                        const std::uint32_t c = m * N + n;
                        entries.entry[n] = program.affine[i.affine_base + (c < i.out_channels ? c : 0)];
                    }
                    Lanes<Stored<W>, N> best;
                    pooled(i, map, finish, y, x, m, entries, best);
                    MapWord<Stored<W>>& target = map[i.out_base + (y * i.out_width + x) * i.out_pitch + m];
                WRITE:
                    for (std::uint32_t n = 0; n < std::uint32_t{N}; ++n) {
#pragma HLS UNROLL
                        target.element[n] = m * N + n < i.out_channels ? best.lane[n] : Stored<W>(0);
                    }
                }
            }
        }
    }

  private:
    // Largest of the results that make output (y, x), map word m.
    void pooled(const Instruction& i, Map map, const Finish<W>& finish, std::uint32_t y, std::uint32_t x,
                std::uint32_t m, const NextEntries<N>& entries, Lanes<Stored<W>, N>& best) {
        clear(best);
    POOL_ROW:
        for (std::uint32_t a = 0; a < i.pool_rows; ++a) {
        POOL_COLUMN:
            for (std::uint32_t b = 0; b < i.pool_columns; ++b) {
                const std::uint32_t oy = y * i.pool_rows + a, ox = x * i.pool_columns + b;
                const std::uint64_t number = oy * i.result_width() + ox;
                Lanes<Sample, N> value;
                Lanes<Stored<W>, N> residual, out;
                reduce(i, map, oy, ox, number, m, value);
                if (i.adds()) {
                    load(map[static_cast<std::uint32_t>(i.add_base + number * i.add_pitch) + m], residual);
                } else {
                    clear(residual);
                }
                finish(value, entries, residual, out);
            KEEP_LARGEST:
                for (int n = 0; n < N; ++n) {
#pragma HLS UNROLL
                    best.lane[n] = a == 0 && b == 0 ? out.lane[n] : larger(best.lane[n], out.lane[n]);
                }
            }
        }
    }

    static void load(const MapWord<Stored<W>>& word, Lanes<Stored<W>, N>& lanes) {
#pragma HLS INLINE
        for (int n = 0; n < N; ++n) lanes.lane[n] = word.element[n];
    }

    // The value that the affine takes. invariant: a sum has at most 255 x 255 pixels, a product 32 bits
    void reduce(const Instruction& i, Map map, std::uint32_t oy, std::uint32_t ox, std::uint64_t number,
                std::uint32_t m, Lanes<Sample, N>& value) {
        const bool max = i.is(spec::Opcode::Max), multiplies = i.is(spec::Opcode::Product);
        const Overlap rows(oy, i.stride_rows, i.pad_top, i.tap_rows, i.in_height);
        const Overlap columns(ox, i.stride_columns, i.pad_left, i.tap_columns, i.in_width);
        Lanes<Int<34>, N> acc;
        for (int n = 0; n < N; ++n) acc.lane[n] = max ? -(1 << (W - 1)) : 0;
    TAP_ROW:
        for (std::uint32_t r = 0; r < rows.count; ++r) {
        TAP_COLUMN:
            for (std::uint32_t s = 0; s < columns.count; ++s) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT max = 9
                const std::uint32_t pixel = (rows.begin + r) * i.in_width + columns.begin + s;
                Lanes<Stored<W>, N> x;
                load(map[i.in_base + pixel * i.in_pitch + m], x);
            TAP_LANE:
                CIRC_LANES
                for (int n = 0; n < N; ++n) {
#pragma HLS UNROLL
                    const Int<34> v = x.lane[n];
                    acc.lane[n] = max ? larger(acc.lane[n], v) : static_cast<Int<34>>(acc.lane[n] + v);
                }
            }
        }
        const RoundShift<spec::ACC_BITS + 1> round(static_cast<int>(i.acc_shift));
        Lanes<Stored<W>, N> factor;
        if (multiplies) {
            load(map[static_cast<std::uint32_t>(i.factor_base + number * i.factor_pitch) + m], factor);
        } else {
            clear(factor);
        }
    REDUCED:
        CIRC_LANES
        for (int n = 0; n < N; ++n) {
#pragma HLS UNROLL
            const Acc sum =
                multiplies ? static_cast<Acc>(product(acc.lane[n], factor.lane[n])) : Acc(acc.lane[n]);
            value.lane[n] = static_cast<Sample>(saturate<spec::TIME_BITS>(round(sum)));
        }
    }
};

}  // namespace circ
