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

// Sets the byte of each stored element to 1, in as many zeros as there are elements, as gap symbols come. (Bytes, because
// they can be written without being read.)
class GapMarker {
  public:
    GapMarker(u8* flags, unsigned bits, std::size_t elements);

    // Throws Corrupt for an entry that is not below `elements`.
    void mark(Bytes gaps);

    // Throws Corrupt if the last gap was a filler, or there are more or fewer entries.
    void finish(std::size_t entries) const;

  private:
    u8* flags_;
    u8 filler_;
    std::size_t elements_, position_ = 0, entries_ = 0;
    bool filler_last_ = false;
};

// Throws Corrupt unless that many of the bits, and none behind the elements, are 1.
void check_bitmap(Bytes bitmap, std::size_t elements, std::size_t entries);

// The positions of the ones, in ascending order: as many as `positions` has.
void bitmap_positions(Bytes bitmap, std::span<u32> positions);

}  // namespace dcz
