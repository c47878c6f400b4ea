// SPDX-License-Identifier: BSD-3-Clause
// CIRCULANT as the fabric walks it: row of outputs by row of outputs, with the spectra of just the input rows
// that such a row needs. An input pixel is transformed once.
#pragma once

#include "affine.hpp"
#include "circ_spec.hpp"
#include "image.hpp"
#include "loader.hpp"
#include "mac.hpp"
#include "policy.hpp"
#include "runs.hpp"
#include "sums.hpp"
#include "transform.hpp"
#include "types.hpp"

namespace circ {

// The unit that executes CIRCULANT instructions. Its memories are the core's.
template <int W, class Capacity, class Policy>
class WindowUnit {
    using Part = Int<SPECTRUM_BITS<W>>;
    using Map = Maps<typename Capacity::template Memory<MapWord<Stored<W>>, Role::Map>>;
    using Program = ProgramMemory<W, Capacity>;
    static constexpr int ROWS = Policy::ROWS;

  public:
    void prepare(Program& program, std::uint32_t, std::uint32_t) {
        std::uint64_t words = 0;
    ROOM:
        for (std::uint32_t n = 0; n < program.instructions(); ++n) {
            words = larger(words, program.code[n].spectra_words());
        }
        spectra_.reserve(static_cast<std::uint32_t>(words));
    }

    void execute(std::uint32_t, const Instruction& i, Program& program, Map map, std::uint32_t) {
        Policy::with_block(static_cast<int>(i.log2_block), [&](auto block) { walk(block, i, program, map); });
    }

  private:
    template <class Block>
    void walk(Block block, const Instruction& i, Program& program, Map map) {
        const Finish<W> finish(i);
        std::uint32_t next_row =
            0;  // invariant: of the rows below it, the ring holds all that are still needed
    OUT_ROW:
        for (std::uint32_t y = 0; y < i.out_height; ++y) {
            if (i.compressed() && !i.gathers()) fill_ring(block, i, map, y, next_row);
        OUT_COLUMN:
            for (std::uint32_t x = 0; x < i.out_width; ++x) {
                const std::uint32_t pixel = i.out_base + (y * i.out_width + x) * i.out_pitch;
            POOL_ROW:
                for (std::uint32_t a = 0; a < i.pool_rows; ++a) {
                POOL_COLUMN:
                    for (std::uint32_t b = 0; b < i.pool_columns; ++b) {
                        const std::uint32_t oy = y * i.pool_rows + a, ox = x * i.pool_columns + b;
                        if (i.gathers()) gather(block, i, map, oy, ox);
                        result(block, i, program, map, finish, oy, ox, pixel, a == 0 && b == 0);
                    }
                }
            }
        }
    }

    // Spectra of the rows that output row y needs and that are not there yet.
    template <class Block>
    void fill_ring(Block block, const Instruction& i, Map map, std::uint32_t y, std::uint32_t& next_row) {
        const auto row = [&](std::uint32_t result, std::uint32_t taps) {
            const auto at =
                static_cast<std::int64_t>(std::uint64_t{result} * i.stride_rows) - i.pad_top + taps;
            return at < 0 ? 0 : at < i.in_height ? static_cast<std::uint32_t>(at) : i.in_height;
        };
        next_row = larger(next_row, row(y * i.pool_rows, 0));  // none of the rows between windows
        const std::uint32_t end = row((y + 1) * i.pool_rows - 1, i.tap_rows);
    RING_ROW:
        for (; next_row < end; ++next_row) {
            const std::uint32_t slot = next_row % i.ring_rows();
        RING_PIXEL:
            for (std::uint32_t x = 0; x < i.in_width; ++x) {
                const std::uint32_t from = i.in_base + (next_row * i.in_width + x) * i.in_pitch;
                const std::uint32_t to = (slot * i.in_width + x) * i.in_blocks() * i.block_words();
            RING_BLOCK:
                for (std::uint32_t j = 0; j < i.in_blocks(); ++j) {
                    Samples<1> samples;
                LOAD:
                    for (std::uint32_t n = 0; n < i.block_size(); ++n) {
#pragma HLS PIPELINE II = 1
                        const std::uint32_t c = (j << i.log2_block) + n;
                        samples[n].lane[0] = 0;
                        if (c < i.in_channels)
                            samples[n].lane[0] = map[from + c / MAP_WORD].element[c % MAP_WORD];
                    }
                    transform(block, samples, to + j * i.block_words());
                }
            }
        }
    }

    // Samples to spectral words from `to` on.
    template <class Block>
    void transform(Block block, Samples<1>& samples, std::uint32_t to) {
        forward_transform<Block, 1>(block, samples);
    STORE:
        for (int w = 0; w < block.size() / 2; ++w) {
#pragma HLS PIPELINE II = 1
            const Place place(w);
            auto& word = spectra_[to + static_cast<std::uint32_t>(w)];
            word.re.lane[0] = static_cast<Part>(samples[place.re].lane[0]);
            word.im.lane[0] = static_cast<Part>(samples[place.im].lane[0]);
        }
    }

    // The window at a result as one vector: its blocks' spectra from word 0 on.
    template <class Block>
    void gather(Block block, const Instruction& i, Map map, std::uint32_t oy, std::uint32_t ox) {
        const auto top = static_cast<std::int64_t>(std::uint64_t{oy} * i.stride_rows) - i.pad_top;
        const auto left = static_cast<std::int64_t>(std::uint64_t{ox} * i.stride_columns) - i.pad_left;
        std::uint32_t tap_row = 0, tap_column = 0, channel = 0;
    GATHER_BLOCK:
        for (std::uint32_t j = 0; j < i.in_blocks(); ++j) {
            Samples<1> samples;
        GATHER:
            for (std::uint32_t n = 0; n < i.block_size(); ++n) {
#pragma HLS PIPELINE II = 1
                const std::int64_t y = top + tap_row, x = left + tap_column;
                samples[n].lane[0] = 0;
                if (tap_row < i.tap_rows && y >= 0 && y < i.in_height && x >= 0 && x < i.in_width) {
                    const std::uint32_t pixel =
                        static_cast<std::uint32_t>(y) * i.in_width + static_cast<std::uint32_t>(x);
                    samples[n].lane[0] = map[i.in_base + pixel * i.in_pitch].element[channel];
                }
                if (++channel == i.in_channels) {
                    channel = 0;
                    if (++tap_column == i.tap_columns) {
                        tap_column = 0;
                        ++tap_row;
                    }
                }
            }
            transform(block, samples, j * i.block_words());
        }
    }

    // A result, all of its channels; the output pixel at map word `pixel` keeps the largest of its results.
    template <class Block>
    void result(Block block, const Instruction& i, Program& program, Map map, const Finish<W>& finish,
                std::uint32_t oy, std::uint32_t ox, std::uint32_t pixel, bool first) {
        const std::uint64_t number = oy * i.result_width() + ox;
        const auto residual_at = static_cast<std::uint32_t>(i.add_base + number * i.add_pitch);
    OUT_BLOCK:
        for (std::uint32_t row = 0; row < i.out_blocks(); row += ROWS) {
            Samples<1> sums[std::size_t{ROWS}];
            if (i.compressed()) {
                spectral_sums<ROWS>(i, program.weights, spectra_, Runs::of(i, oy, ox), row, sums);
            } else {
                plain_sums<ROWS>(i, program.weights, map, Runs::of(i, oy, ox), row, sums);
            }
        ROW:
            for (int r = 0; r < ROWS; ++r) {
                if (i.compressed()) inverse_transform<Block, 1>(block, sums[r]);
                const std::uint32_t begin = (row + static_cast<std::uint32_t>(r)) << i.log2_block;
                // behind the last channel, its word is filled with zeros
                const bool last = begin + i.block_size() >= i.out_channels;
                const std::uint32_t end =
                    last ? pixel_words(i.out_channels) * MAP_WORD : begin + i.block_size();
            CHANNEL:
                for (std::uint32_t c = begin; c < end; ++c) {
#pragma HLS PIPELINE II = 1
                    Lanes<Stored<W>, 1> residual, out;
                    residual.lane[0] = out.lane[0] = 0;
                    if (c < i.out_channels) {
                        if (i.adds())
                            residual.lane[0] = map[residual_at + c / MAP_WORD].element[c % MAP_WORD];
                        finish(sums[r][c - begin], OneEntry{program.affine[i.affine_base + c]}, residual,
                               out);
                    }
                    Stored<W>& target = map[pixel + c / MAP_WORD].element[c % MAP_WORD];
                    target = first ? out.lane[0] : larger(target, out.lane[0]);
                }
            }
        }
    }

    // invariant: between instructions its content does not matter
    typename Capacity::template Memory<Complex<Part, 1>, Role::Spectra> spectra_;
};

}  // namespace circ
