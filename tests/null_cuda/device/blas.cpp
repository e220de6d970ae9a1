// cuBLAS and cuBLASLt: products are kernels on their handle's stream, everything else succeeds and does nothing.
#include "null.h"

struct cublasContext {
  cudaStream_t stream = nullptr;
};

namespace {

int product(const char *name, cudaStream_t stream) {
  constexpr int kExecutionFailed = 13;
  return null::launch(name, stream) == cudaSuccess ? 0 : kExecutionFailed;
}

}  // namespace

// A function that is called with more arguments than it names: callers of C pass them where nobody looks.
#define PRODUCT(name) \
  NULL_CUDA_API int name(cublasContext *handle, ...) { return product(#name, handle->stream); }
#define SUCCEEDS(name) \
  NULL_CUDA_API int name(...) { return 0; }

PRODUCT(cublasSgemm_v2)
PRODUCT(cublasSgemmEx)
PRODUCT(cublasSgemmStridedBatched)
PRODUCT(cublasSgemv_v2)
PRODUCT(cublasSdot_v2)
PRODUCT(cublasDgemm_v2)
PRODUCT(cublasDgemmStridedBatched)
PRODUCT(cublasDgemv_v2)
PRODUCT(cublasDdot_v2)
PRODUCT(cublasDotEx)
PRODUCT(cublasGemmEx)
PRODUCT(cublasGemmStridedBatchedEx)

NULL_CUDA_API int cublasCreate_v2(cublasContext **handle) {
  *handle = new cublasContext;
  return 0;
}

NULL_CUDA_API int cublasDestroy_v2(cublasContext *handle) {
  delete handle;
  return 0;
}

NULL_CUDA_API int cublasSetStream_v2(cublasContext *handle, cudaStream_t stream) {
  handle->stream = stream;
  return 0;
}

NULL_CUDA_API int cublasGetMathMode(cublasContext *, int *mode) { return *mode = 0; }

NULL_CUDA_API int cublasGetPointerMode_v2(cublasContext *, int *mode) { return *mode = 0; }

SUCCEEDS(cublasSetMathMode)
SUCCEEDS(cublasSetPointerMode_v2)
SUCCEEDS(cublasSetSmCountTarget)
SUCCEEDS(cublasSetWorkspace_v2)

NULL_CUDA_API size_t cublasLtGetVersion() { return 130100; }

NULL_CUDA_API int cublasLtMatmul(void *, void *, const void *, const void *, void *, const void *, void *, const void *,
                                 const void *, void *, void *, void *, const void *, void *, size_t,
                                 cudaStream_t stream) {
  return product("cublasLtMatmul", stream);
}

NULL_CUDA_API int cublasLtMatmulAlgoGetHeuristic(void *, void *, void *, void *, void *, void *, void *, int, void *,
                                                 int *found) {
  *found = 1;
  return 0;
}

SUCCEEDS(cublasLtMatmulAlgoCheck)
SUCCEEDS(cublasLtMatmulAlgoConfigGetAttribute)
SUCCEEDS(cublasLtMatmulAlgoConfigSetAttribute)
SUCCEEDS(cublasLtMatmulAlgoInit)
SUCCEEDS(cublasLtMatmulDescCreate)
SUCCEEDS(cublasLtMatmulDescDestroy)
SUCCEEDS(cublasLtMatmulDescSetAttribute)
SUCCEEDS(cublasLtMatmulPreferenceCreate)
SUCCEEDS(cublasLtMatmulPreferenceDestroy)
SUCCEEDS(cublasLtMatmulPreferenceSetAttribute)
SUCCEEDS(cublasLtMatrixLayoutCreate)
SUCCEEDS(cublasLtMatrixLayoutDestroy)
SUCCEEDS(cublasLtMatrixLayoutSetAttribute)
