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
            order.alone = order.one.make(i, 1, image_words);
            if (!order.alone) continue;
            order.together = images > 1 && order.one.outputs < LANES && order.all.make(i, images, image_words);
            order.table.make(i, program.weights);
            order.entries.make(i, program.affine);
        }
    }

    template <class Map>
    void execute(std::uint32_t n, const Instruction& i, Program& program, Map maps, std::uint32_t images) {
        const Order& order = orders_[n];
        if (images > 1 && order.together) {
            lanes_.execute(i, order.all, order.table, order.entries, maps.image(0));
            return;
        }
        for (std::uint32_t image = 0; image < images; ++image) {
            if (order.alone) {
                lanes_.execute(i, order.one, order.table, order.entries, maps.image(image));
            } else {
                window_.execute(n, i, program, maps.at(image), 1);
            }
        }
    }

  private:
    struct Order {
        bool alone = false, together = false;  // which of the plans there are: of one image, of all at a time
        Plan one, all;
        Table table;
        Entries entries;
    };

    std::vector<Order> orders_;
    LaneUnit<W> lanes_;
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
