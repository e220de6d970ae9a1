// Memory and copies. Device memory is reserved address space that nothing can read or write; pinned memory is real.
#include "null.h"

#include <sys/mman.h>

#include <cstring>
#include <mutex>

namespace {

struct Range {
  size_t bytes;
  null::Place place;
  bool registered;  // host memory that is somebody else's
};

std::mutex mutex;
std::map<const char *, Range> ranges;  // by their first byte; they do not overlap
std::map<int, size_t> used;            // bytes in use of each device

void *allocate(size_t bytes, null::Space space) {
  const bool on_device = space == null::Space::device;
  const int access = on_device ? PROT_NONE : PROT_READ | PROT_WRITE;
  void *pointer = mmap(nullptr, bytes ? bytes : 1, access, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pointer == MAP_FAILED) return nullptr;
  const int device = null::current_device();
  std::lock_guard<std::mutex> guard(mutex);
  ranges[static_cast<char *>(pointer)] = {bytes ? bytes : 1, {space, device}, false};
  if (on_device) used[device] += bytes;
  return pointer;
}

void release(void *pointer) {
  std::lock_guard<std::mutex> guard(mutex);
  const auto found = ranges.find(static_cast<char *>(pointer));
  if (found == ranges.end()) return;
  const Range &range = found->second;
  if (range.place.space == null::Space::device) used[range.place.device] -= range.bytes;
  if (!range.registered) munmap(pointer, range.bytes);
  ranges.erase(found);
}

size_t bytes_used() {
  std::lock_guard<std::mutex> guard(mutex);
  return used[null::current_device()];
}

const char *word(null::Space space) {
  return space == null::Space::device ? "device" : space == null::Space::pinned ? "pinned" : "pageable";
}

// Counts a copy and does what of it can be seen from the host.
void copy(void *to, const void *from, size_t bytes) {
  const null::Place source = null::place_of(from), target = null::place_of(to);
  null::count(std::string("copy ") + word(source.space) + " to " + word(target.space));
  if (target.space == null::Space::device) return;
  if (source.space == null::Space::device) {
    memset(to, 0, bytes);
  } else {
    memcpy(to, from, bytes);
  }
}

}  // namespace

null::Place null::place_of(const void *pointer) {
  std::lock_guard<std::mutex> guard(mutex);
  const char *address = static_cast<const char *>(pointer);
  auto found = ranges.upper_bound(address);
  if (found == ranges.begin()) return {Space::pageable, -1};
  --found;
  return address < found->first + found->second.bytes ? found->second.place : Place{Space::pageable, -1};
}

NULL_CUDA_API cudaError_t cudaMalloc(void **pointer, size_t bytes) {
  null::count("allocate device memory");
  if (null::refused("cudaMalloc")) return null::failed(cudaErrorStreamCaptureUnsupported);
  if (bytes_used() + bytes > null::kMemory) return null::failed(cudaErrorMemoryAllocation);
  *pointer = allocate(bytes, null::Space::device);
  return *pointer ? cudaSuccess : null::failed(cudaErrorMemoryAllocation);
}

NULL_CUDA_API cudaError_t cudaFree(void *pointer) {
  if (null::refused("cudaFree")) return null::failed(cudaErrorStreamCaptureUnsupported);
  release(pointer);
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaHostAlloc(void **pointer, size_t bytes, unsigned) {
  null::count("allocate pinned memory");
  if (null::refused("cudaHostAlloc")) return null::failed(cudaErrorStreamCaptureUnsupported);
  *pointer = allocate(bytes, null::Space::pinned);
  return *pointer ? cudaSuccess : null::failed(cudaErrorMemoryAllocation);
}

NULL_CUDA_API cudaError_t cudaFreeHost(void *pointer) {
  release(pointer);
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaHostRegister(void *pointer, size_t bytes, unsigned) {
  std::lock_guard<std::mutex> guard(mutex);
  ranges[static_cast<char *>(pointer)] = {bytes, {null::Space::pinned, -1}, true};
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaHostUnregister(void *pointer) {
  release(pointer);
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
  *free = null::kMemory - bytes_used();
  *total = null::kMemory;
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind,
                                          cudaStream_t stream) {
  if (null::capturing(stream)) {
    const null::Space source = null::place_of(from).space, target = null::place_of(to).space;
    if (source == null::Space::pageable || target == null::Space::pageable) {
      null::fault("copy of pageable memory in a capture");
      return null::failed(cudaErrorStreamCaptureUnsupported);
    }
    null::add_node(stream, false);
    return cudaSuccess;
  }
  copy(to, from, bytes);
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind) {
  if (null::refused("cudaMemcpy")) return null::failed(cudaErrorStreamCaptureUnsupported);
  null::count("synchronize by copying");
  copy(to, from, bytes);
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaMemcpyPeerAsync(void *to, int, const void *from, int, size_t bytes, cudaStream_t) {
  null::count("copy between devices");
  copy(to, from, bytes);
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaMemcpyToSymbol(const void *, const void *, size_t, size_t, cudaMemcpyKind) {
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaGetSymbolAddress(void **pointer, const void *) {
  static void *symbols = allocate(1 << 20, null::Space::device);
  *pointer = symbols;
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaMemsetAsync(void *, int, size_t, cudaStream_t stream) {
  if (!null::add_node(stream, false)) null::count("memset");
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaMemset(void *, int, size_t) {
  null::count("memset");
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *attributes, const void *pointer) {
  memset(attributes, 0, sizeof *attributes);
  const null::Place place = null::place_of(pointer);
  attributes->type = place.space == null::Space::device   ? cudaMemoryTypeDevice
                     : place.space == null::Space::pinned ? cudaMemoryTypeHost
                                                          : cudaMemoryTypeUnregistered;
  attributes->device = place.space == null::Space::pageable ? -2 : place.device;
  attributes->devicePointer = place.space == null::Space::pageable ? nullptr : const_cast<void *>(pointer);
  attributes->hostPointer = place.space == null::Space::device ? nullptr : const_cast<void *>(pointer);
  return cudaSuccess;
}

// Triton asks for the device pointer of every tensor that a kernel gets.
NULL_CUDA_API CUresult cuPointerGetAttribute(void *value, CUpointer_attribute which, CUdeviceptr pointer) {
  if (which != CU_POINTER_ATTRIBUTE_DEVICE_POINTER) return CUDA_ERROR_NOT_SUPPORTED;
  const null::Place place = null::place_of(reinterpret_cast<void *>(pointer));
  if (pointer && place.space == null::Space::pageable) {
    null::fault("a kernel gets a pointer into host memory");
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (place.space == null::Space::device && place.device != null::current_device()) {
    null::fault("a kernel on device " + std::to_string(null::current_device()) + " gets memory of device " +
                std::to_string(place.device));
  }
  *static_cast<CUdeviceptr *>(value) = pointer;
  return CUDA_SUCCESS;
}

NULL_CUDA_API cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int) {
  *pool = nullptr;
  return cudaSuccess;
}
