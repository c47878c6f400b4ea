// SPDX-License-Identifier: BSD-3-Clause
// Inner loops of a processor's units: between map memory and planes, and sums. LANES are two vectors of HALF.
#pragma once

#include <cstdint>
#include <cstring>

#include "mac.hpp"
#include "plan.hpp"
#include "transform.hpp"
#include "types.hpp"
#include "vectors.hpp"

namespace circ {

static_assert(LANES == 2 * HALF);
using Halves = MapWord<std::int16_t>;
static_assert(sizeof(Halves) == sizeof(std::uint64_t));
using Wide = std::uint32_t __attribute__((vector_size(4 * LANES)));
using Shorts = std::int16_t __attribute__((vector_size(2 * LANES)));

inline std::int64_t packed(const Halves& word) { return static_cast<std::int64_t>(join(word)); }

inline void unpack(std::int64_t value, Halves& word) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    for (int e = 0; e < 4; ++e) word.element[e] = static_cast<std::int16_t>(value >> (16 * e));
#else
    std::memcpy(&word, &value, sizeof value);
#endif
}

// A map word of HALF pixels, `offset` behind where they begin.
inline void fetch_words(const Halves* map, const std::uint32_t* pixels, std::uint32_t offset, Longs& words) {
    const Halves* at = map + offset;
    words = Longs{packed(at[pixels[0]]), packed(at[pixels[1]]), packed(at[pixels[2]]), packed(at[pixels[3]]),
                  packed(at[pixels[4]]), packed(at[pixels[5]]), packed(at[pixels[6]]), packed(at[pixels[7]])};
}

inline void element(const Longs& words, int e, Reals& out) {
    out = __builtin_convertvector(words << (48 - 16 * e) >> 48, Reals);
}

// `count` elements of HALF pixels, from map word `first` of each on; those beyond, to K, are 0.
template <int K>
void fetch(const Halves* map, const std::uint32_t* pixels, std::uint32_t first, std::uint32_t count, Reals* x) {
    each<K / 4>([&](auto m) {
        Longs words = {};
        if (4 * static_cast<std::uint32_t>(m) < count)
            fetch_words(map, pixels, first + static_cast<std::uint32_t>(m), words);
        each<4>([&](auto e) {
            element(words, e, x[4 * m + e]);
            if (static_cast<std::uint32_t>(4 * m + e) >= count) x[4 * m + e] = Reals{};
        });
    });
}

// Largest magnitudes that were met in each lane.
inline void keep_peak(const Ints& v, Ints& peak) {
    const Ints magnitude = v < 0 ? -v : v;
    peak = magnitude > peak ? magnitude : peak;
}

inline void put(const Reals& value, std::int32_t* plane, const std::uint32_t* to, bool side_by_side, Ints& peak) {
    const Ints v = __builtin_convertvector(value, Ints);
    if (side_by_side) {
        std::memcpy(plane + to[0], &v, sizeof v);
    } else {
        for (std::uint32_t n = 0; n < HALF; ++n) plane[to[n]] = v[n];
    }
    keep_peak(v, peak);
}

// Elements of a group's pixels to their planes.
CIRC_KERNEL inline void split_group(const Halves* map, const Group& group, std::uint32_t channels,
                                    std::uint32_t plane, std::int32_t* planes, Ints& peak) {
    for (std::uint32_t c = 0; c < channels; c += 4) {
        for (std::uint32_t h = 0; h < group.count; h += HALF) {
            Reals x[4];
            fetch<4>(map, group.from + h, c / 4, channels - c, x);
            for (std::uint32_t e = 0; e < 4; ++e)
                put(x[e], planes + std::size_t{c + e} * plane, group.to + h, group.side_by_side, peak);
        }
    }
}

// Spectra of all blocks of a group's pixels to their planes; `peaks` keeps the largest magnitude of each word.
template <int K>
CIRC_KERNEL void forward_group(const Halves* map, const Group& group, std::uint32_t channels, std::uint32_t plane,
                               std::int32_t* planes, Ints* peaks) {
    for (std::uint32_t c = 0; c < channels; c += K) {
        for (std::uint32_t h = 0; h < group.count; h += HALF) {
            Reals x[std::size_t{K}];
            fetch<K>(map, group.from + h, c / 4, channels - c, x);
            forward_reals<K>(x);
            std::int32_t* to = planes;
            each<K / 2>([&](auto w) {
                const Place place(w);
                put(x[place.re], to, group.to + h, group.side_by_side, peaks[w]);
                put(x[place.im], to + plane, group.to + h, group.side_by_side, peaks[w]);
                to += 2 * std::size_t{plane};
            });
        }
        planes += std::size_t{K} * plane;
    }
}

// Blocks of LANES vectors whose elements are the planes' numbers at `x` + steps[n]; then 0. Their spectra make planes
// of LANES positions.
template <int K>
CIRC_KERNEL void gather_blocks(const std::int32_t* at, const std::uint32_t* steps, std::uint32_t count,
                               std::uint32_t lanes, std::int32_t* spectra, Ints* peaks) {
    for (std::uint32_t first = 0; first < count; first += K) {
        for (std::uint32_t h = 0; h < lanes; h += HALF) {
            Reals x[std::size_t{K}];
            each<K>([&](auto n) {
                Ints v = {};
                const std::uint32_t step = first + static_cast<std::uint32_t>(n);
                if (step < count) std::memcpy(&v, at + steps[step] + h, sizeof v);
                x[n] = __builtin_convertvector(v, Reals);
            });
            forward_reals<K>(x);
            each<K / 2>([&](auto w) {
                const Place place(w);
                std::int32_t* to = spectra + 2 * LANES * static_cast<std::uint32_t>(w) + h;
                const std::uint32_t here = 0;
                put(x[place.re], to, &here, true, peaks[w]);
                put(x[place.im], to + LANES, &here, true, peaks[w]);
            });
        }
        spectra += std::size_t{K} * LANES;
    }
}

inline void load_lanes(const std::int32_t* at, Wide& v) { std::memcpy(&v, at, sizeof v); }

inline void load_half(const std::int32_t* at, Reals& v) {
    Ints n;
    std::memcpy(&n, at, sizeof n);
    v = __builtin_convertvector(n, Reals);
}

// The two halves of sums modulo 2**32 that are known to fit 32 bits.
inline void halves(const Wide& v, Reals* out) {
    Ints part[2];
    std::memcpy(part, &v, sizeof v);
    out[0] = __builtin_convertvector(part[0], Reals);
    out[1] = __builtin_convertvector(part[1], Reals);
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

// Spectral sums of ROWS block rows, after rounding: to `re` and `im` of each row's samples, two halves of K apart.
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
    Wide acc[std::size_t{ROWS}][3] = {};
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
        Reals acc[std::size_t{ROWS}][3] = {};
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

// k = 1: sums over map words of four products each, for four outputs; weights step by step, output by output.
using Quad = std::int32_t[4][4];

CIRC_KERNEL inline void narrow_plain(const std::int32_t* x, std::uint32_t plane, const std::uint32_t* steps,
                                     std::uint32_t count, const Quad* table, const RealShift& shift, Reals* out,
                                     std::size_t half) {
    Wide acc[4] = {};
    for (std::uint32_t n = 0; n < count; ++n) {
#pragma GCC unroll 4
        for (std::uint32_t e = 0; e < 4; ++e) {
            Wide v;
            load_lanes(x + steps[n] + e * plane, v);
#pragma GCC unroll 4
            for (int r = 0; r < 4; ++r) acc[r] += v * static_cast<std::uint32_t>(table[n][r][e]);
        }
    }
    for (std::size_t r = 0; r < 4; ++r) {
        Reals parts[2];
        halves(acc[r], parts);
        for (std::size_t h = 0; h < 2; ++h) {
            settle(parts[h], shift);
            out[h * half + r] = parts[h];
        }
    }
}

CIRC_KERNEL inline void wide_plain(const std::int32_t* x, std::uint32_t plane, const std::uint32_t* steps,
                                   std::uint32_t count, const Quad* table, const RealShift& shift, Reals* out,
                                   std::size_t half) {
    for (std::uint32_t h = 0; h < 2; ++h) {
        Reals acc[4] = {};
        for (std::uint32_t n = 0; n < count; ++n) {
            for (std::uint32_t e = 0; e < 4; ++e) {
                Reals v;
                load_half(x + steps[n] + e * plane + h * HALF, v);
                for (int r = 0; r < 4; ++r) acc[r] += v * static_cast<double>(table[n][r][e]);
            }
        }
        for (std::size_t r = 0; r < 4; ++r) {
            settle(acc[r], shift);
            out[h * half + r] = acc[r];
        }
    }
}

template <int K>
CIRC_KERNEL void inverse_block(Reals* x) {
    inverse_reals<K>(x);
}

}  // namespace circ
