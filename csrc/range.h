// The adaptive binary context coder for streams whose size is all that counts (docs/format.md, section 6.4).
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "base.h"

namespace dcz {

// What the models may look at beside the stream itself: the same for the encoder and the decoder.
struct RangeContext {
    u64 start = 0;                               // element of the tensor at which the segment starts
    std::optional<std::span<const u32>> positions;  // of the entries, counted from there; none: all elements
    unsigned step = 1;                           // symbols of an entry
    std::size_t bits = 0;                        // elements of a bitmap; 0 if the stream is not one
    const u8* next = nullptr;                    // plane j + 1 and the last plane of the same entries, for plane j
    const u8* last = nullptr;
};

// The head of a stream: what the encoder has chosen.
struct RangeModel {
    enum Kind : u8 { kBits, kNeighbours, kPlanes, kSigned };
    Kind kind = kNeighbours;
    u8 resolution = 0;  // 0 to 3
    u8 raw = 0;         // low bits of each symbol that are not modelled, 0 to the width
    u32 columns = 1;
};

// `count` symbols (at least 1), each below 2^width. The model must be one that the context allows.
std::vector<u8> range_encode(const u8* symbols, std::size_t count, unsigned width, const RangeModel& model, const RangeContext& context);

// The inverse. Throws Corrupt if the stream breaks a rule.
void range_decode(Bytes stream, std::size_t count, unsigned width, const RangeContext& context, u8* out);

}  // namespace dcz
