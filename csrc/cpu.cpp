#include "cpu.h"

#include <atomic>

namespace dcz {

namespace {

#if defined(__x86_64__)
bool has(Isa isa) {
    switch (isa) {
        case Isa::avx512:
            return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
                   __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512vpopcntdq") &&
                   has(Isa::avx2);
        case Isa::avx2:
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                   __builtin_cpu_supports("popcnt");
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

std::atomic<Isa>& active() {
    static std::atomic<Isa> isa{best()};
    return isa;
}

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

Isa active_isa() { return active().load(std::memory_order_relaxed); }

bool force_isa(std::string_view name) {
    for (Isa isa : kBestFirst)
        if (isa_name(isa) == name && has(isa)) {
            active().store(isa, std::memory_order_relaxed);
            return true;
        }
    return false;
}

}  // namespace dcz
