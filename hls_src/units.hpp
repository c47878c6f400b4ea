// SPDX-License-Identifier: BSD-3-Clause
// Which unit executes CIRCULANT: the fabric's, or a processor's, which plans a program's instructions when it is
// loaded.
#pragma once

#include <cstdint>
#include <vector>

#include "image.hpp"
#include "lanes.hpp"
#include "loader.hpp"
#include "plan.hpp"
#include "policy.hpp"
#include "rows.hpp"
#include "window.hpp"

namespace circ {

// A processor's unit: LANES results at a time, or where that wastes too much room, one.
template <int W, class Capacity, class Policy>
class PlannedUnit {
    using Program = ProgramMemory<W, Capacity>;

  public:
    // `images` images of `image_words` map words may be computed at a time.
    void prepare(Program& program, std::uint32_t images, std::uint32_t image_words) {
        window_.prepare(program, images, image_words);
        orders_.assign(program.instructions(), {});
        for (std::uint32_t n = 0; n < program.instructions(); ++n) {
            const Instruction i = program.code[n];
            if (!i.is(spec::Opcode::Circulant)) continue;
            Order& order = orders_[n];
            order.alone = order.one.make(i, 1, image_words) ? Way::Lanes : Way::Window;
            if (order.alone == Way::Window) continue;
            order.together = images > 1 && order.one.outputs < LANES && order.all.make(i, images, image_words);
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
    WindowUnit<W, Capacity, Policy> window_;
};

template <int W, class Capacity, class Policy>
struct CirculantUnit;

template <int W, class Capacity, int ROWS>
struct CirculantUnit<W, Capacity, Hardware<ROWS>> {
    using Type = WindowUnit<W, Capacity, Hardware<ROWS>>;
};

template <int W, class Capacity, int ROWS>
struct CirculantUnit<W, Capacity, Processor<ROWS>> {
    using Type = PlannedUnit<W, Capacity, Processor<ROWS>>;
};

}  // namespace circ
