// SPDX-License-Identifier: BSD-3-Clause
// What executes instructions: the fabric's units, or a processor's, which plan a program when it is loaded.
#pragma once

#include <cstdint>
#include <vector>

#include "channels.hpp"
#include "image.hpp"
#include "lanes.hpp"
#include "loader.hpp"
#include "pixelwise.hpp"
#include "plan.hpp"
#include "policy.hpp"
#include "rows.hpp"
#include "window.hpp"

namespace circ {

// A processor's unit: LANES results at a time, or where that wastes too much room, one.
template <int W, class Capacity>
class PlannedUnit {
    using Program = ProgramMemory<W, Capacity>;

  public:
    // `images` images of `image_words` map words may be computed at a time.
    void prepare(Program& program, std::uint32_t images, std::uint32_t image_words) {
        window_.prepare(program, images, image_words);
        orders_.assign(program.instructions(), {});
        for (std::uint32_t n = 0; n < program.instructions(); ++n) {
            const Instruction i = program.code[n];
            Order& order = orders_[n];
            if (!i.is(spec::Opcode::Circulant)) {
                order.entries.make(i, program.affine);
                continue;
            }
            order.alone = order.one.make(i, 1, image_words) ? Way::Lanes : Way::Window;
            if (order.alone == Way::Window) continue;
            order.together =
                images > 1 && order.one.outputs < LANES && order.all.make(i, images, image_words);
            order.magnitudes.make(i, program.weights);
            if (rows_pay(i, order.one)) {
                order.alone = Way::Rows;
                order.rows.make(i, program);
            }
            if (order.alone == Way::Lanes || order.together) {
                order.table.make(i, program.weights);
                order.entries.make(i, program.affine);
            }
        }
    }

    template <class Map>
    void execute(std::uint32_t n, const Instruction& i, Program& program, Map maps, std::uint32_t images) {
        const Order& o = orders_[n];
        if (!i.is(spec::Opcode::Circulant)) {
            const RealFinish finish(i, W);
            for (std::uint32_t image = 0; image < images; ++image)
                reduce_channels(i, finish, o.entries, maps.image(image));
            return;
        }
        if (images > 1 && o.together) {
            lanes_.execute(i, W, o.all, o.table, o.magnitudes, o.entries, maps.image(0));
            return;
        }
        for (std::uint32_t image = 0; image < images; ++image) {
            if (o.alone == Way::Lanes) {
                lanes_.execute(i, W, o.one, o.table, o.magnitudes, o.entries, maps.image(image));
            } else if (o.alone == Way::Rows) {
                rows_.execute(i, W, o.rows, o.magnitudes, maps.image(image));
            } else {
                window_.execute(n, i, program, maps.at(image), 1);
            }
        }
    }

  private:
    enum class Way { Window, Lanes, Rows };

    struct Order {
        Way alone = Way::Window;  // of one image
        bool together = false;    // whether there is a plan for all images at a time
        Plan one, all;
        Magnitudes magnitudes;
        Table table;
        Entries entries;
        RowTable rows;
    };

    // Whether block rows fill lanes better than output pixels. Their sums take about half as long again.
    static bool rows_pay(const Instruction& i, const Plan& plan) {
        if (i.gathers() || (!i.compressed() && i.adds())) return false;
        const std::uint64_t groups = (i.out_blocks() + LANES - 1) / LANES;
        return 3 * plan.outputs * groups < 2 * plan.tiles.size() * i.out_blocks();
    }

    std::vector<Order> orders_;
    LaneUnit lanes_;
    RowUnit rows_;
    WindowUnit<W, Capacity, Hardware<1>> window_;
};

// The fabric's: one result at a time.
template <int W, class Capacity, class Policy>
class FabricUnit {
    using Program = ProgramMemory<W, Capacity>;
    using Map = Maps<typename Capacity::template Memory<MapWord<Stored<W>>, Role::Map>>;

  public:
    void prepare(Program& program, std::uint32_t images, std::uint32_t image_words) {
        window_.prepare(program, images, image_words);
    }

    void execute(std::uint32_t n, const Instruction& i, Program& program, Map map, std::uint32_t images) {
        if (i.is(spec::Opcode::Circulant)) {
            window_.execute(n, i, program, map, images);
        } else {
            pixelwise_.execute(i, program, map);
        }
    }

  private:
    WindowUnit<W, Capacity, Policy> window_;
    PixelwiseUnit<W, Capacity> pixelwise_;
};

template <int W, class Capacity, class Policy>
struct Unit;

template <int W, class Capacity, int ROWS>
struct Unit<W, Capacity, Hardware<ROWS>> {
    using Type = FabricUnit<W, Capacity, Hardware<ROWS>>;
};

template <int W, class Capacity, std::uint32_t IMAGES>
struct Unit<W, Capacity, Processor<IMAGES>> {
    using Type = PlannedUnit<W, Capacity>;
};

}  // namespace circ
