// AVX-512 VBMI2: vpexpandb and vpcompressb move 64 symbols at once.
#include <immintrin.h>

#include <array>

#include "kernels_impl.h"

namespace dcz {
namespace {

struct Avx512 {
    static u64 popcount(const u8* bits, std::size_t bytes) {
        __m512i ones = _mm512_setzero_si512();
        std::size_t i = 0;
        for (; i + 64 <= bytes; i += 64) ones = _mm512_add_epi64(ones, _mm512_popcnt_epi64(_mm512_loadu_si512(bits + i)));
        ones = _mm512_add_epi64(ones, _mm512_popcnt_epi64(_mm512_maskz_loadu_epi8(low_bits(static_cast<unsigned>(bytes - i)), bits + i)));
        return static_cast<u64>(_mm512_reduce_add_epi64(ones));
    }

    static constexpr bool kTakesPairs = true;

    template <Child::Kind kLeft, Child::Kind kRight>
    static void merge(u64 mask, Child& left, Child& right, u8* out) {
        using Kind = Child::Kind;
        const u64 ones = static_cast<u64>(_mm_popcnt_u64(mask));
        const auto all = [](u8 symbol) { return _mm512_set1_epi8(static_cast<char>(symbol)); };
        __m512i x;
        if constexpr (kLeft == Kind::subtree) {
            x = _mm512_maskz_expand_epi8(~mask, _mm512_loadu_si512(left.data));
            left.data += 64 - ones;
        } else if constexpr (kLeft == Kind::pair) {
            x = _mm512_mask_blend_epi8(_pdep_u64(pair_bits(left), ~mask), all(left.zero), all(left.one));
            left.taken += 64 - ones;
        } else {
            x = all(left.zero);
        }
        if constexpr (kRight == Kind::subtree) {
            x = _mm512_mask_expand_epi8(x, mask, _mm512_loadu_si512(right.data));
            right.data += ones;
        } else {
            x = _mm512_mask_blend_epi8(mask, x, all(right.zero));
            if constexpr (kRight == Kind::pair) {
                x = _mm512_mask_blend_epi8(_pdep_u64(pair_bits(right), mask), x, all(right.one));
                right.taken += ones;
            }
        }
        _mm512_storeu_si512(out, x);
    }

    // Codes of one or two bits choose by mask; wider ones become bytes that a table is permuted by.
    template <unsigned kWidth, bool kLast>
    struct Symbols {
        explicit Symbols(const u8 symbols[256]) {
            constexpr unsigned kLoads = kWidth <= 6 ? 1 : kWidth == 7 ? 2 : 4;
            for (unsigned i = 0; i < (kWidth <= 2 ? 1u << kWidth : kLoads); ++i)
                x[i] = kWidth > 2 ? _mm512_loadu_si512(symbols + 64 * i) : _mm512_set1_epi8(static_cast<char>(symbols[i]));
        }

        __m512i x[4];
    };

    // 64 codes as bytes: the bytes of all planes that belong to 8 codes come together, and these 8 by 8 bits are transposed.
    template <unsigned kWidth>
    static __m512i codes(const u8* group) {
        alignas(64) static constexpr std::array<u8, 64> kTogether = [] {
            std::array<u8, 64> order{};
            for (unsigned eight = 0; eight < 8; ++eight)
                for (unsigned bit = 0; bit < 8; ++bit) order[8 * eight + 7 - bit] = static_cast<u8>(8 * bit + eight);
            return order;
        }();
        const __m512i planes = _mm512_maskz_loadu_epi64(static_cast<__mmask8>(low_bits(kWidth)), group);
        const __m512i together = _mm512_permutexvar_epi8(_mm512_load_si512(kTogether.data()), planes);
        return _mm512_gf2p8affine_epi64_epi8(_mm512_set1_epi64(static_cast<long long>(0x8040201008040201)), together, 0);
    }

    template <unsigned kWidth, bool kLast>
    static u64 take_group(const u8* group, const Symbols<kWidth, kLast>& of, const u8* higher, u8* out) {
        u64 all = ~u64{0};
        for (unsigned k = 0; k < kWidth; ++k) all &= load<u64>(group + 8 * k);
        __m512i x;
        if constexpr (kWidth <= 2) {
            x = _mm512_mask_blend_epi8(load<u64>(group), of.x[0], of.x[1]);
            if constexpr (kWidth == 2) {
                x = _mm512_mask_blend_epi8(load<u64>(group + 8), x, of.x[2]);
                if constexpr (kLast) x = _mm512_mask_blend_epi8(all, x, of.x[3]);
            }
        } else {
            const __m512i code = codes<kWidth>(group);
            if constexpr (kWidth <= 6) x = _mm512_permutexvar_epi8(code, of.x[0]);
            if constexpr (kWidth > 6) x = _mm512_permutex2var_epi8(of.x[0], code, of.x[1]);
            if constexpr (kWidth == 8) x = _mm512_mask_blend_epi8(_mm512_movepi8_mask(code), x, _mm512_permutex2var_epi8(of.x[2], code, of.x[3]));
        }
        if constexpr (!kLast) x = _mm512_mask_expand_epi8(x, all, _mm512_loadu_si512(higher));
        _mm512_storeu_si512(out, x);
        return all;
    }

    static u64 plane(const u8* values, unsigned bit) {
        return _mm512_test_epi8_mask(_mm512_loadu_si512(values), _mm512_set1_epi8(static_cast<char>(1 << bit)));
    }

    template <bool kStreaming>
    static void put(u8* out, __m512i x) {
        if constexpr (kStreaming)
            _mm512_stream_si512(reinterpret_cast<__m512i*>(out), x);
        else
            _mm512_storeu_si512(out, x);
    }

    // 64 elements at a time. Unpacking works within lanes of 128 bits, so the planes' pieces are put into these first.
    template <class T, bool kRotated, bool kStreaming>
    static std::size_t merge_planes(const u8* const* p, std::size_t count, [[maybe_unused]] T added, u8* out) {
        std::size_t i = 0;
        if constexpr (sizeof(T) == 2) {
            const __m512i taken = _mm512_set1_epi16(static_cast<short>(added));
            const __m512i order = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0);
            for (; i + 64 <= count; i += 64, out += 128) {
                const __m512i a = _mm512_permutexvar_epi64(order, _mm512_loadu_si512(p[0] + i));
                const __m512i b = _mm512_permutexvar_epi64(order, _mm512_loadu_si512(p[1] + i));
                __m512i x[2] = {_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b)};
                for (unsigned k = 0; k < 2; ++k) {
                    if constexpr (kRotated) {
                        x[k] = _mm512_sub_epi16(x[k], taken);
                        x[k] = _mm512_shrdi_epi16(x[k], x[k], 1);
                    }
                    put<kStreaming>(out + 64 * k, x[k]);
                }
            }
        } else if constexpr (sizeof(T) == 4) {
            const __m512i taken = _mm512_set1_epi32(static_cast<int>(added));
            const __m512i order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
            for (; i + 64 <= count; i += 64, out += 256) {
                __m512i v[4];
                for (unsigned j = 0; j < 4; ++j) v[j] = _mm512_permutexvar_epi32(order, _mm512_loadu_si512(p[j] + i));
                const __m512i low[2] = {_mm512_unpacklo_epi8(v[0], v[1]), _mm512_unpackhi_epi8(v[0], v[1])};
                const __m512i high[2] = {_mm512_unpacklo_epi8(v[2], v[3]), _mm512_unpackhi_epi8(v[2], v[3])};
                for (unsigned k = 0; k < 4; ++k) {
                    __m512i x = k % 2 ? _mm512_unpackhi_epi16(low[k / 2], high[k / 2]) : _mm512_unpacklo_epi16(low[k / 2], high[k / 2]);
                    if constexpr (kRotated) x = _mm512_ror_epi32(_mm512_sub_epi32(x, taken), 1);
                    put<kStreaming>(out + 64 * k, x);
                }
            }
        }
        return i;
    }

    // Tables that two registers hold.
    template <class T>
    static std::size_t look_up(const u8* codes, std::size_t count, const u8* table, std::size_t size, u8* out) {
        std::size_t i = 0;
        if constexpr (sizeof(T) == 2 || sizeof(T) == 4) {
            constexpr std::size_t kLanes = 64 / sizeof(T);
            if (size > 2 * kLanes || count < 2 * kLanes) return 0;
            alignas(64) u8 padded[128] = {};
            std::memcpy(padded, table, size * sizeof(T));
            const __m512i low = _mm512_load_si512(padded), high = _mm512_load_si512(padded + 64);
            for (; i + kLanes <= count; i += kLanes) {
                __m512i x;
                if constexpr (sizeof(T) == 4)
                    x = _mm512_permutex2var_epi32(low, _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + i))), high);
                else
                    x = _mm512_permutex2var_epi16(low, _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + i))), high);
                _mm512_storeu_si512(out + i * sizeof(T), x);
            }
        }
        return i;
    }

    // Permuting looks at the lower bits of a lane only, which may have any others above them: of packed codes, each lane gets the
    // byte that begins with its own.
    template <class T, bool kPacked, bool kStreaming>
    static std::size_t look_up_run(const u8* codes, std::size_t count, const u8* table, u8* out) {
        std::size_t i = 0;
        if constexpr (sizeof(T) == 4) {
            const __m512i elements = _mm512_loadu_si512(table), places = _mm512_set_epi32(60, 56, 52, 48, 44, 40, 36, 32, 28, 24, 20, 16, 12, 8, 4, 0);
            for (; i + 16 <= count; i += 16) {
                __m512i code;
                if constexpr (kPacked)
                    code = _mm512_multishift_epi64_epi8(places, _mm512_set1_epi64(load<long long>(codes + i / 2)));
                else
                    code = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + i)));
                put<kStreaming>(out + 4 * i, _mm512_permutexvar_epi32(code, elements));
            }
        } else {
            // 32 lanes, so that the table stands there twice.
            const __m512i elements = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(table)));
            const __m512i places = _mm512_broadcast_i64x4(
                _mm256_set_epi16(60, 56, 52, 48, 44, 40, 36, 32, 28, 24, 20, 16, 12, 8, 4, 0));
            const __m512i halves = _mm512_set_epi64(1, 1, 1, 1, 0, 0, 0, 0);
            for (; i + 32 <= count; i += 32) {
                __m512i code;
                if constexpr (kPacked) {
                    const __m128i both = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + i / 2));
                    code = _mm512_multishift_epi64_epi8(places, _mm512_permutexvar_epi64(halves, _mm512_castsi128_si512(both)));
                } else {
                    code = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + i)));
                }
                put<kStreaming>(out + 2 * i, _mm512_permutexvar_epi16(code, elements));
            }
        }
        return i;
    }

    template <class T, bool kStreaming>
    static void expand(u64 mask, const u8*& values, u8* out) {
        constexpr unsigned kLanes = 64 / sizeof(T);
        for (unsigned i = 0; i < 64; i += kLanes, out += 64) {
            const u64 here = mask >> i & low_bits(kLanes);
            const __m512i x = _mm512_loadu_si512(values);
            if constexpr (sizeof(T) == 1) put<kStreaming>(out, _mm512_maskz_expand_epi8(here, x));
            if constexpr (sizeof(T) == 2) put<kStreaming>(out, _mm512_maskz_expand_epi16(static_cast<__mmask32>(here), x));
            if constexpr (sizeof(T) == 4) put<kStreaming>(out, _mm512_maskz_expand_epi32(static_cast<__mmask16>(here), x));
            if constexpr (sizeof(T) == 8) put<kStreaming>(out, _mm512_maskz_expand_epi64(static_cast<__mmask8>(here), x));
            values += static_cast<std::size_t>(_mm_popcnt_u64(here)) * sizeof(T);
        }
    }

    // 16 symbols at a time, and 4096 before the position is kept as a number.
    static std::size_t gap_positions(const u8* gaps, std::size_t count, u8 filler, u32* positions, GapEnd& end) {
        const __m512i zero = _mm512_setzero_si512(), last = _mm512_set1_epi32(15), fillers = _mm512_set1_epi32(filler);
        std::size_t i = 0, entry = 0;
        u64 position = 0;
        while (i + 16 <= count) {
            const std::size_t stop = std::min(count - 15, i + 4096);
            const __m512i base = _mm512_set1_epi32(static_cast<int>(position - 1));
            __m512i sum = zero;
            for (; i < stop; i += 16) {
                __m512i x = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(gaps + i)));
                const __mmask16 stored = _mm512_cmpneq_epi32_mask(x, fillers);
                x = _mm512_mask_add_epi32(x, stored, x, _mm512_set1_epi32(1));
                x = _mm512_add_epi32(x, _mm512_alignr_epi32(x, zero, 15));
                x = _mm512_add_epi32(x, _mm512_alignr_epi32(x, zero, 14));
                x = _mm512_add_epi32(x, _mm512_alignr_epi32(x, zero, 12));
                x = _mm512_add_epi32(x, _mm512_alignr_epi32(x, zero, 8));
                x = _mm512_add_epi32(x, sum);
                sum = _mm512_permutexvar_epi32(last, x);
                _mm512_storeu_si512(positions + entry, _mm512_maskz_compress_epi32(stored, _mm512_add_epi32(x, base)));
                entry += static_cast<std::size_t>(_mm_popcnt_u32(stored));
            }
            position += static_cast<u32>(_mm_cvtsi128_si32(_mm512_castsi512_si128(sum)));
        }
        end = {position, entry};
        return i;
    }

    static std::size_t copy(const u8* in, std::size_t size, u8* out) {
        std::size_t i = 0;
        for (; i + 64 <= size; i += 64) put<true>(out + i, _mm512_loadu_si512(in + i));
        return i;
    }

    static std::size_t drain(u8* in, std::size_t size, u8* out) {
        std::size_t i = 0;
        for (; i + 64 <= size; i += 64) {
            const __m512i x = _mm512_load_si512(in + i);
            put<false>(in + i, _mm512_setzero_si512());
            put<true>(out + i, x);
        }
        return i;
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

    static constexpr std::size_t kWindow = 16;

    // Bit k of each byte of a vector says whether that byte's symbol is number k of 8. Vectors are added bit by bit: weight 1,
    // 2, 4 and 8 are kept, and what is carried into 16 is counted (Harley and Seal; Mula, Kurz and Lemire 2018).
    class FlagCounter {
      public:
        void add(const __m512i (&flags)[16]) {
            __m512i carried[8];
            for (std::size_t i = 0; i < 8; ++i) carried[i] = carry(kept_[0], flags[2 * i], flags[2 * i + 1]);
            for (std::size_t i = 0; i < 4; ++i) carried[i] = carry(kept_[1], carried[2 * i], carried[2 * i + 1]);
            for (std::size_t i = 0; i < 2; ++i) carried[i] = carry(kept_[2], carried[2 * i], carried[2 * i + 1]);
            count(carry(kept_[3], carried[0], carried[1]), 16);
        }

        // Adds to `counts` what was counted.
        void finish(u64 counts[8]) {
            for (std::size_t i = 0; i < 4; ++i) count(kept_[i], u64{1} << i);
            for (std::size_t k = 0; k < 8; ++k) counts[k] += counts_[k];
        }

      private:
        static __m512i carry(__m512i& sum, __m512i a, __m512i b) {
            const __m512i carried = _mm512_ternarylogic_epi32(sum, a, b, 0xE8);  // two of three
            sum = _mm512_ternarylogic_epi32(sum, a, b, 0x96);                    // one or three
            return carried;
        }

        void count(__m512i flags, u64 weight) {
            for (unsigned k = 0; k < 8; ++k)
                counts_[k] += weight * static_cast<u64>(_mm_popcnt_u64(_mm512_test_epi8_mask(flags, _mm512_set1_epi8(static_cast<char>(1u << k)))));
        }

        __m512i kept_[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
        u64 counts_[8] = {};
    };

    static void count_window(const u8* in, std::size_t groups, u8 first, u64 counts[256]) {
        const __m512i base = _mm512_set1_epi8(static_cast<char>(first)), up = _mm512_set1_epi8(0x80 - kWindow);
        const __m512i low = _mm512_broadcast_i32x4(_mm_set_epi64x(0, static_cast<long long>(0x8040201008040201)));
        const __m512i high = _mm512_broadcast_i32x4(_mm_set_epi64x(static_cast<long long>(0x8040201008040201), 0));
        FlagCounter lower, upper;
        for (std::size_t g = 0; g < groups; g += 16) {
            __m512i low_flags[16], high_flags[16];
            for (std::size_t i = 0; i < 16; ++i) {
                if (g + i >= groups) {
                    low_flags[i] = high_flags[i] = _mm512_setzero_si512();
                    continue;
                }
                const u8* group = in + (g + i) * 64;
                // Below 0x80 are those of the window, whose place is in the lower four bits; the others have no flag.
                const __m512i x = _mm512_adds_epu8(_mm512_sub_epi8(_mm512_loadu_si512(group), base), up);
                low_flags[i] = _mm512_shuffle_epi8(low, x);
                high_flags[i] = _mm512_shuffle_epi8(high, x);
                for (u64 others = _mm512_movepi8_mask(x); others != 0; others &= others - 1) ++counts[group[__builtin_ctzll(others)]];
            }
            lower.add(low_flags);
            upper.add(high_flags);
        }
        lower.finish(counts + first);
        upper.finish(counts + first + 8);
    }

    static void translate(const u8* in, const u8 table[256], u8* out) {
        const __m512i x = _mm512_loadu_si512(in);
        const __m512i low = _mm512_permutex2var_epi8(_mm512_loadu_si512(table), x, _mm512_loadu_si512(table + 64));
        const __m512i high = _mm512_permutex2var_epi8(_mm512_loadu_si512(table + 128), x, _mm512_loadu_si512(table + 192));
        _mm512_storeu_si512(out, _mm512_mask_blend_epi8(_mm512_movepi8_mask(x), low, high));
    }

    static std::size_t halve(const float* in, std::size_t count, u8* out) {
        std::size_t i = 0;
        for (; i + 16 <= count; i += 16)
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 2 * i), _mm512_cvtps_ph(_mm512_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
        return i;
    }

    static void unpack8(u64 bits, unsigned width, u8* out) {
        store(out, _pdep_u64(bits, low_bits(width) * 0x0101010101010101u));
    }
};

}  // namespace

const Kernels kAvx512Kernels = Loops<Avx512>::table();

}  // namespace dcz
