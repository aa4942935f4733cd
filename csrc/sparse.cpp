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

GapMarker::GapMarker(u8* flags, unsigned bits, std::size_t elements)
    : flags_(flags), filler_(static_cast<u8>(low_bits(bits))), elements_(elements) {}

void GapMarker::mark(Bytes gaps) {
    std::size_t i = 0, position = position_, entries = entries_;
    constexpr std::size_t longest = 256;  // also of symbols that are wider than they should be
    while (i < gaps.size()) {
        // So many gaps cannot leave the elements, whatever they are.
        const std::size_t safe = std::min(gaps.size() - i, (elements_ - position) / longest);
        for (const std::size_t end = i + safe; i < end; ++i) {
            // A filler writes a zero where the next entry can still write its one.
            const std::size_t gap = gaps[i], stored = gap != filler_;
            flags_[position + gap] = static_cast<u8>(stored);
            position += gap + stored;
            entries += stored;
        }
        if (safe > 0) continue;
        const u8 gap = gaps[i++];
        position += gap;
        if (gap == filler_ ? position > elements_ : position >= elements_) throw Corrupt("a relative index leaves the segment");
        if (gap == filler_) continue;
        flags_[position++] = 1;
        ++entries;
    }
    if (!gaps.empty()) filler_last_ = gaps.back() == filler_;
    position_ = position;
    entries_ = entries;
}

void GapMarker::finish(std::size_t entries) const {
    if (filler_last_) throw Corrupt("a relative index ends with a filler");
    if (entries_ != entries) throw Corrupt("a relative index has another number of entries than declared");
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
