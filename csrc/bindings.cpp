// This file and bindings_clustering.cpp are all that knows Python. Each function takes buffers of bytes, checks their sizes against each other, and
// works without the GIL. src/dcz/_native.pyi has the types.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>

#include "batch.h"
#include "bindings_clustering.h"
#include "bits.h"
#include "cascade.h"
#include "cpu.h"
#include "delta.h"
#include "dequantize.h"
#include "exact_codes.h"
#include "huffman.h"
#include "kernels.h"
#include "memory.h"
#include "messagepack.h"
#include "range.h"
#include "segment.h"
#include "sparse.h"

namespace nb = nanobind;
using namespace dcz;

namespace {

// A contiguous buffer of any item type, as bytes, for as long as it lives.
class Buffer {
  public:
    explicit Buffer(nb::handle object, bool writable = false) {
        if (PyObject_GetBuffer(object.ptr(), &view_, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE) != 0) throw nb::python_error();
    }
    Buffer(Buffer&& other) noexcept : view_(other.view_) { other.view_.obj = nullptr; }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    Buffer& operator=(Buffer&&) = delete;
    ~Buffer() {
        if (view_.obj) PyBuffer_Release(&view_);
    }
    u8* data() const { return static_cast<u8*>(view_.buf); }
    std::size_t size() const { return static_cast<std::size_t>(view_.len); }
    Bytes bytes() const { return {data(), size()}; }

    template <class T>
    std::span<T> as(const char* what) const {
        if (size() % sizeof(T) || reinterpret_cast<std::uintptr_t>(data()) % alignof(T)) throw std::invalid_argument(what);
        return {reinterpret_cast<T*>(data()), size() / sizeof(T)};
    }

  private:
    Py_buffer view_{};
};

std::optional<Buffer> optional_buffer(nb::handle object) {
    if (object.is_none()) return std::nullopt;
    return std::optional<Buffer>(std::in_place, object);
}

void require(bool condition, const char* what) {
    if (!condition) throw std::invalid_argument(what);
}

void check_width(unsigned width) { require(width >= 1 && width <= 8, "a symbol has 1 to 8 bits"); }
void check_itemsize(std::size_t itemsize) {
    require(itemsize == 1 || itemsize == 2 || itemsize == 4 || itemsize == 8, "an element has 1, 2, 4 or 8 bytes");
}

nb::bytes to_bytes(const std::vector<u8>& data) { return nb::bytes(data.data(), data.size()); }

void check_symbols(const Buffer& in, unsigned width) {
    require(width == 8 || std::all_of(in.data(), in.data() + in.size(), [&](u8 s) { return s >> width == 0; }),
            "a symbol does not fit in the width");
}

nb::object py_huffman_encode(nb::handle symbols, unsigned width, std::size_t limit, unsigned price) {
    check_width(width);
    require(price <= 1024, "decoding a bit is worth at most a byte");
    const Buffer in(symbols);
    thread_local std::vector<u8> out;  // fresh pages would cost as much as the code
    bool smaller;
    {
        nb::gil_scoped_release release;
        check_symbols(in, width);
        smaller = huffman_encode(in.data(), in.size(), width, limit, price, out);
    }
    return smaller ? nb::object(to_bytes(out)) : nb::object(nb::none());
}

nb::object py_cascade_encode(nb::handle symbols, unsigned width, std::size_t limit, unsigned price) {
    check_width(width);
    require(price <= 8192, "decoding a symbol of a level is worth at most a byte");
    const Buffer in(symbols);
    CascadeStream out;
    {
        nb::gil_scoped_release release;
        check_symbols(in, width);
        out = cascade_encode(in.data(), in.size(), width, limit, price);
    }
    return out.bytes.empty() ? nb::object(nb::none()) : nb::object(nb::make_tuple(to_bytes(out.bytes), out.cost));
}

using Decoder = void (*)(Bytes, std::size_t, unsigned, u8*);

template <Decoder decode>
void py_decode_symbols(nb::handle stream, unsigned width, nb::handle out) {
    check_width(width);
    const Buffer in(stream), to(out, true);
    nb::gil_scoped_release release;
    if (to.size() > 0) decode(in.bytes(), to.size(), width, to.data());
}

template <class Decoder>
nb::bytes py_code_lengths(nb::handle stream, unsigned width, std::size_t count) {
    check_width(width);
    require(count > 0, "a stream without symbols has no codes");
    const Buffer in(stream);
    return to_bytes(Decoder(in.bytes(), count, width).code_lengths());
}

// What a range coder may look at. The buffers live as long as this does.
struct RangeInput {
    std::optional<Buffer> positions, next, last;
    RangeContext context;

    RangeInput(std::size_t count, u64 start, nb::handle at, unsigned step, std::size_t bits, nb::handle next_plane, nb::handle last_plane)
        : positions(optional_buffer(at)), next(optional_buffer(next_plane)), last(optional_buffer(last_plane)) {
        require(step == 1 || step == 2 || step == 4 || step == 8, "an entry has 1, 2, 4 or 8 symbols");
        require(start < (u64{1} << 63) / step && count % step == 0, "a tensor has fewer than 2^63 bytes");
        require(bits == 0 || (count == (bits + 7) / 8 && !positions && !last), "a bitmap has a bit for each element");
        require(next.has_value() == last.has_value() && (!last || (last->size() == count && next->size() == count)),
                "a plane has as many symbols as the planes above it");
        context.start = start;
        context.step = step;
        context.bits = bits;
        if (positions) {
            context.positions = positions->as<const u32>("positions are 32-bit integers");
            require(context.positions->size() == count / step, "one position for each entry");
        }
        if (last) {
            context.next = next->data();
            context.last = last->data();
        }
    }
};

using RangeModelTuple = std::tuple<unsigned, unsigned, unsigned, u64>;  // kind, resolution, raw, columns

nb::bytes py_range_encode(nb::handle symbols, unsigned width, const RangeModelTuple& chosen, u64 start, nb::handle positions, unsigned step,
                          std::size_t bits, nb::handle next, nb::handle last) {
    check_width(width);
    const Buffer in(symbols);
    require(in.size() > 0, "a stream of no symbols is not coded");
    const RangeInput input(in.size(), start, positions, step, bits, next, last);
    const auto [kind, resolution, raw, columns] = chosen;
    const bool modelled_bits = kind == RangeModel::kBits, neighbours = kind == RangeModel::kNeighbours, with_signs = kind == RangeModel::kSigned;
    require(kind <= RangeModel::kSigned && modelled_bits == (bits > 0) && (modelled_bits || neighbours || input.last), "the model is not for such a stream");
    require(columns >= 1 && columns >> 32 == 0, "a row has 1 to 2^32 - 1 columns");
    require(with_signs ? raw >= 1 && raw <= width : raw < width, "the raw bits do not fit the width");
    require(resolution <= (neighbours ? 3u : 0u) && !(modelled_bits && raw), "a parameter of the model is out of range");
    std::vector<u8> out;
    {
        nb::gil_scoped_release release;
        require(width == 8 || std::all_of(in.data(), in.data() + in.size(), [&](u8 s) { return s >> width == 0; }),
                "a symbol does not fit in the width");
        out = range_encode(in.data(), in.size(), width,
                           {static_cast<RangeModel::Kind>(kind), static_cast<u8>(resolution), static_cast<u8>(raw), static_cast<u32>(columns)},
                           input.context);
    }
    return to_bytes(out);
}

void py_range_decode(nb::handle stream, unsigned width, u64 start, nb::handle positions, unsigned step, std::size_t bits, nb::handle next,
                     nb::handle last, nb::handle out) {
    check_width(width);
    const Buffer in(stream), to(out, true);
    const RangeInput input(to.size(), start, positions, step, bits, next, last);
    nb::gil_scoped_release release;
    if (to.size() > 0) range_decode(in.bytes(), to.size(), width, input.context, to.data());
}

nb::bytes py_pack(nb::handle symbols, unsigned width) {
    check_width(width);
    const Buffer in(symbols);
    std::vector<u8> out;
    {
        nb::gil_scoped_release release;
        require(width == 8 || std::all_of(in.data(), in.data() + in.size(), [&](u8 s) { return s >> width == 0; }),
                "a symbol does not fit in the width");
        out.reserve(packed_bytes(in.size(), width));
        pack(in.data(), in.size(), width, out);
    }
    return to_bytes(out);
}

void py_unpack(nb::handle bits, unsigned width, nb::handle out) {
    check_width(width);
    const Buffer in(bits), to(out, true);
    nb::gil_scoped_release release;
    unpack(in.bytes(), to.size(), width, to.data());
}

void py_split_planes(nb::handle data, std::size_t itemsize, bool rotated, nb::handle out, u8 offset) {
    check_itemsize(itemsize);
    const Buffer in(data), to(out, true);
    require(in.size() % itemsize == 0 && to.size() == in.size(), "planes and elements must have the same size");
    nb::gil_scoped_release release;
    const std::size_t count = in.size() / itemsize;
    std::vector<u8*> planes(itemsize);
    for (std::size_t j = 0; j < itemsize; ++j) planes[j] = to.data() + j * count;
    kernels().split_planes(in.data(), count, itemsize, rotated, offset, planes.data());
}

Widening make_widening(std::string_view from, std::string_view to) {
    if (from == "bf16" && to == "f32") return Widening::bf16_f32;
    if (from == "f16" && to == "f32") return Widening::f16_f32;
    require(from == "f32" && to == "f64", "bf16 and f16 are widened to f32, and f32 to f64");
    return Widening::f32_f64;
}

std::size_t wide_size(Widening which) { return which == Widening::f32_f64 ? 8 : 4; }

void py_widen(nb::handle data, std::string_view from, std::string_view to, nb::handle out) {
    const Widening which = make_widening(from, to);
    const Buffer in(data), wide(out, true);
    require(in.size() * 2 == wide.size() && wide.size() % wide_size(which) == 0, "as many wide elements as narrow ones");
    nb::gil_scoped_release release;
    kernels().widen(in.data(), wide.size() / wide_size(which), which, wide.data());
}

bool py_narrow(nb::handle data, std::string_view to, std::string_view from, nb::handle out) {
    const Widening which = make_widening(from, to);
    const Buffer in(data), narrow(out, true);
    require(narrow.size() * 2 == in.size() && in.size() % wide_size(which) == 0, "as many narrow elements as wide ones");
    nb::gil_scoped_release release;
    return kernels().narrow(in.data(), in.size() / wide_size(which), which, narrow.data());
}

nb::tuple py_best_offset(nb::handle data, std::size_t itemsize) {
    check_itemsize(itemsize);
    const Buffer in(data);
    require(itemsize > 1 && in.size() % itemsize == 0 && in.size() / itemsize < u64{1} << 31, "whole elements of several bytes");
    Offset found;
    {
        nb::gil_scoped_release release;
        found = best_offset(in.data(), in.size() / itemsize, itemsize);
    }
    return nb::make_tuple(found.offset, found.saved);
}

nb::bytes py_encode_gaps(nb::handle mask, unsigned bits) {
    check_width(bits);
    const Buffer in(mask);
    std::vector<u8> out;
    {
        nb::gil_scoped_release release;
        out = encode_gaps(in.bytes(), bits);
    }
    return to_bytes(out);
}

nb::list py_count_gaps(nb::handle mask) {
    const Buffer in(mask);
    GapCounts counts;
    {
        nb::gil_scoped_release release;
        counts = count_gaps(in.bytes());
    }
    nb::list out;
    out.append(counts.entries);
    for (unsigned bits = 1; bits <= 8; ++bits) out.append(counts.symbols[bits]);
    return out;
}

using GroupTuple = std::tuple<std::string, u64, u64>;  // kind, inner, extent

Groups make_groups(const GroupTuple& groups, nb::handle index) {
    const auto& [kind, inner, extent] = groups;
    require(inner > 0 && extent > 0 && extent < u64{1} << 62 && inner < u64{1} << 62, "groups have at least one element");
    require((kind == "indexed") == !index.is_none(), "an index is for indexed groups");
    if (kind == "tensor") return {Groups::Kind::tensor, inner, extent, {}};
    if (kind == "channel") {
        require(inner < (u64{1} << 62) / extent, "a tensor has fewer than 2^62 elements");
        return {Groups::Kind::channel, inner, extent, {}};
    }
    if (kind == "indexed") {
        const Buffer columns(index);
        const auto numbers = columns.as<const u16>("an index has 16-bit integers");
        require(numbers.size() == inner, "one group for each column");
        require(std::all_of(numbers.begin(), numbers.end(), [&](u16 group) { return group < extent; }), "a column belongs to no group");
        return {Groups::Kind::indexed, inner, extent, {numbers.begin(), numbers.end()}};
    }
    require(kind == "group", "a group is of kind tensor, channel, group or indexed");
    return {Groups::Kind::group, inner, extent, {}};
}

struct FloatRow {
    std::string_view name;
    FloatType type;
    std::size_t itemsize;
};

FloatRow float_row(std::string_view dtype) {
    constexpr FloatRow rows[] = {{"f64", FloatType::f64, 8},   {"f32", FloatType::f32, 4},
                                 {"f16", FloatType::f16, 2},   {"bf16", FloatType::bf16, 2},
                                 {"f8_e4m3fn", FloatType::f8_e4m3fn, 1}, {"f8_e5m2", FloatType::f8_e5m2, 1}};
    for (const FloatRow& row : rows)
        if (dtype == row.name) return row;
    throw std::invalid_argument("affine values are for floating-point types");
}

Layout make_layout(std::string_view kind, unsigned bits) {
    check_width(bits);
    if (kind == "dense") return {Layout::Kind::dense, bits};
    if (kind == "bitmap") return {Layout::Kind::bitmap, bits};
    require(kind == "relative-index", "a layout is dense, relative-index or bitmap");
    return {Layout::Kind::relative_index, bits};
}

std::vector<u8> copy_of(nb::handle object) {
    const Buffer buffer(object);
    return {buffer.data(), buffer.data() + buffer.size()};
}

SegmentDecoder exact_decoder(std::string_view layout, unsigned bits, std::size_t itemsize, std::string_view split, bool boolean, u8 offset,
                             const std::optional<std::pair<std::string, std::string>>& widening) {
    check_itemsize(itemsize);
    require(split == "whole" || split == "bytes" || split == "rotated", "exact values are whole, bytes or rotated");
    ExactValues values{split != "whole", split == "rotated", boolean, offset, {}};
    if (widening) {
        values.widening = make_widening(widening->first, widening->second);
        require(wide_size(*values.widening) == itemsize, "the wider elements have another size");
    }
    return {itemsize, make_layout(layout, bits), std::move(values)};
}

SegmentDecoder codebook_decoder(std::string_view layout, unsigned bits, std::size_t itemsize, std::size_t size, const GroupTuple& groups,
                                nb::handle centroids, nb::handle index) {
    check_itemsize(itemsize);
    require(size >= 1 && size <= 256, "a codebook has 1 to 256 centroids");
    return {itemsize, make_layout(layout, bits), CodebookValues{size, make_groups(groups, index), copy_of(centroids)}};
}

// What a decoder refers to for as long as it lives. Only Python ends decoders, so this is released with the GIL.
using Kept = std::vector<Buffer>;

template <class T>
std::span<const T> keep(nb::handle object, Kept& kept, const char* what) {
    if (object.is_none()) return {};
    kept.emplace_back(object);
    return kept.back().as<const T>(what);
}

template <class T>
void take_scaling(nb::handle scales, nb::handle minimums, nb::handle table, Kept& kept, Scaling<T>& out) {
    const char* const what = sizeof(T) == 8 ? "scales, minimums and tables are 64-bit floats" : "scales, minimums and tables are 32-bit floats";
    out.scales = keep<T>(scales, kept, what);
    out.minimums = keep<T>(minimums, kept, what);
    out.table = keep<T>(table, kept, what);
    require(minimums.is_none() || out.minimums.size() == out.scales.size(), "one minimum for each scale");
    require(table.is_none() || (!out.table.empty() && out.table.size() <= 256), "a table has 1 to 256 values");
}

SegmentDecoder scaled_decoder(std::string_view layout, unsigned bits, const std::string& dtype, const GroupTuple& groups, nb::handle scales,
                              nb::handle minimums, nb::handle table, nb::handle zero_points, int zero, nb::handle index) {
    require(zero >= 0 && zero <= 255, "a zero point is 0 to 255");
    const FloatRow row = float_row(dtype);
    ScaledValues values{make_groups(groups, index), row.type, {}, {}, {}, zero};
    const auto kept = std::make_shared<Kept>();
    if (row.type == FloatType::f64)
        take_scaling(scales, minimums, table, *kept, values.wide);
    else
        take_scaling(scales, minimums, table, *kept, values.single);
    values.zero_points = keep<u8>(zero_points, *kept, "zero points are bytes");
    require(zero_points.is_none() || !values.zero_points.empty(), "one zero point for each group");
    values.owner = kept;
    return {row.itemsize, make_layout(layout, bits), std::move(values)};
}

SegmentDecoder affine_decoder(std::string_view layout, unsigned bits, const std::string& dtype, unsigned code_bits, const GroupTuple& groups,
                              nb::handle scales, nb::handle zero_points, nb::handle minimums, std::optional<int> zero, nb::handle index) {
    check_width(code_bits);
    return scaled_decoder(layout, bits, dtype, groups, scales, minimums, nb::none(), zero_points, zero.value_or(1 << (code_bits - 1)), index);
}

SegmentDecoder scaled_codebook_decoder(std::string_view layout, unsigned bits, const std::string& dtype, const GroupTuple& groups, nb::handle scales,
                                       nb::handle table, nb::handle minimums, nb::handle index) {
    require(!table.is_none(), "a table has 1 to 256 values");
    return scaled_decoder(layout, bits, dtype, groups, scales, minimums, table, nb::none(), 0, index);
}

SegmentDecoder vector_decoder(std::size_t itemsize, std::size_t size, std::size_t dimension, u64 places, nb::handle codewords) {
    check_itemsize(itemsize);
    require(size >= 1 && size <= 256, "a codebook has 1 to 256 codewords");
    require(dimension >= 1 && dimension <= 65536, "a codeword has 1 to 65536 elements");
    require(places >= 1 && places < u64{1} << 40, "there are 1 to 2^40 tables");
    return {itemsize, {}, VectorValues{size, dimension, places, copy_of(codewords)}};
}

using StreamTuple = std::tuple<unsigned, std::size_t, std::size_t, unsigned>;  // coding, stored bytes, symbols, width

// The streams of a segment, which stand in `part` one behind the other from `start` on; those in `decoded` are taken from
// there instead.
struct SegmentStreams {
    SegmentStreams(nb::handle part, std::size_t start, const std::vector<StreamTuple>& tuples, const std::map<std::size_t, nb::object>& decoded)
        : part_(part) {
        std::size_t at = start;
        for (std::size_t i = 0; i < tuples.size(); ++i) {
            const auto& [coding, length, count, width] = tuples[i];
            check_width(width);
            require(at <= part_.size() && length <= part_.size() - at, "a stream is not in the buffer");
            if (const auto found = decoded.find(i); found != decoded.end()) {
                decoded_.emplace_back(found->second);
                streams.push_back({Coding::symbols, decoded_.back().bytes(), count, width});
            } else {
                require(coding <= 0xFF && is_native(static_cast<u8>(coding)), "streams of other codings are decoded before");
                streams.push_back({static_cast<Coding>(coding), part_.bytes().subspan(at, length), count, width});
            }
            at += length;
        }
    }

    std::vector<CodedStream> streams;

  private:
    Buffer part_;
    std::vector<Buffer> decoded_;
};

void py_decode(const SegmentDecoder& decoder, nb::handle part, std::size_t start, const std::vector<StreamTuple>& tuples,
               const std::map<std::size_t, nb::object>& decoded, u64 first, std::size_t entries, bool streaming, nb::handle out) {
    require(first < u64{1} << 63, "a tensor has fewer than 2^63 elements");
    const SegmentStreams streams(part, start, tuples, decoded);
    const Buffer to(out, true);
    const std::size_t elements = to.size() / decoder.itemsize();
    require(to.size() % decoder.itemsize() == 0 && elements <= ~u32{0}, "the output does not hold whole elements, fewer than 2^32");
    nb::gil_scoped_release release;
    decoder.decode({first, elements, entries, streams.streams}, streaming, to.data());
}

void py_decode_entries(const SegmentDecoder& decoder, nb::handle part, std::size_t start, const std::vector<StreamTuple>& tuples,
                       const std::map<std::size_t, nb::object>& decoded, u64 first, std::size_t elements, nb::handle positions, nb::handle out) {
    require(first < u64{1} << 63, "a tensor has fewer than 2^63 elements");
    const SegmentStreams streams(part, start, tuples, decoded);
    const std::optional<Buffer> at = optional_buffer(positions);
    const Buffer to(out, true);
    const std::size_t entries = to.size() / decoder.itemsize();
    require(to.size() % decoder.itemsize() == 0 && elements <= ~u32{0}, "the output does not hold whole elements, fewer than 2^32");
    const auto where = at ? at->as<u32>("positions are 32-bit integers") : std::span<u32>();
    require(decoder.is_dense() ? !at : where.size() == entries, "one position for each entry");
    nb::gil_scoped_release release;
    decoder.decode_entries({first, elements, entries, streams.streams}, where, to.data());
}

// A batch, and what it refers to.
class PyBatch {
  public:
    PyBatch(nb::handle part_chunks, nb::handle part_starts, std::size_t streamed)
        : batch_(integers(part_chunks), integers(part_starts), streamed) {}
    PyBatch(const PyBatch&) = delete;
    PyBatch& operator=(const PyBatch&) = delete;

    void add(nb::object decoder, std::size_t first_part, unsigned bits, u64 segment, nb::handle codings, std::vector<u32> lengths,
             std::vector<u32> entries, std::vector<u32> gaps, nb::handle out) {
        check_width(bits);
        const auto& segments = nb::cast<const SegmentDecoder&>(decoder);
        Buffer to(out, true);
        require(to.size() % segments.itemsize() == 0, "the output does not hold whole elements");
        batch_.add({&segments, first_part, bits, to.size() / segments.itemsize(), segment, copy_of(codings), std::move(lengths),
                    std::move(entries), std::move(gaps), to.data()});
        decoders_.push_back(std::move(decoder));
        outs_.push_back(std::move(to));
    }

    std::map<std::int64_t, u64> sizes() const { return batch_.sizes(); }

    std::optional<std::tuple<std::size_t, std::size_t, std::string>> decode(std::int64_t chunk, nb::handle data) const {
        const Buffer in(data);
        nb::gil_scoped_release release;
        const auto failure = batch_.decode(chunk, in.bytes());
        if (!failure) return std::nullopt;
        return std::tuple{failure->tensor, failure->segment, failure->reason};
    }

  private:
    static std::vector<std::int64_t> integers(nb::handle object) {
        const Buffer buffer(object);
        const auto values = buffer.as<const std::int64_t>("places are 64-bit integers");
        return {values.begin(), values.end()};
    }

    Batch batch_;
    std::vector<nb::object> decoders_;
    std::vector<Buffer> outs_;
};

// Asks the kernel for the pages of a buffer at once, which is cheaper than one by one; what it does not do is done later.
void py_populate(nb::handle memory) {
    const Buffer buffer(memory, true);
    nb::gil_scoped_release release;
    populate(buffer.data(), buffer.size());
}

Difference difference_of(const std::string& kind) {
    if (kind == "bits") return Difference::bits;
    if (kind == "integers") return Difference::integers;
    require(kind == "floats", "a difference is one of bits, integers or floats");
    return Difference::floats;
}

void py_encode_delta(const std::string& kind, nb::handle base, nb::handle elements, std::size_t itemsize, nb::handle out) {
    check_itemsize(itemsize);
    const Difference difference = difference_of(kind);
    const Buffer before(base), in(elements), to(out, true);
    require(in.size() % itemsize == 0 && before.size() == in.size() && to.size() == in.size(), "one element for each of the base");
    nb::gil_scoped_release release;
    encode_delta(difference, before.data(), in.data(), in.size() / itemsize, itemsize, to.data());
}

void py_decode_delta(const std::string& kind, nb::handle base, std::size_t itemsize, nb::handle data) {
    check_itemsize(itemsize);
    const Difference difference = difference_of(kind);
    const Buffer before(base), to(data, true);
    require(to.size() % itemsize == 0 && before.size() == to.size(), "one element for each of the base");
    nb::gil_scoped_release release;
    decode_delta(difference, before.data(), to.size() / itemsize, itemsize, to.data());
}

std::size_t py_huffman_estimate(nb::handle symbols) {
    const Buffer in(symbols);
    nb::gil_scoped_release release;
    return huffman_estimate(in.data(), in.size());
}

Rows make_rows(const Buffer& elements, std::size_t itemsize, std::size_t row, bool skip_zeros, const Buffer& codes) {
    check_itemsize(itemsize);
    require(row > 0 && row < u64{1} << 56 && elements.size() % (itemsize * row) == 0, "whole rows of elements");
    require(codes.size() == elements.size() / itemsize, "one code for each element");
    return {elements.bytes(), itemsize, row, skip_zeros};
}

nb::object py_shared_values(nb::handle elements, std::size_t itemsize, std::size_t row, bool skip_zeros, std::size_t limit, nb::handle codes) {
    const Buffer in(elements), to(codes, true);
    const Rows rows = make_rows(in, itemsize, row, skip_zeros, to);
    std::optional<SharedValues> found;
    {
        nb::gil_scoped_release release;
        found = shared_values(rows, limit, to.data());
    }
    if (!found) return nb::none();
    return nb::make_tuple(to_bytes(found->centroids), found->size);
}

bool py_looks_quantized(nb::handle elements, std::size_t itemsize, const std::string& dtype, bool skip_zeros, std::size_t limit) {
    const Buffer in(elements);
    check_itemsize(itemsize);
    require(in.size() > 0 && in.size() % itemsize == 0, "whole elements");
    std::optional<FloatType> type;
    if (dtype == "f32" || dtype == "f16" || dtype == "bf16") {
        type = dtype == "f32" ? FloatType::f32 : dtype == "f16" ? FloatType::f16 : FloatType::bf16;
        require(itemsize == (dtype == "f32" ? 4 : 2), "elements of the type's size");
    }
    nb::gil_scoped_release release;
    return looks_quantized({in.bytes(), itemsize, in.size() / itemsize, skip_zeros}, type, limit);
}

nb::tuple py_plane_costs(nb::handle elements, std::size_t itemsize, bool rotated) {
    check_itemsize(itemsize);
    const Buffer in(elements);
    require(in.size() % itemsize == 0, "whole elements");
    PlaneCosts costs;
    {
        nb::gil_scoped_release release;
        costs = plane_costs(in.bytes(), itemsize, rotated);
    }
    return nb::make_tuple(costs.whole, costs.bytes, costs.rotated);
}

nb::object py_uniform_codes(nb::handle elements, const std::string& dtype, std::size_t row, bool skip_zeros, nb::handle codes) {
    require(dtype == "f32" || dtype == "f16" || dtype == "bf16", "uniform codes are found of f32, f16 and bf16");
    const Buffer in(elements), to(codes, true);
    const Rows rows = make_rows(in, dtype == "f32" ? 4 : 2, row, skip_zeros, to);
    const auto type = dtype == "f32" ? FloatType::f32 : dtype == "f16" ? FloatType::f16 : FloatType::bf16;
    std::optional<UniformCodes> found;
    {
        nb::gil_scoped_release release;
        found = uniform_codes(rows, type, to.data());
    }
    if (!found) return nb::none();
    const char* scale = found->scale == FloatType::f32 ? "f32" : found->scale == FloatType::f16 ? "f16" : "bf16";
    const nb::bytes scales(reinterpret_cast<const char*>(found->scales.data()), found->scales.size() * sizeof(float));
    return nb::make_tuple(scales, nb::str(scale), to_bytes(found->zero_points), found->bits);
}

void py_histogram(nb::handle data, nb::handle out) {
    const Buffer in(data), to(out, true);
    const auto counts = to.as<u64>("counts are 64-bit integers");
    require(counts.size() == 256, "a histogram has 256 counts");
    nb::gil_scoped_release release;
    const Histogram histogram = count_symbols(in.data(), in.size());
    std::copy(histogram.begin(), histogram.end(), counts.begin());
}

// Sets a UsageError that says what DCZ_KERNEL may hold on this processor.
void set_unknown_isa(const char* name) {
    std::string names;
    for (const auto isa : available_isas()) names += (names.empty() ? "" : ", ") + std::string(isa);
    const nb::object given = nb::steal(PyUnicode_DecodeFSDefault(name));
    const nb::object type = nb::module_::import_("dcz.errors").attr("UsageError");
    const nb::object message = nb::str("DCZ_KERNEL is {!r}, which is not an instruction set that dcz and this processor have").attr("format")(given);
    const nb::object error = type(message, nb::arg("hint") = "possible here: " + names + "; without it, the first of them is used");
    PyErr_SetObject(type.ptr(), error.ptr());
}

nb::tuple py_check_messagepack(nb::handle data, unsigned max_depth) {
    const Buffer in(data);
    Tally tally;
    {
        nb::gil_scoped_release release;
        tally = check_messagepack(in.bytes(), max_depth);
    }
    return nb::make_tuple(tally.containers, tally.items);
}

}  // namespace

NB_MODULE(_native, m) {
    // A reader that is still open when the interpreter ends is no leak.
    nb::set_leak_warnings(false);
    nb::register_exception_translator([](const std::exception_ptr& p, void*) {
        try {
            std::rethrow_exception(p);
        } catch (const Corrupt& e) {
            nb::object type = nb::module_::import_("dcz.errors").attr("CorruptStream");
            PyErr_SetString(type.ptr(), e.what());
        } catch (const UnknownIsa& e) {
            set_unknown_isa(e.what());
        }
    });
    m.def("available_isas", [] {
        nb::list names;
        for (const auto name : available_isas()) names.append(nb::str(name.data(), name.size()));
        return names;
    });
    m.def("active_isa", [] { return std::string(isa_name(active_isa())); });
    m.def("force_isa", [](std::string_view name) { return force_isa(name); }, nb::arg("name"));
    m.def("huffman_encode", &py_huffman_encode, nb::arg("symbols"), nb::arg("width"), nb::arg("limit"), nb::arg("price") = 0);
    m.def("huffman_estimate", &py_huffman_estimate, nb::arg("symbols"));
    m.def("huffman_decode", &py_decode_symbols<huffman_decode>, nb::arg("stream"), nb::arg("width"), nb::arg("out"));
    m.def("cascade_encode", &py_cascade_encode, nb::arg("symbols"), nb::arg("width"), nb::arg("limit"), nb::arg("price") = 0);
    m.def("cascade_decode", &py_decode_symbols<cascade_decode>, nb::arg("stream"), nb::arg("width"), nb::arg("out"));
    m.def("range_encode", &py_range_encode, nb::arg("symbols"), nb::arg("width"), nb::arg("model"), nb::arg("start"), nb::arg("positions").none(),
          nb::arg("step"), nb::arg("bits"), nb::arg("next").none(), nb::arg("last").none());
    m.def("range_decode", &py_range_decode, nb::arg("stream"), nb::arg("width"), nb::arg("start"), nb::arg("positions").none(), nb::arg("step"),
          nb::arg("bits"), nb::arg("next").none(), nb::arg("last").none(), nb::arg("out"));
    m.def("check_messagepack", &py_check_messagepack, nb::arg("data"), nb::arg("max_depth"));
    m.def("huffman_code_lengths", &py_code_lengths<HuffmanDecoder>, nb::arg("stream"), nb::arg("width"), nb::arg("count"));
    m.def("cascade_code_lengths", &py_code_lengths<CascadeDecoder>, nb::arg("stream"), nb::arg("width"), nb::arg("count"));
    m.def("table_bytes", [](nb::handle stream) { return table_bytes(Buffer(stream).bytes()); }, nb::arg("stream"));
    m.def("pack", &py_pack, nb::arg("symbols"), nb::arg("width"));
    m.def("unpack", &py_unpack, nb::arg("bits"), nb::arg("width"), nb::arg("out"));
    m.def("split_planes", &py_split_planes, nb::arg("data"), nb::arg("itemsize"), nb::arg("rotated"), nb::arg("out"), nb::arg("offset") = 0);
    m.def("best_offset", &py_best_offset, nb::arg("data"), nb::arg("itemsize"));
    m.def("widen", &py_widen, nb::arg("data"), nb::arg("narrow"), nb::arg("wide"), nb::arg("out"));
    m.def("narrow", &py_narrow, nb::arg("data"), nb::arg("wide"), nb::arg("narrow"), nb::arg("out"));
    m.def("encode_gaps", &py_encode_gaps, nb::arg("mask"), nb::arg("bits"));
    m.def("count_gaps", &py_count_gaps, nb::arg("mask"));
    nb::class_<SegmentDecoder>(m, "SegmentDecoder")
        .def_static("exact", &exact_decoder, nb::arg("layout"), nb::arg("gap_bits"), nb::arg("itemsize"), nb::arg("split"), nb::arg("boolean"),
                    nb::arg("offset") = 0, nb::arg("widening") = nb::none())
        .def_static("codebook", &codebook_decoder, nb::arg("layout"), nb::arg("gap_bits"), nb::arg("itemsize"), nb::arg("size"),
                    nb::arg("groups"), nb::arg("centroids"), nb::arg("index") = nb::none())
        .def_static("affine", &affine_decoder, nb::arg("layout"), nb::arg("gap_bits"), nb::arg("dtype"), nb::arg("bits"), nb::arg("groups"),
                    nb::arg("scales"), nb::arg("zero_points").none(), nb::arg("minimums") = nb::none(), nb::arg("zero_point") = nb::none(),
                    nb::arg("index") = nb::none())
        .def_static("scaled_codebook", &scaled_codebook_decoder, nb::arg("layout"), nb::arg("gap_bits"), nb::arg("dtype"), nb::arg("groups"),
                    nb::arg("scales"), nb::arg("table"), nb::arg("minimums") = nb::none(), nb::arg("index") = nb::none())
        .def_static("vectors", &vector_decoder, nb::arg("itemsize"), nb::arg("size"), nb::arg("dimension"), nb::arg("places"), nb::arg("codewords"))
        .def("decode", &py_decode, nb::arg("part"), nb::arg("start"), nb::arg("streams"), nb::arg("decoded"), nb::arg("first"),
             nb::arg("entries"), nb::arg("streaming"), nb::arg("out"))
        .def("decode_entries", &py_decode_entries, nb::arg("part"), nb::arg("start"), nb::arg("streams"), nb::arg("decoded"),
             nb::arg("first"), nb::arg("elements"), nb::arg("positions").none(), nb::arg("out"));
    nb::class_<PyBatch>(m, "Batch")
        .def(nb::init<nb::handle, nb::handle, std::size_t>(), nb::arg("part_chunks"), nb::arg("part_starts"), nb::arg("streamed"))
        .def("add", &PyBatch::add, nb::arg("decoder"), nb::arg("first_part"), nb::arg("bits"), nb::arg("segment"), nb::arg("codings"),
             nb::arg("lengths"), nb::arg("entries"), nb::arg("gaps"), nb::arg("out"))
        .def("sizes", &PyBatch::sizes)
        .def("decode", &PyBatch::decode, nb::arg("chunk"), nb::arg("data"));
    m.def("populate", &py_populate, nb::arg("memory"));
    m.def("shared_values", &py_shared_values, nb::arg("elements"), nb::arg("itemsize"), nb::arg("row"), nb::arg("skip_zeros"),
          nb::arg("limit"), nb::arg("codes"));
    m.def("looks_quantized", &py_looks_quantized, nb::arg("elements"), nb::arg("itemsize"), nb::arg("dtype"), nb::arg("skip_zeros"),
          nb::arg("limit"));
    m.def("plane_costs", &py_plane_costs, nb::arg("elements"), nb::arg("itemsize"), nb::arg("rotated"));
    m.def("uniform_codes", &py_uniform_codes, nb::arg("elements"), nb::arg("dtype"), nb::arg("row"), nb::arg("skip_zeros"), nb::arg("codes"));
    m.def("encode_delta", &py_encode_delta, nb::arg("kind"), nb::arg("base"), nb::arg("elements"), nb::arg("itemsize"),
          nb::arg("out"));
    m.def("decode_delta", &py_decode_delta, nb::arg("kind"), nb::arg("base"), nb::arg("itemsize"), nb::arg("data"));
    bind_clustering(m);
    m.def("histogram", &py_histogram, nb::arg("data"), nb::arg("out"));
}
