// Large pages for the memory that MindSpore hands out: matrix products touch rows that lie pages apart.
#pragma once

namespace msllm {

// Asks the system to back the mapping that holds this address with large pages, once a mapping. Only large anonymous
// mappings are changed; where the system cannot, nothing happens.
void ask_for_huge_pages(const void* address);

}  // namespace msllm
