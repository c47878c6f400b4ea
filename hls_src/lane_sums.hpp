// SPDX-License-Identifier: BSD-3-Clause
// Sums of a processor that computes LANES output pixels side by side: see lanes.hpp.
#pragma once

#include <cstdint>
#include <cstring>

#include "circ_spec.hpp"
#include "kernels.hpp"
#include "plan.hpp"
#include "types.hpp"
#include "vectors.hpp"

namespace circ {

inline void load_lanes(const std::int32_t* at, Wide& v) {
    std::memcpy(&v, at, sizeof v);
}

inline void load_half(const std::int32_t* at, Reals& v) {
    Ints n;
    std::memcpy(&n, at, sizeof n);
    to_reals(n, v);
}

// The two halves of sums modulo 2**32 that are known to fit 32 bits.
inline void halves(const Wide& v, Reals* out) {
    Ints part[2];
    std::memcpy(part, &v, sizeof v);
    to_reals(part[0], out[0]);
    to_reals(part[1], out[1]);
}

// What stands behind the accumulators: rounding shift, saturation.
inline void settle(Reals& v, const RealShift& shift) {
    shift(v);
    saturate_reals<spec::SUM_BITS>(v);
}

// Factors of a weight word as a processor has them at hand.
struct Triple {
    std::int32_t first, minus, plus;
};

// Spectral sums of ROWS block rows, after rounding: to `re` and `im` of each row's samples, two halves of K
// apart.
//   x        the word's plane at a tile's position; imaginary parts lie one plane further
//   steps    what follows it at each step
//   table    factors, step by step and within a step row by row
struct Sums {
    const std::int32_t* x;
    std::uint32_t plane;
    const std::uint32_t* steps;
    std::uint32_t count;
    const Triple* table;
    bool real;  // word 0: two real products
    RealShift shift;
    Reals *re, *im;
    std::size_t half, row;  // from a half or row to the next
};

// Sums of 32 bits, for where they are exact.
template <int ROWS>
CIRC_KERNEL void narrow_sums(const Sums& s) {
    Wide acc[std::size_t{ROWS}][3];
#pragma GCC unroll 4
    for (auto& row : acc) row[0] = row[1] = row[2] = Wide{};
    for (std::uint32_t n = 0; n < s.count; ++n) {
        Wide a, b;
        load_lanes(s.x + s.steps[n], a);
        load_lanes(s.x + s.steps[n] + s.plane, b);
        const Wide total = a + b;
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) {
            const Triple& t = s.table[n * ROWS + static_cast<std::uint32_t>(r)];
            acc[r][0] += total * static_cast<std::uint32_t>(t.first);
            acc[r][1] += a * static_cast<std::uint32_t>(t.minus);
            acc[r][2] += b * static_cast<std::uint32_t>(t.plus);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) {
        const Wide re = s.real ? acc[r][1] : acc[r][0] - acc[r][2];
        const Wide im = s.real ? acc[r][2] : acc[r][0] + acc[r][1];
        Reals parts[2][2];
        halves(re, parts[0]);
        halves(im, parts[1]);
        for (std::size_t h = 0; h < 2; ++h) {
            settle(parts[0][h], s.shift);
            settle(parts[1][h], s.shift);
            s.re[static_cast<std::size_t>(r) * s.row + h * s.half] = parts[0][h];
            s.im[static_cast<std::size_t>(r) * s.row + h * s.half] = parts[1][h];
        }
    }
}

// Exact ones: doubles hold all 48 bits.
template <int ROWS>
CIRC_KERNEL void wide_sums(const Sums& s) {
    for (std::uint32_t h = 0; h < 2; ++h) {
        Reals acc[std::size_t{ROWS}][3];
#pragma GCC unroll 4
        for (auto& row : acc) row[0] = row[1] = row[2] = Reals{};
        for (std::uint32_t n = 0; n < s.count; ++n) {
            Reals a, b;
            load_half(s.x + s.steps[n] + h * HALF, a);
            load_half(s.x + s.steps[n] + s.plane + h * HALF, b);
            const Reals total = a + b;
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; ++r) {
                const Triple& t = s.table[n * ROWS + static_cast<std::uint32_t>(r)];
                acc[r][0] += total * static_cast<double>(t.first);
                acc[r][1] += a * static_cast<double>(t.minus);
                acc[r][2] += b * static_cast<double>(t.plus);
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) {
            Reals re = s.real ? acc[r][1] : acc[r][0] - acc[r][2];
            Reals im = s.real ? acc[r][2] : acc[r][0] + acc[r][1];
            settle(re, s.shift);
            settle(im, s.shift);
            s.re[static_cast<std::size_t>(r) * s.row + h * s.half] = re;
            s.im[static_cast<std::size_t>(r) * s.row + h * s.half] = im;
        }
    }
}

// k = 1: sums over taps and channels for four outputs; weights step by step, output by output.
using Four = std::int32_t[4];

CIRC_KERNEL inline void narrow_plain(const std::int32_t* x, const std::uint32_t* steps, std::uint32_t count,
                                     const Four* table, const RealShift& shift, Reals* out,
                                     std::size_t half) {
    Wide acc[4];
#pragma GCC unroll 4
    for (auto& a : acc) a = Wide{};
    for (std::uint32_t n = 0; n < count; ++n) {
        Wide v;
        load_lanes(x + steps[n], v);
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) acc[r] += v * static_cast<std::uint32_t>(table[n][r]);
    }
#pragma GCC unroll 4
    for (std::size_t r = 0; r < 4; ++r) {
        Reals parts[2];
        halves(acc[r], parts);
        for (std::size_t h = 0; h < 2; ++h) {
            settle(parts[h], shift);
            out[h * half + r] = parts[h];
        }
    }
}

CIRC_KERNEL inline void wide_plain(const std::int32_t* x, const std::uint32_t* steps, std::uint32_t count,
                                   const Four* table, const RealShift& shift, Reals* out, std::size_t half) {
    for (std::uint32_t h = 0; h < 2; ++h) {
        Reals acc[4];
#pragma GCC unroll 4
        for (auto& a : acc) a = Reals{};
        for (std::uint32_t n = 0; n < count; ++n) {
            Reals v;
            load_half(x + steps[n] + h * HALF, v);
            for (int r = 0; r < 4; ++r) acc[r] += v * static_cast<double>(table[n][r]);
        }
#pragma GCC unroll 4
        for (std::size_t r = 0; r < 4; ++r) {
            settle(acc[r], shift);
            out[h * half + r] = acc[r];
        }
    }
}

}  // namespace circ
