// SPDX-License-Identifier: BSD-3-Clause
// Per-channel affine and activation: what happens between an inverse transform and the next layer's input.
#pragma once

#include "circ_spec.hpp"
#include "fixed.hpp"
#include "transform.hpp"
#include "types.hpp"

namespace circ {

// Affine entry of an output channel.
struct Affine {
    Int<spec::SCALE_BITS> scale;
    Int<spec::BIAS_BITS> bias;
};

// Bits of y * scale + bias and of its rounding constant.
inline constexpr int PREACT_BITS = 46;
static_assert(PREACT_BITS > spec::TIME_BITS + spec::SCALE_BITS && PREACT_BITS > spec::BIAS_BITS + 1 &&
              PREACT_BITS > spec::MAX_AFFINE_SHIFT + 1);

using Preact = Int<PREACT_BITS>;

// Sigmoid or tanh of v / 2**W with W - 1 fraction bits: chords of one table, read by symmetry.
template <int W>
Stored<W> curve(Preact v, bool tanh) {
#pragma HLS INLINE
    constexpr int POSITION_BITS = W + 3 - spec::ACTIVATION_LOG2_SEGMENTS;
    constexpr int DROP = spec::ACTIVATION_FRAC_BITS - (W - 1);
    static_assert(POSITION_BITS > 0 && DROP > 1);
    const Int<24> x = saturate<W + spec::PREACT_GUARD_BITS>(v);
    // tanh(x) = 2 sigmoid(2x) - 1, so one table serves both; u < 8 is its domain.
    const Int<24> magnitude = static_cast<Int<24>>(x < 0 ? static_cast<Int<24>>(-x) : x);
    const Int<24> doubled = static_cast<Int<24>>(tanh ? static_cast<Int<24>>(magnitude << 1) : magnitude);
    const Int<24> limit = (8 << W) - 1;
    const Int<24> u = doubled > limit ? limit : doubled;
    const int segment = static_cast<int>(u >> POSITION_BITS);
    const int position = static_cast<int>(u & ((1 << POSITION_BITS) - 1));
    const Int<20> left = spec::SIGMOID[segment];
    const Int<20> chord = spec::SIGMOID[segment + 1] - spec::SIGMOID[segment];
    const Int<20> rise =
        static_cast<Int<20>>(product(chord, static_cast<Int<20>>(position)) >> POSITION_BITS);
    const Int<20> y = static_cast<Int<20>>(left + rise);
    const Int<24> signed_y = static_cast<Int<24>>(x < 0 ? static_cast<Int<20>>(-y) : y);
    const Int<24> half = tanh ? 0 : 1 << (spec::ACTIVATION_FRAC_BITS - 1);
    const Int<24> rounded = RoundShift<24>(tanh ? DROP - 1 : DROP)(static_cast<Int<24>>(signed_y + half));
    return static_cast<Stored<W>>(saturate<W>(rounded));
}

// Outputs of one channel for the images of a tile.
//   y    inverse transform's output, before its saturation
template <int W, int N>
CIRC_KERNEL void affine_activation(const Lanes<Sample, N>& y, const Affine& affine, int shift,
                                   spec::Activation activation, Lanes<Stored<W>, N>& out) {
#pragma HLS INLINE
    const RoundShift<PREACT_BITS> round(shift);
    const bool curved = activation == spec::Activation::Sigmoid || activation == spec::Activation::Tanh;
    const Preact floor =
        activation == spec::Activation::Relu ? Preact(0) : static_cast<Preact>(-(Preact(1) << (W - 1)));
    const Preact ceiling = static_cast<Preact>((Preact(1) << (W - 1)) - 1);
    Lanes<Preact, N> v;
AFFINE_LANE:
    CIRC_LANES
    for (int n = 0; n < N; ++n) {
#pragma HLS UNROLL
        const Int<spec::TIME_BITS> time = saturate<spec::TIME_BITS>(y.image[n]);
        v.image[n] = round(static_cast<Preact>(product(time, affine.scale) + affine.bias));
    }
    if (curved) {
    CURVE_LANE:
        for (int n = 0; n < N; ++n) {
#pragma HLS UNROLL
            out.image[n] = curve<W>(v.image[n], activation == spec::Activation::Tanh);
        }
        return;
    }
CLAMP_LANE:
    CIRC_LANES
    for (int n = 0; n < N; ++n) {
#pragma HLS UNROLL
        const Preact low = v.image[n] < floor ? floor : v.image[n];
        out.image[n] = static_cast<Stored<W>>(low > ceiling ? ceiling : low);
    }
}

}  // namespace circ
