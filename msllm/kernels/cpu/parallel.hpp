// A small thread pool. Work is cut into chunks whose size never depends on the number of threads, so results do not
// depend on it either.
#pragma once

#include <cstdint>
#include <type_traits>

namespace msllm {

// Number of threads used, the calling one included: MSLLM_THREADS, or else the cores (not their
// hyper-threads) that this process may run on.
int thread_count();
void set_thread_count(int count);

// Calls body(context, chunk) for every chunk in [0, chunks), in any order, and returns when all are done. A call from
// inside a chunk, or while another thread uses the pool, runs on the calling thread alone.
void run_chunks(int64_t chunks, void (*body)(void* context, int64_t chunk), void* context);

// Whether the calling thread is at work on a chunk.
bool inside_chunk();

template <typename Body>
void parallel_chunks(int64_t chunks, Body&& body) {
  run_chunks(chunks,
             [](void* context, int64_t chunk) { (*static_cast<std::remove_reference_t<Body>*>(context))(chunk); },
             &body);
}

// Calls body(begin, end) for consecutive pieces of [0, total) of `size` items each (the last may be shorter).
template <typename Body>
void parallel_ranges(int64_t total, int64_t size, Body&& body) {
  parallel_chunks((total + size - 1) / size, [&](int64_t chunk) {
    const int64_t begin = chunk * size;
    body(begin, begin + size < total ? begin + size : total);
  });
}

// Items per chunk for rows of `width` numbers: about 16,384 numbers, enough to hide the cost of handing a chunk over.
inline int64_t rows_per_chunk(int64_t width) { return width >= 16384 ? 1 : 16384 / (width > 0 ? width : 1); }

}  // namespace msllm
