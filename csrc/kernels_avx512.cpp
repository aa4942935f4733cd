// AVX-512 VBMI2: vpexpandb and vpcompressb move 64 symbols at once.
#include <immintrin.h>

#include "kernels_impl.h"

namespace dcz {
namespace {

struct Avx512 {
    template <bool kLeft, bool kRight>
    static void merge(u64 mask, Child& left, Child& right, u8* out) {
        const u64 ones = static_cast<u64>(_mm_popcnt_u64(mask));
        __m512i x;
        if constexpr (kLeft) {
            x = _mm512_maskz_expand_epi8(~mask, _mm512_loadu_si512(left.symbols));
            left.symbols += 64 - ones;
        } else {
            x = _mm512_set1_epi8(static_cast<char>(left.symbol));
        }
        if constexpr (kRight) {
            x = _mm512_mask_expand_epi8(x, mask, _mm512_loadu_si512(right.symbols));
            right.symbols += ones;
        } else {
            x = _mm512_mask_blend_epi8(mask, x, _mm512_set1_epi8(static_cast<char>(right.symbol)));
        }
        _mm512_storeu_si512(out, x);
    }

    static u64 partition(const u8* in, u8 threshold, u64 valid, u8*& left, u8*& right) {
        const __m512i x = _mm512_loadu_si512(in);
        const u64 mask = _mm512_cmpge_epu8_mask(x, _mm512_set1_epi8(static_cast<char>(threshold))) & valid;
        const u64 rest = ~mask & valid;
        // The register form: compressing into memory is slow on some processors.
        if (left) {
            _mm512_storeu_si512(left, _mm512_maskz_compress_epi8(rest, x));
            left += _mm_popcnt_u64(rest);
        }
        if (right) {
            _mm512_storeu_si512(right, _mm512_maskz_compress_epi8(mask, x));
            right += _mm_popcnt_u64(mask);
        }
        return mask;
    }

    static void translate(const u8* in, const u8 table[256], u8* out) {
        const __m512i x = _mm512_loadu_si512(in);
        const __m512i low = _mm512_permutex2var_epi8(_mm512_loadu_si512(table), x, _mm512_loadu_si512(table + 64));
        const __m512i high = _mm512_permutex2var_epi8(_mm512_loadu_si512(table + 128), x, _mm512_loadu_si512(table + 192));
        _mm512_storeu_si512(out, _mm512_mask_blend_epi8(_mm512_movepi8_mask(x), low, high));
    }

    static void unpack8(u64 bits, unsigned width, u8* out) {
        store(out, _pdep_u64(bits, low_bits(width) * 0x0101010101010101u));
    }
};

}  // namespace

const Kernels kAvx512Kernels = Loops<Avx512>::table();

}  // namespace dcz
