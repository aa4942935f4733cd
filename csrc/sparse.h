// Positions of stored entries: relative indices and bitmaps (docs/format.md, section 5.2).
#pragma once

#include <span>
#include <vector>

#include "base.h"

namespace dcz {

// The gap symbols of the positions where mask is not 0.
std::vector<u8> encode_gaps(Bytes mask, unsigned bits);

// How often each gap symbol of 8 bits occurs, and how many symbols gaps of 1 to 8 bits would take.
struct GapCounts {
    u64 entries;
    u64 symbols[9];  // by width; [0] is not used
};
GapCounts count_gaps(Bytes mask);

// Both fill `positions`, whose size is the number of entries, in ascending order, each below `elements`.
// Both throw Corrupt if the symbols break a rule.
void gap_positions(Bytes gaps, unsigned bits, std::size_t elements, std::span<u32> positions);
void bitmap_positions(Bytes bitmap, std::size_t elements, std::span<u32> positions);

// out[positions[i]] = values[i], all other elements zero. Positions are as above.
void scatter(std::span<const u32> positions, const u8* values, std::size_t itemsize, std::size_t elements, u8* out);

}  // namespace dcz
