#include "dequantize.h"

#include <algorithm>
#include <array>

#include "kernels.h"

namespace dcz {

u64 Groups::of(u64 element) const {
    switch (kind) {
        case Kind::tensor: return 0;
        case Kind::channel: return element / inner % extent;
        case Kind::indexed: return element / inner * extent + index[element % inner];
        case Kind::group: break;
    }
    return element / inner * ((inner + extent - 1) / extent) + element % inner / extent;
}

u64 Groups::run_end(u64 element) const {
    switch (kind) {
        case Kind::tensor: return ~u64{0};
        case Kind::channel: return extent == 1 ? ~u64{0} : (element / inner + 1) * inner;
        case Kind::indexed: return element + 1;
        case Kind::group: break;
    }
    const u64 column = element % inner;
    return element - column + std::min(inner, (column / extent + 1) * extent);
}

namespace {

// Calls run(group, first, size, runs) for each series of `runs` runs of `size` neighbours: those of the group `group` from the
// `first` selected item on, those of the next group behind them, and so on.
template <class F>
void for_each_neighbour_run(const Selection& which, const Groups& groups, F& run) {
    const u64 stop = which.start + which.count;
    u64 element = which.start;
    const auto emit = [&](u64 group, u64 size, u64 runs) {
        run(group, static_cast<std::size_t>(element - which.start), static_cast<std::size_t>(size), static_cast<std::size_t>(runs));
        element += size * runs;
    };
    if (groups.kind == Groups::Kind::tensor) return emit(0, which.count, 1);
    const bool channels = groups.kind == Groups::Kind::channel;
    if (channels && groups.extent == 1) return emit(0, which.count, 1);
    // A row is what groups do not cross: it has runs of `size` elements, and then maybe a shorter one. Where it has not, the next
    // row's follow as if they were its own.
    const u64 size = channels ? groups.inner : std::min(groups.extent, groups.inner);
    const u64 row = channels ? groups.inner * groups.extent : groups.inner;
    const bool seamless = row % size == 0;
    u64 group = groups.of(element);
    u64 end = channels || !seamless ? element - element % row + row : stop;  // of the row
    for (;;) {
        // A series begins only where a run does.
        const u64 begun = seamless ? element % size : (element - (end - row)) % size;
        const u64 limit = std::min(end, stop), whole = begun ? 0 : (limit - element) / size;
        if (whole > 0) {
            emit(group, size, whole);
            group += whole;
        } else {
            const u64 run_end = std::min(limit, element - begun + size);
            const bool finished = run_end == element - begun + size || run_end == end;
            emit(group, run_end - element, 1);
            group += finished;
        }
        if (element == stop) return;
        if (element == end) {
            end += row;
            if (channels) group = 0;
        }
    }
}

// The same for any selection, whose items may be of any groups.
template <class F>
void for_each_run(const Selection& which, const Groups& groups, F&& run) {
    if (which.count == 0) return;
    if (!which.positions && groups.kind != Groups::Kind::indexed) return for_each_neighbour_run(which, groups, run);
    const auto element_of = [&](std::size_t i) { return which.start + (which.positions ? which.positions[i] : i); };
    std::size_t i = 0;
    while (i < which.count) {
        const u64 element = element_of(i), end = groups.run_end(element);
        std::size_t next = i + 1;
        while (next < which.count && element_of(next) < end) ++next;
        run(groups.of(element), i, next - i, std::size_t{1});
        i = next;
    }
}

// Rounds a binary32 to a type of 8 bits, `kExponent` and `kMantissa` of them, to nearest, ties to even.
template <int kExponent, int kMantissa, bool kInfinity>
u8 narrow(float value) {
    const u32 bits = std::bit_cast<u32>(value), magnitude = bits & 0x7FFFFFFF;
    constexpr u32 infinity = ((1u << kExponent) - 1) << kMantissa;
    constexpr u32 largest = kInfinity ? infinity - 1 : infinity + (1u << kMantissa) - 2;
    constexpr u32 overflow = kInfinity ? infinity : largest + 1;
    const u32 sign = bits >> 31 << (kExponent + kMantissa);
    if (magnitude >= 0x7F800000) return static_cast<u8>(sign | overflow);
    constexpr int bias = (1 << (kExponent - 1)) - 1;
    const u32 hidden = magnitude >> 23 ? 0x800000 : 0;
    const u32 mantissa = (magnitude & 0x7FFFFF) | hidden;
    const int exponent = static_cast<int>(magnitude >> 23) - 127 + bias;
    const int shift = 23 - kMantissa + (exponent <= 0 ? 1 - exponent : 0);
    if (shift > 25) return static_cast<u8>(sign);
    u32 rounded = mantissa >> shift;
    const u32 rest = mantissa & ((1u << shift) - 1), half = 1u << (shift - 1);
    if (rest > half || (rest == half && rounded & 1)) ++rounded;
    // The hidden bit carries into the exponent, and a rounded-up mantissa with it.
    if (exponent > 0) rounded += static_cast<u32>(exponent - 1) << kMantissa;
    return static_cast<u8>(sign | (rounded > largest ? overflow : rounded));
}

void expect_groups(u64 group, std::size_t runs, std::size_t groups) {
    if (group >= groups || runs > groups - group) throw Corrupt("an element belongs to a group without parameters");
}

void expect_below(const u8* codes, std::size_t count, std::size_t size) {
    u8 largest = 0;
    for (std::size_t i = 0; i < count; ++i) largest = std::max(largest, codes[i]);
    if (largest >= size) throw Corrupt("a code is not below the size of the codebook");
}

constexpr std::size_t kPart = 2048;  // elements that are made at a time, in memory that stays in the cache

// The parameters of items that have each a group of its own, brought together.
template <class T>
struct Gathered {
    std::array<T, kPart> scales, minimums;
    std::array<u8, kPart> zero_points;
};

template <class T>
class Dequantizer {
  public:
    Dequantizer(const ScaledValues& values, const Scaling<T>& scaling)
        : values_(values), scaling_(scaling), groups_(scaling.scales.size()) {
        if (scaling.table.empty()) {
            zero_ = values.zero;
            if (!values.zero_points.empty()) zero_points_ = values.zero_points.data();
        }
        if (zero_points_) groups_ = std::min(groups_, values.zero_points.size());
        if (!scaling.minimums.empty()) groups_ = std::min(groups_, scaling.minimums.size());
    }

    // For each of some runs from the group on, `size` elements of the type T.
    void make_runs(u64 group, std::size_t runs, const T* numbers, std::size_t size, u8* out) const {
        expect_groups(group, runs, groups_);
        make(nullptr, numbers, runs_from(group, runs, size), out);
    }

    // At most kPart elements of the type T.
    void dequantize(const u8* codes, const Selection& which, u8* out) const {
        const u8* in = codes;
        T levels[kPart];
        if (!scaling_.table.empty()) {
            expect_below(codes, which.count, scaling_.table.size());
            const u8* table = reinterpret_cast<const u8*>(scaling_.table.data());
            kernels().look_up(codes, which.count, table, scaling_.table.size(), sizeof(T), reinterpret_cast<u8*>(levels));
            in = nullptr;
        }
        if (values_.groups.kind == Groups::Kind::indexed || (which.positions && values_.groups.kind != Groups::Kind::tensor))
            return gathered(in, levels, which, out);
        for_each_run(which, values_.groups, [&](u64 group, std::size_t first, std::size_t size, std::size_t runs) {
            expect_groups(group, runs, groups_);
            make(in ? in + first : nullptr, levels + first, runs_from(group, runs, size), out + first * size_of());
        });
    }

  private:
    std::size_t size_of() const { return values_.type == FloatType::bf16 ? 2 : sizeof(T); }

    Runs<T> runs_from(u64 group, std::size_t count, std::size_t size) const {
        return {count,
                size,
                scaling_.scales.data() + group,
                scaling_.minimums.empty() ? nullptr : scaling_.minimums.data() + group,
                zero_points_ ? zero_points_ + group : nullptr,
                zero_};
    }

    template <class U>
    static void pick(const u16* index, std::size_t count, const U* from, U* to) {
        for (std::size_t i = 0; i < count; ++i) to[i] = from[index[i]];
    }

    void gathered(const u8* codes, const T* levels, const Selection& which, u8* out) const {
        Gathered<T> found;
        const bool minimums = !scaling_.minimums.empty(), points = zero_points_ != nullptr;
        const Groups& groups = values_.groups;
        if (which.positions) {
            for (std::size_t i = 0; i < which.count; ++i) {
                const u64 group = groups.of(which.start + which.positions[i]);
                expect_groups(group, 1, groups_);
                found.scales[i] = scaling_.scales[group];
                if (minimums) found.minimums[i] = scaling_.minimums[group];
                if (points) found.zero_points[i] = zero_points_[group];
            }
        } else {
            u64 column = which.start % groups.inner, row = which.start / groups.inner * groups.extent;
            for (std::size_t i = 0; i < which.count; column = 0, row += groups.extent) {
                expect_groups(row, groups.extent, groups_);
                const std::size_t n = std::min<u64>(which.count - i, groups.inner - column);
                const u16* index = groups.index.data() + column;
                pick(index, n, scaling_.scales.data() + row, found.scales.data() + i);
                if (minimums) pick(index, n, scaling_.minimums.data() + row, found.minimums.data() + i);
                if (points) pick(index, n, zero_points_ + row, found.zero_points.data() + i);
                i += n;
            }
        }
        make(codes, levels,
             {which.count, 1, found.scales.data(), minimums ? found.minimums.data() : nullptr, points ? found.zero_points.data() : nullptr,
              zero_},
             out);
    }

    void make(const u8* codes, const T* levels, const Runs<T>& of, u8* out) const {
        const Kernels& k = kernels();
        if constexpr (sizeof(T) == 8) {
            codes ? k.dequantize_f64(codes, of, out) : k.scale_f64(levels, of, out);
        } else if (values_.type == FloatType::bf16) {
            codes ? k.dequantize_bf16(codes, of, out) : k.scale_bf16(levels, of, out);
        } else {
            codes ? k.dequantize_f32(codes, of, out) : k.scale_f32(levels, of, out);
        }
    }

    const ScaledValues& values_;
    const Scaling<T>& scaling_;
    std::size_t groups_;
    const u8* zero_points_ = nullptr;  // null: `zero_` for all
    int zero_ = 0;                     // nothing is taken from the levels of a table
};

template <class F>
void narrow_all(const float* in, std::size_t count, F round, u8* out) {
    for (std::size_t i = 0; i < count; ++i) out[i] = round(in[i]);
}

void dequantize_part(const Dequantizer<float>& of, FloatType type, const u8* codes, const Selection& which, u8* out) {
    if (type == FloatType::f32 || type == FloatType::bf16) return of.dequantize(codes, which, out);
    alignas(64) std::array<float, kPart> single;
    of.dequantize(codes, which, reinterpret_cast<u8*>(single.data()));
    if (type == FloatType::f8_e5m2) return narrow_all(single.data(), which.count, narrow<5, 2, true>, out);
    if (type == FloatType::f8_e4m3fn) return narrow_all(single.data(), which.count, narrow<4, 3, false>, out);
    kernels().halve(single.data(), which.count, out);
}

std::size_t size_of(FloatType type) {
    switch (type) {
        case FloatType::f64: return 8;
        case FloatType::f32: return 4;
        case FloatType::f16:
        case FloatType::bf16: return 2;
        case FloatType::f8_e4m3fn:
        case FloatType::f8_e5m2: break;
    }
    return 1;
}

}  // namespace

void dequantize(const u8* codes, const Selection& which, const ScaledValues& values, u8* out) {
    const Dequantizer<float> single(values, values.single);
    const Dequantizer<double> wide(values, values.wide);
    const std::size_t size = size_of(values.type);
    for (std::size_t at = 0; at < which.count; at += kPart) {
        const std::size_t count = std::min(kPart, which.count - at);
        const Selection part = which.positions ? Selection{which.start, count, which.positions + at} : Selection{which.start + at, count, nullptr};
        if (values.type == FloatType::f64)
            wide.dequantize(codes + at, part, out + at * size);
        else
            dequantize_part(single, values.type, codes + at, part, out + at * size);
    }
}

namespace {

constexpr std::size_t kLongRun = 32;  // elements; of shorter ones, a table would be half the work

// Do all runs, in which neighbours from `start` on are, begin and end with a line of memory, if the first one does?
bool fill_lines(const Groups& groups, u64 start, std::size_t itemsize) {
    const u64 line = 64 / itemsize;
    if (start % line) return false;
    switch (groups.kind) {
        case Groups::Kind::tensor: return true;
        case Groups::Kind::channel: return groups.extent == 1 || (groups.inner % line == 0 && groups.inner >= kLongRun);
        case Groups::Kind::group: return groups.inner % line == 0 && groups.extent % line == 0 && groups.extent >= kLongRun;
        case Groups::Kind::indexed: break;
    }
    return false;
}

bool can_look_up(const Groups& groups, unsigned width, u64 start, std::size_t itemsize) {
    return width <= 4 && (itemsize == 2 || itemsize == 4) && fill_lines(groups, start, itemsize);
}

}  // namespace

std::optional<RunTables> RunTables::of(const ScaledValues& values, unsigned width, u64 start) {
    const std::span<const float> table = values.single.table;
    if (!can_look_up(values.groups, width, start, size_of(values.type))) return std::nullopt;
    if (!table.empty() && table.size() < std::size_t{1} << width) return std::nullopt;  // there may be codes without a level
    RunTables found(values.groups, size_of(values.type));
    found.values_ = &values;
    for (std::size_t i = 0; i < found.numbers_.size(); ++i) {
        const std::size_t code = i % kTable;
        found.numbers_[i] = table.empty() ? static_cast<float>(code) : code < table.size() ? table[code] : 0;
    }
    return found;
}

std::optional<RunTables> RunTables::of(const Groups& groups, Bytes centroids, std::size_t size, std::size_t itemsize, unsigned width, u64 start) {
    if (size != kTable || !can_look_up(groups, width, start, itemsize)) return std::nullopt;
    RunTables found(groups, itemsize);
    found.centroids_ = centroids;
    return found;
}

const u8* RunTables::tables_of(u64 group, std::size_t runs, u8* made) const {
    if (!values_) {
        const std::size_t stride = kTable * itemsize_;
        expect_groups(group, runs, centroids_.size() / stride);
        return centroids_.data() + group * stride;
    }
    const Dequantizer<float> of(*values_, values_->single);
    if (values_->type != FloatType::f16) {
        of.make_runs(group, runs, numbers_.data(), kTable, made);
        return made;
    }
    alignas(64) std::array<float, kRuns * kTable> single;
    of.make_runs(group, runs, numbers_.data(), kTable, reinterpret_cast<u8*>(single.data()));
    kernels().halve(single.data(), runs * kTable, made);
    return made;
}

void RunTables::look_up(const u8* codes, bool packed, const Selection& which, bool streaming, u8* out) const {
    alignas(64) std::array<u8, kRuns * kTable * sizeof(float)> made;
    const auto run = [&](u64 group, std::size_t first, std::size_t size, std::size_t runs) {
        for (std::size_t done = 0; done < runs; done += kRuns, first += kRuns * size) {
            const std::size_t n = std::min(kRuns, runs - done);
            const u8* tables = tables_of(group + done, n, made.data());
            kernels().look_up_runs(codes + (packed ? first / 2 : first), packed, n, size, tables, itemsize_, streaming, out + first * itemsize_);
        }
    };
    if (which.count > 0) for_each_neighbour_run(which, groups_, run);
}

void look_up(const u8* codes, const Selection& which, const Groups& groups, Bytes table, std::size_t size,
             std::size_t itemsize, u8* out) {
    expect_below(codes, which.count, size);
    const std::size_t stride = size * itemsize, count = table.size() / stride;
    for_each_run(which, groups, [&](u64 group, std::size_t first, std::size_t n, std::size_t runs) {
        expect_groups(group, runs, count);
        const u8* centroids = table.data() + group * stride;
        for (std::size_t i = 0; i < runs; ++i, first += n, centroids += stride)
            kernels().look_up(codes + first, n, centroids, size, itemsize, out + first * itemsize);
    });
}

void look_up_vectors(const u8* codes, u64 first, std::size_t count, Bytes table, std::size_t size, std::size_t bytes, u64 places, u8* out) {
    expect_below(codes, count, size);
    const std::size_t stride = size * bytes;
    if (table.size() < places * stride) throw Corrupt("a place has no codewords");
    if (places == 1 && (bytes == 1 || bytes == 2 || bytes == 4 || bytes == 8)) return kernels().look_up(codes, count, table.data(), size, bytes, out);
    u64 place = first % places;
    for (std::size_t i = 0; i < count; ++i) {
        std::memcpy(out + i * bytes, table.data() + place * stride + codes[i] * bytes, bytes);
        if (++place == places) place = 0;
    }
}

}  // namespace dcz
