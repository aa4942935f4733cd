// AVX2 and BMI2: pdep and pext move 8 symbols of a byte each at once.
#include <immintrin.h>

#include <array>

#include "kernels_impl.h"

namespace dcz {
namespace {

// For each mask of 8 bits, which of 16 bytes go where: where a bit is 0, the next of the lower 8; where it is 1, the next
// of the upper 8.
constexpr std::array<u64, 256> kMerge = [] {
    std::array<u64, 256> table{};
    for (unsigned mask = 0; mask < 256; ++mask) {
        u64 next[2] = {0, 8};
        for (unsigned i = 0; i < 8; ++i) table[mask] |= next[(mask >> i) & 1]++ << (8 * i);
    }
    return table;
}();

// For each mask of 8 bits, which of 16 bytes go where: where a bit is 1, the next from `first` on; elsewhere none, so zero.
constexpr std::array<u64, 256> expansion(u64 first) {
    std::array<u64, 256> table{};
    for (unsigned mask = 0; mask < 256; ++mask) {
        u64 next = first;
        for (unsigned i = 0; i < 8; ++i) table[mask] |= ((mask >> i) & 1 ? next++ : 0x80) << (8 * i);
    }
    return table;
}
constexpr std::array<u64, 256> kExpandLow = expansion(0), kExpandHigh = expansion(8);

struct Avx2 {
    static constexpr std::size_t kWindow = 0;

    // A byte of ones for each of 8 bits.
    static u64 spread(u64 bits) { return _pdep_u64(bits, 0x0101010101010101u) * 0xFF; }

    static u64 popcount(const u8* bits, std::size_t bytes) { return popcount_words(bits, bytes); }

    // All ones in each byte whose bit is 1.
    static __m256i spread32(u32 bits) {
        const __m256i byte_of = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
        const __m256i bit_of = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201));
        const __m256i x = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(bits)), byte_of);
        return _mm256_cmpeq_epi8(_mm256_and_si256(x, bit_of), bit_of);
    }

    // Choosing between two symbols by bits takes as many instructions as merging symbols.
    static constexpr bool kTakesPairs = false;

    template <Child::Kind kLeft, Child::Kind kRight>
    static void merge(u64 mask, Child& left, Child& right, u8* out) {
        using Kind = Child::Kind;
        if constexpr (kRight == Kind::leaf) {
            const __m256i a = _mm256_set1_epi8(static_cast<char>(left.zero)), b = _mm256_set1_epi8(static_cast<char>(right.zero));
            for (unsigned half = 0; half < 64; half += 32) {
                const __m256i x = _mm256_blendv_epi8(a, b, spread32(static_cast<u32>(mask >> half)));
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + half), x);
            }
            return;
        }
        // Where the next symbols stand, less the ones that come before them on the other side.
        const u8 *l = left.data, *r = right.data;
        const __m128i only_left = _mm_set1_epi8(static_cast<char>(left.zero));
        u8 masks[8];
        store(masks, mask);
        for (unsigned i = 0; i < 8; ++i) {
            const unsigned here = masks[i];
            const auto count = static_cast<std::size_t>(_mm_popcnt_u32(here));
            __m128i both = only_left;
            if constexpr (kLeft == Kind::subtree) {
                both = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(l + 8 * i));
                l -= count;
            }
            both = _mm_castps_si128(_mm_loadh_pi(_mm_castsi128_ps(both), reinterpret_cast<const __m64*>(r)));
            r += count;
            const __m128i order = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(&kMerge[here]));
            _mm_storel_epi64(reinterpret_cast<__m128i*>(out + 8 * i), _mm_shuffle_epi8(both, order));
        }
        if constexpr (kLeft == Kind::subtree) left.data = l + 64;
        right.data = r;
    }

    // Codes of up to four bits index a shuffle; of a fifth, it chooses between two.
    template <unsigned kWidth, bool kLast>
    struct Symbols {
        explicit Symbols(const u8 symbols[256]) {
            std::memcpy(all, symbols, sizeof all);
            if constexpr (!kLast) all[low_bits(kWidth)] = 0;
            for (unsigned i = 0; i < 2; ++i) x[i] = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(all + 16 * i)));
        }

        u8 all[kWidth <= 5 ? 32 : 256];
        __m256i x[2];
    };

    // The next of 16 bytes where a bit of the mask is 1, zero elsewhere; advances.
    static __m128i expand16(u64 mask, const u8*& from) {
        const u64 low = mask & 0xFF, high = mask >> 8 & 0xFF;
        const auto count = static_cast<std::size_t>(_mm_popcnt_u64(low));
        const auto pair = [](const void* a, const void* b) {
            return _mm_castps_si128(_mm_loadh_pi(_mm_castsi128_ps(_mm_loadl_epi64(static_cast<const __m128i*>(a))), static_cast<const __m64*>(b)));
        };
        const __m128i bytes = pair(from, from + count), order = pair(&kExpandLow[low], &kExpandHigh[high]);
        from += count + static_cast<std::size_t>(_mm_popcnt_u64(high));
        return _mm_shuffle_epi8(bytes, order);
    }

    template <unsigned kWidth, bool kLast>
    static u64 take_group(const u8* group, const Symbols<kWidth, kLast>& of, const u8* higher, u8* out) {
        u64 all = ~u64{0};
        for (unsigned k = 0; k < kWidth; ++k) all &= load<u64>(group + 8 * k);
        for (unsigned half = 0; half < 2; ++half) {
            __m256i x;
            if constexpr (kWidth <= 5) {
                __m256i code = _mm256_setzero_si256();
                for (unsigned k = 0; k < (kWidth < 4 ? kWidth : 4); ++k)
                    code = _mm256_or_si256(code, _mm256_and_si256(spread32(load<u32>(group + 8 * k + 4 * half)), _mm256_set1_epi8(static_cast<char>(1 << k))));
                x = _mm256_shuffle_epi8(of.x[0], code);
                if constexpr (kWidth == 5)
                    x = _mm256_blendv_epi8(x, _mm256_shuffle_epi8(of.x[1], code), spread32(load<u32>(group + 32 + 4 * half)));
            } else {
                u8 made[32];
                for (unsigned i = 0; i < 4; ++i) {
                    u64 code = 0;
                    for (unsigned k = 0; k < kWidth; ++k) code |= _pdep_u64(group[8 * k + 4 * half + i], 0x0101010101010101u) << k;
                    for (unsigned j = 0; j < 8; ++j) made[8 * i + j] = of.all[code >> (8 * j) & 0xFF];
                }
                x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(made));
            }
            if constexpr (!kLast) {
                const u64 here = all >> (32 * half);
                const __m128i low = expand16(here, higher), high = expand16(here >> 16, higher);
                x = _mm256_or_si256(x, _mm256_set_m128i(high, low));
            }
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 32 * half), x);
        }
        return all;
    }

    static u64 plane(const u8* values, unsigned bit) {
        u64 bits = 0;
        for (unsigned i = 0; i < 64; i += 32) {
            const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + i));
            bits |= u64{static_cast<u32>(_mm256_movemask_epi8(_mm256_sll_epi16(x, _mm_cvtsi32_si128(static_cast<int>(7 - bit)))))} << i;
        }
        return bits;
    }

    template <bool kStreaming>
    static void put(u8* out, __m256i x) {
        if constexpr (kStreaming)
            _mm256_stream_si256(reinterpret_cast<__m256i*>(out), x);
        else
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), x);
    }

    // 32 elements at a time. Unpacking works within lanes of 128 bits, so the planes' pieces are put into these first.
    template <class T, bool kRotated, bool kStreaming>
    static std::size_t merge_planes(const u8* const* p, std::size_t count, [[maybe_unused]] T added, u8* out) {
        std::size_t i = 0;
        if constexpr (sizeof(T) == 2 || sizeof(T) == 4) {
            const __m256i taken = sizeof(T) == 2 ? _mm256_set1_epi16(static_cast<short>(added)) : _mm256_set1_epi32(static_cast<int>(added));
            for (; i + 32 <= count; i += 32, out += 32 * sizeof(T)) {
                __m256i v[sizeof(T)];
                for (unsigned j = 0; j < sizeof(T); ++j) {
                    v[j] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p[j] + i));
                    if constexpr (sizeof(T) == 2)
                        v[j] = _mm256_permute4x64_epi64(v[j], 0b11011000);
                    else
                        v[j] = _mm256_permutevar8x32_epi32(v[j], _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
                }
                const __m256i low[2] = {_mm256_unpacklo_epi8(v[0], v[1]), _mm256_unpackhi_epi8(v[0], v[1])};
                if constexpr (sizeof(T) == 2) {
                    for (unsigned k = 0; k < 2; ++k) {
                        __m256i x = low[k];
                        if constexpr (kRotated) {
                            x = _mm256_sub_epi16(x, taken);
                            x = _mm256_or_si256(_mm256_srli_epi16(x, 1), _mm256_slli_epi16(x, 15));
                        }
                        put<kStreaming>(out + 32 * k, x);
                    }
                } else {
                    const __m256i high[2] = {_mm256_unpacklo_epi8(v[2], v[3]), _mm256_unpackhi_epi8(v[2], v[3])};
                    for (unsigned k = 0; k < 4; ++k) {
                        __m256i x = k % 2 ? _mm256_unpackhi_epi16(low[k / 2], high[k / 2]) : _mm256_unpacklo_epi16(low[k / 2], high[k / 2]);
                        if constexpr (kRotated) {
                            x = _mm256_sub_epi32(x, taken);
                            x = _mm256_or_si256(_mm256_srli_epi32(x, 1), _mm256_slli_epi32(x, 31));
                        }
                        put<kStreaming>(out + 32 * k, x);
                    }
                }
            }
        }
        return i;
    }

    // Tables of four bytes that two registers hold.
    template <class T>
    static std::size_t look_up(const u8* codes, std::size_t count, const u8* table, std::size_t size, u8* out) {
        std::size_t i = 0;
        if constexpr (sizeof(T) == 4) {
            if (size > 16 || count < 16) return 0;
            alignas(32) u8 padded[64] = {};
            std::memcpy(padded, table, size * sizeof(T));
            const __m256 low = _mm256_load_ps(reinterpret_cast<const float*>(padded));
            const __m256 high = _mm256_load_ps(reinterpret_cast<const float*>(padded + 32));
            for (; i + 8 <= count; i += 8) {
                const __m256i code = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + i)));
                const __m256 a = _mm256_permutevar8x32_ps(low, code), b = _mm256_permutevar8x32_ps(high, code);
                // The fourth bit of a code, where a blend looks for it.
                const __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(code, 28));
                _mm256_storeu_ps(reinterpret_cast<float*>(out + 4 * i), _mm256_blendv_ps(a, b, upper));
            }
        }
        return i;
    }

    template <class T, bool kPacked, bool kStreaming>
    static std::size_t look_up_run(const u8* codes, std::size_t count, const u8* table, u8* out) {
        std::size_t i = 0;
        if constexpr (sizeof(T) == 4) {
            const __m256 low = _mm256_loadu_ps(reinterpret_cast<const float*>(table));
            const __m256 high = _mm256_loadu_ps(reinterpret_cast<const float*>(table + 32));
            const __m256i places = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
            for (; i + 8 <= count; i += 8) {
                __m256i code;
                if constexpr (kPacked)
                    code = _mm256_srlv_epi32(_mm256_set1_epi32(load<int>(codes + i / 2)), places);
                else
                    code = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + i)));
                // Permuting looks at the lower three bits, a blend at the highest one.
                const __m256 a = _mm256_permutevar8x32_ps(low, code), b = _mm256_permutevar8x32_ps(high, code);
                const __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(code, 28));
                put<kStreaming>(out + 4 * i, _mm256_castps_si256(_mm256_blendv_ps(a, b, upper)));
            }
        } else {
            // The lower bytes of the 16 elements, and the upper ones.
            const __m128i apart = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
            const __m128i first = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)), apart);
            const __m128i second = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table + 16)), apart);
            const __m256i low = _mm256_broadcastsi128_si256(_mm_unpacklo_epi64(first, second));
            const __m256i high = _mm256_broadcastsi128_si256(_mm_unpackhi_epi64(first, second));
            for (; i + 32 <= count; i += 32) {
                __m256i code;
                if constexpr (kPacked) {
                    const __m256i x = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + i / 2)));
                    code = _mm256_and_si256(_mm256_or_si256(x, _mm256_slli_epi16(x, 4)), _mm256_set1_epi8(15));
                } else {
                    code = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + i));
                }
                // Unpacking works within lanes of 128 bits.
                code = _mm256_permute4x64_epi64(code, 0b11011000);
                const __m256i a = _mm256_shuffle_epi8(low, code), b = _mm256_shuffle_epi8(high, code);
                put<kStreaming>(out + 2 * i, _mm256_unpacklo_epi8(a, b));
                put<kStreaming>(out + 2 * i + 32, _mm256_unpackhi_epi8(a, b));
            }
        }
        return i;
    }

    template <class T, bool kStreaming>
    static void expand(u64 mask, const u8*& values, u8* out) {
        alignas(64) u8 elements[64 * sizeof(T)];
        expand_ones<T>(mask, values, kStreaming ? elements : out);
        if constexpr (kStreaming) copy(elements, sizeof elements, out);
    }

    static std::size_t gap_positions(const u8*, std::size_t, u8, u32*, GapEnd&) { return 0; }

    static std::size_t copy(const u8* in, std::size_t size, u8* out) {
        std::size_t i = 0;
        for (; i + 32 <= size; i += 32) put<true>(out + i, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + i)));
        return i;
    }

    static std::size_t drain(u8* in, std::size_t size, u8* out) {
        const __m256i zero = _mm256_setzero_si256();
        std::size_t i = 0;
        for (; i + 64 <= size; i += 64) {
            const auto* line = reinterpret_cast<const __m256i*>(in + i);
            const __m256i a = _mm256_load_si256(line), b = _mm256_load_si256(line + 1);
            put<false>(in + i, zero);
            put<false>(in + i + 32, zero);
            put<true>(out + i, a);
            put<true>(out + i + 32, b);
        }
        return i;
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

    static std::size_t halve(const float* in, std::size_t count, u8* out) {
        std::size_t i = 0;
        for (; i + 8 <= count; i += 8)
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 2 * i), _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
        return i;
    }

    static void unpack8(u64 bits, unsigned width, u8* out) {
        store(out, _pdep_u64(bits, low_bits(width) * 0x0101010101010101u));
    }
};

}  // namespace

const Kernels kAvx2Kernels = Loops<Avx2>::table();

}  // namespace dcz
