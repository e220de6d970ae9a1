// Pixel operations that give each of a channel's 256 levels another one. Images are uint8 [F, H, W, C], any number of them.
//
// The signature is what NVIDIA DALI calls for a sample (its operator NumbaFuncImpl): addresses of the outputs' data, of
// their shapes, and their numbers of dimensions; then the same of the inputs. Here there is one of each, of equal shape.
#include <cstdint>
#include "titn.h"

namespace {

struct Histogram {
  int64_t pixels;
  uint32_t count[256];
};

// Pillow's whole numbers; with too few levels all stay
void equalized(const Histogram& of, uint8_t* table) {
  int brightest = 255;
  while (of.count[brightest] == 0) --brightest;
  const uint32_t step = uint32_t(of.pixels - of.count[brightest]) / 255;
  uint32_t sum = step / 2;
  for (int level = 0; level < 256; ++level) {
    const uint32_t to = step == 0 ? uint32_t(level) : sum / step;
    table[level] = uint8_t(to < 255 ? to : 255);
    sum += of.count[level];
  }
}

// to 0 .. 255 in double as Pillow, truncated; a single level stays
void stretched(const Histogram& of, uint8_t* table) {
  int low = 0, high = 255;
  while (of.count[low] == 0) ++low;
  while (of.count[high] == 0) --high;
  const double scale = low == high ? 1. : 255. / (high - low), start = low == high ? 0. : -low * scale;
  for (int level = 0; level < 256; ++level) {
    const double to = level * scale + start;
    table[level] = uint8_t(to < 0. ? 0. : to < 255. ? to : 255.);
  }
}

template <class Rule> void each_channel(const uint8_t* in, const int64_t* shape, uint8_t* out, const Rule& rule) {
  const int64_t images = shape[0], pixels = shape[1] * shape[2], channels = shape[3];
  if (pixels == 0) return;
  for (int64_t image = 0; image < images; ++image, in += pixels * channels, out += pixels * channels)
    for (int64_t channel = 0; channel < channels; ++channel) {
      Histogram of{pixels, {}};
      uint8_t table[256];
      for (int64_t i = channel; i < pixels * channels; i += channels) ++of.count[in[i]];
      rule(of, table);
      for (int64_t i = channel; i < pixels * channels; i += channels) out[i] = table[in[i]];
    }
}

// whether the caller keeps to the signature
bool expected(const int32_t* out_dims, int32_t outs, const int32_t* in_dims, int32_t ins) {
  return outs == 1 && ins == 1 && *out_dims == 4 && *in_dims == 4;
}

}  // namespace

EXPORT void titn_equalize(uint8_t* const* out, const int64_t* const*, const int32_t* out_dims, int32_t outs,
                          const uint8_t* const* in, const int64_t* const* shape, const int32_t* in_dims, int32_t ins) {
  if (expected(out_dims, outs, in_dims, ins)) each_channel(*in, *shape, *out, equalized);
}

EXPORT void titn_autocontrast(uint8_t* const* out, const int64_t* const*, const int32_t* out_dims, int32_t outs,
                              const uint8_t* const* in, const int64_t* const* shape, const int32_t* in_dims, int32_t ins) {
  if (expected(out_dims, outs, in_dims, ins)) each_channel(*in, *shape, *out, stretched);
}
