#pragma once

#include <nanobind/nanobind.h>

namespace dcz {

void bind_clustering(nanobind::module_& m);

}  // namespace dcz
