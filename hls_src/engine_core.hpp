// SPDX-License-Identifier: BSD-3-Clause
// Body of engine_*.cpp, which say for which processor. Namespace circ has another name in each of them: what
// is compiled for one processor never meets another's.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "circ_spec.hpp"
#include "core.hpp"
#include "engine.hpp"
#include "packet.hpp"
#include "policy.hpp"

namespace circ {

// A core that recognises the programs it was last loaded with: one that is cut into segments is loaded over
// and over. Each has a core of its own, with its own maps, whose content a LOAD leaves open.
template <int W>
class WidthEngine final : public circ_engine::Engine {
  public:
    explicit WidthEngine(const Limits& limits) : limits_(limits) {}
    void reset() override { current_ = nullptr; }

    int load(const std::uint64_t* words, std::uint64_t count) override {
        current_ = nullptr;
        for (auto known = known_.begin(); known != known_.end(); ++known) {
            const auto& kept = (*known)->words;
            if (kept.size() != count || !std::equal(kept.begin(), kept.end(), words)) continue;
            std::rotate(known_.begin(), known, known + 1);  // the latest one first
            current_ = &known_.front()->core;
            return static_cast<int>(spec::Status::Ok);
        }
        auto fresh = std::make_unique<Known>(limits_);
        PacketReader in(words, count);
        const spec::Status status = fresh->core.load(in);
        if (status != spec::Status::Ok) return static_cast<int>(status);
        fresh->words.assign(words, words + count);
        if (known_.size() == MOST) known_.pop_back();
        known_.insert(known_.begin(), std::move(fresh));
        current_ = &known_.front()->core;
        return static_cast<int>(status);
    }

    int run(std::uint32_t batch, const std::uint64_t* in, std::uint64_t in_words, std::uint64_t* out,
            std::uint64_t out_words) override {
        if (current_ == nullptr) return static_cast<int>(spec::Status::NoProgram);
        PacketReader reader(in, in_words);
        PacketWriter writer(out, out_words);
        std::uint32_t images = 0;
        return static_cast<int>(current_->run(batch, reader, writer, images));
    }

    std::uint64_t in_beats() const override { return current_ != nullptr ? current_->in_beats() : 0; }
    std::uint64_t out_beats() const override { return current_ != nullptr ? current_->out_beats() : 0; }
    int images_at_a_time() const override { return Processor<>::IMAGES; }

  private:
    static constexpr std::size_t MOST = 16;
    using AnyCore = Core<W, HeapCapacity, Processor<>>;

    struct Known {
        std::vector<std::uint64_t> words;
        AnyCore core;
        explicit Known(const Limits& limits) : core(HeapCapacity(limits)) {}
    };

    Limits limits_;
    std::vector<std::unique_ptr<Known>> known_;
    AnyCore* current_ = nullptr;
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
