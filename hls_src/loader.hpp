// SPDX-License-Identifier: BSD-3-Clause
// Program memory of the core and its loader: a packet goes in, a program that passed every check stays, or
// none does. image.hpp says what is refused.
#pragma once

#include "affine.hpp"
#include "circ_spec.hpp"
#include "image.hpp"
#include "mac.hpp"
#include "policy.hpp"
#include "types.hpp"

namespace circ {

// int16 element `n` of a word, low end first.
template <class T>
T int16_element(Word word, std::uint32_t n) {
    return static_cast<T>(static_cast<std::int16_t>(word >> (16 * n)));
}

// A packet of the input stream, of which nothing beyond its last beat is read.
template <class In>
class Packet {
  public:
    explicit Packet(In& in) : in_(in) {}
    bool ended() const { return ended_; }

    bool next(Word& word) {
        if (ended_) return false;
        const auto beat = in_.read();
        word = static_cast<Word>(beat.data);
        ended_ = static_cast<bool>(beat.last);
        return true;
    }

    void drain() {
        Word word = 0;
    DRAIN:
        while (next(word)) {
#pragma HLS PIPELINE II = 1
        }
    }

  private:
    In& in_;
    bool ended_ = false;
};

template <int W, class Capacity>
class ProgramMemory {
  public:
    typename Capacity::template Memory<Weight<Stored<W>>, Role::Weights> weights;
    typename Capacity::template Memory<Affine, Role::Channels> affine;
    typename Capacity::template Memory<Instruction, Role::Instructions> code;

    std::uint32_t id() const { return instructions() == 0 ? 0 : header_.program_id(); }
    std::uint32_t instructions() const { return header_.instructions(); }  // 0 without a program
    const Header& header() const { return header_; }
    void reset() { header_ = {}; }

    template <class In>
    spec::Status load(In& in, const Limits& limits) {
        reset();
        Packet<In> packet(in);
        Header header = {};
        const spec::Status status = receive(packet, header, limits);
        packet.drain();
        if (status != spec::Status::Ok) return status;
    CHECK:
        for (std::uint32_t n = 0; n < header.instructions(); ++n) {
            const spec::Status verdict = check(code[n], header, W, limits);
            if (verdict != spec::Status::Ok) return verdict;
        }
        header_ = header;
        return spec::Status::Ok;
    }

  private:
    // Header and tables into their memories; length and header are checked, instructions not yet.
    template <class In>
    spec::Status receive(Packet<In>& packet, Header& header, const Limits& limits) {
    HEADER:
        for (Word& word : header.word) {
            if (!packet.next(word)) return spec::Status::BadLength;
        }
        const spec::Status status = header.check(W, limits);
        if (status != spec::Status::Ok) return status;
    INSTRUCTION:
        for (std::uint32_t n = 0; n < header.instructions(); ++n) {
            Word words[INSTRUCTION_WORDS] = {};
            for (Word& word : words) {
                if (!packet.next(word)) return spec::Status::BadLength;
            }
            code.put(n, decode_instruction(words));
        }
    AFFINE:
        for (std::uint32_t n = 0; n < header.channels(); ++n) {
#pragma HLS PIPELINE II = 1
            Word word = 0;
            if (!packet.next(word)) return spec::Status::BadLength;
            affine.put(n, {sign_extend<spec::SCALE_BITS>(word), sign_extend<spec::BIAS_BITS>(word >> 24)});
        }
    WEIGHT:
        for (std::uint32_t n = 0; n < header.weight_words(); n += 2) {
#pragma HLS PIPELINE II = 1
            Word word = 0;
            if (!packet.next(word)) return spec::Status::BadLength;
            weights.put(n, weight(word, 0));
            if (n + 1 < header.weight_words()) weights.put(n + 1, weight(word, 1));
        }
        return packet.ended() ? spec::Status::Ok : spec::Status::BadLength;
    }

    template <int BITS>
    static Int<BITS> sign_extend(Word word) {
        return static_cast<Int<BITS>>(static_cast<std::int64_t>(word << (64 - BITS)) >> (64 - BITS));
    }

    static Weight<Stored<W>> weight(Word word, std::uint32_t n) {
        return {int16_element<Stored<W>>(word, 2 * n), int16_element<Stored<W>>(word, 2 * n + 1)};
    }

    Header header_ = {};  // of the program on chip; all zero without one
};

}  // namespace circ
