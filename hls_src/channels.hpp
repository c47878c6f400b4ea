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
    v = __builtin_convertvector(__builtin_convertvector(n, Ints), Reals);
}

// The value that the affine takes.
inline void reduce_window(const Instruction& i, const Halves* map, const Overlap& rows, const Overlap& columns,
                          std::uint32_t offset, const Halves* factor, int width, const RealShift& shift, Reals& v) {
    const bool max = i.is(spec::Opcode::Max);
    spread(max ? -power_of_two(width - 1) : 0, v);
    for (std::uint32_t r = 0; r < rows.count; ++r) {
        const Halves* at = map + i.in_base + ((rows.begin + r) * i.in_width + columns.begin) * i.in_pitch + offset;
        for (std::uint32_t s = 0; s < columns.count; ++s) {
            Reals x;
            load_channels(at + s * i.in_pitch, x);
            v = max ? (x > v ? x : v) : v + x;
        }
    }
    if (i.is(spec::Opcode::Product)) {
        Reals x;
        load_channels(factor, x);
        v = v * x;
    }
    shift(v);
}

// A whole instruction on one image.
CIRC_KERNEL inline void reduce_channels(const Instruction& i, const RealFinish& finish, const Entries& entries,
                                        Halves* map) {
    const RealShift shift(i.acc_shift);
    const std::uint32_t words = pixel_words(i.out_channels), result_width = i.out_width * i.pool_columns;
    for (std::uint32_t m = 0; m < words; m += 2) {
        const LaneEntries entry{&entries.scale[m * MAP_WORD], &entries.bias[m * MAP_WORD]};
        for (std::uint32_t y = 0; y < i.out_height; ++y) {
            for (std::uint32_t x = 0; x < i.out_width; ++x) {
                Reals best = {};
                for (std::uint32_t a = 0; a < i.pool_rows; ++a) {
                    const std::uint32_t oy = y * i.pool_rows + a;
                    const Overlap rows(oy, i.stride_rows, i.pad_top, i.tap_rows, i.in_height);
                    for (std::uint32_t b = 0; b < i.pool_columns; ++b) {
                        const std::uint32_t ox = x * i.pool_columns + b;
                        const Overlap columns(ox, i.stride_columns, i.pad_left, i.tap_columns, i.in_width);
                        const std::size_t number = std::size_t{oy} * result_width + ox;
                        Reals v, scale, bias, summand = {};
                        reduce_window(i, map, rows, columns, m, map + i.factor_base + number * i.factor_pitch + m,
                                      finish.width, shift, v);
                        if (finish.adds) load_channels(map + i.add_base + number * i.add_pitch + m, summand);
                        entry(0, 0, scale, bias);
                        finish(v, scale, bias, summand);
                        if (finish.curved) bend(v, finish);
                        best = a == 0 && b == 0 ? v : (v > best ? v : best);
                    }
                }
                alignas(16) Halves out[2];
                const auto n = __builtin_convertvector(__builtin_convertvector(best, Ints), std::int16_t __attribute__((vector_size(2 * HALF))));
                std::memcpy(out, &n, sizeof out);
                for (std::uint32_t c = i.out_channels; c < (m + 2) * MAP_WORD; ++c) {
                    if (c >= m * MAP_WORD) out[c / MAP_WORD - m].element[c % MAP_WORD] = 0;
                }
                Halves* to = map + i.out_base + (y * i.out_width + x) * i.out_pitch + m;
                to[0] = out[0];
                if (m + 1 < words) to[1] = out[1];
            }
        }
    }
}

}  // namespace circ
