// SPDX-License-Identifier: BSD-3-Clause
// Per-channel affine, residual and activation: what stands behind the reduction of every instruction.
#pragma once

#include "circ_spec.hpp"
#include "fixed.hpp"
#include "image.hpp"
#include "transform.hpp"
#include "types.hpp"

namespace circ {

// Affine entry of an output channel.
struct Affine {
    Int<spec::SCALE_BITS> scale;
    Int<spec::BIAS_BITS> bias;
};

// Bits of y * scale + bias + (residual << add_shift) and of the rounding constant.
inline constexpr int PREACT_BITS = 47;
static_assert(PREACT_BITS > spec::TIME_BITS + spec::SCALE_BITS + 1 && PREACT_BITS > spec::BIAS_BITS + 2 &&
                  PREACT_BITS > spec::WIDTH_MAX + spec::MAX_ADD_SHIFT + 2 &&
                  PREACT_BITS > spec::MAX_AFFINE_SHIFT + 2,
              "four terms, none of more than a quarter of the range");

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
    // invariant: a chord has 12 bits and a position 12, so their product fits 32
    static_assert(POSITION_BITS <= 12);
    const Int<20> rise =
        static_cast<Int<20>>(static_cast<Int<32>>(chord * static_cast<Int<20>>(position)) >> POSITION_BITS);
    const Int<20> y = static_cast<Int<20>>(left + rise);
    const Int<24> signed_y = static_cast<Int<24>>(x < 0 ? static_cast<Int<20>>(-y) : y);
    const Int<24> half = tanh ? 0 : 1 << (spec::ACTIVATION_FRAC_BITS - 1);
    const Int<24> rounded = RoundShift<24>(tanh ? DROP - 1 : DROP)(static_cast<Int<24>>(signed_y + half));
    return static_cast<Stored<W>>(saturate<W>(rounded));
}

// What an instruction does with the reduced value, the same for all of its channels.
template <int W>
class Finish {
  public:
    explicit Finish(const Instruction& i)
        : round_(static_cast<int>(i.affine_shift)),
          activation_(static_cast<spec::Activation>(i.activation)),
          add_shift_(static_cast<int>(i.add_shift)),
          adds_(i.adds()),
          floor_(-(1 << (W - 1))),
          ceiling_((1 << (W - 1)) - 1) {
        if (activation_ == spec::Activation::Relu) {
            floor_ = 0;
            ceiling_ = static_cast<Int<18>>(i.ceiling);
        }
    }

    bool adds() const { return adds_; }

    // N outputs of the reduced values y.
    //   affine(n)    entry of lane n's channel
    //   residual     summands, looked at only if adds()
    template <int N, class Entries>
    void operator()(const Lanes<Sample, N>& y, const Entries& affine, const Lanes<Stored<W>, N>& residual,
                    Lanes<Stored<W>, N>& out) const {
#pragma HLS INLINE
        Lanes<Preact, N> v;
    AFFINE_LANE:
        CIRC_LANES
        for (int n = 0; n < N; ++n) {
#pragma HLS UNROLL
            const Int<spec::TIME_BITS> time = saturate<spec::TIME_BITS>(y.lane[n]);
            v.lane[n] = static_cast<Preact>(product(time, affine.scale(n)) + affine.bias(n));
        }
        if (adds_) {
        RESIDUAL_LANE:
            CIRC_LANES
            for (int n = 0; n < N; ++n) {
#pragma HLS UNROLL
                v.lane[n] = static_cast<Preact>(v.lane[n] + raise<PREACT_BITS>(residual.lane[n], add_shift_));
            }
        }
        if (activation_ == spec::Activation::Sigmoid || activation_ == spec::Activation::Tanh) {
        CURVE_LANE:
            CIRC_LANES
            for (int n = 0; n < N; ++n) {
#pragma HLS UNROLL
                out.lane[n] = curve<W>(round_(v.lane[n]), activation_ == spec::Activation::Tanh);
            }
            return;
        }
    CLAMP_LANE:
        CIRC_LANES
        for (int n = 0; n < N; ++n) {
#pragma HLS UNROLL
            const Preact rounded = round_(v.lane[n]);
            const Preact low = rounded < floor_ ? static_cast<Preact>(floor_) : rounded;
            out.lane[n] = static_cast<Stored<W>>(low > ceiling_ ? static_cast<Preact>(ceiling_) : low);
        }
    }

  private:
    RoundShift<PREACT_BITS> round_;
    spec::Activation activation_;
    int add_shift_;
    bool adds_;
    Int<18> floor_, ceiling_;
};

// One affine entry for all lanes.
struct OneEntry {
    Affine entry;
    Int<spec::SCALE_BITS> scale(int) const { return entry.scale; }
    Int<spec::BIAS_BITS> bias(int) const { return entry.bias; }
};

}  // namespace circ
