// Hostile input for every kernel that reads a file's bytes, under AddressSanitizer and UndefinedBehaviorSanitizer.
//
// The invariant: a kernel throws Corrupt or fills its output, all instruction sets do the same of both, and what is
// decoded without a mutation is what was encoded. All buffers have exactly the size that is promised, on the heap, so
// that one byte too far is seen.
//
//   fuzz_kernels [INPUTS] [SEED]      mutates valid streams (default 1,000,000 inputs)
//
// With -DDCZ_LIBFUZZER=ON (clang) the same function is a libFuzzer target: the first 8 bytes choose kernel and sizes.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "../bits.h"
#include "../cascade.h"
#include "../cpu.h"
#include "../delta.h"
#include "../dequantize.h"
#include "../huffman.h"
#include "../kernels.h"
#include "../messagepack.h"
#include "../range.h"
#include "../segment.h"
#include "../sparse.h"

using namespace dcz;

namespace {

enum Kernel : u8 { kHuffman, kCascade, kUnpack, kPlanes, kGaps, kBitmap, kLookUp, kDequantize, kTableBytes, kMessagePack, kDelta, kRange, kVectors, kRuns, kKernels };

// What a reader has checked before it calls a kernel: sizes and widths are in range, but agree with nothing.
struct Input {
    Kernel kernel;
    u8 width;           // 1 to 8
    u8 parameter;       // itemsize, size of a codebook, ...
    std::size_t count;  // symbols or elements
    std::vector<u8> stream;
};

// Exactly these bytes, and nothing behind them.
class Exact {
  public:
    // `line`: it begins with a line of memory.
    explicit Exact(std::size_t size, bool line = false)
        : data_(new (std::align_val_t(line ? 64 : 16)) u8[size], Delete{line}), size_(size) {
        std::fill_n(data_.get(), size, u8{0xA5});
    }
    explicit Exact(Bytes bytes) : Exact(bytes.size()) { std::copy(bytes.begin(), bytes.end(), data_.get()); }
    u8* data() { return data_.get(); }
    Bytes bytes() const { return {data_.get(), size_}; }
    std::vector<u8> copy() const { return {data_.get(), data_.get() + size_}; }

  private:
    struct Delete {
        bool line;
        void operator()(u8* data) const { ::operator delete[](data, std::align_val_t(line ? 64 : 16)); }
    };

    std::unique_ptr<u8[], Delete> data_;
    std::size_t size_;
};

constexpr std::size_t kItemsizes[] = {1, 2, 4, 8};

// What stands beside a range stream, by the parameter: nothing, a bitmap, sparse entries, or planes above.
struct Beside {
    std::vector<u32> positions;
    std::vector<u8> next, last;
    RangeContext context;

    Beside(const Input& input) {
        context.start = input.parameter * u64{0x1234567};
        if (input.parameter % 4 == 1) context.bits = 8 * input.count - input.parameter / 4 % 8;
        if (input.parameter % 4 == 2) {
            context.step = input.count % 4 == 0 ? 4 : 1;
            for (std::size_t i = 0; i < input.count / context.step; ++i) positions.push_back(static_cast<u32>(i * (i % 3 + 1)));
            std::sort(positions.begin(), positions.end());
            context.positions = positions;
        }
        if (input.parameter % 4 == 3) {
            for (std::size_t i = 0; i < input.count; ++i) {
                next.push_back(static_cast<u8>(i * 7));
                last.push_back(static_cast<u8>(i % 5));
            }
            context.next = next.data();
            context.last = last.data();
        }
    }
};

// Codes in runs that have tables: of how many bits, and how they are written.
struct RunsInput {
    unsigned width;
    Coding coding;
    std::size_t first;  // element

    explicit RunsInput(const Input& input)
        : width(1 + input.width % 4),
          coding(input.parameter % 4 == 1 ? Coding::huffman : input.parameter % 4 == 2 ? Coding::cascade : Coding::raw),
          first(input.count % 5 * 64 + input.count / 64 % 4 / 3) {}
};

std::vector<u8> run_runs(const Input& input, Bytes stream) {
    constexpr std::size_t sizes[] = {32, 64, 96, 128, 48, 40, 320};
    const RunsInput how(input);
    const std::size_t size = sizes[(input.parameter >> 5) % std::size(sizes)], n = (how.first + input.count) / size + 1;
    const std::size_t groups = n - std::min<std::size_t>(n, input.count % 16 == 0);  // now and then one too few
    const Groups of{Groups::Kind::group, 320, size, {}};
    const CodedStream coded{how.coding, stream, input.count, how.width};
    const bool streaming = input.count % 3 > 0, line = input.count % 7 > 0;
    const auto decode = [&](std::size_t itemsize, Values values) {
        Exact out(input.count * itemsize, line);
        SegmentDecoder(itemsize, {}, std::move(values)).decode({how.first, input.count, input.count, {&coded, 1}}, streaming, out.data());
        return out.copy();
    };
    const unsigned kind = (input.parameter >> 2) % 8;
    std::vector<u8> points(groups), centroids(groups * 16 * 4);
    if (kind == 0) {
        for (std::size_t i = 0; i < centroids.size(); ++i) centroids[i] = static_cast<u8>(i * 11);
        return decode(4, CodebookValues{16 - input.count % 2, of, centroids});
    }
    std::vector<float> scales(groups), minimums(groups), table(16 - input.count % 2 * 5);
    for (std::size_t i = 0; i < groups; ++i) {
        scales[i] = 0.37f * (static_cast<float>(i % 7) - 1.5f);
        minimums[i] = static_cast<float>(i % 5) * 0.11f;
        points[i] = static_cast<u8>(i * 29);
    }
    for (std::size_t i = 0; i < table.size(); ++i) table[i] = static_cast<float>(i * i) * 0.21f - 3.0f;
    constexpr FloatType types[] = {FloatType::f32, FloatType::bf16, FloatType::f16};
    ScaledValues values{of, types[kind % 3], {scales, {}, {}}, {}, {}, 8};
    if (kind & 4) values.single.minimums = minimums;
    if (kind == 1 || kind == 6) values.single.table = table;
    if (kind & 2) values.zero_points = points;
    return decode(kind % 3 == 0 ? 4 : 2, std::move(values));
}

std::vector<u8> run(const Input& input) {
    Exact stream{Bytes(input.stream)};
    const std::size_t itemsize = kItemsizes[input.parameter % 4];
    switch (input.kernel) {
        case kHuffman: {
            Exact out(input.count);
            if (input.count > 0) huffman_decode(stream.bytes(), input.count, input.width, out.data());
            return out.copy();
        }
        case kCascade: {
            Exact out(input.count);
            if (input.count > 0) cascade_decode(stream.bytes(), input.count, input.width, out.data());
            return out.copy();
        }
        case kUnpack: {
            Exact out(input.count);
            unpack(stream.bytes(), input.count, input.width, out.data());
            return out.copy();
        }
        case kPlanes: {
            // The last plane is coded, the others are raw and stand before it.
            const std::size_t raw = (itemsize - 1) * input.count;
            if (stream.bytes().size() < raw || input.count == 0) throw Corrupt("too short");
            std::vector<CodedStream> planes;
            for (std::size_t j = 0; j + 1 < itemsize; ++j)
                planes.push_back({Coding::raw, stream.bytes().subspan(j * input.count, input.count), input.count, 8});
            planes.push_back({input.parameter & 32 ? Coding::cascade : Coding::huffman, stream.bytes().subspan(raw), input.count, 8});
            const bool rotated = (input.parameter & 4) != 0, wide = (input.parameter & 16) != 0 && (itemsize == 2 || itemsize == 4);
            ExactValues values{true, rotated, false, static_cast<u8>(input.count), {}};
            if (wide) values.widening = itemsize == 4 ? Widening::f32_f64 : rotated ? Widening::f16_f32 : Widening::bf16_f32;
            const std::size_t size = wide ? 2 * itemsize : itemsize;
            Exact out(size * input.count);
            const SegmentDecoder decoder(size, {}, values);
            decoder.decode({0, input.count, input.count, planes}, input.parameter & 8, out.data());
            return out.copy();
        }
        case kGaps:
        case kBitmap: {
            // As many entries as the count says, in a segment of eight times as many elements.
            const std::size_t elements = 8 * input.count + input.parameter % 8;
            Exact values(input.count * itemsize), out(elements * itemsize);
            const Layout layout{input.kernel == kGaps ? Layout::Kind::relative_index : Layout::Kind::bitmap, input.width};
            const std::vector<CodedStream> streams = {{Coding::symbols, stream.bytes(), stream.bytes().size(), 8},
                                                      {Coding::symbols, values.bytes(), input.count * itemsize, 8}};
            if (input.kernel == kBitmap && stream.bytes().size() != (elements + 7) / 8) throw Corrupt("not that many bytes");
            const SegmentDecoder decoder(itemsize, layout, ExactValues{false, false, false, 0, {}});
            decoder.decode({0, elements, input.count, streams}, input.parameter & 8, out.data());
            return out.copy();
        }
        case kLookUp: {
            const std::size_t size = input.parameter + std::size_t{1};
            Exact table(size * itemsize * 3), out(input.stream.size() * itemsize);
            const Groups groups{Groups::Kind::group, 40, input.width * u64{7}, {}};
            look_up(stream.bytes().data(), {input.count % 64, input.stream.size(), nullptr}, groups, table.bytes(), size,
                    itemsize, out.data());
            return out.copy();
        }
        case kDequantize: {
            ScaledValues values{{Groups::Kind::channel, input.width * u64{5}, 0, {}}, FloatType::f32, {}, {}, {}, static_cast<int>(input.width)};
            values.type = static_cast<FloatType>(input.parameter % 6);
            const std::size_t groups = input.count % 16 + 1;
            std::vector<float> scales, minimums, table;
            for (std::size_t i = 0; i < groups; ++i) {
                const float scale = 0.37f * (static_cast<float>(i) * 2e37f - 1.0f);  // finite, as a reader sees to
                scales.push_back(scale);
                if (input.count & 16) minimums.push_back(-scale);
            }
            if (input.count & 32)
                for (std::size_t i = 0; i < std::size_t{1} << input.width; ++i) table.push_back(static_cast<float>(i) * 0.7f - 3.0f);
            const std::vector<double> wide_scales(scales.begin(), scales.end()), wide_minimums(minimums.begin(), minimums.end()),
                wide_table(table.begin(), table.end());
            values.single = {scales, minimums, table};
            values.wide = {wide_scales, wide_minimums, wide_table};
            values.groups.extent = groups + input.parameter % 2;
            if (input.parameter & 64) values.groups.kind = Groups::Kind::group;
            if (input.parameter & 128) {
                values.groups.kind = Groups::Kind::indexed;
                for (std::size_t i = 0; i < values.groups.inner; ++i) values.groups.index.push_back(static_cast<u16>(i * 7 % groups));
            }
            Exact out(input.stream.size() * 8);
            dequantize(stream.bytes().data(), {input.count, input.stream.size(), nullptr}, values, out.data());
            return out.copy();
        }
        case kVectors: {
            const std::size_t size = input.parameter + std::size_t{1}, bytes = itemsize * input.width;
            Exact table(size * bytes * 3), out(input.stream.size() * bytes);
            for (std::size_t i = 0; i < size * bytes * 3; ++i) table.data()[i] = static_cast<u8>(i * 5);
            look_up_vectors(stream.bytes().data(), input.count, input.stream.size(), table.bytes(), size, bytes, 1 + input.count % 4, out.data());
            return out.copy();
        }
        case kRuns: return run_runs(input, stream.bytes());
        case kTableBytes: {
            const std::size_t bytes = table_bytes(stream.bytes());
            return std::vector<u8>(1, static_cast<u8>(bytes));
        }
        case kMessagePack: {
            const Tally tally = check_messagepack(stream.bytes(), input.width * 4u);
            return {static_cast<u8>(tally.containers), static_cast<u8>(tally.items)};
        }
        case kDelta: {  // any differences to any base are elements, and encode to those differences
            const std::size_t bytes = input.stream.size() / 2 / itemsize * itemsize;
            const auto kind = static_cast<Difference>(input.width % 3);
            Exact base(stream.bytes().first(bytes)), data(stream.bytes().subspan(bytes, bytes)), again(bytes);
            const auto differences = data.copy();
            decode_delta(kind, base.data(), bytes / itemsize, itemsize, data.data());
            encode_delta(kind, base.data(), data.data(), bytes / itemsize, itemsize, again.data());
            if (again.copy() != differences) std::abort();
            return data.copy();
        }
        case kRange: {
            if (input.count == 0) return {};
            const Beside beside(input);
            Exact out(input.count);
            range_decode(stream.bytes(), input.count, beside.context.bits ? 8 : input.width, beside.context, out.data());
            return out.copy();
        }
        case kKernels: break;
    }
    return {};
}

std::optional<std::vector<u8>> outcome(const Input& input) {
    try {
        return run(input);
    } catch (const Corrupt&) {
        return std::nullopt;
    }
}

[[noreturn]] void fail(const Input& input, const char* what) {
    std::fprintf(stderr, "%s: kernel %d, width %d, parameter %d, count %zu, stream", what, input.kernel, input.width,
                 input.parameter, input.count);
    for (const u8 byte : input.stream) std::fprintf(stderr, " %02x", byte);
    std::fprintf(stderr, "\n");
    std::abort();
}

// The outcome, which must be the same on every instruction set.
std::optional<std::vector<u8>> check(const Input& input) {
    static const std::vector<std::string_view> isas = available_isas();
    std::optional<std::vector<u8>> first;
    for (std::size_t i = 0; i < isas.size(); ++i) {
        force_isa(isas[i]);
        auto here = outcome(input);
        if (i == 0)
            first = std::move(here);
        else if (here != first)
            fail(input, "instruction sets differ");
    }
    return first;
}

class Random {  // splitmix64
  public:
    explicit Random(u64 seed) : state_(seed) {}
    u64 next() {
        u64 z = state_ += 0x9E3779B97F4A7C15u;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        return z ^ (z >> 31);
    }
    std::size_t below(std::size_t bound) { return static_cast<std::size_t>(next() % bound); }

  private:
    u64 state_;
};

// Symbols whose distribution is anything from one symbol to all alike.
std::vector<u8> symbols(Random& random, std::size_t count, unsigned width) {
    std::vector<u8> out(count);
    const unsigned skew = static_cast<unsigned>(random.below(5));
    const u8 first = static_cast<u8>(random.below(std::size_t{1} << width));
    for (u8& symbol : out) {
        u64 value = random.next() & low_bits(width);
        for (unsigned i = 0; i < skew; ++i) value &= random.next();
        symbol = static_cast<u8>(skew == 4 && random.below(50) ? first : value);
    }
    return out;
}

// Few levels or many.
unsigned cascade_price(Random& random) { return static_cast<unsigned>(random.below(2) * random.below(600)); }

struct Case {
    Input input;
    std::optional<std::vector<u8>> decoded;  // what an unmutated stream must give
};

// A map with a value of every type, some of them nested.
std::vector<u8> map_of_everything(Random& random) {
    static const std::vector<std::vector<u8>> values = {
        {0x05},       {0xE0},       {0xC3},       {0xCC, 200},          {0xCD, 1, 0},          {0xD0, 0x80},
        {0xA1, 'x'},  {0x90},       {0x80},       {0xC4, 2, 0xFF, 0},   {0xA2, 0xC3, 0xA9},    {0x92, 1, 0x91, 2},
        {0xD1, 0x80, 0},            {0xCE, 1, 0, 0, 0},                 {0x81, 0xA1, 'k', 0x91, 0x80},
        {0xCF, 0, 0, 0, 1, 0, 0, 0, 0},           {0xD3, 0x80, 0, 0, 0, 0, 0, 0, 0},
        {0xCB, 0x3F, 0xF0, 0, 0, 0, 0, 0, 0},     {0xD2, 0x80, 0, 0, 0}};
    const std::size_t count = 1 + random.below(15);
    std::vector<u8> out{static_cast<u8>(0x80 | count)};
    for (std::size_t i = 0; i < count; ++i) {
        out.insert(out.end(), {0xA1, static_cast<u8>('a' + i)});
        const auto& value = values[random.below(values.size())];
        out.insert(out.end(), value.begin(), value.end());
    }
    return out;
}

Case valid(Random& random) {
    constexpr std::size_t counts[] = {1, 2, 7, 8, 63, 64, 65, 200, 511, 512, 1000, 3000, 8191, 8192, 9000};
    // Full blocks are slow under sanitizers, and one in a thousand is enough.
    const std::size_t count = random.below(1000) == 0 ? kBlock - 1 + random.below(3) : counts[random.below(std::size(counts))];
    Case out{{static_cast<Kernel>(random.below(kKernels)), static_cast<u8>(1 + random.below(8)),
              static_cast<u8>(random.below(256)), count, {}}, std::nullopt};
    Input& input = out.input;
    const std::size_t itemsize = kItemsizes[input.parameter % 4];
    switch (input.kernel) {
        case kHuffman:
        case kTableBytes: {
            auto plain = symbols(random, count, input.width);
            input.stream = huffman_encode(plain.data(), count, input.width, ~std::size_t{0}, 0);
            if (input.kernel == kHuffman) out.decoded = std::move(plain);
            break;
        }
        case kCascade: {
            auto plain = symbols(random, count, input.width);
            input.stream = cascade_encode(plain.data(), count, input.width, ~std::size_t{0}, cascade_price(random)).bytes;
            out.decoded = std::move(plain);
            break;
        }
        case kUnpack: {
            auto plain = symbols(random, count, input.width);
            pack(plain.data(), count, input.width, input.stream);
            out.decoded = std::move(plain);
            break;
        }
        case kPlanes: {
            // More than a decoder takes at a time, now and then.
            input.count = count % (random.below(8) ? 2000 : 9001) + 1;
            const auto plain = symbols(random, input.count, 8);
            input.stream = symbols(random, (itemsize - 1) * input.count, 8);
            const std::size_t any = ~std::size_t{0};
            const auto coded = input.parameter & 32 ? cascade_encode(plain.data(), plain.size(), 8, any, cascade_price(random)).bytes
                                                    : huffman_encode(plain.data(), plain.size(), 8, any, 0);
            input.stream.insert(input.stream.end(), coded.begin(), coded.end());
            break;
        }
        case kGaps:
        case kBitmap: {
            const std::size_t elements = 8 * input.count + input.parameter % 8;
            std::vector<u8> mask(elements, 0);
            for (std::size_t i = 0; i < input.count; ++i) mask[i * 8 + random.below(8)] = 1;
            if (input.kernel == kGaps) {
                input.stream = encode_gaps(mask, input.width);
            } else {
                input.stream.assign((elements + 7) / 8, 0);
                for (std::size_t i = 0; i < elements; ++i) input.stream[i / 8] |= static_cast<u8>(mask[i] << (i % 8));
            }
            break;
        }
        case kLookUp:
        case kVectors:
        case kDequantize:
            input.stream = symbols(random, count % 500 + 1, input.width);
            break;
        case kRuns: {
            // More than a strip, now and then.
            input.count = count % (random.below(8) ? 2000 : 9001) + 1;
            const RunsInput how(input);
            const auto plain = symbols(random, input.count, how.width);
            const std::size_t any = ~std::size_t{0};
            if (how.coding == Coding::huffman)
                input.stream = huffman_encode(plain.data(), plain.size(), how.width, any, 0);
            else if (how.coding == Coding::cascade)
                input.stream = cascade_encode(plain.data(), plain.size(), how.width, any, cascade_price(random)).bytes;
            else
                pack(plain.data(), plain.size(), how.width, input.stream);
            break;
        }
        case kMessagePack:
            input.stream = map_of_everything(random);
            input.width = 8;
            break;
        case kDelta:
            input.stream = symbols(random, 2 * (count % 2000) * itemsize, 8);
            break;
        case kRange: {
            const Beside beside(input);
            const unsigned width = beside.context.bits ? 8 : input.width;
            auto plain = symbols(random, count, width);
            RangeModel model;
            model.columns = static_cast<u32>(1 + random.below(300));
            if (beside.context.bits) {
                model.kind = RangeModel::kBits;
                plain.back() &= static_cast<u8>(low_bits(8 - (8 * count - beside.context.bits)));
            } else if (beside.context.last) {
                model.kind = random.below(2) ? RangeModel::kPlanes : RangeModel::kSigned;
                model.raw = static_cast<u8>(random.below(width) + (model.kind == RangeModel::kSigned));
            } else {
                model.raw = static_cast<u8>(random.below(width));
                model.resolution = static_cast<u8>(random.below(4));
            }
            input.stream = range_encode(plain.data(), count, width, model, beside.context);
            out.decoded = std::move(plain);
            break;
        }
        case kKernels: break;
    }
    return out;
}

void mutate(Random& random, Input& input) {
    auto& s = input.stream;
    for (std::size_t i = random.below(3); i < 3; ++i) {
        const std::size_t size = s.size(), at = size ? random.below(size) : 0;
        switch (random.below(8)) {
            case 0: if (size) s[at] ^= static_cast<u8>(1u << random.below(8)); break;
            case 1: if (size) s[at] = static_cast<u8>(random.next()); break;
            case 2: s.resize(at); break;
            case 3: s.insert(s.end(), 1 + random.below(9), static_cast<u8>(random.next())); break;
            case 4: if (size) std::fill_n(s.begin() + static_cast<std::ptrdiff_t>(at), std::min<std::size_t>(size - at, 1 + random.below(20)), u8{0}); break;
            case 5: if (size) std::swap(s[at], s[random.below(size)]); break;
            // The head holds tables and descriptors: most of what can be said wrongly.
            case 6: if (size) s[random.below(std::min<std::size_t>(size, 12))] = static_cast<u8>(random.next()); break;
            case 7: input.count = random.below(2) ? random.below(10000) : input.count + random.below(3) - std::min<std::size_t>(input.count, 1); break;
        }
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const u8* data, std::size_t size) {
    if (size < 8) return 0;
    const std::size_t count = load<u16>(data + 4);
    check({static_cast<Kernel>(data[0] % kKernels), static_cast<u8>(1 + data[1] % 8), data[2], count,
           std::vector<u8>(data + 8, data + size)});
    return 0;
}

#ifndef DCZ_LIBFUZZER
int main(int argc, char** argv) {
    const u64 inputs = argc > 1 ? std::stoull(argv[1]) : 1000000, seed = argc > 2 ? std::stoull(argv[2]) : 0;
    Random random(seed);
    u64 refused = 0;
    for (u64 i = 0; i < inputs; ++i) {
        Case c = valid(random);
        const bool mutated = i % 8 != 0;
        if (mutated) mutate(random, c.input);
        const auto result = check(c.input);
        refused += !result;
        if (!mutated && (!result || (c.decoded && *result != *c.decoded)) && c.input.kernel != kLookUp &&
            c.input.kernel != kDequantize && c.input.kernel != kVectors && c.input.kernel != kRuns)
            fail(c.input, "a valid stream does not decode to what was encoded");
    }
    std::string isas;
    for (const auto name : available_isas()) isas += (isas.empty() ? "" : ", ") + std::string(name);
    std::printf("%llu inputs on each of %s: %llu refused, %llu decoded, none wrong\n", static_cast<unsigned long long>(inputs),
                isas.c_str(), static_cast<unsigned long long>(refused), static_cast<unsigned long long>(inputs - refused));
}
#endif
