#include "parallel.hpp"

#include <pthread.h>
#include <signal.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <fstream>
#include <mutex>
#include <set>
#include <string>
#include <thread>

namespace msllm {
namespace {

// Kernels follow each other within microseconds during a step, so a worker spins this long before it sleeps.
constexpr std::chrono::microseconds kSpin(500);

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <typename Condition>
bool spin_until(Condition&& condition) {
  const auto stop = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (condition()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < stop);
  return false;
}

thread_local bool inside = false;

struct InsideChunk {
  const bool before = inside;
  InsideChunk() { inside = true; }
  ~InsideChunk() { inside = before; }
};

class Pool {
 public:
  void run(int64_t chunks, void (*body)(void*, int64_t), void* context, int threads) {
    while (workers_ < threads - 1) {
      std::thread(&Pool::work, this, workers_++).detach();
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      body_ = body;
      context_ = context;
      chunks_ = chunks;
      next_.store(0, std::memory_order_relaxed);
      helpers_wanted_ = threads - 1;
      open_ = true;
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    claim();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      open_ = false;  // a worker that wakes up from now on finds nothing to join
    }
    if (!spin_until([this] { return active_.load(std::memory_order_acquire) == 0; })) {
      std::unique_lock<std::mutex> lock(mutex_);
      done_.wait(lock, [this] { return active_.load(std::memory_order_acquire) == 0; });
    }
  }

 private:
  void claim() {
    for (;;) {
      const int64_t chunk = next_.fetch_add(1, std::memory_order_relaxed);
      if (chunk >= chunks_) return;
      const InsideChunk mark;
      body_(context_, chunk);
    }
  }

  void work(int index) {
    sigset_t all;  // signals are the main thread's business
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, nullptr);
    uint64_t seen = 0;
    for (;;) {
      const auto news = [this, &seen] { return generation_.load(std::memory_order_acquire) != seen; };
      const bool ready = spin_until(news);
      {
        std::unique_lock<std::mutex> lock(mutex_);
        if (!ready) wake_.wait(lock, news);
        seen = generation_.load(std::memory_order_relaxed);
        if (!open_ || index >= helpers_wanted_) continue;
        active_.fetch_add(1, std::memory_order_relaxed);
      }
      claim();
      std::lock_guard<std::mutex> lock(mutex_);
      if (active_.fetch_sub(1, std::memory_order_release) == 1) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int64_t> next_{0};
  std::atomic<int> active_{0};
  bool open_ = false;
  int workers_ = 0, helpers_wanted_ = 0;
  int64_t chunks_ = 0;
  void (*body_)(void*, int64_t) = nullptr;
  void* context_ = nullptr;
};

// Never destroyed: its threads wait in it until the process ends. A forked child has no such threads, so it starts
// over with a new pool.
std::atomic<Pool*> pool{nullptr};
std::atomic_flag pool_in_use = ATOMIC_FLAG_INIT;

void forget_pool_in_child() {
  pool.store(nullptr);
  pool_in_use.clear();
}

// The cores behind the processors of a set: two that share a core share its arithmetic units too. A processor whose
// core the system does not tell counts as one.
int core_count(const cpu_set_t& set) {
  std::set<std::string> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &set)) continue;
    std::string siblings = "cpu " + std::to_string(cpu);
    std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
    std::getline(file, siblings);
    cores.insert(siblings.empty() ? "cpu " + std::to_string(cpu) : siblings);
  }
  return static_cast<int>(cores.size());
}

int default_thread_count() {
  if (const char* text = std::getenv("MSLLM_THREADS")) {
    const int count = std::atoi(text);
    if (count > 0) return count;
  }
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return core_count(set);
  const int count = static_cast<int>(std::thread::hardware_concurrency());
  return count > 0 ? count : 1;
}

std::atomic<int>& threads() {
  static std::atomic<int> count{default_thread_count()};
  return count;
}

}  // namespace

int thread_count() { return threads().load(std::memory_order_relaxed); }

bool inside_chunk() { return inside; }

void set_thread_count(int count) { threads().store(count > 0 ? count : default_thread_count()); }

void run_chunks(int64_t chunks, void (*body)(void* context, int64_t chunk), void* context) {
  const int count = thread_count();
  if (chunks <= 1 || count == 1 || pool_in_use.test_and_set(std::memory_order_acquire)) {
    const InsideChunk mark;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) body(context, chunk);
    return;
  }
  Pool* current = pool.load();
  if (current == nullptr) {
    static const int registered = pthread_atfork(nullptr, nullptr, forget_pool_in_child);
    (void)registered;
    current = new Pool;
    pool.store(current);
  }
  current->run(chunks, body, context, static_cast<int>(count < chunks ? count : chunks));
  pool_in_use.clear(std::memory_order_release);
}

}  // namespace msllm
