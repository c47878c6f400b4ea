// SPDX-License-Identifier: BSD-3-Clause
// Top function of the core for Vitis HLS, and the build parameters that a synthesis script may set.
#pragma once

#include "circ_spec.hpp"
#include "core.hpp"
#include "policy.hpp"
#include "types.hpp"

// Build parameters, given as -D by hls_src/vitis; capacities are what the registers then report.
#ifndef CIRC_WIDTH
#define CIRC_WIDTH circ::spec::default_build::WIDTH
#endif
#ifndef CIRC_ROWS
#define CIRC_ROWS 2  // block rows side by side: a block RAM has two ports
#endif
#ifndef CIRC_WEIGHT_WORDS
#define CIRC_WEIGHT_WORDS circ::spec::default_build::WEIGHT_WORDS
#endif
#ifndef CIRC_MAP_ELEMENTS
#define CIRC_MAP_ELEMENTS circ::spec::default_build::MAP_ELEMENTS
#endif
#ifndef CIRC_AFFINE_CHANNELS
#define CIRC_AFFINE_CHANNELS circ::spec::default_build::AFFINE_CHANNELS
#endif
#ifndef CIRC_INSTRUCTIONS
#define CIRC_INSTRUCTIONS circ::spec::default_build::INSTRUCTIONS
#endif
#ifndef CIRC_SPECTRA_WORDS
#define CIRC_SPECTRA_WORDS circ::spec::default_build::SPECTRA_WORDS
#endif

namespace circ {

inline constexpr int BUILD_WIDTH = CIRC_WIDTH;
using BuildPolicy = Hardware<CIRC_ROWS>;
using BuildCapacity = FixedCapacity<CIRC_WEIGHT_WORDS, CIRC_MAP_ELEMENTS, CIRC_AFFINE_CHANNELS,
                                    CIRC_INSTRUCTIONS, CIRC_SPECTRA_WORDS>;

}  // namespace circ

// One command of the core; spec.Command names them, spec.Status the outcomes.
//
//   in            AXI4-Stream slave, 64 bits: the program image of a LOAD up to TLAST, the images of a RUN
//   out           AXI4-Stream master, 64 bits: the outputs of a RUN, TLAST on the batch's last beat
//   command ...   AXI4-Lite slave, with the ap_ctrl_hs handshake of the return value at offset 0; every
//                 scalar that the core writes is a read-only register
//   cycles_*, layer_cycles
//                 0 in this flow: C++ cannot count clocks portably. The RTL core counts them; the emulated
//                 board fills them in from the cycle model.
void circ_core(circ::Stream<circ::Beat>& in, circ::Stream<circ::Beat>& out, std::uint32_t command,
               std::uint32_t batch, std::uint32_t& status, std::uint32_t& magic, std::uint32_t& spec_id,
               std::uint32_t& config, std::uint32_t& capability, std::uint32_t& weight_words,
               std::uint32_t& map_elements, std::uint32_t& affine_channels, std::uint32_t& instructions,
               std::uint32_t& program_id, std::uint32_t& images, std::uint32_t& cycles_low,
               std::uint32_t& cycles_high, std::uint32_t& spectra_words,
               std::uint32_t layer_cycles[circ::spec::MAX_LAYERS]);
