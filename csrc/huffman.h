// Canonical, length-limited Huffman codes whose bits are kept by tree node: Huffman-shaped wavelet trees
// (docs/format.md, section 6.2).
#pragma once

#include <array>
#include <vector>

#include "base.h"
#include "kernels.h"

namespace dcz {

inline constexpr std::size_t kBlock = 65536;       // symbols
inline constexpr std::size_t kPiece = 64;          // symbols: the decoder works on whole ones
inline constexpr unsigned kMaxLength = 15;         // bits of a code
inline constexpr u8 kNoCode = 255;
inline constexpr std::size_t kPackedBelow = 8192;  // the encoder packs blocks of fewer symbols
inline constexpr std::size_t kTunedBelow = 32768;  // ... and looks for tables that are short themselves

using Histogram = std::array<u64, 256>;
using Lengths = std::array<u8, 256>;  // 0: the symbol has no code

// Calls `use` with each symbol that has a code, in ascending order. Most have none, and are next to each other.
template <class Use>
void for_each_code(const Lengths& lengths, Use use) {
    for (std::size_t s = 0; s < 256; s += 8)
        for (u64 word = load<u64>(lengths.data() + s); word != 0;) {
            const unsigned at = static_cast<unsigned>(std::countr_zero(word)) / 8;
            word &= ~(u64{0xFF} << (8 * at));
            use(s + at);
        }
}

Histogram count_symbols(const u8* symbols, std::size_t count);

// Optimal code lengths of at most `longest`, which must suffice for the number of symbols and not exceed kMaxLength. A
// single symbol gets length 1, though its code is empty.
Lengths code_lengths(const Histogram& histogram, unsigned longest = kMaxLength);

// The same, but in a small block such as take the least space together with their table.
Lengths tuned_lengths(const Histogram& histogram, std::size_t count);

// The table of a code (section 6.2), which says one number for each symbol. `at` moves behind what is read; both readers throw Corrupt.
void write_table(const Lengths& lengths, std::vector<u8>& out);
Lengths read_table(Bytes tables, std::size_t& at, unsigned width);

void write_varint(std::size_t value, std::vector<u8>& out);
std::size_t read_varint(Bytes bytes, std::size_t& at);

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

    // Are both children leaves? (In a canonical code, the left one is a leaf if the right one is.)
    bool is_pair(std::size_t node) const { return nodes[node].child[1] & kLeaf; }

    // Throws Corrupt unless the lengths are those of a complete prefix code, or there is one symbol only.
    explicit Tree(const Lengths& lengths);
};

// Whether no code can pay for a block of bytes, from a sample of it. `price`: as in huffman_encode.
bool looks_dense(const u8* symbols, std::size_t count, unsigned price);

// A whole stream. The encoder gives up and returns false, or an empty vector, when the result would not be below `limit`
// bytes, or might be by no more than some padding. What `out` held is lost; its memory is used again. `price`: what the
// decoding of a bit is worth, in 1/1024 bytes; a large block is stored unless a code saves more than that.
bool huffman_encode(const u8* symbols, std::size_t count, unsigned width, std::size_t limit, unsigned price, std::vector<u8>& out);
std::vector<u8> huffman_encode(const u8* symbols, std::size_t count, unsigned width, std::size_t limit, unsigned price);

// About the bytes of that stream, if it were one block with one table: from integers only, so that choices made by it
// are the same on every machine.
std::size_t huffman_estimate(const u8* symbols, std::size_t count);

// Decodes a stream piece by piece, so that a caller can use a piece while it is in the cache.
class HuffmanDecoder {
  public:
    // `count` symbols (at least 1) of `width` bits. Throws Corrupt if the tables are not valid.
    HuffmanDecoder(Bytes stream, std::size_t count, unsigned width);

    // Decodes the next `count` symbols, at most as many as are left: a multiple of kPiece, or all of them. The last
    // call checks that the stream is used up.
    void next(u8* out, std::size_t count);

    // The bits that each of the 256 symbols takes in each block (kNoCode: it has no code), one block behind the other. Before
    // anything is decoded.
    std::vector<u8> code_lengths() const;

  private:
    struct Block {
        u8 descriptor;
        u32 tree;  // index into trees_
    };

    void open_block();
    void open_tree(const Tree& tree, bool packed);

    Bytes data_;
    std::size_t at_ = 0;
    std::size_t remaining_;  // symbols behind the open block
    unsigned width_;
    std::size_t block_ = 0;
    std::vector<Block> blocks_;
    std::vector<Tree> trees_;

    // The open block: its root is merged as its symbols are asked for, what is below the root before that.
    enum class Mode : u8 { stored, single, tree } mode_ = Mode::stored;
    std::size_t left_in_block_ = 0;
    const u8* bits_ = nullptr;  // of the root, or stored symbols
    Child children_[2]{};
    u8 single_ = 0;
    std::vector<u8> arena_, realigned_;
    std::vector<std::size_t> counts_, offsets_;
    std::vector<u8*> places_;
};

void huffman_decode(Bytes stream, std::size_t count, unsigned width, u8* out);

// Bytes of a stream, of this coding or of cascades, that are descriptors and tables, without decoding it.
std::size_t table_bytes(Bytes stream);

}  // namespace dcz
