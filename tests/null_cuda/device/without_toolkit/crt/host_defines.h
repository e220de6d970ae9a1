// What the runtime's headers take from nvcc's own, for where only the pip packages are: they do without nvcc's. Named
// last in the search, so that nvcc's own comes first where it is.
#pragma once

#define CUDARTAPI
#define CUDARTAPI_CDECL
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __builtin_align__(bytes) __align__(bytes)
#define __cudart_builtin__
#define __device__
#define __device_builtin__
#define __device_builtin_surface_type__
#define __device_builtin_texture_type__
#define __global__
#define __host__
#define __location__(where)
#define __specialization_static
