// SPDX-License-Identifier: BSD-3-Clause
// The core as the emulator's engine: a plain C interface, loaded by circ_overlay/engines/hls.py.
// An engine is one core; calls on different engines may run at the same time, calls on one must not.
// No exception leaves this file: out of memory is a return value.

#include <cstdint>  // and with it __GLIBC__, whose loader can choose between clones

#if !defined(CIRC_NO_CLONES) && defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__)
#if __GNUC__ >= 12
// One library for every x86-64 processor: the inner loops are compiled for three generations of vector units,
// and the loader picks. `flatten` draws their small functions in, so that these are compiled likewise.
#define CIRC_KERNEL __attribute__((flatten, target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#endif
#endif

#include <memory>
#include <new>

#include "circ_spec.hpp"
#include "core.hpp"
#include "packet.hpp"
#include "policy.hpp"

#if defined(_WIN32)
#define CIRC_EXPORT extern "C" __declspec(dllexport)
#else
#define CIRC_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace {

using circ::HeapCapacity;
using circ::Limits;
using Policy = circ::Processor<2>;

constexpr int OUT_OF_MEMORY = -1;
constexpr int WRONG_LENGTH = -2;

// A core of any width behind one interface.
class Engine {
  public:
    virtual ~Engine() = default;
    virtual void reset() = 0;
    virtual circ::spec::Status load(circ::PacketReader in) = 0;
    virtual circ::spec::Status run(std::uint32_t batch, circ::PacketReader in, circ::PacketWriter out) = 0;
    virtual std::uint64_t in_beats() = 0;
    virtual std::uint64_t out_beats() = 0;
};

template <int W>
class WidthEngine final : public Engine {
  public:
    explicit WidthEngine(const Limits& limits) : core_(HeapCapacity(limits)) {}
    void reset() override { core_.reset(); }
    circ::spec::Status load(circ::PacketReader in) override { return core_.load(in); }
    circ::spec::Status run(std::uint32_t batch, circ::PacketReader in, circ::PacketWriter out) override {
        std::uint32_t images = 0;
        return core_.run(batch, in, out, images);
    }
    std::uint64_t in_beats() override { return core_.has_program() ? core_.in_beats() : 0; }
    std::uint64_t out_beats() override { return core_.has_program() ? core_.out_beats() : 0; }

  private:
    circ::Core<W, HeapCapacity, Policy> core_;
};

template <int W>
std::unique_ptr<Engine> make_engine(int width, const Limits& limits) {
    if (width == W) return std::make_unique<WidthEngine<W>>(limits);
    if constexpr (W < circ::spec::WIDTH_MAX) return make_engine<W + 1>(width, limits);
    return nullptr;
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
CIRC_EXPORT int circ_tile() {
    return Policy::IMAGES;
}

// A core without a program, or null: no memory, or a width that the specification does not have.
CIRC_EXPORT void* circ_create(int width, std::uint32_t weight_words, std::uint32_t map_elements,
                              std::uint32_t affine_channels, std::uint32_t instructions,
                              std::uint32_t spectra_words) {
    void* handle = nullptr;
    guarded([&] {
        const Limits limits{weight_words, map_elements, affine_channels, instructions, spectra_words};
        if (instructions > std::uint32_t{circ::spec::MAX_LAYERS}) return 0;
        handle = make_engine<circ::spec::WIDTH_MIN>(width, limits).release();
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
            return static_cast<int>(engine_of(handle)->load({words, count}));
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
        return static_cast<int>(engine->run(batch, {in, in_words}, {out, out_words}));
    });
}
