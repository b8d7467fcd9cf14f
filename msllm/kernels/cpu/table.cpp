// This path's table.
#include "kernels.hpp"

namespace msllm {
namespace MSLLM_PATH {

extern const Kernels table;  // "extern", as a constant is hidden in its source otherwise
const Kernels table = {
#define MSLLM_KERNEL(name) &MSLLM_PATH::name,
#include "kernel_names.inc"
#undef MSLLM_KERNEL
};

}  // namespace MSLLM_PATH
}  // namespace msllm
