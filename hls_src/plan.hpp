// SPDX-License-Identifier: BSD-3-Clause
// How a processor lays out an instruction: LANES neighbouring output pixels are computed side by side, so that what
// a tap sees of them has to lie side by side too. Made when a program is loaded.
//
// The input is kept as planes, one for each element or part of a spectral word. With a stride (or pooling, which
// makes output pixels as far apart) of s, a plane is split by row and column modulo s, and pixel (y, x) lies at
// (y / s, x / s) of its part: neighbouring outputs then see neighbours through every tap.
#pragma once

#include <cstdint>
#include <vector>

#include "circ_spec.hpp"
#include "image.hpp"

namespace circ {

inline constexpr std::uint32_t LANES = 16;

// Up to LANES input pixels: the map words where they begin, and their positions in a plane. Surplus lanes repeat
// the last pixel.
struct Group {
    std::uint32_t count;
    std::uint32_t from[LANES], to[LANES];
    bool side_by_side;  // positions follow one another
};

// Output pixels at up to LANES neighbouring positions, of which some may be none.
struct Tile {
    static constexpr std::uint32_t NONE = 0xFFFFFFFF;
    std::uint32_t count, position, pixel[LANES], residual[LANES];
};

// Rows or columns of an instruction.
struct Axis {
    std::uint32_t size, out, taps, stride, pad, pool;

    std::uint32_t step() const { return stride * pool; }             // input from an output to the next
    std::uint32_t reach() const { return (pool - 1) * stride + taps; }  // that an output sees
    std::uint32_t phases() const { return reach() < step() ? reach() : step(); }
    std::uint32_t grid() const { return out + (reach() - 1) / step(); }
};

class Plan {
  public:
    // Planes of `images` images that lie `image_words` apart; false if that takes more room than it is worth.
    bool make(const Instruction& i, std::uint32_t images, std::uint32_t image_words) {
        const Axis rows{i.in_height, i.out_height, i.tap_rows, i.stride_rows, i.pad_top, i.pool_rows};
        const Axis columns{i.in_width, i.out_width, i.tap_columns, i.stride_columns, i.pad_left, i.pool_columns};
        const bool spectra = i.compressed() && !i.gathers();
        per_phase = spectra ? 2 * i.in_blocks() * i.block_words() : pixel_words(i.in_channels) * MAP_WORD;
        const std::uint64_t area = std::uint64_t{rows.grid()} * columns.grid();
        const std::uint64_t wide = (area * images + LANES - 1) / LANES * LANES + LANES;  // a tile may begin at the end
        const std::uint64_t all = std::uint64_t{rows.phases()} * columns.phases() * per_phase;
        pools = i.pool_rows * i.pool_columns;
        steps_of_result = i.gathers() ? i.taps() * i.in_channels : static_cast<std::uint32_t>(i.row_blocks());
        if (wide > MOST || all * wide > MOST || std::uint64_t{pools} * steps_of_result > MOST) return false;
        plane = static_cast<std::uint32_t>(wide);
        planes = static_cast<std::uint32_t>(all);
        place_input(i, rows, columns, images, image_words);
        place_output(i, rows, columns, images, image_words);
        place_taps(i, rows, columns);
        return true;
    }

    // Share of the lanes that compute an output.
    double use() const { return static_cast<double>(outputs) / (LANES * static_cast<double>(tiles.size())); }

    std::uint32_t plane = 0, planes = 0;  // numbers in a plane, planes
    std::uint32_t per_phase = 0;
    std::uint32_t pools = 0, steps_of_result = 0;
    std::uint32_t outputs = 0;
    bool padded = false;              // some position is zero because no pixel is there
    std::vector<Group> groups;        // input
    std::vector<Tile> tiles;          // output
    std::vector<std::uint32_t> steps;  // for each result of a pool, the number that each of its steps begins with

  private:
    static constexpr std::uint32_t MOST = 1 << 22;

    void place_input(const Instruction& i, const Axis& rows, const Axis& columns, std::uint32_t images,
                     std::uint32_t image_words) {
        groups.clear();
        std::uint32_t filled = LANES, count = 0;
        // invariant: positions follow one another within a row of a phase
        for (std::uint32_t fy = 0; fy < rows.phases(); ++fy) {
            for (std::uint32_t fx = 0; fx < columns.phases(); ++fx) {
                const std::uint32_t first = (fy * columns.phases() + fx) * per_phase * plane;
                for (std::uint32_t n = 0; n < images; ++n) {
                    for (std::uint32_t gy = 0; gy < rows.grid(); ++gy) {
                        const std::uint32_t y = gy * rows.step() + fy - i.pad_top;  // wraps where it is negative
                        for (std::uint32_t gx = 0; gx < columns.grid(); ++gx) {
                            const std::uint32_t x = gx * columns.step() + fx - i.pad_left;
                            if (y >= i.in_height || x >= i.in_width) continue;
                            if (filled == LANES) {
                                groups.emplace_back();
                                filled = 0;
                            }
                            groups.back().from[filled] =
                                n * image_words + i.in_base + (y * i.in_width + x) * i.in_pitch;
                            groups.back().to[filled] = first + (n * rows.grid() + gy) * columns.grid() + gx;
                            groups.back().count = ++filled;
                            ++count;
                        }
                    }
                }
            }
        }
        padded = count != rows.phases() * columns.phases() * images * rows.grid() * columns.grid();
        if (!groups.empty()) {  // what is left of the last group repeats its last pixel
            Group& last = groups.back();
            for (; filled < LANES; ++filled) {
                last.from[filled] = last.from[filled - 1];
                last.to[filled] = last.to[filled - 1];
            }
        }
        for (Group& group : groups) {
            group.side_by_side = true;
            for (std::uint32_t n = 0; n < LANES; ++n) group.side_by_side &= group.to[n] == group.to[0] + n;
        }
    }

    void place_output(const Instruction& i, const Axis& rows, const Axis& columns, std::uint32_t images,
                      std::uint32_t image_words) {
        tiles.clear();
        outputs = images * i.out_height * i.out_width;
        const std::uint32_t result_width = i.out_width * i.pool_columns;
        for (std::uint32_t n = 0; n < images; ++n) {
            for (std::uint32_t y = 0; y < i.out_height; ++y) {
                for (std::uint32_t x = 0; x < i.out_width; ++x) {
                    const std::uint32_t position = (n * rows.grid() + y) * columns.grid() + x;
                    if (tiles.empty() || position >= tiles.back().position + LANES) {
                        tiles.emplace_back();
                        tiles.back().position = position;
                        for (std::uint32_t& pixel : tiles.back().pixel) pixel = Tile::NONE;
                        for (std::uint32_t& word : tiles.back().residual) word = i.adds() ? i.add_base : 0;
                    }
                    Tile& tile = tiles.back();
                    const std::uint32_t lane = position - tile.position;
                    tile.count = lane + 1;
                    tile.pixel[lane] = n * image_words + i.out_base + (y * i.out_width + x) * i.out_pitch;
                    tile.residual[lane] = n * image_words + i.add_base +
                                          (y * i.pool_rows * result_width + x * i.pool_columns) * i.add_pitch;
                }
            }
        }
    }

    void place_taps(const Instruction& i, const Axis& rows, const Axis& columns) {
        steps.clear();
        steps.reserve(std::size_t{pools} * steps_of_result);
        const bool spectra = i.compressed() && !i.gathers();
        const std::uint32_t blocks = i.gathers() ? i.in_channels : i.in_blocks();
        const std::uint32_t block_planes = i.gathers() ? 1 : spectra ? 2 * i.block_words() : MAP_WORD;
        for (std::uint32_t pool = 0; pool < pools; ++pool) {
            for (std::uint32_t tap = 0; tap < i.taps(); ++tap) {
                const std::uint32_t y = pool / i.pool_columns * i.stride_rows + tap / i.tap_columns;
                const std::uint32_t x = pool % i.pool_columns * i.stride_columns + tap % i.tap_columns;
                const std::uint32_t phase = y % rows.step() * columns.phases() + x % columns.step();
                const std::uint32_t shift = y / rows.step() * columns.grid() + x / columns.step();
                for (std::uint32_t j = 0; j < blocks; ++j) {
                    steps.push_back((phase * per_phase + j * block_planes) * plane + shift);
                }
            }
        }
    }
};

}  // namespace circ
