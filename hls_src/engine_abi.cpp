// SPDX-License-Identifier: BSD-3-Clause
// The core as the emulator's engine: a plain C interface, loaded by circ_overlay/engines/hls.py.
// An engine is one core; calls on different engines may run at the same time, calls on one must not.
// No exception leaves this file: out of memory is a return value.

#include <cstdint>
#include <memory>
#include <new>

#include "circ_spec.hpp"
#include "engine.hpp"

#if defined(_WIN32)
#define CIRC_EXPORT extern "C" __declspec(dllexport)
#else
#define CIRC_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace {

using circ_engine::Build;
using circ_engine::Engine;

constexpr int OUT_OF_MEMORY = -1;
constexpr int WRONG_LENGTH = -2;

// An engine for the processor at hand.
std::unique_ptr<Engine> best_engine(const Build& build) {
#ifdef CIRC_GENERATIONS
    if (__builtin_cpu_supports("x86-64-v4")) return circ_engine::make_engine_avx512(build);
    if (__builtin_cpu_supports("x86-64-v3")) return circ_engine::make_engine_avx2(build);
#endif
    return circ_engine::make_engine(build);
}

template <class F>
int guarded(F&& f) noexcept {
    try {
        return f();
    } catch (const std::bad_alloc&) {
        return OUT_OF_MEMORY;
    } catch (...) {
        return OUT_OF_MEMORY;  // std::length_error: more than any machine has
    }
}

Engine* engine_of(void* handle) {
    return static_cast<Engine*>(handle);
}

}  // namespace

// SHA-256 of the specification that this library was built from, in hexadecimal.
CIRC_EXPORT const char* circ_spec_hash() {
    return circ::spec::SPEC_HASH;
}

// Images that are computed side by side: batches of a multiple of it waste nothing.
CIRC_EXPORT int circ_tile(void* handle) {
    return engine_of(handle)->images_at_a_time();
}

// A core without a program, or null: no memory, or a width that the specification does not have.
CIRC_EXPORT void* circ_create(int width, std::uint32_t weight_words, std::uint32_t map_elements,
                              std::uint32_t affine_channels, std::uint32_t instructions,
                              std::uint32_t spectra_words) {
    void* handle = nullptr;
    guarded([&] {
        if (instructions > std::uint32_t{circ::spec::MAX_LAYERS}) return 0;
        handle =
            best_engine({width, weight_words, map_elements, affine_channels, instructions, spectra_words})
                .release();
        return 0;
    });
    return handle;
}

CIRC_EXPORT void circ_destroy(void* handle) {
    delete engine_of(handle);
}

CIRC_EXPORT void circ_reset(void* handle) {
    engine_of(handle)->reset();
}

// Status of a LOAD of the `count` words of an image, or a negative error.
CIRC_EXPORT int circ_load(void* handle, const std::uint64_t* words, std::uint64_t count) {
    return guarded([&] {
        if (count == 0) {  // no packet is that short, so the core's loader need not know of it
            engine_of(handle)->reset();
            return static_cast<int>(circ::spec::Status::BadLength);
        }
        try {
            return engine_of(handle)->load(words, count);
        } catch (...) {
            engine_of(handle)->reset();
            throw;
        }
    });
}

// Status of a RUN: `in` holds whole images, `out` has room for the outputs of all; or a negative error.
CIRC_EXPORT int circ_run(void* handle, std::uint32_t batch, const std::uint64_t* in, std::uint64_t in_words,
                         std::uint64_t* out, std::uint64_t out_words) {
    return guarded([&] {
        Engine* engine = engine_of(handle);
        if (in_words < batch * engine->in_beats() || out_words < batch * engine->out_beats())
            return WRONG_LENGTH;
        return engine->run(batch, in, in_words, out, out_words);
    });
}
