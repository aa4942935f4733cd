#include "huffman.h"

#include <algorithm>
#include <optional>

#include "bits.h"
#include "kernels.h"

namespace dcz {

void write_varint(std::size_t value, std::vector<u8>& out) {
    for (; value >= 0x80; value >>= 7) out.push_back(static_cast<u8>(value | 0x80));
    out.push_back(static_cast<u8>(value));
}

std::size_t read_varint(Bytes bytes, std::size_t& at) {
    u64 value = 0;
    for (unsigned shift = 0; shift < 35; shift += 7) {
        if (at >= bytes.size()) throw Corrupt("a varint is cut off");
        const u8 byte = bytes[at++];
        value |= static_cast<u64>(byte & 0x7F) << shift;
        if (!(byte & 0x80)) {
            if ((byte == 0 && shift > 0) || value >> 32) break;
            return static_cast<std::size_t>(value);
        }
    }
    throw Corrupt("a varint is too long");
}

namespace {

// The bytes that write_table writes.
std::size_t table_size(const Lengths& lengths) {
    std::size_t first = 0, last = 255;
    while (lengths[first] == 0) ++first;
    while (lengths[last] == 0) --last;
    if (first == last) return 2;
    std::size_t bits = 4;
    unsigned before = lengths[first];
    for (std::size_t symbol = first + 1; symbol <= last; ++symbol) {
        const unsigned length = lengths[symbol];
        if (length == 0) {
            bits += 3;
            continue;
        }
        bits += length == before ? 1 : length == before + 1 || length + 1 == before ? 3 : 7;
        before = length;
    }
    return 2 + (bits + 7) / 8;
}

}  // namespace

void write_table(const Lengths& lengths, std::vector<u8>& out) {
    std::size_t first = 0, last = 255;
    while (lengths[first] == 0) ++first;
    while (lengths[last] == 0) --last;
    out.push_back(static_cast<u8>(first));
    out.push_back(static_cast<u8>(last));
    if (first == last) return;
    BitWriter bits(out);
    unsigned before = lengths[first];
    bits.write(before, 4);
    for (std::size_t symbol = first + 1; symbol <= last; ++symbol) {
        const unsigned length = lengths[symbol];
        if (length == 0) {
            bits.write(0b011, 3);
            continue;
        }
        if (length == before)
            bits.write(0, 1);
        else if (length == before + 1)
            bits.write(0b001, 3);
        else if (length + 1 == before)
            bits.write(0b101, 3);
        else
            bits.write(0b111 | length << 3, 7);
        before = length;
    }
    bits.finish();
}

Lengths read_table(Bytes tables, std::size_t& at, unsigned width) {
    if (tables.size() - at < 2) throw Corrupt("a code table is cut off");
    const std::size_t first = tables[at], last = tables[at + 1];
    at += 2;
    if (first > last || last >> width) throw Corrupt("the symbols of a code table are out of range");
    Lengths lengths{};
    if (first == last) {
        lengths[first] = 1;
        return lengths;
    }
    BitReader bits(tables.subspan(at));
    unsigned before = bits.read(4);
    if (before == 0) throw Corrupt("the first symbol of a code table has no code");
    lengths[first] = static_cast<u8>(before);
    for (std::size_t symbol = first + 1; symbol <= last; ++symbol) {
        if (bits.read(1) != 0) {
            if (bits.read(1) == 0) {
                before = bits.read(1) == 0 ? before + 1 : before - 1;
            } else if (bits.read(1) == 0) {
                if (symbol == last) throw Corrupt("the last symbol of a code table has no code");
                continue;
            } else {
                before = bits.read(4);
            }
            if (before == 0 || before > kMaxLength) throw Corrupt("a number of a code table is out of range");
        }
        lengths[symbol] = static_cast<u8>(before);
    }
    bits.expect_zero_padding();
    at += bits.bytes_used();
    return lengths;
}

namespace {

constexpr u8 kStored = 0, kNewTable = 1, kSameTable = 2;
constexpr u8 kModeMask = 3, kPackedBit = 4;

struct Leaf {
    u64 count;
    u8 symbol;
    auto operator<=>(const Leaf&) const = default;
};

// Merging two Huffman trees in order of weight never needs a search: both queues are sorted already.
// Returns false if a code is longer than allowed.
bool unlimited_lengths(std::span<const Leaf> leaves, unsigned longest, Lengths& lengths) {
    const std::size_t n = leaves.size();
    std::array<u64, 512> weight;
    std::array<u16, 512> parent;
    for (std::size_t i = 0; i < n; ++i) weight[i] = leaves[i].count;
    std::size_t leaf = 0, inner = n;
    for (std::size_t next = n; next < 2 * n - 1; ++next) {
        weight[next] = 0;
        for (int side = 0; side < 2; ++side) {
            const bool take_leaf = leaf < n && (inner == next || weight[leaf] <= weight[inner]);
            const std::size_t taken = take_leaf ? leaf++ : inner++;
            weight[next] += weight[taken];
            parent[taken] = static_cast<u16>(next);
        }
    }
    std::array<u8, 512> depth;
    depth[2 * n - 2] = 0;
    for (std::size_t i = 2 * n - 2; i-- > 0;) {
        depth[i] = static_cast<u8>(depth[parent[i]] + 1);
        if (i < n) {
            if (depth[i] > longest) return false;
            lengths[leaves[i].symbol] = depth[i];
        }
    }
    return true;
}

// Package-merge (Larmore and Hirschberg 1990): the optimum under a limit on the length.
void limited_lengths(std::span<const Leaf> leaves, unsigned longest, Lengths& lengths) {
    struct Item {
        u64 weight;
        int leaf;  // index, or -1 for a package
    };
    const std::size_t n = leaves.size();
    std::vector<std::vector<Item>> levels(longest);
    for (unsigned level = 0; level < longest; ++level) {
        std::vector<Item> packages;
        if (level > 0) {
            const auto& before = levels[level - 1];
            for (std::size_t i = 0; i + 1 < before.size(); i += 2)
                packages.push_back({before[i].weight + before[i + 1].weight, -1});
        }
        auto& merged = levels[level];
        std::size_t leaf = 0, package = 0;
        while (leaf < n || package < packages.size()) {
            if (package == packages.size() || (leaf < n && leaves[leaf].count <= packages[package].weight)) {
                merged.push_back({leaves[leaf].count, static_cast<int>(leaf)});
                ++leaf;
            } else {
                merged.push_back(packages[package++]);
            }
        }
    }
    std::size_t take = 2 * n - 2;
    for (unsigned level = longest; level-- > 0;) {
        std::size_t packages = 0;
        for (std::size_t i = 0; i < take; ++i) {
            const Item& item = levels[level][i];
            if (item.leaf >= 0)
                ++lengths[leaves[static_cast<std::size_t>(item.leaf)].symbol];
            else
                ++packages;
        }
        take = 2 * packages;
    }
}

// Bits of the block's data under a code; ~0 if a symbol has none. Rounded up as the layout of the block demands.
u64 data_bytes(const Histogram& histogram, const Lengths& lengths, bool packed) {
    u64 bits = 0;
    unsigned symbols = 0;
    for (std::size_t s = 0; s < 256; ++s) {
        symbols += lengths[s] != 0;
        if (histogram[s] == 0) continue;
        if (lengths[s] == 0) return ~u64{0};
        bits += histogram[s] * lengths[s];
    }
    if (symbols == 1) return 0;
    return packed ? (bits + 7) / 8 : (bits + 4 * (symbols - 1)) / 8;
}

struct Table {
    Lengths lengths;
    std::size_t size;
    u64 cost;  // of table and data
};

// The code with the least cost. In a small block the table itself counts: a lower limit on the lengths makes the rare
// symbols more alike, and a table says "the same" in one bit.
Table best_table(const Histogram& histogram, std::size_t count, bool packed) {
    const auto make = [&](unsigned longest) {
        Table table{code_lengths(histogram, longest), 0, 0};
        table.size = table_size(table.lengths);
        table.cost = data_bytes(histogram, table.lengths, packed) + table.size;
        return table;
    };
    Table best = make(kMaxLength);
    if (count >= kTunedBelow) return best;
    unsigned longest = *std::max_element(best.lengths.begin(), best.lengths.end());
    const auto symbols = static_cast<u64>(std::count_if(histogram.begin(), histogram.end(), [](u64 n) { return n > 0; }));
    while (--longest > 0 && (u64{1} << longest) >= symbols) {
        Table other = make(longest);
        if (other.cost < best.cost) best = other;
    }
    return best;
}

void encode_block(const Tree& tree, const Histogram& histogram, const u8* symbols, std::size_t count, bool packed,
                  std::vector<u8>& scratch, std::vector<u8>& out) {
    const std::size_t nodes = tree.nodes.size();
    if (nodes == 0) return;

    // How many symbols pass through each node: children come behind their parents.
    std::vector<std::size_t> passing(nodes, 0), place(nodes, 0);
    for (std::size_t v = nodes; v-- > 0;)
        for (const u16 child : tree.nodes[v].child)
            passing[v] += child & Tree::kLeaf ? static_cast<std::size_t>(histogram[child & 0xFF]) : passing[child];

    std::size_t total = 0;
    for (std::size_t v = 0; v < nodes; ++v) {
        place[v] = total;
        total += passing[v] + kSlack;
    }
    const std::size_t bits_place = total;
    total += count / 8 + 8 + kSlack;
    if (scratch.size() < total) scratch.resize(total);

    // The translation reads whole groups, so a last one that is not whole is copied to where there is room behind it.
    const std::size_t groups = count / 64 * 64;
    u8* ranks = scratch.data() + place[0];
    kernels().translate(symbols, groups, tree.rank.data(), ranks);
    if (groups < count) {
        u8 rest[kSlack] = {};
        std::memcpy(rest, symbols + groups, count - groups);
        kernels().translate(rest, count - groups, tree.rank.data(), ranks + groups);
    }

    BitWriter stream(out);
    for (std::size_t v = 0; v < nodes; ++v) {
        const auto& node = tree.nodes[v];
        const auto target = [&](u16 child) { return child & Tree::kLeaf ? nullptr : scratch.data() + place[child]; };
        u8* bits = scratch.data() + bits_place;
        kernels().partition(scratch.data() + place[v], passing[v], node.first_right, bits, target(node.child[0]),
                            target(node.child[1]));
        const std::size_t whole = passing[v] / 8;
        if (packed) {
            for (std::size_t i = 0; i < whole; ++i) stream.write(bits[i], 8);
            if (passing[v] % 8) stream.write(bits[whole], passing[v] % 8);
        } else {
            out.insert(out.end(), bits, bits + (passing[v] + 7) / 8);
        }
    }
    stream.finish();
}

// c * log2(c) for small c, in units of 2^-16, by squaring: from integers only.
constexpr std::size_t kSample = 4096;
const std::array<u32, kSample + 1>& weighted_logs() {
    static const std::array<u32, kSample + 1> table = [] {
        std::array<u32, kSample + 1> out{};
        for (u64 c = 2; c <= kSample; ++c) {
            const unsigned whole = static_cast<unsigned>(std::bit_width(c)) - 1;
            u64 log = whole, x = c << (31 - whole);  // x in [1, 2), with 31 bits behind the point
            for (int bit = 0; bit < 16; ++bit) {
                x = x * x >> 31;
                log = log << 1 | x >> 32;
                if (x >> 32) x >>= 1;
            }
            out[c] = static_cast<u32>(c * log);
        }
        return out;
    }();
    return table;
}

// Bytes that no code of these symbols can be below, together with its table: what their entropy and a table of one bit for
// each symbol take. 0 if that is not known.
u64 least_bytes(const Histogram& histogram, std::size_t count) {
    if (count > kSample) return 0;
    const auto& logs = weighted_logs();
    std::size_t first = 255, last = 0;
    u64 bits = logs[count];  // in units of 2^-16
    for (std::size_t s = 0; s < 256; ++s) {
        if (histogram[s] == 0) continue;
        first = std::min(first, s);
        last = s;
        bits -= logs[histogram[s]];
    }
    if (first >= last || bits <= count) return 0;
    bits -= count;  // each logarithm is rounded down by at most one unit
    return (bits >> 16) / 8 + 2 + (4 + (last - first) + 7) / 8;
}

}  // namespace

// The entropy of the sample, with what one of this size lacks of that of the block (Miller 1955: half a nat for each symbol
// but one), leaves no gain beyond the error of that estimate.
bool looks_dense(const u8* symbols, std::size_t count, unsigned price) {
    constexpr std::size_t kRuns = 16, kRun = kSample / kRuns;
    if (count < 4 * kSample) return false;
    std::array<u8, kSample> sample;
    for (std::size_t i = 0; i < kRuns; ++i) std::memcpy(&sample[i * kRun], symbols + i * (count / kRuns), kRun);
    const auto& logs = weighted_logs();
    u64 bits = u64{logs[kSample]}, used = 0;  // in units of 2^-16
    for (const u64 n : count_symbols(sample.data(), kSample)) {
        bits -= logs[n];
        used += n > 0;
    }
    bits += used * 47274;  // 1 / (2 ln 2)
    constexpr u64 error = (kSample << 16) / 50;
    return bits > error && (bits - error) * (128 + price) > (u64{kSample} << 16) * 1024;
}

Lengths tuned_lengths(const Histogram& histogram, std::size_t count) { return best_table(histogram, count, true).lengths; }

Histogram count_symbols(const u8* symbols, std::size_t count) {
    Histogram histogram{};
    for (std::size_t i = 0; i < count; i += std::size_t{1} << 30)
        kernels().count(symbols + i, std::min(count - i, std::size_t{1} << 30), histogram.data());
    return histogram;
}

Lengths code_lengths(const Histogram& histogram, unsigned longest) {
    std::array<Leaf, 256> room;
    std::size_t used = 0;
    for (std::size_t s = 0; s < 256; ++s)
        if (histogram[s]) room[used++] = {histogram[s], static_cast<u8>(s)};
    const std::span<Leaf> leaves(room.data(), used);
    Lengths lengths{};
    if (used == 1) lengths[leaves[0].symbol] = 1;
    if (used <= 1) return lengths;
    std::ranges::sort(leaves);
    if (!unlimited_lengths(leaves, longest, lengths)) {
        lengths.fill(0);
        limited_lengths(leaves, longest, lengths);
    }
    return lengths;
}

Tree::Tree(const Lengths& lengths) {
    std::array<u32, kMaxLength + 2> leaves{}, next{};
    for_each_code(lengths, [&](std::size_t s) { ++leaves[lengths[s]]; });
    for (unsigned length = 1; length <= kMaxLength; ++length) next[length + 1] = next[length] + leaves[length];
    std::vector<u8> order(next[kMaxLength + 1]);
    for_each_code(lengths, [&](std::size_t s) {
        const u32 place = next[lengths[s]]++;
        rank[s] = static_cast<u8>(place);
        order[place] = static_cast<u8>(s);
    });
    if (order.empty()) throw Corrupt("a Huffman table has no symbols");
    if (order.size() == 1) {
        only = order[0];
        return;
    }
    u32 kraft = 0;
    for (unsigned length = 1; length <= kMaxLength; ++length) kraft += leaves[length] << (kMaxLength - length);
    if (kraft != u32{1} << kMaxLength)
        throw Corrupt(kraft < u32{1} << kMaxLength ? "a Huffman table is not complete" : "a Huffman table is over-full");

    // A canonical code puts the leaves of a level before its inner nodes. A complete one of n symbols has n - 1 of them.
    nodes.reserve(order.size() - 1);
    std::size_t next_leaf = 0, level_start = 0, level_size = 1, next_node = 1;
    for (unsigned length = 1; level_size > 0; ++length) {
        u32 leaves_left = leaves[length];
        for (std::size_t i = 0; i < level_size; ++i) {
            Node node{};
            for (u16& child : node.child) {
                if (leaves_left > 0) {
                    child = static_cast<u16>(kLeaf | order[next_leaf++]);
                    --leaves_left;
                } else {
                    child = static_cast<u16>(next_node++);
                }
            }
            nodes.push_back(node);
        }
        level_start += level_size;
        level_size = next_node - level_start;
    }
    // The rank where the right subtree starts is that of its leftmost leaf. Children come behind their parents.
    std::vector<u8> first(nodes.size());
    for (std::size_t v = nodes.size(); v-- > 0;) {
        const auto first_of = [&](u16 child) { return child & kLeaf ? rank[child & 0xFF] : first[child]; };
        first[v] = first_of(nodes[v].child[0]);
        nodes[v].first_right = first_of(nodes[v].child[1]);
    }
}

bool huffman_encode(const u8* symbols, std::size_t count, unsigned width, std::size_t limit, unsigned price, std::vector<u8>& out) {
    // First how each block is going to be written, and with it the size, but for some padding of nodes; then, if that is
    // small enough, the bytes.
    struct Plan {
        Histogram histogram{};
        std::optional<u32> tree;  // index; none: stored
        bool packed = false;
    };
    std::vector<Plan> plans((count + kBlock - 1) / kBlock);
    std::vector<Tree> trees;
    std::vector<u8> tables;
    Lengths current{};
    u64 size = 0;
    for (std::size_t b = 0; b < plans.size(); ++b) {
        Plan& plan = plans[b];
        const u8* block = symbols + b * kBlock;
        const std::size_t n = std::min(kBlock, count - b * kBlock);
        const bool packed = n < kPackedBelow;
        const u64 stored = packed_bytes(n, width);
        if (width < 8 || !looks_dense(block, n, price)) {
            plan.histogram = count_symbols(block, n);
            const u64 with_same = trees.empty() ? ~u64{0} : data_bytes(plan.histogram, current, packed);
            const bool hopeless = least_bytes(plan.histogram, n) >= stored;
            const Table own = hopeless ? Table{{}, 0, ~u64{0}} : best_table(plan.histogram, n, packed);
            const u64 cost = std::min(own.cost, with_same);
            // The bits of a small block are decoded in no time.
            if (cost < stored && cost + (packed ? 0 : cost * 8 * price / 1024) < stored) {
                const bool same = with_same <= own.cost;
                tables.push_back(static_cast<u8>((same ? kSameTable : kNewTable) | (packed ? kPackedBit : 0)));
                if (!same) {
                    write_table(own.lengths, tables);
                    current = own.lengths;
                    trees.emplace_back(current);
                }
                plan.tree = static_cast<u32>(trees.size() - 1);
                plan.packed = packed;
                size += same ? with_same : own.cost - own.size;
            }
        }
        if (!plan.tree) {
            tables.push_back(kStored);
            size += stored;
        }
        if (tables.size() + size >= limit) return false;
    }
    thread_local std::vector<u8> scratch;
    out.clear();
    out.reserve(5 + tables.size() + size);
    write_varint(tables.size(), out);
    out.insert(out.end(), tables.begin(), tables.end());
    for (std::size_t b = 0; b < plans.size(); ++b) {
        const Plan& plan = plans[b];
        const u8* block = symbols + b * kBlock;
        const std::size_t n = std::min(kBlock, count - b * kBlock);
        if (plan.tree)
            encode_block(trees[*plan.tree], plan.histogram, block, n, plan.packed, scratch, out);
        else
            pack(block, n, width, out);
    }
    return out.size() < limit;
}

std::vector<u8> huffman_encode(const u8* symbols, std::size_t count, unsigned width, std::size_t limit, unsigned price) {
    std::vector<u8> out;
    if (!huffman_encode(symbols, count, width, limit, price, out)) out.clear();
    return out;
}

std::size_t huffman_estimate(const u8* symbols, std::size_t count) {
    if (count == 0) return 0;
    const Histogram histogram = count_symbols(symbols, count);
    if (least_bytes(histogram, count) >= count) return count;
    const Lengths lengths = code_lengths(histogram);
    return std::min<std::size_t>(count, 2 + table_size(lengths) + static_cast<std::size_t>(data_bytes(histogram, lengths, true)));
}

HuffmanDecoder::HuffmanDecoder(Bytes stream, std::size_t count, unsigned width) : remaining_(count), width_(width) {
    std::size_t at = 0;
    const std::size_t length = read_varint(stream, at);
    if (length > stream.size() - at) throw Corrupt("the tables of a Huffman stream are cut off");
    const Bytes tables = stream.subspan(at, length);
    data_ = stream.subspan(at + length);

    const std::size_t blocks = (count + kBlock - 1) / kBlock;
    if (blocks > tables.size()) throw Corrupt("a Huffman stream has too few blocks");
    blocks_.reserve(blocks);
    at = 0;
    for (std::size_t b = 0; b < blocks; ++b) {
        if (at >= tables.size()) throw Corrupt("a Huffman stream has too few blocks");
        const u8 descriptor = tables[at++], mode = descriptor & kModeMask;
        if (descriptor & ~(kModeMask | kPackedBit) || mode > kSameTable || descriptor == (kStored | kPackedBit))
            throw Corrupt("the descriptor of a Huffman block is not valid");
        if (mode == kNewTable) trees_.emplace_back(read_table(tables, at, width));
        if (mode == kSameTable && trees_.empty()) throw Corrupt("a Huffman block refers to a table before the first");
        blocks_.push_back({descriptor, static_cast<u32>(trees_.size() - 1)});
    }
    if (at != tables.size()) throw Corrupt("the tables of a Huffman stream are not used up");
}

std::vector<u8> HuffmanDecoder::code_lengths() const {
    std::vector<u8> out(blocks_.size() * 256, kNoCode);
    u8* lengths = out.data();
    for (const Block& block : blocks_) {
        if ((block.descriptor & kModeMask) == kStored) {
            std::fill_n(lengths, std::size_t{1} << width_, static_cast<u8>(width_));
        } else if (const Tree& tree = trees_[block.tree]; tree.nodes.empty()) {
            lengths[tree.only] = 0;
        } else {
            std::array<u8, 256> depth{};  // of each inner node: children stand behind their parents
            for (std::size_t v = 0; v < tree.nodes.size(); ++v)
                for (const u16 child : tree.nodes[v].child)
                    (child & Tree::kLeaf ? lengths[child & 0xFF] : depth[child]) = static_cast<u8>(depth[v] + 1);
        }
        lengths += 256;
    }
    return out;
}

void HuffmanDecoder::next(u8* out, std::size_t count) {
    while (count > 0) {
        if (left_in_block_ == 0) open_block();
        const std::size_t n = std::min(count, left_in_block_);
        switch (mode_) {
            case Mode::stored: {
                // A piece of symbols is whole bytes, whatever their width; only the last one of a block has padding.
                const std::size_t bytes = packed_bytes(n, width_);
                unpack({bits_, bytes}, n, width_, out);
                bits_ += bytes;
                break;
            }
            case Mode::single: std::memset(out, single_, n); break;
            case Mode::tree:
                kernels().merge(bits_, n, children_[0], children_[1], out);
                bits_ += n / 8;
                break;
        }
        out += n;
        count -= n;
        left_in_block_ -= n;
    }
    if (left_in_block_ + remaining_ == 0 && at_ != data_.size()) throw Corrupt("a Huffman stream is longer than its symbols");
}

void HuffmanDecoder::open_block() {
    left_in_block_ = std::min(kBlock, remaining_);
    remaining_ -= left_in_block_;
    const Block block = blocks_[block_++];
    if ((block.descriptor & kModeMask) == kStored) {
        const std::size_t bytes = packed_bytes(left_in_block_, width_);
        if (bytes > data_.size() - at_) throw Corrupt("a Huffman stream is cut off");
        mode_ = Mode::stored;
        bits_ = data_.data() + at_;
        at_ += bytes;
    } else if (const Tree& tree = trees_[block.tree]; tree.nodes.empty()) {
        mode_ = Mode::single;
        single_ = tree.only;
    } else {
        mode_ = Mode::tree;
        open_tree(tree, block.descriptor & kPackedBit);
    }
}

void HuffmanDecoder::open_tree(const Tree& tree, bool packed) {
    const std::size_t nodes = tree.nodes.size();
    const Kernels& k = kernels();
    const auto is_pair = [&](std::size_t node) { return k.takes_pairs && tree.is_pair(node); };
    counts_.assign(nodes, 0);
    offsets_.resize(nodes);
    places_.resize(nodes);

    // Down the tree: how many symbols pass through each node, and where its bits and its symbols stand. Every symbol
    // passes through at most kMaxLength nodes, so a hostile stream cannot make the arena larger than that.
    const u8* bits = data_.data() + at_;
    const std::size_t available = data_.size() - at_;
    std::size_t bit = 0, realigned = 0, room = 0;
    counts_[0] = left_in_block_;
    if (packed) realigned_.resize(left_in_block_ * kMaxLength / 8 + 16 * nodes + 16);
    for (std::size_t v = 0; v < nodes; ++v) {
        const std::size_t n = counts_[v], bytes = (n + 7) / 8;
        const u8* here;
        if (packed) {
            if ((bit + n + 7) / 8 > available) throw Corrupt("a Huffman stream is cut off");
            u8* copy = realigned_.data() + realigned;
            const unsigned shift = bit % 8;
            const std::size_t from = bit / 8, end = (bit + n + 7) / 8;
            for (std::size_t i = 0; i < bytes; ++i) {
                unsigned pair = bits[from + i];
                if (from + i + 1 < end) pair |= static_cast<unsigned>(bits[from + i + 1]) << 8;
                copy[i] = static_cast<u8>(pair >> shift);
            }
            if (n % 8) copy[bytes - 1] &= static_cast<u8>(low_bits(n % 8));
            offsets_[v] = realigned;
            realigned += bytes;
            bit += n;
            here = copy;
        } else {
            if (bit / 8 + bytes > available) throw Corrupt("a Huffman stream is cut off");
            here = bits + bit / 8;
            if (n % 8 && here[bytes - 1] >> (n % 8)) throw Corrupt("padding bits of a Huffman block are not zero");
            offsets_[v] = bit / 8;
            bit += bytes * 8;
        }
        if (v > 0) room += (is_pair(v) ? bytes : n) + kSlack;
        const auto [left, right] = tree.nodes[v].child;
        if (right & Tree::kLeaf) continue;  // then left is one, too
        const std::size_t ones = k.popcount(here, n);
        counts_[right] = ones;
        if (!(left & Tree::kLeaf)) counts_[left] = n - ones;
    }
    if (packed && bit % 8 && bits[bit / 8] >> (bit % 8)) throw Corrupt("padding bits of a Huffman block are not zero");
    at_ += (bit + 7) / 8;
    if (arena_.size() < room) arena_.resize(room);

    // Up the tree: each node merges what its children hold; of a pair, its parent takes the bits.
    const u8* base = packed ? realigned_.data() : bits;
    const auto child = [&](u16 c) -> Child {
        if (c & Tree::kLeaf) return {Child::Kind::leaf, static_cast<u8>(c)};
        if (!is_pair(c)) return {Child::Kind::subtree, 0, 0, places_[c]};
        const auto [zero, one] = tree.nodes[c].child;
        return {Child::Kind::pair, static_cast<u8>(zero), static_cast<u8>(one), places_[c]};
    };
    u8* place = arena_.data();
    for (std::size_t v = nodes; v-- > 0;) {
        const std::size_t n = counts_[v];
        Child left = child(tree.nodes[v].child[0]), right = child(tree.nodes[v].child[1]);
        if (v == 0) {
            bits_ = base + offsets_[v];
            children_[0] = left;
            children_[1] = right;
            break;
        }
        places_[v] = place;
        if (is_pair(v)) {
            std::memcpy(place, base + offsets_[v], (n + 7) / 8);
            place += (n + 7) / 8 + kSlack;
        } else {
            k.merge(base + offsets_[v], n, left, right, place);
            place += n + kSlack;
        }
    }
}

void huffman_decode(Bytes stream, std::size_t count, unsigned width, u8* out) {
    HuffmanDecoder(stream, count, width).next(out, count);
}

std::size_t table_bytes(Bytes stream) {
    std::size_t at = 0;
    const std::size_t length = read_varint(stream, at);
    if (length > stream.size() - at) throw Corrupt("the tables of a stream are cut off");
    return at + length;
}

}  // namespace dcz
