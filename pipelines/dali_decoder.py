"""DALI's decoder of image files, brought to one size."""

from __future__ import annotations

from typing import Any

import torch
from nvidia.dali import fn, pipeline_def, types


def decoder(size: int, threads: int, device: torch.device, files: int) -> Any:
    """A built pipeline for up to twice as many files.

    Its inputs are "files" (uint8 [bytes]), "size" (height and width to resize to, float32 [2]) and "corner" (of what is
    cut out, int32 [2]); its output is uint8 [size, size, 3].
    """
    device_id = (device.index or 0) if device.type == "cuda" else None
    pipeline = _define(
        size, batch_size=2 * files, num_threads=threads, device_id=device_id, prefetch_queue_depth=1, exec_dynamic=True
    )
    pipeline.build()
    return pipeline


@pipeline_def
def _define(size: int) -> Any:
    pipeline = fn.external_source(name="files")
    images = fn.decoders.image(
        pipeline,
        device="cpu" if _device_id() is None else "mixed",
        output_type=types.RGB,
        adjust_orientation=True,
        jpeg_fancy_upsampling=True,
    )
    target, corner = fn.external_source(name="size"), fn.external_source(name="corner")
    resized = fn.resize(images, size=target, interp_type=types.INTERP_LINEAR, antialias=True)
    return fn.slice(resized, start=corner, shape=[size, size], axes=[0, 1])


def _device_id() -> int | None:
    from nvidia.dali import Pipeline

    return Pipeline.current().device_id
