// SPDX-License-Identifier: BSD-3-Clause
// Spectral product: sums over input blocks of weight times spectrum, exact, then the one rounding shift.
#pragma once

#include "fixed.hpp"
#include "transform.hpp"
#include "types.hpp"

namespace circ {

// A complex spectral weight as the stream carries it.
template <class Part>
struct Weight {
    Part re, im;
};

template <int W>
inline constexpr int SPECTRUM_BITS = W + spec::LOG2_BLOCK_MAX;

// Accumulators as wide as a DSP's P register: exact for every program that the compiler passes.
struct Exact {
    using Value = Int<spec::ACC_BITS>;

    template <class A, class B>
    static Value multiply(A a, B b) {
        return static_cast<Value>(product(a, b));
    }
    static Int<spec::ACC_BITS> sum(Value v) { return v; }
};

// Accumulators modulo 2**32: exact where the final sum is known to fit 32 bits, whatever overflowed before.
struct Modular {
    using Value = std::uint32_t;

    template <class A, class B>
    static constexpr Value multiply(A a, B b) {
        return static_cast<Value>(a) * static_cast<Value>(b);
    }
    static constexpr std::int64_t sum(Value v) { return static_cast<std::int32_t>(v); }
};

// Word `w` of ROWS block rows: a sum over `count` input blocks, rounded by `acc_shift`.
//   half         words of a block, k/2
//   weights      memory of weights; row r starts at first + r * count * half
//   spectra      memory of count * half spectral words
//   sums         the rows' samples; the parts go to places re_at and im_at of each
template <class Acc, int ROWS, class Weights, class Spectra, int N>
CIRC_KERNEL void word_product(std::uint32_t w, std::uint32_t half, std::uint32_t count, Weights& weights,
                              std::uint32_t first, Spectra& spectra, int acc_shift, Samples<N>* sums,
                              std::uint32_t re_at, std::uint32_t im_at) {
#pragma HLS INLINE
    using Value = typename Acc::Value;
    // Three real products make a complex one: c(a+b), a(d-c), b(c+d) are summed apart and combined once at
    // the end, so a lane is three DSP slices. Word 0 is two real products instead, a*c and b*d: other factors
    // for the second and third sum, and no combination.
    Lanes<Value, N> acc[std::size_t{ROWS}][3];
#pragma HLS ARRAY_PARTITION variable = acc complete dim = 0
CLEAR:
    for (int r = 0; r < ROWS; ++r) {
#pragma HLS UNROLL
        for (int s = 0; s < 3; ++s) clear(acc[r][s]);
    }
    std::uint32_t at = w;
INPUT_BLOCK:
    for (std::uint32_t j = 0; j < count; ++j) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT max = 64
        // invariant: at = j * half + w
        const auto& x = spectra[at];
    ROW:
        for (int r = 0; r < ROWS; ++r) {
#pragma HLS UNROLL
            const auto weight = weights[first + static_cast<std::uint32_t>(r) * count * half + at];
            const Int<18> c = weight.re, d = weight.im;
            const Int<18> minus = w == 0 ? c : static_cast<Int<18>>(d - c);
            const Int<18> plus = w == 0 ? d : static_cast<Int<18>>(c + d);
        MAC_LANE:
            CIRC_LANES
            for (int n = 0; n < N; ++n) {
#pragma HLS UNROLL
                const Sample a = x.re.image[n], b = x.im.image[n];
                const Sample total = static_cast<Sample>(a + b);
                acc[r][0].image[n] = static_cast<Value>(acc[r][0].image[n] + Acc::multiply(total, c));
                acc[r][1].image[n] = static_cast<Value>(acc[r][1].image[n] + Acc::multiply(a, minus));
                acc[r][2].image[n] = static_cast<Value>(acc[r][2].image[n] + Acc::multiply(b, plus));
            }
        }
        at += half;
    }
    const RoundShift<spec::ACC_BITS + 1> round(acc_shift);
OUTPUT_ROW:
    for (int r = 0; r < ROWS; ++r) {
#pragma HLS UNROLL
    COMBINE_LANE:
        CIRC_LANES
        for (int n = 0; n < N; ++n) {
#pragma HLS UNROLL
            const Value k1 = acc[r][0].image[n], k2 = acc[r][1].image[n], k3 = acc[r][2].image[n];
            const Value sum_re = w == 0 ? k2 : static_cast<Value>(k1 - k3);
            const Value sum_im = w == 0 ? k3 : static_cast<Value>(k1 + k2);
            sums[r][re_at].image[n] = static_cast<Sample>(saturate<spec::SUM_BITS>(round(Acc::sum(sum_re))));
            sums[r][im_at].image[n] = static_cast<Sample>(saturate<spec::SUM_BITS>(round(Acc::sum(sum_im))));
        }
    }
}

}  // namespace circ
