// SPDX-License-Identifier: BSD-3-Clause
// Rounding and saturation: what fixed-point numbers need. docs/numerics.md says where they act.
#pragma once

#include "types.hpp"

namespace circ {

// v / 2**shift rounded half up, for values of BITS bits, rounding constant included.
template <int BITS>
class RoundShift {
  public:
    explicit RoundShift(int shift) : shift_(shift), half_(0) {
        // invariant: half_ is half a unit of the result, 0 for shift = 0
        if (shift > 0) half_ = static_cast<Int<BITS>>(Int<BITS>(1) << (shift - 1));
    }

    Int<BITS> operator()(Int<BITS> v) const {
        return static_cast<Int<BITS>>(floor_shift<BITS>(static_cast<Int<BITS>>(v + half_), shift_));
    }

  private:
    int shift_;
    Int<BITS> half_;
};

// v limited to a signed integer of BITS bits.
template <int BITS, class T>
Int<BITS> saturate(T v) {
    const T low = static_cast<T>(-(std::int64_t{1} << (BITS - 1)));
    const T high = static_cast<T>((std::int64_t{1} << (BITS - 1)) - 1);
    const T floor = v < low ? low : v;
    return static_cast<Int<BITS>>(floor > high ? high : floor);
}

template <class T>
constexpr T larger(T a, T b) {
    return a > b ? a : b;
}

}  // namespace circ
