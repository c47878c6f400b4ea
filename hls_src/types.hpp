// SPDX-License-Identifier: BSD-3-Clause
// Number types: native integers, or the vendor's exact widths under CIRC_AP_TYPES. The only header with
// that distinction; all others are written once, for both.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef CIRC_AP_TYPES
#include <ap_int.h>
#include <hls_stream.h>
#if __has_include(<ap_axi_sdata.h>)
#include <ap_axi_sdata.h>
#define CIRC_AXI_SIDEBAND
#endif
#else
#include "stream.hpp"
#endif

// Goes in front of a loop over lanes: they are independent, so a compiler for a processor may put them side
// by side in a vector register. Synthesis unrolls the loop.
#if defined(__clang__)
#define CIRC_LANES _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define CIRC_LANES _Pragma("GCC ivdep")
#else
#define CIRC_LANES
#endif

// Goes in front of the inner loops' functions; a build for processors may have it draw in what these call.
#ifndef CIRC_KERNEL
#define CIRC_KERNEL
#endif

// Goes in front of a function that is not to be drawn into others.
#if defined(__GNUC__)
#define CIRC_APART __attribute__((noinline))
#else
#define CIRC_APART
#endif

namespace circ {

using Word = std::uint64_t;  // a word of a program image, or the data of a stream beat

#ifdef CIRC_AP_TYPES

inline constexpr bool NATIVE_TYPES = false;

template <class T>
using Stream = hls::stream<T>;

#ifdef CIRC_AXI_SIDEBAND
using Beat = ap_axiu<64, 0, 0, 0>;

inline Beat make_beat(Word data, bool last) {
    Beat beat;
    beat.data = data;
    beat.keep = beat.strb = -1;  // every byte counts: unused lanes carry zeros
    beat.last = last;
    return beat;
}
#else  // free copies of the vendor's types come without the AXI4-Stream ones
struct Beat {
    ap_uint<64> data;
    ap_uint<1> last;
};

inline Beat make_beat(Word data, bool last) {
    return {data, last};
}
#endif

// A signed integer of BITS bits, as a register of the datapath.
template <int BITS>
using Int = ap_int<BITS>;

// The same in a memory.
template <int BITS>
using Stored = ap_int<BITS>;

// a * b without loss.
template <class A, class B>
auto product(A a, B b) {
    return a * b;
}

// floor(v / 2**shift).
template <int BITS>
Int<BITS> floor_shift(Int<BITS> v, int shift) {
    return v >> shift;
}

// v * 2**shift, of BITS bits.
template <int BITS, class T>
Int<BITS> raise(T v, int shift) {
    return static_cast<Int<BITS> >(v) << shift;
}

#else

inline constexpr bool NATIVE_TYPES = true;

template <class T>
using Stream = QueueStream<T>;

// One beat of an AXI4-Stream.
struct Beat {
    Word data;
    bool last;
};

inline Beat make_beat(Word data, bool last) {
    return {data, last};
}

template <int BITS>
using Int = std::conditional_t<(BITS <= 32), std::int32_t, std::int64_t>;

template <int BITS>
using Stored = std::conditional_t<(BITS <= 16), std::int16_t, Int<BITS> >;

template <class A, class B>
constexpr std::int64_t product(A a, B b) {
    return static_cast<std::int64_t>(a) * static_cast<std::int64_t>(b);
}

// AVX2 shifts 64-bit lanes right only as unsigned numbers: an offset that 2**shift divides makes them so.
// Requires |v| < 2**62 and shift <= 62; no value of the core comes near.
template <int BITS>
constexpr std::int64_t floor_shift(std::int64_t v, int shift) {
    static_assert(BITS <= 62);
    constexpr std::uint64_t OFFSET = std::uint64_t{1} << 62;
    return static_cast<std::int64_t>(((static_cast<std::uint64_t>(v) + OFFSET) >> shift) - (OFFSET >> shift));
}

template <int BITS>
constexpr std::int64_t raise(std::int64_t v, int shift) {
    return static_cast<std::int64_t>(static_cast<std::uint64_t>(v) << shift);
}

#endif

// N numbers that are computed side by side.
template <class T, int N>
struct alignas(N > 1 ? 64 : alignof(T)) Lanes {
    T lane[std::size_t{N}];
};

// 0 in every lane, in words: the vendor's types begin with no value at all, even as T{}.
template <class T, int N>
void clear(Lanes<T, N>& lanes) {
#pragma HLS INLINE
    CIRC_LANES
    for (int n = 0; n < N; ++n) lanes.lane[n] = 0;
}

template <class T, int N>
struct Complex {
    Lanes<T, N> re, im;
};

// A word of map memory. Its elements are written one by one: in the fabric each lies in a bank of its own.
template <class T>
struct MapWord {
    T element[4];
};

// Its elements as int16, the first one lowest.
template <class T>
Word join(const MapWord<T>& word) {
#pragma HLS INLINE
    Word joined = 0;
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    if constexpr (std::is_same_v<T, std::int16_t>) {  // as it lies in a processor's memory
        std::memcpy(&joined, &word, sizeof joined);
        return joined;
    }
#endif
    for (int n = 0; n < 4; ++n) {
#pragma HLS UNROLL
        const auto value = static_cast<std::int16_t>(word.element[n]);
        joined |= static_cast<Word>(static_cast<std::uint16_t>(value)) << (16 * n);
    }
    return joined;
}

}  // namespace circ
