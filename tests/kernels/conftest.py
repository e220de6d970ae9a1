"""Fixtures of the kernel tests."""

import pytest
import torch

from titn.kernels.common import configurations


@pytest.fixture
def large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter, whose time is one of tile operations, the wide kernels' blocks are 256 and not 16 to 64."""
    if torch.cuda.is_available():
        return
    for key, values in list(configurations.CONFIGURATIONS.items()):
        if key[0].startswith(("layernorm_mlp", "outer_block")):
            monkeypatch.setitem(configurations.CONFIGURATIONS, key, {**values, "block": 256, "columns": 128})
