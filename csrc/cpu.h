// Which instruction set the kernels use: chosen once, by what the processor has, or forced by name.
#pragma once

#include <string_view>
#include <vector>

namespace dcz {

enum class Isa { portable, avx2, avx512 };

// The sets that this processor has, by name, best first: "avx512" (F, BW, VL, VBMI, VBMI2, VPOPCNTDQ, BMI2),
// "avx2" (AVX2, BMI1, BMI2, POPCNT), "portable".
std::vector<std::string_view> available_isas();

Isa active_isa();
std::string_view isa_name(Isa isa);

// Forces a set. False if the processor lacks it or there is none of that name.
bool force_isa(std::string_view name);

}  // namespace dcz
