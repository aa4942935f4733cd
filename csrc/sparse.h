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

// The positions of the entries of a relative index; `positions` has room as the kernel asks. Throws Corrupt unless there are
// so many, each below `elements`, and the last symbol is not a filler.
void gap_positions(Bytes gaps, unsigned bits, std::size_t elements, std::size_t entries, u32* positions);

// Throws Corrupt unless that many of the bits, and none behind the elements, are 1.
void check_bitmap(Bytes bitmap, std::size_t elements, std::size_t entries);

// The positions of the ones, in ascending order: as many as `positions` has.
void bitmap_positions(Bytes bitmap, std::span<u32> positions);

}  // namespace dcz
