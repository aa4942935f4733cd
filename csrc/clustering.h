// One-dimensional k-means for weight sharing: many weights, few centroids, the optimum.
//
//   values --> weighted points --> optimal cells, centroids --> codes
//              distinct_points     optimal_partition            assign_nearest
//              binned_points       lloyd_partition              squared_error
//              count_words
//
// Nothing here draws random numbers, starts threads or calls functions of the C library whose last bit depends on its
// version (only + - * / and sqrt), so equal inputs give equal bits everywhere. The functions throw nothing but
// std::bad_alloc; what is wrong with an input comes back as false or as an empty optional.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace dcz {

// A code is one byte.
inline constexpr std::size_t kMaxCentroids = 256;
inline constexpr std::size_t kMaxBins = std::size_t{1} << 20;

// Points on the line in strictly ascending order, each with a positive weight: how many values it stands for.
struct WeightedPoints {
    std::vector<double> position;
    std::vector<double> weight;
    // An upper bound of the sum of squared distances between the values and the points that stand for them;
    // zero if the points are the values.
    double scatter = 0;
};

// The distinct values and how often they occur; -0.0 counts as 0.0. False if a value is not finite.
// A radix sort: O(n) time, 8 n bytes of scratch.
[[nodiscard]] bool distinct_points(std::span<const float> values, WeightedPoints& points);

// Bin means and bin counts: about `bins` (1 to kMaxBins) bins, narrow where optimal cells would be narrow.
// False if a value is not finite or `bins` is out of range.
[[nodiscard]] bool binned_points(std::span<const float> values, std::size_t bins, WeightedPoints& points);

// How often each 16-bit word occurs, for element types that have no more than 2^16 values.
void count_words(std::span<const std::uint16_t> words, std::span<std::uint64_t, 65536> counts);

struct Partition {
    std::vector<double> centroids;  // strictly ascending; fewer than asked for if there are fewer points
    double cost = 0;                // weighted sum of squared distances between the points and their centroids
    double price = 0;               // the Lagrange multiplier: about what one more centroid would save
    double gap = 0;                 // proven bound on cost minus the least possible cost, up to rounding
    std::uint32_t iterations = 0;
};

// The partition of the points into at most k cells (1 to kMaxCentroids) that has the least cost.
//
// `tolerance` is the relative excess over the optimum that rounding may cause. Where prefix sums cannot promise it
// (values of very different magnitudes), a slower evaluation without cancellation takes over.
// `price` is that of a similar problem, or 0. A good one saves iterations; none changes the optimum.
// Empty if the points are not finite, strictly ascending and of positive weight, or k is out of range.
[[nodiscard]] std::optional<Partition> optimal_partition(std::span<const double> position,
                                                         std::span<const double> weight, std::size_t k,
                                                         double tolerance, double price);

// Lloyd's iterations from given centroids (1 to kMaxCentroids, strictly ascending) until no point changes its cell. A point
// halfway belongs to the lower centroid. A cell without points keeps its centroid and is dropped at the end.
// Empty if the points are not as above or the centroids are not finite and strictly ascending.
[[nodiscard]] std::optional<Partition> lloyd_partition(std::span<const double> position,
                                                       std::span<const double> weight,
                                                       std::span<const double> initial, std::uint32_t max_iterations);

// codes[i] = the index of the centroid nearest to values[i] in real arithmetic; of two equally near ones, the lower.
// Centroids: 1 to kMaxCentroids, finite, strictly ascending.
// False, and the codes mean nothing, if a value is not finite or an argument is out of range.
[[nodiscard]] bool assign_nearest(std::span<const float> values, std::span<const double> centroids,
                                  std::span<std::uint8_t> codes);

// The sum of squared distances between the values and their nearest centroids. False as for assign_nearest.
[[nodiscard]] bool squared_error(std::span<const float> values, std::span<const double> centroids, double& sum);

}  // namespace dcz
