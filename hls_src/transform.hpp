// SPDX-License-Identifier: BSD-3-Clause
// Transforms between a real block of k elements and its k/2 packed spectral words, in place, one rounding
// per rotation. circ_overlay/golden.py derives them; spec.spectrum_order names the bin of each word.
#pragma once

#include "circ_spec.hpp"
#include "fixed.hpp"
#include "types.hpp"

namespace circ {

// Bits of every value inside a transform. The inverse one needs most: its input has SUM_BITS bits and grows
// less than 2**7.6 times through k = 128; the forward one ends at 16 + 7 bits and a sign.
inline constexpr int TRANSFORM_BITS = spec::TIME_BITS + 1;
static_assert(TRANSFORM_BITS >= spec::SUM_BITS + 8 && TRANSFORM_BITS <= 32);

inline constexpr int MAX_BLOCK = 1 << spec::LOG2_BLOCK_MAX;
inline constexpr int CIRCLE = static_cast<int>(sizeof(spec::TWIDDLES) / sizeof(spec::TWIDDLES[0]));
static_assert(CIRCLE == MAX_BLOCK, "twiddles of every size are taken from the table of the largest one");

using Sample = Int<TRANSFORM_BITS>;

// Samples of one block, or the parts of its spectrum while a transform is on its way.
template <int N>
using Samples = Lanes<Sample, N>[MAX_BLOCK];

enum class Direction { Forward, Inverse };

// (re, im) * exp(-+ 2 pi i t / CIRCLE), divided by 2**shift and rounded half up, each part once.
// SIGN_IN and SIGN_OUT are applied to the imaginary part on its way in and out.
template <Direction DIRECTION, int SHIFT, int SIGN_IN = 1, int SIGN_OUT = 1, int N>
void rotate(Lanes<Sample, N>& re, Lanes<Sample, N>& im, int t) {
#pragma HLS INLINE
    constexpr int PRODUCT_BITS = TRANSFORM_BITS + spec::TWIDDLE_FRAC_BITS + 2;
    constexpr int UNIT = spec::TWIDDLE_FRAC_BITS - SHIFT;  // log2 of what a turn by 0 multiplies with
    const RoundShift<PRODUCT_BITS> round(SHIFT);
    const Int<18> w_re = spec::TWIDDLES[t][0];
    const Int<18> w_im = DIRECTION == Direction::Forward ? spec::TWIDDLES[t][1] : -spec::TWIDDLES[t][1];
    if (t == 0) {  // a factor of exactly 1: the general formula gives the same bits, a processor saves it
    UNIT_LANE:
        CIRC_LANES
        for (int n = 0; n < N; ++n) {
#pragma HLS UNROLL
            re.lane[n] = static_cast<Sample>(re.lane[n] * (1 << UNIT));
            im.lane[n] = static_cast<Sample>(im.lane[n] * (SIGN_IN * SIGN_OUT * (1 << UNIT)));
        }
        return;
    }
ROTATE_LANE:
    CIRC_LANES
    for (int n = 0; n < N; ++n) {
#pragma HLS UNROLL
        const Sample a = re.lane[n];
        const Sample b = static_cast<Sample>(SIGN_IN * im.lane[n]);
        const auto rotated_re = static_cast<Int<PRODUCT_BITS>>(product(a, w_re) - product(b, w_im));
        const auto rotated_im = static_cast<Int<PRODUCT_BITS>>(product(a, w_im) + product(b, w_re));
        re.lane[n] = static_cast<Sample>(round(rotated_re));
        im.lane[n] = static_cast<Sample>(SIGN_OUT * round(rotated_im));
    }
}

// (u, v) becomes (u + v, u - v).
template <int N>
void butterfly(Lanes<Sample, N>& u, Lanes<Sample, N>& v) {
#pragma HLS INLINE
BUTTERFLY_LANE:
    CIRC_LANES
    for (int n = 0; n < N; ++n) {
#pragma HLS UNROLL
        const Sample sum = static_cast<Sample>(u.lane[n] + v.lane[n]);
        v.lane[n] = static_cast<Sample>(u.lane[n] - v.lane[n]);
        u.lane[n] = sum;
    }
}

// DFT of m points, decimation in frequency: natural order in, bit-reversed order out.
template <int N>
void complex_forward(Lanes<Sample, N>* re, Lanes<Sample, N>* im, int m) {
COMPLEX_LEVEL:
    for (int length = m; length > 1; length /= 2) {
        const int half = length / 2;
    COMPLEX_GROUP:
        for (int base = 0; base < m; base += length) {
        COMPLEX_BUTTERFLY:
            for (int t = 0; t < half; ++t) {
#pragma HLS PIPELINE II = 2
#pragma HLS LOOP_TRIPCOUNT max = 16
                const int u = base + t, v = u + half;
                butterfly(re[u], re[v]);
                butterfly(im[u], im[v]);
                rotate<Direction::Forward, spec::TWIDDLE_FRAC_BITS>(re[v], im[v], CIRCLE / length * t);
            }
        }
    }
}

// Unscaled inverse DFT of m points, decimation in time: bit-reversed order in, natural order out.
template <int N>
void complex_inverse(Lanes<Sample, N>* re, Lanes<Sample, N>* im, int m) {
COMPLEX_LEVEL:
    for (int length = 2; length <= m; length *= 2) {
        const int half = length / 2;
    COMPLEX_GROUP:
        for (int base = 0; base < m; base += length) {
        COMPLEX_BUTTERFLY:
            for (int t = 0; t < half; ++t) {
#pragma HLS PIPELINE II = 2
#pragma HLS LOOP_TRIPCOUNT max = 16
                const int u = base + t, v = u + half;
                rotate<Direction::Inverse, spec::TWIDDLE_FRAC_BITS>(re[v], im[v], CIRCLE / length * t);
                butterfly(re[u], re[v]);
                butterfly(im[u], im[v]);
            }
        }
    }
}

// The real block x becomes its spectrum. Afterwards word 0 is (x[0], x[1]), and word w >= 1, with m the
// largest power of two <= w, is (x[m + w], x[2 m + w]): each level leaves its odd bins in its upper half,
// real parts before imaginary ones.
template <class Block, int N>
void forward_transform(Block block, Samples<N>& x) {
#pragma HLS INLINE off
LEVEL:
    for (int length = block.size(); length >= 4; length /= 2) {
        const int half = length / 2, quarter = length / 4;
    // invariant: x[0 .. length) are the sums of the levels before, still in natural order
    SPLIT:
        for (int t = 0; t < quarter; ++t) {
#pragma HLS PIPELINE II = 2
#pragma HLS LOOP_TRIPCOUNT max = 32
            butterfly(x[t], x[half + t]);
            butterfly(x[quarter + t], x[half + quarter + t]);
            rotate<Direction::Forward, spec::TWIDDLE_FRAC_BITS, -1>(x[half + t], x[half + quarter + t],
                                                                    CIRCLE / length * t);
        }
        complex_forward<N>(x + half, x + half + quarter, quarter);
    }
    butterfly(x[0], x[1]);
}

// Where the parts of spectral word w lie among the samples: see forward_transform().
struct Place {
    int re, im;
    explicit Place(int w) : re(0), im(1) {
#pragma HLS INLINE
        int m = 1;
    LARGEST_POWER:
        for (int n = 0; n + 2 < spec::LOG2_BLOCK_MAX; ++n) {
#pragma HLS UNROLL
            if (2 * m <= w) m *= 2;
        }
        if (w > 0) {
            re = m + w;
            im = 2 * m + w;
        }
    }
};

// The inverse of the same, times k; its output still needs the saturation to TIME_BITS.
template <class Block, int N>
void inverse_transform(Block block, Samples<N>& x) {
#pragma HLS INLINE off
    butterfly(x[0], x[1]);
LEVEL:
    for (int length = 4; length <= block.size(); length *= 2) {
        const int half = length / 2, quarter = length / 4;
        complex_inverse<N>(x + half, x + half + quarter, quarter);
    // invariant: x[0 .. half) is the inverse transform of the levels before, in natural order
    MERGE:
        for (int t = 0; t < quarter; ++t) {
#pragma HLS PIPELINE II = 2
#pragma HLS LOOP_TRIPCOUNT max = 32
            // A bin above k/2 mirrors one below: the pair counts twice, hence one shift less.
            rotate<Direction::Inverse, spec::TWIDDLE_FRAC_BITS - 1, 1, -1>(x[half + t], x[half + quarter + t],
                                                                           CIRCLE / length * t);
            butterfly(x[t], x[half + t]);
            butterfly(x[quarter + t], x[half + quarter + t]);
        }
    }
}

}  // namespace circ
