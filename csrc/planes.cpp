#include "planes.h"

#include <algorithm>
#include <optional>

#include "huffman.h"
#include "kernels.h"

namespace dcz {

void decode_planes(const std::vector<CodedStream>& planes, std::size_t count, bool rotated, u8* out) {
    const std::size_t itemsize = planes.size();
    std::vector<std::optional<HuffmanDecoder>> decoders(itemsize);
    std::vector<std::vector<u8>> blocks(itemsize);
    std::vector<const u8*> pointers(itemsize);
    for (std::size_t j = 0; j < itemsize; ++j) {
        if (planes[j].huffman) {
            decoders[j].emplace(planes[j].bytes, count, 8);
            blocks[j].resize(std::min(count, kBlock));
        } else if (planes[j].bytes.size() != count) {
            throw Corrupt("a raw plane has the wrong length");
        }
    }
    for (std::size_t start = 0; start < count; start += kBlock) {
        const std::size_t n = std::min(kBlock, count - start);
        for (std::size_t j = 0; j < itemsize; ++j) {
            if (decoders[j]) decoders[j]->next(blocks[j].data());
            pointers[j] = decoders[j] ? blocks[j].data() : planes[j].bytes.data() + start;
        }
        kernels().merge_planes(pointers.data(), n, itemsize, rotated, out + start * itemsize);
    }
}

}  // namespace dcz
