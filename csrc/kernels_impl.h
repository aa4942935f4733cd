// The loops of kernels.h over a group of 64 symbols, with the primitives P of an instruction set. Included by one
// translation unit per set, each in an anonymous namespace of its own, so that no set's code leaks into another's.
//
// P has:
//   static void merge(u64 mask, Child&, Child&, u8* out)          64 symbols; advances the children
//   static u64  partition(const u8* in, u8 threshold, u64 valid, u8*& left, u8*& right)   the mask; advances
//   static void unpack8(u64 bits, unsigned width, u8* out)        8 symbols
#pragma once

#include "kernels.h"

namespace dcz {
namespace {

template <class P>
struct Loops {
    static u64 popcount(const u8* bits, std::size_t count) {
        const std::size_t bytes = (count + 7) / 8;
        u64 ones = 0;
        std::size_t i = 0;
        for (; i + 8 <= bytes; i += 8) ones += static_cast<u64>(__builtin_popcountll(load<u64>(bits + i)));
        if (i < bytes) ones += static_cast<u64>(__builtin_popcountll(load_partial(bits + i, bytes - i)));
        return ones;
    }

    template <bool kLeft, bool kRight>  // is the child a subtree?
    static void merge_as(const u8* bits, std::size_t count, Child left, Child right, u8* out) {
        std::size_t i = 0;
        for (; i + 64 <= count; i += 64)
            P::template merge<kLeft, kRight>(load<u64>(bits + i / 8), left, right, out + i);
        if (i < count) {
            u8 tail[64];
            P::template merge<kLeft, kRight>(load_partial(bits + i / 8, (count - i + 7) / 8), left, right, tail);
            std::memcpy(out + i, tail, count - i);
        }
    }

    static void merge(const u8* bits, std::size_t count, Child left, Child right, u8* out) {
        // A canonical code has its leaves on the left, so a subtree on the left has one on its right.
        if (left.symbols)
            merge_as<true, true>(bits, count, left, right, out);
        else if (right.symbols)
            merge_as<false, true>(bits, count, left, right, out);
        else
            merge_as<false, false>(bits, count, left, right, out);
    }

    static void partition(const u8* in, std::size_t count, u8 threshold, u8* bits, u8* left, u8* right) {
        for (std::size_t i = 0; i < count; i += 64) {
            const u64 valid = low_bits(static_cast<unsigned>(count - i < 64 ? count - i : 64));
            store(bits + i / 8, P::partition(in + i, threshold, valid, left, right));
        }
    }

    static void translate(const u8* in, std::size_t count, const u8 table[256], u8* out) {
        for (std::size_t i = 0; i < count; i += 64) P::translate(in + i, table, out + i);
    }

    static void unpack(const u8* bits, std::size_t count, unsigned width, u8* out) {
        if (width == 8) {
            std::memcpy(out, bits, count);
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

    template <class T, bool kRotated>
    static void merge_planes_as(const u8* const* planes, std::size_t count, u8* out) {
        const u8* p[sizeof(T)];
        for (std::size_t j = 0; j < sizeof(T); ++j) p[j] = planes[j];
        for (std::size_t i = 0; i < count; ++i) {
            T value = 0;
            for (std::size_t j = 0; j < sizeof(T); ++j) value = static_cast<T>(value | static_cast<T>(static_cast<T>(p[j][i]) << (8 * j)));
            if constexpr (kRotated) value = static_cast<T>((value >> 1) | (value << (8 * sizeof(T) - 1)));
            store(out + i * sizeof(T), value);
        }
    }

    template <class T, bool kRotated>
    static void split_planes_as(const u8* in, std::size_t count, u8* const* planes) {
        u8* p[sizeof(T)];
        for (std::size_t j = 0; j < sizeof(T); ++j) p[j] = planes[j];
        for (std::size_t i = 0; i < count; ++i) {
            T value = load<T>(in + i * sizeof(T));
            if constexpr (kRotated) value = static_cast<T>((value << 1) | (value >> (8 * sizeof(T) - 1)));
            for (std::size_t j = 0; j < sizeof(T); ++j) p[j][i] = static_cast<u8>(value >> (8 * j));
        }
    }

    static void merge_planes(const u8* const* planes, std::size_t count, std::size_t itemsize, bool rotated, u8* out) {
        switch (itemsize) {
            case 1: return rotated ? merge_planes_as<u8, true>(planes, count, out) : merge_planes_as<u8, false>(planes, count, out);
            case 2: return rotated ? merge_planes_as<u16, true>(planes, count, out) : merge_planes_as<u16, false>(planes, count, out);
            case 4: return rotated ? merge_planes_as<u32, true>(planes, count, out) : merge_planes_as<u32, false>(planes, count, out);
            default: return rotated ? merge_planes_as<u64, true>(planes, count, out) : merge_planes_as<u64, false>(planes, count, out);
        }
    }

    static void split_planes(const u8* in, std::size_t count, std::size_t itemsize, bool rotated, u8* const* planes) {
        switch (itemsize) {
            case 1: return rotated ? split_planes_as<u8, true>(in, count, planes) : split_planes_as<u8, false>(in, count, planes);
            case 2: return rotated ? split_planes_as<u16, true>(in, count, planes) : split_planes_as<u16, false>(in, count, planes);
            case 4: return rotated ? split_planes_as<u32, true>(in, count, planes) : split_planes_as<u32, false>(in, count, planes);
            default: return rotated ? split_planes_as<u64, true>(in, count, planes) : split_planes_as<u64, false>(in, count, planes);
        }
    }

    template <class T>
    static void look_up_as(const u8* codes, std::size_t count, const u8* table, u8* out) {
        for (std::size_t i = 0; i < count; ++i) store(out + i * sizeof(T), load<T>(table + codes[i] * sizeof(T)));
    }

    static void look_up(const u8* codes, std::size_t count, const u8* table, std::size_t itemsize, u8* out) {
        switch (itemsize) {
            case 1: return look_up_as<u8>(codes, count, table, out);
            case 2: return look_up_as<u16>(codes, count, table, out);
            case 4: return look_up_as<u32>(codes, count, table, out);
            default: return look_up_as<u64>(codes, count, table, out);
        }
    }

    static void dequantize_f32(const u8* codes, std::size_t count, float scale, int zero, u8* out) {
        for (std::size_t i = 0; i < count; ++i) store(out + 4 * i, scale * static_cast<float>(static_cast<int>(codes[i]) - zero));
    }

    static void dequantize_bf16(const u8* codes, std::size_t count, float scale, int zero, u8* out) {
        for (std::size_t i = 0; i < count; ++i) {
            // Finite scales make no NaN, so rounding is an addition to the bits.
            const u32 bits = std::bit_cast<u32>(scale * static_cast<float>(static_cast<int>(codes[i]) - zero));
            store(out + 2 * i, static_cast<u16>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16));
        }
    }

    static constexpr Kernels table() {
        return {popcount,     merge,   partition,      translate,      unpack, merge_planes,
                split_planes, look_up, dequantize_f32, dequantize_bf16};
    }
};

}  // namespace
}  // namespace dcz
