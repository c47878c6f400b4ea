// SPDX-License-Identifier: BSD-3-Clause
// The emulator's engine behind its C interface: one source, compiled for several generations of processors.
#pragma once

#include <cstdint>
#include <memory>

namespace circ_engine {

// What may differ between cores of one specification.
struct Build {
    int width;
    std::uint32_t weight_words, map_elements, affine_channels, instructions, spectra_words;
};

// A core of any width. Statuses are spec.Status.
class Engine {
  public:
    virtual ~Engine() = default;
    virtual void reset() = 0;
    virtual int load(const std::uint64_t* words, std::uint64_t count) = 0;
    virtual int run(std::uint32_t batch, const std::uint64_t* in, std::uint64_t in_words, std::uint64_t* out,
                    std::uint64_t out_words) = 0;
    virtual std::uint64_t in_beats() const = 0;
    virtual std::uint64_t out_beats() const = 0;
    virtual int images_at_a_time() const = 0;
};

// Null if the specification does not have the width. For any processor, and for x86-64 with AVX2 or AVX-512.
std::unique_ptr<Engine> make_engine(const Build& build);
std::unique_ptr<Engine> make_engine_avx2(const Build& build);
std::unique_ptr<Engine> make_engine_avx512(const Build& build);

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#if __GNUC__ >= 12
#define CIRC_GENERATIONS  // this compiler can build them within one library
#endif
#endif

}  // namespace circ_engine
