"""evaluation.py DEVICE: logits of a test set of noise by a captured forward, in whole batches of 8 and a last of 3.

Answers reports: {"first": with the capture, "second": another, "longer": with a third whole batch}.
"""

from __future__ import annotations

import sys
from typing import Any

import counters
import numpy as np
import torch

from bench.training.contenders import CLASSES, Contender, Sizes
from titn.data.dataset import Dataset
from titn.training.captured import take_kernels
from titn.training.evaluation import CapturedForward
from titn.training.trainer import evaluation_logits

BATCH, LAST = 8, 3
device = torch.device(sys.argv[1])
module = Contender("", "titn", "captured", None, "auto").build(Sizes(depth=1)).to(device)
take_kernels(module)
forward = CapturedForward(module, BATCH)


def evaluated(batches: int) -> dict[str, Any]:
    number = batches * BATCH + LAST
    images, labels = np.zeros((number, 32, 32, 3), np.uint8), np.arange(number) % CLASSES
    names = tuple(map(str, range(CLASSES)))
    dataset = Dataset("noise", images, labels, images, labels, names, (0.5,) * 3, (0.25,) * 3)
    counters.reset()
    logits = evaluation_logits(module, dataset, images, labels, device, BATCH, forward)
    assert logits.shape == (number, CLASSES)
    return counters.read()


counters.answer({"first": evaluated(2), "second": evaluated(2), "longer": evaluated(3)})
