#include "bits.h"

#include "kernels.h"

namespace dcz {

void pack(const u8* symbols, std::size_t count, unsigned width, std::vector<u8>& out) {
    if (width == 8) {
        out.insert(out.end(), symbols, symbols + count);
        return;
    }
    BitWriter writer(out);
    for (std::size_t i = 0; i < count; ++i) writer.write(symbols[i], width);
    writer.finish();
}

void expect_zero_padding(Bytes bits, std::size_t count, unsigned width) {
    const auto used = static_cast<unsigned>((count * width) % 8);
    if (used != 0 && bits.back() >> used) throw Corrupt("padding bits of a packed stream are not zero");
}

void unpack(Bytes bits, std::size_t count, unsigned width, u8* out) {
    if (bits.size() != packed_bytes(count, width)) throw Corrupt("a packed stream has the wrong length");
    expect_zero_padding(bits, count, width);
    kernels().unpack(bits.data(), count, width, out);
}

void BitWriter::write(u64 bits, unsigned count) {
    pending_ |= bits << filled_;
    filled_ += count;
    while (filled_ >= 8) {
        out_.push_back(static_cast<u8>(pending_));
        pending_ >>= 8;
        filled_ -= 8;
    }
}

void BitWriter::finish() {
    if (filled_ > 0) out_.push_back(static_cast<u8>(pending_));
    pending_ = 0;
    filled_ = 0;
}

unsigned BitReader::read(unsigned count) {
    if (at_ / 8 + 8 <= bytes_.size()) {
        const u64 word = load<u64>(bytes_.data() + at_ / 8) >> (at_ % 8);
        at_ += count;
        return static_cast<unsigned>(word & low_bits(count));
    }
    unsigned value = 0;
    for (unsigned i = 0; i < count; ++i, ++at_) {
        if (at_ / 8 >= bytes_.size()) throw Corrupt("a code table is cut off");
        value |= static_cast<unsigned>((bytes_[at_ / 8] >> (at_ % 8)) & 1) << i;
    }
    return value;
}

void BitReader::expect_zero_padding() const {
    if (at_ % 8 != 0 && bytes_[at_ / 8] >> (at_ % 8)) throw Corrupt("padding bits of a code table are not zero");
}

}  // namespace dcz
