// SPDX-License-Identifier: BSD-3-Clause
// Which part of a window lies inside the input, and where in the memories that part is.
#pragma once

#include <cstdint>

#include "image.hpp"

namespace circ {

// The part of one dimension of a window that lies inside the input.
struct Overlap {
    std::uint32_t skipped, begin, count;  // taps before the input; first row or column inside; how many

    // invariant: coordinates stay below 2**31: 2**16 outputs x 255 results x stride 255 is the largest
    Overlap(std::uint32_t result, std::uint32_t stride, std::uint32_t pad, std::uint32_t taps,
            std::uint32_t size)
        : skipped(0), begin(0), count(0) {
        const auto first = static_cast<std::int64_t>(std::uint64_t{result} * stride) - pad;
        const auto outside = first < 0 ? static_cast<std::uint32_t>(-first) : 0;
        skipped = outside < taps ? outside : taps;
        if (first < 0 ? skipped < taps : first < size) {
            begin = first < 0 ? 0 : static_cast<std::uint32_t>(first);
            count = taps - skipped < size - begin ? taps - skipped : size - begin;
        }
    }
};

// What a result's window meets, tap row by tap row, taps outside the input left out. Within a tap row the
// weights lie one behind the other, and so do the spectra of neighbouring pixels.
struct Runs {
    std::uint32_t count, length;        // tap rows; blocks of each, k = 1: pixels
    std::uint32_t weight, weight_step;  // first word of the weights, and from a tap row to the next
    std::uint32_t row, rows,
        row_step;          // row in its memory, rows until that begins again, words from row to row
    std::uint32_t offset;  // words before the first block within the row

    // What a result's window meets of weights and input.
    static Runs of(const Instruction& i, std::uint32_t oy, std::uint32_t ox) {
        const std::uint32_t words =
            i.in_blocks() * i.block_words();  // of a pixel, or with GATHER of the window
        if (i.gathers()) return {1, i.in_blocks(), 0, 0, 0, 1, 0, 0};
        const Overlap rows(oy, i.stride_rows, i.pad_top, i.tap_rows, i.in_height);
        const Overlap columns(ox, i.stride_columns, i.pad_left, i.tap_columns, i.in_width);
        const std::uint32_t step = i.tap_columns * words;
        const std::uint32_t weight = rows.skipped * step + columns.skipped * words;
        const std::uint32_t count = columns.count == 0 ? 0 : rows.count;
        if (!i.compressed())
            return {count,
                    columns.count,
                    weight,
                    step,
                    rows.begin,
                    i.in_height,
                    i.in_width * i.in_pitch,
                    columns.begin * i.in_pitch};
        return {count,
                columns.count * i.in_blocks(),
                weight,
                step,
                rows.begin % i.ring_rows(),
                i.ring_rows(),
                i.in_width * words,
                columns.begin * words};
    }
};

}  // namespace circ
