// From the streams of a segment to its elements, in one pass (docs/format.md, section 5): positions, values, and then
// both together. Neither knows the other's kind.
#pragma once

#include <optional>
#include <span>
#include <variant>
#include <vector>

#include "base.h"
#include "cascade.h"
#include "dequantize.h"
#include "huffman.h"
#include "kernels.h"

namespace dcz {

enum class Coding : u8 {
    raw = 0,
    huffman = 1,
    cascade = 4,
    symbols = 0xFF,  // decoded already, a byte for each symbol: what other codings are to this file
};

// Is a stream of this coding decoded here?
inline bool is_native(u8 coding) {
    const auto known = static_cast<Coding>(coding);
    return known == Coding::raw || known == Coding::huffman || known == Coding::cascade;
}

struct CodedStream {
    Coding coding;
    Bytes bytes;
    std::size_t count;  // symbols
    unsigned width;     // bits of a symbol
};

// The symbols of a stream, in order.
class SymbolReader {
  public:
    // Throws Corrupt unless the stored bytes are as many as the symbols need.
    explicit SymbolReader(const CodedStream& stream);

    // The next `count` symbols: a multiple of kPiece, or all that are left. They are in `out`, unless they stand in the
    // stream as they are; the result says where.
    const u8* next(u8* out, std::size_t count);

    // The same, always in `out`.
    void read(u8* out, std::size_t count);

    // Bits of a symbol; 8 for what others have decoded, and not checked.
    unsigned width() const { return width_; }

    // The next `count` symbols of 4 bits as they stand in the stream, two in a byte; or null, and nothing has happened, if they do
    // not stand there so.
    const u8* next_packed(std::size_t count);

    // The same as the last plane of elements, and true; or false, and nothing has happened, if that is not at hand.
    bool next_into(const Assembly& into, std::size_t count);

  private:
    const u8* take(std::size_t bytes);

    std::optional<HuffmanDecoder> huffman_;
    std::optional<CascadeDecoder> cascade_;
    const u8 *bytes_, *end_;
    unsigned width_;
};

struct Layout {
    enum class Kind : u8 { dense, relative_index, bitmap } kind = Kind::dense;
    unsigned bits = 8;  // of a gap
};

struct ExactValues {
    bool split, rotated, boolean;
    u8 offset = 0;                     // only if rotated
    std::optional<Widening> widening;  // of entries that are stored narrower than they are
};

struct CodebookValues {
    std::size_t size;  // centroids of a group
    Groups groups;
    std::vector<u8> centroids;
};

struct VectorValues {
    std::size_t size;       // codewords of a table
    std::size_t dimension;  // elements of a codeword
    u64 places;             // tables, which the codes of a row have in turn
    std::vector<u8> codewords;
};

using Values = std::variant<ExactValues, CodebookValues, ScaledValues, VectorValues>;

// All segments of one tensor are decoded alike.
class SegmentDecoder {
  public:
    SegmentDecoder(std::size_t itemsize, Layout layout, Values values)
        : itemsize_(itemsize), layout_(layout), values_(std::move(values)) {}

    std::size_t itemsize() const { return itemsize_; }
    bool is_dense() const { return layout_.kind == Layout::Kind::dense; }
    bool has_gaps() const { return layout_.kind == Layout::Kind::relative_index; }
    std::size_t segment_streams() const { return position_streams() + value_streams(); }

    // How many symbols of how many bits each stream of a segment has; what it is coded as is left to the caller.
    // `gaps`: with fillers. `bits`: of a code.
    void describe(std::size_t elements, std::size_t entries, std::size_t gaps, unsigned bits, std::vector<CodedStream>& streams) const;

    struct Segment {
        u64 first;             // element of the tensor
        std::size_t elements;  // below 2^32
        std::size_t entries;   // stored ones
        std::span<const CodedStream> streams;
    };

    // All elements. `streaming` as for the kernel merge_planes. Throws Corrupt, and std::invalid_argument if the counts of
    // the streams are not those of such a segment.
    void decode(const Segment& segment, bool streaming, u8* out) const;

    // The stored entries: their positions from the segment's start (unless the layout is dense), and their elements, in
    // entries * itemsize bytes. Throws as decode does.
    void decode_entries(const Segment& segment, std::span<u32> positions, u8* out) const;

  private:
    std::size_t position_streams() const { return is_dense() ? 0 : 1; }
    std::size_t value_streams() const;
    std::size_t value_symbols(std::size_t entries) const;  // of each of these
    const Groups* groups() const;  // null: none
    bool has_groups() const { return groups() && groups()->kind != Groups::Kind::tensor; }
    std::size_t entry_size() const;  // bytes of an exact entry in the streams
    void expect_streams(const Segment& segment) const;
    // In memory of the thread's, until it decodes the next one.
    const u8* decode_bitmap(const CodedStream& stream, std::size_t elements, std::size_t entries) const;
    const u32* decode_gaps(const CodedStream& stream, std::size_t elements, std::size_t entries) const;
    void decode_values(std::span<const CodedStream> streams, const Selection& which, bool streaming, u8* out) const;
    void decode_vectors(const CodedStream& stream, u64 first, u8* out) const;
    std::optional<RunTables> run_tables(unsigned width, u64 start) const;
    void decode_codes(const u8* codes, const Selection& which, u8* out) const;

    std::size_t itemsize_;
    Layout layout_;
    Values values_;
};

}  // namespace dcz
