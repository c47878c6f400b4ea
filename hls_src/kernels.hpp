// SPDX-License-Identifier: BSD-3-Clause
// Inner loops of a processor's units: between map memory and planes. LANES are two vectors of HALF.
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

inline std::int64_t packed(const Halves& word) {
    return static_cast<std::int64_t>(join(word));
}

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
    to_reals(words << (48 - 16 * e) >> 48, out);
}

// `count` elements of HALF pixels, from map word `first` of each on; those beyond, to K, are 0.
template <int K>
void fetch(const Halves* map, const std::uint32_t* pixels, std::uint32_t first, std::uint32_t count,
           Reals* x) {
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

inline void put(const Reals& value, std::int32_t* plane, const std::uint32_t* to, bool side_by_side,
                Ints& peak) {
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

// Spectra of all blocks of a group's pixels to their planes; `peaks` keeps the largest magnitude of each
// word.
template <int K>
CIRC_KERNEL void forward_group(const Halves* map, const Group& group, std::uint32_t channels,
                               std::uint32_t plane, std::int32_t* planes, Ints* peaks) {
    for (std::uint32_t c = 0; c < channels; c += K) {
        for (std::uint32_t h = 0; h < group.count; h += HALF) {
            Reals x[std::size_t{K}];
            fetch<K>(map, group.from + h, c / 4, channels - c, x);
            forward<K>(x);
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

// Blocks of LANES vectors whose elements are the planes' numbers at `at` + steps[n]; then 0. Their spectra
// make planes of LANES positions.
template <int K>
CIRC_KERNEL void gather_blocks(const std::int32_t* at, const std::uint32_t* steps, std::uint32_t count,
                               std::uint32_t lanes, std::int32_t* spectra) {
    for (std::uint32_t first = 0; first < count; first += K) {
        for (std::uint32_t h = 0; h < lanes; h += HALF) {
            Reals x[std::size_t{K}];
            each<K>([&](auto n) {
                Ints v = {};
                const std::uint32_t step = first + static_cast<std::uint32_t>(n);
                if (step < count) std::memcpy(&v, at + steps[step] + h, sizeof v);
                to_reals(v, x[n]);
            });
            forward<K>(x);
            each<K / 2>([&](auto w) {
                const Place place(w);
                std::int32_t* to = spectra + 2 * LANES * static_cast<std::uint32_t>(w) + h;
                const Ints re = __builtin_convertvector(x[place.re], Ints),
                           im = __builtin_convertvector(x[place.im], Ints);
                std::memcpy(to, &re, sizeof re);
                std::memcpy(to + LANES, &im, sizeof im);
            });
        }
        spectra += std::size_t{K} * LANES;
    }
}

template <int K>
CIRC_KERNEL void inverse_block(Reals* x) {
    inverse_reals<K>(x);
}

}  // namespace circ
