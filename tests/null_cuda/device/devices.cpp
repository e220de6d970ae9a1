// Devices: as many NVIDIA H200 as NULL_CUDA_DEVICES says (default 1), which of them is current, what they can do.
#include "null.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

constexpr int kMostDevices = 8;
constexpr const char *kName = "NVIDIA H200";
thread_local int current = 0;
CUctx_st contexts[kMostDevices] = {{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}};

int device_count() {
  const char *text = getenv("NULL_CUDA_DEVICES");
  const int number = text ? atoi(text) : 1;
  return number < kMostDevices ? number : kMostDevices;
}

cudaError_t select(int device) {
  if (device < 0 || device >= device_count()) return null::failed(cudaErrorInvalidDevice);
  current = device;
  return cudaSuccess;
}

}  // namespace

int null::current_device() { return current; }

CUcontext null::context_of(int device) { return &contexts[device]; }

// Runtime and driver number their attributes alike.
int null::attribute(int which) {
  switch (which) {
    case cudaDevAttrMaxThreadsPerBlock: return 1024;
    case cudaDevAttrMaxBlockDimX: return 1024;
    case cudaDevAttrMaxGridDimX: return 2147483647;
    case cudaDevAttrMaxGridDimY: return 65535;
    case cudaDevAttrMaxGridDimZ: return 65535;
    case cudaDevAttrMaxSharedMemoryPerBlock: return 49152;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return 232448;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return 233472;
    case cudaDevAttrWarpSize: return 32;
    case cudaDevAttrMaxRegistersPerBlock: return 65536;
    case cudaDevAttrMaxRegistersPerMultiprocessor: return 65536;
    case cudaDevAttrClockRate: return 1980000;        // kHz
    case cudaDevAttrMemoryClockRate: return 3201000;  // kHz
    case cudaDevAttrGlobalMemoryBusWidth: return 6144;
    case cudaDevAttrL2CacheSize: return 62914560;
    case cudaDevAttrMultiProcessorCount: return 132;
    case cudaDevAttrMaxThreadsPerMultiProcessor: return 2048;
    case cudaDevAttrMaxBlocksPerMultiprocessor: return 32;
    case cudaDevAttrComputeCapabilityMajor: return 9;
    case cudaDevAttrComputeCapabilityMinor: return 0;
    default: return 1;  // the many that say whether it can do something
  }
}

NULL_CUDA_API cudaError_t cudaGetDeviceCount(int *count) {
  *count = device_count();
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaGetDevice(int *device) {
  *device = current;
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaSetDevice(int device) { return select(device); }

NULL_CUDA_API cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr which, int) {
  *value = null::attribute(which);
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int) {
  memset(properties, 0, sizeof *properties);
  strcpy(properties->name, kName);
  properties->totalGlobalMem = null::kMemory;
  properties->sharedMemPerBlock = null::attribute(cudaDevAttrMaxSharedMemoryPerBlock);
  properties->sharedMemPerBlockOptin = null::attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  properties->sharedMemPerMultiprocessor = null::attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  properties->reservedSharedMemPerBlock = 1024;
  properties->regsPerBlock = properties->regsPerMultiprocessor = null::attribute(cudaDevAttrMaxRegistersPerBlock);
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = 1024;
  properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024;
  properties->maxThreadsDim[2] = 64;
  properties->maxGridSize[0] = 2147483647;
  properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
  properties->totalConstMem = 65536;
  properties->major = 9;
  properties->multiProcessorCount = null::attribute(cudaDevAttrMultiProcessorCount);
  properties->maxThreadsPerMultiProcessor = 2048;
  properties->maxBlocksPerMultiProcessor = 32;
  properties->memoryBusWidth = 6144;
  properties->l2CacheSize = null::attribute(cudaDevAttrL2CacheSize);
  properties->asyncEngineCount = 3;
  properties->concurrentKernels = properties->unifiedAddressing = properties->canMapHostMemory = 1;
  properties->cooperativeLaunch = properties->clusterLaunch = properties->streamPrioritiesSupported = 1;
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaDeviceGetPCIBusId(char *text, int size, int device) {
  snprintf(text, size, "0000:%02x:00.0", device);
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaDeviceCanAccessPeer(int *can, int, int) {
  *can = 1;
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }

NULL_CUDA_API cudaError_t cudaDriverGetVersion(int *version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaRuntimeGetVersion(int *version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

NULL_CUDA_API CUresult cuInit(unsigned) { return CUDA_SUCCESS; }

NULL_CUDA_API CUresult cuDriverGetVersion(int *version) {
  *version = CUDA_VERSION;
  return CUDA_SUCCESS;
}

NULL_CUDA_API CUresult cuDeviceGetCount(int *count) {
  *count = device_count();
  return CUDA_SUCCESS;
}

NULL_CUDA_API CUresult cuDeviceGet(CUdevice *device, int ordinal) {
  *device = ordinal;
  return ordinal < device_count() ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

NULL_CUDA_API CUresult cuDeviceGetName(char *text, int size, CUdevice) {
  snprintf(text, size, "%s", kName);
  return CUDA_SUCCESS;
}

NULL_CUDA_API CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute which, CUdevice) {
  *value = null::attribute(which);
  return CUDA_SUCCESS;
}

NULL_CUDA_API CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  *context = null::context_of(device);
  return CUDA_SUCCESS;
}

NULL_CUDA_API CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned *flags, int *active) {
  *flags = 0;
  *active = 1;
  return CUDA_SUCCESS;
}

NULL_CUDA_API CUresult cuCtxGetCurrent(CUcontext *context) {
  *context = null::context_of(current);
  return CUDA_SUCCESS;
}

NULL_CUDA_API CUresult cuCtxSetCurrent(CUcontext context) {
  return !context || select(context->device) == cudaSuccess ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

NULL_CUDA_API CUresult cuCtxGetDevice(CUdevice *device) {
  *device = current;
  return CUDA_SUCCESS;
}

NULL_CUDA_API CUresult cuCtxGetLimit(size_t *value, CUlimit) {
  *value = 1 << 20;
  return CUDA_SUCCESS;
}

NULL_CUDA_API CUresult cuCtxSetLimit(CUlimit, size_t) { return CUDA_SUCCESS; }
