// What every kernel shares: fixed-width names, unaligned little-endian access, the one error for bad input.
//
// Rules of this folder: kernels know nothing of Python; every length that comes from a file is checked before memory
// is touched; all instruction sets give the same bits; the host is little-endian (checked below).
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <stdexcept>

namespace dcz {

static_assert(std::endian::native == std::endian::little, "the kernels copy little-endian data as it is");

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;

using Bytes = std::span<const u8>;

// A coded stream breaks a rule of docs/format.md. Becomes dcz.errors.CorruptStream.
struct Corrupt : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Internal linkage: each instruction set's translation unit must keep its own copy of these.
template <class T>
static inline T load(const u8* p) {
    T value;
    std::memcpy(&value, p, sizeof value);
    return value;
}

template <class T>
static inline void store(u8* p, T value) {
    std::memcpy(p, &value, sizeof value);
}

// The first `count` (1 to 8) bytes at p as the low bytes of a word.
[[maybe_unused]] static inline u64 load_partial(const u8* p, std::size_t count) {
    u64 value = 0;
    std::memcpy(&value, p, count);
    return value;
}

[[maybe_unused]] static constexpr u64 low_bits(unsigned count) { return count >= 64 ? ~u64{0} : (u64{1} << count) - 1; }

}  // namespace dcz
