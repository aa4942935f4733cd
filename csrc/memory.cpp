#include "memory.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace dcz {

void populate([[maybe_unused]] u8* memory, [[maybe_unused]] std::size_t size) {
#if defined(__linux__)
    constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE, of Linux 5.14
    const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
    const std::uintptr_t start = reinterpret_cast<std::uintptr_t>(memory), from = (start + page - 1) / page * page;
    const std::uintptr_t to = (start + size) / page * page;
    if (from < to) (void)madvise(reinterpret_cast<void*>(from), to - from, kPopulateWrite);
#endif
}

}  // namespace dcz
