// Optimal cells: a Lagrangian search over monotone queues, and Lloyd's iterations for comparison.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <utility>

#include "clustering_shared.h"

namespace dcz {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// ---------------------------------------------------------------------------------------------------------------
// Points on the line, made exact where doubles would lose too much

bool are_points(std::span<const double> position, std::span<const double> weight) {
    if (position.size() != weight.size() || position.size() >= std::numeric_limits<std::uint32_t>::max()) return false;
    for (std::size_t i = 0; i < position.size(); ++i) {
        if (!std::isfinite(position[i]) || !(weight[i] > 0) || !std::isfinite(weight[i])) return false;
        if (i > 0 && !(position[i - 1] < position[i])) return false;
    }
    return true;
}

// The positions times the power of two that brings them near [-1, 1], so that no square overflows.
struct Scaled {
    std::vector<double> y;
    int exponent;

    explicit Scaled(std::span<const double> position) : y(position.size()) {
        const double largest = std::max(std::fabs(position.front()), std::fabs(position.back()));
        exponent = largest > 0 ? std::clamp(-std::ilogb(largest), -1000, 1000) : 0;
        const double factor = std::ldexp(1.0, exponent);
        for (std::size_t i = 0; i < y.size(); ++i) y[i] = position[i] * factor;
    }
    double to_price(double x) const { return std::ldexp(x, 2 * exponent); }
    double from_price(double x) const { return std::ldexp(x, -2 * exponent); }
};

using Bounds = std::vector<std::uint32_t>;  // 0 = b[0] < b[1] < ... < b[cells] = number of points

struct Cell {
    double mean, cost;
};

// Mean and cost of the points [begin, end), from the points themselves.
Cell measure(std::span<const double> position, std::span<const double> weight, std::size_t begin, std::size_t end) {
    // Relative to its first point, a cell far from zero loses no digits.
    const double origin = position[begin];
    double total = 0;
    CompensatedSum moment;
    for (std::size_t i = begin; i < end; ++i) {
        total += weight[i];
        moment.add(weight[i] * (position[i] - origin));
    }
    const double offset = moment.value() / total;
    CompensatedSum cost;
    for (std::size_t i = begin; i < end; ++i) {
        const double distance = (position[i] - origin) - offset;
        cost.add(weight[i] * distance * distance);
    }
    // Rounding must not carry a mean out of its cell: the centroids ascend strictly.
    return {std::clamp(origin + offset, origin, position[end - 1]), cost.value()};
}

std::vector<Cell> measure_all(std::span<const double> position, std::span<const double> weight, const Bounds& bounds) {
    std::vector<Cell> cells;
    for (std::size_t i = 0; i + 1 < bounds.size(); ++i)
        cells.push_back(measure(position, weight, bounds[i], bounds[i + 1]));
    return cells;
}

double total_cost(const std::vector<Cell>& cells) {
    CompensatedSum sum;
    for (const Cell& cell : cells) sum.add(cell.cost);
    return sum.value();
}

// Scaling back may round (subnormal numbers); the mean stays in its cell.
double unscaled_mean(std::span<const double> position, const Bounds& bounds, std::size_t i, const Cell& cell,
                     const Scaled& scaled) {
    return std::clamp(std::ldexp(cell.mean, -scaled.exponent), position[bounds[i]], position[bounds[i + 1] - 1]);
}

// Means of any run of points at once, from sums of twice a double's digits: outliers do not blur them.
class MomentSums {
  public:
    MomentSums(std::span<const double> position, std::span<const double> weight) : sums_(position.size() + 1) {
        for (std::size_t i = 0; i < position.size(); ++i) {
            const Sum& last = sums_[i];
            const double term = weight[i] * position[i];
            const TwoSum step(last.high, term);
            sums_[i + 1] = {last.weight + weight[i], step.sum, last.low + step.error};
        }
    }
    double mean(std::size_t begin, std::size_t end) const {
        const Sum &a = sums_[begin], &b = sums_[end];
        const TwoSum difference(b.high, -a.high);
        return (difference.sum + (difference.error + (b.low - a.low))) / (b.weight - a.weight);
    }

  private:
    struct Sum {
        double weight = 0, high = 0, low = 0;
    };
    std::vector<Sum> sums_;
};

// ---------------------------------------------------------------------------------------------------------------
// The cost of a cell, in two ways
//
// Both let the points [i, j) be a cell and keep f[i], the least cost of the points before i, beside the sums for i.
// A way may leave out of every cost what is the same for every partition.

// Prefix sums: two subtractions, one division. Leaves out the sum of squares, so that
// cost = -(sum of w y)^2 / (sum of w), y relative to a point near the mean (the difference of two floats is exact).
//
// Outliers would take the digits from all others. Where it is known that no cell of the best partition crosses certain
// places, y is relative to a point of its own in each segment between them, and crossing cells cost infinitely much,
// which keeps the Monge property.
class PrefixCost {
  public:
    PrefixCost(std::span<const double> y, std::span<const double> weight, Bounds segments)
        : segments_(std::move(segments)), nodes_(y.size() + 1) {
        CompensatedSum w, s, q;
        for (std::size_t segment = 0; segment + 1 < segments_.size(); ++segment) {
            const std::uint32_t begin = segments_[segment], end = segments_[segment + 1];
            CompensatedSum total, moment;
            for (std::size_t i = begin; i < end; ++i) {
                total.add(weight[i]);
                moment.add(weight[i] * (y[i] - y[begin]));
            }
            const double mean = y[begin] + moment.value() / total.value();
            const auto last = y.begin() + (end - 1);
            const double origin = *std::lower_bound(y.begin() + begin, last, mean);
            for (std::size_t i = begin; i < end; ++i) {
                const double x = y[i] - origin;
                w.add(weight[i]);
                s.add(weight[i] * x);
                q.add(weight[i] * x * x);
                nodes_[i].end = end;
                nodes_[i + 1] = {w.value(), s.value(), 0, end};
            }
        }
        squares_ = q.value();
    }
    std::size_t size() const { return nodes_.size() - 1; }
    const Bounds& coarsest() const { return segments_; }
    double& f(std::size_t i) { return nodes_[i].f; }
    double cost(std::size_t i, std::size_t j) const {
        const Node &a = nodes_[i], &b = nodes_[j];
        if (j > a.end) return kInfinity;
        const double s = b.s - a.s;
        return -(s * s) / (b.w - a.w);
    }
    double value(std::size_t i, std::size_t j) const { return nodes_[i].f + cost(i, j); }
    // What rounding may add to the cost of a partition or take from it.
    double rounding() const { return 8 * squares_ * std::numeric_limits<double>::epsilon(); }

  private:
    struct Node {
        double w = 0, s = 0, f = 0;
        std::uint32_t end = 0;  // of the segment of the point i
    };
    Bounds segments_;
    std::vector<Node> nodes_;  // together: a look at an index costs one cache line
    double squares_ = 0;
};

// Where every partition that costs no more than `cost` must have a bound: two neighbours in one cell would cost more by
// themselves.
Bounds necessary_bounds(std::span<const double> y, std::span<const double> weight, double cost) {
    Bounds bounds{0};
    for (std::size_t i = 1; i < y.size(); ++i) {
        const double gap = y[i] - y[i - 1];
        const double together = weight[i - 1] * (weight[i] / (weight[i - 1] + weight[i])) * gap * gap;
        // The margin covers the rounding of either side.
        if (together > cost * (1 + 1e-9)) bounds.push_back(static_cast<std::uint32_t>(i));
    }
    bounds.push_back(static_cast<std::uint32_t>(y.size()));
    return bounds;
}

// A tree of partial results, merged without cancellation (Chan, Golub and LeVeque 1979): each cost is right to nearly
// all its digits, whatever lies beside the cell. O(log n) for a cost.
class TreeCost {
  public:
    TreeCost(std::span<const double> y, std::span<const double> weight)
        : y_(y), leaves_(std::bit_ceil(std::max<std::size_t>(y.size(), 1))), nodes_(2 * leaves_), f_(y.size() + 1) {
        for (std::size_t i = 0; i < y.size(); ++i) nodes_[leaves_ + i] = {static_cast<std::uint32_t>(i), weight[i], 0, 0};
        for (std::size_t i = leaves_; i-- > 1;) nodes_[i] = merge(nodes_[2 * i], nodes_[2 * i + 1]);
    }
    std::size_t size() const { return f_.size() - 1; }
    Bounds coarsest() const { return {0, static_cast<std::uint32_t>(size())}; }
    double& f(std::size_t i) { return f_[i]; }
    double cost(std::size_t i, std::size_t j) const {
        Node left, right;
        for (i += leaves_, j += leaves_; i < j; i /= 2, j /= 2) {
            if (i & 1) left = merge(left, nodes_[i++]);
            if (j & 1) right = merge(nodes_[--j], right);
        }
        return merge(left, right).squares;
    }
    double value(std::size_t i, std::size_t j) const { return f_[i] + cost(i, j); }

  private:
    struct Node {
        std::uint32_t first = 0;
        double weight = 0;   // 0: no points
        double offset = 0;   // of the mean from the first point
        double squares = 0;  // about the mean
    };
    Node merge(const Node& a, const Node& b) const {
        if (a.weight == 0) return b;
        if (b.weight == 0) return a;
        const double total = a.weight + b.weight;
        const double apart = (y_[b.first] - y_[a.first]) + (b.offset - a.offset);
        return {a.first, total, a.offset + apart * (b.weight / total),
                a.squares + b.squares + apart * apart * (a.weight * (b.weight / total))};
    }
    std::span<const double> y_;
    std::size_t leaves_;
    std::vector<Node> nodes_;
    std::vector<double> f_;
};

// ---------------------------------------------------------------------------------------------------------------
// The best k cells
//
// The cost of a cell has the Monge property, so (1) with a price on every cell, the best partition into any number of
// cells is found in one pass over the points with a monotone queue (Galil and Park 1990), and (2) the least cost of k
// cells is convex in k, so some price gives k (Aggarwal, Schieber and Tokuyama 1994). Where a price gives fewer than k
// and more than k cells at the same time, crossing the two partitions over gives exactly k.

struct Outcome {
    Bounds bounds;
    double price = 0, gap = 0;  // as in Partition
};

template <class Cost>
class Solver {
  public:
    explicit Solver(Cost& cost) : cost_(cost), n_(static_cast<std::uint32_t>(cost.size())) {}

    // From the number of cells of the coarsest partition to the number of points: k. `price` is where the search starts; `iterations` counts the passes.
    Outcome solve(std::uint32_t k, double price, std::uint32_t& iterations) {
        // Known without a pass: the best at a price above all costs, and at no price every point on its own.
        Path few{cost_.coarsest(), path_cost(cost_.coarsest())}, many;
        if (k <= few.bounds.size() - 1) return {few.bounds, 0, 0};
        many.bounds.resize(n_ + 1);
        for (std::uint32_t i = 0; i <= n_; ++i) many.bounds[i] = i;
        for (std::uint32_t i = 0; i < n_; ++i) many.cost += cost_.cost(i, i + 1);
        if (k >= n_) return {many.bounds, 0, 0};

        queue_.resize(n_ + 1);
        parent_.resize(n_ + 1);
        double low = 0, high = kInfinity;  // prices at which `many` and `few` are best
        double bound = -kInfinity;         // no partition into k cells costs less
        for (bool crossing = false;; crossing = false) {
            // The price at which both known partitions are equally good. Tried at first only as a remedy for guesses
            // out of range, then every third time: it alone ends the search if no price gives k.
            const double meeting = (few.cost - many.cost) / (many.cells() - few.cells());
            if (!(price > low && price < high) || iterations % 3 == 2) {
                price = meeting;
                crossing = true;
            }
            Path path = best_path(price);
            ++iterations;
            bound = std::max(bound, path.cost + price * (path.cells() - k));
            if (path.cells() == k) return {path.bounds, price, std::max(0.0, path.cost - bound)};
            Path& side = path.cells() < k ? few : many;
            const bool progress = path.cells() < k ? path.cells() > few.cells() : path.cells() < many.cells();
            if (!progress && crossing) {
                // k lies on an edge of the convex hull, or rounding hides the price that separates.
                many.bounds = cross(few.bounds, many.bounds, k);
                return {many.bounds, price, std::max(0.0, path_cost(many.bounds) - bound)};
            }
            (path.cells() < k ? high : low) = price;
            // For a smooth density the price falls with the cube of the number of cells.
            const double ratio = path.cells() / k;
            if (progress) side = std::move(path);
            price *= ratio * ratio * ratio;
        }
    }

  private:
    struct Path {
        Bounds bounds;
        double cost = 0;
        double cells() const { return static_cast<double>(bounds.size() - 1); }
    };

    // Where a start i is the best one for the ends from `from` up to the next entry's.
    struct Candidate {
        std::uint32_t start, from;
    };

    double path_cost(const Bounds& bounds) const {
        double sum = 0;
        for (std::size_t i = 0; i + 1 < bounds.size(); ++i) sum += cost_.cost(bounds[i], bounds[i + 1]);
        return sum;
    }

    Path best_path(double price) {
        std::size_t head = 0, tail = 1;
        queue_[0] = {0, 1};
        cost_.f(0) = 0;
        for (std::uint32_t j = 1;; ++j) {
            while (head + 1 < tail && queue_[head + 1].from <= j) ++head;
            const std::uint32_t start = queue_[head].start;
            cost_.f(j) = cost_.value(start, j) + price;
            parent_[j] = start;
            if (j == n_) break;
            // A later start, once better, stays better: it takes over the ends from some place on.
            while (tail > head + 1 && better(j, queue_[tail - 1], queue_[tail - 1].from)) --tail;
            const Candidate& last = queue_[tail - 1];
            const std::uint32_t from = takeover(j, last, std::max(last.from, j + 1));
            if (from > n_) continue;
            queue_[tail++] = {j, from};
        }
        Path path;
        for (std::uint32_t j = n_; j > 0; j = parent_[j]) path.bounds.push_back(j);
        path.bounds.push_back(0);
        std::reverse(path.bounds.begin(), path.bounds.end());
        path.cost = path_cost(path.bounds);
        return path;
    }

    bool better(std::uint32_t start, const Candidate& than, std::uint32_t end) const {
        return cost_.value(start, end) <= cost_.value(than.start, end);
    }

    // The first end from `low` on at which `start` is better, n + 1 if none. It is nearly always close: gallop.
    std::uint32_t takeover(std::uint32_t start, const Candidate& than, std::uint32_t low) const {
        std::uint32_t step = 1, high = low;
        while (!better(start, than, high)) {
            if (high == n_) return n_ + 1;
            low = high + 1;
            high = n_ - high > step ? high + step : n_;
            step *= 2;
        }
        while (low < high) {
            const std::uint32_t middle = low + (high - low) / 2;
            if (better(start, than, middle))
                high = middle;
            else
                low = middle + 1;
        }
        return high;
    }

    // From partitions into fewer and more than k cells one into k. A cell (a, d) of the first that holds the cell
    // (b, c) of the second, k - cells(first) later in its row, gives way to (b, d): the second's cells up to b, then
    // (b, d), then the first's. By the Monge property the two crossed partitions together cost no more than the two
    // given ones, so if those are best at one price, so is this.
    static Bounds cross(const Bounds& few, const Bounds& many, std::uint32_t k) {
        const std::size_t shift = k - (few.size() - 1);
        std::size_t i = 0;
        while (many[i + shift + 1] > few[i + 1]) ++i;
        Bounds bounds(many.begin(), many.begin() + static_cast<std::ptrdiff_t>(i + shift + 1));
        bounds.insert(bounds.end(), few.begin() + static_cast<std::ptrdiff_t>(i + 1), few.end());
        return bounds;
    }

    Cost& cost_;
    std::uint32_t n_;
    std::vector<Candidate> queue_;
    std::vector<std::uint32_t> parent_;
};

// For a density p and many cells the least cost is (integral of p^(1/3))^3 / (12 k^2) (Panter and Dite 1951); the price
// is what it falls by with k.
double guess_price(std::span<const double> y, std::span<const double> weight, double k) {
    constexpr std::size_t kGroups = 4096;
    const std::size_t group = y.size() / kGroups + 1;
    double sum = 0;
    for (std::size_t i = 0; i + 1 < y.size(); i += group) {
        const std::size_t end = std::min(i + group, y.size() - 1);
        double mass = 0;
        for (std::size_t j = i; j < end; ++j) mass += weight[j];
        const double width = y[end] - y[i];
        sum += cube_root(mass * width * width);
    }
    return sum * sum * sum / (6 * k * k * k);
}

}  // namespace

std::optional<Partition> optimal_partition(std::span<const double> position, std::span<const double> weight,
                                           std::size_t k, double tolerance, double price) {
    if (k < 1 || k > kMaxCentroids || !are_points(position, weight)) return std::nullopt;
    Partition result;
    if (position.empty()) return result;

    const Scaled scaled(position);
    const std::span<const double> y(scaled.y);
    const auto cells = static_cast<std::uint32_t>(std::min(k, y.size()));
    price = price > 0 && std::isfinite(price) ? scaled.to_price(price) : guess_price(y, weight, cells);

    Outcome outcome;
    std::vector<Cell> measured;
    for (Bounds segments{0, static_cast<std::uint32_t>(y.size())};;) {
        PrefixCost cost(y, weight, segments);
        outcome = Solver(cost).solve(cells, price, result.iterations);
        measured = measure_all(y, weight, outcome.bounds);
        // With one cell, or one for each point, there is nothing to decide.
        if (cells == 1 || cells == y.size() || cost.rounding() <= tolerance * total_cost(measured)) break;
        if (outcome.price > 0) price = outcome.price;
        Bounds more = necessary_bounds(y, weight, total_cost(measured));
        if (more.size() > segments.size() && more.size() - 1 <= cells) {
            segments = std::move(more);
            continue;
        }
        TreeCost exact_cost(y, weight);
        outcome = Solver(exact_cost).solve(cells, price, result.iterations);
        measured = measure_all(y, weight, outcome.bounds);
        break;
    }
    for (std::size_t i = 0; i < measured.size(); ++i)
        result.centroids.push_back(unscaled_mean(position, outcome.bounds, i, measured[i], scaled));
    result.cost = scaled.from_price(total_cost(measured));
    result.price = scaled.from_price(outcome.price);
    result.gap = scaled.from_price(outcome.gap);
    return result;
}

std::optional<Partition> lloyd_partition(std::span<const double> position, std::span<const double> weight,
                                         std::span<const double> initial, std::uint32_t max_iterations) {
    if (!are_centroids(initial) || !are_points(position, weight)) return std::nullopt;
    Partition result;
    if (position.empty()) return result;

    const Scaled scaled(position);
    const std::span<const double> y(scaled.y);
    const MomentSums sums(y, weight);
    const std::size_t k = initial.size();
    const double factor = std::ldexp(1.0, scaled.exponent);
    std::vector<double> centroids(k);
    for (std::size_t i = 0; i < k; ++i) centroids[i] = initial[i] * factor;

    Bounds bounds;
    while (true) {
        Bounds next(k + 1, static_cast<std::uint32_t>(y.size()));
        next[0] = 0;
        for (std::size_t i = 1; i < k; ++i) {
            const double halfway = 0.5 * centroids[i - 1] + 0.5 * centroids[i];
            const auto end = std::upper_bound(y.begin() + next[i - 1], y.end(), halfway);
            next[i] = static_cast<std::uint32_t>(end - y.begin());
        }
        const bool settled = next == bounds;
        bounds = std::move(next);
        if (settled || result.iterations == max_iterations) break;
        ++result.iterations;
        for (std::size_t i = 0; i < k; ++i)
            if (bounds[i] < bounds[i + 1])
                centroids[i] = std::clamp(sums.mean(bounds[i], bounds[i + 1]), y[bounds[i]], y[bounds[i + 1] - 1]);
    }
    bounds.erase(std::unique(bounds.begin(), bounds.end()), bounds.end());
    const std::vector<Cell> measured = measure_all(y, weight, bounds);
    for (std::size_t i = 0; i < measured.size(); ++i)
        result.centroids.push_back(unscaled_mean(position, bounds, i, measured[i], scaled));
    result.cost = scaled.from_price(total_cost(measured));
    return result;
}

}  // namespace dcz
