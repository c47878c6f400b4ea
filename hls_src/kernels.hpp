// SPDX-License-Identifier: BSD-3-Clause
// Inner loops of a processor, LANES numbers at a time: what moves between map memory and planes, and sums.
#pragma once

#include <cstdint>
#include <cstring>

#include "affine.hpp"
#include "mac.hpp"
#include "plan.hpp"
#include "transform.hpp"
#include "types.hpp"

namespace circ {

using Words = std::uint64_t[LANES];  // a map word of each lane
using Halves = MapWord<std::int16_t>;
static_assert(sizeof(Halves) == sizeof(std::uint64_t));

// A map word as one number, its first element lowest.
inline std::uint64_t packed(const Halves& word) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    std::uint64_t value = 0;
    for (int e = 3; e >= 0; --e) value = value << 16 | static_cast<std::uint16_t>(word.element[e]);
#else
    std::uint64_t value;
    std::memcpy(&value, &word, sizeof value);
#endif
    return value;
}

inline void unpack(std::uint64_t value, Halves& word) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    for (int e = 0; e < 4; ++e) word.element[e] = static_cast<std::int16_t>(value >> (16 * e));
#else
    std::memcpy(&word, &value, sizeof value);
#endif
}

// Element e of LANES map words.
template <class T>
void element(const Words& words, int e, Lanes<T, LANES>& out) {
    CIRC_LANES
    for (std::uint32_t n = 0; n < LANES; ++n) out.lane[n] = static_cast<std::int16_t>(words[n] >> (16 * e));
}

// Four elements become LANES map words.
inline void join(const Lanes<std::int16_t, LANES>* elements, Words& words) {
    CIRC_LANES
    for (std::uint32_t n = 0; n < LANES; ++n) {
        std::uint64_t word = 0;
        for (int e = 0; e < 4; ++e)
            word |= static_cast<std::uint64_t>(static_cast<std::uint16_t>(elements[e].lane[n])) << (16 * e);
        words[n] = word;
    }
}

// Numbers to positions of a plane.
inline void put(const Lanes<Sample, LANES>& values, std::int32_t* plane, const Group& group) {
    if (group.side_by_side) {
        std::memcpy(plane + group.to[0], values.lane, sizeof values.lane);
    } else {
        for (std::uint32_t n = 0; n < LANES; ++n) plane[group.to[n]] = values.lane[n];
    }
}

inline void keep_peak(const Lanes<Sample, LANES>& values, Lanes<Sample, LANES>& peak) {
    CIRC_LANES
    for (std::uint32_t n = 0; n < LANES; ++n) {
        const Sample v = values.lane[n] < 0 ? -values.lane[n] : values.lane[n];
        peak.lane[n] = v > peak.lane[n] ? v : peak.lane[n];
    }
}

// `count` elements of LANES pixels, from map word `first` of each on; those beyond are 0.
inline void fetch(const Halves* map, const std::uint32_t* pixels, std::uint32_t first, std::uint32_t count,
                  std::uint32_t size, Lanes<Sample, LANES>* x) {
    for (std::uint32_t m = 0; m < size / 4; ++m) {
        Words words;
        if (4 * m < count) {
            for (std::uint32_t n = 0; n < LANES; ++n) words[n] = packed(map[pixels[n] + first + m]);
            for (int e = 0; e < 4; ++e) element(words, e, x[4 * m + static_cast<std::uint32_t>(e)]);
        }
        for (std::uint32_t e = 4 * m; e < 4 * m + 4; ++e) {
            if (e >= count) clear(x[e]);
        }
    }
}

// Elements of a group's pixels to their planes.
CIRC_KERNEL inline void split(const Halves* map, const Group& group, std::uint32_t channels, std::uint32_t plane,
                              std::int32_t* planes, Lanes<Sample, LANES>& peak) {
    for (std::uint32_t c = 0; c < channels; c += 4) {
        Lanes<Sample, LANES> x[4];
        fetch(map, group.from, c / 4, channels - c, 4, x);
        for (std::uint32_t e = 0; e < 4; ++e) {
            put(x[e], planes + std::size_t{c + e} * plane, group);
            keep_peak(x[e], peak);
        }
    }
}

// Spectra of all blocks of a group's pixels to their planes; `peaks` keeps the largest magnitude of each word.
template <class Block>
CIRC_KERNEL void forward_group(Block block, const Halves* map, const Group& group, std::uint32_t channels,
                               std::uint32_t plane, std::int32_t* planes, Lanes<Sample, LANES>* peaks) {
    constexpr std::uint32_t K = Block::size();
    for (std::uint32_t c = 0; c < channels; c += K) {
        Samples<LANES> x;
        fetch(map, group.from, c / 4, channels - c, K, x);
        forward_transform<Block, LANES>(block, x);
        for (std::uint32_t w = 0; w < K / 2; ++w) {
            const Place place(static_cast<int>(w));
            put(x[place.re], planes, group);
            put(x[place.im], planes + plane, group);
            planes += 2 * std::size_t{plane};
            keep_peak(x[place.re], peaks[w]);
            keep_peak(x[place.im], peaks[w]);
        }
    }
}

#if defined(__GNUC__)
using Vector = std::uint32_t __attribute__((vector_size(4 * LANES)));
#endif

inline void load(const std::int32_t* at, Vector& v) {
    std::memcpy(&v, at, sizeof v);
}

template <class T>
void store(Lanes<T, LANES>& lanes, const Vector& v) {
    static_assert(sizeof lanes.lane == sizeof v);
    std::memcpy(lanes.lane, &v, sizeof v);
}

// Factors of a weight word as a processor has them at hand.
struct Triple {
    std::int32_t first, minus, plus;
};

// Sums of `count` products for ROWS block rows, modulo 2**32.
//   x        a spectral word's plane at a tile's position; imaginary parts lie one plane further
//   steps    what follows it at each step
//   table    factors, step by step and within a step row by row
template <int ROWS>
CIRC_KERNEL void lane_sums(const std::int32_t* x, std::uint32_t plane, const std::uint32_t* steps,
                               std::uint32_t count, const Triple* table, ComplexSum<Modular, LANES>* sums) {
    Vector acc[std::size_t{ROWS}][3] = {};
    for (std::uint32_t n = 0; n < count; ++n) {
        Vector a, b;
        load(x + steps[n], a);
        load(x + steps[n] + plane, b);
        const Vector total = a + b;
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) {
            const Triple& t = table[n * ROWS + static_cast<std::uint32_t>(r)];
            acc[r][0] += total * static_cast<std::uint32_t>(t.first);
            acc[r][1] += a * static_cast<std::uint32_t>(t.minus);
            acc[r][2] += b * static_cast<std::uint32_t>(t.plus);
        }
    }
    for (int r = 0; r < ROWS; ++r) {
        for (int part = 0; part < 3; ++part) store(sums[r].part[part], acc[r][part]);
    }
}

// The same with 48 bits.
template <int ROWS>
CIRC_KERNEL void lane_sums(const std::int32_t* x, std::uint32_t plane, const std::uint32_t* steps,
                               std::uint32_t count, const Triple* table, ComplexSum<Exact, LANES>* sums) {
    for (int r = 0; r < ROWS; ++r) sums[r].clear();
    for (std::uint32_t n = 0; n < count; ++n) {
        Complex<Sample, LANES> word;
        std::memcpy(word.re.lane, x + steps[n], sizeof word.re.lane);
        std::memcpy(word.im.lane, x + steps[n] + plane, sizeof word.im.lane);
        for (int r = 0; r < ROWS; ++r) {
            const Triple& t = table[n * ROWS + static_cast<std::uint32_t>(r)];
            sums[r].add(word, Factors{t.first, t.minus, t.plus});
        }
    }
}

// k = 1: sums over map words of four products each, for four outputs; weights step by step, output by output.
CIRC_KERNEL inline void lane_plain_sums(const std::int32_t* x, std::uint32_t plane, const std::uint32_t* steps,
                                   std::uint32_t count, const std::int32_t (*table)[4][4],
                                   Lanes<Modular::Value, LANES>* sums) {
    Vector acc[4] = {};
    for (std::uint32_t n = 0; n < count; ++n) {
#pragma GCC unroll 4
        for (std::uint32_t e = 0; e < 4; ++e) {
            Vector v;
            load(x + steps[n] + e * plane, v);
#pragma GCC unroll 4
            for (int r = 0; r < 4; ++r) acc[r] += v * static_cast<std::uint32_t>(table[n][r][e]);
        }
    }
    for (int r = 0; r < 4; ++r) store(sums[r], acc[r]);
}

CIRC_KERNEL inline void lane_plain_sums(const std::int32_t* x, std::uint32_t plane, const std::uint32_t* steps,
                                   std::uint32_t count, const std::int32_t (*table)[4][4],
                                   Lanes<Exact::Value, LANES>* sums) {
    for (int r = 0; r < 4; ++r) clear(sums[r]);
    for (std::uint32_t n = 0; n < count; ++n) {
        for (std::uint32_t e = 0; e < 4; ++e) {
            const std::int32_t* v = x + steps[n] + e * plane;
            for (int r = 0; r < 4; ++r) {
                const std::int64_t w = table[n][r][e];
                CIRC_LANES
                for (std::uint32_t l = 0; l < LANES; ++l) sums[r].lane[l] += w * v[l];
            }
        }
    }
}

// Blocks of LANES vectors whose elements are the planes' numbers at `x` + steps[n]; then 0. Spectra as planes of
// LANES positions.
template <class Block>
CIRC_KERNEL void gather_blocks(Block block, const std::int32_t* x, const std::uint32_t* steps, std::uint32_t count,
                               std::int32_t* spectra, Lanes<Sample, LANES>* peaks) {
    constexpr std::uint32_t K = Block::size();
    for (std::uint32_t first = 0; first < count; first += K) {
        Samples<LANES> samples;
        for (std::uint32_t n = 0; n < K; ++n) {
            if (first + n < count) {
                std::memcpy(samples[n].lane, x + steps[first + n], sizeof samples[n].lane);
            } else {
                clear(samples[n]);
            }
        }
        forward_transform<Block, LANES>(block, samples);
        for (std::uint32_t w = 0; w < K / 2; ++w) {
            const Place place(static_cast<int>(w));
            std::memcpy(spectra, samples[place.re].lane, sizeof samples[0].lane);
            std::memcpy(spectra + LANES, samples[place.im].lane, sizeof samples[0].lane);
            spectra += 2 * LANES;
            keep_peak(samples[place.re], peaks[w]);
            keep_peak(samples[place.im], peaks[w]);
        }
    }
}

// Accumulators of a word to the rows' samples, where the inverse transform looks for them.
template <int ROWS, class Acc>
CIRC_KERNEL void round_sums(const ComplexSum<Acc, LANES>* acc, bool real, const RoundShift<spec::ACC_BITS + 1>& round,
                            Samples<LANES>* rows, Place place) {
    for (int r = 0; r < ROWS; ++r) acc[r].result(real, round, rows[r][place.re], rows[r][place.im]);
}

template <class Value>
CIRC_KERNEL void round_plain(const Lanes<Value, LANES>* acc, const RoundShift<spec::ACC_BITS + 1>& round,
                             Samples<LANES>& out) {
    using Acc = std::conditional_t<std::is_same_v<Value, Modular::Value>, Modular, Exact>;
    for (int r = 0; r < 4; ++r) {
        CIRC_LANES
        for (std::uint32_t n = 0; n < LANES; ++n)
            out[r].lane[n] = static_cast<Sample>(saturate<spec::SUM_BITS>(round(Acc::sum(acc[r].lane[n]))));
    }
}

template <class Block>
CIRC_KERNEL void inverse(Block block, Samples<LANES>& x) {
    inverse_transform<Block, LANES>(block, x);
}

// Four channels behind the reduction, as map words of LANES pixels.
template <int W, class Entries>
CIRC_KERNEL void finish_word(const Finish<W>& finish, const Lanes<Sample, LANES>* y, const Entries* affine,
                             std::uint32_t channels, const Words& residual, bool first, Lanes<std::int16_t, LANES>* best) {
    for (std::uint32_t e = 0; e < 4; ++e) {
        Lanes<std::int16_t, LANES> summand, out;
        if (e >= channels) {
            clear(best[e]);
            continue;
        }
        if (finish.adds()) element(residual, static_cast<int>(e), summand);
        finish(y[e], affine[e], summand, out);
        CIRC_LANES
        for (std::uint32_t n = 0; n < LANES; ++n)
            best[e].lane[n] = first || out.lane[n] > best[e].lane[n] ? out.lane[n] : best[e].lane[n];
    }
}

}  // namespace circ
