#include "range.h"

#include "bits.h"
#include "huffman.h"
#include "range_coder.h"

namespace dcz {

namespace {

constexpr std::size_t kColumnSlots = 65536;
constexpr u32 kTrust = 4, kNodeTrust = 2, kLineTrust = 12;

// Walks through the places of the symbols (section 6.4.5).
class Places {
  public:
    Places(const RangeContext& context, std::size_t count, u32 columns) : context_(context), count_(count), columns_(columns) {}

    // The slot of the next symbol's column; `row_starts` says whether it is in another row than the one before.
    std::size_t next(bool& row_starts) {
        const u64 place = at(symbol_++);
        row_starts = place - row_ >= columns_;  // also if it is before the row
        if (row_starts) row_ = place - place % columns_;
        return static_cast<std::size_t>(place - row_) % kColumnSlots;
    }

    // The place of the last symbol, and how many symbols there are in its row from it on.
    u64 last() const { return at(symbol_ - 1); }
    u64 left_in_row() const {
        std::size_t end = symbol_;
        while (end < count_ && at(end) - row_ < columns_) ++end;
        return end - symbol_ + 1;
    }

  private:
    u64 at(std::size_t symbol) const {
        if (!context_.positions) return context_.start * context_.step + symbol;
        const std::size_t entry = symbol / context_.step;
        return (context_.start + (*context_.positions)[entry]) * context_.step + symbol % context_.step;
    }

    const RangeContext& context_;
    std::size_t count_, symbol_ = 0;
    u64 columns_, row_ = 0;
};

template <class T>
std::size_t digits(T value) {
    return static_cast<std::size_t>(std::bit_width(value));
}

std::size_t column_slots(u32 columns) { return std::min<std::size_t>(columns, kColumnSlots); }

// 6.4.4: the bits of a bitmap.
template <class Coder>
void code_bits(Coder& coder, u8* bitmap, const RangeContext& context, u32 columns) {
    const std::size_t count = context.bits;
    // Behind the segment's start, and however far a row may reach, there are zeros.
    const std::size_t reach = std::min<std::size_t>(columns, count + 1), pad = 2 * reach + 4;
    std::vector<u8> bits(pad + count + 1);
    struct Column {
        Slot slot;
        u32 last = 0;  // the row of its last one
    };
    std::vector<Column> lines(column_slots(columns));
    std::array<Slot, 128> neighbours;
    std::array<std::array<std::array<Slot, 4>, 33>, 33> ages;
    Slot all, row;
    std::array<Weight, 5> weights = {26214, 19661, -6554, 13107, 13107};
    std::size_t x = static_cast<std::size_t>(context.start % columns);
    const u8* here = bits.data() + pad;
    u32 y = 1, run = 0, recent = 0, ones = 0;  // recent: the latest 32 bits of the row, and the ones among them
    row.start_from(all, kLineTrust);
    for (std::size_t i = 0; i < count; ++i, ++here, ++x) {
        if (x == columns) {
            x = 0;
            ++y;
            run = recent = ones = 0;
            row = {};
            row.start_from(all, kLineTrust);
        }
        const u8 *above = here - reach, *twice = above - reach;
        const unsigned pattern = here[-1] | here[-2] << 1 | (here[-3] | here[-4]) << 2 | above[0] << 3 | above[-1] << 4 |
                                 above[1] << 5 | twice[0] << 6;
        Column& column = lines[x % kColumnSlots];
        Slot& age = ages[digits(y - column.last)][digits(run)][std::min<std::size_t>(3, digits(ones))];
        column.slot.start_from(all, kLineTrust);
        neighbours[pattern].start_from(all, kTrust);
        age.start_from(all, kTrust);
        unsigned bit = Coder::kDecodes ? 0 : (bitmap[i / 8] >> (i % 8)) & 1u;
        bit = decide<17>(coder, bit, std::array{&column.slot, &row, &all, &neighbours[pattern], &age}, weights);
        ++run;
        ones = ones + bit - (recent >> 31);
        recent = recent << 1 | bit;
        if (bit) {
            run = 0;
            column.last = y;
        }
        bits[pad + i] = static_cast<u8>(bit);
        if constexpr (Coder::kDecodes) bitmap[i / 8] |= static_cast<u8>(bit << (i % 8));
    }
}

// The path of each symbol through the tree: bits from the most significant on.
struct Path {
    u16 code = 0;
    u8 length = 0;
};

std::array<Path, 256> paths(const Lengths& lengths) {
    std::array<Path, 256> out{};
    unsigned code = 0;
    for (unsigned length = 1; length <= kMaxLength; ++length, code <<= 1)
        for (std::size_t s = 0; s < 256; ++s)
            if (lengths[s] == length) out[s] = {static_cast<u16>(code++), static_cast<u8>(length)};
    return out;
}

// Walks down the tree; `decision(node, bit)` codes one. Returns the symbol.
template <class Coder, class Decision>
inline unsigned walk(const Tree& tree, const Path& path, const Decision& decision) {
    if (tree.nodes.empty()) return tree.only;
    unsigned node = 0;
    for (unsigned depth = 1;; ++depth) {
        const unsigned bit = decision(node, Coder::kDecodes ? 0u : (path.code >> (path.length - depth)) & 1u);
        const u16 child = tree.nodes[node].child[bit];
        if (child & Tree::kLeaf) return child & 0xFF;
        node = child;
    }
}

// A running mean of the symbols of a row or a column, in 256ths; below 0 before the first.
struct Mean {
    i32 value = -1;
    void add(unsigned symbol, unsigned shift) {
        const i32 target = static_cast<i32>(symbol) << 8;
        value = value < 0 ? target : value + ((target - value) >> shift);
    }
};

// Either mean, or the middle of both.
i32 middle(i32 a, i32 b) { return a < 0 ? b : b < 0 ? a : (a + b) >> 1; }

// 6.4.5: values in the light of their row, their column and their neighbours. `symbols` are without their raw bits.
template <class Coder>
void code_neighbours(Coder& coder, u8* symbols, std::size_t count, const Tree& tree, const std::array<Path, 256>& path,
                     const RangeModel& model, const RangeContext& context) {
    constexpr std::size_t kContexts = 5;
    const std::size_t nodes = tree.nodes.size();
    // The slots of one value of a context stand together: a symbol touches a few lines of the cache.
    constexpr std::array<std::size_t, kContexts + 1> kFirst = {0, 256, 1281, 1537, 1793, 2049};  // values of the contexts before
    std::vector<Slot> order0(nodes), slots(kFirst[kContexts] * nodes);
    std::vector<std::array<Weight, 1 + kContexts>> weights(nodes, {20000, 8000, 10000, 8000, 16000, 8000});
    struct Column {
        Mean mean;
        i32 last = -1;
        u32 symbols = 0;
    };
    std::vector<Column> columns(column_slots(model.columns));
    const bool sparse = context.positions.has_value();
    if (sparse) {
        Places places(context, count, model.columns);
        for (std::size_t i = 0; i < count; ++i) {
            bool row_starts;
            ++columns[places.next(row_starts)].symbols;
        }
    }
    Places places(context, count, model.columns);
    Mean row;
    i32 left = -1;
    u64 in_row = 0, before = 0;
    const auto index = [&](i32 value) -> std::size_t {
        return value < 0 ? 0 : static_cast<std::size_t>((value >> (5 + model.resolution)) + 1) & 255;
    };
    for (std::size_t i = 0; i < count; ++i) {
        bool row_starts;
        Column& column = columns[places.next(row_starts)];
        if (row_starts) {
            row = {};
            left = -1;
        }
        if (sparse && (row_starts || i == 0)) in_row = places.left_in_row();
        const std::size_t density = sparse ? digits(in_row * column.symbols) : index(row.value);
        // Who stands next to it says more than who is far away.
        const u64 here = places.last();
        const std::size_t near = left < 0 ? 0 : 1 + 4 * static_cast<std::size_t>(left) + std::min<std::size_t>(3, digits(here - before - 1));
        before = here;
        const std::array<std::size_t, kContexts> at = {index(middle(row.value, column.mean.value)), near, index(column.mean.value),
                                                       density, index(column.last)};
        const unsigned symbol = walk<Coder>(tree, path[symbols[i]], [&](unsigned node, unsigned bit) {
            std::array<Slot*, 1 + kContexts> chosen = {&order0[node]};
            for (std::size_t k = 0; k < kContexts; ++k) {
                chosen[k + 1] = &slots[(kFirst[k] + at[k]) * nodes + node];
                chosen[k + 1]->start_from(order0[node], kNodeTrust);
            }
            return decide<14>(coder, bit, chosen, weights[node]);
        });
        if constexpr (Coder::kDecodes) symbols[i] = static_cast<u8>(symbol);
        row.add(symbol, 4);
        column.mean.add(symbol, 3);
        left = static_cast<i32>(symbol);
        column.last = left << 8;
    }
}

// 6.4.6: a plane in the light of the planes above it.
template <class Coder>
void code_planes(Coder& coder, u8* symbols, u8* signs, std::size_t count, const Tree& tree, const std::array<Path, 256>& path,
                 const RangeModel& model, const RangeContext& context) {
    const std::size_t nodes = tree.nodes.size();
    std::vector<Slot> order0(nodes), slots(2 * 256 * nodes);
    std::vector<std::array<Weight, 3>> weights(nodes, {21845, 21845, 21845});
    const bool with_signs = model.kind == RangeModel::kSigned;
    std::vector<Slot> column(with_signs ? column_slots(model.columns) : 0);
    std::vector<u8> last(column.size());
    std::array<Slot, 256> exponents;
    std::array<Slot, 4> around;
    std::array<Weight, 3> sign_weights = {21845, 21845, 21845};
    Places places(context, count, model.columns);
    unsigned left = 0;
    for (std::size_t i = 0; i < count; ++i) {
        const std::size_t top = context.last[i], next = context.next[i];
        const unsigned symbol = walk<Coder>(tree, path[symbols[i]], [&](unsigned node, unsigned bit) {
            Slot &by_top = slots[top * nodes + node], &by_next = slots[(256 + next) * nodes + node];
            by_top.start_from(order0[node], kTrust);
            by_next.start_from(order0[node], kTrust);
            return decide<16>(coder, bit, std::array{&order0[node], &by_top, &by_next}, weights[node]);
        });
        if constexpr (Coder::kDecodes) symbols[i] = static_cast<u8>(symbol);
        if (!with_signs) continue;
        bool row_starts;
        const std::size_t x = places.next(row_starts);
        if (row_starts) left = 0;
        left = decide<16>(coder, Coder::kDecodes ? 0u : signs[i], std::array{&exponents[top], &around[left | last[x] << 1], &column[x]},
                          sign_weights);
        last[x] = signs[i] = static_cast<u8>(left);
    }
}

template <class Coder>
void code_symbols(Coder& coder, u8* symbols, u8* signs, std::size_t count, const Lengths* lengths, const RangeModel& model,
                  const RangeContext& context) {
    Lengths single{};
    single[0] = 1;  // no bits are modelled: there is one symbol only
    const Tree tree(lengths ? *lengths : single);
    const auto path = paths(lengths ? *lengths : single);
    if (model.kind == RangeModel::kNeighbours)
        code_neighbours(coder, symbols, count, tree, path, model, context);
    else
        code_planes(coder, symbols, signs, count, tree, path, model, context);
}

// The raw bits of a symbol are below the modelled ones, and above its sign.
struct Parts {
    unsigned modelled, raw, sign;
    Parts(const RangeModel& model, unsigned width)
        : modelled(width - model.raw), raw(model.raw), sign(model.kind == RangeModel::kSigned ? 1 : 0) {
        if (sign) --raw;
    }
};

}  // namespace

std::vector<u8> range_encode(const u8* symbols, std::size_t count, unsigned width, const RangeModel& model, const RangeContext& context) {
    std::vector<u8> out;
    out.push_back(static_cast<u8>(model.kind | model.resolution << 2 | model.raw << 4));
    write_varint(model.columns, out);
    if (model.kind == RangeModel::kBits) {
        RangeEncoder coder(out);
        std::vector<u8> bitmap(symbols, symbols + count);
        code_bits(coder, bitmap.data(), context, model.columns);
        coder.finish();
        return out;
    }
    const Parts parts(model, width);
    std::vector<u8> upper(count), raw(count), signs(parts.sign ? count : 0);
    for (std::size_t i = 0; i < count; ++i) {
        upper[i] = static_cast<u8>(symbols[i] >> model.raw);
        raw[i] = static_cast<u8>((symbols[i] >> parts.sign) & low_bits(parts.raw));
        if (parts.sign) signs[i] = symbols[i] & 1;
    }
    std::optional<Lengths> lengths;
    if (parts.modelled > 0) {
        lengths = tuned_lengths(count_symbols(upper.data(), count), count);
        write_table(*lengths, out);
    }
    RangeEncoder coder(out);
    code_symbols(coder, upper.data(), signs.data(), count, lengths ? &*lengths : nullptr, model, context);
    coder.finish();
    if (parts.raw > 0) pack(raw.data(), count, parts.raw, out);
    return out;
}

void range_decode(Bytes stream, std::size_t count, unsigned width, const RangeContext& context, u8* out) {
    if (stream.empty()) throw Corrupt("a range stream has no head");
    const u8 flags = stream[0];
    RangeModel model;
    model.kind = static_cast<RangeModel::Kind>(flags & 3);
    model.resolution = flags >> 2 & 3;
    model.raw = flags >> 4;
    std::size_t at = 1;
    model.columns = static_cast<u32>(read_varint(stream, at));
    if (model.columns == 0) throw Corrupt("a range stream has rows without columns");
    const bool bits = model.kind == RangeModel::kBits, neighbours = model.kind == RangeModel::kNeighbours;
    if (bits != (context.bits > 0) || (!bits && !neighbours && !context.last)) throw Corrupt("the model of a range stream is not for such a stream");
    if ((!neighbours && model.resolution > 0) || (bits && model.raw > 0)) throw Corrupt("must-be-zero bits of a range stream are not zero");
    if (model.raw > width || (model.kind == RangeModel::kSigned ? model.raw == 0 : model.raw == width))
        throw Corrupt("a range stream has an impossible number of raw bits");
    if (bits) {
        std::fill_n(out, count, u8{0});
        RangeDecoder coder(stream.subspan(at));
        code_bits(coder, out, context, model.columns);
        return coder.finish();
    }
    const Parts parts(model, width);
    std::optional<Lengths> lengths;
    if (parts.modelled > 0) lengths = read_table(stream, at, parts.modelled);
    const std::size_t packed = packed_bytes(count, parts.raw);
    if (packed > stream.size() - at) throw Corrupt("a range stream is cut off");
    std::vector<u8> raw(parts.raw ? count : 0), signs(parts.sign ? count : 0);
    if (parts.raw > 0) unpack(stream.subspan(stream.size() - packed), count, parts.raw, raw.data());
    RangeDecoder coder(stream.subspan(at, stream.size() - at - packed));
    std::fill_n(out, count, u8{0});
    code_symbols(coder, out, signs.data(), count, lengths ? &*lengths : nullptr, model, context);
    coder.finish();
    if (model.raw == 0) return;
    for (std::size_t i = 0; i < count; ++i)
        out[i] = static_cast<u8>(out[i] << model.raw | (parts.raw ? raw[i] << parts.sign : 0) | (parts.sign ? signs[i] : 0));
}

}  // namespace dcz
