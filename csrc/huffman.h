// Canonical, length-limited Huffman codes whose bits are kept by tree node: Huffman-shaped wavelet trees
// (docs/format.md, section 6.2).
#pragma once

#include <array>
#include <vector>

#include "base.h"

namespace dcz {

inline constexpr std::size_t kBlock = 65536;       // symbols
inline constexpr unsigned kMaxLength = 15;         // bits of a code
inline constexpr std::size_t kPackedBelow = 8192;  // the encoder packs blocks of fewer symbols
inline constexpr std::size_t kTunedBelow = 32768;  // ... and looks for tables that are short themselves

using Histogram = std::array<u64, 256>;
using Lengths = std::array<u8, 256>;  // 0: the symbol has no code

Histogram count_symbols(const u8* symbols, std::size_t count);

// Optimal code lengths of at most `longest`, which must suffice for the number of symbols and not exceed kMaxLength. A
// single symbol gets length 1, though its code is empty.
Lengths code_lengths(const Histogram& histogram, unsigned longest = kMaxLength);

// The tree of a canonical code.
struct Tree {
    struct Node {
        // An inner node's number, or kLeaf | symbol.
        std::array<u16, 2> child;
        u8 first_right;  // rank of the first symbol of the right subtree: what the encoder compares with
    };
    static constexpr u16 kLeaf = 0x100;

    std::vector<Node> nodes;     // level by level; empty for a single symbol
    std::array<u8, 256> rank{};  // of each symbol, in the order of the codes
    u8 only = 0;                 // the single symbol

    // Throws Corrupt unless the lengths are those of a complete prefix code, or there is one symbol only.
    explicit Tree(const Lengths& lengths);
};

// A whole stream. The encoder gives up and returns an empty vector when the result would not be below `limit`
// bytes, or might be by no more than some padding.
std::vector<u8> huffman_encode(const u8* symbols, std::size_t count, unsigned width, std::size_t limit);

// About the bytes of that stream, if it were one block with one table: from integers only, so that choices made by it
// are the same on every machine.
std::size_t huffman_estimate(const u8* symbols, std::size_t count);

// Decodes a stream block by block, so that a caller can use a block while it is in the cache.
class HuffmanDecoder {
  public:
    // `count` symbols (at least 1) of `width` bits. Throws Corrupt if the tables are not valid.
    HuffmanDecoder(Bytes stream, std::size_t count, unsigned width);

    std::size_t remaining() const { return remaining_; }

    // Decodes the next block into out, min(kBlock, remaining()) symbols, and returns their number. The last call checks
    // that the stream is used up.
    std::size_t next(u8* out);

    std::size_t table_bytes() const { return table_bytes_; }

  private:
    struct Block {
        u8 descriptor;
        u32 tree;  // index into trees_
    };

    void decode(const Tree& tree, bool packed, std::size_t count, u8* out);

    Bytes data_;
    std::size_t at_ = 0;
    std::size_t remaining_;
    std::size_t table_bytes_;
    unsigned width_;
    std::size_t block_ = 0;
    std::vector<Block> blocks_;
    std::vector<Tree> trees_;
    std::vector<u8> arena_, realigned_;
    std::vector<std::size_t> counts_, offsets_, places_;
};

void huffman_decode(Bytes stream, std::size_t count, unsigned width, u8* out);

// Bytes of a stream that are descriptors and tables, without decoding it.
std::size_t huffman_table_bytes(Bytes stream);

}  // namespace dcz
