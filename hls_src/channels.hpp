// SPDX-License-Identifier: BSD-3-Clause
// MAX, SUM and PRODUCT on a processor: HALF channels of a pixel side by side.
#pragma once

#include <cstdint>
#include <cstring>

#include "circ_spec.hpp"
#include "finish.hpp"
#include "kernels.hpp"
#include "runs.hpp"
#include "tables.hpp"

namespace circ {

// HALF channels from a map word on; those behind a pixel's end are another's, or memory's slack.
inline void load_channels(const Halves* word, Reals& v) {
    using Few = std::int16_t __attribute__((vector_size(2 * HALF)));
    static_assert(sizeof(Few) == 2 * sizeof(Halves));
    Few n;
    std::memcpy(&n, word, sizeof n);
    to_reals(__builtin_convertvector(n, Ints), v);
}

// The value that the affine takes, of HALF channels.
//   at      the window's first pixel inside the input
//   floor   smallest number of the width, for a window without pixels
inline void reduce_window(const Instruction& i, const Halves* at, std::uint32_t rows, std::uint32_t columns,
                          const Halves* factor, double floor, const RealShift& shift, Reals& v) {
    if (i.is(spec::Opcode::Max)) {
        spread(floor, v);
        for (std::uint32_t r = 0; r < rows; ++r) {
            for (std::uint32_t s = 0; s < columns; ++s) {
                Reals x;
                load_channels(at + (r * i.in_width + s) * i.in_pitch, x);
                v = x > v ? x : v;
            }
        }
    } else {
        v = Reals{};
        for (std::uint32_t r = 0; r < rows; ++r) {
            for (std::uint32_t s = 0; s < columns; ++s) {
                Reals x;
                load_channels(at + (r * i.in_width + s) * i.in_pitch, x);
                v += x;
            }
        }
    }
    if (i.is(spec::Opcode::Product)) {
        Reals x;
        load_channels(factor, x);
        v = v * x;
    }
    shift(v);
}

inline void store_channels(const Reals& v, std::uint32_t channels, Halves* to) {
    using Few = std::int16_t __attribute__((vector_size(2 * HALF)));
    const Few n = __builtin_convertvector(__builtin_convertvector(v, Ints), Few);
    if (channels >= HALF) {
        std::memcpy(to, &n, sizeof n);
        return;
    }
    for (std::uint32_t c = 0; c < pixel_words(channels) * MAP_WORD; ++c)
        to[c / MAP_WORD].element[c % MAP_WORD] = c < channels ? n[c] : std::int16_t{0};
}

// A whole instruction on one image.
CIRC_KERNEL inline void reduce_channels(const Instruction& i, const RealFinish& how, const Entries& entries,
                                        Halves* map) {
    const RealFinish finish = how;  // copies, which no store can change
    const RealShift shift(i.acc_shift);
    const std::uint32_t result_width = i.out_width * i.pool_columns;
    for (std::uint32_t y = 0; y < i.out_height; ++y) {
        for (std::uint32_t x = 0; x < i.out_width; ++x) {
            Halves* to = map + i.out_base + (y * i.out_width + x) * i.out_pitch;
            const bool pooled = i.pool_rows * i.pool_columns > 1;
            for (std::uint32_t pool = 0; pool < i.pool_rows * i.pool_columns; ++pool) {
                const std::uint32_t oy = y * i.pool_rows + pool / i.pool_columns;
                const std::uint32_t ox = x * i.pool_columns + pool % i.pool_columns;
                const Overlap rows(oy, i.stride_rows, i.pad_top, i.tap_rows, i.in_height);
                const Overlap columns(ox, i.stride_columns, i.pad_left, i.tap_columns, i.in_width);
                const std::size_t number = std::size_t{oy} * result_width + ox;
                const Halves* at = map + i.in_base + (rows.begin * i.in_width + columns.begin) * i.in_pitch;
                const Halves* factor = map + i.factor_base + number * i.factor_pitch;
                const Halves* summands = map + i.add_base + number * i.add_pitch;
                for (std::uint32_t c = 0; c < i.out_channels; c += HALF) {
                    const std::uint32_t m = c / MAP_WORD;
                    Reals v, scale, bias, summand = {};
                    reduce_window(i, at + m, rows.count, columns.count, factor + m, finish.curve_floor, shift,
                                  v);
                    if (finish.adds) load_channels(summands + m, summand);
                    std::memcpy(&scale, &entries.scale[c], sizeof scale);
                    std::memcpy(&bias, &entries.bias[c], sizeof bias);
                    finish(v, scale, bias, summand);
                    if (finish.curved) bend(v, finish);
                    if (pooled && pool > 0) {  // the target keeps the largest so far
                        Reals best;
                        load_channels(to + m, best);
                        v = best > v ? best : v;
                    }
                    store_channels(v, i.out_channels - c, to + m);
                }
            }
        }
    }
}

}  // namespace circ
