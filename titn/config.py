"""Typed configuration: the same flat names in Python, in a YAML file and on the command line.

A configuration is complete as soon as it exists. What was not said comes from the recipe of the data set
(`recipes/NAME.yaml`, for a folder of images `recipes/folder.yaml`), and what the recipe does not say from the defaults
below, which are the paper's for CIFAR (arXiv 2502.16762, sections 3 and 4). Precedence, lowest first: defaults, recipe,
`config` file, arguments. Every mistake is a UserError of one line.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args, get_origin

import numpy as np
import yaml
from pydantic import ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from titn.errors import UserError
from titn.pipelines.augmentation import Mix, Policy
from titn.pipelines.make import Backend

RECIPES = Path(__file__).parent / "recipes"
Auto = Literal["auto"]
Switch = Literal["auto", "on", "off"]

Whole = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
AboveZero = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
FolderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


_STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_default=True)


class _Subject:
    """Settings of one subject; `--help` lists them under the class's docstring."""


@dataclass(frozen=True, config=_STRICT)
class DataSettings(_Subject):
    """data"""

    dataset: str = "digits"
    """digits, mnist, cifar10, cifar100, or a folder with one sub-folder of images per class"""
    data_dir: str = "data"
    """where data sets are read from, and downloaded to where there is a network"""
    image_size: Annotated[int, Field(ge=1, le=1024)] = 32
    """images are brought to this height and width, in pixels"""
    limit_train: Whole | None = None
    """use only this many training images: a fixed subset, balanced over the classes; none: all"""
    skip_bad_images: bool = False
    """of a folder of images or Parquet files, leave out images that cannot be read, and say how many"""


@dataclass(frozen=True, config=_STRICT)
class AugmentationSettings(_Subject):
    """augmentation"""

    augmentation: Policy = "cifar10"
    """random policy after crop and flip: AutoAugment for CIFAR-10, the MNIST recipe, RandAugment, TrivialAugment"""
    randaugment_operations: Whole = 2
    """operations per image under RandAugment"""
    randaugment_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """of all of RandAugment's operations"""
    erase: Share = 0.0
    """probability of random erasing, after the policy: a black rectangle of 2 to 33 % of the image"""
    crop_padding: Annotated[int, Field(ge=0)] = 4
    """random crop after padding by this many pixels on each side; 0: no crop"""
    flip: bool = True
    """random horizontal flip"""
    mix: Mix = "cutmix"
    """CutMix with a box per image, the paper's one box per batch, or MixUp"""
    mix_alpha: AboveZero = 0.5
    """lam is drawn from Beta(alpha, alpha)"""


@dataclass(frozen=True, config=_STRICT)
class ScheduleSettings(_Subject):
    """training"""

    epochs: Whole = 600
    """passes over the training set"""
    batch_size: Whole | Auto = "auto"
    """images per step; auto: the recipe's, fewer in a short training"""
    optimizer: Literal["sgd", "apex_sgd", "adam", "adamw", "muon", "rmsprop"] = "sgd"
    """apex_sgd is NVIDIA apex's; muon: AdamW, but Muon for a student's large matrices"""
    momentum: Fraction = 0.9
    """of sgd and apex_sgd"""
    beta1: Fraction = 0.9
    """of adam, adamw and muon's AdamW: share that the mean of gradients keeps per step"""
    beta2: Fraction = 0.999
    """of adam, adamw and muon's AdamW: share that the mean of squared gradients keeps per step"""
    clip_grad: AboveZero | None = None
    """largest norm of all gradients together; none: no limit"""
    lr: AboveZero | Auto = "auto"
    """peak learning rate; auto: the recipe's or 0.001 (README), less for small batches"""
    weight_decay: NotNegative = 1e-4
    """decay of all weights (adamw, muon: decoupled)"""
    schedule: Literal["cosine", "linear", "constant", "step"] = "cosine"
    """of the rate after the warm-up: a fall to zero, none, or a tenth at 60 % and again at 80 % of the training"""
    warmup_epochs: NotNegative = 0.0
    """linear warm-up at the start, in epochs"""
    label_smoothing: Share = 0.0
    """of the cross-entropy with the true labels"""
    accumulate: Whole = 1
    """parts of a batch, one after another in one step: its result in less memory, but for batch norm and dropout"""
    average: Fraction = 0.0
    """share that a running average of the weights keeps per step, e.g. 0.999; tested beside them; 0: no average"""
    eval_every: Whole = 1
    """epochs from one evaluation to the next; the last epoch is always evaluated"""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """of initialisation, order and augmentation"""


@dataclass(frozen=True, config=_STRICT)
class SpeedSettings(_Subject):
    """device and speed"""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    fast: bool = False
    """switch on every fast part that can run here and say why each other one is off"""
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    """automatic mixed precision; auto: off, with --fast bf16 where the device has it"""
    compile: Switch = "auto"
    """torch.compile; auto: off, with --fast on where there is a compiler"""
    pipeline: Backend = "auto"
    """what makes the batches, all of them the same; auto: torch, with --fast the fastest that can run"""
    cuda_graph: Switch = "auto"
    """replay CUDA graphs: the whole step as one, or with --compile on the network's; auto: with --fast on a GPU"""


@dataclass(frozen=True, config=_STRICT)
class FolderSettings(_Subject):
    """run folder"""

    name: FolderName | None = None
    """name of the run folder; none: data set, model and time"""
    runs_dir: str = "runs"
    """folder of all run folders"""
    resume: str | None = None
    """run folder (or its name) to continue; its own configuration is used"""
    config: str | None = None
    """YAML file with any of these names"""


@dataclass(frozen=True, config=_STRICT)
class RunConfig(FolderSettings, SpeedSettings, AugmentationSettings, ScheduleSettings, DataSettings):
    """What the training of a student and of a teacher have in common."""

    program: ClassVar[str]
    role: ClassVar[Literal["student", "teacher"]]

    @model_validator(mode="wrap")
    @classmethod
    def _complete(cls, given: Any, validate: Callable[[dict[str, Any]], Self]) -> Self:
        said = {name: _plain(value) for name, value in dict(given.kwargs or {}).items()}
        _check_names(said, cls, cls.__name__)
        said = (read_yaml(Path(said["config"]), cls) if said.get("config") else {}) | said
        for name, value in said.items():
            if isinstance(value, bool) and fields_of(cls)[name].annotation is not bool:
                raise UserError(f"{flag(name)} cannot be {value}")
        recipe = recipe_for(str(said.get("dataset", "digits")), cls)
        for name in ("batch_size", "lr"):  # of the recipe's own length; see `titn.training.schedule`
            recipe.pop(name, None)
        try:
            config = validate(recipe | said | {"config": None})
        except ValidationError as error:
            raise UserError(_one_line(error)) from None
        if config.crop_padding > config.image_size:
            raise UserError(f"--crop-padding {config.crop_padding} must not exceed the image size {config.image_size}")
        object.__setattr__(config, "_said", frozenset(said) - {"config"})
        return config

    def changed(self, **values: Any) -> Self:
        """A copy with other values, checked like any configuration; only these have then been said anew."""
        copy = dataclasses.replace(self, **values)
        object.__setattr__(copy, "_said", self.said | values.keys())
        return copy

    @property
    def said(self) -> frozenset[str]:
        """Names of the settings that were given in words, by an argument or a file, not by a recipe or a default."""
        words: frozenset[str] = getattr(self, "_said", frozenset())
        return words

    @property
    def without_effect(self) -> list[str]:
        """Settings that were given but decide nothing beside the others, each with the reason."""
        found = []
        if "mix_alpha" in self.said and self.mix == "none":
            found.append("--mix-alpha has no effect with --mix none")
        if self.augmentation != "randaugment":
            for name in sorted(self.said & {"randaugment_operations", "randaugment_magnitude"}):
                found.append(f"{flag(name)} has no effect with --augmentation {self.augmentation}")
        used = {"sgd": ("momentum",), "apex_sgd": ("momentum",), "rmsprop": ()}.get(self.optimizer, ("beta1", "beta2"))
        for name in sorted(self.said & {"momentum", "beta1", "beta2"} - set(used)):
            found.append(f"{flag(name)} has no effect with --optimizer {self.optimizer}")
        if self.warmup_epochs >= self.epochs:
            found.append(f"--warmup-epochs {self.warmup_epochs:g} is all of the training: --lr is never reached")
        return found

    @property
    @abstractmethod
    def network(self) -> str:
        """Name of the network that this run trains."""

    @property
    def network_options(self) -> dict[str, Any]:
        """What the network has otherwise than its registry says."""
        return {}

    @property
    def fused_kernels(self) -> str:
        """Backend of the network's fused operations, as asked for."""
        return "torch"

    @property
    def distils_from(self) -> str:
        """The teacher, or none."""
        return "none"

    @property
    def distillation_term(self) -> dict[str, Any]:
        """Arguments of `distillation_objective` for a run with a teacher."""
        return {"kind": "none"}

    @property
    def stored_answers(self) -> Literal["off", "auto", "only"]:
        """Where the teacher's answers come from, see `DistillationSettings.teacher_cache`."""
        return "off"

    @property
    def stored_logits(self) -> int | None:
        """How many logits of each of the teacher's answers are stored; None: all."""
        return None

    @property
    def epochs_in_turn(self) -> int | None:
        """Number of epochs whose plans are repeated; None: each epoch has its own."""
        return None

    def plan_epoch(self, epoch: int) -> int:
        """The epoch, from 0, whose plan the training has in `epoch`."""
        return epoch % self.epochs_in_turn if self.epochs_in_turn else epoch

    @property
    def initial_weights(self) -> str | None:
        """File of a state dict that training starts from."""
        return None

    def teacher_training(self) -> TeacherConfig:
        """The training of the teacher that is asked for by name.

        Raises:
            UserError: this run has no teacher, or the settings for it do not fit.
        """
        raise UserError(f"{self.program} has no teacher")

    @property
    def recipe_batch_and_rate(self) -> tuple[int, float]:
        """Batch size and learning rate that the recipe has for a training of its own length.

        A rate of SGD means nothing to an optimiser that normalises its steps: that has 0.001, AdamW's usual.
        """
        recipe: dict[str, Any] = {"batch_size": 1024, "lr": 0.1, "optimizer": "sgd"} | recipe_for(
            self.dataset, type(self)
        )
        normalised = recipe["optimizer"] == "sgd" and self.optimizer not in ("sgd", "apex_sgd")
        return recipe["batch_size"], 1e-3 if normalised else recipe["lr"]


@dataclass(frozen=True, config=_STRICT)
class TeacherSettings(_Subject):
    """teacher"""

    teacher: str = "vgg16_bn"
    """densenet121, mobilenet_v3_large, resnet50, wide_resnet50_2, squeezenet1_1, vgg16, vgg16_bn, vgg19 or small_cnn"""
    init: str | None = None
    """torchvision state dict to start from (.pth or .safetensors)"""


@dataclass(frozen=True, config=_STRICT)
class TeacherConfig(TeacherSettings, RunConfig):
    """Train a teacher."""

    program: ClassVar[str] = "python -m titn.teacher"
    role: ClassVar[Literal["student", "teacher"]] = "teacher"

    @property
    def network(self) -> str:
        return self.teacher

    @property
    def initial_weights(self) -> str | None:
        return self.init


@dataclass(frozen=True, config=_STRICT)
class StudentSettings(_Subject):
    """student"""

    model: str = "titn"
    """titn, titn_large_patch, titn_authors, titn_patch4, tnt, deit or vit"""
    depth: Whole | None = None
    """number of blocks; none: the model's own"""
    pool: Literal["mean", "token"] | None = None
    """class representation: mean over class and patch tokens, or the class token; none: the model's own"""
    kernels: Literal["auto", "torch", "triton", "native"] = "auto"
    """backend of the fused operations; auto: torch, with --fast the fastest that can run"""


@dataclass(frozen=True, config=_STRICT)
class DistillationSettings(_Subject):
    """teacher"""

    teacher: str = "vgg16_bn"
    """name of a teacher (trained first, or taken from the runs folder), a teacher's run or weights, or none"""
    teacher_epochs: Whole | None = None
    """epochs of a teacher that has to be trained first; none: as many as the student"""
    teacher_settings: dict[str, Any] = Field(default_factory=dict)
    """other settings of a teacher that has to be trained first: name=value, several allowed (in YAML a mapping)"""
    distillation: Literal["hard", "soft", "standardized", "decoupled"] = "hard"
    """targets: the teacher's decision, its distribution, its standardised logits, or its distribution in two parts"""
    distillation_weight: Share = 0.5
    """weight of the teacher's term; the labels get the rest"""
    temperature: AboveZero | Auto = "auto"
    """of every distillation but hard; auto: 1 for soft, 2 for standardized, 4 for decoupled"""
    decoupled_beta: NotNegative = 8.0
    """of decoupled distillation: weight of the other classes' part against that of the label's"""
    teacher_cache: Literal["off", "auto", "only"] | None = None
    """ask the teacher about every batch (off), take stored answers and store what is missing (auto), never load the
    teacher (only); none: off, with --fast auto"""
    cache_top_k: Whole | None = None
    """logits that the cache keeps of each answer, for soft and decoupled distillation; none: all"""
    bank: Whole | None = None
    """repeat the augmentation (and order) of this many epochs in turn, so that as many cached epochs serve any number;
    none: always fresh"""


@dataclass(frozen=True, config=_STRICT)
class VerifySettings(_Subject):
    """verify"""

    sample: Whole = 256
    """stored answers to ask the teacher for again"""


@dataclass(frozen=True, config=_STRICT)
class TrainConfig(DistillationSettings, StudentSettings, RunConfig):
    """Train a student, distilled from a teacher."""

    program: ClassVar[str] = "python -m titn.train"
    role: ClassVar[Literal["student", "teacher"]] = "student"

    @property
    def without_effect(self) -> list[str]:
        found = super().without_effect
        if self.teacher == "none":
            of_a_teacher = [name for name in DistillationSettings.__annotations__ if name not in ("teacher", "bank")]
            said = [name for name in of_a_teacher if name in self.said]
            return found + [f"{flag(name)} has no effect without a teacher" for name in said]
        unused = {"hard": ["temperature", "decoupled_beta", "cache_top_k"], "decoupled": []}.get(
            self.distillation, ["decoupled_beta"]
        )
        said = [name for name in unused if name in self.said]
        return found + [f"{flag(name)} has no effect with --distillation {self.distillation}" for name in said]

    @property
    def network(self) -> str:
        return self.model

    @property
    def network_options(self) -> dict[str, Any]:
        options = {"depth": self.depth, "pool": self.pool}
        return {name: value for name, value in options.items() if value is not None}

    @property
    def fused_kernels(self) -> str:
        return self.kernels

    @property
    def distils_from(self) -> str:
        return self.teacher

    @property
    def distillation_term(self) -> dict[str, Any]:
        of_the_papers = {"hard": 1.0, "soft": 1.0, "standardized": 2.0, "decoupled": 4.0}
        return {
            "kind": self.distillation,
            "weight": self.distillation_weight,
            "temperature": of_the_papers[self.distillation] if self.temperature == "auto" else self.temperature,
            "beta": self.decoupled_beta,
        }

    @property
    def stored_answers(self) -> Literal["off", "auto", "only"]:
        if self.teacher == "none":
            return "off"
        return self.teacher_cache or ("auto" if self.fast else "off")

    @property
    def stored_logits(self) -> int | None:
        return self.cache_top_k

    @property
    def epochs_in_turn(self) -> int | None:
        return self.bank

    def teacher_training(self) -> TeacherConfig:
        students = (
            "dataset", "data_dir", "image_size", "limit_train", "skip_bad_images", "teacher", "device", "runs_dir",
        )  # fmt: skip
        for name in students:
            if name in self.teacher_settings:
                raise UserError(f"--teacher-settings cannot have {name}: a teacher takes it from its student")
        settings: dict[str, Any] = {name: getattr(self, name) for name in (*students, "fast", "amp", "pipeline")}
        settings["epochs"] = self.teacher_epochs or self.epochs
        return TeacherConfig(**(settings | self.teacher_settings))


@dataclass(frozen=True, config=_STRICT)
class PreviewSettings(_Subject):
    """preview"""

    images: Annotated[int, Field(ge=1, le=64)] = 8
    """training images to show, the first of the epoch"""
    epoch: Annotated[int, Field(ge=0)] = 0
    """epoch, from 0, whose draws are shown"""
    out: str = "preview.png"
    """picture to write"""
    compare: Backend | None = None
    """other pipeline: a second picture, NAME-difference.png, shows both and where they differ"""


@dataclass(frozen=True, config=_STRICT)
class PreviewConfig(PreviewSettings, TrainConfig):
    """Draw what a training with these flags sees of its images."""

    program: ClassVar[str] = "python -m titn.preview"


@dataclass(frozen=True, config=_STRICT)
class FillConfig(TrainConfig):
    """Ask the teacher about the images of a training with these flags, and store its answers."""

    program: ClassVar[str] = "python -m titn.cache fill"


@dataclass(frozen=True, config=_STRICT)
class VerifyConfig(VerifySettings, TrainConfig):
    """Check the stored answers for a training with these flags, and ask the teacher again about some of them."""

    program: ClassVar[str] = "python -m titn.cache verify"


Config = TypeVar("Config", bound=RunConfig)


def flag(name: str) -> str:
    """The command line's spelling of a setting."""
    return "--" + name.replace("_", "-")


def subjects(cls: type[RunConfig]) -> dict[str, dict[str, FieldInfo]]:
    """The settings of `cls` by subject, as `--help` shows them."""
    found: dict[str, dict[str, FieldInfo]] = {}
    for base in reversed(cls.__mro__):
        if issubclass(base, _Subject) and not issubclass(base, RunConfig) and base is not _Subject:
            known: dict[str, FieldInfo] = base.__pydantic_fields__  # type: ignore[attr-defined]
            found[str(base.__doc__)] = known
    return found


def fields_of(cls: type[RunConfig]) -> dict[str, FieldInfo]:
    """All settings of `cls` by name."""
    return {name: field for subject in subjects(cls).values() for name, field in subject.items()}


def choices(field: FieldInfo) -> tuple[str, ...]:
    """The words that a setting may have, none where it is free text or a number."""
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def recipe_for(dataset: str, cls: type[RunConfig]) -> dict[str, Any]:
    """What the data set's recipe says of a student's or a teacher's run where it differs from the defaults."""
    if dataset in ("cifar10", "cifar100"):
        return {}
    path = RECIPES / f"{dataset}.yaml"
    if not re.fullmatch(r"\w+", dataset) or not path.is_file():
        path = RECIPES / "folder.yaml"
    recipe = _load_yaml(path)
    sections = {section: recipe.pop(section, None) or {} for section in ("student", "teacher")}
    return recipe | sections[cls.role]


def read_yaml(path: Path, cls: type[RunConfig]) -> dict[str, Any]:
    """Settings from a YAML file; an unknown name is a UserError."""
    values = _load_yaml(path)
    _check_names(values, cls, f"{path}: {cls.__name__}")
    return {name: _from_yaml(value, fields_of(cls)[name]) for name, value in values.items()}


def stored_config(path: Path) -> RunConfig:
    """The configuration that `to_yaml` wrote, of a student or of a teacher.

    Raises:
        UserError: the file is missing or damaged.
    """
    cls = TrainConfig if "model" in _load_yaml(path) else TeacherConfig
    try:
        return cls(**read_yaml(path, cls))
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}") from None


def to_yaml(config: RunConfig) -> str:
    """The configuration as a YAML text that `--config` reads back."""
    values = {name: value for name, value in dataclasses.asdict(config).items() if name not in ("resume", "config")}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a mapping that names one key twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _load_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text("utf-8"), _UniqueKeys)
    except OSError as error:
        raise UserError(f"cannot read the configuration {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold `name: value` lines, not a {type(values).__name__}")
    return values


def _from_yaml(value: Any, field: FieldInfo) -> Any:
    """YAML 1.1 reads on and off as booleans; as a switch they mean what they say."""
    return ("on" if value else "off") if isinstance(value, bool) and "on" in choices(field) else value


def _check_names(values: Mapping[str, Any], cls: type[RunConfig], where: str) -> None:
    known = fields_of(cls)
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(sorted(known))}"
            raise UserError(f"{where} has no setting {name!r}; {hint}")


def _plain(value: Any) -> Any:
    """numpy's numbers and paths as Python's own."""
    if isinstance(value, np.generic):
        return value.item()
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _one_line(error: ValidationError) -> str:
    """The first mistake, with the flag's name and what would be right."""
    first = error.errors(include_url=False)[0]
    name, value = str(first["loc"][0]), first["input"]
    told: Mapping[str, Any] = first.get("ctx", {})
    for rule, words in (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below")):
        if rule in told:
            return f"{flag(name)} must be {words} {told[rule]:g}, not {value}"
    if first["type"] == "finite_number":
        return f"{flag(name)} must be finite, not {value}"
    if first["type"] == "string_pattern_mismatch":
        return f"{flag(name)} {value!r} must be a plain folder name of letters, digits, '.', '_' and '-'"
    wanted = {
        "literal_error": f"one of {told.get('expected', '')}".replace("'", "").replace(" or ", ", "),
        "bool_type": "true or false", "bool_parsing": "true or false", "string_type": "text", "dict_type": "a mapping",
        "int_type": "a whole number", "int_parsing": "a whole number", "int_from_float": "a whole number",
        "float_type": "a number", "float_parsing": "a number",
    }.get(first["type"], first["msg"].lower())  # fmt: skip
    return f"{flag(name)} must be {wanted}, not {value!r}"
