// Which instruction set the kernels use: the best that the processor has, or one forced by name, by a call or by the
// environment variable DCZ_KERNEL.
#pragma once

#include <stdexcept>
#include <string_view>
#include <vector>

namespace dcz {

enum class Isa { portable, avx2, avx512 };

// The sets that this processor has, by name, best first: "avx512" (F, BW, VL, VBMI, VBMI2, VPOPCNTDQ, GFNI, BMI2),
// "avx2" (AVX2, BMI1, BMI2, POPCNT), "portable".
std::vector<std::string_view> available_isas();

// DCZ_KERNEL holds something else than one of these names. Becomes dcz.errors.UsageError.
struct UnknownIsa : std::runtime_error {
    using std::runtime_error::runtime_error;  // what() is what it holds
};

// DCZ_KERNEL is read when this is called for the first time, and so when a kernel is first used; being empty is as good
// as not being set. Throws UnknownIsa, each time, until force_isa succeeds.
Isa active_isa();
std::string_view isa_name(Isa isa);

// Forces a set. False if the processor lacks it or there is none of that name.
bool force_isa(std::string_view name);

}  // namespace dcz
