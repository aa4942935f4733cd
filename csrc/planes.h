// Exact values: the streams of a segment's planes to elements, a cache-sized block at a time (docs/format.md, 5.3).
#pragma once

#include <vector>

#include "base.h"

namespace dcz {

struct CodedStream {
    bool huffman;  // otherwise raw
    Bytes bytes;
};

// Decodes `count` elements of `itemsize` (1, 2, 4, 8) bytes from as many planes into `out`.
void decode_planes(const std::vector<CodedStream>& planes, std::size_t count, bool rotated, u8* out);

}  // namespace dcz
