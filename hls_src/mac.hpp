// SPDX-License-Identifier: BSD-3-Clause
// Sums of products: of spectra and weights, and for k = 1 of elements and weights; exact, then the one
// rounding.
#pragma once

#include "fixed.hpp"
#include "transform.hpp"
#include "types.hpp"

namespace circ {

// A complex weight as the stream carries it.
template <class Part>
struct Weight {
    Part re, im;
};

template <int W>
inline constexpr int SPECTRUM_BITS = W + spec::LOG2_BLOCK_MAX;

// Accumulators as wide as a DSP's P register: exact for every program that the loader passes.
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

// What a weight word c + id multiplies with. Three real products make a complex one: c(a+b), a(d-c), b(c+d)
// are summed apart and combined once at the end, so a lane is three DSP slices. Word 0 of a spectrum is two
// real products instead, a*c and b*d: other factors for the second and third sum, and no combination.
struct Factors {
    Int<18> first, minus, plus;

    template <class Part>
    static Factors of(const Weight<Part>& weight, bool real) {
#pragma HLS INLINE
        const Int<18> c = weight.re, d = weight.im;
        return {c, real ? c : static_cast<Int<18>>(d - c), real ? d : static_cast<Int<18>>(c + d)};
    }
};

template <class Acc, int N>
struct ComplexSum {
    using Value = typename Acc::Value;
    Lanes<Value, N> part[3];

    void clear() {
#pragma HLS INLINE
        for (auto& lanes : part) circ::clear(lanes);
    }

    template <class S>
    void add(const Complex<S, N>& x, const Factors& weight) {
#pragma HLS INLINE
    MAC_LANE:
        CIRC_LANES
        for (int n = 0; n < N; ++n) {
#pragma HLS UNROLL
            const Sample a = x.re.lane[n], b = x.im.lane[n];
            const Sample total = static_cast<Sample>(a + b);
            part[0].lane[n] = static_cast<Value>(part[0].lane[n] + Acc::multiply(total, weight.first));
            part[1].lane[n] = static_cast<Value>(part[1].lane[n] + Acc::multiply(a, weight.minus));
            part[2].lane[n] = static_cast<Value>(part[2].lane[n] + Acc::multiply(b, weight.plus));
        }
    }

    // The sum after the one rounding shift; `real` as it was for the weights.
    void result(bool real, const RoundShift<spec::ACC_BITS + 1>& round, Lanes<Sample, N>& re,
                Lanes<Sample, N>& im) const {
#pragma HLS INLINE
    COMBINE_LANE:
        CIRC_LANES
        for (int n = 0; n < N; ++n) {
#pragma HLS UNROLL
            const Value k1 = part[0].lane[n], k2 = part[1].lane[n], k3 = part[2].lane[n];
            const Value sum_re = real ? k2 : static_cast<Value>(k1 - k3);
            const Value sum_im = real ? k3 : static_cast<Value>(k1 + k2);
            re.lane[n] = static_cast<Sample>(saturate<spec::SUM_BITS>(round(Acc::sum(sum_re))));
            im.lane[n] = static_cast<Sample>(saturate<spec::SUM_BITS>(round(Acc::sum(sum_im))));
        }
    }
};

}  // namespace circ
