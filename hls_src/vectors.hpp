// SPDX-License-Identifier: BSD-3-Clause
// Arithmetic of a processor's units: integers as doubles, which are exact below 2**53, and all numbers of the
// core are. Eight lanes make a vector. The transforms are those of transform.hpp with lengths known at
// compile time.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "circ_spec.hpp"
#include "transform.hpp"
#include "types.hpp"

namespace circ {

inline constexpr std::uint32_t HALF = 8;  // lanes of a vector

using Reals = double __attribute__((vector_size(8 * HALF)));
using Longs = std::int64_t __attribute__((vector_size(8 * HALF)));
using Ints = std::int32_t __attribute__((vector_size(4 * HALF)));

// Integers of magnitude below 2**51 are apart by 1 from here on: adding it and taking it away rounds to
// nearest.
inline constexpr double MAGIC_ROUND = 6755399441055744.0;  // 1.5 * 2**52

// Integers as reals and back by their bits, which every processor can do on vectors: the low bits of
// MAGIC_ROUND + n are those of n, for |n| < 2**51.
inline void as_bits(const Reals& v, Longs& bits) {
    const Reals shifted = v + MAGIC_ROUND;
    std::memcpy(&bits, &shifted, sizeof bits);
}

inline void to_reals(const Longs& n, Reals& v) {
    constexpr std::int64_t MAGIC_BITS = 0x4338000000000000;
    const Longs bits = n + MAGIC_BITS;
    std::memcpy(&v, &bits, sizeof v);
    v -= MAGIC_ROUND;
}

inline void to_reals(const Ints& n, Reals& v) {
#if defined(__AVX512F__)  // which GCC 12 does not find by itself
    v = reinterpret_cast<Reals>(_mm512_cvtepi32_pd(reinterpret_cast<__m256i>(n)));
#else
    to_reals(__builtin_convertvector(n, Longs), v);
#endif
}

// Multiples of 2**-fraction, rounded half up: less than half a step moves the ties, and nothing else.
// Vectors are passed by reference: by value, their calling convention would depend on the processor.
inline void round_half_up(Reals& v, double less_than_a_step) {
    v = (v + less_than_a_step) + MAGIC_ROUND;
    v -= MAGIC_ROUND;
}

constexpr double power_of_two(int n) {  // |n| < 63
    return n >= 0 ? static_cast<double>(std::int64_t{1} << n)
                  : 1.0 / static_cast<double>(std::int64_t{1} << -n);
}

// v / 2**shift rounded half up.
struct RealShift {
    double factor, tie;
    explicit RealShift(std::uint32_t shift)
        : factor(power_of_two(-static_cast<int>(shift))), tie(power_of_two(-static_cast<int>(shift) - 2)) {}
    void operator()(Reals& v) const {
        v = v * factor;
        round_half_up(v, tie);
    }
};

inline void spread(double value, Reals& v) {
    v = value - Reals{};
}

inline void clamp(Reals& v, double low, double high) {
    Reals lows, highs;
    spread(low, lows);
    spread(high, highs);
    v = v < lows ? lows : v;
    v = v > highs ? highs : v;
}

template <int BITS>
void saturate_reals(Reals& v) {
    clamp(v, -power_of_two(BITS - 1), power_of_two(BITS - 1) - 1);
}

struct TwiddleTable {
    double re[CIRCLE], im[CIRCLE];
    constexpr TwiddleTable() : re(), im() {
        for (int n = 0; n < CIRCLE; ++n) {
            re[n] = spec::TWIDDLES[n][0] / 65536.0;
            im[n] = spec::TWIDDLES[n][1] / 65536.0;
        }
    }
};
static_assert(spec::TWIDDLE_FRAC_BITS == 16);
inline constexpr TwiddleTable REAL_TWIDDLES;

// f(0) ... f(COUNT - 1), a few of them with their number known at compile time.
template <class F, int... N>
void each_of(F&& f, std::integer_sequence<int, N...>) {
    (f(std::integral_constant<int, N>{}), ...);
}

template <int COUNT, class F>
void each(F&& f) {
    if constexpr (COUNT <= 8) {
        each_of(f, std::make_integer_sequence<int, COUNT>{});
    } else {
        for (int n = 0; n < COUNT; ++n) f(n);
    }
}

// (re, im) times the twiddle t (conjugate for the inverse) times GAIN, each part rounded once; see rotate().
template <Direction DIRECTION, int GAIN, class T>
void turn(Reals& re, Reals& im, T t) {
    constexpr double SIGN = DIRECTION == Direction::Forward ? GAIN : -GAIN;
    if (t == 0) {
        re = re * GAIN;
        im = im * GAIN;
        return;
    }
    const Reals a = re, b = im;
    const double w_re = REAL_TWIDDLES.re[t] * GAIN, w_im = REAL_TWIDDLES.im[t] * SIGN;
    if (t == CIRCLE / 4) {  // exact
        re = b * -w_im;
        im = a * w_im;
        return;
    }
    constexpr double TIE = 1.0 / (1 << 18);
    re = a * w_re - (b * w_im - TIE);
    im = a * w_im + (b * w_re + TIE);
    re = (re + MAGIC_ROUND) - MAGIC_ROUND;
    im = (im + MAGIC_ROUND) - MAGIC_ROUND;
}

inline void cross(Reals& u, Reals& v) {
    const Reals sum = u + v;
    v = u - v;
    u = sum;
}

template <int M>
void complex_forward_reals(Reals* re, Reals* im) {
    if constexpr (M > 1) {
        each<M / 2>([&](auto t) {
            cross(re[t], re[M / 2 + t]);
            cross(im[t], im[M / 2 + t]);
            turn<Direction::Forward, 1>(re[M / 2 + t], im[M / 2 + t], CIRCLE / M * t);
        });
        complex_forward_reals<M / 2>(re, im);
        complex_forward_reals<M / 2>(re + M / 2, im + M / 2);
    }
}

template <int M>
void complex_inverse_reals(Reals* re, Reals* im) {
    if constexpr (M > 1) {
        complex_inverse_reals<M / 2>(re, im);
        complex_inverse_reals<M / 2>(re + M / 2, im + M / 2);
        each<M / 2>([&](auto t) {
            turn<Direction::Inverse, 1>(re[M / 2 + t], im[M / 2 + t], CIRCLE / M * t);
            cross(re[t], re[M / 2 + t]);
            cross(im[t], im[M / 2 + t]);
        });
    }
}

// forward_transform() on vectors. Large ones are compiled once, not into each of their callers.
template <int K>
void forward_reals(Reals* x);

template <int K>
CIRC_APART void forward_apart(Reals* x) {
    forward_reals<K>(x);
}

template <int K>
void forward(Reals* x) {
    if constexpr (K > 16) {
        forward_apart<K>(x);
    } else {
        forward_reals<K>(x);
    }
}

template <int K>
void forward_reals(Reals* x) {
    if constexpr (K == 2) {
        cross(x[0], x[1]);
    } else {
        constexpr int QUARTER = K / 4;
        each<QUARTER>([&](auto t) {
            cross(x[t], x[K / 2 + t]);
            cross(x[QUARTER + t], x[K / 2 + QUARTER + t]);
            x[K / 2 + QUARTER + t] = -x[K / 2 + QUARTER + t];
            turn<Direction::Forward, 1>(x[K / 2 + t], x[K / 2 + QUARTER + t], CIRCLE / K * t);
        });
        complex_forward_reals<QUARTER>(x + K / 2, x + K / 2 + QUARTER);
        forward_reals<K / 2>(x);
    }
}

// inverse_transform() on vectors.
template <int K>
void inverse_reals(Reals* x) {
    if constexpr (K == 2) {
        cross(x[0], x[1]);
    } else {
        constexpr int QUARTER = K / 4;
        inverse_reals<K / 2>(x);
        complex_inverse_reals<QUARTER>(x + K / 2, x + K / 2 + QUARTER);
        each<QUARTER>([&](auto t) {
            turn<Direction::Inverse, 2>(x[K / 2 + t], x[K / 2 + QUARTER + t], CIRCLE / K * t);
            x[K / 2 + QUARTER + t] = -x[K / 2 + QUARTER + t];
            cross(x[t], x[K / 2 + t]);
            cross(x[QUARTER + t], x[K / 2 + QUARTER + t]);
        });
    }
}

}  // namespace circ
