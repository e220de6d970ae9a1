"""pipeline.py DEVICE BACKEND: five batches of 1,024 images of noise, augmented as CIFAR in the paper; a report each."""

from __future__ import annotations

import sys

import counters
import numpy as np

from titn.pipelines import Augmentation, EpochPlan
from titn.pipelines.make import BACKENDS

COUNT, SIZE, BATCH_SIZE = 5 * 1024, 32, 1024

generator = np.random.default_rng(0)
pipeline = BACKENDS[sys.argv[2]](
    generator.integers(0, 256, (COUNT, SIZE, SIZE, 3), np.uint8),
    generator.integers(0, 100, COUNT),
    mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), device=sys.argv[1],
)  # fmt: skip
augmentation = Augmentation(crop_padding=4, flip=True, policy="cifar10", mix="cutmix_batch", mix_batch=BATCH_SIZE)
batches = pipeline.epoch(EpochPlan.draw(augmentation, size=COUNT, image_size=SIZE, seed=0, epoch=0), BATCH_SIZE)
reports = []
counters.reset()
for _ in batches:
    reports.append(counters.read())
    counters.reset()
counters.answer(reports)
