// AVX2 and BMI2: pdep and pext move 8 symbols of a byte each at once.
#include <immintrin.h>

#include "kernels_impl.h"

namespace dcz {
namespace {

struct Avx2 {
    // A byte of ones for each of 8 bits.
    static u64 spread(u64 bits) { return _pdep_u64(bits, 0x0101010101010101u) * 0xFF; }

    template <bool kLeft, bool kRight>
    static void merge(u64 mask, Child& left, Child& right, u8* out) {
        const u64 every = 0x0101010101010101u;
        // Copies, because a store through `out` may change anything that is in memory.
        const u8 *l = left.symbols, *r = right.symbols;
        const u64 only_left = left.symbol * every, only_right = right.symbol * every;
        for (unsigned i = 0; i < 64; i += 8) {
            const u64 ones = spread((mask >> i) & 0xFF);
            const u64 count = static_cast<u64>(_mm_popcnt_u64((mask >> i) & 0xFF));
            u64 a, b;
            if constexpr (kLeft) {
                a = _pdep_u64(load<u64>(l), ~ones);
                l += 8 - count;
            } else {
                a = only_left & ~ones;
            }
            if constexpr (kRight) {
                b = _pdep_u64(load<u64>(r), ones);
                r += count;
            } else {
                b = only_right & ones;
            }
            store(out + i, a | b);
        }
        left.symbols = l;
        right.symbols = r;
    }

    static u64 partition(const u8* in, u8 threshold, u64 valid, u8*& left, u8*& right) {
        const __m256i bound = _mm256_set1_epi8(static_cast<char>(threshold));
        u64 mask = 0;
        for (unsigned half = 0; half < 2; ++half) {
            const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + 32 * half));
            const __m256i reached = _mm256_cmpeq_epi8(_mm256_max_epu8(x, bound), x);
            mask |= static_cast<u64>(static_cast<u32>(_mm256_movemask_epi8(reached))) << (32 * half);
        }
        mask &= valid;
        for (unsigned i = 0; i < 64; i += 8) {
            const u64 x = load<u64>(in + i), here = (mask >> i) & 0xFF, there = (~mask & valid) >> i & 0xFF;
            if (left) {
                store(left, _pext_u64(x, spread(there)));
                left += _mm_popcnt_u64(there);
            }
            if (right) {
                store(right, _pext_u64(x, spread(here)));
                right += _mm_popcnt_u64(here);
            }
        }
        return mask;
    }

    static void translate(const u8* in, const u8 table[256], u8* out) {
        for (unsigned i = 0; i < 64; ++i) out[i] = table[in[i]];
    }

    static void unpack8(u64 bits, unsigned width, u8* out) {
        store(out, _pdep_u64(bits, low_bits(width) * 0x0101010101010101u));
    }
};

}  // namespace

const Kernels kAvx2Kernels = Loops<Avx2>::table();

}  // namespace dcz
