// What weighted_points.cpp, clustering.cpp and nearest.cpp share: floats in order, sums that keep their digits.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include "clustering.h"

namespace dcz {

// ---------------------------------------------------------------------------------------------------------------
// Floats as integers in the same order

inline constexpr std::uint32_t kKeyOfLowest = 0x00800000u;   // -FLT_MAX
inline constexpr std::uint32_t kKeyOfHighest = 0xff7fffffu;  // FLT_MAX; keys outside belong to infinities and NaNs
inline constexpr std::size_t kBuckets = 65536;               // by the upper half of the key: 1/128 of a value's magnitude
inline constexpr std::size_t kBlock = 2048;                  // values worked on at a time, in the first-level cache

[[maybe_unused]] static inline std::uint32_t key_of(float value) {
    // -0.0 + 0.0 is 0.0: the two zeros are one point.
    const auto bits = std::bit_cast<std::uint32_t>(value + 0.0f);
    return bits ^ (static_cast<std::uint32_t>(static_cast<std::int32_t>(bits) >> 31) | 0x80000000u);
}

[[maybe_unused]] static inline double value_of(std::uint32_t key) {
    return std::bit_cast<float>(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

[[maybe_unused]] static inline bool all_finite(std::span<const float> values) {
    // Branch-free, so that it is vectorised: an exponent of ones becomes the sign bit.
    std::uint32_t bad = 0;
    for (float value : values) bad |= (std::bit_cast<std::uint32_t>(value) & 0x7fffffffu) + 0x00800000u;
    return !(bad & 0x80000000u);
}

// A cube root good to 1e-4, which is plenty for bin widths and first guesses. Not std::cbrt: its last bit differs
// between C libraries, and with it the bins would.
[[maybe_unused]] static inline double cube_root(double x) {
    if (!(x > 0)) return 0;
    double y = std::bit_cast<double>(std::bit_cast<std::uint64_t>(x) / 3 + 0x2a9f7893782da1ceull);
    for (int i = 0; i < 2; ++i) y = (2 * y + x / (y * y)) / 3;
    return y;
}

// ---------------------------------------------------------------------------------------------------------------
// Points on the line, made exact where doubles would lose too much

// a + b = sum + error, exactly (Knuth).
struct TwoSum {
    double sum, error;
    TwoSum(double a, double b) : sum(a + b) {
        const double b_part = sum - a;
        error = (a - (sum - b_part)) + (b - b_part);
    }
};

// A running sum that is right to the last bit of each of its values, however many terms it has.
class CompensatedSum {
  public:
    void add(double term) {
        const TwoSum step(high_, term);
        high_ = step.sum;
        low_ += step.error;
    }
    double value() const { return high_ + low_; }

  private:
    double high_ = 0, low_ = 0;
};

[[maybe_unused]] static inline bool are_centroids(std::span<const double> centroids) {
    if (centroids.empty() || centroids.size() > kMaxCentroids) return false;
    for (std::size_t i = 0; i < centroids.size(); ++i)
        if (!std::isfinite(centroids[i]) || (i > 0 && !(centroids[i - 1] < centroids[i]))) return false;
    return true;
}

}  // namespace dcz
