#include "exact_codes.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "huffman.h"
#include "kernels.h"

namespace dcz {

namespace {

constexpr std::size_t kMost = 256;

// The distinct elements of a row, and where each of them is in the order of their values.
class Distinct {
  public:
    // False if there are more than `limit`, at most kMost.
    template <class T>
    bool collect(const u8* elements, std::size_t count, bool skip_zeros, std::size_t limit) {
        values.clear();
        ++row_;
        u64 last = 0;
        bool any = false;
        for (std::size_t i = 0; i < count; ++i) {
            const u64 value = load<T>(elements + i * sizeof(T));
            if ((any && value == last) || (skip_zeros && value == 0)) continue;
            last = value;
            any = true;
            Slot& slot = find(value);
            if (slot.row == row_) continue;
            if (values.size() == limit) return false;
            slot = {value, row_, 0};
            values.push_back(value);
        }
        std::sort(values.begin(), values.end());
        for (std::size_t i = 0; i < values.size(); ++i) find(values[i]).index = static_cast<u32>(i);
        return true;
    }

    template <class T>
    void assign(const u8* elements, std::size_t count, bool skip_zeros, const std::array<u8, kMost>& code_of, u8* codes) {
        for (std::size_t i = 0; i < count; ++i) {
            const u64 value = load<T>(elements + i * sizeof(T));
            codes[i] = skip_zeros && value == 0 ? u8{0} : code_of[find(value).index];
        }
    }

    std::vector<u64> values;

  private:
    static constexpr unsigned kBits = 11;
    struct Slot {
        u64 value = 0;
        u32 row = 0;  // the slot is empty unless this is the current one
        u32 index = 0;
    };

    Slot& find(u64 value) {
        std::size_t at = static_cast<std::size_t>((value * 0x9E3779B97F4A7C15u) >> (64 - kBits));
        while (slots_[at].row == row_ && slots_[at].value != value) at = (at + 1) & ((std::size_t{1} << kBits) - 1);
        return slots_[at];
    }

    std::array<Slot, std::size_t{1} << kBits> slots_{};
    u32 row_ = 0;
};

template <class F>
auto with_type(std::size_t itemsize, F&& f) {
    switch (itemsize) {
        case 1: return f(u8{});
        case 2: return f(u16{});
        case 4: return f(u32{});
        default: return f(u64{});
    }
}

bool collect(Distinct& distinct, const Rows& rows, std::size_t row, std::size_t limit) {
    return with_type(rows.itemsize, [&]<class T>(T) {
        return distinct.collect<T>(rows.elements.data() + row * rows.row * sizeof(T), rows.row, rows.skip_zeros, limit);
    });
}

void assign(Distinct& distinct, const Rows& rows, std::size_t row, const std::array<u8, kMost>& code_of, u8* codes) {
    with_type(rows.itemsize, [&]<class T>(T) {
        distinct.assign<T>(rows.elements.data() + row * rows.row * sizeof(T), rows.row, rows.skip_zeros, code_of,
                           codes + row * rows.row);
    });
}

double value_of(u64 bits, FloatType type) {
    switch (type) {
        case FloatType::f32: return std::bit_cast<float>(static_cast<u32>(bits));
        case FloatType::bf16: return std::bit_cast<float>(static_cast<u32>(bits) << 16);
        default: break;
    }
    const int exponent = static_cast<int>(bits >> 10 & 31), mantissa = static_cast<int>(bits & 1023);
    return exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
}

u64 infinity_of(FloatType type) { return type == FloatType::f32 ? 0x7F800000 : type == FloatType::bf16 ? 0x7F80 : 0x7C00; }
u64 sign_of(FloatType type) { return type == FloatType::f32 ? 0x80000000 : 0x8000; }

// A scale and the multiple that each of a row's distinct values is of it.
struct Fit {
    double low = 0, high = 0;  // every scale between them gives each value, but for the rounding to binary32
    std::vector<int> multiples;
};

// Finds the scale of which the smallest magnitude is a small multiple, from the magnitudes in ascending order: each
// narrows the interval in which the scale is, so that the multiple of the next, larger one is known.
bool fit_row(const std::vector<u64>& values, FloatType type, Fit& fit) {
    struct Magnitude {
        u64 bits;
        std::size_t index;
    };
    std::vector<Magnitude> magnitudes;
    const u64 sign = sign_of(type);
    fit.multiples.assign(values.size(), 0);
    fit.low = fit.high = 1;
    for (std::size_t i = 0; i < values.size(); ++i) {
        const u64 magnitude = values[i] & (sign - 1);
        if (magnitude >= infinity_of(type) || values[i] == sign) return false;
        if (magnitude != 0) magnitudes.push_back({magnitude, i});
    }
    if (magnitudes.empty()) return true;
    std::sort(magnitudes.begin(), magnitudes.end(), [](const Magnitude& a, const Magnitude& b) { return a.bits < b.bits; });
    for (int smallest = 1; smallest < 128; ++smallest) {
        double low = 0, high = std::numeric_limits<double>::infinity();
        int multiple = smallest, least = 0, most = 0;
        bool fits = true;
        for (const Magnitude& magnitude : magnitudes) {
            const double value = value_of(magnitude.bits, type);
            const double below = (value_of(magnitude.bits - 1, type) + value) / 2;
            const double above = (value_of(magnitude.bits + 1, type) + value) / 2;
            if (low > 0) {
                const double quotient = value / ((low + high) / 2);
                if (!(quotient < 255.5)) {
                    fits = false;
                    break;
                }
                multiple = static_cast<int>(quotient + 0.5);
            }
            low = std::max(low, below / multiple);
            high = std::min(high, above / multiple);
            const int signed_multiple = values[magnitude.index] & sign ? -multiple : multiple;
            least = std::min(least, signed_multiple);
            most = std::max(most, signed_multiple);
            fit.multiples[magnitude.index] = signed_multiple;
            if (low > high || most - least > 255) {
                fits = false;
                break;
            }
        }
        if (fits) {
            fit.low = low;
            fit.high = high;
            return true;
        }
    }
    return false;
}

// A number of the type `scale` near the middle of the interval that gives all values of the row, or 0.
float scale_for(const Fit& fit, const std::vector<u64>& values, FloatType type, std::size_t itemsize, FloatType scale) {
    std::array<u8, kMost> codes{};
    const int least = std::min(0, fit.multiples.empty() ? 0 : *std::min_element(fit.multiples.begin(), fit.multiples.end()));
    for (std::size_t i = 0; i < values.size(); ++i) codes[i] = static_cast<u8>(fit.multiples[i] - least);
    ScaledValues scaled{{Groups::Kind::tensor, 1, 1, {}}, type, {}, {}, {}, -least};
    const auto exact = [&](float candidate) {
        std::array<u8, kMost * 4> out;
        scaled.single.scales = {&candidate, 1};
        dequantize(codes.data(), {0, values.size(), nullptr}, scaled, out.data());
        for (std::size_t i = 0; i < values.size(); ++i)
            if (std::memcmp(&out[i * itemsize], &values[i], itemsize) != 0) return false;
        return true;
    };
    const float middle = static_cast<float>((fit.low + fit.high) / 2);
    if (!std::isfinite(middle)) return 0;
    const u32 bits = std::bit_cast<u32>(middle);
    // The bits of a binary32 that its type keeps; f16 in addition has few exponents.
    const u32 step = scale == FloatType::f32 ? 1 : scale == FloatType::bf16 ? 1u << 16 : 1u << 13;
    const u32 nearest = (bits + step / 2) & ~(step - 1);
    for (const int distance : {0, -1, 1, -2, 2}) {
        const float candidate = std::bit_cast<float>(nearest + static_cast<u32>(distance) * step);
        if (!(candidate > 0) || !std::isfinite(candidate)) continue;
        if (scale == FloatType::f16 && (candidate < 0x1p-14f || candidate > 65504.0f)) continue;
        if (exact(candidate)) return candidate;
    }
    return 0;
}

}  // namespace

std::optional<SharedValues> shared_values(const Rows& rows, std::size_t limit, u8* codes) {
    Distinct distinct;
    std::array<u8, kMost> identity;
    for (std::size_t i = 0; i < kMost; ++i) identity[i] = static_cast<u8>(i);
    std::vector<std::vector<u64>> values(rows.count());
    SharedValues out{{}, 1};
    for (std::size_t row = 0; row < values.size(); ++row) {
        if (!collect(distinct, rows, row, std::min(limit, kMost))) return std::nullopt;
        assign(distinct, rows, row, identity, codes);
        out.size = std::max(out.size, distinct.values.size());
        values[row] = distinct.values;
    }
    out.centroids.reserve(values.size() * out.size * rows.itemsize);
    for (auto& row : values) {
        row.resize(out.size, row.empty() ? 0 : row.back());
        for (const u64 value : row) {
            const u8* bytes = reinterpret_cast<const u8*>(&value);
            out.centroids.insert(out.centroids.end(), bytes, bytes + rows.itemsize);
        }
    }
    return out;
}

std::optional<UniformCodes> uniform_codes(const Rows& rows, FloatType type, u8* codes) {
    const std::size_t count = rows.count();
    Distinct distinct;
    std::vector<std::vector<u64>> values(count);
    std::vector<Fit> fits(count);
    int least = 0, most = 0, widest = 0;
    for (std::size_t row = 0; row < count; ++row) {
        if (!collect(distinct, rows, row, kMost) || !fit_row(distinct.values, type, fits[row])) return std::nullopt;
        values[row] = distinct.values;
        int low = 0, high = 0;
        for (const int multiple : fits[row].multiples) {
            low = std::min(low, multiple);
            high = std::max(high, multiple);
        }
        least = std::min(least, low);
        most = std::max(most, high);
        widest = std::max(widest, high - low);
    }
    UniformCodes out{std::vector<float>(count), FloatType::f32, {}, 1};
    const auto all = [&](FloatType scale) {
        for (std::size_t row = 0; row < count; ++row)
            if ((out.scales[row] = scale_for(fits[row], values[row], type, rows.itemsize, scale)) == 0) return false;
        out.scale = scale;
        return true;
    };
    // Two bytes for each group instead of four, if that is how the scales were kept.
    if (!all(FloatType::f16) && !all(FloatType::bf16) && !all(FloatType::f32)) return std::nullopt;

    while (out.bits < 8 && (least < -(1 << (out.bits - 1)) || most >= 1 << (out.bits - 1))) ++out.bits;
    if (least < -128 || most > 127 || widest < 1 << (out.bits - 1)) {
        for (out.bits = 1; widest >> out.bits; ++out.bits) {
        }
        out.zero_points.resize(count);
    }
    for (std::size_t row = 0; row < count; ++row) {
        int zero = 1 << (out.bits - 1);
        if (!out.zero_points.empty()) {
            zero = 0;
            for (const int multiple : fits[row].multiples) zero = std::max(zero, -multiple);
            out.zero_points[row] = static_cast<u8>(zero);
        }
        std::array<u8, kMost> code_of{};
        for (std::size_t i = 0; i < values[row].size(); ++i) code_of[i] = static_cast<u8>(fits[row].multiples[i] + zero);
        // The values are in order, so that their places are those of the distinct elements, collected again.
        if (!collect(distinct, rows, row, kMost)) return std::nullopt;
        assign(distinct, rows, row, code_of, codes);
    }
    return out;
}

bool looks_quantized(const Rows& row, std::optional<FloatType> type, std::size_t limit) {
    thread_local Distinct distinct;
    if (!collect(distinct, row, 0, kMost)) return false;
    if (distinct.values.size() <= limit) return true;
    Fit fit;
    if (!type || !fit_row(distinct.values, *type, fit)) return false;
    return std::ranges::any_of(std::array{FloatType::f16, FloatType::bf16, FloatType::f32}, [&](FloatType scale) {
        return scale_for(fit, distinct.values, *type, row.itemsize, scale) != 0;
    });
}

PlaneCosts plane_costs(Bytes elements, std::size_t itemsize, bool rotated) {
    const std::size_t count = elements.size() / itemsize;
    thread_local std::vector<u8> planes;
    planes.resize(elements.size());
    const auto cost = [&](bool turned) {
        std::array<u8*, 8> starts{};
        for (std::size_t j = 0; j < itemsize; ++j) starts[j] = planes.data() + j * count;
        kernels().split_planes(elements.data(), count, itemsize, turned, 0, starts.data());
        std::size_t sum = 0;
        for (std::size_t j = 0; j < itemsize; ++j) sum += huffman_estimate(starts[j], count);
        return sum;
    };
    const std::size_t whole = huffman_estimate(elements.data(), elements.size());
    return {whole, itemsize > 1 ? cost(false) : whole, rotated ? cost(true) : whole};
}

Offset best_offset(const u8* elements, std::size_t count, std::size_t itemsize) {
    // How many of the rotated elements' upper bits, those of the highest byte and kFine more, are below each value, twice
    // round.
    constexpr unsigned kFine = 6, kStep = 256 >> kFine;
    constexpr std::size_t kValues = std::size_t{256} << kFine;
    std::vector<u32> below(2 * kValues + 1);
    const auto add = [&]<class T>(T) {
        for (std::size_t i = 0; i < count; ++i) {
            const T value = load<T>(elements + i * sizeof(T));
            ++below[1 + (static_cast<T>(value << 1) >> (8 * sizeof(T) - 8 - kFine))];
        }
    };
    itemsize == 2 ? add(u16{}) : itemsize == 4 ? add(u32{}) : add(u64{});
    for (std::size_t i = 1; i <= kValues; ++i) below[i] += below[i - 1];
    for (std::size_t i = 1; i <= kValues; ++i) below[i + kValues] = below[i] + below[kValues];

    const auto cost = [&](u8 offset) {
        Histogram histogram{};
        for (std::size_t symbol = 0; symbol < 256; ++symbol) {
            const std::size_t first = ((symbol << kFine) + kValues - offset / kStep) % kValues;
            histogram[symbol] = below[first + (1 << kFine)] - below[first];
        }
        const Lengths lengths = code_lengths(histogram);
        u64 bits = 0;
        for (std::size_t symbol = 0; symbol < 256; ++symbol) bits += histogram[symbol] * lengths[symbol];
        return bits;
    };
    const u64 plain = cost(0);
    u64 least = plain;
    u8 best = 0;
    const auto attempt = [&](int offset) {
        const u64 bits = cost(static_cast<u8>(offset));
        if (bits < least) {
            least = bits;
            best = static_cast<u8>(offset);
        }
    };
    for (int offset = 16; offset < 256; offset += 16) attempt(offset);
    for (int step = 8; step >= static_cast<int>(kStep); step /= 2) {
        const int middle = best;
        attempt(middle - step);
        attempt(middle + step);
    }
    return {best, plain - least};
}

}  // namespace dcz
