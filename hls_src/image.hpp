// SPDX-License-Identifier: BSD-3-Clause
// Program image: its header, its instructions, and which status refuses what. circ_overlay/image.py is the
// reference; the order of the checks is part of the contract.
#pragma once

#include <cstdint>

#include "circ_spec.hpp"
#include "policy.hpp"

namespace circ {

inline constexpr int INSTRUCTION_WORDS = spec::INSTRUCTION_WORDS;

// One layer; the fields are those of spec.INSTRUCTION_FIELDS.
struct Instruction {
    std::uint32_t opcode, log2_block, activation, flags, in_features, out_features;
    std::uint32_t weight_base, affine_base, acc_shift, affine_shift;

    // Blocks that `features` fill; log2_block must have passed check().
    std::uint32_t blocks(std::uint32_t features) const {
        return (features + (std::uint32_t{1} << log2_block) - 1) >> log2_block;
    }
    std::uint32_t half_block() const { return std::uint32_t{1} << log2_block >> 1; }
    std::uint32_t in_blocks() const { return blocks(in_features); }
    std::uint32_t out_blocks() const { return blocks(out_features); }
    std::uint32_t in_elements() const { return in_blocks() << log2_block; }
    std::uint32_t out_elements() const { return out_blocks() << log2_block; }
    std::uint32_t row_words() const { return in_elements() / 2; }
    std::uint64_t weight_count() const { return std::uint64_t{out_blocks()} * row_words(); }
    bool input_u8() const { return (flags & spec::LAYERFLAG_INPUT_U8) != 0; }
};

template <int LSB, int WIDTH>
std::uint32_t extract(const Word (&words)[INSTRUCTION_WORDS]) {
    static_assert(LSB / 64 == (LSB + WIDTH - 1) / 64, "a field lies in one word");
    static_assert(WIDTH <= 32 && LSB / 64 < INSTRUCTION_WORDS);
    return static_cast<std::uint32_t>(words[LSB / 64] >> (LSB % 64) & ((Word{1} << WIDTH) - 1));
}

inline Instruction decode_instruction(const Word (&words)[INSTRUCTION_WORDS]) {
    using namespace spec::field;
    return {
        extract<OPCODE.lsb, OPCODE.width>(words),
        extract<LOG2_BLOCK.lsb, LOG2_BLOCK.width>(words),
        extract<ACTIVATION.lsb, ACTIVATION.width>(words),
        extract<FLAGS.lsb, FLAGS.width>(words),
        extract<IN_FEATURES.lsb, IN_FEATURES.width>(words),
        extract<OUT_FEATURES.lsb, OUT_FEATURES.width>(words),
        extract<WEIGHT_BASE.lsb, WEIGHT_BASE.width>(words),
        extract<AFFINE_BASE.lsb, AFFINE_BASE.width>(words),
        extract<ACC_SHIFT.lsb, ACC_SHIFT.width>(words),
        extract<AFFINE_SHIFT.lsb, AFFINE_SHIFT.width>(words),
    };
}

// The four words before the instructions.
struct Header {
    Word magic_and_spec, weights_and_id, counts, width;

    std::uint32_t program_id() const { return static_cast<std::uint32_t>(weights_and_id); }
    std::uint32_t weight_words() const { return static_cast<std::uint32_t>(weights_and_id >> 32); }
    std::uint32_t channels() const { return static_cast<std::uint32_t>(counts); }
    std::uint32_t instructions() const { return static_cast<std::uint32_t>(counts >> 32); }
    std::uint64_t instruction_words() const { return std::uint64_t{instructions()} * INSTRUCTION_WORDS; }

    spec::Status check(int core_width, const Limits& limits) const {
        if (static_cast<std::uint32_t>(magic_and_spec) != spec::MAGIC) return spec::Status::BadMagic;
        if (static_cast<std::uint32_t>(magic_and_spec >> 32) != spec::SPEC_ID)
            return spec::Status::SpecMismatch;
        if (width != static_cast<Word>(core_width)) return spec::Status::WidthMismatch;
        if (weight_words() > limits.weight_words || channels() > limits.affine_channels ||
            instructions() == 0 || instructions() > limits.instructions)
            return spec::Status::TooLarge;
        return spec::Status::Ok;
    }
};

// Status that the instruction at `index` earns; `arriving` are the features that the layer before puts out.
inline spec::Status check(const Instruction& i, std::uint32_t index, std::uint32_t arriving,
                          const Header& header, int core_width, const Limits& limits) {
    using spec::Status;
    const std::uint32_t allowed_flags = index == 0 && core_width > 8 ? spec::LAYERFLAG_INPUT_U8 : 0;
    if (i.opcode != static_cast<std::uint32_t>(spec::Opcode::Linear) ||
        i.log2_block < std::uint32_t{spec::LOG2_BLOCK_MIN} ||
        i.log2_block > std::uint32_t{spec::LOG2_BLOCK_MAX} ||
        i.activation > static_cast<std::uint32_t>(spec::Activation::Tanh) ||
        (i.flags & ~allowed_flags) != 0 || i.in_features == 0 || i.out_features == 0 ||
        i.acc_shift > std::uint32_t{spec::MAX_ACC_SHIFT} ||
        i.affine_shift > std::uint32_t{spec::MAX_AFFINE_SHIFT})
        return Status::BadInstruction;
    if (i.weight_base + i.weight_count() > header.weight_words() ||
        std::uint64_t{i.affine_base} + i.out_features > header.channels() ||
        (index > 0 && i.in_features != arriving))
        return Status::BadInstruction;
    const std::uint32_t map = i.in_elements() > i.out_elements() ? i.in_elements() : i.out_elements();
    return map > limits.map_elements ? Status::TooLarge : Status::Ok;
}

}  // namespace circ
