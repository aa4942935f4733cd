// Codes to elements: values with scales, codebooks and vectors (docs/format.md, sections 5.3 and 5.4).
#pragma once

#include <array>
#include <memory>
#include <optional>
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
    std::span<const T> scales, minimums, table;  // no minimums: nothing is added
};

struct ScaledValues {
    Groups groups;
    FloatType type;
    Scaling<float> single;            // unless type is f64
    Scaling<double> wide;             // if it is
    std::span<const u8> zero_points;  // empty: `zero` for all
    int zero = 0;
    std::shared_ptr<const void> owner = nullptr;  // keeps the numbers, of which there may be millions
};

// Elements of `values.type`. Throws Corrupt for a group without parameters, and for a code without a level.
void dequantize(const u8* codes, const Selection& which, const ScaledValues& values, u8* out);

// out[i] = the centroid codes[i] of the element's group; `table` holds groups of `size` centroids.
// Throws Corrupt for a code that is not below size or a group behind the table.
void look_up(const u8* codes, const Selection& which, const Groups& groups, Bytes table, std::size_t size,
             std::size_t itemsize, u8* out);

// Codes of at most 4 bits: the 16 elements that those of a run can stand for are made once, or are there already, and then looked
// up, which is less work than to make each element. What it refers to must outlive it.
class RunTables {
  public:
    // For neighbours whose codes have `width` bits, the first of which is `start`. None unless their elements have 2 or 4 bytes, and
    // runs are so long that it pays and fill whole lines.
    static std::optional<RunTables> of(const ScaledValues& values, unsigned width, u64 start);
    static std::optional<RunTables> of(const Groups& groups, Bytes centroids, std::size_t size, std::size_t itemsize, unsigned width, u64 start);

    // As dequantize and look_up do it, for all neighbours; `packed` and `streaming` as for the kernel look_up_runs. Throws Corrupt for
    // a group without parameters.
    void look_up(const u8* codes, bool packed, const Selection& which, bool streaming, u8* out) const;

  private:
    static constexpr std::size_t kTable = 16;  // elements
    static constexpr std::size_t kRuns = 32;   // whose tables are made at a time

    RunTables(const Groups& groups, std::size_t itemsize) : groups_(groups), itemsize_(itemsize) {}
    const u8* tables_of(u64 group, std::size_t runs, u8* made) const;

    const Groups& groups_;
    std::size_t itemsize_;
    const ScaledValues* values_ = nullptr;       // null: the tables are centroids
    std::array<float, kRuns * kTable> numbers_;  // what the codes are before zero points and scales, for each run
    Bytes centroids_;
};

// Codewords of `bytes` bytes, those of code i from the table of place (first + i) mod `places`. Throws as look_up does.
void look_up_vectors(const u8* codes, u64 first, std::size_t count, Bytes table, std::size_t size, std::size_t bytes, u64 places, u8* out);

}  // namespace dcz
