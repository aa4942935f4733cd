// Packing of symbols of 1 to 8 bits (docs/format.md, section 6.1), and sequences of single bits.
#pragma once

#include <vector>

#include "base.h"

namespace dcz {

inline std::size_t packed_bytes(std::size_t count, unsigned width) {
    return count / 8 * width + (count % 8 * width + 7) / 8;
}

// Appends symbols, each below 2^width, packed.
void pack(const u8* symbols, std::size_t count, unsigned width, std::vector<u8>& out);

// Throws Corrupt if bits behind the last of `count` symbols, in packed_bytes(count, width) bytes, are not zero.
void expect_zero_padding(Bytes bits, std::size_t count, unsigned width);

// Unpacks `count` symbols from exactly packed_bytes(count, width) bytes. Throws Corrupt for padding that is not zero.
void unpack(Bytes bits, std::size_t count, unsigned width, u8* out);

class BitWriter {
  public:
    explicit BitWriter(std::vector<u8>& out) : out_(out) {}
    void write(u64 bits, unsigned count);  // count <= 56
    void finish();                         // fills up the last byte with zeros

  private:
    std::vector<u8>& out_;
    u64 pending_ = 0;
    unsigned filled_ = 0;
};

class BitReader {
  public:
    explicit BitReader(Bytes bytes) : bytes_(bytes) {}
    unsigned read(unsigned count);  // throws Corrupt behind the end
    std::size_t bytes_used() const { return (at_ + 7) / 8; }
    void expect_zero_padding() const;

  private:
    Bytes bytes_;
    std::size_t at_ = 0;
};

}  // namespace dcz
