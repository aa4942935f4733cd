// From weights to weighted points on the line: all distinct values, or bins that are narrow where it matters.
#include <algorithm>
#include <array>
#include <memory>
#include <utility>

#include "clustering_shared.h"

namespace dcz {

namespace {

std::size_t digit(std::uint32_t key, unsigned shift) { return (key >> shift) & 0x7ffu; }

struct Bins {
    // For each bucket the number of its first bin, and by how many bits the lower half of the key is shifted to count
    // on from there (packed: this table should stay in the cache).
    std::vector<std::uint32_t> table;
    struct Range {
        std::uint32_t first, last;
    };
    std::vector<Range> keys;  // of each bin
    static constexpr unsigned kShiftBit = 27;

    std::size_t bin_of(std::uint32_t key) const {
        const std::uint32_t entry = table[key >> 16];
        return (entry & ((1u << kShiftBit) - 1)) + ((key & 0xffffu) >> (entry >> kShiftBit));
    }
};

// False if a value is not finite.
bool plan_bins(std::span<const float> values, std::size_t bins, Bins& plan) {
    std::vector<std::uint32_t> keys(kBlock);
    std::vector<std::uint64_t> counts(kBuckets);
    for (std::size_t start = 0; start < values.size(); start += kBlock) {
        const std::size_t size = std::min(kBlock, values.size() - start);
        for (std::size_t i = 0; i < size; ++i) keys[i] = key_of(values[start + i]) >> 16;
        for (std::size_t i = 0; i < size; ++i) ++counts[keys[i]];
    }
    constexpr std::size_t kFirst = kKeyOfLowest >> 16, kLast = kKeyOfHighest >> 16;
    for (std::size_t bucket = 0; bucket < kBuckets; ++bucket)
        if (counts[bucket] > 0 && (bucket < kFirst || bucket > kLast)) return false;

    std::vector<double> share(kBuckets);
    double total = 0;
    for (std::size_t bucket = kFirst; bucket <= kLast; ++bucket) {
        // One value needs no width, however wide its bucket: outliers take no bins from the rest.
        if (counts[bucket] < 2) continue;
        const auto key = static_cast<std::uint32_t>(bucket << 16);
        const double width = value_of(key | 0xffffu) - value_of(key);
        share[bucket] = cube_root(static_cast<double>(counts[bucket] - 1) * width * width);
        total += share[bucket];
    }
    const double scale = total > 0 ? static_cast<double>(bins) / total : 0;

    // Empty buckets point at the first bin: an array that changes while it is read must not lead out of bounds.
    plan.table.assign(kBuckets, 16u << Bins::kShiftBit);
    double room = 0;  // what the last bin still takes
    for (std::size_t bucket = kFirst; bucket <= kLast; ++bucket) {
        if (counts[bucket] == 0) continue;
        const auto key = static_cast<std::uint32_t>(bucket << 16);
        const double wanted = share[bucket] * scale;
        if (wanted < 1) {
            // Several buckets share a bin; a lone value has one, for its neighbours may be far away.
            const double used = counts[bucket] < 2 ? 1 : wanted;
            if (plan.keys.empty() || used > room) {
                plan.keys.push_back({key, 0});
                room = 1;
            }
            room -= used;
            plan.keys.back().last = key | 0xffffu;
            plan.table[bucket] = static_cast<std::uint32_t>(plan.keys.size() - 1) | 16u << Bins::kShiftBit;
        } else {
            unsigned bits = 0;
            while (bits < 16 && wanted > 1.5 * (1u << bits)) ++bits;
            plan.table[bucket] = static_cast<std::uint32_t>(plan.keys.size()) | (16 - bits) << Bins::kShiftBit;
            const std::uint32_t width = 1u << (16 - bits);
            for (std::uint32_t first = key; first - key < 0x10000u; first += width)
                plan.keys.push_back({first, first + (width - 1)});
            room = 0;
        }
    }
    return true;
}

}  // namespace

bool distinct_points(std::span<const float> values, WeightedPoints& points) {
    points = {};
    if (!all_finite(values)) return false;
    const std::size_t n = values.size();
    // Not vectors: zeroing what is overwritten at once would cost a third of the time.
    auto keys = std::make_unique_for_overwrite<std::uint32_t[]>(n);
    for (std::size_t i = 0; i < n; ++i) keys[i] = key_of(values[i]);

    constexpr unsigned kDigit = 11;
    constexpr std::size_t kSmall = 4096;  // below this the counters cost more than they save
    if (n < kSmall) {
        std::sort(keys.get(), keys.get() + n);
    } else {
        auto other = std::make_unique_for_overwrite<std::uint32_t[]>(n);
        std::vector<std::size_t> starts(3u << kDigit);
        for (std::size_t i = 0; i < n; ++i)
            for (unsigned pass = 0; pass < 3; ++pass) ++starts[(pass << kDigit) + digit(keys[i], pass * kDigit)];
        for (unsigned pass = 0; pass < 3; ++pass) {
            std::size_t sum = 0;
            for (std::size_t d = 0; d < (std::size_t{1} << kDigit); ++d)
                sum += std::exchange(starts[(pass << kDigit) + d], sum);
            for (std::size_t i = 0; i < n; ++i)
                other[starts[(pass << kDigit) + digit(keys[i], pass * kDigit)]++] = keys[i];
            std::swap(keys, other);
        }
    }
    std::size_t distinct = n > 0;
    for (std::size_t i = 1; i < n; ++i) distinct += keys[i] != keys[i - 1];
    points.position.reserve(distinct);
    points.weight.reserve(distinct);
    for (std::size_t i = 0; i < n;) {
        std::size_t j = i + 1;
        while (j < n && keys[j] == keys[i]) ++j;
        points.position.push_back(value_of(keys[i]));
        points.weight.push_back(static_cast<double>(j - i));
        i = j;
    }
    return true;
}

// Two levels. The upper half of the key picks a bucket, and a first pass counts what is in each. Optimal cells are as
// wide as (density)^(-1/3) (Panter and Dite 1951), and bins of that shape lose least, so a bucket with c values in a
// width of h gets bins in proportion to (c h^2)^(1/3): several, or a share of one. Uniform bins between minimum and
// maximum would be as good for smooth densities, but a single outlier can leave them a handful of bins for all else.
bool binned_points(std::span<const float> values, std::size_t bins, WeightedPoints& points) {
    points = {};
    Bins plan;
    if (bins < 1 || bins > kMaxBins || !plan_bins(values, bins, plan)) return false;

    struct Bin {
        double sum = 0;
        std::uint64_t count = 0;
    };
    std::vector<Bin> filled(plan.keys.size());
    std::vector<std::uint32_t> keys(kBlock);
    for (std::size_t start = 0; start < values.size(); start += kBlock) {
        const std::span<const float> block = values.subspan(start, std::min(kBlock, values.size() - start));
        for (std::size_t i = 0; i < block.size(); ++i) keys[i] = key_of(block[i]);
        for (std::size_t i = 0; i < block.size(); ++i) {
            Bin& bin = filled[plan.bin_of(keys[i])];
            bin.sum += block[i];
            ++bin.count;
        }
    }
    for (std::size_t i = 0; i < filled.size(); ++i) {
        if (filled[i].count == 0) continue;
        const double low = value_of(plan.keys[i].first), high = value_of(plan.keys[i].last);
        const auto count = static_cast<double>(filled[i].count);
        const double mean = std::clamp(filled[i].sum / count, low, high);
        points.position.push_back(mean);
        points.weight.push_back(count);
        // Values in [low, high] with this mean scatter at most so much (Bhatia and Davis 2000).
        if (filled[i].count > 1) points.scatter += count * (high - mean) * (mean - low);
    }
    return true;
}

void count_words(std::span<const std::uint16_t> words, std::span<std::uint64_t, 65536> counts) {
    std::fill(counts.begin(), counts.end(), 0);
    for (const std::uint16_t word : words) ++counts[word];
}

}  // namespace dcz
