// Streams, events and waiting for them. Everything is finished as soon as it is issued.
#include "null.h"

#include <ctime>

namespace {

double now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec + 1e-9 * time.tv_nsec;
}

cudaError_t make_stream(cudaStream_t *stream) {
  *stream = new CUstream_st{null::current_device()};
  return cudaSuccess;
}

cudaError_t wait_refused(const char *what) {
  return null::refused(what) ? null::failed(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}

}  // namespace

bool null::is_default(cudaStream_t stream) { return reinterpret_cast<size_t>(stream) <= 2; }

int null::device_of(cudaStream_t stream) { return is_default(stream) ? current_device() : stream->device; }

NULL_CUDA_API cudaError_t cudaStreamCreate(cudaStream_t *stream) { return make_stream(stream); }

NULL_CUDA_API cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) { return make_stream(stream); }

NULL_CUDA_API cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned, int) {
  return make_stream(stream);
}

NULL_CUDA_API cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaStreamGetPriority(cudaStream_t, int *priority) {
  *priority = 0;
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaDeviceSynchronize() {
  null::count("synchronize device");
  return wait_refused("cudaDeviceSynchronize");
}

NULL_CUDA_API cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  null::count("synchronize stream");
  if (null::capturing(stream)) {
    null::fault("cudaStreamSynchronize of a stream that is captured");
    return null::failed(cudaErrorStreamCaptureUnsupported);
  }
  return wait_refused("cudaStreamSynchronize");
}

NULL_CUDA_API cudaError_t cudaStreamQuery(cudaStream_t stream) {
  if (null::capturing(stream)) {
    null::fault("cudaStreamQuery of a stream that is captured");
    return null::failed(cudaErrorStreamCaptureUnsupported);
  }
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (null::same_capture(event->ticket)) {
    null::join(stream, event->ticket);
  } else if (null::capturing(stream) && event->seconds > 0) {
    null::fault("a captured stream waits for an event from outside of the capture");
    return null::failed(cudaErrorStreamCaptureIsolation);
  }
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaEventCreate(cudaEvent_t *event) {
  *event = new CUevent_st{null::current_device(), 0, {}};
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) { return cudaEventCreate(event); }

NULL_CUDA_API cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (event->device != null::device_of(stream)) {
    null::fault("an event of device " + std::to_string(event->device) + " is recorded on a stream of device " +
                std::to_string(null::device_of(stream)));
    return null::failed(cudaErrorInvalidResourceHandle);
  }
  event->seconds = now();
  event->ticket = null::ticket(stream);
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  return cudaEventRecord(event, stream);
}

NULL_CUDA_API cudaError_t cudaEventQuery(cudaEvent_t) { return wait_refused("cudaEventQuery"); }

NULL_CUDA_API cudaError_t cudaEventSynchronize(cudaEvent_t) {
  null::count("synchronize event");
  return wait_refused("cudaEventSynchronize");
}

NULL_CUDA_API cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
  const double elapsed = 1e3 * (end->seconds - start->seconds);
  *milliseconds = elapsed > 0 ? elapsed : 1e-3;
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t function, void *data,
                                                unsigned) {
  function(stream, cudaSuccess, data);
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t function, void *data) {
  function(data);
  return cudaSuccess;
}
