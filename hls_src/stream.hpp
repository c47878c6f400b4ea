// SPDX-License-Identifier: BSD-3-Clause
// The stream of test benches: a queue with the interface of hls::stream.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <deque>

namespace circ {

// First in, first out. A core that reads an empty stream would hang in the fabric; here the program ends.
template <class T>
class QueueStream {
  public:
    bool empty() const { return beats_.empty(); }
    std::size_t size() const { return beats_.size(); }
    void write(const T& beat) { beats_.push_back(beat); }

    T read() {
        if (beats_.empty()) std::abort();
        const T beat = beats_.front();
        beats_.pop_front();
        return beat;
    }

  private:
    std::deque<T> beats_;
};

}  // namespace circ
