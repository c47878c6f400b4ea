// SPDX-License-Identifier: BSD-3-Clause
// The engine for any processor.

#include "engine_std.hpp"

#define CIRC_KERNEL __attribute__((flatten))
#include "engine_core.hpp"

std::unique_ptr<circ_engine::Engine> circ_engine::make_engine(const Build& build) {
    return circ::make(build);
}
