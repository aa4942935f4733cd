// The inner loops that exist once for each instruction set, behind one table of functions.
//
// kernels_impl.h holds what is the same for all of them; kernels_portable.cpp, kernels_avx2.cpp and kernels_avx512.cpp
// compile it with their own primitives and compiler flags.
#pragma once

#include "base.h"

namespace dcz {

// Bytes behind a buffer that a kernel may read, though not use.
inline constexpr std::size_t kSlack = 64;

// A child of a node of the wavelet tree: the decoded symbols of a subtree, or the one symbol of a leaf.
struct Child {
    const u8* symbols;  // null for a leaf; kSlack readable bytes behind them
    u8 symbol;
};

struct Kernels {
    // Ones among the first `count` bits; bits behind them in the last byte are zero.
    u64 (*popcount)(const u8* bits, std::size_t count);
    // out[i] = the next symbol of `right` where bit i is 1, of `left` where it is 0. Writes `count` bytes.
    void (*merge)(const u8* bits, std::size_t count, Child left, Child right, u8* out);
    // The mirror image: bit i = in[i] >= threshold; symbols go to `left` and `right` (null: dropped) in order.
    // `in` has kSlack readable, `left`, `right` and `bits` kSlack writable bytes behind what they hold.
    void (*partition)(const u8* in, std::size_t count, u8 threshold, u8* bits, u8* left, u8* right);
    // out[i] = table[in[i]], in place if wanted; `in` and `out` have kSlack bytes behind them.
    void (*translate)(const u8* in, std::size_t count, const u8 table[256], u8* out);
    // Symbols of `width` bits, LSB first, to bytes. Reads only ceil(count * width / 8) bytes.
    void (*unpack)(const u8* bits, std::size_t count, unsigned width, u8* out);
    // Byte planes to elements of `itemsize` bytes and back; `rotated`: section 5.3 of the format.
    void (*merge_planes)(const u8* const* planes, std::size_t count, std::size_t itemsize, bool rotated, u8* out);
    void (*split_planes)(const u8* in, std::size_t count, std::size_t itemsize, bool rotated, u8* const* planes);
    // out[i] = table[codes[i]] for elements of 1, 2, 4 or 8 bytes.
    void (*look_up)(const u8* codes, std::size_t count, const u8* table, std::size_t itemsize, u8* out);
    // out[i] = scale * (codes[i] - zero) in binary32; the same, rounded to bfloat16.
    void (*dequantize_f32)(const u8* codes, std::size_t count, float scale, int zero, u8* out);
    void (*dequantize_bf16)(const u8* codes, std::size_t count, float scale, int zero, u8* out);
};

extern const Kernels kPortableKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

// The table of the active instruction set.
const Kernels& kernels();

}  // namespace dcz
