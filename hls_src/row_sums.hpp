// SPDX-License-Identifier: BSD-3-Clause
// Inner loops of a processor that computes LANES block rows side by side: see rows.hpp.
#pragma once

#include <cstdint>
#include <cstring>

#include "circ_spec.hpp"
#include "kernels.hpp"
#include "lane_sums.hpp"
#include "types.hpp"
#include "vectors.hpp"

namespace circ {

// What LANES block rows of a result sum: `runs` tap rows of `length` steps.
struct RowSums {
    const std::int32_t* x;  // k > 1: planes of spectra; k = 1: elements
    std::uint32_t plane;    // numbers in a plane
    const std::int16_t* weights;
    std::uint32_t steps;                                           // of a whole window
    std::uint32_t runs, length, x_first, x_next, w_first, w_next;  // items and steps: first, from run to run
    const bool* narrow;
    RealShift shift;
};

inline void load_weights(const std::int16_t* at, Wide& v) {
    Shorts s;
    std::memcpy(&s, at, sizeof s);
    v = __builtin_convertvector(s, Wide);
}

// Spectral sums, for two halves of lanes.
template <int K>
CIRC_KERNEL void row_sums(const RowSums& s, Reals (*out)[MAX_BLOCK]) {
    for (std::uint32_t w = 0; w < K / 2; ++w) {
        const std::int32_t* x = s.x + 2 * std::size_t{w} * s.plane;
        const std::int16_t* weights = s.weights + std::size_t{w} * s.steps * 2 * LANES;
        Reals re[2] = {}, im[2] = {};
        if (s.narrow[w]) {
            Wide sum_re = {}, sum_im = {};
            for (std::uint32_t run = 0; run < s.runs; ++run) {
                const std::int32_t* a = x + s.x_first + run * s.x_next;
                const std::int16_t* at = weights + std::size_t{s.w_first + run * s.w_next} * 2 * LANES;
                for (std::uint32_t n = 0; n < s.length; ++n) {
                    const auto re_x = static_cast<std::uint32_t>(a[n]);
                    const auto im_x = static_cast<std::uint32_t>(a[n + s.plane]);
                    Wide c, d;
                    load_weights(at + 2 * LANES * n, c);
                    load_weights(at + 2 * LANES * n + LANES, d);
                    if (w == 0) {
                        sum_re += c * re_x;
                        sum_im += d * im_x;
                    } else {
                        sum_re += c * re_x - d * im_x;
                        sum_im += c * im_x + d * re_x;
                    }
                }
            }
            halves(sum_re, re);
            halves(sum_im, im);
        } else {
            for (std::uint32_t run = 0; run < s.runs; ++run) {
                const std::int32_t* a = x + s.x_first + run * s.x_next;
                const std::int16_t* at = weights + std::size_t{s.w_first + run * s.w_next} * 2 * LANES;
                for (std::uint32_t n = 0; n < s.length; ++n) {
                    const double re_x = a[n], im_x = a[n + s.plane];
                    Wide c, d;
                    Reals cs[2], ds[2];
                    load_weights(at + 2 * LANES * n, c);
                    load_weights(at + 2 * LANES * n + LANES, d);
                    halves(c, cs);
                    halves(d, ds);
                    for (int h = 0; h < 2; ++h) {
                        re[h] += w == 0 ? cs[h] * re_x : cs[h] * re_x - ds[h] * im_x;
                        im[h] += w == 0 ? ds[h] * im_x : cs[h] * im_x + ds[h] * re_x;
                    }
                }
            }
        }
        const Place place(static_cast<int>(w));
        for (int h = 0; h < 2; ++h) {
            settle(re[h], s.shift);
            settle(im[h], s.shift);
            out[h][place.re] = re[h];
            out[h][place.im] = im[h];
        }
    }
}

// k = 1: sums of elements times weights of LANES outputs.
CIRC_KERNEL inline void row_plain(const RowSums& s, Reals (*out)[MAX_BLOCK]) {
    Wide acc = {};
    Reals wide[2] = {};
    for (std::uint32_t run = 0; run < s.runs; ++run) {
        const std::int32_t* x = s.x + s.x_first + run * s.x_next;
        const std::int16_t* at = s.weights + std::size_t{s.w_first + run * s.w_next} * LANES;
        for (std::uint32_t n = 0; n < s.length; ++n) {
            Wide c;
            load_weights(at + LANES * n, c);
            if (s.narrow[0]) {
                acc += c * static_cast<std::uint32_t>(x[n]);
            } else {
                Reals cs[2];
                halves(c, cs);
                wide[0] += cs[0] * static_cast<double>(x[n]);
                wide[1] += cs[1] * static_cast<double>(x[n]);
            }
        }
    }
    if (s.narrow[0]) halves(acc, wide);
    for (int h = 0; h < 2; ++h) {
        settle(wide[h], s.shift);
        out[h][0] = wide[h];
    }
}

// Spectra of blocks that lie one behind the other: an item of the planes each.
template <int K>
CIRC_KERNEL void forward_blocks(const Halves* blocks, std::uint32_t count, std::uint32_t plane,
                                std::int32_t* planes, Ints* peaks) {
    for (std::uint32_t first = 0; first < count; first += HALF) {
        std::uint32_t from[HALF];
        for (std::uint32_t n = 0; n < HALF; ++n) from[n] = (first + n) * (K / 4);
        Reals x[std::size_t{K}];
        fetch<K>(blocks, from, 0, K, x);
        forward<K>(x);
        std::int32_t* to = planes;
        each<K / 2>([&](auto w) {
            const Place place(w);
            put(x[place.re], to, &first, true, peaks[w]);
            put(x[place.im], to + plane, &first, true, peaks[w]);
            to += 2 * std::size_t{plane};
        });
    }
}

}  // namespace circ
