// SPDX-License-Identifier: BSD-3-Clause
// Body of engine_*.cpp, which say for which processor. Namespace circ has another name in each of them: what
// is compiled for one processor never meets another's.
#pragma once

#include <cstdint>
#include <memory>

#include "circ_spec.hpp"
#include "core.hpp"
#include "engine.hpp"
#include "packet.hpp"
#include "policy.hpp"

namespace circ {

template <int W>
class WidthEngine final : public circ_engine::Engine {
  public:
    explicit WidthEngine(const Limits& limits) : core_(HeapCapacity(limits)) {}
    void reset() override { core_.reset(); }
    int load(const std::uint64_t* words, std::uint64_t count) override {
        PacketReader in(words, count);
        return static_cast<int>(core_.load(in));
    }
    int run(std::uint32_t batch, const std::uint64_t* in, std::uint64_t in_words, std::uint64_t* out,
            std::uint64_t out_words) override {
        PacketReader reader(in, in_words);
        PacketWriter writer(out, out_words);
        std::uint32_t images = 0;
        return static_cast<int>(core_.run(batch, reader, writer, images));
    }
    std::uint64_t in_beats() const override { return core_.has_program() ? core_.in_beats() : 0; }
    std::uint64_t out_beats() const override { return core_.has_program() ? core_.out_beats() : 0; }
    int images_at_a_time() const override { return Processor<>::IMAGES; }

  private:
    Core<W, HeapCapacity, Processor<>> core_;
};

template <int W>
std::unique_ptr<circ_engine::Engine> make(int width, const Limits& limits) {
    if (width == W) return std::make_unique<WidthEngine<W>>(limits);
    if constexpr (W < spec::WIDTH_MAX) return make<W + 1>(width, limits);
    return nullptr;
}

inline std::unique_ptr<circ_engine::Engine> make(const circ_engine::Build& build) {
    return make<spec::WIDTH_MIN>(build.width, {build.weight_words, build.map_elements, build.affine_channels,
                                               build.instructions, build.spectra_words});
}

}  // namespace circ
