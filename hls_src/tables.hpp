// SPDX-License-Identifier: BSD-3-Clause
// Weights and affine entries of an instruction, laid out for a processor when a program is loaded.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <vector>

#include "image.hpp"
#include "kernels.hpp"
#include "mac.hpp"

namespace circ {

// Of each spectral word, what its sums cannot exceed, in units of its largest part.
struct Magnitudes {
    std::uint64_t of[MAX_BLOCK / 2];

    // The largest sum over a row of |re| + |im|, for two real products the larger one. k = 1: all in word 0.
    template <class Weights>
    void make(const Instruction& i, Weights& weights) {
        const std::uint32_t half = i.block_words(), row = i.row_words();
        std::fill(std::begin(of), std::end(of), 0);
        const auto absolute = [](std::int32_t v) { return static_cast<std::uint64_t>(v < 0 ? -v : v); };
        for (std::uint32_t r = 0; r < i.out_blocks(); ++r) {
            std::uint64_t re[MAX_BLOCK / 2] = {}, im[MAX_BLOCK / 2] = {};
            for (std::uint32_t n = 0; n < row; ++n) {
                const auto& word = weights[i.weight_base + r * row + n];
                re[i.compressed() ? n % half : 0] += absolute(word.re);
                im[i.compressed() ? n % half : 0] += absolute(word.im);
            }
            for (std::uint32_t w = 0; w < half; ++w) {
                const bool real = i.compressed() && w == 0;
                of[w] = std::max(of[w], real ? std::max(re[w], im[w]) : re[w] + im[w]);
            }
        }
    }

    // Whether 32 bits hold all sums of word w; `peak` is the largest magnitude met in each lane.
    bool fit(std::uint32_t w, const Ints& peaks) const {
        std::int32_t peak = 0;
        for (std::uint32_t n = 0; n < HALF; ++n) peak = std::max(peak, peaks[n]);
        return of[w] * static_cast<std::uint64_t>(peak) < std::uint64_t{1} << 31;
    }
};

// Weights of an instruction in the order in which its sums take them: rows in groups of 4, then 2 or 1.
struct Table {
    std::vector<Triple> factors;             // group by group, word by word, step by step, row by row
    std::vector<std::int32_t> plain;         // k = 1: by four outputs, step by step, output by output

    template <class Weights>
    void make(const Instruction& i, Weights& weights) {
        const std::uint32_t half = i.block_words(), row = i.row_words(), steps = row / half, rows = i.out_blocks();
        factors.clear();
        plain.clear();
        if (!i.compressed()) {
            plain.resize(std::size_t{(rows + 3) / 4} * steps * 16);
            for (std::uint32_t r = 0; r < rows; ++r) {
                for (std::uint32_t n = 0; n < row; ++n) {
                    const auto& word = weights[i.weight_base + r * row + n];
                    std::int32_t* to = &plain[((std::size_t{r / 4} * steps + n / 2) * 4 + r % 4) * 4 + n % 2 * 2];
                    to[0] = word.re;
                    to[1] = word.im;
                }
            }
            return;
        }
        factors.reserve(std::size_t{rows} * row);
        for (std::uint32_t first = 0, count = 0; first < rows; first += count) {
            count = group(rows - first);
            for (std::uint32_t w = 0; w < half; ++w) {
                for (std::uint32_t n = 0; n < steps; ++n) {
                    for (std::uint32_t r = 0; r < count; ++r) {
                        const auto& word = weights[i.weight_base + (first + r) * row + n * half + w];
                        const Factors f = Factors::of(word, w == 0);
                        factors.push_back({f.first, f.minus, f.plus});
                    }
                }
            }
        }
    }

    // Rows that are summed side by side where `left` remain.
    static std::uint32_t group(std::uint32_t left) { return left >= 4 ? 4 : left >= 2 ? 2 : 1; }
};

// Affine entries as doubles.
struct Entries {
    std::vector<double> scale, bias;

    template <class Affines>
    void make(const Instruction& i, Affines& affine) {
        const std::uint32_t room = (i.out_channels + HALF - 1) / HALF * HALF;
        scale.assign(room, 0);
        bias.assign(room, 0);
        for (std::uint32_t c = 0; c < i.out_channels; ++c) {
            scale[c] = affine[i.affine_base + c].scale;
            bias[c] = static_cast<double>(affine[i.affine_base + c].bias);
        }
    }
};

}  // namespace circ
