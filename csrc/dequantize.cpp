#include "dequantize.h"

#include <algorithm>
#include <vector>

#include "kernels.h"

namespace dcz {

u64 Groups::of(u64 element) const {
    switch (kind) {
        case Kind::tensor: return 0;
        case Kind::channel: return element / inner % extent;
        case Kind::group: break;
    }
    return element / inner * ((inner + extent - 1) / extent) + element % inner / extent;
}

u64 Groups::run_end(u64 element) const {
    switch (kind) {
        case Kind::tensor: return ~u64{0};
        case Kind::channel: return extent == 1 ? ~u64{0} : (element / inner + 1) * inner;
        case Kind::group: break;
    }
    const u64 column = element % inner;
    return element - column + std::min(inner, (column / extent + 1) * extent);
}

namespace {

// The same for neighbours: the group behind each run is known without a division, which takes as long as a short run.
template <class F>
void for_each_neighbour_run(const Selection& which, const Groups& groups, F& run) {
    u64 group = groups.of(which.start), element = which.start, end = groups.run_end(element);
    u64 row = groups.kind == Groups::Kind::group ? (element / groups.inner + 1) * groups.inner : 0;
    const u64 stop = which.start + which.count;
    for (;;) {
        const u64 next = std::min(end, stop);
        run(group, static_cast<std::size_t>(element - which.start), static_cast<std::size_t>(next - element));
        if (next == stop) return;
        element = next;
        ++group;
        if (groups.kind == Groups::Kind::channel) {
            if (group == groups.extent) group = 0;
            end += groups.inner;
        } else {
            if (element == row) row += groups.inner;
            end = row - element > groups.extent ? element + groups.extent : row;
        }
    }
}

// Calls run(group, first, count) for each run of selected items in one group.
template <class F>
void for_each_run(const Selection& which, const Groups& groups, F&& run) {
    if (which.count == 0) return;
    if (!which.positions) return for_each_neighbour_run(which, groups, run);
    std::size_t i = 0;
    while (i < which.count) {
        const u64 element = which.start + which.positions[i], end = groups.run_end(element);
        std::size_t next = i + 1;
        while (next < which.count && which.start + which.positions[next] < end) ++next;
        run(groups.of(element), i, next - i);
        i = next;
    }
}

// Rounds a binary32 to a smaller type of `kExponent` and `kMantissa` bits, to nearest, ties to even.
template <int kExponent, int kMantissa, bool kInfinity>
u16 narrow(float value) {
    const u32 bits = std::bit_cast<u32>(value), magnitude = bits & 0x7FFFFFFF;
    constexpr u32 infinity = ((1u << kExponent) - 1) << kMantissa;
    constexpr u32 largest = kInfinity ? infinity - 1 : infinity + (1u << kMantissa) - 2;
    constexpr u32 overflow = kInfinity ? infinity : largest + 1;
    const u32 sign = bits >> 31 << (kExponent + kMantissa);
    if (magnitude >= 0x7F800000) return static_cast<u16>(sign | overflow);
    constexpr int bias = (1 << (kExponent - 1)) - 1;
    const u32 hidden = magnitude >> 23 ? 0x800000 : 0;
    const u32 mantissa = (magnitude & 0x7FFFFF) | hidden;
    const int exponent = static_cast<int>(magnitude >> 23) - 127 + bias;
    const int shift = 23 - kMantissa + (exponent <= 0 ? 1 - exponent : 0);
    if (shift > 25) return static_cast<u16>(sign);
    u32 rounded = mantissa >> shift;
    const u32 rest = mantissa & ((1u << shift) - 1), half = 1u << (shift - 1);
    if (rest > half || (rest == half && rounded & 1)) ++rounded;
    // The hidden bit carries into the exponent, and a rounded-up mantissa with it.
    if (exponent > 0) rounded += static_cast<u32>(exponent - 1) << kMantissa;
    return static_cast<u16>(sign | (rounded > largest ? overflow : rounded));
}

template <class T, class F>
void convert_run(const u8* codes, std::size_t count, float scale, int zero, unsigned bits, F round, u8* out) {
    const auto element = [&](unsigned code) { return static_cast<T>(round(scale * static_cast<float>(static_cast<int>(code) - zero))); };
    if (count <= std::size_t{1} << bits) {
        for (std::size_t i = 0; i < count; ++i) store(out + i * sizeof(T), element(codes[i]));
        return;
    }
    T table[256];
    for (unsigned code = 0; code < 256; ++code) table[code] = element(code);
    for (std::size_t i = 0; i < count; ++i) store(out + i * sizeof(T), table[codes[i]]);
}

void expect_group(u64 group, std::size_t groups) {
    if (group >= groups) throw Corrupt("an element belongs to a group without parameters");
}

}  // namespace

void look_up(const u8* codes, const Selection& which, const Groups& groups, Bytes table, std::size_t size,
             std::size_t itemsize, u8* out) {
    u8 largest = 0;
    for (std::size_t i = 0; i < which.count; ++i) largest = std::max(largest, codes[i]);
    if (largest >= size) throw Corrupt("a code is not below the size of the codebook");
    const std::size_t stride = size * itemsize, count = table.size() / stride;
    for_each_run(which, groups, [&](u64 group, std::size_t first, std::size_t n) {
        expect_group(group, count);
        kernels().look_up(codes + first, n, table.data() + group * stride, size, itemsize, out + first * itemsize);
    });
}

void dequantize(const u8* codes, const Selection& which, const Groups& groups, std::span<const float> scales,
                Bytes zero_points, unsigned bits, FloatType type, u8* out) {
    const Kernels& k = kernels();
    for_each_run(which, groups, [&](u64 group, std::size_t first, std::size_t n) {
        expect_group(group, zero_points.empty() ? scales.size() : std::min(scales.size(), zero_points.size()));
        const int zero = zero_points.empty() ? 1 << (bits - 1) : zero_points[group];
        const float scale = scales[group];
        const u8* in = codes + first;
        switch (type) {
            case FloatType::f32: return k.dequantize_f32(in, n, scale, zero, out + 4 * first);
            // Rounding by addition is right for what is finite or infinite, and nothing here makes a NaN.
            case FloatType::bf16: return k.dequantize_bf16(in, n, scale, zero, out + 2 * first);
            case FloatType::f16: return convert_run<u16>(in, n, scale, zero, bits, narrow<5, 10, true>, out + 2 * first);
            case FloatType::f8_e5m2: return convert_run<u8>(in, n, scale, zero, bits, narrow<5, 2, true>, out + first);
            case FloatType::f8_e4m3fn: return convert_run<u8>(in, n, scale, zero, bits, narrow<4, 3, false>, out + first);
            case FloatType::f64: throw Corrupt("f64 elements have scales of f64");
        }
    });
}

void dequantize(const u8* codes, const Selection& which, const Groups& groups, std::span<const double> scales,
                Bytes zero_points, unsigned bits, u8* out) {
    for_each_run(which, groups, [&](u64 group, std::size_t first, std::size_t n) {
        expect_group(group, zero_points.empty() ? scales.size() : std::min(scales.size(), zero_points.size()));
        const int zero = zero_points.empty() ? 1 << (bits - 1) : zero_points[group];
        for (std::size_t i = first; i < first + n; ++i)
            store(out + 8 * i, scales[group] * static_cast<double>(static_cast<int>(codes[i]) - zero));
    });
}

}  // namespace dcz
