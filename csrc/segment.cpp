#include "segment.h"

#include <algorithm>
#include <array>
#include <atomic>

#include "bits.h"
#include "kernels.h"
#include "sparse.h"

namespace dcz {

namespace {

// Symbols that are decoded and used at a time: so few that they stay in the first-level cache, and that the memory takes
// what was written while the next ones are decoded.
constexpr std::size_t kStrip = 2048, kPlaneStrip = 1024;
constexpr std::size_t kAhead = 4096;  // bytes: so far ahead, raw symbols are fetched into the second-level cache
constexpr std::size_t kMaxItem = 8;  // bytes of an element

// Memory that each thread uses again and again: new pages cost more than what is done in them.
template <class T>
T* scratch(std::vector<T>& held, std::size_t size) {
    if (held.size() < size + kSlack) held.resize(size + kSlack);
    return held.data();
}

thread_local std::vector<u8> gap_scratch, bitmap_scratch, value_scratch, code_scratch;
thread_local std::vector<u32> position_scratch;

void expect_booleans(const u8* elements, std::size_t count) {
    u8 all = 0;
    for (std::size_t i = 0; i < count; ++i) all |= elements[i];
    if (all > 1) throw Corrupt("a bool is neither 0 nor 1");
}

// Where a strip of elements is made: in place; or in the cache, if what streams has to be aligned first, or if who makes it
// does not stream.
class Strip {
  public:
    Strip(bool streaming, bool maker_streams, const u8* out)
        : copies_(streaming && !(maker_streams && is_line(out))), streaming_(streaming && !copies_) {}

    u8* begin(u8* out) { return copies_ ? made_.data() : out; }
    bool streaming() const { return streaming_; }  // what is made at begin()
    void end(std::size_t size, u8* out) const {
        if (copies_) kernels().copy(made_.data(), size, out);
    }

  private:
    bool copies_, streaming_;
    alignas(64) std::array<u8, kStrip * kMaxItem> made_;
};

void decode_planes(std::span<const CodedStream> planes, std::size_t count, const ExactValues& exact, bool streaming, u8* out) {
    const std::size_t itemsize = planes.size(), size = exact.widening ? 2 * itemsize : itemsize;
    std::array<std::optional<SymbolReader>, kMaxItem> readers;
    alignas(64) std::array<std::array<u8, kPlaneStrip>, kMaxItem> symbols;
    alignas(64) std::array<u8, kPlaneStrip * kMaxItem / 2> narrow;
    std::array<const u8*, kMaxItem> pointers;
    for (std::size_t j = 0; j < itemsize; ++j) readers[j].emplace(planes[j]);
    const Kernels& k = kernels();
    Strip strip(streaming, !exact.widening, out);
    const std::size_t last = itemsize - 1;
    const bool is_direct = exact.rotated && !exact.widening && (itemsize == 2 || itemsize == 4);
    for (std::size_t start = 0; start < count; start += kPlaneStrip, out += kPlaneStrip * size) {
        const std::size_t n = std::min(kPlaneStrip, count - start);
        u8* const made = strip.begin(out);
        for (std::size_t j = 0; j < last; ++j) pointers[j] = readers[j]->next(symbols[j].data(), n);
        if (!is_direct || !readers[last]->next_into({pointers.data(), itemsize, exact.offset, strip.streaming(), made}, n)) {
            pointers[last] = readers[last]->next(symbols[last].data(), n);
            if (exact.widening) {
                k.merge_planes(pointers.data(), n, itemsize, exact.rotated, exact.offset, false, narrow.data());
                k.widen(narrow.data(), n, *exact.widening, made);
            } else {
                k.merge_planes(pointers.data(), n, itemsize, exact.rotated, exact.offset, strip.streaming(), made);
            }
        }
        strip.end(n * size, out);
    }
}

void decode_whole(const CodedStream& stream, std::size_t size, const ExactValues& exact, bool streaming, u8* out) {
    SymbolReader bytes(stream);
    const Kernels& k = kernels();
    alignas(64) std::array<u8, kStrip * kMaxItem / 2> symbols;
    Strip strip(streaming, false, out);
    for (std::size_t start = 0; start < size; start += symbols.size()) {
        const std::size_t n = std::min(symbols.size(), size - start);
        if (exact.widening) {
            k.widen(bytes.next(symbols.data(), n), n / (*exact.widening == Widening::f32_f64 ? 4 : 2), *exact.widening, strip.begin(out));
            strip.end(2 * n, out);
            out += 2 * n;
        } else {
            if (streaming)
                k.copy(bytes.next(symbols.data(), n), n, out);
            else
                bytes.read(out, n);
            out += n;
        }
    }
}

void expand(const u8* bitmap, const u8* values, std::size_t count, std::size_t itemsize, bool streaming, u8* out) {
    const Kernels& k = kernels();
    Strip strip(streaming, true, out);
    for (std::size_t start = 0; start < count; start += kStrip, out += kStrip * itemsize) {
        const std::size_t n = std::min(kStrip, count - start);
        k.expand(bitmap + start / 8, values, n, itemsize, strip.streaming(), strip.begin(out));
        strip.end(n * itemsize, out);
        values += k.popcount(bitmap + start / 8, n) * itemsize;
    }
}

}  // namespace

SymbolReader::SymbolReader(const CodedStream& stream) : bytes_(stream.bytes.data()), end_(bytes_ + stream.bytes.size()), width_(stream.width) {
    const std::size_t size = stream.bytes.size();
    switch (stream.coding) {
        case Coding::huffman:
            if (stream.count == 0) throw Corrupt("a stream without symbols is not empty");
            huffman_.emplace(stream.bytes, stream.count, stream.width);
            return;
        case Coding::cascade:
            if (stream.count == 0) throw Corrupt("a stream without symbols is not empty");
            cascade_.emplace(stream.bytes, stream.count, stream.width);
            return;
        case Coding::symbols: width_ = 8; [[fallthrough]];
        case Coding::raw: break;
    }
    if (size != packed_bytes(stream.count, width_)) throw Corrupt("a packed stream has the wrong length");
    expect_zero_padding(stream.bytes, stream.count, width_);
}

const u8* SymbolReader::next(u8* out, std::size_t count) {
    if (huffman_ || cascade_ || width_ < 8) {
        read(out, count);
        return out;
    }
    return take(count);
}

const u8* SymbolReader::next_packed(std::size_t count) {
    return huffman_ || cascade_ || width_ != 4 ? nullptr : take(packed_bytes(count, 4));
}

const u8* SymbolReader::take(std::size_t bytes) {
    const u8* here = bytes_;
    bytes_ += bytes;
    // While these are used and others are decoded, the next ones come.
    const std::size_t left = static_cast<std::size_t>(end_ - bytes_);
    const u8 *from = bytes_ + std::min(kAhead, left), *to = bytes_ + std::min(kAhead + bytes, left);
    for (const u8* line = from; line < to; line += 64) __builtin_prefetch(line, 0, 2);
    return here;
}

bool SymbolReader::next_into(const Assembly& into, std::size_t count) {
    return cascade_ && cascade_->next_into(into, count);
}

void SymbolReader::read(u8* out, std::size_t count) {
    if (huffman_) return huffman_->next(out, count);
    if (cascade_) return cascade_->next(out, count);
    // A piece of symbols is whole bytes, whatever their width.
    kernels().unpack(bytes_, count, width_, out);
    bytes_ += packed_bytes(count, width_);
}

const u8* SegmentDecoder::decode_bitmap(const CodedStream& stream, std::size_t elements, std::size_t entries) const {
    u8* bitmap = scratch(bitmap_scratch, stream.count);
    SymbolReader(stream).read(bitmap, stream.count);
    check_bitmap({bitmap, stream.count}, elements, entries);
    return bitmap;
}

const u32* SegmentDecoder::decode_gaps(const CodedStream& stream, std::size_t elements, std::size_t entries) const {
    if (stream.count > elements) throw Corrupt("a relative index has more symbols than there are elements");
    const u8* gaps = SymbolReader(stream).next(scratch(gap_scratch, stream.count), stream.count);
    u32* positions = scratch(position_scratch, stream.count);
    gap_positions({gaps, stream.count}, layout_.bits, elements, entries, positions);
    return positions;
}

std::size_t SegmentDecoder::entry_size() const {
    const auto* exact = std::get_if<ExactValues>(&values_);
    return exact && exact->widening ? itemsize_ / 2 : itemsize_;
}

void SegmentDecoder::decode_values(std::span<const CodedStream> streams, const Selection& which, bool streaming, u8* out) const {
    const std::size_t count = which.count;
    if (const auto* exact = std::get_if<ExactValues>(&values_)) {
        if (exact->split)
            decode_planes(streams, count, *exact, streaming, out);
        else
            decode_whole(streams[0], count * entry_size(), *exact, streaming, out);
        if (exact->boolean) expect_booleans(out, count);
        return;
    }
    if (std::holds_alternative<VectorValues>(values_)) return decode_vectors(streams[0], which.start, out);
    SymbolReader reader(streams[0]);
    if (which.positions) {
        u8* codes = scratch(code_scratch, count);
        reader.read(codes, count);
        return decode_codes(codes, which, out);
    }
    const std::optional<RunTables> tables = run_tables(reader.width(), which.start);
    alignas(64) std::array<u8, kStrip + kSlack> codes;
    Strip strip(streaming, tables.has_value(), out);
    for (std::size_t start = 0; start < count; start += kStrip, out += kStrip * itemsize_) {
        const std::size_t n = std::min(kStrip, count - start);
        const Selection piece{which.start + start, n, nullptr};
        if (tables) {
            const u8* packed = reader.next_packed(n);
            tables->look_up(packed ? packed : reader.next(codes.data(), n), packed != nullptr, piece, strip.streaming(), strip.begin(out));
        } else {
            decode_codes(reader.next(codes.data(), n), piece, strip.begin(out));
        }
        strip.end(n * itemsize_, out);
    }
}

std::optional<RunTables> SegmentDecoder::run_tables(unsigned width, u64 start) const {
    if (const auto* book = std::get_if<CodebookValues>(&values_))
        return RunTables::of(book->groups, book->centroids, book->size, itemsize_, width, start);
    return RunTables::of(std::get<ScaledValues>(values_), width, start);
}

void SegmentDecoder::decode_codes(const u8* codes, const Selection& which, u8* out) const {
    if (const auto* book = std::get_if<CodebookValues>(&values_))
        look_up(codes, which, book->groups, book->centroids, book->size, itemsize_, out);
    else
        dequantize(codes, which, std::get<ScaledValues>(values_), out);
}

void SegmentDecoder::decode_vectors(const CodedStream& stream, u64 first, u8* out) const {
    const auto& vectors = std::get<VectorValues>(values_);
    const std::size_t bytes = vectors.dimension * itemsize_;
    SymbolReader reader(stream);
    alignas(64) std::array<u8, kStrip + kSlack> codes;
    for (std::size_t start = 0; start < stream.count; start += kStrip) {
        const std::size_t n = std::min(kStrip, stream.count - start);
        look_up_vectors(reader.next(codes.data(), n), first / vectors.dimension + start, n, vectors.codewords, vectors.size, bytes, vectors.places,
                        out + start * bytes);
    }
}

const Groups* SegmentDecoder::groups() const {
    if (const auto* book = std::get_if<CodebookValues>(&values_)) return &book->groups;
    if (const auto* scaled = std::get_if<ScaledValues>(&values_)) return &scaled->groups;
    return nullptr;
}

std::size_t SegmentDecoder::value_streams() const {
    const auto* exact = std::get_if<ExactValues>(&values_);
    return exact && exact->split ? entry_size() : 1;
}

std::size_t SegmentDecoder::value_symbols(std::size_t entries) const {
    if (const auto* vectors = std::get_if<VectorValues>(&values_)) return entries / vectors->dimension;
    const auto* exact = std::get_if<ExactValues>(&values_);
    return exact && !exact->split ? entries * entry_size() : entries;
}

void SegmentDecoder::describe(std::size_t elements, std::size_t entries, std::size_t gaps, unsigned bits,
                              std::vector<CodedStream>& streams) const {
    streams.clear();
    if (has_gaps())
        streams.push_back({Coding::raw, {}, gaps, layout_.bits});
    else if (!is_dense())
        streams.push_back({Coding::raw, {}, (elements + 7) / 8, 8});
    const unsigned width = std::holds_alternative<ExactValues>(values_) ? 8 : bits;
    streams.insert(streams.end(), value_streams(), {Coding::raw, {}, value_symbols(entries), width});
}

void SegmentDecoder::expect_streams(const Segment& segment) const {
    const std::size_t positions = position_streams(), symbols = value_symbols(segment.entries);
    bool fit = segment.streams.size() == segment_streams() && segment.entries <= segment.elements;
    if (is_dense()) fit = fit && segment.entries == segment.elements;
    if (const auto* vectors = std::get_if<VectorValues>(&values_))
        fit = fit && is_dense() && segment.first % vectors->dimension == 0 && segment.elements % vectors->dimension == 0;
    if (fit && layout_.kind == Layout::Kind::bitmap) fit = segment.streams[0].count == (segment.elements + 7) / 8;
    for (std::size_t i = positions; fit && i < segment.streams.size(); ++i) fit = segment.streams[i].count == symbols;
    if (!fit) throw std::invalid_argument("the streams are not those of such a segment");
}

void SegmentDecoder::decode(const Segment& segment, bool streaming, u8* out) const {
    expect_streams(segment);
    const auto sparse = [&](const u32* positions) {
        u8* values = scratch(value_scratch, segment.entries * itemsize_);
        decode_values(segment.streams.subspan(1), {segment.first, segment.entries, has_groups() ? positions : nullptr}, false, values);
        return values;
    };
    switch (layout_.kind) {
        case Layout::Kind::dense:
            decode_values(segment.streams, {segment.first, segment.elements, nullptr}, streaming, out);
            break;
        case Layout::Kind::relative_index: {
            const u32* positions = decode_gaps(segment.streams[0], segment.elements, segment.entries);
            const u8* values = sparse(positions);
            kernels().place(positions, values, segment.entries, segment.elements, itemsize_, streaming, out);
            break;
        }
        case Layout::Kind::bitmap: {
            const u8* bitmap = decode_bitmap(segment.streams[0], segment.elements, segment.entries);
            u32* positions = scratch(position_scratch, has_groups() ? segment.entries : 0);
            if (has_groups()) bitmap_positions({bitmap, segment.streams[0].count}, {positions, segment.entries});
            expand(bitmap, sparse(positions), segment.elements, itemsize_, streaming, out);
        }
    }
    // Whoever is told that this is done must see what went around the caches.
    if (streaming) std::atomic_thread_fence(std::memory_order_seq_cst);
}

void SegmentDecoder::decode_entries(const Segment& segment, std::span<u32> positions, u8* out) const {
    expect_streams(segment);
    const u32* where = is_dense() ? nullptr : positions.data();
    if (layout_.kind == Layout::Kind::bitmap) {
        const u8* bitmap = decode_bitmap(segment.streams[0], segment.elements, segment.entries);
        bitmap_positions({bitmap, segment.streams[0].count}, positions);
    } else if (layout_.kind == Layout::Kind::relative_index) {
        std::copy_n(decode_gaps(segment.streams[0], segment.elements, segment.entries), segment.entries, positions.data());
    }
    decode_values(segment.streams.subspan(position_streams()), {segment.first, segment.entries, where}, false, out);
}

}  // namespace dcz
