#include "batch.h"

#include <algorithm>
#include <stdexcept>

namespace dcz {

namespace {

void require(bool condition, const char* what) {
    if (!condition) throw std::invalid_argument(what);
}

std::size_t elements_of(const BatchTensor& tensor, std::size_t segment) {
    return static_cast<std::size_t>(std::min(tensor.segment, tensor.elements - segment * tensor.segment));
}

}  // namespace

void Batch::add(BatchTensor tensor) {
    require(tensor.segment > 0 && tensor.segment <= ~u32{0} && tensor.elements < u64{1} << 62, "a segment has 1 to 2^32 - 1 elements");
    const std::size_t segments = (tensor.elements + tensor.segment - 1) / tensor.segment;
    const bool dense = tensor.decoder->is_dense();
    require(tensors_.size() < ~u32{0} && segments < ~u32{0}, "there are fewer than 2^32 - 1 tensors and segments");
    require(tensor.lengths.size() == tensor.codings.size() && tensor.codings.size() == segments * tensor.decoder->segment_streams(),
            "one coding and one length for each stream");
    require(tensor.entries.size() == (dense ? 0 : segments), "one count of entries for each segment of a layout that is not dense");
    require(tensor.gaps.size() == (tensor.decoder->has_gaps() ? segments : 0), "one count of gaps for each segment with gaps");
    require(std::all_of(tensor.codings.begin(), tensor.codings.end(), is_native), "streams of other codings are decoded elsewhere");
    require(tensor.first_part <= part_chunks_.size() && segments <= part_chunks_.size() - tensor.first_part &&
                part_starts_.size() == part_chunks_.size(),
            "a part has no place");
    for (std::size_t i = 0; i < segments; ++i) {
        const std::size_t part = tensor.first_part + i;
        require(part_starts_[part] >= 0, "a part starts before its chunk");
        jobs_[part_chunks_[part]].push_back(
            {static_cast<u32>(tensors_.size()), static_cast<u32>(i), static_cast<std::size_t>(part_starts_[part])});
    }
    tensors_.push_back(std::move(tensor));
}

std::map<std::int64_t, u64> Batch::sizes() const {
    std::map<std::int64_t, u64> sizes;
    for (const auto& [chunk, jobs] : jobs_)
        for (const Job& job : jobs) {
            const BatchTensor& tensor = tensors_[job.tensor];
            sizes[chunk] += elements_of(tensor, job.segment) * tensor.decoder->itemsize();
        }
    return sizes;
}

void Batch::decode(const Job& job, Bytes data, std::vector<CodedStream>& streams) const {
    const BatchTensor& tensor = tensors_[job.tensor];
    const SegmentDecoder& decoder = *tensor.decoder;
    const std::size_t elements = elements_of(tensor, job.segment);
    const std::size_t entries = tensor.entries.empty() ? elements : tensor.entries[job.segment];
    decoder.describe(elements, entries, tensor.gaps.empty() ? 0 : tensor.gaps[job.segment], tensor.bits, streams);
    std::size_t at = job.start, stream = job.segment * streams.size();
    for (CodedStream& coded : streams) {
        const std::size_t length = tensor.lengths[stream];
        require(at <= data.size() && length <= data.size() - at, "a stream is not in the chunk");
        coded.coding = static_cast<Coding>(tensor.codings[stream++]);
        coded.bytes = data.subspan(at, length);
        at += length;
    }
    const u64 first = job.segment * tensor.segment;
    const bool streaming = elements * decoder.itemsize() >= streamed_;
    decoder.decode({first, elements, entries, streams}, streaming, tensor.out + first * decoder.itemsize());
}

std::optional<Batch::Failure> Batch::decode(std::int64_t chunk, Bytes data) const {
    const auto found = jobs_.find(chunk);
    if (found == jobs_.end()) return std::nullopt;
    std::vector<CodedStream> streams;
    for (const Job& job : found->second) {
        try {
            decode(job, data, streams);
        } catch (const Corrupt& e) {
            return Failure{job.tensor, job.segment, e.what()};
        }
    }
    return std::nullopt;
}

}  // namespace dcz
