// Which centroid is the nearest: comparisons for a few, a table of first guesses for many.
#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <memory>

#include "clustering_shared.h"

namespace dcz {

namespace {

// The largest float that is not nearer to the upper of two centroids: the exact point halfway, rounded down.
// A float is above the one if and only if it is above the other, so comparing floats decides as real numbers would.
float threshold(double lower, double upper) {
    // Near the end of the range of double the sum is taken of the halves, which are exact there.
    const double scale = std::max(std::fabs(lower), std::fabs(upper)) > 0x1p1000 ? 0.5 : 1.0;
    const TwoSum sum(scale * lower, scale * upper);
    const auto halfway = static_cast<float>(0.5 / scale * sum.sum);
    const double back = 2.0 * scale * halfway;
    const bool above = back > sum.sum || (back == sum.sum && sum.error < 0);
    return above ? std::nextafter(halfway, -std::numeric_limits<float>::infinity()) : halfway;
}

// Four floats: what every x86-64 and every ARM of 64 bits has.
typedef float Float4 __attribute__((vector_size(16)));
typedef std::int32_t Int4 __attribute__((vector_size(16)));

class Assigner {
  public:
    Assigner(std::span<const double> centroids, std::size_t count) : k_(centroids.size()) {
        thresholds_.fill(std::numeric_limits<float>::infinity());
        for (std::size_t i = 0; i + 1 < k_; ++i) thresholds_[i] = threshold(centroids[i], centroids[i + 1]);
        if (k_ > kMaxCompared && count >= kBuckets) build_table();
    }

    void assign(std::span<const float> values, std::uint8_t* codes) const {
        if (!first_.empty())
            look_up(values, codes);
        else if (k_ <= kMaxCompared)
            compare(values, codes);
        else
            for (std::size_t i = 0; i < values.size(); ++i) codes[i] = search<kAllSteps>(values[i], 0);
    }

  private:
    static constexpr std::size_t kMaxCompared = 16;
    static constexpr unsigned kAllSteps = 8;

    // `code` plus the number of thresholds below the value among the 2^kSteps - 1 from there on. No branches: which
    // side of a threshold a weight lies on is a coin toss.
    template <unsigned kSteps>
    std::uint8_t search(float value, std::uint32_t code) const {
        for (unsigned bit = kSteps; bit-- > 0;)
            code += static_cast<std::uint32_t>(value > thresholds_[code + (1u << bit) - 1]) << bit;
        return static_cast<std::uint8_t>(code);
    }

    // Few thresholds: each value against all of them, sixteen values at a time.
    void compare(std::span<const float> values, std::uint8_t* codes) const {
        std::size_t i = 0;
        for (; i + 16 <= values.size(); i += 16) {
            Float4 x[4];
            std::memcpy(x, values.data() + i, sizeof x);
            Int4 count[4] = {};
            for (std::size_t t = 0; t + 1 < k_; ++t) {
                const float bound = thresholds_[t];
                const Float4 all = {bound, bound, bound, bound};
                for (int q = 0; q < 4; ++q) count[q] -= x[q] > all;
            }
            for (int q = 0; q < 4; ++q)
                for (int lane = 0; lane < 4; ++lane) codes[i + 4 * q + lane] = static_cast<std::uint8_t>(count[q][lane]);
        }
        for (; i < values.size(); ++i) codes[i] = search<kAllSteps>(values[i], 0);
    }

    // Many thresholds: a table over the keys between the first and the last of them gives the lowest code that is
    // possible, a short search the rest.
    void build_table() {
        low_ = key_of(std::max(thresholds_[0], std::numeric_limits<float>::lowest()));
        high_ = key_of(thresholds_[k_ - 2]) + 1;
        while ((high_ - low_) >> shift_ >= kBuckets) ++shift_;
        first_.resize(((high_ - low_) >> shift_) + 1);
        std::size_t most = 0, below = 0;
        for (std::size_t bucket = 0; bucket < first_.size(); ++bucket) {
            // The first bucket holds all lower values too, the last one all higher ones.
            const auto key = low_ + static_cast<std::uint32_t>(bucket << shift_);
            const auto last = std::min(key + ((1u << shift_) - 1), high_);
            while (bucket > 0 && thresholds_[below] < value_of(key)) ++below;
            std::size_t through = below;
            while (thresholds_[through] < value_of(last)) ++through;
            if (bucket + 1 == first_.size()) through = k_ - 1;
            first_[bucket] = static_cast<std::uint8_t>(below);
            most = std::max(most, through - below);
        }
        steps_ = static_cast<unsigned>(std::bit_width(most));
    }

    template <unsigned kSteps>
    void look_up_in(std::span<const float> values, std::uint8_t* codes) const {
        constexpr std::size_t kPart = 256;
        std::uint32_t buckets[kPart];
        for (std::size_t start = 0; start < values.size(); start += kPart) {
            const std::size_t size = std::min(kPart, values.size() - start);
            const float* part = values.data() + start;
            for (std::size_t i = 0; i < size; ++i) {
                const std::uint32_t key = key_of(part[i]);
                const std::uint32_t inside = key < low_ ? low_ : key > high_ ? high_ : key;
                buckets[i] = (inside - low_) >> shift_;
            }
            for (std::size_t i = 0; i < size; ++i) codes[start + i] = search<kSteps>(part[i], first_[buckets[i]]);
        }
    }

    void look_up(std::span<const float> values, std::uint8_t* codes) const {
        switch (steps_) {
            case 0:
            case 1: return look_up_in<1>(values, codes);
            case 2: return look_up_in<2>(values, codes);
            case 3: return look_up_in<3>(values, codes);
            case 4: return look_up_in<4>(values, codes);
            default: return look_up_in<kAllSteps>(values, codes);
        }
    }

    std::size_t k_;
    // Infinite from the last one on, for as far as a search may look.
    std::array<float, 2 * kMaxCentroids> thresholds_{};
    std::vector<std::uint8_t> first_;
    std::uint32_t low_ = 0, high_ = 0;
    unsigned shift_ = 0, steps_ = 0;
};

}  // namespace

bool assign_nearest(std::span<const float> values, std::span<const double> centroids, std::span<std::uint8_t> codes) {
    if (!are_centroids(centroids) || codes.size() != values.size() || !all_finite(values)) return false;
    Assigner(centroids, values.size()).assign(values, codes.data());
    return true;
}

bool squared_error(std::span<const float> values, std::span<const double> centroids, double& sum) {
    if (!are_centroids(centroids)) return false;
    const Assigner assigner(centroids, values.size());
    std::uint8_t codes[kBlock];
    // Eight sums at a time keep the adders busy; a total a block keeps the rounding small.
    constexpr std::size_t kLanes = 8;
    CompensatedSum total;
    for (std::size_t start = 0; start < values.size(); start += kBlock) {
        const std::span<const float> block = values.subspan(start, std::min(kBlock, values.size() - start));
        if (!all_finite(block)) return false;
        assigner.assign(block, codes);
        double lanes[kLanes] = {};
        std::size_t i = 0;
        for (; i + kLanes <= block.size(); i += kLanes)
            for (std::size_t lane = 0; lane < kLanes; ++lane) {
                const double distance = block[i + lane] - centroids[codes[i + lane]];
                lanes[lane] += distance * distance;
            }
        for (; i < block.size(); ++i) {
            const double distance = block[i] - centroids[codes[i]];
            lanes[i % kLanes] += distance * distance;
        }
        for (double lane : lanes) total.add(lane);
    }
    sum = total.value();
    return true;
}
}  // namespace dcz
