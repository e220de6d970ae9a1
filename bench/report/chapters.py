"""The chapters of the page: a section of the result files each, with its title, words, tables and picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.report import sections
from bench.report.render import Block
from bench.report.trainings import paper, time_to_accuracy


@dataclass(frozen=True)
class Chapter:
    """A section of the result files as a chapter of the page: title, words, view, and its picture, if it has one."""

    title: str
    text: str
    view: Callable[[Any], list[Block]]
    picture: str | None = None


CHAPTERS = {
    "throughput": Chapter(
        "Training against timm's TNT",
        "Whole training steps: forward, loss, backward and optimiser on one fixed batch that lies on the device. "
        "The rival is timm's TNT at the same sizes, with the same batch and loss, in every form that PyTorch "
        "offers; it has one token and one head less than TITN. Steps of all contenders are interleaved (A B A B),"
        " so that a drifting machine moves all alike. The ratio compares, round by round, with the fastest of "
        "timm's forms at that batch; where its interval spans 1, no difference is claimed. First steps are timed in "
        "new processes, with empty compile caches and again with full ones.",
        sections.throughput,
        "throughput",
    ),
    "waterfall": Chapter(
        "One switch after another",
        "Short trainings from the same seed on the same images, from the plain reference to everything that `--fast` "
        "switches on: each line adds one switch to the line above. The time is that of pipeline, teacher and step; "
        "evaluation and checkpoints are left out. All take the same number of steps, and beside each speed stands the "
        "loss at their end, which no switch may cost. Where the interval of a ratio spans 1, no difference is claimed.",
        sections.waterfall,
        "waterfall",
    ),
    "pipelines": Chapter(
        "Making batches",
        "Augmented images per second, with nothing else running: random crop, flip, AutoAugment, CutMix and "
        "normalisation, from stored bytes to the batch that a network takes. The rivals draw AutoAugment in their own "
        "way: timm has ImageNet's policy only, kornia one sub-policy per batch.",
        sections.pipelines,
    ),
    "parity": Chapter(
        "Are the pixels torchvision's?",
        "The same rows of a plan through torchvision on Pillow images, the torch pipeline and the others: operations "
        "with all magnitudes and signs of AutoAugment, both operations of each sub-policy, and all else that is done "
        "to images. Compared are bytes; MixUp makes none, so that its values are compared, in units of a byte.",
        sections.parity,
    ),
    "cpu": Chapter(
        "On a CPU",
        "Training steps and predictions on one thread and on all, with native code and without, against timm's TNT "
        "eager, compiled as a whole and block by block. All of one line's threads, images and work took turns, one "
        "large matrix product among them; the share of its rate counts the operations that the network needs. The "
        "second table is one training step with native code, by operation, as torch.profiler sees it: a floor is an "
        "operation's own arithmetic at the rate of the large product.",
        sections.cpu,
    ),
    "scaling": Chapter(
        "Scaling",
        "Training speed and memory as one size changes and the others stay as they are in the paper. The product "
        "ceiling is the rate of one large matrix product. A step's share of it is the time it spends in products, "
        "attention or fused kernels (a profile's share) times the rate while there: small matrices run below the "
        "ceiling. The other time goes into element-wise work (normalisation, activations, casts and copies, bound by "
        "memory), the optimiser, or the rest: on a GPU waiting for work, on a CPU Python, autograd and the compiler's "
        "checks.",
        sections.scaling,
        "scaling",
    ),
    "ceilings": Chapter(
        "Ceilings of the device",
        "What this very device reaches: bytes per second (read and written) of a large copy, and operations per "
        "second of one large matrix product in each precision. All floors and percentages below are against "
        "these.",
        sections.ceilings,
    ),
    "correctness": Chapter(
        "Kernels: are they right?",
        "Output and every gradient of each kernel against float64. Right means: the error is at most twice that "
        "of plain PyTorch in the same precision, or below 1e-5, and two runs are equal bit by bit. Gradients of short "
        "vectors are judged together, since the error of twelve numbers is a matter of luck. The number is the largest "
        "relative error of the case. A kernel that is wrong is timed all the same, and says so.",
        sections.correctness,
    ),
    "kernels": Chapter(
        "Kernels: how fast?",
        "Each operation at the sizes of a training step, ours against the fastest of the alternatives: eager "
        "PyTorch, `torch.compile`, the backends of `scaled_dot_product_attention`, xformers and others where they"
        " are installed. Times are of a CUDA graph where there is one, so without the cost of launching; brackets"
        " hold the tenth and the ninetieth percentile, and of a ratio what follows from them; where they span 1, no "
        'difference is claimed. "Of the floor" is the larger of two least times, of moving the bytes and of doing the '
        "arithmetic at the ceilings above, as a share of the time taken: 100% cannot be beaten. In the picture our "
        "kernels are filled and joined by a thin line with the fastest rival, which is hollow; on a CPU there are "
        "rivals only.",
        sections.kernels,
        "roofline",
    ),
    "launches": Chapter(
        "Kernel launches",
        "How many kernels a forward and a backward start, counted without a GPU. Eager: PyTorch operations that "
        "compute. Compiled: what torch.compile's CPU back end generates and calls; on a GPU it may fuse a little "
        "differently. Fused: kernels that Triton's interpreter starts, and PyTorch operations beside them. Under "
        "autocast, casts of the weights come on top everywhere. The optimiser's step is not counted.",
        sections.launches,
    ),
    "step_profile": Chapter(
        "Where a step goes",
        "One training step with every fast part on, by kernel, as torch.profiler sees it.",
        sections.step_profile,
        "step_profile",
    ),
    "accuracy": Chapter(
        "Accuracy",
        "Top-1 of the last epoch, never of the best one. The development split is a part of the training set, "
        "held out for choices; the test split is the data set's own test set. The interval is that of the mean "
        "over seeds. Where settings were tried on a development split, each is listed by what distinguishes it.",
        sections.accuracy,
        "accuracy",
    ),
    "paper": Chapter(
        "The paper's tables",
        "Trained here, beside the paper's numbers (in italics). Ours are the last epoch's weights on the whole split; "
        "the paper took the best epoch on the test set. MACs are multiply-accumulates of one forward pass, attention "
        "included; GFLOPs are the paper's count of our networks: 1,024 images without attention's products. "
        "Parameters are all there are, the paper's those of the layers; of VGG16-BN it counts 1,000 classes. A row "
        "without a number was not run.",
        paper,
        "paper",
    ),
    "grid": Chapter(
        "Which settings pay",
        "Short trainings on a part of the training images, one change of settings at a time, with the base's seeds, "
        "teacher and number of images. Differences are taken seed by seed, in points of top-1; the interval is "
        "Student's t: where it spans 0, no difference is claimed.",
        sections.grid,
    ),
    "time_to_accuracy": Chapter(
        "Time to an accuracy",
        "One recipe trained twice: by the plain reference (eager float32, the teacher asked about every batch) and "
        "with `--fast`, whose store of the teacher's answers is empty at the start. Seconds begin with the first step "
        "and hold compiling, batches, answers and steps; evaluation, checkpoints and the teacher's own training are "
        "not in them. The target is watched for on held-out training images, at the end of an epoch; the test images "
        "are scored once, with the last epoch's weights.",
        time_to_accuracy,
        "time_to_accuracy",
    ),
    "bank": Chapter(
        "Repeating a few epochs of augmentation",
        "`--bank K` repeats the augmentation of K epochs in turn, so that K stored epochs of the teacher's answers "
        "serve any number. Each row trains the same student from the same teacher for the same number of steps; only K "
        "and the seed differ. Differences are taken seed by seed, in points of top-1; the interval is Student's t.",
        sections.bank,
    ),
}
"""In the order of the page, by section of the result files; its view takes that section, of SEVERAL a list."""

SEVERAL = ("accuracy", "paper")
"""Sections of which more than the newest is shown: see `bench.report.results`."""
