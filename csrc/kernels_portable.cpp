#include "kernels_impl.h"

namespace dcz {
namespace {

struct Portable {
    static constexpr std::size_t kWindow = 0;

    template <Child::Kind kKind>
    struct Source {
        explicit Source(const Child& child)
            : zero(child.zero), change(static_cast<u8>(child.zero ^ child.one)), next(child.data), bits(kKind == Child::Kind::pair ? pair_bits(child) : 0) {}

        u8 peek() const {
            if constexpr (kKind == Child::Kind::subtree) return *next;
            if constexpr (kKind == Child::Kind::pair) return static_cast<u8>(zero ^ (change & -(bits & 1)));
            return zero;
        }

        void advance(u64 by) {  // 0 or 1
            if constexpr (kKind == Child::Kind::subtree) next += by;
            if constexpr (kKind == Child::Kind::pair) bits >>= by;
        }

        u8 zero, change;
        const u8* next;
        u64 bits;
    };

    static u64 popcount(const u8* bits, std::size_t bytes) { return popcount_words(bits, bytes); }

    static constexpr bool kTakesPairs = true;

    template <Child::Kind kLeft, Child::Kind kRight>
    static void merge(u64 mask, Child& left, Child& right, u8* out) {
        Source<kLeft> l(left);
        Source<kRight> r(right);
        for (unsigned i = 0; i < 64; ++i) {
            const u64 bit = (mask >> i) & 1;
            const u8 a = l.peek(), b = r.peek();
            out[i] = static_cast<u8>(a ^ ((a ^ b) & -bit));  // the bits are random: a branch would miss half the time
            l.advance(1 - bit);
            r.advance(bit);
        }
        const auto ones = static_cast<std::size_t>(__builtin_popcountll(mask));
        left.data = l.next;
        left.taken += 64 - ones;
        right.data = r.next;
        right.taken += ones;
    }

    template <unsigned kWidth, bool kLast>
    struct Symbols {
        explicit Symbols(const u8 symbols[256]) { std::memcpy(all, symbols, sizeof all); }

        u8 all[1u << kWidth];
    };

    // A byte for each of 8 bits.
    static u64 spread(u8 bits) { return ((bits * 0x0101010101010101u & 0x8040201008040201u) + 0x7F7F7F7F7F7F7F7Fu) >> 7 & 0x0101010101010101u; }

    template <unsigned kWidth, bool kLast>
    static u64 take_group(const u8* group, const Symbols<kWidth, kLast>& of, const u8* higher, u8* out) {
        u64 all = ~u64{0};
        for (unsigned k = 0; k < kWidth; ++k) all &= load<u64>(group + 8 * k);
        u8 made[64];
        for (unsigned i = 0; i < 8; ++i) {
            u64 code = 0;
            for (unsigned k = 0; k < kWidth; ++k) code |= spread(group[8 * k + i]) << k;
            for (unsigned j = 0; j < 8; ++j) {
                const u8 symbol = of.all[code >> (8 * j) & 0xFF];
                if constexpr (kLast) {
                    made[8 * i + j] = symbol;
                } else {
                    const u64 bit = all >> (8 * i + j) & 1;
                    made[8 * i + j] = static_cast<u8>(symbol ^ ((symbol ^ *higher) & -bit));  // no branch: the bits are random
                    higher += bit;
                }
            }
        }
        std::memcpy(out, made, 64);
        return all;
    }

    static u64 plane(const u8* values, unsigned bit) {
        u64 bits = 0;
        for (unsigned i = 0; i < 64; i += 8) bits |= (load<u64>(values + i) >> bit & 0x0101010101010101u) * 0x0102040810204080u >> 56 << i;
        return bits;
    }

    template <class T, bool kRotated, bool kStreaming>
    static std::size_t merge_planes(const u8* const*, std::size_t, T, u8*) {
        return 0;
    }

    template <class T>
    static std::size_t look_up(const u8*, std::size_t, const u8*, std::size_t, u8*) {
        return 0;
    }

    template <class T, bool kPacked, bool kStreaming>
    static std::size_t look_up_run(const u8*, std::size_t, const u8*, u8*) {
        return 0;
    }

    template <class T, bool kStreaming>
    static void expand(u64 mask, const u8*& values, u8* out) {
        expand_ones<T>(mask, values, out);
    }

    static std::size_t gap_positions(const u8*, std::size_t, u8, u32*, GapEnd&) { return 0; }

    static std::size_t copy(const u8*, std::size_t, u8*) { return 0; }

    static std::size_t drain(u8*, std::size_t, u8*) { return 0; }

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

    static std::size_t halve(const float*, std::size_t, u8*) { return 0; }

    static void unpack8(u64 bits, unsigned width, u8* out) {
        for (unsigned i = 0; i < 8; ++i) out[i] = static_cast<u8>((bits >> (i * width)) & low_bits(width));
    }
};

}  // namespace

const Kernels kPortableKernels = Loops<Portable>::table();

}  // namespace dcz
