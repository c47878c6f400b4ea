// SPDX-License-Identifier: BSD-3-Clause
// What differs between the core in fabric and the same source as the emulator's engine, as types:
// how many block rows are computed side by side, whether a block size is a compile-time constant, and what
// the memories are made of. None of it changes a bit of the results.
#pragma once

#include <cstdint>
#include <vector>

#include "circ_spec.hpp"
#include "types.hpp"

namespace circ {

// Block size known at run time: one transform unit serves all sizes.
struct RunTimeBlock {
    int log2;
    constexpr int size() const { return 1 << log2; }
};

// Block size known at compile time: loops of known length, which a processor's compiler unrolls.
template <int LOG2>
struct StaticBlock {
    static constexpr int size() { return 1 << LOG2; }
};

// The fabric: one result at a time, exact accumulators of a DSP's width, and as many block rows at a time as
// the weight memory has ports: rows lie any distance apart, so no partition into banks would serve more.
template <int ROWS_>
struct Hardware {
    static constexpr int ROWS = ROWS_;
    static constexpr std::uint32_t IMAGES = 1;
    static constexpr std::uint32_t SLACK_WORDS = 0;

    template <class F>
    static void with_block(int log2, F&& f) {
        f(RunTimeBlock{log2});
    }
};

// A processor: several images at a time, block sizes known at compile time.
template <std::uint32_t IMAGES_ = 16>
struct Processor {
    static constexpr std::uint32_t IMAGES = IMAGES_;      // at a time,
    static constexpr std::uint32_t MAP_WORDS = 1u << 17;  // if their maps fill no more than that
    static constexpr std::uint32_t SLACK_WORDS = 32;  // behind them: lanes read a block's words, used or not

    template <class F>
    static void with_block(int log2, F&& f) {
        static_assert(spec::LOG2_BLOCK_MIN == 2 && spec::LOG2_BLOCK_MAX == 7, "one case per block size");
        switch (log2) {
            case 0:
                return f(StaticBlock<0>{});
            case 2:
                return f(StaticBlock<2>{});
            case 3:
                return f(StaticBlock<3>{});
            case 4:
                return f(StaticBlock<4>{});
            case 5:
                return f(StaticBlock<5>{});
            case 6:
                return f(StaticBlock<6>{});
            default:
                return f(StaticBlock<7>{});
        }
    }
};

// The memories of a core, by what they hold.
enum class Role { Weights, Map, Spectra, Channels, Instructions };

// Limits that the loader enforces, and the registers report.
struct Limits {
    std::uint32_t weight_words, map_elements, affine_channels, instructions, spectra_words;
};

// Memories of fixed depth: block RAM.
template <std::uint32_t WEIGHT_WORDS, std::uint32_t MAP_ELEMENTS, std::uint32_t CHANNELS,
          std::uint32_t INSTRUCTIONS, std::uint32_t SPECTRA_WORDS>
class FixedCapacity {
    static_assert(INSTRUCTIONS <= static_cast<std::uint32_t>(spec::MAX_LAYERS));

    static constexpr std::uint32_t depth(Role role) {
        return role == Role::Weights    ? WEIGHT_WORDS
               : role == Role::Map      ? MAP_ELEMENTS / spec::MAP_WORD
               : role == Role::Spectra  ? SPECTRA_WORDS
               : role == Role::Channels ? CHANNELS
                                        : INSTRUCTIONS;
    }

  public:
    template <class T, Role ROLE>
    struct Memory {
        T cells[depth(ROLE)];

        T& operator[](std::uint32_t n) { return cells[n]; }
        void put(std::uint32_t n, const T& value) { cells[n] = value; }
        void reserve(std::uint32_t) {}  // invariant: the loader refused whatever exceeds the depth
    };

    static constexpr Limits limits() {
        return {WEIGHT_WORDS, MAP_ELEMENTS, CHANNELS, INSTRUCTIONS, SPECTRA_WORDS};
    }
};

// Memories that grow to what a program needs, below limits given at run time.
class HeapCapacity {
  public:
    template <class T, Role ROLE>
    struct Memory {
        std::vector<T> cells;

        T& operator[](std::uint32_t n) { return cells[n]; }
        void put(std::uint32_t n, const T& value) {
            if (n >= cells.size()) cells.resize(std::size_t{n} + 1);
            cells[n] = value;
        }
        void reserve(std::uint32_t n) {
            if (n > cells.size()) cells.resize(n);
        }
    };

    explicit HeapCapacity(const Limits& limits) : limits_(limits) {}
    Limits limits() const { return limits_; }

  private:
    Limits limits_;
};

// The maps of an image in map memory, where images that are computed at a time lie one behind the other.
template <class Memory>
struct Maps {
    Memory& memory;
    std::uint32_t words, offset;  // of an image, before this one

    auto& operator[](std::uint32_t n) const { return memory[offset + n]; }
    auto* image(std::uint32_t n) const { return &memory[n * words]; }
    Maps at(std::uint32_t n) const { return {memory, words, n * words}; }
};

}  // namespace circ
