// SPDX-License-Identifier: BSD-3-Clause
// Every standard header of the engine. They come before a processor is chosen, so that what they define is
// compiled for any: the linker keeps one copy of it for all.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <iterator>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
