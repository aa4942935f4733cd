// Range coding of single decisions, and the adaptive probabilities that steer it (docs/format.md, section 6.4.2 and 6.4.3).
// All arithmetic is on integers, and the encoder and the decoder run the same code.
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "base.h"

namespace dcz {

using i16 = std::int16_t;
using i32 = std::int32_t;
using i64 = std::int64_t;

class RangeEncoder {
  public:
    static constexpr bool kDecodes = false;
    explicit RangeEncoder(std::vector<u8>& out) : out_(out), first_(out.size()) {}

    unsigned code(unsigned bit, u32 probability) {
        const u32 bound = static_cast<u32>((static_cast<u64>(range_) * probability) >> 16);
        if (bit) {
            range_ = bound;
        } else {
            low_ += bound;
            range_ -= bound;
        }
        while (range_ < kSmallest) {
            range_ <<= 8;
            shift();
        }
        return bit;
    }

    // Ends with the number of the final interval that has the most zero bytes at its end, which are not written.
    void finish() {
        for (unsigned bytes = 4;; --bytes) {
            const u64 mask = low_bits(8 * bytes), value = (low_ + mask) & ~mask;
            if (value - low_ >= range_) continue;
            low_ = value;
            break;
        }
        for (int i = 0; i < 5; ++i) shift();
        while (out_.size() > first_ && out_.back() == 0) out_.pop_back();
    }

  private:
    static constexpr u32 kSmallest = u32{1} << 24;

    void shift() {
        if (low_ < 0xFF000000u || low_ >> 32) {
            const u8 carry = static_cast<u8>(low_ >> 32);
            if (started_) out_.push_back(static_cast<u8>(held_ + carry));
            for (; waiting_ > 0; --waiting_) out_.push_back(static_cast<u8>(0xFF + carry));
            held_ = static_cast<u8>(low_ >> 24);
            started_ = true;
        } else {
            ++waiting_;
        }
        low_ = (low_ & 0x00FFFFFFu) << 8;
    }

    std::vector<u8>& out_;
    std::size_t first_;
    u64 low_ = 0;
    u32 range_ = 0xFFFFFFFFu;
    u8 held_ = 0;
    bool started_ = false;
    u64 waiting_ = 0;  // bytes 0xFF that a carry may still turn to 0
};

class RangeDecoder {
  public:
    static constexpr bool kDecodes = true;
    explicit RangeDecoder(Bytes bytes) : bytes_(bytes) {
        for (int i = 0; i < 4; ++i) code_ = code_ << 8 | next();
        if (code_ == range_) throw Corrupt("a range stream starts outside of its interval");
    }

    unsigned code(unsigned, u32 probability) {
        const u32 bound = static_cast<u32>((static_cast<u64>(range_) * probability) >> 16);
        // A branch, not arithmetic: what is guessed rightly does not wait for the comparison.
        unsigned bit = 0;
        if (code_ < bound) [[unlikely]] {
            bit = 1;
            range_ = bound;
        } else {
            code_ -= bound;
            range_ -= bound;
        }
        while (range_ < kSmallest) {
            range_ <<= 8;
            code_ = code_ << 8 | next();
        }
        return bit;
    }

    void finish() const {
        if (at_ < bytes_.size()) throw Corrupt("a range stream is not used up");
        if (!bytes_.empty() && bytes_.back() == 0) throw Corrupt("a range stream ends with a zero byte");
    }

  private:
    static constexpr u32 kSmallest = u32{1} << 24;

    u32 next() {
        if (at_ < bytes_.size()) return bytes_[at_++];
        return 0;
    }

    Bytes bytes_;
    std::size_t at_ = 0;
    u32 code_ = 0;
    u32 range_ = 0xFFFFFFFFu;
};

// The logistic function and its inverse, as tables of an integer rule.
struct Logistic {
    static constexpr int kLimit = 2175;

    std::array<u16, 2 * kLimit + 1> squash;  // by score + kLimit
    std::array<i16, 4096> stretch;           // by probability / 16

    Logistic() {
        u64 power = u64{1} << 24;
        for (int x = 0; x <= kLimit; ++x) {
            const u64 value = std::min<u64>((power << 16) / (power + (u64{1} << 24)), 65520);
            squash[static_cast<std::size_t>(kLimit + x)] = static_cast<u16>(value);
            squash[static_cast<std::size_t>(kLimit - x)] = static_cast<u16>(65536 - value);
            power = power * 16842881 >> 24;
        }
        int x = -kLimit;
        for (int q = 0; q < 4096; ++q) {
            while (x < kLimit && squash[static_cast<std::size_t>(kLimit + x)] < 16 * q + 8) ++x;
            stretch[static_cast<std::size_t>(q)] = static_cast<i16>(x);
        }
    }
};

inline constexpr u32 kSlotLimit = 1023;

// By how much of the distance a slot moves that has seen n decisions.
struct Rates {
    std::array<u16, kSlotLimit + 1> of;
    Rates() {
        for (u32 n = 0; n <= kSlotLimit; ++n) of[n] = static_cast<u16>(655360 / (10 * n + 16));
    }
};

// The tables live as long as the program: making them takes some microseconds.
static const Logistic kLogistic;
static const Rates kRates;

// What is known in one context, in one word: the probability of a 1 in 22 bits, and in 10 how many decisions it was learnt from.
class Slot {
  public:
    // A slot that has seen nothing starts from what a wider context has learnt.
    void start_from(const Slot& wider, u32 trust) {
        if ((state_ & kSlotLimit) == 0) state_ = (wider.state_ & ~kSlotLimit) | trust;
    }

    i32 score() const { return kLogistic.stretch[state_ >> 20]; }

    // The rate is below 1, so the probability stays above -1 and below 2^22 without being held there.
    void update(unsigned bit) {
        const u32 seen = state_ & kSlotLimit;
        const i32 probability = static_cast<i32>(state_ >> 10);
        const i64 distance = (static_cast<i32>(bit) << 22) - probability;
        const i32 moved = probability + static_cast<i32>((distance * kRates.of[seen]) >> 16);
        state_ = static_cast<u32>(moved) << 10 | (seen + (seen < kSlotLimit));
    }

  private:
    u32 state_ = u32{1} << 31;
};

// A decision moves a weight by less than 2^13, so even after 2^36 of them the sum below fits its type.
using Weight = i64;

// Codes one decision: the slots' opinions are weighted in the logistic domain, and then all of them learn.
template <unsigned kShift, class Coder, std::size_t N>
inline unsigned decide(Coder& coder, unsigned bit, const std::array<Slot*, N>& slots, std::array<Weight, N>& weights) {
    std::array<i32, N> scores;
    i64 sum = 0;
    for (std::size_t i = 0; i < N; ++i) {
        scores[i] = slots[i]->score();
        sum += scores[i] * weights[i];
    }
    const i64 score = std::clamp<i64>(sum >> 16, -Logistic::kLimit, Logistic::kLimit);
    const i32 probability = kLogistic.squash[static_cast<std::size_t>(score + Logistic::kLimit)];
    bit = coder.code(bit, static_cast<u32>(probability));
    const i32 error = (bit ? 65536 : 0) - probability;
    for (std::size_t i = 0; i < N; ++i) {
        weights[i] += (scores[i] * error + (1 << (kShift - 1))) >> kShift;
        slots[i]->update(bit);
    }
    return bit;
}

}  // namespace dcz
