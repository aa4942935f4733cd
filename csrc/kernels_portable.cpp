#include "kernels_impl.h"

namespace dcz {
namespace {

struct Portable {
    template <bool kLeft, bool kRight>
    static void merge(u64 mask, Child& left, Child& right, u8* out) {
        // Copies, because a store through `out` may change anything that is in memory.
        const u8 *l = left.symbols, *r = right.symbols;
        const u8 only_left = left.symbol, only_right = right.symbol;
        for (unsigned i = 0; i < 64; ++i) {
            const u64 bit = (mask >> i) & 1;
            const u8 a = kLeft ? *l : only_left, b = kRight ? *r : only_right;
            out[i] = static_cast<u8>(a ^ ((a ^ b) & -bit));  // the bits are random: a branch would miss half the time
            if constexpr (kLeft) l += 1 - bit;
            if constexpr (kRight) r += bit;
        }
        left.symbols = l;
        right.symbols = r;
    }

    static u64 partition(const u8* in, u8 threshold, u64 valid, u8*& left, u8*& right) {
        u64 mask = 0;
        u8 *l = left, *r = right;
        for (unsigned i = 0; i < 64 && (valid >> i) & 1; ++i) {
            const u8 symbol = in[i];
            const u64 bit = symbol >= threshold;
            mask |= bit << i;
            if (l) {
                *l = symbol;
                l += 1 - bit;
            }
            if (r) {
                *r = symbol;
                r += bit;
            }
        }
        left = l;
        right = r;
        return mask;
    }

    static void translate(const u8* in, const u8 table[256], u8* out) {
        for (unsigned i = 0; i < 64; ++i) out[i] = table[in[i]];
    }

    static void unpack8(u64 bits, unsigned width, u8* out) {
        for (unsigned i = 0; i < 8; ++i) out[i] = static_cast<u8>((bits >> (i * width)) & low_bits(width));
    }
};

}  // namespace

const Kernels kPortableKernels = Loops<Portable>::table();

}  // namespace dcz
