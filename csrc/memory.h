// Memory that is written for the first time.
#pragma once

#include "base.h"

namespace dcz {

// Asks for the whole pages of this memory at once, which is cheaper than one by one as they are written. Where the system
// cannot, they come then.
void populate(u8* memory, std::size_t size);

}  // namespace dcz
