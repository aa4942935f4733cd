// This file and bindings_clustering.cpp are all that knows Python. Each function takes buffers of bytes, checks their sizes against each other, and
// works without the GIL. src/dcz/_native.pyi has the types.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>

#include "bindings_clustering.h"
#include "bits.h"
#include "cpu.h"
#include "dequantize.h"
#include "huffman.h"
#include "kernels.h"
#include "messagepack.h"
#include "planes.h"
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

void require(bool condition, const char* what) {
    if (!condition) throw std::invalid_argument(what);
}

void check_width(unsigned width) { require(width >= 1 && width <= 8, "a symbol has 1 to 8 bits"); }
void check_itemsize(std::size_t itemsize) {
    require(itemsize == 1 || itemsize == 2 || itemsize == 4 || itemsize == 8, "an element has 1, 2, 4 or 8 bytes");
}

nb::bytes to_bytes(const std::vector<u8>& data) { return nb::bytes(data.data(), data.size()); }

nb::object py_huffman_encode(nb::handle symbols, unsigned width, std::size_t limit) {
    check_width(width);
    const Buffer in(symbols);
    std::vector<u8> out;
    {
        nb::gil_scoped_release release;
        require(width == 8 || std::all_of(in.data(), in.data() + in.size(), [&](u8 s) { return s >> width == 0; }),
                "a symbol does not fit in the width");
        out = huffman_encode(in.data(), in.size(), width, limit);
    }
    return out.empty() ? nb::object(nb::none()) : nb::object(to_bytes(out));
}

void py_huffman_decode(nb::handle stream, unsigned width, nb::handle out) {
    check_width(width);
    const Buffer in(stream), to(out, true);
    nb::gil_scoped_release release;
    if (to.size() > 0) huffman_decode(in.bytes(), to.size(), width, to.data());
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

void py_split_planes(nb::handle data, std::size_t itemsize, bool rotated, nb::handle out) {
    check_itemsize(itemsize);
    const Buffer in(data), to(out, true);
    require(in.size() % itemsize == 0 && to.size() == in.size(), "planes and elements must have the same size");
    nb::gil_scoped_release release;
    const std::size_t count = in.size() / itemsize;
    std::vector<u8*> planes(itemsize);
    for (std::size_t j = 0; j < itemsize; ++j) planes[j] = to.data() + j * count;
    kernels().split_planes(in.data(), count, itemsize, rotated, planes.data());
}

void py_decode_planes(const std::vector<std::pair<bool, nb::object>>& streams, bool rotated, nb::handle out) {
    std::vector<Buffer> buffers;
    std::vector<CodedStream> planes;
    for (const auto& [huffman, stream] : streams) {
        buffers.emplace_back(stream);
        planes.push_back({huffman, buffers.back().bytes()});
    }
    check_itemsize(planes.size());
    const Buffer to(out, true);
    require(to.size() % planes.size() == 0, "the output does not hold whole elements");
    nb::gil_scoped_release release;
    if (to.size() > 0) decode_planes(planes, to.size() / planes.size(), rotated, to.data());
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

void py_gap_positions(nb::handle gaps, unsigned bits, std::size_t elements, nb::handle positions) {
    check_width(bits);
    require(elements <= ~u32{0}, "a segment has fewer than 2^32 elements");
    const Buffer in(gaps), to(positions, true);
    nb::gil_scoped_release release;
    gap_positions(in.bytes(), bits, elements, to.as<u32>("positions are 32-bit integers"));
}

void py_bitmap_positions(nb::handle bitmap, std::size_t elements, nb::handle positions) {
    require(elements <= ~u32{0}, "a segment has fewer than 2^32 elements");
    const Buffer in(bitmap), to(positions, true);
    nb::gil_scoped_release release;
    bitmap_positions(in.bytes(), elements, to.as<u32>("positions are 32-bit integers"));
}

void py_scatter(nb::handle positions, nb::handle values, std::size_t itemsize, nb::handle out) {
    check_itemsize(itemsize);
    const Buffer at(positions), in(values), to(out, true);
    const auto where = at.as<const u32>("positions are 32-bit integers");
    const std::size_t elements = to.size() / itemsize;
    require(to.size() % itemsize == 0 && in.size() == where.size() * itemsize, "one value for each position");
    nb::gil_scoped_release release;
    for (const u32 position : where) require(position < elements, "a position is outside of the output");
    scatter(where, in.data(), itemsize, elements, to.data());
}

using GroupTuple = std::tuple<std::string, u64, u64>;  // kind, inner, extent

Groups make_groups(const GroupTuple& groups) {
    const auto& [kind, inner, extent] = groups;
    require(inner > 0 && extent > 0 && extent < u64{1} << 62, "groups have at least one element");
    if (kind == "tensor") return {Groups::Kind::tensor, inner, extent};
    if (kind == "channel") return {Groups::Kind::channel, inner, extent};
    require(kind == "group", "a group is of kind tensor, channel or group");
    return {Groups::Kind::group, inner, extent};
}

// The selection of a segment; `positions` is None or a buffer that outlives it.
Selection make_selection(u64 start, std::size_t count, const std::optional<Buffer>& positions) {
    require(start < u64{1} << 63, "a tensor has fewer than 2^63 elements");
    if (!positions) return {start, count, nullptr};
    const auto where = positions->as<const u32>("positions are 32-bit integers");
    require(where.size() == count, "one code for each position");
    return {start, count, where.data()};
}

std::optional<Buffer> optional_buffer(nb::handle object) {
    if (object.is_none()) return std::nullopt;
    return std::optional<Buffer>(std::in_place, object);
}

void py_look_up(nb::handle codes, nb::handle centroids, std::size_t size, std::size_t itemsize, const GroupTuple& groups, u64 start,
                nb::handle positions, nb::handle out) {
    check_itemsize(itemsize);
    require(size >= 1 && size <= 256, "a codebook has 1 to 256 centroids");
    const Buffer in(codes), table(centroids), to(out, true);
    const std::optional<Buffer> at = optional_buffer(positions);
    require(to.size() == in.size() * itemsize, "one element for each code");
    const Groups which = make_groups(groups);
    const Selection selection = make_selection(start, in.size(), at);
    nb::gil_scoped_release release;
    look_up(in.data(), selection, which, table.bytes(), size, itemsize, to.data());
}

void py_dequantize(nb::handle codes, nb::handle scales, nb::handle zero_points, unsigned bits, const std::string& dtype,
                   const GroupTuple& groups, u64 start, nb::handle positions, nb::handle out) {
    check_width(bits);
    const Buffer in(codes), factors(scales), to(out, true);
    const std::optional<Buffer> at = optional_buffer(positions), points = optional_buffer(zero_points);
    const Groups which = make_groups(groups);
    const Selection selection = make_selection(start, in.size(), at);
    const Bytes zeros = points ? points->bytes() : Bytes{};
    struct Row {
        const char* name;
        FloatType type;
        std::size_t itemsize;
    };
    constexpr Row rows[] = {{"f64", FloatType::f64, 8},   {"f32", FloatType::f32, 4},
                            {"f16", FloatType::f16, 2},   {"bf16", FloatType::bf16, 2},
                            {"f8_e4m3fn", FloatType::f8_e4m3fn, 1}, {"f8_e5m2", FloatType::f8_e5m2, 1}};
    for (const Row& row : rows) {
        if (dtype != row.name) continue;
        require(to.size() == in.size() * row.itemsize, "one element for each code");
        if (row.type == FloatType::f64) {
            const auto wide = factors.as<const double>("scales are 64-bit floats");
            nb::gil_scoped_release release;
            return dequantize(in.data(), selection, which, wide, zeros, bits, to.data());
        }
        const auto single = factors.as<const float>("scales are 32-bit floats");
        nb::gil_scoped_release release;
        return dequantize(in.data(), selection, which, single, zeros, bits, row.type, to.data());
    }
    throw std::invalid_argument("affine values are for floating-point types");
}

std::size_t py_huffman_estimate(nb::handle symbols) {
    const Buffer in(symbols);
    nb::gil_scoped_release release;
    return huffman_estimate(in.data(), in.size());
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
    m.def("huffman_encode", &py_huffman_encode, nb::arg("symbols"), nb::arg("width"), nb::arg("limit"));
    m.def("huffman_estimate", &py_huffman_estimate, nb::arg("symbols"));
    m.def("huffman_decode", &py_huffman_decode, nb::arg("stream"), nb::arg("width"), nb::arg("out"));
    m.def("check_messagepack", &py_check_messagepack, nb::arg("data"), nb::arg("max_depth"));
    m.def("huffman_table_bytes", [](nb::handle stream) { return huffman_table_bytes(Buffer(stream).bytes()); }, nb::arg("stream"));
    m.def("pack", &py_pack, nb::arg("symbols"), nb::arg("width"));
    m.def("unpack", &py_unpack, nb::arg("bits"), nb::arg("width"), nb::arg("out"));
    m.def("split_planes", &py_split_planes, nb::arg("data"), nb::arg("itemsize"), nb::arg("rotated"), nb::arg("out"));
    m.def("decode_planes", &py_decode_planes, nb::arg("streams"), nb::arg("rotated"), nb::arg("out"));
    m.def("encode_gaps", &py_encode_gaps, nb::arg("mask"), nb::arg("bits"));
    m.def("count_gaps", &py_count_gaps, nb::arg("mask"));
    m.def("gap_positions", &py_gap_positions, nb::arg("gaps"), nb::arg("bits"), nb::arg("elements"), nb::arg("positions"));
    m.def("bitmap_positions", &py_bitmap_positions, nb::arg("bitmap"), nb::arg("elements"), nb::arg("positions"));
    m.def("scatter", &py_scatter, nb::arg("positions"), nb::arg("values"), nb::arg("itemsize"), nb::arg("out"));
    m.def("look_up", &py_look_up, nb::arg("codes"), nb::arg("centroids"), nb::arg("size"), nb::arg("itemsize"),
          nb::arg("groups"), nb::arg("start"), nb::arg("positions").none(), nb::arg("out"));
    m.def("dequantize", &py_dequantize, nb::arg("codes"), nb::arg("scales"), nb::arg("zero_points").none(), nb::arg("bits"),
          nb::arg("dtype"), nb::arg("groups"), nb::arg("start"), nb::arg("positions").none(), nb::arg("out"));
    bind_clustering(m);
    m.def("histogram", &py_histogram, nb::arg("data"), nb::arg("out"));
}
