#include "cascade.h"

#include <algorithm>
#include <optional>

#include "bits.h"

namespace dcz {

namespace {

constexpr u8 kStored = 0, kNewTable = 1, kSameTable = 2;

// Bytes of `count` codes: groups of 64, and a last one whose planes fill whole bytes.
std::size_t group_bytes(std::size_t count, unsigned width) { return (count / 64 * 8 + (count % 64 + 7) / 8) * width; }

std::size_t varint_bytes(u64 value) { return value < 0x80 ? 1 : value < 0x4000 ? 2 : 3; }

using Counts = std::array<u64, kMaxLevels>;

// How many symbols pass each level; nothing, if one of them has no code.
std::optional<Counts> passing(const Histogram& histogram, const Levels& levels) {
    Counts counts{};
    for (std::size_t s = 0; s < 256; ++s) {
        if (histogram[s] == 0) continue;
        if (levels[s] == 0) return std::nullopt;
        counts[levels[s] - 1u] += histogram[s];
    }
    for (std::size_t i = kMaxLevels - 1; i-- > 0;) counts[i] += counts[i + 1];
    return counts;
}

// Of a block under a cascade, without its table, in bytes; and what decoding it is worth.
struct Cost {
    u64 data = 0, counts = 0, worth = 0;
    u64 bytes() const { return data + counts; }
};

Cost cost_of(const Cascade& cascade, const Counts& counts, unsigned price) {
    Cost cost;
    u64 passed = 0;
    for (std::size_t i = 0; i < cascade.levels.size(); ++i) {
        cost.data += group_bytes(counts[i], cascade.levels[i].width);
        if (i > 0) cost.counts += varint_bytes(counts[i]);
        passed += counts[i];
    }
    cost.worth = passed * price / 8192;
    return cost;
}

void encode_block(const Cascade& cascade, const Counts& counts, const u8* symbols, std::size_t count, u8* ranks, std::vector<u8>& out) {
    std::array<u8, 256> rank{};
    std::size_t number = 0;
    for (const auto& level : cascade.levels)
        for (std::size_t i = 0; i < level.symbols; ++i, ++number) rank[cascade.order[number]] = static_cast<u8>(number);

    // The translation reads whole groups, so a last one that is not whole is copied to where there is room behind it.
    const Kernels& k = kernels();
    const std::size_t groups = count / 64 * 64;
    k.translate(symbols, groups, rank.data(), ranks);
    if (groups < count) {
        u8 rest[kSlack] = {};
        std::memcpy(rest, symbols + groups, count - groups);
        k.translate(rest, count - groups, rank.data(), ranks + groups);
    }
    for (std::size_t i = 0; i < cascade.levels.size(); ++i) {
        const auto& level = cascade.levels[i];
        const std::size_t at = out.size();
        out.resize(at + group_bytes(counts[i], level.width));
        k.put_level(ranks, counts[i], level.width, static_cast<u8>(level.first), out.data() + at);
    }
}

}  // namespace

Levels cascade_levels(const Histogram& histogram, unsigned price) {
    std::vector<std::pair<u64, u8>> order;
    for (std::size_t s = 0; s < 256; ++s)
        if (histogram[s]) order.emplace_back(histogram[s], static_cast<u8>(s));
    std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
    const std::size_t n = order.size();
    Levels levels{};
    if (n == 1) levels[order[0].second] = 1;
    if (n <= 1) return levels;
    std::vector<u64> behind(n + 1, 0);  // how often the i-th symbol and those behind it occur
    for (std::size_t i = n; i-- > 0;) behind[i] = behind[i + 1] + order[i].first;

    // The least cost of the symbols from the i-th on with at most so many levels, in 1/1024 bits, and the width of the first.
    struct Best {
        u64 cost = ~u64{0};
        unsigned width = 0;
    };
    constexpr u64 kOfLevel = 24 * 1024;  // its count, its padding, its part of the table
    std::vector<std::array<Best, kMaxLevels + 1>> best(n);
    for (std::size_t i = n; i-- > 0;) {
        for (std::size_t most = 1; most <= kMaxLevels; ++most) {
            for (unsigned width = 1; width <= 8; ++width) {
                const std::size_t codes = std::size_t{1} << width;
                u64 cost = behind[i] * (1024 * width + price) + kOfLevel;
                const bool last = codes >= n - i;
                if (!last) {
                    const Best& rest = best[i + codes - 1][most - 1];
                    if (rest.width == 0) continue;
                    cost += rest.cost;
                }
                if (cost < best[i][most].cost) best[i][most] = {cost, width};
                if (last) break;
            }
        }
    }
    std::size_t i = 0;
    for (std::size_t level = 1; i < n; ++level) {
        const std::size_t codes = std::size_t{1} << best[i][kMaxLevels + 1 - level].width;
        for (const std::size_t end = codes >= n - i ? n : i + codes - 1; i < end; ++i) levels[order[i].second] = static_cast<u8>(level);
    }
    return levels;
}

Cascade::Cascade(const Levels& of) {
    std::array<std::size_t, kMaxLevels + 1> next{};  // how many symbols a level has, and then where the next one comes
    for_each_code(of, [&](std::size_t s) { ++next[of[s]]; });
    std::size_t last = kMaxLevels;
    while (last > 0 && next[last] == 0) --last;
    if (last == 0) throw Corrupt("a cascade has no symbols");
    const bool single = last == 1 && next[1] == 1;
    if (!single) levels.reserve(last);
    std::size_t first = 0;
    for (std::size_t i = 1; i <= last; ++i) {
        const std::size_t symbols = next[i], codes = i < last ? symbols + 1 : symbols;
        next[i] = first;
        if (single) break;
        if (codes < 2) throw Corrupt("a level of a cascade has too few symbols");
        const auto width = static_cast<unsigned>(std::bit_width(codes - 1));
        if (i < last && codes != std::size_t{1} << width) throw Corrupt("a level of a cascade is not full");
        levels.push_back({width, symbols, first});
        first += symbols;
    }
    for_each_code(of, [&](std::size_t s) { order[next[of[s]]++] = static_cast<u8>(s); });
    only = order[0];
}

CascadeStream cascade_encode(const u8* symbols, std::size_t count, unsigned width, std::size_t limit, unsigned price) {
    // First how each block is going to be written, and with it the size; then, if that is small enough, the bytes.
    struct Plan {
        std::optional<u32> cascade;  // index; none: stored
        Counts counts{};
    };
    std::vector<Plan> plans((count + kBlock - 1) / kBlock);
    std::vector<Cascade> cascades;
    std::vector<u8> tables;
    Levels current{};
    u64 size = 0, worth = 0;  // of the data, and of its decoding
    for (std::size_t b = 0; b < plans.size(); ++b) {
        Plan& plan = plans[b];
        const u8* block = symbols + b * kBlock;
        const std::size_t n = std::min(kBlock, count - b * kBlock);
        const u64 stored = packed_bytes(n, width);
        // Every symbol passes a level.
        if (width < 8 || !looks_dense(block, n, price / 64)) {
            const Histogram histogram = count_symbols(block, n);
            const Levels levels = cascade_levels(histogram, price);
            Cascade own(levels);
            std::vector<u8> table;
            write_table(levels, table);
            plan.counts = *passing(histogram, levels);
            Cost cost = cost_of(own, plan.counts, price);
            bool same = false;
            if (const auto others = passing(histogram, current)) {
                const Cost with_same = cost_of(cascades.back(), *others, price);
                same = with_same.bytes() + with_same.worth <= cost.bytes() + table.size() + cost.worth;
                if (same) {
                    cost = with_same;
                    plan.counts = *others;
                }
            }
            if (cost.bytes() + (same ? 0 : table.size()) + cost.worth < stored) {
                tables.push_back(same ? kSameTable : kNewTable);
                if (!same) {
                    tables.insert(tables.end(), table.begin(), table.end());
                    current = levels;
                    cascades.push_back(std::move(own));
                }
                for (std::size_t i = 1; i < cascades.back().levels.size(); ++i) write_varint(plan.counts[i], tables);
                plan.cascade = static_cast<u32>(cascades.size() - 1);
                size += cost.data;
                worth += cost.worth;
            }
        }
        if (!plan.cascade) {
            tables.push_back(kStored);
            size += stored;
        }
        if (tables.size() + size + worth >= limit) return {};
    }
    std::vector<u8> out;
    out.reserve(5 + tables.size() + size);
    write_varint(tables.size(), out);
    out.insert(out.end(), tables.begin(), tables.end());
    const u64 cost = out.size() + size + worth;
    if (cost >= limit) return {};
    std::vector<u8> ranks(std::min(kBlock, count) + 2 * kSlack);
    for (std::size_t b = 0; b < plans.size(); ++b) {
        const Plan& plan = plans[b];
        const u8* block = symbols + b * kBlock;
        const std::size_t n = std::min(kBlock, count - b * kBlock);
        if (plan.cascade)
            encode_block(cascades[*plan.cascade], plan.counts, block, n, ranks.data(), out);
        else
            pack(block, n, width, out);
    }
    return {std::move(out), cost};
}

CascadeDecoder::CascadeDecoder(Bytes stream, std::size_t count, unsigned width) : remaining_(count), width_(width) {
    std::size_t at = 0;
    const std::size_t length = read_varint(stream, at);
    if (length > stream.size() - at) throw Corrupt("the tables of a cascade are cut off");
    const Bytes tables = stream.subspan(at, length), data = stream.subspan(at + length);
    data_ = data.data();
    end_ = data_ + data.size();

    const std::size_t blocks = (count + kBlock - 1) / kBlock;
    if (blocks > tables.size()) throw Corrupt("a cascade has too few blocks");
    blocks_.reserve(blocks);
    std::size_t size = 0, levels = 0;
    at = 0;
    for (std::size_t b = 0; b < blocks; ++b) {
        if (at >= tables.size()) throw Corrupt("a cascade has too few blocks");
        const u8 mode = tables[at++];
        if (mode > kSameTable) throw Corrupt("the descriptor of a block of a cascade is not valid");
        if (mode == kNewTable) cascades_.emplace_back(read_table(tables, at, width));
        if (mode == kSameTable && cascades_.empty()) throw Corrupt("a block of a cascade refers to a table before the first");
        blocks_.push_back({mode, static_cast<u32>(cascades_.size() - 1), counts_.size()});
        std::size_t passed = std::min(kBlock, count - b * kBlock);
        if (mode == kStored) {
            size += packed_bytes(passed, width);
            continue;
        }
        const auto& of = cascades_.back().levels;
        for (std::size_t i = 0; i < of.size(); ++i) {
            if (i > 0) {
                const std::size_t above = passed;
                passed = read_varint(tables, at);
                if (passed > above) throw Corrupt("more symbols pass a level of a cascade than the one before");
                counts_.push_back(static_cast<u32>(passed));
            }
            size += group_bytes(passed, of[i].width);
        }
        levels = std::max(levels, of.size());
    }
    if (at != tables.size()) throw Corrupt("the tables of a cascade are not used up");
    if (size != data.size()) throw Corrupt("a cascade has the wrong length");
    open_.reserve(levels);
    if (levels > 1) buffers_.resize((levels - 1) * kBuffer);
}

std::vector<u8> CascadeDecoder::code_lengths() const {
    std::vector<u8> out(blocks_.size() * 256, kNoCode);
    u8* lengths = out.data();
    for (const Block& block : blocks_) {
        if (block.mode == kStored) {
            std::fill_n(lengths, std::size_t{1} << width_, static_cast<u8>(width_));
        } else {
            const Cascade& cascade = cascades_[block.cascade];
            if (cascade.levels.empty()) lengths[cascade.only] = 0;
            unsigned bits = 0;
            for (const Cascade::Level& level : cascade.levels) {
                bits += level.width;
                for (std::size_t i = 0; i < level.symbols; ++i) lengths[cascade.order[level.first + i]] = static_cast<u8>(bits);
            }
        }
        lengths += 256;
    }
    return out;
}

void CascadeDecoder::next(u8* out, std::size_t count) {
    while (count > 0) {
        if (left_in_block_ == 0) open_block();
        const std::size_t n = std::min(count, left_in_block_);
        switch (mode_) {
            case Mode::stored: {
                // A piece of symbols is whole bytes, whatever their width; only the last one of a block has padding.
                const std::size_t bytes = packed_bytes(n, width_);
                unpack({data_, bytes}, n, width_, out);
                data_ += bytes;
                break;
            }
            case Mode::single: std::memset(out, single_, n); break;
            case Mode::levels:
                fetch(n);
                for (std::size_t i = 0; i < n; i += kStep) decode(0, std::min(kStep, n - i), out + i);
                break;
        }
        out += n;
        count -= n;
        left_in_block_ -= n;
        if (left_in_block_ == 0) close_block();
    }
}

bool CascadeDecoder::next_into(const Assembly& into, std::size_t count) {
    if (left_in_block_ == 0) open_block();
    if (mode_ != Mode::levels || count > left_in_block_ || count > kStep || count % kPiece != 0) return false;
    if (open_.size() < 2 || open_[0].width > kNarrow) return false;
    provide(1, count);
    fetch(count);
    const Open& top = open_[0];
    use(1, kernels().take_level_into(top.groups, count, top.width, top.symbol_of, buffer(1) + open_[1].begin, into));
    advance(0, count);
    left_in_block_ -= count;
    if (left_in_block_ == 0) close_block();
    return true;
}

void CascadeDecoder::open_block() {
    left_in_block_ = std::min(kBlock, remaining_);
    remaining_ -= left_in_block_;
    open_.clear();
    const Block& block = blocks_[block_++];
    if (block.mode == kStored) {
        mode_ = Mode::stored;
        return;
    }
    const Cascade& cascade = cascades_[block.cascade];
    single_ = cascade.only;
    mode_ = cascade.levels.empty() ? Mode::single : Mode::levels;
    const u8* const start = data_;
    for (std::size_t i = 0; i < cascade.levels.size(); ++i) {
        const auto& level = cascade.levels[i];
        const std::size_t n = i == 0 ? left_in_block_ : counts_[block.counts + i - 1];
        open_.push_back({level.width, level.symbols, cascade.order.data() + level.first, data_, n, 0, 0});
        data_ += group_bytes(n, level.width);
        if (n % 8 == 0) continue;
        const std::size_t plane = (n % 64 + 7) / 8;
        for (unsigned j = 0; j < level.width; ++j)
            if (*(data_ - j * plane - 1) >> n % 8) throw Corrupt("padding bits of a cascade are not zero");
    }
    ahead_ = data_;
    bytes_ = static_cast<std::size_t>(data_ - start);
}

void CascadeDecoder::close_block() const {
    for (const Open& open : open_)
        if (open.left > 0 || open.begin < open.end) throw Corrupt("a level of a cascade has more symbols than pass it");
}

// Has as much of the next block come nearer as `count` symbols are of this one: levels are too short for the processor to
// see where they lead.
void CascadeDecoder::fetch(std::size_t count) {
    const std::size_t share = bytes_ * count / kBlock + 1;
    const u8* to = ahead_ + std::min(share, static_cast<std::size_t>(end_ - ahead_));
    for (; ahead_ < to; ahead_ += std::min<std::size_t>(64, static_cast<std::size_t>(to - ahead_))) __builtin_prefetch(ahead_, 0, 2);
}

// The next `count` symbols that pass a level: a multiple of kPiece, or all that are left; at most kStep.
void CascadeDecoder::decode(std::size_t level, std::size_t count, u8* out) {
    const Kernels& k = kernels();
    const Open& open = open_[level];
    if (level + 1 < open_.size()) {
        provide(level + 1, count);
        use(level + 1, k.take_level(open.groups, count, open.width, open.symbol_of, buffer(level + 1) + open_[level + 1].begin, out));
    } else if (open.symbols == std::size_t{1} << open.width) {
        k.take_level(open.groups, count, open.width, open.symbol_of, nullptr, out);
    } else {
        static constexpr std::array<u8, 256> kSame = [] {
            std::array<u8, 256> same{};
            for (std::size_t i = 0; i < 256; ++i) same[i] = static_cast<u8>(i);
            return same;
        }();
        k.take_level(open.groups, count, open.width, kSame.data(), nullptr, out);
        u8 largest = 0;
        for (std::size_t i = 0; i < count; ++i) largest = std::max(largest, out[i]);
        if (largest >= open.symbols) throw Corrupt("a code of a cascade has no symbol");
        for (std::size_t i = 0; i < count; ++i) out[i] = open.symbol_of[out[i]];
    }
    advance(level, count);
}

// Decodes of a level until `count` symbols are at hand, or all that are left.
void CascadeDecoder::provide(std::size_t level, std::size_t count) {
    Open& open = open_[level];
    if (open.end - open.begin >= count || open.left == 0) return;
    u8* held = buffer(level);
    std::memmove(held, held + open.begin, open.end - open.begin);
    open.end -= open.begin;
    open.begin = 0;
    while (open.end < count && open.left > 0) {
        const std::size_t n = std::min(open.left, kStep);
        decode(level, n, held + open.end);
        open.end += n;
    }
}

void CascadeDecoder::advance(std::size_t level, std::size_t count) {
    Open& open = open_[level];
    open.groups += group_bytes(count, open.width);
    open.left -= count;
}

void CascadeDecoder::use(std::size_t level, std::size_t count) {
    Open& open = open_[level];
    if (count > open.end - open.begin) throw Corrupt("a level of a cascade has fewer symbols than pass it");
    open.begin += count;
}

void cascade_decode(Bytes stream, std::size_t count, unsigned width, u8* out) {
    CascadeDecoder(stream, count, width).next(out, count);
}

}  // namespace dcz
