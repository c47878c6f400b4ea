// SPDX-License-Identifier: BSD-3-Clause
// The core: feature maps, program memory, and the sequencer that walks a program's layers over a batch.
// Nothing here rounds or saturates; transform.hpp, mac.hpp and affine.hpp do.
#pragma once

#include <algorithm>

#include "affine.hpp"
#include "circ_spec.hpp"
#include "image.hpp"
#include "loader.hpp"
#include "mac.hpp"
#include "policy.hpp"
#include "transform.hpp"
#include "types.hpp"

namespace circ {

// A core of W bits. Between commands its state is: a whole program that passed every check, or none.
template <int W, class Capacity, class Policy>
class Core {
    static_assert(W >= spec::WIDTH_MIN && W <= spec::WIDTH_MAX);
    static constexpr int N = Policy::IMAGES;
    using Activations = Lanes<Stored<W>, N>;
    using SpectralWord = Complex<Int<SPECTRUM_BITS<W>>, N>;

  public:
    explicit Core(const Capacity& capacity = Capacity()) : capacity_(capacity) {}

    // Identity of the program on chip, 0 for none.
    std::uint32_t program_id() const { return program_.id(); }
    bool has_program() const { return program_.instructions() != 0; }
    Limits limits() const { return capacity_.limits(); }
    void reset() { program_.reset(); }

    // Beats of one image on either stream; they need a program.
    std::uint32_t in_beats() { return beats(program_.code[0].in_features, input_lanes()); }
    std::uint32_t out_beats() { return beats(last().out_features, spec::STREAM_BYTES / 2); }

    // Take the packet on `in` up to its TLAST as the new program; after any status but Ok there is none.
    template <class In>
    spec::Status load(In& in) {
        const spec::Status status = program_.load(in, capacity_.limits());
        map_.reserve(program_.map_elements());
        spectra_.reserve(program_.map_elements() / 2);
        return status;
    }

    // Outputs of `batch` images; `images` counts those that are finished. Consumes nothing unless Ok.
    template <class In, class Out>
    spec::Status run(std::uint32_t batch, In& in, Out& out, std::uint32_t& images) {
        images = 0;
        if (!has_program()) return spec::Status::NoProgram;
        if (batch == 0) return spec::Status::BadBatch;
    TILE:
        while (images < batch) {
            const int count = batch - images < std::uint32_t{N} ? static_cast<int>(batch - images) : N;
            read_images(in, count);
        LAYER:
            for (std::uint32_t n = 0; n < program_.instructions(); ++n) {
                const Instruction i = program_.code[n];
                Policy::with_block(static_cast<int>(i.log2_block), [&](auto block) { layer(block, i, n); });
            }
            images += static_cast<std::uint32_t>(count);
            write_images(out, count, images == batch);
        }
        return spec::Status::Ok;
    }

  private:
    static std::uint32_t beats(std::uint32_t features, std::uint32_t per_beat) {
        return (features + per_beat - 1) / per_beat;
    }
    std::uint32_t input_lanes() {
        return program_.code[0].input_u8() ? spec::STREAM_BYTES : spec::STREAM_BYTES / 2;
    }
    const Instruction& last() { return program_.code[program_.instructions() - 1]; }

    // Byte `n` of a beat as an activation: full scale of the bytes is full scale of the width.
    static Stored<W> byte_element(Word word, std::uint32_t n) {
        constexpr int SHIFT = larger(0, spec::U8_SHIFT[W - spec::WIDTH_MIN]);  // no bytes where it is < 0
        constexpr int MASK = (1 << spec::U8_BITS) - 1;
        return static_cast<Stored<W>>((static_cast<int>(word >> (spec::U8_BITS * n)) & MASK) << SHIFT);
    }

    // One tile into the feature map; every image starts on a new beat, TLAST means nothing here.
    template <class In>
    void read_images(In& in, int count) {
        const std::uint32_t features = program_.code[0].in_features;
        const bool u8 = program_.code[0].input_u8();
        const std::uint32_t per_beat = input_lanes();
    IMAGE:
        for (int image = 0; image < count; ++image) {
        BEAT:
            for (std::uint32_t first = 0; first < features; first += per_beat) {
                const Word word = static_cast<Word>(in.read().data);
                const std::uint32_t here = features - first < per_beat ? features - first : per_beat;
            ELEMENT:
                for (std::uint32_t n = 0; n < here; ++n) {
#pragma HLS PIPELINE II = 1
                    map_[first + n].image[image] =
                        u8 ? byte_element(word, n)
                           : static_cast<Stored<W>>(saturate<W>(int16_element<Int<16>>(word, n)));
                }
            }
        }
    }

    // The tile's results; lanes beyond the last feature are 0, TLAST marks the batch's last beat.
    template <class Out>
    void write_images(Out& out, int count, bool batch_ends) {
        constexpr std::uint32_t PER_BEAT = spec::STREAM_BYTES / 2;
        const std::uint32_t features = last().out_features;
    IMAGE:
        for (int image = 0; image < count; ++image) {
        BEAT:
            for (std::uint32_t first = 0; first < features; first += PER_BEAT) {
                Word word = 0;
            ELEMENT:
                for (std::uint32_t n = 0; n < PER_BEAT && first + n < features; ++n) {
#pragma HLS PIPELINE II = 1
                    const auto value = static_cast<std::int16_t>(map_[first + n].image[image]);
                    word |= static_cast<Word>(static_cast<std::uint16_t>(value)) << (16 * n);
                }
                out.write(make_beat(word, batch_ends && image == count - 1 && first + PER_BEAT >= features));
            }
        }
    }

    // One layer: feature map in, spectra, feature map out.
    template <class Block>
    void layer(Block block, const Instruction& i, std::uint32_t index) {
        bool narrow[MAX_BLOCK / 2];
        transform_inputs(block, i, index, narrow);
        std::uint32_t row = 0;
        if constexpr (Policy::ROWS > 1) {
            for (; row + Policy::ROWS <= i.out_blocks(); row += Policy::ROWS) {
                output_rows<Policy::ROWS>(block, i, row, narrow);
            }
        }
    OUTPUT_BLOCK:
        for (; row < i.out_blocks(); ++row) output_rows<1>(block, i, row, narrow);
    }

    // Spectra of the layer's input blocks, and which of their words get by with narrow accumulators.
    template <class Block>
    void transform_inputs(Block block, const Instruction& i, std::uint32_t index,
                          bool (&narrow)[MAX_BLOCK / 2]) {
    PAD:
        for (std::uint32_t n = i.in_features; n < i.in_elements(); ++n) clear(map_[n]);
        Lanes<Sample, N> peaks[MAX_BLOCK / 2];
        for (int w = 0; w < block.size() / 2; ++w) clear(peaks[w]);
    FORWARD:
        for (std::uint32_t j = 0; j < i.in_blocks(); ++j) {
            forward_block(block, &map_[j << i.log2_block], &spectra_[j * i.half_block()], peaks);
        }
        if constexpr (Policy::NARROW) {
            // invariant: |accumulator| <= magnitude * peak; below 2**31, a sum modulo 2**32 is the sum itself
            for (std::uint32_t w = 0; w < i.half_block(); ++w) {
                const auto& lanes = peaks[w].image;
                const auto peak = static_cast<std::uint64_t>(*std::max_element(lanes, lanes + N));
                narrow[w] = program_.magnitudes[index][w] * peak < std::uint64_t{1} << 31;
            }
        }
    }

    template <int ROWS, class Block>
    void output_rows(Block block, const Instruction& i, std::uint32_t row,
                     const bool (&narrow)[MAX_BLOCK / 2]) {
        Samples<N> sums[std::size_t{ROWS}];
        const std::uint32_t first = i.weight_base + row * i.row_words();
        std::uint32_t m = 1;
    WORD:
        for (std::uint32_t w = 0; w < i.half_block(); ++w) {
            // invariant: m is the largest power of two <= w, or 1; inverse_transform() looks at these places
            if (w == 2 * m) m = w;
            const std::uint32_t re_at = w == 0 ? 0 : m + w, im_at = w == 0 ? 1 : 2 * m + w;
            const auto product = [&](auto acc) {
                word_product<decltype(acc), ROWS, decltype(program_.weights), decltype(spectra_), N>(
                    w, i.half_block(), i.in_blocks(), program_.weights, first, spectra_,
                    static_cast<int>(i.acc_shift), sums, re_at, im_at);
            };
            if constexpr (Policy::NARROW) {
                narrow[w] ? product(Modular{}) : product(Exact{});
            } else {
                product(Exact{});
            }
        }
    ROW:
        for (int r = 0; r < ROWS; ++r) output_block(block, i, row + static_cast<std::uint32_t>(r), sums[r]);
    }

    // From the spectrum of output block `row` to the feature map; outputs beyond the last feature are
    // dropped.
    template <class Block>
    void output_block(Block block, const Instruction& i, std::uint32_t row, Samples<N>& x) {
        inverse_block<Block, N>(block, x);
        const std::uint32_t first = row << i.log2_block;
        const auto activation = static_cast<spec::Activation>(i.activation);
    CHANNEL:
        for (std::uint32_t n = 0; n < static_cast<std::uint32_t>(block.size()); ++n) {
#pragma HLS PIPELINE II = 1
            if (first + n >= i.out_features) break;
            affine_activation<W, N>(x[n], program_.affine[i.affine_base + first + n],
                                    static_cast<int>(i.affine_shift), activation, map_[first + n]);
        }
    }

    // invariant: the maps' contents need not outlive a layer: all spectra are formed before an output is
    // written
    typename Capacity::template Memory<Activations, Role::Map> map_;
    typename Capacity::template Memory<SpectralWord, Role::Spectra> spectra_;
    ProgramMemory<W, Capacity, Policy> program_;
    Capacity capacity_;
};

}  // namespace circ
