// SPDX-License-Identifier: BSD-3-Clause
// Test bench of the top function: every vector of this build's width, refusals, damaged images.
//
//     tb_core VECTOR_FILE [DAMAGED_IMAGES]
//
// Prints a summary; the exit status is 1 if anything differed. Runs under g++, sanitizers, and Vitis csim.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <random>

#include "../circ_core.hpp"
#include "../packet.hpp"
#include "vectors.hpp"

namespace {

namespace spec = circ::spec;
using circ::Beat;
using circ::make_beat;
using circ::Stream;
using spec::Status;
using tb::Vector;
using tb::Words;

int checks = 0, failures = 0;

// Counts a comparison; prints the first failures.
void expect(bool good, const char* what, std::uint64_t got, std::uint64_t wanted) {
    ++checks;
    if (good) return;
    if (++failures <= 20) {
        std::printf("FAIL %s: got %llx, expected %llx\n", what, static_cast<unsigned long long>(got),
                    static_cast<unsigned long long>(wanted));
    }
}

void expect_equal(const char* what, std::uint64_t got, std::uint64_t wanted) {
    expect(got == wanted, what, got, wanted);
}

// The registers and streams around the top function.
struct Board {
    Stream<Beat> in, out;
    std::uint32_t status = 0, magic = 0, spec_id = 0, config = 0, capability = 0, weight_words = 0;
    std::uint32_t map_elements = 0, affine_channels = 0, instructions = 0, program_id = 0, images = 0;
    std::uint32_t cycles_low = 0, cycles_high = 0, spectra_words = 0, layer_cycles[spec::MAX_LAYERS] = {};

    Status command(std::uint32_t number, std::uint32_t batch = 0) {
        circ_core(in, out, number, batch, status, magic, spec_id, config, capability, weight_words,
                  map_elements, affine_channels, instructions, program_id, images, cycles_low, cycles_high,
                  spectra_words, layer_cycles);
        return static_cast<Status>(status);
    }
    Status command(spec::Command number, std::uint32_t batch = 0) {
        return command(static_cast<std::uint32_t>(number), batch);
    }
    Status load(const Words& image) {
        for (std::size_t n = 0; n < image.size(); ++n) in.write(make_beat(image[n], n + 1 == image.size()));
        return command(spec::Command::Load);
    }
    // Inputs with TLAST in places where it means nothing.
    void feed(const Words& inputs) {
        for (std::size_t n = 0; n < inputs.size(); ++n) in.write(make_beat(inputs[n], n % 5 == 1));
    }
    // Empties the input; how many beats the core had left.
    std::size_t left_over() {
        std::size_t count = 0;
        for (; !in.empty(); ++count) in.read();
        return count;
    }
};

std::uint64_t code(Status status) {
    return static_cast<std::uint64_t>(status);
}

void check_vector(Board& board, const Vector& v) {
    expect_equal("load status", code(board.load(v.image)), v.status);
    expect_equal("beats left by the load", board.left_over(), 0);
    const bool loaded = v.status == code(Status::Ok);
    expect_equal("program id", board.program_id, loaded ? static_cast<std::uint32_t>(v.image[1]) : 0);
    if (!loaded) {
        board.in.write(make_beat(0, true));
        expect_equal("run without program", code(board.command(spec::Command::Run, 1)),
                     code(Status::NoProgram));
        expect_equal("beats it left", board.left_over(), 1);
        return;
    }
    board.in.write(make_beat(0, true));
    expect_equal("run of nothing", code(board.command(spec::Command::Run, 0)), code(Status::BadBatch));
    expect_equal("unknown command", code(board.command(77U, 1)), code(Status::BadCommand));
    expect_equal("beats they left", board.left_over(), 1);
    for (int repeat = 0; repeat < 2; ++repeat) {  // the second run meets the first one's state
        board.feed(v.inputs);
        expect_equal("run status", code(board.command(spec::Command::Run, v.batch)), code(Status::Ok));
        expect_equal("images", board.images, v.batch);
        expect_equal("input beats left", board.left_over(), 0);
        for (std::size_t n = 0; n < v.outputs.size(); ++n) {
            if (board.out.empty()) {
                expect_equal("output beats", n, v.outputs.size());
                break;
            }
            const Beat beat = board.out.read();
            expect_equal("output", static_cast<std::uint64_t>(beat.data), v.outputs[n]);
            expect_equal("TLAST", static_cast<bool>(beat.last), n + 1 == v.outputs.size());
        }
        expect_equal("output ended", board.out.empty(), true);
        while (!board.out.empty()) board.out.read();
    }
}

void check_identity(Board& board) {
    expect_equal("identify", code(board.command(spec::Command::Identify)), code(Status::Ok));
    expect_equal("magic", board.magic, spec::MAGIC);
    expect_equal("spec id", board.spec_id, spec::SPEC_ID);
    expect_equal("width", board.config & 0xFF, circ::BUILD_WIDTH);
    expect_equal("spec version", board.config >> 24, std::uint32_t{spec::SPEC_VERSION});
    const circ::Limits limits = circ::BuildCapacity::limits();
    expect_equal("weight words", board.weight_words, limits.weight_words);
    expect_equal("map elements", board.map_elements, limits.map_elements);
    expect_equal("affine channels", board.affine_channels, limits.affine_channels);
    expect_equal("instructions", board.instructions, limits.instructions);
    expect_equal("spectra words", board.spectra_words, limits.spectra_words);
    expect_equal("capability", board.capability, spec::default_build::CAPABILITY);
}

// The same status and outputs from the emulator's policy, whose memories grow. Only for native numbers: the
// vendor's types belong to the fabric. A damaged image, which has no outputs to compare, is only run.
template <bool NATIVE>
void check_processor_policy(const Vector& v) {
    if constexpr (NATIVE) {
        const circ::HeapCapacity capacity(circ::BuildCapacity::limits());
        circ::Core<circ::BUILD_WIDTH, circ::HeapCapacity, circ::Processor<>> core(capacity);
        circ::PacketReader image(v.image.data(), v.image.size());
        expect_equal("processor: load status", code(core.load(image)), v.status);
        if (!core.has_program()) return;
        Words outputs(core.out_beats() * v.batch);
        circ::PacketReader in(v.inputs.data(), v.inputs.size());
        circ::PacketWriter out(outputs.data(), outputs.size());
        std::uint32_t images = 0;
        expect_equal("processor: run", code(core.run(v.batch, in, out, images)), code(Status::Ok));
        for (std::size_t n = 0; n < v.outputs.size(); ++n)
            expect_equal("processor", outputs[n], v.outputs[n]);
    }
}

// Steps that an image would take: damage may ask for more than anyone waits for.
double steps(const Words& image) {
    double sum = 0;
    for (std::size_t n = 0; n < image[2] >> 32; ++n) {
        circ::Word words[circ::INSTRUCTION_WORDS];
        std::copy_n(
            image.begin() + static_cast<std::ptrdiff_t>(spec::HEADER_WORDS + n * spec::INSTRUCTION_WORDS),
            circ::INSTRUCTION_WORDS, words);
        const circ::Instruction i = circ::decode_instruction(words);
        const double results = static_cast<double>(i.result_height()) * static_cast<double>(i.result_width());
        const double input = static_cast<double>(i.in_height) * i.in_width * i.in_channels;
        sum += results * (i.taps() * static_cast<double>(i.in_channels + 99)) * i.out_channels + 99 * input;
    }
    return sum;
}

// Damaged images: whatever the core takes or refuses, it reads the whole packet and stays within its memories
// (which the sanitizers watch).
void check_damaged(Board& board, const std::vector<Vector>& vectors, int count) {
    constexpr double MOST_STEPS = 1e7;
    std::mt19937_64 random(1);
    int taken = 0, run = 0;
    for (int n = 0; n < count; ++n) {
        Words image = vectors[random() % vectors.size()].image;
        for (std::uint64_t flips = random() % 4 + 1; flips-- > 0;) {
            // mostly header and instructions: the rest is data that nothing checks
            const std::size_t range =
                random() % 8 == 0 ? image.size() : std::min<std::size_t>(image.size(), 32);
            image[random() % range] ^= std::uint64_t{1} << random() % 64;
        }
        if (random() % 16 == 0) image.resize(random() % image.size() + 1);
        const Status status = board.load(image);
        expect(status <= Status::WidthMismatch, "damaged: status", code(status), 0);
        expect_equal("damaged: beats left", board.left_over(), 0);
        Vector v{static_cast<std::uint32_t>(status), 1, image, {}, {}};
        if (status == Status::Ok) {
            ++taken;
            if (steps(image) > MOST_STEPS) continue;
            ++run;
            v.batch = random() % 4 == 0 ? 17 : 2;
            v.inputs.resize(v.batch * ((image[4] >> 32) + 1));  // a control beat and as many as there can be
            for (std::uint64_t& word : v.inputs) word = random();
            board.feed(v.inputs);
            expect_equal("damaged: run", code(board.command(spec::Command::Run, v.batch)), code(Status::Ok));
            board.left_over();
            while (!board.out.empty()) board.out.read();
        } else {
            expect_equal("damaged: program id", board.program_id, 0);
        }
        check_processor_policy<circ::NATIVE_TYPES>(v);
    }
    std::printf("%d damaged images, %d of them still programs, %d of these run\n", count, taken, run);
}

}  // namespace

int main(int argc, char** argv) try {
    if (argc < 2) {
        std::printf("usage: tb_core VECTOR_FILE [DAMAGED_IMAGES]\n");
        return 2;
    }
    static Board board;
    check_identity(board);
    const std::vector<Vector> vectors = tb::read_vectors(argv[1]);
    for (const Vector& v : vectors) {
        check_vector(board, v);
        check_processor_policy<circ::NATIVE_TYPES>(v);
    }
    check_damaged(board, vectors, argc > 2 ? std::atoi(argv[2]) : 500);
    std::printf("W=%d, %s types: %zu vectors, %d checks, %d failures\n", static_cast<int>(circ::BUILD_WIDTH),
                circ::NATIVE_TYPES ? "native" : "ap_int", vectors.size(), checks, failures);
    return failures == 0 && !vectors.empty() ? 0 : 1;
} catch (const std::exception& error) {
    std::printf("FAIL %s\n", error.what());
    return 1;
}
