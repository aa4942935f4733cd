// What the encoder looks for in exact tensors: few distinct values or those of a uniform quantizer, as the codes and
// parameters that give the same bits again; the best offset of rotated elements (docs/format.md, section 5.3).
#pragma once

#include <optional>
#include <vector>

#include "base.h"
#include "dequantize.h"

namespace dcz {

// Rows of `row` elements of 1, 2, 4 or 8 bytes, one group each. With `skip_zeros`, elements whose bits are all zero count
// for nothing and get the code 0.
struct Rows {
    Bytes elements;
    std::size_t itemsize;
    std::size_t row;
    bool skip_zeros;

    std::size_t count() const { return elements.size() / (itemsize * row); }
};

struct SharedValues {
    std::vector<u8> centroids;  // rows of `size` elements, ascending as unsigned integers, the last one repeated
    std::size_t size;           // 1 to 256
};

// Writes a code for each element into `codes`. Nothing if a row has more than `limit` distinct values, or 256.
std::optional<SharedValues> shared_values(const Rows& rows, std::size_t limit, u8* codes);

struct UniformCodes {
    std::vector<float> scales;  // one for each row; also of the type `scale`
    FloatType scale;            // f32, f16 or bf16
    std::vector<u8> zero_points;  // one for each row, or none for 2^(bits-1)
    unsigned bits;
};

// The same for codes of which scale * (code - zero point) gives each element again; `type` is f32, f16 or bf16. Nothing if
// that is not found: what is found is exact, but not everything is found.
std::optional<UniformCodes> uniform_codes(const Rows& rows, FloatType type, u8* codes);

// Whether shared_values, with this limit, or uniform_codes finds something in the elements if they are one row. `type` is
// none for elements of other types, for which uniform codes are not found.
bool looks_quantized(const Rows& row, std::optional<FloatType> type, std::size_t limit);

// About the bytes of exact elements that are coded as they are, as one plane for each byte, and as planes of the rotated
// elements: the sums of huffman_estimate over the planes.
struct PlaneCosts {
    std::size_t whole, bytes, rotated;
};
PlaneCosts plane_costs(Bytes elements, std::size_t itemsize, bool rotated);

// The offset under which a Huffman code makes the highest plane of `count` rotated elements of `itemsize` (2, 4, 8) bytes
// smallest, and by how many bits that is less than without an offset. From integers only.
struct Offset {
    u8 offset;
    u64 saved;
};
Offset best_offset(const u8* elements, std::size_t count, std::size_t itemsize);

}  // namespace dcz
