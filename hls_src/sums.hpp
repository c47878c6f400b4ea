// SPDX-License-Identifier: BSD-3-Clause
// The sums behind a result of CIRCULANT, as the fabric forms them: a product of a weight block a cycle and
// row.
#pragma once

#include <cstdint>

#include "fixed.hpp"
#include "image.hpp"
#include "mac.hpp"
#include "runs.hpp"
#include "transform.hpp"
#include "types.hpp"

namespace circ {

// First weight word of output block `row`, or of the last one: surplus rows compute what nobody looks at.
inline std::uint32_t weights_of(const Instruction& i, std::uint32_t row) {
    const std::uint32_t last = i.out_blocks() - 1;
    return i.weight_base + (row < last ? row : last) * i.row_words();
}

// Spectra of ROWS output blocks, where the inverse transform looks for them.
template <int ROWS, class Weights, class Spectra>
void spectral_sums(const Instruction& i, Weights& weights, Spectra& spectra, const Runs& runs,
                   std::uint32_t row, Samples<1> (&sums)[std::size_t{ROWS}]) {
    const RoundShift<spec::ACC_BITS + 1> round(static_cast<int>(i.acc_shift));
    const std::uint32_t half = i.block_words();
WORD:
    for (std::uint32_t w = 0; w < half; ++w) {
        ComplexSum<Exact, 1> acc[std::size_t{ROWS}];
#pragma HLS ARRAY_PARTITION variable = acc complete dim = 0
        for (auto& a : acc) a.clear();
        std::uint32_t weight_row = runs.weight + w, in_row = runs.row;
    RUN:
        for (std::uint32_t run = 0; run < runs.count; ++run) {
            std::uint32_t at = in_row * runs.row_step + runs.offset + w, weight = weight_row;
        BLOCK:
            for (std::uint32_t n = 0; n < runs.length; ++n) {
#pragma HLS PIPELINE II = 1
#pragma HLS LOOP_TRIPCOUNT max = 64
                const auto& x = spectra[at];
            ROW:
                for (int r = 0; r < ROWS; ++r) {
#pragma HLS UNROLL
                    const std::uint32_t first = weights_of(i, row + static_cast<std::uint32_t>(r));
                    acc[r].add(x, Factors::of(weights[first + weight], w == 0));
                }
                at += half;
                weight += half;
            }
            weight_row += runs.weight_step;
            in_row = in_row + 1 == runs.rows ? 0 : in_row + 1;
        }
        const Place place(static_cast<int>(w));
    SUM:
        for (int r = 0; r < ROWS; ++r) {
#pragma HLS UNROLL
            acc[r].result(w == 0, round, sums[r][place.re], sums[r][place.im]);
        }
    }
}

// k = 1: ROWS outputs, each the sum of products of map words with two weight words.
template <int ROWS, class Weights, class Map>
void plain_sums(const Instruction& i, Weights& weights, const Map& map, const Runs& runs, std::uint32_t row,
                Samples<1> (&sums)[std::size_t{ROWS}]) {
    const RoundShift<spec::ACC_BITS + 1> round(static_cast<int>(i.acc_shift));
    Int<spec::ACC_BITS> acc[std::size_t{ROWS}];
#pragma HLS ARRAY_PARTITION variable = acc complete dim = 0
    for (auto& a : acc) a = 0;
    std::uint32_t weight_row = runs.weight, in_row = runs.row;
PLAIN_RUN:
    for (std::uint32_t run = 0; run < runs.count; ++run) {
        std::uint32_t pixel = i.in_base + in_row * runs.row_step + runs.offset, weight = weight_row;
    PLAIN_PIXEL:
        for (std::uint32_t n = 0; n < runs.length; ++n) {
        PLAIN_WORD:
            for (std::uint32_t m = 0; m < i.in_blocks(); ++m) {
#pragma HLS PIPELINE II = 2
#pragma HLS LOOP_TRIPCOUNT max = 64
                const auto& x = map[pixel + m];
            PLAIN_ELEMENT:
                for (std::uint32_t e = 0; e < MAP_WORD; ++e) {
#pragma HLS UNROLL
                    // the last word may hold elements of another map's channels
                    const Int<18> value =
                        m * MAP_WORD + e < i.in_channels ? Int<18>(x.element[e]) : Int<18>(0);
                PLAIN_ROW:
                    for (int r = 0; r < ROWS; ++r) {
#pragma HLS UNROLL
                        const std::uint32_t first = weights_of(i, row + static_cast<std::uint32_t>(r));
                        const auto& pair = weights[first + weight + e / 2];
                        const Int<18> factor = e % 2 == 0 ? pair.re : pair.im;
                        acc[r] = static_cast<Int<spec::ACC_BITS>>(acc[r] + product(value, factor));
                    }
                }
                weight += 2;
            }
            pixel += i.in_pitch;
        }
        weight_row += runs.weight_step;
        ++in_row;
    }
PLAIN_SUM:
    for (int r = 0; r < ROWS; ++r) {
#pragma HLS UNROLL
        sums[r][0].lane[0] = static_cast<Sample>(saturate<spec::SUM_BITS>(round(acc[r])));
    }
}

}  // namespace circ
