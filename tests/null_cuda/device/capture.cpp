// Stream capture and graphs, by the rules of the CUDA programming guide; one capture at a time.
#include "null.h"

#include <algorithm>
#include <memory>
#include <mutex>

namespace {

struct Capture {
  unsigned long long id;
  cudaStream_t origin;
  cudaStreamCaptureMode mode;
  std::thread::id thread;
  std::map<cudaStream_t, null::Clock> seen;  // of every stream that takes part
  null::Clock issued;                        // nodes of each stream
  long nodes = 0, kernels = 0;
};

std::recursive_mutex mutex;
std::unique_ptr<Capture> open;
unsigned long long captures = 0;
thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

bool takes_part(cudaStream_t stream) { return open && open->seen.count(stream); }

// What a call that may touch work of other streams is allowed by the thread's mode and by the capture's.
bool prohibited() {
  if (!open || thread_mode == cudaStreamCaptureModeRelaxed || open->mode == cudaStreamCaptureModeRelaxed) return false;
  const bool own = open->thread == std::this_thread::get_id();
  return own || (thread_mode == cudaStreamCaptureModeGlobal && open->mode == cudaStreamCaptureModeGlobal);
}

}  // namespace

bool null::capture_is_open() {
  std::lock_guard<std::recursive_mutex> guard(mutex);
  return open != nullptr;
}

bool null::capturing(cudaStream_t stream) {
  std::lock_guard<std::recursive_mutex> guard(mutex);
  return takes_part(stream);
}

bool null::refused(const std::string &what) {
  std::lock_guard<std::recursive_mutex> guard(mutex);
  if (!prohibited()) return false;
  fault(what + " in a capture");
  return true;
}

bool null::add_node(cudaStream_t stream, bool is_kernel) {
  std::lock_guard<std::recursive_mutex> guard(mutex);
  if (!takes_part(stream)) return false;
  open->nodes++;
  open->kernels += is_kernel;
  open->seen[stream][stream] = ++open->issued[stream];
  return true;
}

null::Ticket null::ticket(cudaStream_t stream) {
  std::lock_guard<std::recursive_mutex> guard(mutex);
  return takes_part(stream) ? Ticket{open->id, open->seen[stream]} : Ticket{};
}

bool null::same_capture(const Ticket &ticket) {
  std::lock_guard<std::recursive_mutex> guard(mutex);
  return open && ticket.id == open->id;
}

void null::join(cudaStream_t stream, const Ticket &ticket) {
  std::lock_guard<std::recursive_mutex> guard(mutex);
  Clock &clock = open->seen[stream];
  for (const auto &[other, nodes] : ticket.clock) clock[other] = std::max(clock[other], nodes);
}

NULL_CUDA_API cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  std::lock_guard<std::recursive_mutex> guard(mutex);
  null::count("capture");
  if (null::is_default(stream) || open) {
    null::fault(open ? "a second capture begins before the first has ended" : "capture of the default stream");
    return null::failed(cudaErrorStreamCaptureUnsupported);
  }
  open = std::make_unique<Capture>(Capture{++captures, stream, mode, std::this_thread::get_id(), {{stream, {}}}, {}});
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
  std::lock_guard<std::recursive_mutex> guard(mutex);
  if (!open || open->origin != stream) {
    null::fault("a capture ends on another stream than it began");
    return null::failed(cudaErrorStreamCaptureUnmatched);
  }
  const std::unique_ptr<Capture> ended = std::move(open);
  for (const auto &[other, nodes] : ended->issued) {
    if (ended->seen[stream][other] < nodes) {
      null::fault("a capture ends while a stream that was forked from it has not been joined");
      return null::failed(cudaErrorStreamCaptureUnjoined);
    }
  }
  *graph = new CUgraph_st{ended->nodes, ended->kernels};
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status) {
  *status = null::capturing(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus *status,
                                                   unsigned long long *id, cudaGraph_t *graph,
                                                   const cudaGraphNode_t **dependencies,
                                                   const cudaGraphEdgeData **edges, size_t *count) {
  std::lock_guard<std::recursive_mutex> guard(mutex);
  cudaStreamIsCapturing(stream, status);
  if (id) *id = captures;
  if (graph) *graph = nullptr;
  if (dependencies) *dependencies = nullptr;
  if (edges) *edges = nullptr;
  if (count) *count = 0;
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaStreamUpdateCaptureDependencies(cudaStream_t, cudaGraphNode_t *,
                                                              const cudaGraphEdgeData *, size_t, unsigned) {
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode *mode) {
  std::swap(thread_mode, *mode);
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *executable, cudaGraph_t graph,
                                                        unsigned long long) {
  null::count("instantiate graph");
  *executable = new CUgraphExec_st{null::current_device(), graph->nodes, graph->kernels};
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable, cudaGraph_t graph,
                                               unsigned long long flags) {
  return cudaGraphInstantiateWithFlags(executable, graph, flags);
}

NULL_CUDA_API cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  if (null::device_of(stream) != executable->device) {
    null::fault("a graph of device " + std::to_string(executable->device) + " is launched on device " +
                std::to_string(null::device_of(stream)));
  }
  if (!executable->nodes) null::fault("an empty graph is launched");
  null::count_graph(executable->device, executable->nodes, executable->kernels);
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *, size_t *count) {
  *count = graph->nodes;
  return cudaSuccess;
}

NULL_CUDA_API cudaError_t cudaGraphNodeGetDependencies(cudaGraphNode_t, cudaGraphNode_t *, cudaGraphEdgeData *,
                                                       size_t *count) {
  *count = 0;
  return cudaSuccess;
}
