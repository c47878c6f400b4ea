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

template <int W, class Capacity, class Policy>
class ProgramMemory {
  public:
    typename Capacity::template Memory<Weight<Stored<W>>, Role::Weights> weights;
    typename Capacity::template Memory<Affine, Role::Channels> affine;
    typename Capacity::template Memory<Instruction, Role::Instructions> code;
    std::uint64_t magnitudes[spec::MAX_LAYERS][MAX_BLOCK / 2];  // see measure(); unused unless Policy::NARROW

    std::uint32_t id() const { return instructions_ == 0 ? 0 : id_; }
    std::uint32_t instructions() const { return instructions_; }  // 0 without a program
    std::uint32_t map_elements() const { return map_elements_; }  // of the program's largest layer
    void reset() { instructions_ = 0; }

    template <class In>
    spec::Status load(In& in, const Limits& limits) {
        reset();
        Packet<In> packet(in);
        Header header = {};
        const spec::Status status = receive(packet, header, limits);
        packet.drain();
        if (status != spec::Status::Ok) return status;
        std::uint32_t arriving = 0;
        map_elements_ = 0;
    CHECK:
        for (std::uint32_t n = 0; n < header.instructions(); ++n) {
            const Instruction i = code[n];
            const spec::Status verdict = check(i, n, arriving, header, W, limits);
            if (verdict != spec::Status::Ok) return verdict;
            arriving = i.out_features;
            map_elements_ = larger(map_elements_, larger(i.in_elements(), i.out_elements()));
            if constexpr (Policy::NARROW) measure(i, magnitudes[n]);
        }
        id_ = header.program_id();
        instructions_ = header.instructions();
        return spec::Status::Ok;
    }

  private:
    // Header and tables into their memories; length and header are checked, instructions not yet.
    template <class In>
    spec::Status receive(Packet<In>& packet, Header& header, const Limits& limits) {
        static_assert(spec::HEADER_WORDS == 4);
        if (!packet.next(header.magic_and_spec) || !packet.next(header.weights_and_id) ||
            !packet.next(header.counts) || !packet.next(header.width))
            return spec::Status::BadLength;
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

    // For each spectral word of layer `i`, the largest sum over input blocks of |re| + |im| of its weights,
    // for word 0 of either alone: no accumulator exceeds it times the largest part of that word's spectra.
    void measure(const Instruction& i, std::uint64_t (&largest)[MAX_BLOCK / 2]) {
        const std::uint32_t half = i.half_block(), row = i.row_words();
        for (std::uint32_t w = 0; w < half; ++w) {
            largest[w] = 0;
            for (std::uint32_t r = 0; r < i.out_blocks(); ++r) {
                std::uint64_t re = 0, im = 0;
                for (std::uint32_t n = w; n < row; n += half) {
                    const auto& word = weights[i.weight_base + r * row + n];
                    re += static_cast<std::uint64_t>(absolute(word.re));
                    im += static_cast<std::uint64_t>(absolute(word.im));
                }
                largest[w] = larger(largest[w], w == 0 ? larger(re, im) : re + im);
            }
        }
    }

    static int absolute(int v) { return v < 0 ? -v : v; }

    std::uint32_t instructions_ = 0, id_ = 0, map_elements_ = 0;
};

}  // namespace circ
