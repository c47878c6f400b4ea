// SPDX-License-Identifier: BSD-3-Clause
// Reader of tests/vectors/*.bin; tests/vectors/generate.py describes the format.
#pragma once

#include <array>
#include <cstdint>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace tb {

using Words = std::vector<std::uint64_t>;

struct Vector {
    std::uint32_t status, batch;
    Words image, inputs, outputs;
};

// One little-endian word, whatever the machine's order; false at the end of the file.
inline bool read_word(std::istream& file, std::uint64_t& word) {
    std::array<char, 8> bytes{};
    if (!file.read(bytes.data(), bytes.size())) return false;
    word = 0;
    for (std::size_t n = bytes.size(); n-- > 0;) word = word << 8 | static_cast<unsigned char>(bytes[n]);
    return true;
}

inline Words read_words(std::istream& file, std::uint64_t count) {
    Words words(count);
    for (std::uint64_t& word : words) {
        if (!read_word(file, word)) throw std::runtime_error("vector file ends within a record");
    }
    return words;
}

inline std::vector<Vector> read_vectors(const std::string& path) {
    constexpr std::uint64_t TAG = 0x3143455643524943;  // "CIRCVEC1"
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("cannot open " + path);
    std::vector<Vector> vectors;
    std::uint64_t tag = 0;
    while (read_word(file, tag)) {
        if (tag != TAG) throw std::runtime_error(path + " is not a vector file");
        const Words head = read_words(file, 5);
        Vector v{static_cast<std::uint32_t>(head[0]), static_cast<std::uint32_t>(head[1]), {}, {}, {}};
        v.image = read_words(file, head[2]);
        v.inputs = read_words(file, head[3]);
        v.outputs = read_words(file, head[4]);
        vectors.push_back(v);
    }
    return vectors;
}

}  // namespace tb
