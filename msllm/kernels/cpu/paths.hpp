// The paths of this build, and which of them is in use.
#pragma once

#include <vector>

#include "kernels.hpp"

namespace msllm {

// The names of the paths that this processor can run, the fastest last. No std::string here: MindSpore's binary
// interface has another one.
std::vector<const char*> path_names();

// Switches to a path of path_names(); false for any other name.
bool use_path(const char* name);

// The name of the path in use: at first the fastest.
const char* path_in_use();

// The kernels of the path in use.
const Kernels& kernels();

}  // namespace msllm
