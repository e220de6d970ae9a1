"""Typed configuration: the same flat names in Python, in a YAML file and on the command line.

A configuration is complete as soon as it exists. What was not said comes from the recipe of the data set
(`recipes/NAME.yaml`, for a folder of images `recipes/folder.yaml`), and what the recipe does not say from the defaults
in `titn.settings`. Precedence, lowest first: defaults, recipe, `config` file, arguments. Every mistake is a UserError
of one line.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import yaml
from pydantic import ValidationError, model_validator
from pydantic.dataclasses import dataclass

from titn.errors import UserError
from titn.pipelines.policies import POLICIES
from titn.settings import (
    STRICT,
    AugmentationSettings,
    DataSettings,
    DistillationSettings,
    FolderSettings,
    PreviewSettings,
    ScheduleSettings,
    SpeedSettings,
    StudentSettings,
    TeacherSettings,
    VerifySettings,
    fields_of,
    flag,
)
from titn.yaml_files import check_names, load_yaml, one_line, plain, read_yaml, recipe_for


@dataclass(frozen=True, config=STRICT)
class RunConfig(FolderSettings, SpeedSettings, AugmentationSettings, ScheduleSettings, DataSettings):
    """What the training of a student and of a teacher have in common."""

    program: ClassVar[str]
    role: ClassVar[Literal["student", "teacher"]]

    @model_validator(mode="wrap")
    @classmethod
    def _complete(cls, given: Any, validate: Callable[[dict[str, Any]], Self]) -> Self:
        said = {name: plain(value) for name, value in dict(given.kwargs or {}).items()}
        check_names(said, cls, cls.__name__)
        said = (read_yaml(Path(said["config"]), cls, again=True) if said.get("config") else {}) | said
        for name, value in said.items():
            if isinstance(value, bool) and fields_of(cls)[name].annotation is not bool:
                raise UserError(f"{flag(name)} cannot be {value}")
        kind = said.get("recipe", "paper")
        recipe = recipe_for(str(said.get("dataset", "digits")), cls.role, kind if kind == "quick" else "paper")
        for name in ("batch_size", "lr"):  # of the recipe's own length; see `titn.training.schedule`
            recipe.pop(name, None)
        try:
            config = validate(recipe | said | {"config": None})
        except ValidationError as error:
            raise UserError(one_line(error)) from None
        if kind == "quick" and "warmup_epochs" not in said:  # in proportion to the training
            warmup = config.warmup_epochs * config.epochs / recipe["epochs"]
            object.__setattr__(config, "warmup_epochs", warmup)
        if config.epochs == 0 and (config.role == "student" or config.init is None):
            raise UserError("--epochs must be at least 1, not 0: only a teacher with --init may stay as it is")
        if config.import_ is None and config.augmentation not in ("none", *POLICIES):
            known = ", ".join(("none", *POLICIES))
            raise UserError(f"--augmentation must be one of {known}, not {config.augmentation!r}")
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
        if "plain_share" in self.said and (self.augmentation, self.mix, self.erase) == ("none", "none", 0.0):
            found.append("--plain-share has no effect with --augmentation none, --mix none and --erase 0")
        used = {"sgd": ("momentum",), "apex_sgd": ("momentum",), "rmsprop": ()}.get(self.optimizer, ("beta1", "beta2"))
        for name in sorted(self.said & {"momentum", "beta1", "beta2"} - set(used)):
            found.append(f"{flag(name)} has no effect with --optimizer {self.optimizer}")
        if 0 < self.epochs <= self.warmup_epochs:
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
    def training_options(self) -> dict[str, Any]:
        """What the network is built with for its training only; no weight depends on it."""
        return {}

    @property
    def growing_shares(self) -> tuple[float, float]:
        """Shares of the epochs, the first ones, with smaller images and with fewer blocks."""
        return 0.0, 0.0

    @property
    def fused_kernels(self) -> str:
        """Backend of the network's fused operations, as asked for."""
        return "torch"

    @property
    def distils_from(self) -> str:
        """The teacher, several with commas between them, or none."""
        return "none"

    @property
    def teachers(self) -> tuple[str, ...]:
        """Each teacher as it was named, by `distils_from`."""
        return () if self.distils_from == "none" else tuple(name.strip() for name in self.distils_from.split(","))

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

    def teacher_training(self, name: str) -> TeacherConfig:
        """The training of the teacher that is asked for by the name of its architecture.

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
            self.dataset, self.role, self.recipe
        )
        normalised = recipe["optimizer"] == "sgd" and self.optimizer not in ("sgd", "apex_sgd")
        return recipe["batch_size"], 1e-3 if normalised else recipe["lr"]


@dataclass(frozen=True, config=STRICT)
class TeacherConfig(TeacherSettings, RunConfig):
    """Train a teacher."""

    program: ClassVar[str] = "python -m titn.teacher"
    role: ClassVar[Literal["student", "teacher"]] = "teacher"

    @property
    def network(self) -> str:
        return self.teacher


@dataclass(frozen=True, config=STRICT)
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
        options = {name: getattr(self, name) for name in ("depth", "pool", "patch_size", "pixel_size")}
        return {name: value for name, value in options.items() if value is not None}

    @property
    def training_options(self) -> dict[str, Any]:
        return {"drop_path_rate": self.drop_path}

    @property
    def growing_shares(self) -> tuple[float, float]:
        return self.small_share, self.shallow_share

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

    def teacher_training(self, name: str) -> TeacherConfig:
        students = (
            *("dataset", "data_dir", "image_size", "limit_train", "validation", "skip_bad_images"),
            *("device", "runs_dir", "import_", "recipe"),
        )
        for each in ("teacher", *students):
            if each in self.teacher_settings:
                raise UserError(f"--teacher-settings cannot have {each}: a teacher takes it from its student")
        shared = (*students, "fast", "amp", "pipeline", "tracker")
        settings: dict[str, Any] = {each: getattr(self, each) for each in shared}
        settings |= {"teacher": name, "epochs": self.teacher_epochs or self.epochs}
        return TeacherConfig(**(settings | self.teacher_settings))


@dataclass(frozen=True, config=STRICT)
class PreviewConfig(PreviewSettings, TrainConfig):
    """Draw what a training with these flags sees of its images."""

    program: ClassVar[str] = "python -m titn.preview"


@dataclass(frozen=True, config=STRICT)
class FillConfig(TrainConfig):
    """Ask the teacher about the images of a training with these flags, and store its answers."""

    program: ClassVar[str] = "python -m titn.cache fill"


@dataclass(frozen=True, config=STRICT)
class VerifyConfig(VerifySettings, TrainConfig):
    """Check the stored answers for a training with these flags, and ask the teacher again about some of them."""

    program: ClassVar[str] = "python -m titn.cache verify"


Config = TypeVar("Config", bound=RunConfig)


def stored_config(path: Path) -> RunConfig:
    """The configuration that `to_yaml` wrote, of a student or of a teacher; nothing in it counts as said now.

    Raises:
        UserError: the file is missing or damaged.
    """
    cls = TrainConfig if "model" in load_yaml(path) else TeacherConfig
    try:
        config = cls(**read_yaml(path, cls))
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    object.__setattr__(config, "_said", frozenset())
    return config


def to_yaml(config: RunConfig) -> str:
    """The configuration as a YAML text that `--config` reads back."""
    values = {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if name not in ("resume", "config", "overwrite")
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
