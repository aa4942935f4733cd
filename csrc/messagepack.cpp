#include "messagepack.h"

#include <algorithm>
#include <vector>

namespace dcz {

namespace {

[[noreturn]] void refuse(const char* reason) { throw Corrupt(reason); }

class Cursor {
  public:
    explicit Cursor(Bytes data) : data_(data) {}

    bool at_end() const { return at_ == data_.size(); }
    std::size_t left() const { return data_.size() - at_; }

    u64 big_endian(unsigned bytes) {
        u64 value = 0;
        for (const u8 byte : take(bytes)) value = value << 8 | byte;
        return value;
    }

    Bytes take(u64 size) {
        if (size > left()) refuse("it is cut off");
        const Bytes piece = data_.subspan(at_, static_cast<std::size_t>(size));
        at_ += static_cast<std::size_t>(size);
        return piece;
    }

  private:
    Bytes data_;
    std::size_t at_ = 0;
};

// A number of `bytes` bytes that does not fit into fewer, of which the next shorter form holds those below `least`.
u64 shortest(Cursor& in, unsigned bytes, u64 least) {
    const u64 value = in.big_endian(bytes);
    if (value < least) refuse("a number or a length is not in its shortest form");
    return value;
}

void check_negative(Cursor& in, unsigned bytes, std::int64_t above) {
    const unsigned unused = 64 - 8 * bytes;
    const auto value = static_cast<std::int64_t>(in.big_endian(bytes) << unused) >> unused;
    if (value >= above) refuse("a number is not in its shortest form");
}

void check_utf8(Bytes text) {
    for (std::size_t i = 0; i < text.size();) {
        const u8 first = text[i++];
        if (first < 0x80) continue;
        const unsigned more = first >= 0xF0 ? 3 : first >= 0xE0 ? 2 : 1;
        if (first < 0xC2 || first > 0xF4 || text.size() - i < more) refuse("a str is not UTF-8");
        // The second byte says whether the form is the shortest, no surrogate, and not above U+10FFFF.
        const u8 low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80, high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
        if (text[i] < low || text[i] > high) refuse("a str is not UTF-8");
        for (unsigned j = 1; j < more; ++j)
            if ((text[i + j] & 0xC0) != 0x80) refuse("a str is not UTF-8");
        i += more;
    }
}

struct Open {
    u64 left;  // values, and keys of a map
    bool map;
    bool any_key;
    Bytes key;  // the one before
};

}  // namespace

Tally check_messagepack(Bytes data, unsigned max_depth) {
    Cursor in(data);
    Tally tally;
    std::vector<Open> open;
    do {
        const bool is_key = !open.empty() && open.back().map && open.back().left % 2 == 0;
        if (!open.empty()) --open.back().left;
        const u8 type = static_cast<u8>(in.big_endian(1));
        u64 length = 0;
        enum { kScalar, kText, kBytes, kArray, kMap } kind = kScalar;
        if (type < 0x80 || type >= 0xE0) {
            kind = kScalar;
        } else if (type < 0x90) {
            kind = kMap, length = type & 0x0F;
        } else if (type < 0xA0) {
            kind = kArray, length = type & 0x0F;
        } else if (type < 0xC0) {
            kind = kText, length = type & 0x1F;
        } else {
            switch (type) {
                case 0xC2:
                case 0xC3: break;
                case 0xC4: kind = kBytes, length = in.big_endian(1); break;
                case 0xC5: kind = kBytes, length = shortest(in, 2, 1 << 8); break;
                case 0xC6: kind = kBytes, length = shortest(in, 4, 1 << 16); break;
                case 0xCB: in.take(8); break;
                case 0xCC: shortest(in, 1, 1 << 7); break;
                case 0xCD: shortest(in, 2, 1 << 8); break;
                case 0xCE: shortest(in, 4, 1 << 16); break;
                case 0xCF: shortest(in, 8, u64{1} << 32); break;
                case 0xD0: check_negative(in, 1, -32); break;
                case 0xD1: check_negative(in, 2, -(1 << 7)); break;
                case 0xD2: check_negative(in, 4, -(1 << 15)); break;
                case 0xD3: check_negative(in, 8, -(std::int64_t{1} << 31)); break;
                case 0xD9: kind = kText, length = shortest(in, 1, 1 << 5); break;
                case 0xDA: kind = kText, length = shortest(in, 2, 1 << 8); break;
                case 0xDB: kind = kText, length = shortest(in, 4, 1 << 16); break;
                case 0xDC: kind = kArray, length = shortest(in, 2, 1 << 4); break;
                case 0xDD: kind = kArray, length = shortest(in, 4, 1 << 16); break;
                case 0xDE: kind = kMap, length = shortest(in, 2, 1 << 4); break;
                case 0xDF: kind = kMap, length = shortest(in, 4, 1 << 16); break;
                default: refuse("a type of MessagePack that is not allowed");
            }
        }
        if (is_key && kind != kText) refuse("a key is not a str");
        if (open.empty() && kind != kMap) refuse("it is not a map");
        if (kind == kArray || kind == kMap) {
            ++tally.containers;
            if (kind == kMap) length *= 2;
            if (length > in.left()) refuse("it is cut off");
            if (open.size() == max_depth) refuse("it is nested too deep");
            open.push_back({length, kind == kMap, false, {}});
        } else {
            ++tally.items;
            const Bytes content = in.take(length);
            if (kind == kText) check_utf8(content);
            if (is_key) {
                Open& map = open.back();
                if (map.any_key && !std::ranges::lexicographical_compare(map.key, content))
                    refuse("the keys of a map are not in order, or one is given twice");
                map.any_key = true;
                map.key = content;
            }
        }
        while (!open.empty() && open.back().left == 0) open.pop_back();
    } while (!open.empty());
    if (!in.at_end()) refuse("there is something behind it");
    return tally;
}

}  // namespace dcz
