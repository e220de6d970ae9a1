"""`pytest bench`: the device that is measured, and its ceilings."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench import ceilings as ceilings_of


def pytest_configure(config: pytest.Config) -> None:
    """Says what is missing before anything is collected."""
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("pytest bench needs pytest-benchmark: pip install pytest-benchmark")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def ceilings(device: torch.device) -> dict[str, Any]:
    """Measured once a session."""
    return ceilings_of.measure(device, small=False)
