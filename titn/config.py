"""Typed configuration: the same flat names in Python, in a YAML recipe and on the command line.

A field left unset takes its value from the recipe of the data set (`recipes/NAME.yaml`, for teachers
`recipes/NAME-teacher.yaml`); a folder of images takes `recipes/folder.yaml`. Precedence, lowest first: recipe,
`--config` file, arguments.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import yaml

from titn.errors import UserError

RECIPES = Path(__file__).parent / "recipes"
Switch = Literal["auto", "on", "off"]
UNSET: Any = None
"""Of a field that takes its value from the recipe."""
ENOUGH_STEPS = 2000
SMALLEST_BATCH = 32


@dataclass(frozen=True)
class RunConfig:
    """What every training run has: data, schedule, device and the run folder."""

    program: ClassVar[str]
    recipe_suffix: ClassVar[str] = ""

    dataset: str = "digits"
    """digits, mnist, cifar10, cifar100, or a folder with one sub-folder of images per class"""
    data_dir: str = "data"
    """where data sets are read from, and downloaded to where there is a network"""
    image_size: int = UNSET
    """images are brought to this height and width, in pixels"""
    limit_train: int | None = None
    """use only this many training images: a fixed subset, balanced over the classes"""
    epochs: int = UNSET
    """passes over the training set"""
    batch_size: int | None = None
    """images per step (default: the recipe's, fewer in a short training)"""
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = UNSET
    """SGD has momentum 0.9"""
    lr: float | None = None
    """peak learning rate, falling to zero along a cosine (default: the recipe's, less for smaller batches)"""
    weight_decay: float = UNSET
    """decay of all weights (adamw: decoupled)"""
    warmup_epochs: float = UNSET
    """linear warm-up at the start, in epochs"""
    label_smoothing: float = UNSET
    """of the cross-entropy with the true labels"""
    augmentation: Literal["none", "cifar10", "mnist"] = UNSET
    """random policy after crop and flip: AutoAugment for CIFAR-10, the MNIST recipe, or none"""
    crop_padding: int = UNSET
    """random crop after padding by this many pixels on each side; 0: no crop"""
    flip: bool = UNSET
    """random horizontal flip"""
    mix: Literal["none", "cutmix", "cutmix_batch", "mixup"] = UNSET
    """CutMix with a box per image, the paper's one box per batch, or MixUp"""
    mix_alpha: float = UNSET
    """lam is drawn from Beta(alpha, alpha)"""
    seed: int = 0
    """of initialisation, order and augmentation"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    fast: bool = False
    """switch on every fast part that can run here and say why each other one is off"""
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    """automatic mixed precision; auto: off, with --fast bf16 where the device has it"""
    compile: Switch = "auto"
    """torch.compile; auto: off, with --fast on where there is a compiler"""
    pipeline: Literal["auto", "torch", "dali", "triton"] = "auto"
    """which backend applies the epoch plan to pixels"""
    cuda_graph: Switch = "auto"
    """replay the compiled step as a CUDA graph; auto: off, with --fast on where there is a GPU"""
    name: str | None = None
    """name of the run folder (default: data set, model and time)"""
    runs_dir: str = "runs"
    """folder of all run folders"""
    resume: str | None = None
    """run folder (or its name) to continue; its own configuration is used"""
    config: str | None = None
    """YAML file with any of these names"""

    @property
    def network(self) -> str:
        """Name of the network that this run trains."""
        raise TypeError(f"{type(self).__name__} names no network")


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """Train a student, distilled from a teacher."""

    program: ClassVar[str] = "python -m titn.train"

    model: str = UNSET
    """titn, titn_large_patch, titn_authors, titn_patch4, tnt, deit or vit"""
    depth: int | None = None
    """number of blocks (default: the model's own)"""
    pool: Literal["mean", "token"] | None = None
    """class representation: mean over class and patch tokens, or the class token (default: the model's own)"""
    teacher: str = UNSET
    """name of a teacher (trained first, or taken from the runs folder), a teacher's run folder, or none"""
    teacher_epochs: int | None = None
    """epochs of a teacher that has to be trained first (default: as many as the student)"""
    distillation: Literal["hard", "soft"] = UNSET
    """targets: the teacher's decision, or its distribution"""
    distillation_weight: float = UNSET
    """weight of the teacher's term; the labels get the rest"""
    temperature: float = UNSET
    """of soft distillation"""
    kernels: Literal["auto", "torch", "triton", "native"] = "auto"
    """backend of the fused operations; auto: torch, with --fast the fastest that can run"""
    teacher_cache: Switch = "auto"
    """store the teacher's outputs; auto: off, with --fast on where it exists"""

    @property
    def network(self) -> str:
        return self.model


@dataclass(frozen=True)
class TeacherConfig(RunConfig):
    """Train a teacher."""

    program: ClassVar[str] = "python -m titn.teacher"
    recipe_suffix: ClassVar[str] = "-teacher"

    teacher: str = UNSET
    """densenet121, mobilenet_v3_large, resnet50, wide_resnet50_2, squeezenet1_1, vgg16, vgg16_bn, vgg19 or small_cnn"""
    init: str | None = None
    """torchvision state dict to start from (.pth or .safetensors)"""

    @property
    def network(self) -> str:
        return self.teacher


Config = TypeVar("Config", bound=RunConfig)

_SETTLED_LATER = ("batch_size", "lr")
_MINIMUM = {
    "image_size": 1, "limit_train": 1, "epochs": 1, "batch_size": 1, "depth": 1, "teacher_epochs": 1, "seed": 0,
    "crop_padding": 0, "weight_decay": 0.0, "warmup_epochs": 0.0, "label_smoothing": 0.0, "distillation_weight": 0.0,
}  # fmt: skip
_ABOVE_ZERO = ("lr", "mix_alpha", "temperature")
_MAXIMUM = {"label_smoothing": 1.0, "distillation_weight": 1.0, "seed": 2**63 - 1, "image_size": 1024}


def flag(name: str) -> str:
    """The command line's spelling of a field."""
    return "--" + name.replace("_", "-")


def read_yaml(path: Path, cls: type[RunConfig]) -> dict[str, Any]:
    """Fields from a YAML file; an unknown name or a wrong type is a UserError."""
    values = _load_yaml(path)
    hints = {field.name: typing.get_type_hints(cls)[field.name] for field in dataclasses.fields(cls)}
    for name in values:
        if name not in hints:
            raise UserError(f"{path}: unknown name {name!r}; {cls.__name__} has {', '.join(sorted(hints))}")
    return {name: _from_yaml(value, _choices(hints[name])) for name, value in values.items()}


def kind_of(path: Path) -> type[RunConfig]:
    """Whether a run's config.yaml is that of a student or of a teacher."""
    return TrainConfig if "model" in _load_yaml(path) else TeacherConfig


def _load_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read the configuration {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold `name: value` lines, not a {type(values).__name__}")
    return values


def _from_yaml(value: Any, kinds: list[Any]) -> Any:
    """YAML 1.1 reads 1e-4 as text and on and off as booleans; here they mean what they say."""
    if isinstance(value, str) and float in kinds:
        with contextlib.suppress(ValueError):
            return float(value)
    if isinstance(value, bool) and bool not in kinds:
        return "on" if value else "off"
    return value


def recipe_for(dataset: str, cls: type[RunConfig]) -> dict[str, Any]:
    """Values of the data set's recipe for a student's or a teacher's run."""
    path = RECIPES / f"{dataset}{cls.recipe_suffix}.yaml"
    if not re.fullmatch(r"\w+", dataset) or not path.is_file():
        path = RECIPES / f"folder{cls.recipe_suffix}.yaml"
    return read_yaml(path, cls)


def resolve(config: Config) -> Config:
    """Fill the unset fields from `--config` and the recipe, but for `settle_batch`'s two, and check every value.

    Raises:
        UserError: a value is out of range or of the wrong type.
    """
    values = read_yaml(Path(config.config), type(config)) if config.config else {}
    defaults = type(config)()
    own = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != getattr(defaults, field.name)
    }
    dataset = own.get("dataset", values.get("dataset", config.dataset))
    recipe = {name: value for name, value in recipe_for(dataset, type(config)).items() if name not in _SETTLED_LATER}
    resolved = dataclasses.replace(defaults, **(recipe | values | own | {"config": None}))
    check(resolved)
    return resolved


def settle_batch(config: Config, images: int) -> Config:
    """Fill batch size and learning rate, where unset, from the recipe and the number of training images.

    A recipe's batch is made for its own number of steps. A shorter training gets smaller batches, down to 32 images, so
    that it has at least 2,000 steps; the learning rate shrinks with the square root of the batch (Krizhevsky,
    arXiv 1404.5997). No batch has more images than the data set.
    """
    recipe = recipe_for(config.dataset, type(config))
    batch, rate = config.batch_size, config.lr
    if batch is None:
        batch = min(recipe["batch_size"], max(SMALLEST_BATCH, images * config.epochs // ENOUGH_STEPS))
    if rate is None:
        rate = recipe["lr"] * min(1.0, batch / recipe["batch_size"]) ** 0.5
    return dataclasses.replace(config, batch_size=min(batch, images), lr=rate)


def check(config: RunConfig) -> None:
    """Raise UserError for the first value that is missing, of the wrong type or out of range."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        if not _fits(value, hints[name]):
            raise UserError(f"{flag(name)}: {value!r} is not {_describe(hints[name])}")
        if value is None:
            continue
        if name in _MINIMUM and not value >= _MINIMUM[name]:
            raise UserError(f"{flag(name)} must be at least {_MINIMUM[name]}, not {value}")
        if name in _ABOVE_ZERO and not value > 0:
            raise UserError(f"{flag(name)} must be above 0, not {value}")
        if name in _MAXIMUM and not value <= _MAXIMUM[name]:
            raise UserError(f"{flag(name)} must be at most {_MAXIMUM[name]}, not {value}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{flag(name)} must be finite, not {value}")
    if config.crop_padding > config.image_size:
        raise UserError(f"--crop-padding {config.crop_padding} must not exceed the image size {config.image_size}")
    if config.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", config.name):
        raise UserError(f"--name {config.name!r} must be a plain folder name of letters, digits, '.', '_' and '-'")


def _choices(hint: Any) -> list[Any]:
    """The alternatives of a union, without None."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return [kind for kind in typing.get_args(hint) if kind is not type(None)]
    return [hint]


def _fits(value: Any, hint: Any) -> bool:
    if value is None:
        return types.NoneType in typing.get_args(hint)
    for kind in _choices(hint):
        if typing.get_origin(kind) is Literal:
            fits = isinstance(value, str) and value in typing.get_args(kind)
        elif kind in (int, float):
            fits = isinstance(value, (int, kind)) and not isinstance(value, bool)
        else:
            fits = isinstance(value, kind)
        if fits:
            return True
    return False


def _describe(hint: Any) -> str:
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return " or ".join(words.get(kind) or "one of " + ", ".join(typing.get_args(kind)) for kind in _choices(hint))


def to_yaml(config: RunConfig) -> str:
    """The configuration as a YAML text that `--config` reads back."""
    values = {
        name: value for name, value in dataclasses.asdict(config).items() if value is not None and name != "resume"
    }
    return yaml.safe_dump(values, sort_keys=False)
