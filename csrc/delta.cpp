#include "delta.h"

namespace dcz {

namespace {

// All arithmetic is modulo 2^bits of T. Integers narrower than int are promoted, so each result is cut back to T.
template <class T>
inline constexpr unsigned kTop = 8 * sizeof(T) - 1;

// All ones if the top bit is set.
template <class T>
T spread(T value) {
    return static_cast<T>(T{0} - static_cast<T>(value >> kTop<T>));
}

// The bits of a float as a two's complement integer in the order of the numbers; its own inverse. -0 is just below 0.
template <class T>
T ordered(T bits) {
    return static_cast<T>(bits ^ static_cast<T>(spread(bits) >> 1));
}

template <class T>
T zigzag(T difference) {
    return static_cast<T>(static_cast<T>(difference << 1) ^ spread(difference));
}

template <class T>
T unzigzag(T folded) {
    return static_cast<T>(static_cast<T>(folded >> 1) ^ static_cast<T>(T{0} - static_cast<T>(folded & 1)));
}

struct Bits {
    template <class T>
    static T encode(T base, T element) { return static_cast<T>(element ^ base); }
    template <class T>
    static T decode(T base, T stored) { return static_cast<T>(stored ^ base); }
};

struct Integers {
    template <class T>
    static T encode(T base, T element) { return zigzag(static_cast<T>(element - base)); }
    template <class T>
    static T decode(T base, T stored) { return static_cast<T>(base + unzigzag(stored)); }
};

struct Floats {
    template <class T>
    static T encode(T base, T element) { return zigzag(static_cast<T>(ordered(element) - ordered(base))); }
    template <class T>
    static T decode(T base, T stored) { return ordered(static_cast<T>(ordered(base) + unzigzag(stored))); }
};

template <class Kind, class T>
void encode_as(const u8* base, const u8* elements, std::size_t count, u8* out) {
    for (std::size_t i = 0; i < count; ++i)
        store(out + i * sizeof(T), Kind::encode(load<T>(base + i * sizeof(T)), load<T>(elements + i * sizeof(T))));
}

template <class Kind, class T>
void decode_as(const u8* base, std::size_t count, u8* data) {
    for (std::size_t i = 0; i < count; ++i)
        store(data + i * sizeof(T), Kind::decode(load<T>(base + i * sizeof(T)), load<T>(data + i * sizeof(T))));
}

template <class Kind>
void encode_of(const u8* base, const u8* elements, std::size_t count, std::size_t itemsize, u8* out) {
    switch (itemsize) {
        case 1: return encode_as<Kind, u8>(base, elements, count, out);
        case 2: return encode_as<Kind, u16>(base, elements, count, out);
        case 4: return encode_as<Kind, u32>(base, elements, count, out);
        default: return encode_as<Kind, u64>(base, elements, count, out);
    }
}

template <class Kind>
void decode_of(const u8* base, std::size_t count, std::size_t itemsize, u8* data) {
    switch (itemsize) {
        case 1: return decode_as<Kind, u8>(base, count, data);
        case 2: return decode_as<Kind, u16>(base, count, data);
        case 4: return decode_as<Kind, u32>(base, count, data);
        default: return decode_as<Kind, u64>(base, count, data);
    }
}

}  // namespace

void encode_delta(Difference kind, const u8* base, const u8* elements, std::size_t count, std::size_t itemsize, u8* out) {
    switch (kind) {
        case Difference::bits: return encode_of<Bits>(base, elements, count, itemsize, out);
        case Difference::integers: return encode_of<Integers>(base, elements, count, itemsize, out);
        case Difference::floats: return encode_of<Floats>(base, elements, count, itemsize, out);
    }
}

void decode_delta(Difference kind, const u8* base, std::size_t count, std::size_t itemsize, u8* data) {
    switch (kind) {
        case Difference::bits: return decode_of<Bits>(base, count, itemsize, data);
        case Difference::integers: return decode_of<Integers>(base, count, itemsize, data);
        case Difference::floats: return decode_of<Floats>(base, count, itemsize, data);
    }
}

}  // namespace dcz
