// The loops of kernels.h over a group of 64 symbols, with the primitives P of an instruction set. Included by one
// translation unit per set, each in an anonymous namespace of its own, so that no set's code leaks into another's.
//
// P has:
//   static constexpr bool kTakesPairs                             does merge take pairs?
//   static void merge<left kind, right kind>(u64 mask, Child&, Child&, u8* out)    64 symbols; advances the children
//   static u64  popcount(const u8* bits, std::size_t bytes)
//   static std::size_t merge_planes<T, rotated, streaming>(planes, count, added, out)   how many elements it has merged;
//                                                     `added` is taken off before they are rotated back
//   Symbols<kWidth, kLast>                            the symbols of a level's codes, as take_group wants them
//   static u64  take_group<kWidth, kLast>(const u8* group, const Symbols<kWidth, kLast>&, const u8* higher, u8* out)
//                                                     64 codes; the mask of those that `higher` was taken for
//   static u64  plane(const u8* values, unsigned bit)             64 values
//   static u64  partition(const u8* in, u8 threshold, u64 valid, u8*& left, u8*& right)   the mask; advances
//   static std::size_t look_up<T>(codes, count, table, size, out)                  how many elements it has looked up
//   static std::size_t look_up_run<T, packed, streaming>(codes, count, table, out)      the same for 16 elements
//   static void expand<T, streaming>(u64 mask, const u8*& values, u8* out)         64 elements; advances the values
//   static std::size_t gap_positions(gaps, count, filler, positions, GapEnd& end)    how many symbols it has read; advances
//   static std::size_t copy(const u8* in, std::size_t size, u8* out)               how many bytes it has copied
//   static std::size_t drain(u8* in, std::size_t size, u8* out)     the same to whole lines, and leaves zeros
//   static std::size_t halve(const float* in, std::size_t count, u8* out)          how many numbers it has rounded to binary16
//   static void unpack8(u64 bits, unsigned width, u8* out)        8 symbols
//   kWindow: so many neighbours are counted at once by, if it is not 0,
//   static void count_window(const u8* in, std::size_t groups, u8 first, u64 counts[256])
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels.h"

namespace dcz {
namespace {

// The next 64 bits of a pair.
[[maybe_unused]] inline u64 pair_bits(const Child& pair) {
    const u8* p = pair.data + pair.taken / 8;
    const unsigned shift = pair.taken % 8;
    return load<u64>(p) >> shift | u64{p[8]} << 1 << (63 - shift);
}

// Ones among the bits of `bytes` bytes, with the instruction that __builtin_popcountll stands for.
[[maybe_unused]] inline u64 popcount_words(const u8* bits, std::size_t bytes) {
    u64 ones = 0;
    std::size_t i = 0;
    for (; i + 8 <= bytes; i += 8) ones += static_cast<u64>(__builtin_popcountll(load<u64>(bits + i)));
    if (i < bytes) ones += static_cast<u64>(__builtin_popcountll(load_partial(bits + i, bytes - i)));
    return ones;
}

// 64 elements of which most are zero.
template <class T>
inline void expand_ones(u64 mask, const u8*& values, u8* out) {
    std::memset(out, 0, 64 * sizeof(T));
    for (; mask; mask &= mask - 1, values += sizeof(T)) store(out + static_cast<unsigned>(std::countr_zero(mask)) * sizeof(T), load<T>(values));
}

template <class P>
struct Loops {
    static u64 popcount(const u8* bits, std::size_t count) { return P::popcount(bits, (count + 7) / 8); }

    template <Child::Kind kLeft, Child::Kind kRight>
    static void merge_as(const u8* bits, std::size_t count, Child& from_left, Child& from_right, u8* out) {
        // Copies, because a store through `out` may change anything that is in memory.
        Child left = from_left, right = from_right;
        std::size_t i = 0;
        for (; i + 64 <= count; i += 64) P::template merge<kLeft, kRight>(load<u64>(bits + i / 8), left, right, out + i);
        if (i < count) {
            u8 tail[64];
            P::template merge<kLeft, kRight>(load_partial(bits + i / 8, (count - i + 7) / 8), left, right, tail);
            std::memcpy(out + i, tail, count - i);
        }
        from_left = left;
        from_right = right;
    }

    static void merge(const u8* bits, std::size_t count, Child& left, Child& right, u8* out) {
        using Kind = Child::Kind;
        if constexpr (P::kTakesPairs) {
            if (left.kind == Kind::pair) {
                if (right.kind == Kind::pair) return merge_as<Kind::pair, Kind::pair>(bits, count, left, right, out);
                return merge_as<Kind::pair, Kind::subtree>(bits, count, left, right, out);
            }
            if (right.kind == Kind::pair) return merge_as<Kind::leaf, Kind::pair>(bits, count, left, right, out);
        }
        if (left.kind == Kind::subtree) return merge_as<Kind::subtree, Kind::subtree>(bits, count, left, right, out);
        if (right.kind == Kind::subtree) return merge_as<Kind::leaf, Kind::subtree>(bits, count, left, right, out);
        merge_as<Kind::leaf, Kind::leaf>(bits, count, left, right, out);
    }

    static void partition(const u8* in, std::size_t count, u8 threshold, u8* bits, u8* left, u8* right) {
        for (std::size_t i = 0; i < count; i += 64) {
            const u64 valid = low_bits(static_cast<unsigned>(count - i < 64 ? count - i : 64));
            store(bits + i / 8, P::partition(in + i, threshold, valid, left, right));
        }
    }

    template <unsigned kWidth, bool kLast>
    static std::size_t take_level_as(const u8* groups, std::size_t count, const u8 symbols[256], const u8* higher, u8* out) {
        const typename P::template Symbols<kWidth, kLast> of(symbols);
        const u8* next = higher;
        std::size_t i = 0;
        for (; i + 64 <= count; i += 64, groups += 8 * kWidth) {
            const u64 used = P::template take_group<kWidth, kLast>(groups, of, next, out + i);
            if constexpr (!kLast) next += __builtin_popcountll(used);
        }
        if (i < count) {
            u8 group[8 * kWidth] = {}, tail[64];
            const std::size_t bytes = (count - i + 7) / 8;
            for (unsigned k = 0; k < kWidth; ++k) std::memcpy(group + 8 * k, groups + bytes * k, bytes);
            const u64 used = P::template take_group<kWidth, kLast>(group, of, next, tail);
            if constexpr (!kLast) next += __builtin_popcountll(used);
            std::memcpy(out + i, tail, count - i);
        }
        return static_cast<std::size_t>(next - higher);
    }

    template <unsigned kWidth>
    static std::size_t take_level_of(const u8* groups, std::size_t count, unsigned width, const u8 symbols[256], const u8* higher, u8* out) {
        if constexpr (kWidth < 8)
            if (width > kWidth) return take_level_of<kWidth + 1>(groups, count, width, symbols, higher, out);
        if (higher == nullptr) return take_level_as<kWidth, true>(groups, count, symbols, higher, out);
        return take_level_as<kWidth, false>(groups, count, symbols, higher, out);
    }

    static std::size_t take_level(const u8* groups, std::size_t count, unsigned width, const u8 symbols[256], const u8* higher, u8* out) {
        return take_level_of<1>(groups, count, width, symbols, higher, out);
    }

    static void put_level(u8* values, std::size_t count, unsigned width, u8 base, u8* groups) {
        const auto most = static_cast<u8>(low_bits(width));
        u8* behind = values;
        u8* none = nullptr;
        for (std::size_t i = 0; i < count; i += 64) {
            const unsigned here = static_cast<unsigned>(count - i < 64 ? count - i : 64);
            const u64 valid = low_bits(here);
            const std::size_t bytes = (here + 7) / 8;
            u8 codes[64];
            for (unsigned j = 0; j < 64; ++j) codes[j] = std::min(static_cast<u8>(values[i + j] - base), most);
            for (unsigned k = 0; k < width; ++k, groups += bytes) {
                const u64 plane = P::plane(codes, k) & valid;
                std::memcpy(groups, &plane, bytes);
            }
            P::partition(values + i, static_cast<u8>(base + most), valid, none, behind);
        }
    }

    static void count_each(const u8* symbols, std::size_t count, u64 counts[256]) {
        // Several tables, so that equal neighbours do not wait for each other.
        u32 parts[8][256] = {};
        std::size_t i = 0;
        for (; i + 8 <= count; i += 8) {
            const u64 x = load<u64>(symbols + i);
            for (unsigned j = 0; j < 8; ++j) ++parts[j][(x >> (8 * j)) & 0xFF];
        }
        for (; i < count; ++i) ++parts[0][symbols[i]];
        for (std::size_t s = 0; s < 256; ++s)
            for (const auto& part : parts) counts[s] += part[s];
    }

    // Exponents are nearly all in a few neighbours. Those are counted by comparing, the others one by one.
    static void count(const u8* symbols, std::size_t count, u64 counts[256]) {
        std::size_t done = 0;
        if constexpr (P::kWindow > 0) {
            constexpr std::size_t kSample = 256;
            if (count >= 16 * kSample) {
                u32 below[257] = {};
                for (std::size_t i = 0; i < kSample; ++i) ++below[symbols[i * (count / kSample)] + 1];
                for (std::size_t s = 0; s < 256; ++s) below[s + 1] += below[s];
                std::size_t first = 0;
                for (std::size_t s = 0; s + P::kWindow <= 256; ++s)
                    if (below[s + P::kWindow] - below[s] > below[first + P::kWindow] - below[first]) first = s;
                if (below[first + P::kWindow] - below[first] >= kSample - kSample / 32) {
                    P::count_window(symbols, count / 64, static_cast<u8>(first), counts);
                    done = count / 64 * 64;
                }
            }
        }
        count_each(symbols + done, count - done, counts);
    }

    static void translate(const u8* in, std::size_t count, const u8 table[256], u8* out) {
        for (std::size_t i = 0; i < count; i += 64) P::translate(in + i, table, out + i);
    }

    static void unpack(const u8* bits, std::size_t count, unsigned width, u8* out) {
        if (width == 8) {
            std::memcpy(out, bits, count);
            return;
        }
        if (width == 4) {
            // So simple that the compiler takes many bytes at a time.
            for (std::size_t i = 0; i < count / 2; ++i) store(out + 2 * i, static_cast<u16>((bits[i] & 0x0F) | (bits[i] & 0xF0) << 4));
            if (count % 2) out[count - 1] = bits[count / 2] & 0x0F;
            return;
        }
        // 8 symbols are `width` whole bytes; a full word is read, so the last groups go byte by byte.
        const std::size_t bytes = (count * width + 7) / 8;
        std::size_t i = 0;
        for (; i + 8 <= count && i / 8 * width + 8 <= bytes; i += 8) P::unpack8(load<u64>(bits + i / 8 * width), width, out + i);
        for (; i < count; i += 8) {
            u8 tail[8];
            const std::size_t at = i / 8 * width;
            P::unpack8(load_partial(bits + at, bytes - at < 8 ? bytes - at : 8), width, tail);
            std::memcpy(out + i, tail, count - i < 8 ? count - i : 8);
        }
    }

    // What is added to a rotated element: `offset` in the byte below the highest one.
    template <class T>
    static T shifted(u8 offset) {
        if constexpr (sizeof(T) == 1)
            return 0;
        else
            return static_cast<T>(static_cast<T>(offset) << (8 * (sizeof(T) - 2)));
    }

    template <class T, bool kRotated>
    static void merge_planes_as(const u8* const* planes, std::size_t count, u8 offset, bool streaming, u8* out) {
        const u8* p[sizeof(T)];
        for (std::size_t j = 0; j < sizeof(T); ++j) p[j] = planes[j];
        const T added = shifted<T>(offset);
        const std::size_t done = streaming && is_line(out) ? P::template merge_planes<T, kRotated, true>(p, count, added, out)
                                                           : P::template merge_planes<T, kRotated, false>(p, count, added, out);
        for (std::size_t i = done; i < count; ++i) {
            T value = 0;
            for (std::size_t j = 0; j < sizeof(T); ++j) value = static_cast<T>(value | static_cast<T>(static_cast<T>(p[j][i]) << (8 * j)));
            if constexpr (kRotated) {
                value = static_cast<T>(value - added);
                value = static_cast<T>((value >> 1) | (value << (8 * sizeof(T) - 1)));
            }
            store(out + i * sizeof(T), value);
        }
    }

    template <class T, bool kRotated>
    static void split_planes_as(const u8* in, std::size_t count, u8 offset, u8* const* planes) {
        u8* p[sizeof(T)];
        for (std::size_t j = 0; j < sizeof(T); ++j) p[j] = planes[j];
        const T added = shifted<T>(offset);
        for (std::size_t i = 0; i < count; ++i) {
            T value = load<T>(in + i * sizeof(T));
            if constexpr (kRotated) value = static_cast<T>(static_cast<T>((value << 1) | (value >> (8 * sizeof(T) - 1))) + added);
            for (std::size_t j = 0; j < sizeof(T); ++j) p[j][i] = static_cast<u8>(value >> (8 * j));
        }
    }

    template <class T>
    static void merge_planes_of(const u8* const* planes, std::size_t count, bool rotated, u8 offset, bool streaming, u8* out) {
        if (rotated)
            merge_planes_as<T, true>(planes, count, offset, streaming, out);
        else
            merge_planes_as<T, false>(planes, count, offset, streaming, out);
    }

    static void merge_planes(const u8* const* planes, std::size_t count, std::size_t itemsize, bool rotated, u8 offset, bool streaming,
                             u8* out) {
        switch (itemsize) {
            case 1: return merge_planes_of<u8>(planes, count, rotated, offset, streaming, out);
            case 2: return merge_planes_of<u16>(planes, count, rotated, offset, streaming, out);
            case 4: return merge_planes_of<u32>(planes, count, rotated, offset, streaming, out);
            default: return merge_planes_of<u64>(planes, count, rotated, offset, streaming, out);
        }
    }

    template <unsigned kWidth, class T>
    static std::size_t take_level_into_as(const u8* groups, std::size_t count, const u8 symbols[256], const u8* higher, const Assembly& into) {
        const typename P::template Symbols<kWidth, false> of(symbols);
        alignas(64) u8 last[64];
        const u8* p[sizeof(T)];
        for (std::size_t j = 0; j + 1 < sizeof(T); ++j) p[j] = into.planes[j];
        p[sizeof(T) - 1] = last;
        const u8 offset = into.offset;
        const bool streaming = into.streaming;
        u8* out = into.out;
        const u8* next = higher;
        for (std::size_t i = 0; i < count; i += 64, groups += 8 * kWidth, out += 64 * sizeof(T)) {
            next += __builtin_popcountll(P::template take_group<kWidth, false>(groups, of, next, last));
            merge_planes_as<T, true>(p, 64, offset, streaming, out);
            for (std::size_t j = 0; j + 1 < sizeof(T); ++j) p[j] += 64;
        }
        return static_cast<std::size_t>(next - higher);
    }

    template <unsigned kWidth>
    static std::size_t take_level_into_of(const u8* groups, std::size_t count, unsigned width, const u8 symbols[256], const u8* higher,
                                          const Assembly& into) {
        if constexpr (kWidth < kNarrow)
            if (width > kWidth) return take_level_into_of<kWidth + 1>(groups, count, width, symbols, higher, into);
        if (into.itemsize == 2) return take_level_into_as<kWidth, u16>(groups, count, symbols, higher, into);
        return take_level_into_as<kWidth, u32>(groups, count, symbols, higher, into);
    }

    static std::size_t take_level_into(const u8* groups, std::size_t count, unsigned width, const u8 symbols[256], const u8* higher,
                                       const Assembly& into) {
        return take_level_into_of<1>(groups, count, width, symbols, higher, into);
    }

    static void split_planes(const u8* in, std::size_t count, std::size_t itemsize, bool rotated, u8 offset, u8* const* planes) {
        switch (itemsize) {
            case 1: return rotated ? split_planes_as<u8, true>(in, count, offset, planes) : split_planes_as<u8, false>(in, count, offset, planes);
            case 2: return rotated ? split_planes_as<u16, true>(in, count, offset, planes) : split_planes_as<u16, false>(in, count, offset, planes);
            case 4: return rotated ? split_planes_as<u32, true>(in, count, offset, planes) : split_planes_as<u32, false>(in, count, offset, planes);
            default: return rotated ? split_planes_as<u64, true>(in, count, offset, planes) : split_planes_as<u64, false>(in, count, offset, planes);
        }
    }

    // By bits and not by a branch, into which a compiler would move the arithmetic of one side, and then not vectorize it.
    template <class T>
    static T pick(bool first, T a, T b) {
        const T mask = static_cast<T>(-static_cast<T>(first));
        return (a & mask) | (b & ~mask);
    }

    // Of a binary float, sign aside: below `kNormal` it is a multiple of the smallest number, which is exact in the wider
    // type; otherwise the exponent moves, and the mantissa gets zeros behind it.
    static u32 wide_of(u16 narrow_bits, bool half) {
        if (!half) return static_cast<u32>(narrow_bits) << 16;
        const u32 bits = narrow_bits & 0x7FFFu, sign = static_cast<u32>(narrow_bits & 0x8000u) << 16;
        const u32 normal = (bits << 13) + (bits >= 0x7C00 ? 0x70000000u : 0x38000000u);
        const u32 small = std::bit_cast<u32>(static_cast<float>(static_cast<int>(bits)) * 0x1p-24f);
        return sign | pick(bits < 0x400, small, normal);
    }

    static u64 wide_of(u32 narrow_bits) {
        const u64 bits = narrow_bits & 0x7FFFFFFFu, sign = static_cast<u64>(narrow_bits & 0x80000000u) << 32;
        const u64 normal = (bits << 29) + (bits >= 0x7F800000 ? u64{1792} << 52 : u64{896} << 52);
        const u64 small = std::bit_cast<u64>(static_cast<double>(static_cast<int>(bits)) * 0x1p-149);
        return sign | pick(bits < 0x800000, small, normal);
    }

    // What is too large or too precise becomes anything whose wide form differs.
    static u16 narrow_of(u32 wide, bool half) {
        if (!half) return static_cast<u16>(wide >> 16);
        const u32 bits = wide & 0x7FFFFFFFu, sign = wide >> 16 & 0x8000u;
        const u32 normal = (bits >= 0x7F800000 ? 0x7C00 | (bits >> 13 & 0x3FF) : (bits - 0x38000000u) >> 13) & 0x7FFF;
        const float tiny = std::bit_cast<float>(bits < 0x38800000 ? bits : 0);
        const u32 small = static_cast<u32>(static_cast<int>(tiny * 0x1p24f));
        return static_cast<u16>(sign | pick(bits < 0x38800000, small, normal));
    }

    static u32 narrow_of(u64 wide) {
        const u64 bits = wide & ~(u64{1} << 63), sign = wide >> 32 & 0x80000000u;
        constexpr u64 smallest_normal = u64{897} << 52, infinity = u64{2047} << 52;
        const u64 normal = (bits >= infinity ? 0x7F800000 | (bits >> 29 & 0x7FFFFF) : (bits - (u64{896} << 52)) >> 29) & 0x7FFFFFFF;
        const double tiny = std::bit_cast<double>(bits < smallest_normal ? bits : u64{0});
        const u64 small = static_cast<u64>(static_cast<int>(tiny * 0x1p149));
        return static_cast<u32>(sign | pick(bits < smallest_normal, small, normal));
    }

    static void widen(const u8* in, std::size_t count, Widening which, u8* out) {
        switch (which) {
            case Widening::bf16_f32:
                for (std::size_t i = 0; i < count; ++i) store(out + 4 * i, wide_of(load<u16>(in + 2 * i), false));
                return;
            case Widening::f16_f32:
                for (std::size_t i = 0; i < count; ++i) store(out + 4 * i, wide_of(load<u16>(in + 2 * i), true));
                return;
            case Widening::f32_f64:
                for (std::size_t i = 0; i < count; ++i) store(out + 8 * i, wide_of(load<u32>(in + 4 * i)));
        }
    }

    static bool narrow(const u8* in, std::size_t count, Widening which, u8* out) {
        u64 lost = 0;
        if (which == Widening::f32_f64) {
            for (std::size_t i = 0; i < count; ++i) {
                const u64 wide = load<u64>(in + 8 * i);
                const u32 bits = narrow_of(wide);
                lost |= wide_of(bits) ^ wide;
                store(out + 4 * i, bits);
            }
            return lost == 0;
        }
        const bool half = which == Widening::f16_f32;
        const auto all = [&](bool is_half) {
            for (std::size_t i = 0; i < count; ++i) {
                const u32 wide = load<u32>(in + 4 * i);
                const u16 bits = narrow_of(wide, is_half);
                lost |= wide_of(bits, is_half) ^ wide;
                store(out + 2 * i, bits);
            }
        };
        half ? all(true) : all(false);
        return lost == 0;
    }

    template <class T>
    static void look_up_as(const u8* codes, std::size_t count, const u8* table, std::size_t size, u8* out) {
        for (std::size_t i = P::template look_up<T>(codes, count, table, size, out); i < count; ++i)
            store(out + i * sizeof(T), load<T>(table + codes[i] * sizeof(T)));
    }

    static void look_up(const u8* codes, std::size_t count, const u8* table, std::size_t size, std::size_t itemsize, u8* out) {
        switch (itemsize) {
            case 1: return look_up_as<u8>(codes, count, table, size, out);
            case 2: return look_up_as<u16>(codes, count, table, size, out);
            case 4: return look_up_as<u32>(codes, count, table, size, out);
            default: return look_up_as<u64>(codes, count, table, size, out);
        }
    }

    template <class T, bool kPacked, bool kStreaming>
    static void look_up_runs_as(const u8* codes, std::size_t runs, std::size_t size, const u8* tables, u8* out) {
        const auto all = [&](auto fixed) {
            constexpr std::size_t kFixed = decltype(fixed)::value;
            const std::size_t n = kFixed ? kFixed : size;
            for (std::size_t r = 0; r < runs; ++r) {
                const u8 *in = codes + (kPacked ? r * n / 2 : r * n), *table = tables + r * 16 * sizeof(T);
                u8* to = out + r * n * sizeof(T);
                for (std::size_t i = P::template look_up_run<T, kPacked, kStreaming>(in, n, table, to); i < n; ++i) {
                    const unsigned code = kPacked ? in[i / 2] >> (i % 2 * 4) & 15u : in[i];
                    store(to + i * sizeof(T), load<T>(table + code * sizeof(T)));
                }
            }
        };
        switch (size) {
            case 32: return all(std::integral_constant<std::size_t, 32>{});
            case 64: return all(std::integral_constant<std::size_t, 64>{});
            case 128: return all(std::integral_constant<std::size_t, 128>{});
            default: return all(std::integral_constant<std::size_t, 0>{});
        }
    }

    template <class T, bool kPacked>
    static void look_up_runs_of(const u8* codes, std::size_t runs, std::size_t size, const u8* tables, bool streaming, u8* out) {
        if (streaming && is_line(out))
            look_up_runs_as<T, kPacked, true>(codes, runs, size, tables, out);
        else
            look_up_runs_as<T, kPacked, false>(codes, runs, size, tables, out);
    }

    static void look_up_runs(const u8* codes, bool packed, std::size_t runs, std::size_t size, const u8* tables, std::size_t itemsize,
                             bool streaming, u8* out) {
        if (itemsize == 2)
            return packed ? look_up_runs_of<u16, true>(codes, runs, size, tables, streaming, out)
                          : look_up_runs_of<u16, false>(codes, runs, size, tables, streaming, out);
        packed ? look_up_runs_of<u32, true>(codes, runs, size, tables, streaming, out)
               : look_up_runs_of<u32, false>(codes, runs, size, tables, streaming, out);
    }

    template <class T, bool kStreaming>
    static void expand_as(const u8* bitmap, const u8* values, std::size_t count, u8* out) {
        std::size_t i = 0;
        for (; i + 64 <= count; i += 64) P::template expand<T, kStreaming>(load<u64>(bitmap + i / 8), values, out + i * sizeof(T));
        if (i < count) {
            alignas(64) u8 tail[64 * sizeof(T)];
            P::template expand<T, false>(load_partial(bitmap + i / 8, (count - i + 7) / 8), values, tail);
            std::memcpy(out + i * sizeof(T), tail, (count - i) * sizeof(T));
        }
    }

    template <class T>
    static void expand_of(const u8* bitmap, const u8* values, std::size_t count, bool streaming, u8* out) {
        if (streaming && is_line(out))
            expand_as<T, true>(bitmap, values, count, out);
        else
            expand_as<T, false>(bitmap, values, count, out);
    }

    static void expand(const u8* bitmap, const u8* values, std::size_t count, std::size_t itemsize, bool streaming, u8* out) {
        switch (itemsize) {
            case 1: return expand_of<u8>(bitmap, values, count, streaming, out);
            case 2: return expand_of<u16>(bitmap, values, count, streaming, out);
            case 4: return expand_of<u32>(bitmap, values, count, streaming, out);
            default: return expand_of<u64>(bitmap, values, count, streaming, out);
        }
    }

    static GapEnd gap_positions(const u8* gaps, std::size_t count, u8 filler, u32* positions) {
        GapEnd end{0, 0};
        for (std::size_t i = P::gap_positions(gaps, count, filler, positions, end); i < count; ++i) {
            const u64 gap = gaps[i], stored = gap != filler;
            positions[end.entries] = static_cast<u32>(end.position + gap);
            end.entries += stored;
            end.position += gap + stored;
        }
        return end;
    }

    // Made in the cache, a strip at a time, and only then brought to memory.
    template <class T>
    static void place_as(const u32* positions, const u8* values, std::size_t entries, std::size_t count, bool streaming, u8* out) {
        constexpr std::size_t kStrip = 2048 / sizeof(T);
        alignas(64) u8 strip[kStrip * sizeof(T)];
        if (streaming) std::memset(strip, 0, sizeof strip);
        std::size_t entry = 0, start = 0;
        // The first strip ends where a line does.
        std::size_t end = kStrip - reinterpret_cast<std::uintptr_t>(out) % 64 / sizeof(T);
        while (start < count) {
            end = std::min(end, count);
            const std::size_t size = (end - start) * sizeof(T);
            u8* made = streaming ? strip : out + start * sizeof(T);
            if (!streaming) std::memset(made, 0, size);
            for (; entry < entries && positions[entry] < end; ++entry)
                store(made + (positions[entry] - start) * sizeof(T), load<T>(values + entry * sizeof(T)));
            if (streaming) drain(strip, size, out + start * sizeof(T));
            start = end;
            end += kStrip;
        }
    }

    // Copies around the caches, and leaves zeros.
    static void drain(u8* in, std::size_t size, u8* out) {
        const std::size_t done = is_line(out) ? P::drain(in, size, out) : 0;
        copy(in + done, size - done, out + done);
        std::memset(in + done, 0, size - done);
    }

    static void place(const u32* positions, const u8* values, std::size_t entries, std::size_t count, std::size_t itemsize, bool streaming,
                      u8* out) {
        switch (itemsize) {
            case 1: return place_as<u8>(positions, values, entries, count, streaming, out);
            case 2: return place_as<u16>(positions, values, entries, count, streaming, out);
            case 4: return place_as<u32>(positions, values, entries, count, streaming, out);
            default: return place_as<u64>(positions, values, entries, count, streaming, out);
        }
    }

    static void copy(const u8* in, std::size_t size, u8* out) {
        const std::size_t head = std::min<std::size_t>(size, -reinterpret_cast<std::uintptr_t>(out) % 64);
        std::memcpy(out, in, head);
        const std::size_t done = head + P::copy(in + head, size - head, out + head);
        std::memcpy(out + done, in + done, size - done);
    }

    // One run. Finite parameters make no NaN, so rounding to bfloat16 is an addition to the bits.
    template <class T, bool kNarrow, bool kMinimum, class Level>
    static void scale_run(std::size_t count, T scale, T minimum, Level level, u8* out) {
        // As a loop it is vectorized; a few elements written out are not.
#pragma GCC unroll 1
        for (std::size_t i = 0; i < count; ++i) {
            T x = scale * level(i);
            if constexpr (kMinimum) x = x + minimum;
            if constexpr (kNarrow) {
                const u32 bits = std::bit_cast<u32>(x);
                store(out + 2 * i, static_cast<u16>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16));
            } else {
                store(out + sizeof(T) * i, x);
            }
        }
    }

    // In runs of a few sizes that are in use, the compiler knows how many elements there are.
    template <class T, bool kNarrow, bool kMinimum, class Levels>
    static void scale_runs_of(const Runs<T>& runs, Levels levels, u8* out) {
        constexpr std::size_t kSize = kNarrow ? 2 : sizeof(T);
        const std::size_t size = runs.size;
        const T *scales = runs.scales, *minimums = runs.minimums;
        const auto all = [&](auto fixed) {
            constexpr std::size_t kFixed = decltype(fixed)::value;
            for (std::size_t r = 0; r < runs.count; ++r) {
                const std::size_t n = kFixed ? kFixed : size;
                scale_run<T, kNarrow, kMinimum>(n, scales[r], kMinimum ? minimums[r] : T{}, levels(r, r * n), out + r * n * kSize);
            }
        };
        switch (size) {
            case 16: return all(std::integral_constant<std::size_t, 16>{});
            case 32: return all(std::integral_constant<std::size_t, 32>{});
            case 64: return all(std::integral_constant<std::size_t, 64>{});
            default: return all(std::integral_constant<std::size_t, 0>{});
        }
    }

    // Runs of one element each: then what changes with each element is its parameters.
    template <class T, bool kNarrow, bool kMinimum, class Level>
    static void scale_each(const Runs<T>& runs, Level level, u8* out) {
        const T *scales = runs.scales, *minimums = runs.minimums;
        for (std::size_t i = 0; i < runs.count; ++i) {
            T x = scales[i] * level(i);
            if constexpr (kMinimum) x = x + minimums[i];
            if constexpr (kNarrow) {
                const u32 bits = std::bit_cast<u32>(x);
                store(out + 2 * i, static_cast<u16>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16));
            } else {
                store(out + sizeof(T) * i, x);
            }
        }
    }

    template <class T, bool kNarrow, bool kMinimum>
    static void dequantize_as(const u8* codes, const Runs<T>& runs, u8* out) {
        const u8* points = runs.zero_points;
        const int zero = runs.zero;
        if (runs.size == 1) {
            const auto level = [=](std::size_t i) { return static_cast<T>(static_cast<int>(codes[i]) - (points ? points[i] : zero)); };
            return scale_each<T, kNarrow, kMinimum>(runs, level, out);
        }
        const auto levels = [=](std::size_t run, std::size_t first) {
            const u8* in = codes + first;
            const int taken = points ? points[run] : zero;
            return [=](std::size_t i) { return static_cast<T>(static_cast<int>(in[i]) - taken); };
        };
        scale_runs_of<T, kNarrow, kMinimum>(runs, levels, out);
    }

    template <class T, bool kNarrow>
    static void dequantize(const u8* codes, const Runs<T>& runs, u8* out) {
        runs.minimums ? dequantize_as<T, kNarrow, true>(codes, runs, out) : dequantize_as<T, kNarrow, false>(codes, runs, out);
    }

    template <class T, bool kNarrow, bool kMinimum>
    static void scale_as(const T* given, const Runs<T>& runs, u8* out) {
        const u8* points = runs.zero_points;
        const int zero = runs.zero;
        if (runs.size == 1) {
            const auto level = [=](std::size_t i) { return given[i] - static_cast<T>(points ? points[i] : zero); };
            return scale_each<T, kNarrow, kMinimum>(runs, level, out);
        }
        const auto levels = [=](std::size_t run, std::size_t first) {
            const T *in = given + first, taken = static_cast<T>(points ? points[run] : zero);
            return [=](std::size_t i) { return in[i] - taken; };
        };
        scale_runs_of<T, kNarrow, kMinimum>(runs, levels, out);
    }

    template <class T, bool kNarrow>
    static void scale(const T* levels, const Runs<T>& runs, u8* out) {
        runs.minimums ? scale_as<T, kNarrow, true>(levels, runs, out) : scale_as<T, kNarrow, false>(levels, runs, out);
    }

    // Below the smallest normal number, an addition brings the bits to where they belong and rounds them; above it, the exponent
    // moves, and what is dropped is rounded by an addition too.
    static u16 half_of(float value) {
        const u32 all = std::bit_cast<u32>(value), bits = all & 0x7FFFFFFFu;
        const float magnitude = std::bit_cast<float>(bits < 0x38800000 ? bits : 0);
        const u32 small = std::bit_cast<u32>(magnitude + 0.5f) - 0x3F000000u;
        const u32 normal = (bits - 0x38000000u + 0xFFFu + (bits >> 13 & 1)) >> 13;
        const u32 finite = pick(bits < 0x38800000, small, normal);
        return static_cast<u16>((all >> 16 & 0x8000u) | pick(bits >= 0x47800000, u32{0x7C00}, finite));
    }

    static void halve(const float* in, std::size_t count, u8* out) {
        for (std::size_t i = P::halve(in, count, out); i < count; ++i) store(out + 2 * i, half_of(in[i]));
    }

    static constexpr Kernels table() {
        return {.takes_pairs = P::kTakesPairs,
                .popcount = popcount,
                .merge = merge,
                .partition = partition,
                .take_level = take_level,
                .take_level_into = take_level_into,
                .put_level = put_level,
                .count = count,
                .translate = translate,
                .unpack = unpack,
                .merge_planes = merge_planes,
                .split_planes = split_planes,
                .widen = widen,
                .narrow = narrow,
                .look_up = look_up,
                .look_up_runs = look_up_runs,
                .expand = expand,
                .gap_positions = gap_positions,
                .place = place,
                .copy = copy,
                .dequantize_f32 = dequantize<float, false>,
                .dequantize_bf16 = dequantize<float, true>,
                .dequantize_f64 = dequantize<double, false>,
                .scale_f32 = scale<float, false>,
                .scale_bf16 = scale<float, true>,
                .scale_f64 = scale<double, false>,
                .halve = halve};
    }
};

}  // namespace
}  // namespace dcz
