#include "cpu.h"

#include <atomic>
#include <cstdlib>
#include <optional>

namespace dcz {

namespace {

#if defined(__x86_64__)
bool has(Isa isa) {
    switch (isa) {
        case Isa::avx512:
            return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
                   __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("gfni") && __builtin_cpu_supports("avx512vpopcntdq") &&
                   has(Isa::avx2);
        case Isa::avx2:
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                   __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("f16c");
        case Isa::portable:
            return true;
    }
    return false;
}
#else
bool has(Isa isa) { return isa == Isa::portable; }
#endif

constexpr Isa kBestFirst[] = {Isa::avx512, Isa::avx2, Isa::portable};

Isa best() {
    for (Isa isa : kBestFirst)
        if (has(isa)) return isa;
    return Isa::portable;
}

std::optional<Isa> named(std::string_view name) {
    for (Isa isa : kBestFirst)
        if (isa_name(isa) == name && has(isa)) return isa;
    return std::nullopt;
}

Isa from_environment() {
    const char* name = std::getenv("DCZ_KERNEL");
    if (name == nullptr || *name == '\0') return best();
    if (const auto isa = named(name)) return *isa;
    throw UnknownIsa(name);
}

constexpr int kUndecided = -1;
std::atomic<int> active{kUndecided};

}  // namespace

std::string_view isa_name(Isa isa) {
    switch (isa) {
        case Isa::avx512: return "avx512";
        case Isa::avx2: return "avx2";
        case Isa::portable: break;
    }
    return "portable";
}

std::vector<std::string_view> available_isas() {
    std::vector<std::string_view> names;
    for (Isa isa : kBestFirst)
        if (has(isa)) names.push_back(isa_name(isa));
    return names;
}

Isa active_isa() {
    int isa = active.load(std::memory_order_relaxed);
    if (isa == kUndecided) {
        int expected = kUndecided;
        isa = static_cast<int>(from_environment());
        if (!active.compare_exchange_strong(expected, isa, std::memory_order_relaxed)) isa = expected;
    }
    return static_cast<Isa>(isa);
}

bool force_isa(std::string_view name) {
    const auto isa = named(name);
    if (isa) active.store(static_cast<int>(*isa), std::memory_order_relaxed);
    return isa.has_value();
}

}  // namespace dcz
