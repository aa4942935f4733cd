// Cascades: prefix codes of a few levels, each of fixed width, whose bits are kept in planes (docs/format.md, section 6.5).
#pragma once

#include <array>
#include <vector>

#include "base.h"
#include "huffman.h"
#include "kernels.h"

namespace dcz {

inline constexpr std::size_t kMaxLevels = kMaxLength;

// The level of each symbol, from 1 on; 0: it has no code. Written as code lengths are.
using Levels = Lengths;

// The levels of all symbols that occur, such that the bits of their codes are least, if each costs `price` / 1024 bits more
// for every level that it passes.
Levels cascade_levels(const Histogram& histogram, unsigned price);

// The code that such levels are.
struct Cascade {
    struct Level {
        unsigned width;       // bits of its codes
        std::size_t symbols;  // how many it has
        std::size_t first;    // where they start in `order`
    };

    std::vector<Level> levels;     // none for a single symbol
    std::array<u8, 512> order{};   // the symbols, level by level; 256 can be read from the start of each
    u8 only = 0;                   // the single symbol

    // Throws Corrupt unless every level but the last has one symbol less than it has codes, and the last at least two.
    explicit Cascade(const Levels& levels);
};

struct CascadeStream {
    std::vector<u8> bytes;  // none: the encoder gave up
    u64 cost = 0;           // in bytes, with what decoding them is worth
};

// A whole stream. The encoder gives up when its cost would not be below `limit`. `price`: as in cascade_levels; a block is
// stored unless a cascade saves more than that.
CascadeStream cascade_encode(const u8* symbols, std::size_t count, unsigned width, std::size_t limit, unsigned price);

// Decodes a stream piece by piece, so that a caller can use a piece while it is in the cache.
class CascadeDecoder {
  public:
    // `count` symbols (at least 1) of `width` bits. Throws Corrupt if the tables are not valid, or the data are not as long
    // as they say.
    CascadeDecoder(Bytes stream, std::size_t count, unsigned width);

    // Decodes the next `count` symbols, at most as many as are left: a multiple of kPiece, or all of them.
    void next(u8* out, std::size_t count);

    // The same as the last plane of elements, and true; or false, and nothing has happened, if that is not at hand: then a
    // caller takes the symbols and makes elements of them.
    bool next_into(const Assembly& into, std::size_t count);

    // As HuffmanDecoder's.
    std::vector<u8> code_lengths() const;

  private:
    struct Block {
        u8 mode;
        u32 cascade;         // index into cascades_
        std::size_t counts;  // index into counts_: of the symbols that pass the second level and those behind it
    };

    // A level of the open block: what is left of it, and what is decoded but not used yet, in its buffer.
    struct Open {
        unsigned width;
        std::size_t symbols;  // how many it has
        const u8* symbol_of;
        const u8* groups;
        std::size_t left;
        std::size_t begin, end;
    };

    void open_block();
    void close_block() const;
    void fetch(std::size_t count);
    void decode(std::size_t level, std::size_t count, u8* out);
    void provide(std::size_t level, std::size_t count);
    void advance(std::size_t level, std::size_t count);
    void use(std::size_t level, std::size_t count);
    u8* buffer(std::size_t level) { return buffers_.data() + (level - 1) * kBuffer; }

    // Symbols of a level that are decoded at a time. A buffer holds less than that, and as many again; and a kernel may read
    // as many from where those end.
    static constexpr std::size_t kStep = 2048;
    static constexpr std::size_t kBuffer = 3 * kStep + kSlack;

    const u8 *data_, *end_;
    std::size_t remaining_;  // symbols behind the open block
    unsigned width_;
    std::size_t block_ = 0;
    std::vector<Block> blocks_;
    std::vector<u32> counts_;
    std::vector<Cascade> cascades_;

    // The open block.
    enum class Mode : u8 { stored, single, levels } mode_ = Mode::stored;
    std::size_t left_in_block_ = 0;
    u8 single_ = 0;
    const u8* ahead_ = nullptr;  // how far the next block is fetched
    std::size_t bytes_ = 0;      // of this one
    std::vector<Open> open_;
    std::vector<u8> buffers_;
};

void cascade_decode(Bytes stream, std::size_t count, unsigned width, u8* out);

}  // namespace dcz
