// SPDX-License-Identifier: BSD-3-Clause
// Program image: its header, its instructions, and which status refuses what. circ_overlay/image.py is the
// reference; the order of the checks is part of the contract.
#pragma once

#include <cstdint>

#include "circ_spec.hpp"
#include "fixed.hpp"
#include "policy.hpp"

namespace circ {

inline constexpr int INSTRUCTION_WORDS = spec::INSTRUCTION_WORDS;
inline constexpr std::uint32_t MAP_WORD = spec::MAP_WORD;

// Map words that a pixel of `channels` fills.
constexpr std::uint32_t pixel_words(std::uint32_t channels) {
    return (channels + MAP_WORD - 1) / MAP_WORD;
}

// One layer; the fields are those of spec.INSTRUCTION_FIELDS. The derived numbers of 32 bits hold for
// instructions that passed check(), those of 64 bits for all.
struct Instruction {
    std::uint32_t opcode, log2_block, activation, flags, in_channels, out_channels;
    std::uint32_t weight_base, affine_base, acc_shift, affine_shift, add_shift, ceiling;
    std::uint32_t in_base, out_base, add_base, factor_base;
    std::uint32_t in_height, in_width, out_height, out_width;
    std::uint32_t tap_rows, tap_columns, stride_rows, stride_columns, pad_top, pad_left, pool_rows,
        pool_columns;
    std::uint32_t in_pitch, out_pitch, add_pitch, factor_pitch;

    bool is(spec::Opcode code) const { return opcode == static_cast<std::uint32_t>(code); }
    bool gathers() const { return (flags & spec::LAYERFLAG_GATHER) != 0; }
    bool adds() const { return (flags & spec::LAYERFLAG_ADD) != 0; }
    bool compressed() const { return log2_block != 0; }

    std::uint32_t taps() const { return tap_rows * tap_columns; }
    std::uint32_t block_size() const { return std::uint32_t{1} << log2_block; }
    // Complex words of a weight block: k/2; k = 1: the two that face a map word.
    std::uint32_t block_words() const { return compressed() ? block_size() / 2 : MAP_WORD / 2; }
    std::uint32_t blocks(std::uint32_t elements) const { return (elements + block_size() - 1) >> log2_block; }
    // Blocks of one transformed vector, a pixel or with GATHER a window; k = 1: its map words.
    std::uint32_t in_blocks() const {
        if (!compressed()) return pixel_words(in_channels);
        return blocks(gathers() ? in_channels * taps() : in_channels);
    }
    std::uint32_t out_blocks() const { return blocks(out_channels); }
    // Weight blocks that are summed into one output block.
    std::uint64_t row_blocks() const { return std::uint64_t{in_blocks()} * (gathers() ? 1 : taps()); }
    std::uint64_t terms() const { return 2 * row_blocks() * block_words(); }
    // Weight words of an output block.
    std::uint32_t row_words() const { return static_cast<std::uint32_t>(row_blocks()) * block_words(); }
    std::uint64_t weight_count() const {
        return is(spec::Opcode::Circulant) ? out_blocks() * row_blocks() * block_words() : 0;
    }
    std::uint64_t result_height() const { return std::uint64_t{out_height} * pool_rows; }
    std::uint64_t result_width() const { return std::uint64_t{out_width} * pool_columns; }
    // Input rows that a row of outputs needs.
    std::uint32_t ring_rows() const {
        const std::uint32_t rows = tap_rows + (pool_rows - 1) * stride_rows;
        return in_height < rows ? in_height : rows;
    }
    // Spectral words that have to be at hand at a time.
    std::uint64_t spectra_words() const {
        if (!is(spec::Opcode::Circulant) || !compressed()) return 0;
        const std::uint64_t words = std::uint64_t{in_blocks()} * block_words();
        return gathers() ? words : std::uint64_t{ring_rows()} * in_width * words;
    }
};

// The word behind the last one that the instruction touches.
inline std::uint64_t map_words(const Instruction& i) {
    // invariant: no overflow, for 65535 x 255 rows and columns of results with a pitch of 65535 stay below
    // 2**64
    const auto end = [](std::uint32_t base, std::uint64_t pixels, std::uint32_t pitch,
                        std::uint32_t channels) {
        return base + (pixels - 1) * pitch + pixel_words(channels);
    };
    const std::uint64_t results = i.result_height() * i.result_width();
    std::uint64_t last =
        larger(end(i.in_base, std::uint64_t{i.in_height} * i.in_width, i.in_pitch, i.in_channels),
               end(i.out_base, std::uint64_t{i.out_height} * i.out_width, i.out_pitch, i.out_channels));
    if (i.adds()) last = larger(last, end(i.add_base, results, i.add_pitch, i.out_channels));
    if (i.is(spec::Opcode::Product))
        last = larger(last, end(i.factor_base, results, i.factor_pitch, i.out_channels));
    return last;
}

template <int LSB, int WIDTH>
std::uint32_t extract(const Word (&words)[INSTRUCTION_WORDS]) {
    static_assert(LSB / 64 == (LSB + WIDTH - 1) / 64, "a field lies in one word");
    static_assert(WIDTH <= 32 && LSB / 64 < INSTRUCTION_WORDS);
    return static_cast<std::uint32_t>(words[LSB / 64] >> (LSB % 64) & ((Word{1} << WIDTH) - 1));
}

inline Instruction decode_instruction(const Word (&words)[INSTRUCTION_WORDS]) {
    using namespace spec::field;
    Instruction i = {};
#define CIRC_FIELD(name, FIELD) i.name = extract<FIELD.lsb, FIELD.width>(words)
    CIRC_FIELD(opcode, OPCODE);
    CIRC_FIELD(log2_block, LOG2_BLOCK);
    CIRC_FIELD(activation, ACTIVATION);
    CIRC_FIELD(flags, FLAGS);
    CIRC_FIELD(in_channels, IN_CHANNELS);
    CIRC_FIELD(out_channels, OUT_CHANNELS);
    CIRC_FIELD(weight_base, WEIGHT_BASE);
    CIRC_FIELD(affine_base, AFFINE_BASE);
    CIRC_FIELD(acc_shift, ACC_SHIFT);
    CIRC_FIELD(affine_shift, AFFINE_SHIFT);
    CIRC_FIELD(add_shift, ADD_SHIFT);
    CIRC_FIELD(ceiling, CEILING);
    CIRC_FIELD(in_base, IN_BASE);
    CIRC_FIELD(out_base, OUT_BASE);
    CIRC_FIELD(add_base, ADD_BASE);
    CIRC_FIELD(factor_base, FACTOR_BASE);
    CIRC_FIELD(in_height, IN_HEIGHT);
    CIRC_FIELD(in_width, IN_WIDTH);
    CIRC_FIELD(out_height, OUT_HEIGHT);
    CIRC_FIELD(out_width, OUT_WIDTH);
    CIRC_FIELD(tap_rows, TAP_ROWS);
    CIRC_FIELD(tap_columns, TAP_COLUMNS);
    CIRC_FIELD(stride_rows, STRIDE_ROWS);
    CIRC_FIELD(stride_columns, STRIDE_COLUMNS);
    CIRC_FIELD(pad_top, PAD_TOP);
    CIRC_FIELD(pad_left, PAD_LEFT);
    CIRC_FIELD(pool_rows, POOL_ROWS);
    CIRC_FIELD(pool_columns, POOL_COLUMNS);
    CIRC_FIELD(in_pitch, IN_PITCH);
    CIRC_FIELD(out_pitch, OUT_PITCH);
    CIRC_FIELD(add_pitch, ADD_PITCH);
    CIRC_FIELD(factor_pitch, FACTOR_PITCH);
#undef CIRC_FIELD
    return i;
}

// A run of map words.
struct Span {
    std::uint32_t base, words;
    explicit Span(Word word = 0)
        : base(static_cast<std::uint32_t>(word)), words(static_cast<std::uint32_t>(word >> 32)) {}
    std::uint64_t end() const { return std::uint64_t{base} + words; }
};

// The words before the instructions.
struct Header {
    Word word[spec::HEADER_WORDS];

    std::uint32_t program_id() const { return static_cast<std::uint32_t>(word[1]); }
    std::uint32_t weight_words() const { return static_cast<std::uint32_t>(word[1] >> 32); }
    std::uint32_t channels() const { return static_cast<std::uint32_t>(word[2]); }
    std::uint32_t instructions() const { return static_cast<std::uint32_t>(word[2] >> 32); }
    bool input_u8() const { return (word[3] >> 8 & spec::IMAGEFLAG_INPUT_U8) != 0; }
    bool sequence() const { return (word[3] >> 8 & spec::IMAGEFLAG_SEQUENCE) != 0; }
    Span input() const { return Span(word[4]); }
    Span output() const { return Span(word[5]); }
    Span state() const { return Span(word[6]); }

    spec::Status check(int core_width, const Limits& limits) const {
        using spec::Status;
        constexpr Word KNOWN = spec::IMAGEFLAG_INPUT_U8 | spec::IMAGEFLAG_SEQUENCE;
        if (static_cast<std::uint32_t>(word[0]) != spec::MAGIC) return Status::BadMagic;
        if (static_cast<std::uint32_t>(word[0] >> 32) != spec::SPEC_ID) return Status::SpecMismatch;
        if ((word[3] & 0xFF) != static_cast<Word>(core_width)) return Status::WidthMismatch;
        if ((word[3] >> 8 & ~KNOWN) != 0 || (input_u8() && core_width == spec::U8_BITS))
            return Status::BadInstruction;
        if (input().words == 0 || output().words == 0) return Status::BadInstruction;
        const std::uint32_t room = limits.map_elements / MAP_WORD;
        if (weight_words() > limits.weight_words || channels() > limits.affine_channels ||
            instructions() == 0 || instructions() > limits.instructions || input().end() > room ||
            output().end() > room || state().end() > room)
            return Status::TooLarge;
        return Status::Ok;
    }
};

// Status that an instruction earns; one that is Ok keeps the core inside its memories.
inline spec::Status check(const Instruction& i, const Header& header, int core_width, const Limits& limits) {
    using spec::Status;
    const bool circulant = i.is(spec::Opcode::Circulant);
    if (i.opcode < static_cast<std::uint32_t>(spec::Opcode::Circulant) ||
        i.opcode > static_cast<std::uint32_t>(spec::Opcode::Product) ||
        i.activation > static_cast<std::uint32_t>(spec::Activation::Tanh) ||
        (i.flags & ~(spec::LAYERFLAG_GATHER | spec::LAYERFLAG_ADD)) != 0)
        return Status::BadInstruction;
    if (i.in_channels == 0 || i.out_channels == 0 || i.in_height == 0 || i.in_width == 0 ||
        i.out_height == 0 || i.out_width == 0 || i.taps() == 0 || i.stride_rows == 0 ||
        i.stride_columns == 0 || i.pool_rows == 0 || i.pool_columns == 0 || i.in_pitch == 0 ||
        i.out_pitch == 0)
        return Status::BadInstruction;
    if (i.acc_shift > std::uint32_t{spec::MAX_ACC_SHIFT} ||
        i.affine_shift > std::uint32_t{spec::MAX_AFFINE_SHIFT} ||
        i.add_shift > std::uint32_t{spec::MAX_ADD_SHIFT} || i.ceiling >> (core_width - 1) != 0)
        return Status::BadInstruction;
    if (circulant) {
        if (i.compressed() && (i.log2_block < std::uint32_t{spec::LOG2_BLOCK_MIN} ||
                               i.log2_block > std::uint32_t{spec::LOG2_BLOCK_MAX}))
            return Status::BadInstruction;
        if (i.gathers() && (!i.compressed() || i.in_channels > std::uint32_t{spec::MAX_GATHER_CHANNELS}))
            return Status::BadInstruction;
    } else if (i.compressed() || i.gathers() || i.in_channels != i.out_channels) {
        return Status::BadInstruction;
    }
    const bool product = i.is(spec::Opcode::Product);
    if (product &&
        (i.taps() > 1 || i.stride_rows > 1 || i.stride_columns > 1 || i.pad_top != 0 || i.pad_left != 0))
        return Status::BadInstruction;
    if ((circulant && i.terms() > std::uint64_t{spec::MAX_TERMS}) ||
        i.weight_base + i.weight_count() > header.weight_words() ||
        std::uint64_t{i.affine_base} + i.out_channels > header.channels())
        return Status::BadInstruction;
    if (i.spectra_words() > limits.spectra_words || map_words(i) > limits.map_elements / MAP_WORD)
        return Status::TooLarge;
    return Status::Ok;
}

}  // namespace circ
