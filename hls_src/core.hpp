// SPDX-License-Identifier: BSD-3-Clause
// The core: map memory, program memory, and the sequencer that walks a program's instructions over a batch.
// Nothing here rounds, but for the saturation of entering elements; the units do.
#pragma once

#include "circ_spec.hpp"
#include "image.hpp"
#include "loader.hpp"
#include "policy.hpp"
#include "types.hpp"
#include "units.hpp"

namespace circ {

// A core of W bits. Between commands its state is: a whole program that passed every check, or none; and
// maps.
template <int W, class Capacity, class Policy>
class Core {
    static_assert(W >= spec::WIDTH_MIN && W <= spec::WIDTH_MAX);
    static_assert(spec::STREAM_BYTES == 2 * spec::MAP_WORD, "a beat of int16 elements is a map word");

    using Map = typename Capacity::template Memory<MapWord<Stored<W>>, Role::Map>;

  public:
    explicit Core(const Capacity& capacity = Capacity()) : capacity_(capacity) {}

    // Identity of the program on chip, 0 for none.
    std::uint32_t program_id() const { return program_.id(); }
    bool has_program() const { return program_.instructions() != 0; }
    Limits limits() const { return capacity_.limits(); }
    void reset() { program_.reset(); }

    // Beats of one image on either stream; they need a program.
    std::uint64_t in_beats() const {
        const Header& header = program_.header();
        const std::uint64_t words = header.input().words;
        return (header.input_u8() ? (words + 1) / 2 : words) + (header.sequence() ? 1 : 0);
    }
    std::uint64_t out_beats() const { return program_.header().output().words; }

    // Take the packet on `in` up to its TLAST as the new program; after any status but Ok there is none.
    template <class In>
    spec::Status load(In& in) {
        const Limits limits = capacity_.limits();
        const spec::Status status = program_.load(in, limits);
        if (status != spec::Status::Ok) return status;
        const Header& header = program_.header();
        std::uint64_t words = larger(header.input().end(), larger(header.output().end(), header.state().end()));
    ROOM:
        for (std::uint32_t n = 0; n < program_.instructions(); ++n) words = larger(words, map_words(program_.code[n]));
        image_words_ = static_cast<std::uint32_t>(words);
        images_ = 1;  // a sequence's steps follow one another
        if constexpr (Policy::IMAGES > 1) {
            if (!header.sequence() && words <= Policy::MAP_WORDS / Policy::IMAGES) images_ = Policy::IMAGES;
        }
        map_.reserve(images_ * image_words_ + Policy::SLACK_WORDS);
        unit_.prepare(program_, images_, image_words_);
        return status;
    }

    // Outputs of `batch` images; `images` counts those that are finished. Consumes nothing unless Ok.
    template <class In, class Out>
    spec::Status run(std::uint32_t batch, In& in, Out& out, std::uint32_t& images) {
        images = 0;
        if (!has_program()) return spec::Status::NoProgram;
        if (batch == 0) return spec::Status::BadBatch;
    IMAGES:
        while (images < batch) {
            // A few images less than there is room for are computed as if all were there.
            const std::uint32_t left = batch - images, count = left < images_ ? left : images_;
            const std::uint32_t at_a_time = 4 * count >= images_ ? images_ : 1;
            const std::uint32_t real = at_a_time == 1 ? 1 : count;
        READ:
            for (std::uint32_t n = 0; n < real; ++n) read_image(in, maps(n));
        INSTRUCTION:
            for (std::uint32_t n = 0; n < program_.instructions(); ++n) {
                const Instruction i = program_.code[n];
                unit_.execute(n, i, program_, maps(0), at_a_time);
            }
            images += real;
        WRITE:
            for (std::uint32_t n = 0; n < real; ++n) write_image(out, maps(n), images == batch && n + 1 == real);
        }
        return spec::Status::Ok;
    }

  private:
    Maps<Map> maps(std::uint32_t image) { return Maps<Map>{map_, image_words_, 0}.at(image); }

    // Byte `n` of a beat as an activation: full scale of the bytes is full scale of the width.
    static Stored<W> byte_element(Word word, std::uint32_t n) {
        constexpr int SHIFT = larger(0, spec::U8_SHIFT[W - spec::WIDTH_MIN]);  // no bytes where it is < 0
        constexpr int MASK = (1 << spec::U8_BITS) - 1;
        return static_cast<Stored<W>>((static_cast<int>(word >> (spec::U8_BITS * n)) & MASK) << SHIFT);
    }

    // One image into its map words; every image starts on a new beat, TLAST means nothing here.
    template <class In>
    void read_image(In& in, Maps<Map> map) {
        const Header& header = program_.header();
        const Span input = header.input(), state = header.state();
        const bool u8 = header.input_u8();
        if (header.sequence()) {
            const bool begins = (static_cast<Word>(in.read().data) & 1) != 0;
        CLEAR_STATE:
            for (std::uint32_t n = 0; begins && n < state.words; ++n) {
#pragma HLS PIPELINE II = 1
                for (std::uint32_t e = 0; e < MAP_WORD; ++e) map[state.base + n].element[e] = 0;
            }
        }
        Word word = 0;
    READ:
        for (std::uint32_t n = 0; n < input.words; ++n) {
#pragma HLS PIPELINE II = 1
            const bool upper = u8 && n % 2 != 0;  // half of a beat of bytes
            if (!upper) word = static_cast<Word>(in.read().data);
        ELEMENT:
            for (std::uint32_t e = 0; e < MAP_WORD; ++e) {
#pragma HLS UNROLL
                map[input.base + n].element[e] =
                    u8 ? byte_element(word, upper ? e + MAP_WORD : e)
                       : static_cast<Stored<W>>(saturate<W>(int16_element<Int<16>>(word, e)));
            }
        }
    }

    // The image's results; TLAST marks the batch's last beat.
    template <class Out>
    void write_image(Out& out, Maps<Map> map, bool batch_ends) {
        const Span output = program_.header().output();
    WRITE:
        for (std::uint32_t n = 0; n < output.words; ++n) {
#pragma HLS PIPELINE II = 1
                const Word word = join(map[output.base + n]);
            out.write(make_beat(word, batch_ends && n + 1 == output.words));
        }
    }

    Map map_;
    std::uint32_t image_words_ = 0, images_ = 1;  // map words that the program's images take, images at a time
    ProgramMemory<W, Capacity> program_;
    typename Unit<W, Capacity, Policy>::Type unit_;
    Capacity capacity_;
};

}  // namespace circ
