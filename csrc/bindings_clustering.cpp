// The bindings of the clustering kernels: arrays of numbers, where the others take bytes.
#include "bindings_clustering.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>

#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "base.h"
#include "clustering.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace dcz {

namespace {

void require(bool condition, const char* what) {
    if (!condition) throw std::invalid_argument(what);
}

template <class T>
using ArrayIn = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using ArrayOut = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using NewArray = nb::ndarray<nb::numpy, T, nb::ndim<1>>;

template <class T>
std::span<const T> view(const ArrayIn<T>& array) {
    return {array.data(), array.size()};
}

// The vector becomes the array's memory.
template <class T>
NewArray<T> to_array(std::vector<T>&& data) {
    auto held = std::make_unique<std::vector<T>>(std::move(data));
    std::vector<T>& kept = *held;
    nb::capsule owner(held.get(), [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
    held.release();
    return NewArray<T>(kept.data(), {kept.size()}, owner);
}

using Points = std::tuple<NewArray<double>, NewArray<double>, double>;

Points to_tuple(WeightedPoints&& points) {
    return {to_array(std::move(points.position)), to_array(std::move(points.weight)), points.scatter};
}

std::optional<Points> py_distinct_points(ArrayIn<float> values) {
    WeightedPoints points;
    bool good;
    {
        nb::gil_scoped_release release;
        good = distinct_points(view(values), points);
    }
    if (!good) return std::nullopt;
    return to_tuple(std::move(points));
}

std::optional<Points> py_binned_points(ArrayIn<float> values, std::size_t bins) {
    require(bins >= 1 && bins <= kMaxBins, "the number of bins is out of range");
    WeightedPoints points;
    bool good;
    {
        nb::gil_scoped_release release;
        good = binned_points(view(values), bins, points);
    }
    if (!good) return std::nullopt;
    return to_tuple(std::move(points));
}

void py_count_words(ArrayIn<std::uint16_t> words, ArrayOut<std::uint64_t> counts) {
    require(counts.size() == 65536, "there are 65536 counts");
    nb::gil_scoped_release release;
    count_words(view(words), std::span<std::uint64_t, 65536>(counts.data(), 65536));
}

using PartitionTuple = std::tuple<NewArray<double>, double, double, double, std::uint32_t>;

PartitionTuple to_tuple(std::optional<Partition>&& partition) {
    require(partition.has_value(), "points must be finite, ascending and of positive weight; 1 to 256 centroids");
    return {to_array(std::move(partition->centroids)), partition->cost, partition->price, partition->gap,
            partition->iterations};
}

PartitionTuple py_optimal_partition(ArrayIn<double> position, ArrayIn<double> weight, std::size_t k, double tolerance,
                                    double price) {
    std::optional<Partition> partition;
    {
        nb::gil_scoped_release release;
        partition = optimal_partition(view(position), view(weight), k, tolerance, price);
    }
    return to_tuple(std::move(partition));
}

PartitionTuple py_lloyd_partition(ArrayIn<double> position, ArrayIn<double> weight, ArrayIn<double> initial,
                                  std::uint32_t max_iterations) {
    std::optional<Partition> partition;
    {
        nb::gil_scoped_release release;
        partition = lloyd_partition(view(position), view(weight), view(initial), max_iterations);
    }
    return to_tuple(std::move(partition));
}

bool py_assign_nearest(ArrayIn<float> values, ArrayIn<double> centroids, ArrayOut<u8> codes) {
    require(values.size() == codes.size(), "there is one code for each value");
    nb::gil_scoped_release release;
    return assign_nearest(view(values), view(centroids), {codes.data(), codes.size()});
}

std::optional<double> py_squared_error(ArrayIn<float> values, ArrayIn<double> centroids) {
    double sum = 0;
    nb::gil_scoped_release release;
    return squared_error(view(values), view(centroids), sum) ? std::optional(sum) : std::nullopt;
}

}  // namespace

void bind_clustering(nb::module_& m) {
    m.def("distinct_points", &py_distinct_points, "values"_a);
    m.def("binned_points", &py_binned_points, "values"_a, "bins"_a);
    m.def("count_words", &py_count_words, "words"_a, "counts"_a);
    m.def("optimal_partition", &py_optimal_partition, "position"_a, "weight"_a, "k"_a, "tolerance"_a, "price"_a);
    m.def("lloyd_partition", &py_lloyd_partition, "position"_a, "weight"_a, "initial"_a, "max_iterations"_a);
    m.def("assign_nearest", &py_assign_nearest, "values"_a, "centroids"_a, "codes"_a);
    m.def("squared_error", &py_squared_error, "values"_a, "centroids"_a);
}

}  // namespace dcz
