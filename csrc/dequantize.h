// Codes to elements: values with scales, codebooks and vectors (docs/format.md, sections 5.3 and 5.4).
#pragma once

#include <span>
#include <vector>

#include "base.h"

namespace dcz {

// Which group an element of a tensor belongs to. Elements are numbered in C order over the whole tensor.
struct Groups {
    enum class Kind { tensor, channel, group, indexed } kind;
    u64 inner;               // channel: elements between neighbours along the axis; group, indexed: size of a row
    u64 extent;              // channel: channels; group: elements of a group; indexed: groups of a row
    std::vector<u16> index;  // indexed: the group of each column, below extent
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

// What codes stand for, in binary32, or in binary64 for f64 elements: element = round(scale * level + minimum), where
// a level is table[code], or without a table code - zero point. Scales and minimums are those of the element's group.
template <class T>
struct Scaling {
    std::vector<T> scales, minimums, table;  // no minimums: nothing is added
};

struct ScaledValues {
    unsigned bits;  // of a code
    Groups groups;
    FloatType type;
    Scaling<float> single;        // unless type is f64
    Scaling<double> wide;         // if it is
    std::vector<u8> zero_points;  // empty: `zero` for all
    int zero = 0;
};

// Elements of `values.type`. Throws Corrupt for a group without parameters, and for a code without a level.
void dequantize(const u8* codes, const Selection& which, const ScaledValues& values, u8* out);

// out[i] = the centroid codes[i] of the element's group; `table` holds groups of `size` centroids.
// Throws Corrupt for a code that is not below size or a group behind the table.
void look_up(const u8* codes, const Selection& which, const Groups& groups, Bytes table, std::size_t size,
             std::size_t itemsize, u8* out);

// Codewords of `bytes` bytes, those of code i from the table of place (first + i) mod `places`. Throws as look_up does.
void look_up_vectors(const u8* codes, u64 first, std::size_t count, Bytes table, std::size_t size, std::size_t bytes, u64 places, u8* out);

}  // namespace dcz
