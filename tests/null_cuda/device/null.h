// A CUDA device that does not exist: what its parts share.
//
// Preloaded into a process, this library takes the place of the CUDA runtime, the driver and cuBLAS. Memory of the
// device is address space without access, so that a host access crashes as it would with a real one; whatever is read
// back from it is zero; kernels are counted and do nothing. What a real device would refuse is refused with its error
// and written down as a fault, and so is what it would take but nobody can want: a kernel on another device than its
// data, an empty graph, work beside a capture.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <map>
#include <string>
#include <thread>

#define NULL_CUDA_API extern "C" __attribute__((visibility("default")))

struct CUctx_st {
  int device;
};

namespace null {

// Work that a stream has seen during a capture: how many nodes of each stream come before its next one.
using Clock = std::map<cudaStream_t, long>;

enum class Space { pageable, pinned, device };

struct Place {
  Space space;
  int device;  // of Space::device
};

// report.cpp: what happened since the last reset. All functions are safe to call from any thread.
void count(const std::string &what, long times = 1);
void count_launch(int device, const std::string &kernel);
void count_captured(const std::string &kernel);
void count_graph(int device, long nodes, long kernels);
void fault(const std::string &what);

// devices.cpp: the device of the calling thread.
constexpr size_t kMemory = size_t(141) << 30;
int current_device();
int attribute(int which);
CUcontext context_of(int device);

// memory.cpp
Place place_of(const void *pointer);

// streams.cpp: the device that a stream belongs to; handles 0, 1 and 2 are the current device's default streams.
bool is_default(cudaStream_t stream);
int device_of(cudaStream_t stream);

// capture.cpp
struct Ticket {  // a place in the capture that an event was recorded in; id 0: in none
  unsigned long long id = 0;
  Clock clock;
};
bool capturing(cudaStream_t stream);
// Whether the calling thread may not do `what` because of a capture; writes the fault.
bool refused(const std::string &what);
// Adds a node to the capture that the stream is part of; false: it is part of none.
bool add_node(cudaStream_t stream, bool is_kernel);
Ticket ticket(cudaStream_t stream);
bool same_capture(const Ticket &ticket);
void join(cudaStream_t stream, const Ticket &ticket);
bool capture_is_open();

// launches.cpp: a launch from any of the libraries; returns the error that the caller would see.
cudaError_t launch(const std::string &name, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream);
cudaError_t launch(const std::string &name, cudaStream_t stream);
cudaError_t failed(cudaError_t error);  // remembers the error for cudaGetLastError

}  // namespace null

struct CUstream_st {
  int device;
};

struct CUevent_st {
  int device;
  double seconds = 0;
  null::Ticket ticket;
};

struct CUgraph_st {
  long nodes, kernels;  // kernels are nodes; the others are copies and fills
};

struct CUgraphExec_st {
  int device;
  long nodes, kernels;
};
