#include "kernels.h"

#include "cpu.h"

namespace dcz {

const Kernels& kernels() {
#if defined(__x86_64__)
    switch (active_isa()) {
        case Isa::avx512: return kAvx512Kernels;
        case Isa::avx2: return kAvx2Kernels;
        case Isa::portable: break;
    }
#endif
    return kPortableKernels;
}

}  // namespace dcz
