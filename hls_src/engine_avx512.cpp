// SPDX-License-Identifier: BSD-3-Clause
// The engine for x86-64 processors with AVX-512. Nothing but make_engine_avx512() may be called before that
// is known.

#include "engine.hpp"
#include "engine_std.hpp"

#ifdef CIRC_GENERATIONS
#pragma GCC target("arch=x86-64-v4")
#define circ circ_avx512
#define CIRC_KERNEL __attribute__((flatten))
#include "engine_core.hpp"

std::unique_ptr<circ_engine::Engine> circ_engine::make_engine_avx512(const Build& build) {
    return circ::make(build);
}
#endif
