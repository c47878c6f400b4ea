// SPDX-License-Identifier: BSD-3-Clause
// The top function: registers and streams around one core. The core itself is core.hpp.

#include "circ_core.hpp"

namespace {

namespace spec = circ::spec;

constexpr std::uint32_t place(spec::Field field, std::uint32_t value) {
    return value << field.lsb;
}

// A butterfly every other cycle takes in one sample a cycle; a block row side by side is a lane.
constexpr std::uint32_t SAMPLES = 1;

constexpr std::uint32_t CONFIG = place(spec::config::ACTIVATION_BITS, circ::BUILD_WIDTH) |
                                 place(spec::config::LANES, circ::BuildPolicy::ROWS) |
                                 place(spec::config::SAMPLES, SAMPLES) |
                                 place(spec::config::SPEC_VERSION, spec::SPEC_VERSION);

constexpr std::uint32_t CAPABILITY = spec::default_build::CAPABILITY;
static_assert(CAPABILITY ==
                  (spec::CAPABILITY_CIRCULANT | spec::CAPABILITY_SIGMOID_TANH | spec::CAPABILITY_INPUT_U8 |
                   spec::CAPABILITY_POOLING | spec::CAPABILITY_PRODUCT | spec::CAPABILITY_UNCOMPRESSED |
                   spec::CAPABILITY_GATHER | spec::CAPABILITY_SEQUENCE),
              "this source executes everything there is");

// The pragmas below need literals; these lines fail when the specification moves a register.
static_assert(circ::spec::offset::COMMAND == 0x10);
static_assert(circ::spec::offset::BATCH == 0x18);
static_assert(circ::spec::offset::STATUS == 0x20);
static_assert(circ::spec::offset::MAGIC == 0x28);
static_assert(circ::spec::offset::SPEC_ID == 0x30);
static_assert(circ::spec::offset::CONFIG == 0x38);
static_assert(circ::spec::offset::CAPABILITY == 0x40);
static_assert(circ::spec::offset::WEIGHT_WORDS == 0x48);
static_assert(circ::spec::offset::MAP_ELEMENTS == 0x50);
static_assert(circ::spec::offset::AFFINE_CHANNELS == 0x58);
static_assert(circ::spec::offset::INSTRUCTIONS == 0x60);
static_assert(circ::spec::offset::PROGRAM_ID == 0x68);
static_assert(circ::spec::offset::IMAGES == 0x70);
static_assert(circ::spec::offset::CYCLES_LOW == 0x78);
static_assert(circ::spec::offset::CYCLES_HIGH == 0x80);
static_assert(circ::spec::offset::SPECTRA_WORDS == 0x88);
static_assert(circ::spec::offset::LAYER_CYCLES == 0x100);

}  // namespace

void circ_core(circ::Stream<circ::Beat>& in, circ::Stream<circ::Beat>& out, std::uint32_t command,
               std::uint32_t batch, std::uint32_t& status, std::uint32_t& magic, std::uint32_t& spec_id,
               std::uint32_t& config, std::uint32_t& capability, std::uint32_t& weight_words,
               std::uint32_t& map_elements, std::uint32_t& affine_channels, std::uint32_t& instructions,
               std::uint32_t& program_id, std::uint32_t& images, std::uint32_t& cycles_low,
               std::uint32_t& cycles_high, std::uint32_t& spectra_words,
               std::uint32_t layer_cycles[circ::spec::MAX_LAYERS]) {
#pragma HLS INTERFACE axis port = in
#pragma HLS INTERFACE axis port = out
#pragma HLS INTERFACE s_axilite port = return
#pragma HLS INTERFACE s_axilite port = command offset = 0x10
#pragma HLS INTERFACE s_axilite port = batch offset = 0x18
#pragma HLS INTERFACE s_axilite port = status offset = 0x20
#pragma HLS INTERFACE s_axilite port = magic offset = 0x28
#pragma HLS INTERFACE s_axilite port = spec_id offset = 0x30
#pragma HLS INTERFACE s_axilite port = config offset = 0x38
#pragma HLS INTERFACE s_axilite port = capability offset = 0x40
#pragma HLS INTERFACE s_axilite port = weight_words offset = 0x48
#pragma HLS INTERFACE s_axilite port = map_elements offset = 0x50
#pragma HLS INTERFACE s_axilite port = affine_channels offset = 0x58
#pragma HLS INTERFACE s_axilite port = instructions offset = 0x60
#pragma HLS INTERFACE s_axilite port = program_id offset = 0x68
#pragma HLS INTERFACE s_axilite port = images offset = 0x70
#pragma HLS INTERFACE s_axilite port = cycles_low offset = 0x78
#pragma HLS INTERFACE s_axilite port = cycles_high offset = 0x80
#pragma HLS INTERFACE s_axilite port = spectra_words offset = 0x88
#pragma HLS INTERFACE s_axilite port = layer_cycles offset = 0x100
    // invariant: between commands the program on chip is whole and checked, or there is none
    static circ::Core<circ::BUILD_WIDTH, circ::BuildCapacity, circ::BuildPolicy> core;
    static std::uint32_t images_of_last_run = 0;

    spec::Status outcome = spec::Status::BadCommand;
    switch (static_cast<spec::Command>(command)) {
        case spec::Command::Identify:
            outcome = spec::Status::Ok;
            break;
        case spec::Command::Load:
            outcome = core.load(in);
            break;
        case spec::Command::Run:
            outcome = core.run(batch, in, out, images_of_last_run);
            break;
    }

    const circ::Limits limits = core.limits();
    status = static_cast<std::uint32_t>(outcome);
    magic = spec::MAGIC;
    spec_id = spec::SPEC_ID;
    config = CONFIG;
    capability = CAPABILITY;
    weight_words = limits.weight_words;
    map_elements = limits.map_elements;
    affine_channels = limits.affine_channels;
    instructions = limits.instructions;
    spectra_words = limits.spectra_words;
    program_id = core.program_id();
    images = images_of_last_run;
    cycles_low = 0;
    cycles_high = 0;
CYCLES:
    for (int n = 0; n < spec::MAX_LAYERS; ++n) {
#pragma HLS PIPELINE II = 1
        layer_cycles[n] = 0;
    }
}
