#include "kernels_impl.h"

namespace dcz {
namespace {

struct Portable {
    template <bool kLeft, bool kRight>
    static void merge(u64 mask, Child& left, Child& right, u8* out) {
        for (unsigned i = 0; i < 64; ++i) {
            const u64 bit = (mask >> i) & 1;
            const u8 a = kLeft ? *left.symbols : left.symbol;
            const u8 b = kRight ? *right.symbols : right.symbol;
            out[i] = static_cast<u8>(a ^ ((a ^ b) & -bit));  // the bits are random: a branch would miss half the time
            if constexpr (kLeft) left.symbols += 1 - bit;
            if constexpr (kRight) right.symbols += bit;
        }
    }

    static u64 partition(const u8* in, u8 threshold, u64 valid, u8*& left, u8*& right) {
        u64 mask = 0;
        for (unsigned i = 0; i < 64 && (valid >> i) & 1; ++i) {
            const u64 bit = in[i] >= threshold;
            mask |= bit << i;
            if (left) {
                *left = in[i];
                left += 1 - bit;
            }
            if (right) {
                *right = in[i];
                right += bit;
            }
        }
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
