// The inner loops that exist once for each instruction set, behind one table of functions.
//
// kernels_impl.h holds what is the same for all of them; kernels_portable.cpp, kernels_avx2.cpp and kernels_avx512.cpp
// compile it with their own primitives and compiler flags.
#pragma once

#include "base.h"

namespace dcz {

// Bytes behind a buffer that a kernel may read, though not use.
inline constexpr std::size_t kSlack = 64;

// Does a cache line start there? Only whole lines go around the caches.
static inline bool is_line(const u8* p) { return reinterpret_cast<std::uintptr_t>(p) % 64 == 0; }

// What a node of the wavelet tree takes symbols from: a leaf, which is one symbol; a pair, which is a node with two leaves,
// as its bits; or a larger subtree, as its decoded symbols.
struct Child {
    enum class Kind : u8 { leaf, pair, subtree };

    Kind kind;
    u8 zero = 0, one = 0;      // leaf: zero; pair: both
    const u8* data = nullptr;  // pair: bits; subtree: symbols; kSlack readable bytes behind them
    std::size_t taken = 0;     // of the pair's bits
};

// Elements of 2 or 4 bytes of which all planes but the last are there (`rotated`, section 5.3 of the format). `streaming`, as
// in merge_planes.
struct Assembly {
    const u8* const* planes;
    std::size_t itemsize;
    u8 offset;
    bool streaming;
    u8* out;
};

// From a narrower float to a wider one.
enum class Widening { bf16_f32, f16_f32, f32_f64 };

// Bits of the codes that take_level_into takes.
inline constexpr unsigned kNarrow = 4;

// Behind the last of some gap symbols: the position, and how many entries there were.
struct GapEnd {
    u64 position;
    std::size_t entries;
};

// Runs of `size` neighbours that share parameters, one behind the other.
template <class T>
struct Runs {
    std::size_t count, size;
    const T* scales;        // of each run
    const T* minimums;      // null: none
    const u8* zero_points;  // null: `zero` for all
    int zero;
};

struct Kernels {
    // Does `merge` take pairs, or is it quicker to decode their symbols first?
    bool takes_pairs;
    // Ones among the first `count` bits; bits behind them in the last byte are zero.
    u64 (*popcount)(const u8* bits, std::size_t count);
    // out[i] = the next symbol of `right` where bit i is 1, of `left` where it is 0. Writes `count` bytes, and advances
    // the children, which are those of a canonical code: the kind of the left one is not above that of the right one.
    // If there is more to come, `count` is a multiple of 64.
    void (*merge)(const u8* bits, std::size_t count, Child& left, Child& right, u8* out);
    // The mirror image: bit i = in[i] >= threshold; symbols go to `left` and `right` (null: dropped) in order.
    // `in` has kSlack readable, `left`, `right` and `bits` kSlack writable bytes behind what they hold.
    void (*partition)(const u8* in, std::size_t count, u8 threshold, u8* bits, u8* left, u8* right);
    // A level of a cascade (docs/format.md, section 6.5): out[i] = symbols[code i], where a code has `width` bits, in planes
    // of 64 codes; or, unless `higher` is null, the next of `higher` where all bits are ones. Writes `count` bytes, reads up
    // to `count` + kSlack of `higher`, and returns how many of them it has used.
    std::size_t (*take_level)(const u8* groups, std::size_t count, unsigned width, const u8 symbols[256], const u8* higher, u8* out);
    // The same for `count` symbols, a multiple of 64, that become the last plane of elements as soon as they are decoded: while
    // memory takes the ones, the others are decoded. At most kNarrow bits; `higher` is not null.
    std::size_t (*take_level_into)(const u8* groups, std::size_t count, unsigned width, const u8 symbols[256], const u8* higher,
                                   const Assembly& into);
    // The mirror image: codes of values from `base` on, which are what each is above it but at most 2^width - 1, to planes. The
    // values of which that is the code stay behind in `values`, which has kSlack bytes behind it.
    void (*put_level)(u8* values, std::size_t count, unsigned width, u8 base, u8* groups);
    // Adds to counts[s] how often s is among at most 2^30 symbols.
    void (*count)(const u8* symbols, std::size_t count, u64 counts[256]);
    // out[i] = table[in[i]], in place if wanted; `in` and `out` have kSlack bytes behind them.
    void (*translate)(const u8* in, std::size_t count, const u8 table[256], u8* out);
    // Symbols of `width` bits, LSB first, to bytes. Reads only ceil(count * width / 8) bytes.
    void (*unpack)(const u8* bits, std::size_t count, unsigned width, u8* out);
    // Byte planes to elements of `itemsize` bytes and back; `rotated`, `offset`: section 5.3 of the format. `streaming`: around the
    // caches, where the instruction set can and `out` is aligned to 64; a fence is the caller's.
    void (*merge_planes)(const u8* const* planes, std::size_t count, std::size_t itemsize, bool rotated, u8 offset, bool streaming, u8* out);
    void (*split_planes)(const u8* in, std::size_t count, std::size_t itemsize, bool rotated, u8 offset, u8* const* planes);
    // Floats to wider ones of the same value, and the candidates for the way back (docs/format.md, section 5.3): `narrow` is
    // exact where `widen` gives the same bits again, and says whether that is everywhere.
    void (*widen)(const u8* in, std::size_t count, Widening which, u8* out);
    bool (*narrow)(const u8* in, std::size_t count, Widening which, u8* out);
    // out[i] = table[codes[i]] for elements of 1, 2, 4 or 8 bytes; the table has `size` of them, and every code is below.
    void (*look_up)(const u8* codes, std::size_t count, const u8* table, std::size_t size, std::size_t itemsize, u8* out);
    // The same for runs of `size` neighbours, each with a table of 16 elements of 2 or 4 bytes, one behind the other; every code is
    // below 16, and a byte, or if `packed` half of one, the lower half first. `streaming`, as in merge_planes. Several runs are each
    // a multiple of 64 bytes.
    void (*look_up_runs)(const u8* codes, bool packed, std::size_t runs, std::size_t size, const u8* tables, std::size_t itemsize, bool streaming,
                         u8* out);
    // Elements where the bitmap has a one: the next of `values`, which has kSlack readable bytes behind it; zeros elsewhere.
    void (*expand)(const u8* bitmap, const u8* values, std::size_t count, std::size_t itemsize, bool streaming, u8* out);
    // The positions of the entries of `count` gap symbols (docs/format.md, section 5.2), modulo 2^32; `positions` has room for
    // `count` and kSlack / 4 more.
    GapEnd (*gap_positions)(const u8* gaps, std::size_t count, u8 filler, u32* positions);
    // Elements at `positions`, which ascend and are below `count`: those of `values`; zeros elsewhere.
    void (*place)(const u32* positions, const u8* values, std::size_t entries, std::size_t count, std::size_t itemsize, bool streaming, u8* out);
    // memcpy, around the caches where the instruction set can, whatever the alignment.
    void (*copy)(const u8* in, std::size_t size, u8* out);
    // Runs of elements: scale * level + minimum, each step rounded to binary32, or to binary64; the last one to bfloat16, too. A
    // level is code - zero point, or number - zero point; numbers that are no codes come with a zero point of 0.
    void (*dequantize_f32)(const u8* codes, const Runs<float>& runs, u8* out);
    void (*dequantize_bf16)(const u8* codes, const Runs<float>& runs, u8* out);
    void (*dequantize_f64)(const u8* codes, const Runs<double>& runs, u8* out);
    void (*scale_f32)(const float* numbers, const Runs<float>& runs, u8* out);
    void (*scale_bf16)(const float* numbers, const Runs<float>& runs, u8* out);
    void (*scale_f64)(const double* numbers, const Runs<double>& runs, u8* out);
    // Binary32 to binary16, to nearest, ties to even; no NaN is among them.
    void (*halve)(const float* in, std::size_t count, u8* out);
};

extern const Kernels kPortableKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

// The table of the active instruction set.
const Kernels& kernels();

}  // namespace dcz
