"""What a pipeline hands to the training step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """B augmented images on the pipeline's device.

    Attributes:
        images: normalised, float32 [B, C, H, W].
        ids: row of each image in the data set, int64 [B].
        labels_a: label of the image itself, int64 [B].
        labels_b: label of its CutMix or MixUp partner, int64 [B]; labels_a where nothing is mixed.
        lam: weight of labels_a in the loss, float32 [B]; 1 where nothing is mixed.
    """

    images: Tensor
    ids: Tensor
    labels_a: Tensor
    labels_b: Tensor
    lam: Tensor
