"""The null CUDA device, built once per session, or the reason why it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
from null_device import NullDevice, build, missing


@pytest.fixture(scope="session")
def null_cuda(tmp_path_factory: pytest.TempPathFactory) -> NullDevice:
    """A CUDA device that does not exist, for scripts in processes of their own."""
    reasons = missing()
    if reasons:
        pytest.skip(f"no null CUDA device, so nothing on the CUDA paths was tested: {'; '.join(reasons)}")
    folder: Path = tmp_path_factory.mktemp("null_cuda")
    return NullDevice(build(folder), folder / "caches")
