// Many whole tensors, decoded chunk by chunk: what is in a chunk is found once, and decoded in one call.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "segment.h"

namespace dcz {

// A tensor of which every stream has a coding that CodedStream knows.
struct BatchTensor {
    const SegmentDecoder* decoder;
    std::size_t first_part;        // of its segments, among all parts of the file
    unsigned bits;                 // of a code
    u64 elements, segment;         // all, and in a segment
    std::vector<u8> codings;       // of all streams of its segments
    std::vector<u32> lengths;      // stored bytes of each
    std::vector<u32> entries;      // of each segment, unless the layout is dense
    std::vector<u32> gaps;         // of each segment, if the layout is relative-index
    u8* out;
};

class Batch {
  public:
    // For each part of the file, its chunk and where it starts in it. Segments of at least `streamed` bytes are written around
    // the caches.
    Batch(std::vector<std::int64_t> part_chunks, std::vector<std::int64_t> part_starts, std::size_t streamed)
        : part_chunks_(std::move(part_chunks)), part_starts_(std::move(part_starts)), streamed_(streamed) {}

    // Throws std::invalid_argument unless the numbers agree.
    void add(BatchTensor tensor);

    // For each chunk that is needed, the decoded bytes of the segments in it. Chunk -1 holds the parts without bytes.
    std::map<std::int64_t, u64> sizes() const;

    struct Failure {
        std::size_t tensor, segment;  // in the order of `add`
        std::string reason;
    };

    // Decodes the segments of a chunk; those of different chunks may be decoded at the same time. Throws
    // std::invalid_argument if the chunk is shorter than its parts.
    std::optional<Failure> decode(std::int64_t chunk, Bytes data) const;

  private:
    struct Job {
        u32 tensor, segment;
        std::size_t start;
    };

    void decode(const Job& job, Bytes data, std::vector<CodedStream>& streams) const;

    std::vector<std::int64_t> part_chunks_, part_starts_;
    std::size_t streamed_;
    std::vector<BatchTensor> tensors_;
    std::map<std::int64_t, std::vector<Job>> jobs_;
};

}  // namespace dcz
