"""Native code (kernels/csrc/levels.cpp) as operators of a DALI graph on the CPU.

DALI's operator NumbaFuncImpl calls a C function by its address for every sample, on DALI's own threads; it is there for
functions that Numba has compiled, and takes any other. The address is all that it is told: no DALI header is needed and
nothing is bound to a version of DALI; that it calls as expected is tried before a graph is built on it.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import nvidia.dali
from nvidia.dali import fn, ops, pipeline_def, types

from titn.kernels.common import native

_OPERATOR = "NumbaFuncImpl"


def call(name: str, images: Any) -> Any:
    """`titn_<name>` on a node of the graph that is being defined: uint8 [F, H, W, C] to the same, both on the CPU."""
    kind, dims = [types.UINT8], [4]
    factory: Any = vars(ops)["python_op_factory"]  # not in DALI's stub
    operator = factory("NativeFunction", _OPERATOR, _OPERATOR, generated=False)
    function = operator(run_fn=native.address(name), in_types=kind, out_types=kind, ins_ndim=dims, outs_ndim=dims)
    return fn.reshape(function(images), layout="FHWC")


@functools.cache
def refusal() -> str | None:
    """Why a graph on the CPU cannot call native code, found by a trial; None: it can."""
    if native.ABSENT is not None:
        return native.ABSENT
    given = np.array([[[[10, 7]], [[20, 7]]]], np.uint8)  # two pixels, the second channel without contrast
    try:
        pipeline = _trial(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
        pipeline.build()
        pipeline.feed_input("images", [given])
        (found,) = pipeline.run()
        if np.array_equal(np.asarray(found[0]), [[[[0, 7]], [[255, 7]]]]):
            return None
        why = "its result is wrong"
    except Exception as error:  # of an operator that DALI does not document
        why = next(iter(str(error).splitlines()), type(error).__name__)
    return f"DALI {nvidia.dali.__version__} does not call native code: {why}"


@pipeline_def
def _trial() -> Any:
    return call("autocontrast", fn.external_source(name="images", layout="FHWC"))
