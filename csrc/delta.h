// Differences of elements to those of a base (docs/format.md, section 5.5). Plain loops, which compilers vectorize.
#pragma once

#include "base.h"

namespace dcz {

// How two elements are compared: bit by bit, as integers, or as floats in numeric order (sign and magnitude).
enum class Difference { bits, integers, floats };

// out[i] = what has to be stored for element i. `base`, `elements` and `out` hold `count` elements of `itemsize`
// (1, 2, 4, 8) bytes; `out` may be `elements`.
void encode_delta(Difference kind, const u8* base, const u8* elements, std::size_t count, std::size_t itemsize, u8* out);

// The inverse, in place: `data` holds what was stored, and then the elements.
void decode_delta(Difference kind, const u8* base, std::size_t count, std::size_t itemsize, u8* data);

}  // namespace dcz
