// Codes to elements: affine and codebook values (docs/format.md, sections 5.3 and 5.4).
#pragma once

#include <span>

#include "base.h"

namespace dcz {

// Which group an element of a tensor belongs to. Elements are numbered in C order over the whole tensor.
struct Groups {
    enum class Kind { tensor, channel, group } kind;
    u64 inner;    // channel: elements between neighbours along the axis; group: size of a row
    u64 extent;   // channel: channels; group: elements of a group
    u64 of(u64 element) const;
    u64 run_end(u64 element) const;  // the first element behind the run of neighbours in the same group
};

// The elements to fill: `count` neighbours from `start`, or only those at `positions` behind `start`.
struct Selection {
    u64 start;
    std::size_t count;
    const u32* positions;  // null: all
};

enum class FloatType { f64, f32, f16, bf16, f8_e4m3fn, f8_e5m2 };

// out[i] = the centroid codes[i] of the element's group; `table` holds groups of `size` centroids.
// Throws Corrupt for a code that is not below size or a group behind the table.
void look_up(const u8* codes, const Selection& which, const Groups& groups, Bytes table, std::size_t size,
             std::size_t itemsize, u8* out);

// out[i] = round(scale * (codes[i] - zero point)). `scales` is of float, or of double for f64; without zero points it
// is 2^(bits-1) everywhere. Throws Corrupt for a group behind the scales.
void dequantize(const u8* codes, const Selection& which, const Groups& groups, std::span<const float> scales,
                Bytes zero_points, unsigned bits, FloatType type, u8* out);
void dequantize(const u8* codes, const Selection& which, const Groups& groups, std::span<const double> scales,
                Bytes zero_points, unsigned bits, u8* out);

}  // namespace dcz
