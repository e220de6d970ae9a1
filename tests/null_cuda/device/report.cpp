// What happened on the device since the last reset, as JSON for the scripts; faults also go to standard error and, as
// lines, to the file that NULL_CUDA_FAULTS names, for processes that nobody asks.
#include "null.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

namespace {

std::mutex mutex;
std::map<std::string, long> counts;
std::map<std::string, long> kernels;  // launches by name, those from graphs not included
std::map<std::string, long> captured;  // kernels recorded in captures, by name
std::map<int, long> devices;          // kernels that each has executed, those in graphs included
std::vector<std::string> faults;

std::string quoted(const std::string &text) {
  std::string result = "\"";
  for (char letter : text) {
    if (letter == '"' || letter == '\\') result += '\\';
    if (static_cast<unsigned char>(letter) >= 32) result += letter;
  }
  return result + "\"";
}

std::string key(int number) { return quoted(std::to_string(number)); }

std::string key(const std::string &name) { return quoted(name); }

template <typename Key>
std::string object(const std::map<Key, long> &entries) {
  std::string result;
  for (const auto &[name, value] : entries) {
    result += (result.empty() ? "" : ",") + key(name) + ":" + std::to_string(value);
  }
  return "{" + result + "}";
}

}  // namespace

void null::count(const std::string &what, long times) {
  std::lock_guard<std::mutex> guard(mutex);
  counts[what] += times;
}

void null::count_launch(int device, const std::string &kernel) {
  std::lock_guard<std::mutex> guard(mutex);
  counts["launch kernel"]++;
  kernels[kernel]++;
  devices[device]++;
}

void null::count_captured(const std::string &kernel) {
  std::lock_guard<std::mutex> guard(mutex);
  counts["capture kernel"]++;
  captured[kernel]++;
}

void null::count_graph(int device, long nodes, long graph_kernels) {
  std::lock_guard<std::mutex> guard(mutex);
  counts["launch graph"]++;
  counts["graph node"] += nodes;
  devices[device] += graph_kernels;
}

void null::fault(const std::string &what) {
  std::lock_guard<std::mutex> guard(mutex);
  faults.push_back(what);
  fprintf(stderr, "[null cuda] %s\n", what.c_str());
  const char *path = std::getenv("NULL_CUDA_FAULTS");
  FILE *file = path ? std::fopen(path, "a") : nullptr;
  if (file) {
    fprintf(file, "%s\n", what.c_str());
    std::fclose(file);
  }
}

NULL_CUDA_API void null_cuda_reset() {
  std::lock_guard<std::mutex> guard(mutex);
  counts.clear();
  kernels.clear();
  captured.clear();
  devices.clear();
  faults.clear();
}

// {"counts": {what: n}, "kernels": {name: n}, "captured": {name: n}, "devices": {index: kernels}, "faults": [text]}; the
// caller frees it.
NULL_CUDA_API char *null_cuda_report() {
  std::lock_guard<std::mutex> guard(mutex);
  std::string list;
  for (const auto &text : faults) list += (list.empty() ? "" : ",") + quoted(text);
  return strdup(("{\"counts\":" + object(counts) + ",\"kernels\":" + object(kernels) + ",\"captured\":" +
                 object(captured) + ",\"devices\":" + object(devices) + ",\"faults\":[" + list + "]}")
                    .c_str());
}
