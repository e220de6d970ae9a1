"""Augmentation policies: rows of operations for every image."""

from __future__ import annotations

from titn.pipelines.policies.autoaugment import AutoAugmentRows
from titn.pipelines.policies.erase import EraseRows
from titn.pipelines.policies.mnist import MildMnistRows, MnistRows
from titn.pipelines.policies.operation_rows import ImageOperations, Operation, OperationRows, PolicyRows
from titn.pipelines.policies.randaugment import RandAugmentRows, TrivialAugmentRows

POLICIES: dict[str, type[PolicyRows]] = {
    "cifar10": AutoAugmentRows,
    "mnist": MnistRows,
    "mnist_mild": MildMnistRows,
    "randaugment": RandAugmentRows,
    "trivialaugment": TrivialAugmentRows,
}
"""By the name in `Augmentation.policy`."""
CODE: dict[str, str] = {}
"""SHA-256 of the source of each registered policy, which pixels depend on."""


def register(name: str, rows: type[PolicyRows], code: str) -> None:
    """Make `rows` the policy `name`; `code` stands for its source in fingerprints."""
    POLICIES[name], CODE[name] = rows, code


__all__ = ["CODE", "POLICIES", "EraseRows", "ImageOperations", "Operation", "OperationRows", "PolicyRows", "register"]
