"""The tables of arXiv 2502.16762: what each row trains, and the numbers that the paper prints for it.

The paper took the best epoch on the test set and averaged batch means; its "GFLOPs" are multiply-accumulates of 1024
images without attention's products, and its parameters those of the layers alone (see `titn.profile`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

TEACHER = "vgg16_bn"
DATASETS = ("cifar100", "cifar10", "mnist")


@dataclass(frozen=True)
class Facts:
    """What the paper prints: scores 0 to 1, parameters in millions; None where it prints nothing."""

    top1: float | None = None
    top5: float | None = None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    parameters: float | None = None
    gflops: float | None = None


@dataclass(frozen=True)
class Entry:
    """A row of a table.

    Attributes:
        label: as the paper calls it.
        network: a student or a teacher of this project.
        settings: that its training has beside the recipe's: of a student's TrainConfig, of a teacher's own.
        paper: the paper's numbers by data set; a data set that is not there is not in the paper's table.
    """

    label: str
    network: str
    paper: dict[str, Facts]
    settings: dict[str, Any] = field(default_factory=dict)
    is_teacher: bool = False


def _student(
    label: str, network: str, counts: tuple[float, float], scores: dict[str, tuple[float, ...]], **settings: Any
) -> Entry:
    """`counts`: parameters and GFLOPs; `scores`: top-1 and top-5 in percent, precision, recall and F1 where printed."""
    return Entry(label, network, _facts(scores, counts), settings)


def _teacher(
    label: str, network: str, scores: dict[str, tuple[float, ...]], gflops: float | None = None, **settings: Any
) -> Entry:
    return Entry(label, network, _facts(scores, (None, gflops)), settings, is_teacher=True)


def _facts(scores: dict[str, tuple[float, ...]], counts: tuple[float | None, float | None]) -> dict[str, Facts]:
    """By data set; the paper counts the networks of CIFAR-100 only."""
    counted = dict(zip(("parameters", "gflops"), counts, strict=True))
    return {name: Facts(**_shares(given), **(counted if name == "cifar100" else {})) for name, given in scores.items()}


def _shares(given: tuple[float, ...]) -> dict[str, float]:
    scaled = [value / 100 if number < 2 else value for number, value in enumerate(given)]
    return dict(zip(("top1", "top5", "precision", "recall", "f1"), scaled, strict=False))


_TITN = _student(
    "TITN", "titn", (5.85, 111.40),
    {"cifar100": (74.71, 92.28, 0.72, 0.75, 0.74), "cifar10": (92.03, 99.80), "mnist": (99.56,)},
)  # fmt: skip
_VGG = {"cifar100": (79.80, 94.51, 0.77, 0.80, 0.79), "cifar10": (95.98, 99.92), "mnist": (99.75,)}


def _only(entry: Entry, *datasets: str) -> Entry:
    return Entry(
        entry.label, entry.network, {name: entry.paper[name] for name in datasets}, entry.settings, entry.is_teacher
    )


TABLES: dict[str, tuple[Entry, ...]] = {
    "students": (
        _teacher("VGG16-BN, the teacher", TEACHER, _VGG, 448.47),
        _student("ViT", "vit", (5.39, 93.37), {
            "cifar100": (70.79, 89.55, 0.65, 0.71, 0.68), "cifar10": (86.33, 99.41), "mnist": (99.40,)}),
        _student("DeiT", "deit", (5.41, 98.84), {
            "cifar100": (73.91, 91.91, 0.71, 0.74, 0.73), "cifar10": (91.64, 99.73), "mnist": (99.52,)}),
        _student("TNT", "tnt", (5.83, 105.93), {
            "cifar100": (68.47, 88.44, 0.61, 0.68, 0.64), "cifar10": (86.91, 99.38), "mnist": (99.46,)}),
        _TITN,
    ),
    "teachers": (
        _teacher("VGG16-BN", TEACHER, {"cifar100": _VGG["cifar100"]}, 448.47),
        _teacher("VGG19", "vgg19", {"cifar100": (79.46, 94.75)}),
        _teacher("VGG16", "vgg16", {"cifar100": (79.42, 94.72)}),
        _teacher("DenseNet121", "densenet121", {"cifar100": (69.06, 89.61)}),
        _teacher("WideResNet50", "wide_resnet50_2", {"cifar100": (66.32, 87.91)}),
        _teacher("MobileNetV3", "mobilenet_v3_large", {"cifar100": (65.50, 88.86)}),
        _teacher("ResNet50", "resnet50", {"cifar100": (65.17, 87.32)}),
        _teacher("SqueezeNet", "squeezenet1_1", {"cifar100": (42.34, 67.13)}),
    ),
    "optimisers": (
        _teacher("SGD", TEACHER, {"cifar100": (79.80,)}, optimizer="sgd"),
        _teacher("Adam", TEACHER, {"cifar100": ()}, optimizer="adam"),
        _teacher("RMSprop", TEACHER, {"cifar100": (73.41,)}, optimizer="rmsprop"),
    ),
    "patch": (
        _only(_TITN, "cifar100", "cifar10"),
        _student("TITN (Large Patch)", "titn_large_patch", (5.85, 36.09), {
            "cifar100": (63.63, 85.93, 0.58, 0.64, 0.61), "cifar10": (85.39, 99.31)}),
    ),
    "mixup": (
        _only(_TITN, "cifar100"),
        _student("TITN (MixUp)", "titn", (5.85, 111.40), {"cifar100": (74.40, 92.53, 0.70, 0.74, 0.72)}, mix="mixup"),
    ),
}  # fmt: skip
"""By the name that --table has."""
