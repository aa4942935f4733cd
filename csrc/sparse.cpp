#include "sparse.h"

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

void gap_positions(Bytes gaps, unsigned bits, std::size_t elements, std::span<u32> positions) {
    const u8 filler = static_cast<u8>(low_bits(bits));
    if (!gaps.empty() && gaps.back() == filler) throw Corrupt("a relative index ends with a filler");
    std::size_t position = 0, entry = 0;
    for (const u8 gap : gaps) {
        position += gap;
        if (gap == filler) continue;
        if (position >= elements || entry >= positions.size())
            throw Corrupt("a relative index leaves the segment or has too many entries");
        positions[entry++] = static_cast<u32>(position++);
    }
    if (entry != positions.size()) throw Corrupt("a relative index has too few entries");
}

void bitmap_positions(Bytes bitmap, std::size_t elements, std::span<u32> positions) {
    if (bitmap.size() != (elements + 7) / 8) throw Corrupt("a bitmap has the wrong length");
    if (elements % 8 && bitmap.back() >> (elements % 8)) throw Corrupt("padding bits of a bitmap are not zero");
    u64 ones = 0;
    std::size_t byte = 0;
    for (; byte + 8 <= bitmap.size(); byte += 8) ones += static_cast<u64>(__builtin_popcountll(load<u64>(bitmap.data() + byte)));
    for (; byte < bitmap.size(); ++byte) ones += static_cast<u64>(__builtin_popcountll(bitmap[byte]));
    if (ones != positions.size()) throw Corrupt("a bitmap has another number of entries than declared");
    std::size_t entry = 0;
    for (byte = 0; byte < bitmap.size(); byte += 8) {
        u64 bits = load_partial(bitmap.data() + byte, bitmap.size() - byte < 8 ? bitmap.size() - byte : 8);
        for (; bits; bits &= bits - 1)
            positions[entry++] = static_cast<u32>(8 * byte + static_cast<unsigned>(std::countr_zero(bits)));
    }
}

namespace {

template <class T>
void scatter_as(std::span<const u32> positions, const u8* values, u8* out) {
    for (std::size_t i = 0; i < positions.size(); ++i) store(out + positions[i] * sizeof(T), load<T>(values + i * sizeof(T)));
}

}  // namespace

void scatter(std::span<const u32> positions, const u8* values, std::size_t itemsize, std::size_t elements, u8* out) {
    std::memset(out, 0, elements * itemsize);
    switch (itemsize) {
        case 1: return scatter_as<u8>(positions, values, out);
        case 2: return scatter_as<u16>(positions, values, out);
        case 4: return scatter_as<u32>(positions, values, out);
        default: return scatter_as<u64>(positions, values, out);
    }
}

}  // namespace dcz
