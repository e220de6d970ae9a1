// Loops over the caller's thread pool, and scratch memory.
#pragma once
#include <cstdlib>
#include "titn.h"

namespace {

// calls range(begin, end) for ranges that cover [0, n)
template <class Range> void parallel(ParallelFor pool, int64_t n, const Range& range) {
  if (n == 1) return range(int64_t(0), n);
  if (n > 1) pool(0, n, 1, [](int64_t b, int64_t e, void* c) { (*(const Range*)c)(b, e); }, (void*)&range);
}

// aligned memory that ends with its scope; null where there is none left
template <class T> struct Scratch {
  T* const p;
  explicit Scratch(int64_t n) : p((T*)std::aligned_alloc(64, (n * sizeof(T) + 64) / 64 * 64)) {}
  Scratch(const Scratch&) = delete;
  ~Scratch() { std::free(p); }
  operator T*() const { return p; }
};

// set by any thread, read after the loop
struct Failure {
  int32_t raised = 0;
  void raise() { __atomic_store_n(&raised, 1, __ATOMIC_RELAXED); }
  int result() const { return raised ? TITN_NO_MEMORY : TITN_OK; }
};

}  // namespace
