#include "sparse.h"

#include <algorithm>

#include "kernels.h"

namespace dcz {

std::vector<u8> encode_gaps(Bytes mask, unsigned bits) {
    const std::size_t filler = low_bits(bits);
    std::vector<u8> gaps;
    std::size_t gap = 0;
    for (const u8 stored : mask) {
        if (!stored) {
            ++gap;
            continue;
        }
        for (; gap >= filler; gap -= filler) gaps.push_back(static_cast<u8>(filler));
        gaps.push_back(static_cast<u8>(gap));
        gap = 0;
    }
    return gaps;
}

GapCounts count_gaps(Bytes mask) {
    GapCounts counts{};
    std::size_t gap = 0;
    for (const u8 stored : mask) {
        if (!stored) {
            ++gap;
            continue;
        }
        ++counts.entries;
        for (unsigned bits = 1; bits <= 8; ++bits) counts.symbols[bits] += gap / low_bits(bits) + 1;
        gap = 0;
    }
    return counts;
}

void gap_positions(Bytes gaps, unsigned bits, std::size_t elements, std::size_t entries, u32* positions) {
    const u8 filler = static_cast<u8>(low_bits(bits));
    const GapEnd end = kernels().gap_positions(gaps.data(), gaps.size(), filler, positions);
    if (!gaps.empty() && gaps.back() == filler) throw Corrupt("a relative index ends with a filler");
    // So the last symbol is an entry, and all others are before it.
    if (end.position > elements) throw Corrupt("a relative index leaves the segment");
    if (end.entries != entries) throw Corrupt("a relative index has another number of entries than declared");
}

void check_bitmap(Bytes bitmap, std::size_t elements, std::size_t entries) {
    if (bitmap.size() != (elements + 7) / 8) throw Corrupt("a bitmap has the wrong length");
    if (elements % 8 && bitmap.back() >> (elements % 8)) throw Corrupt("padding bits of a bitmap are not zero");
    if (kernels().popcount(bitmap.data(), elements) != entries) throw Corrupt("a bitmap has another number of entries than declared");
}

void bitmap_positions(Bytes bitmap, std::span<u32> positions) {
    std::size_t entry = 0;
    for (std::size_t byte = 0; byte < bitmap.size(); byte += 8) {
        u64 bits = load_partial(bitmap.data() + byte, std::min<std::size_t>(8, bitmap.size() - byte));
        for (; bits; bits &= bits - 1)
            positions[entry++] = static_cast<u32>(8 * byte + static_cast<unsigned>(std::countr_zero(bits)));
    }
}

}  // namespace dcz
