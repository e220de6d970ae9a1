"""Augmentation policies: rows of operations for every image."""

from __future__ import annotations

from titn.pipelines.policies.autoaugment import AutoAugmentRows
from titn.pipelines.policies.erase import EraseRows
from titn.pipelines.policies.mnist import MnistRows
from titn.pipelines.policies.operation_rows import ImageOperations, Operation, OperationRows, PolicyRows
from titn.pipelines.policies.randaugment import RandAugmentRows, TrivialAugmentRows

POLICIES: dict[str, type[PolicyRows]] = {
    "cifar10": AutoAugmentRows,
    "mnist": MnistRows,
    "randaugment": RandAugmentRows,
    "trivialaugment": TrivialAugmentRows,
}
"""By the name in `Augmentation.policy`."""

__all__ = ["POLICIES", "EraseRows", "ImageOperations", "Operation", "OperationRows", "PolicyRows"]
