// The canonical MessagePack of a manifest (docs/format.md, section 3), checked before anything is made of it.
#pragma once

#include "base.h"

namespace dcz {

struct Tally {
    u64 containers = 0;  // maps and arrays
    u64 items = 0;       // everything else, keys too
};

// Throws Corrupt unless `data` is exactly one map in canonical form, nested at most `max_depth` deep.
Tally check_messagepack(Bytes data, unsigned max_depth);

}  // namespace dcz
