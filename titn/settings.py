"""Every setting by subject: its type, its default and, as its docstring, the line that `--help` shows.

The defaults are the paper's for CIFAR (arXiv 2502.16762, sections 3 and 4).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from titn.pipelines.augmentation import Mix
from titn.pipelines.make import Backend

Auto = Literal["auto"]
Switch = Literal["auto", "on", "off"]

Whole = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
AboveZero = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
FolderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_default=True)


class Subject:
    """Settings of one subject; `--help` lists them under the class's docstring."""


@dataclass(frozen=True, config=STRICT)
class DataSettings(Subject):
    """data"""

    dataset: str = "digits"
    """digits, mnist, cifar10, cifar100, or a folder with one sub-folder of images per class"""
    data_dir: str = "data"
    """where data sets are read from, and downloaded to where there is a network"""
    image_size: Annotated[int, Field(ge=1, le=1024)] = 32
    """images are brought to this height and width, in pixels"""
    limit_train: Whole | None = None
    """use only this many training images: a fixed subset, balanced over the classes; none: all"""
    validation: Fraction = 0.0
    """share of the training images to choose the best epoch by, the same ones whatever comes or goes; 0: those of the
    data set's own validation split, where it has one"""
    skip_bad_images: bool = False
    """of a folder of images or Parquet files, leave out images that cannot be read, and say how many"""


@dataclass(frozen=True, config=STRICT)
class AugmentationSettings(Subject):
    """augmentation"""

    augmentation: str = "cifar10"
    """random policy after crop and flip: none, cifar10 (AutoAugment), mnist, mnist_mild, randaugment, trivialaugment,
    an own one"""
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
    plain_share: Share = 0.0
    """share of the epochs, the last ones, without policy, erasing and mixing: crop and flip alone"""


@dataclass(frozen=True, config=STRICT)
class ScheduleSettings(Subject):
    """training"""

    recipe: Literal["paper", "quick"] = "paper"
    """where settings that are not given come from: the data set's as published, or made for a short training"""
    epochs: Annotated[int, Field(ge=0)] = 600
    """passes over the training set; of a teacher with --init 0, too: it stays as it is"""
    minutes: AboveZero | None = None
    """time for everything, the teacher included: as many of the epochs as a rehearsal says will fit; none: all"""
    batch_size: Whole | Auto = "auto"
    """images per step; auto: the recipe's, fewer in a short training"""
    optimizer: Literal["sgd", "apex_sgd", "adam", "adamw", "muon", "rmsprop"] = "sgd"
    """apex_sgd is NVIDIA apex's; muon: AdamW, but Muon for a student's large matrices and a teacher's filters"""
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
    class_weights: str = "none"
    """of the cross-entropy with the true labels: none, balanced (the fewer images, the more), or NAME=WEIGHT,... with 1
    for all others"""
    accumulate: Whole = 1
    """parts of a batch, one after another in one step: its result in less memory, but for batch norm and dropout"""
    average: Fraction = 0.0
    """share that a running average of the weights keeps per step, e.g. 0.999; tested beside them; 0: no average"""
    eval_every: Whole = 1
    """epochs from one evaluation to the next; the last epoch is always evaluated"""
    patience: Whole | None = None
    """stop after this many evaluations without a better accuracy on the validation split; none: never"""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """of initialisation, order and augmentation"""
    seeds: Whole = 1
    """train so many runs, NAME-seed0 and so on with seeds from --seed on, and state mean and interval"""


@dataclass(frozen=True, config=STRICT)
class SpeedSettings(Subject):
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


@dataclass(frozen=True, config=STRICT)
class FolderSettings(Subject):
    """run folder"""

    name: FolderName | None = None
    """name of the run folder; none: data set, model and time"""
    overwrite: bool = False
    """replace a run of the same name"""
    runs_dir: str = "runs"
    """folder of all run folders"""
    tracker: Literal["tensorboard", "trackio", "wandb", "mlflow", "none"] = "tensorboard"
    """where the curves go besides metrics.jsonl"""
    resume: str | None = None
    """run to continue, by its folder or name, with its own configuration; or one of its checkpoints/epoch-NNNN, from
    which it then goes on; --epochs may be more, and --lr another"""
    init: str | None = None
    """weights to start from: a run, or a file (.safetensors, .pth) of this project, torchvision or timm; heads for
    other classes are made anew"""
    import_: str | None = None
    """Python file or installed module that registers own models, teachers, data sets or augmentations"""
    config: str | None = None
    """YAML file with any of these names; that of a run begins a new one with its settings"""


@dataclass(frozen=True, config=STRICT)
class StudentSettings(Subject):
    """student"""

    model: str = "titn"
    """titn, titn_large_patch, titn_authors, titn_patch4, tnt, deit or vit"""
    depth: Whole | None = None
    """number of blocks; none: the model's own"""
    pool: Literal["mean", "token"] | None = None
    """class representation: mean over class and patch tokens, or the class token; none: the model's own"""
    patch_size: Whole | None = None
    """side of a patch in pixels, a divisor of the image size; none: the model's own"""
    pixel_size: Whole | None = None
    """side of the squares of pixels that a patch consists of, a divisor of the patch size; none: the model's own"""
    drop_path: Fraction = 0.0
    """stochastic depth: probability of leaving out a branch of the last block, falling linearly to 0 in the first"""
    small_share: Share = 0.0
    """share of the epochs, the first ones, that train on images of three quarters of the side (progressive resizing)"""
    shallow_share: Share = 0.0
    """share of the epochs, the first ones, that train the first half of the blocks alone (progressive depth)"""
    kernels: Literal["auto", "torch", "triton", "native"] = "auto"
    """backend of the fused operations; auto: torch, with --fast the fastest that can run"""


@dataclass(frozen=True, config=STRICT)
class DistillationSettings(Subject):
    """teacher"""

    teacher: str = "vgg16_bn"
    """name of a teacher (trained first, or taken from the runs folder), a teacher's run or weights, or none; several,
    A,B: the mean of their logits teaches"""
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


@dataclass(frozen=True, config=STRICT)
class VerifySettings(Subject):
    """verify"""

    sample: Whole = 256
    """stored answers to ask the teacher for again"""


@dataclass(frozen=True, config=STRICT)
class TeacherSettings(Subject):
    """teacher"""

    teacher: str = "vgg16_bn"
    """densenet121, mobilenet_v3_large, resnet50, wide_resnet50_2, squeezenet1_1, vgg16, vgg16_bn, vgg19, small_cnn,
    cnn_7m, cnn_17m, cnn_118m or cnn_302m"""


@dataclass(frozen=True, config=STRICT)
class PreviewSettings(Subject):
    """preview"""

    images: Annotated[int, Field(ge=1, le=64)] = 8
    """training images to show, the first of the epoch"""
    epoch: Annotated[int, Field(ge=0)] = 0
    """epoch, from 0, whose draws are shown"""
    out: str = "preview.png"
    """picture to write"""
    compare: Backend | None = None
    """other pipeline: a second picture, NAME-difference.png, shows both and where they differ"""


def flag(name: str) -> str:
    """The command line's spelling of a setting."""
    return "--" + name.rstrip("_").replace("_", "-")


def subjects(cls: type[Subject]) -> dict[str, dict[str, FieldInfo]]:
    """The settings of `cls` by subject, as `--help` shows them."""
    found: dict[str, dict[str, FieldInfo]] = {}
    for base in reversed(cls.__mro__):
        if Subject in base.__bases__:
            known: dict[str, FieldInfo] = base.__pydantic_fields__  # type: ignore[attr-defined]
            found[str(base.__doc__)] = known
    return found


def fields_of(cls: type[Subject]) -> dict[str, FieldInfo]:
    """All settings of `cls` by name."""
    return {name: field for subject in subjects(cls).values() for name, field in subject.items()}


def choices(field: FieldInfo) -> tuple[str, ...]:
    """The words that a setting may have, none where it is free text or a number."""
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
