// SPDX-License-Identifier: BSD-3-Clause
// Memory behind the interface of a stream: so the emulator's engine reads and writes its caller's arrays in
// place.
#pragma once

#include <cstdint>

#include "types.hpp"

namespace circ {

// A packet that lies in memory; `last` comes with its last word, and again if one reads on.
class PacketReader {
  public:
    PacketReader(const std::uint64_t* words, std::uint64_t count) : next_(words), end_(words + count) {}

    Beat read() {
        if (next_ == end_) return make_beat(0, true);
        const Word data = *next_++;
        return make_beat(data, next_ == end_);
    }

  private:
    const std::uint64_t* next_;
    const std::uint64_t* end_;
};

// Room for a packet; the caller knows its length beforehand.
class PacketWriter {
  public:
    PacketWriter(std::uint64_t* words, std::uint64_t count) : next_(words), end_(words + count) {}

    void write(const Beat& beat) {
        if (next_ != end_) *next_++ = static_cast<Word>(beat.data);
    }

  private:
    std::uint64_t* next_;
    std::uint64_t* end_;
};

}  // namespace circ
