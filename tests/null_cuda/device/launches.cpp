// Kernel launches: of PyTorch's own kernels through the runtime, of Triton's and inductor's through the driver.
#include "null.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <mutex>

struct CUfunc_st {
  std::string name;
};

struct CUmod_st {};

namespace {

std::mutex mutex;
std::map<const void *, std::string> names;  // of PyTorch's kernels, by their host function
thread_local cudaError_t last_error = cudaSuccess;

struct Configuration {
  dim3 grid, block;
  size_t shared_bytes;
  cudaStream_t stream;
};
thread_local Configuration pushed;

std::string name_of(const void *function) {
  std::lock_guard<std::mutex> guard(mutex);
  const auto found = names.find(function);
  return found == names.end() ? "unknown" : found->second;
}

bool fits(dim3 grid, dim3 block, size_t shared_bytes) {
  const bool has_blocks = grid.x && grid.y && grid.z && block.x && block.y && block.z;
  const bool in_grid = grid.x <= 2147483647u && grid.y <= 65535 && grid.z <= 65535;
  const bool in_block = block.x <= 1024 && block.y <= 1024 && block.z <= 64 && block.x * block.y * block.z <= 1024;
  return has_blocks && in_grid && in_block &&
         shared_bytes <= size_t(null::attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
}

CUresult driver_launch(CUfunction function, dim3 grid, dim3 block, size_t shared_bytes, CUstream stream) {
  const cudaError_t error = null::launch(function->name, grid, block, shared_bytes, stream);
  return error == cudaSuccess ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult load(CUmodule *module) {
  null::count("load module");
  if (null::refused("loading a module")) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  *module = new CUmod_st;
  return CUDA_SUCCESS;
}

}  // namespace

cudaError_t null::failed(cudaError_t error) { return last_error = error; }

cudaError_t null::launch(const std::string &name, cudaStream_t stream) {
  const int device = device_of(stream);
  if (device != current_device()) {
    fault(name + " is launched on a stream of device " + std::to_string(device) + " while device " +
          std::to_string(current_device()) + " is current");
    return failed(cudaErrorInvalidResourceHandle);
  }
  if (add_node(stream, true)) {
    count_captured(name);
    return cudaSuccess;
  }
  if (capture_is_open()) fault(name + " is launched beside a capture");
  count_launch(device, name);
  return cudaSuccess;
}

cudaError_t null::launch(const std::string &name, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream) {
  if (!fits(grid, block, shared_bytes)) {
    char sizes[160];
    snprintf(sizes, sizeof sizes, " cannot have %u x %u x %u blocks of %u x %u x %u threads and %zu bytes", grid.x,
             grid.y, grid.z, block.x, block.y, block.z, shared_bytes);
    fault(name + sizes);
    return failed(cudaErrorInvalidConfiguration);
  }
  return launch(name, stream);
}

// Errors

NULL_CUDA_API cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

NULL_CUDA_API cudaError_t cudaPeekAtLastError() { return last_error; }

NULL_CUDA_API const char *cudaGetErrorName(cudaError_t error) {
  static thread_local char text[48];
  snprintf(text, sizeof text, "error %d of the null CUDA device", static_cast<int>(error));
  return text;
}

NULL_CUDA_API const char *cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

NULL_CUDA_API CUresult cuGetErrorString(CUresult error, const char **text) {
  *text = cudaGetErrorName(static_cast<cudaError_t>(error));
  return CUDA_SUCCESS;
}

NULL_CUDA_API CUresult cuGetErrorName(CUresult error, const char **text) { return cuGetErrorString(error, text); }

// The runtime's launches, as nvcc's host code makes them

NULL_CUDA_API void **__cudaRegisterFatBinary(void *) {
  static void *handle[4];
  return handle;
}

NULL_CUDA_API void __cudaRegisterFatBinaryEnd(void **) {}

NULL_CUDA_API void __cudaUnregisterFatBinary(void **) {}

NULL_CUDA_API void __cudaRegisterVar(void **, char *, char *, const char *, int, size_t, int, int) {}

NULL_CUDA_API void __cudaRegisterFunction(void **, const char *function, char *, const char *name, int, void *, void *,
                                          void *, void *, int *) {
  std::lock_guard<std::mutex> guard(mutex);
  names[function] = name;
}

NULL_CUDA_API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, CUstream_st *stream) {
  pushed = {grid, block, shared_bytes, stream};
  return 0;
}

NULL_CUDA_API cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared_bytes, void *stream) {
  *grid = pushed.grid;
  *block = pushed.block;
  *shared_bytes = pushed.shared_bytes;
  *static_cast<cudaStream_t *>(stream) = pushed.stream;
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void *>(function));
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **, size_t shared_bytes,
                                             cudaStream_t stream) {
  return null::launch(name_of(kernel), grid, block, shared_bytes, stream);
}

NULL_CUDA_API cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **, size_t shared_bytes,
                                           cudaStream_t stream) {
  return null::launch(name_of(function), grid, block, shared_bytes, stream);
}

NULL_CUDA_API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *function, void **) {
  return null::launch(name_of(function), config->gridDim, config->blockDim, config->dynamicSmemBytes, config->stream);
}

NULL_CUDA_API cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, const void *) {
  memset(attributes, 0, sizeof *attributes);
  attributes->maxThreadsPerBlock = 1024;
  attributes->numRegs = 32;
  attributes->ptxVersion = attributes->binaryVersion = 90;
  attributes->maxDynamicSharedSizeBytes = 49152;
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaFuncSetAttribute(const void *, cudaFuncAttribute, int) { return cudaSuccess; }

NULL_CUDA_API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *, int, size_t,
                                                                                 unsigned) {
  *blocks = 4;
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaProfilerStart() { return cudaSuccess; }

NULL_CUDA_API cudaError_t cudaProfilerStop() { return cudaSuccess; }

// The driver's launches

NULL_CUDA_API CUresult cuModuleLoadData(CUmodule *module, const void *) { return load(module); }

NULL_CUDA_API CUresult cuModuleLoad(CUmodule *module, const char *) { return load(module); }

NULL_CUDA_API CUresult cuModuleUnload(CUmodule module) {
  delete module;
  return CUDA_SUCCESS;
}

NULL_CUDA_API CUresult cuModuleGetFunction(CUfunction *function, CUmodule, const char *name) {
  *function = new CUfunc_st{name};
  return CUDA_SUCCESS;
}

NULL_CUDA_API CUresult cuFuncGetAttribute(int *value, CUfunction_attribute which, CUfunction) {
  *value = which == CU_FUNC_ATTRIBUTE_NUM_REGS ? 64 : which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}

NULL_CUDA_API CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }

NULL_CUDA_API CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }

NULL_CUDA_API CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **, void **) {
  return driver_launch(function, {config->gridDimX, config->gridDimY, config->gridDimZ},
                       {config->blockDimX, config->blockDimY, config->blockDimZ}, config->sharedMemBytes,
                       config->hStream);
}

NULL_CUDA_API CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                                      unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                                      CUstream stream, void **, void **) {
  return driver_launch(function, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes, stream);
}

NULL_CUDA_API CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction, const CUlaunchConfig *) {
  *clusters = 8;
  return CUDA_SUCCESS;
}

// The driver as a table: PyTorch asks for each function by name when it first needs one of them.
NULL_CUDA_API cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned,
                                                           unsigned long long,
                                                           cudaDriverEntryPointQueryResult *result) {
  *function = dlsym(RTLD_DEFAULT, name);
  if (result) *result = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return *function ? cudaSuccess : cudaErrorSymbolNotFound;
}
