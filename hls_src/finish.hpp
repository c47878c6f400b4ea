// SPDX-License-Identifier: BSD-3-Clause
// affine.hpp for a processor's units: affine, residual and activation of HALF lanes, four channels at a time.
#pragma once

#include <cstdint>

#include "affine.hpp"
#include "image.hpp"
#include "kernels.hpp"
#include "vectors.hpp"

namespace circ {

// What an instruction does with the reduced value, the same for all of its channels.
struct RealFinish {
    RealShift shift;
    double residual_factor, floor, ceiling;
    bool adds, curved, tanh;
    int width;
    double curve_floor, curve_ceiling;  // of what a curve gives

    RealFinish(const Instruction& i, int core_width)
        : shift(i.affine_shift),
          residual_factor(power_of_two(static_cast<int>(i.add_shift))),
          floor(-power_of_two(core_width - 1)),
          ceiling(power_of_two(core_width - 1) - 1),
          adds(i.adds()),
          curved(i.activation >= static_cast<std::uint32_t>(spec::Activation::Sigmoid)),
          tanh(i.activation == static_cast<std::uint32_t>(spec::Activation::Tanh)),
          width(core_width),
          curve_floor(floor),
          curve_ceiling(ceiling) {
        static_assert(static_cast<int>(spec::Activation::Sigmoid) == 2 && static_cast<int>(spec::Activation::Tanh) == 3);
        if (i.activation == static_cast<std::uint32_t>(spec::Activation::Relu)) {
            floor = 0;
            ceiling = i.ceiling;
        }
        if (curved) {  // where the curve saturates its argument
            floor = -power_of_two(width + spec::PREACT_GUARD_BITS - 1);
            ceiling = -floor - 1;
        }
    }

    // Affine, residual, rounding, limits; for a curve its argument.
    void operator()(Reals& v, const Reals& scale, const Reals& bias, const Reals& residual) const {
        saturate_reals<spec::TIME_BITS>(v);
        v = v * scale + bias;
        if (adds) v = v + residual * residual_factor;
        shift(v);
        clamp(v, floor, ceiling);
    }
};

// One affine entry for all lanes.
struct SameEntry {
    const double *scale, *bias;
    void operator()(std::uint32_t n, std::uint32_t, Reals& s, Reals& b) const {
        spread(scale[n], s);
        spread(bias[n], b);
    }
};

// An entry for each lane: those of channel n of LANES blocks lie side by side.
struct LaneEntries {
    const double *scale, *bias;
    void operator()(std::uint32_t n, std::uint32_t h, Reals& s, Reals& b) const {
        std::memcpy(&s, scale + n * LANES + h, sizeof s);
        std::memcpy(&b, bias + n * LANES + h, sizeof b);
    }
};

// Of each segment of the sigmoid's curve, where it begins and the chord to its end.
struct Chords {
    static constexpr int BITS = 12;  // of a chord
    std::int32_t of[(1 << spec::ACTIVATION_LOG2_SEGMENTS)];
    constexpr Chords() : of() {
        for (int n = 0; n < 1 << spec::ACTIVATION_LOG2_SEGMENTS; ++n)
            of[n] = spec::SIGMOID[n] << BITS | (spec::SIGMOID[n + 1] - spec::SIGMOID[n]);
    }
};
inline constexpr Chords CHORDS;
static_assert(spec::SIGMOID[1] < 1 << Chords::BITS, "the first chord is the steepest");

// curve() of affine.hpp; v is within its domain.
inline void bend(Reals& v, const RealFinish& finish) {
    const int position_bits = finish.width + 3 - spec::ACTIVATION_LOG2_SEGMENTS, tanh = finish.tanh ? 1 : 0;
    const int drop = spec::ACTIVATION_FRAC_BITS - (finish.width - 1) - tanh;
    const Ints x = __builtin_convertvector(v, Ints);
    const Ints magnitude = (x < 0 ? -x : x) << tanh;
    const Ints limit = Ints{} + ((8 << finish.width) - 1);
    const Ints u = magnitude > limit ? limit : magnitude;
    const Ints segment = u >> position_bits, position = u & ((1 << position_bits) - 1);
    const std::int32_t* of = CHORDS.of;
    const Ints chord{of[segment[0]], of[segment[1]], of[segment[2]], of[segment[3]],
                     of[segment[4]], of[segment[5]], of[segment[6]], of[segment[7]]};
    const Ints y = (chord >> Chords::BITS) + ((chord & ((1 << Chords::BITS) - 1)) * position >> position_bits);
    const Ints signed_y = (x < 0 ? -y : y) + (finish.tanh ? 0 : 1 << (spec::ACTIVATION_FRAC_BITS - 1));
    v = __builtin_convertvector((signed_y + (1 << (drop - 1))) >> drop, Reals);
    clamp(v, finish.curve_floor, finish.curve_ceiling);
}

// Channels of `y` in turns of four: from the inverse transform to the largest results so far.
//   channels  how many count; the others of the last map word become 0
//   residual  pixels of the residual operand; `offset` words behind them is that of channel 0
//   begins    there are no results yet
template <class Entries>
CIRC_KERNEL void finish_block(const RealFinish& finish, const Reals* y, const Entries& entries, std::uint32_t h,
                              std::uint32_t channels, const Halves* map, const std::uint32_t* residual,
                              std::uint32_t offset, bool begins, Reals* best) {
    const RealFinish f = finish;  // a copy, which no store can change
    for (std::uint32_t n = 0; n < channels; n += 4) {
        Longs words = {};
        if (f.adds) fetch_words(map, residual, offset + n / 4, words);
        Reals v[4];
        each<4>([&](auto e) {
            Reals scale, bias, summand;
            v[e] = y[n + e];
            entries(n + e, h, scale, bias);
            element(words, e, summand);
            f(v[e], scale, bias, summand);
        });
        if (f.curved) {
            for (Reals& value : v) bend(value, f);
        }
        each<4>([&](auto e) {
            if (n + e >= channels) v[e] = Reals{};
            best[n + e] = begins ? v[e] : (v[e] > best[n + e] ? v[e] : best[n + e]);
        });
    }
}

// Four channels at a time to the pixels' map words; words from `end` on are none.
CIRC_KERNEL inline void write_block(const Reals* values, std::uint32_t channels, Halves* map,
                                    const std::uint32_t* pixels, std::uint32_t offset, std::uint32_t end) {
    for (std::uint32_t n = 0; n < channels; n += 4) {
        Longs words = {};
        each<4>([&](auto e) {
            const Longs v = __builtin_convertvector(values[n + e], Longs);
            words |= (v & 0xFFFF) << (16 * e);
        });
        for (std::uint32_t l = 0; l < HALF; ++l) {
            if (pixels[l] < end && pixels[l] + offset + n / 4 < end) unpack(words[l], map[pixels[l] + offset + n / 4]);
        }
    }
}

}  // namespace circ
