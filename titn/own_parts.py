"""Own models, teachers, data sets and augmentation policies, under names that every command then knows.

They are registered in a Python file (or an installed module) that `--import` names:

    import titn

    @titn.register_model("mine")
    def mine(num_classes, in_channels, image_size):
        return Network(num_classes)
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from titn.errors import UserError
from titn.pipelines.policies import POLICIES, PolicyRows, register

if TYPE_CHECKING:
    from titn.data.dataset import Dataset

ENTRY_POINTS = "titn.parts"
"""Group of entry points whose names `--import` knows."""
Build = Callable[[int, int, int], nn.Module]
"""Number of classes, channels and image size (height and width in pixels) to a network: images [B, C, S, S] to logits
[B, K]. A student that has an attribute `distilled` that is true gives logits of a class and of a distillation head in
training, and their average in evaluation."""
Load = Callable[[int], "Dataset"]
"""Image size in pixels to a data set of such images."""
Part = TypeVar("Part", bound=Callable[..., Any])

_parts: dict[str, dict[str, Callable[..., Any]]] = {"model": {}, "teacher": {}, "dataset": {}}
_imported: dict[str, str] = {}


def register_model(name: str) -> Callable[[Part], Part]:
    """A decorator for a `Build` that becomes `--model NAME`."""
    from titn.models import MODELS

    return _registrar("model", name, MODELS)


def register_teacher(name: str) -> Callable[[Part], Part]:
    """A decorator for a `Build` that becomes `--teacher NAME`."""
    from titn.teachers.architectures import TEACHERS

    return _registrar("teacher", name, TEACHERS)


def register_dataset(name: str) -> Callable[[Part], Part]:
    """A decorator for a `Load` that becomes `--dataset NAME`."""
    from titn.data.dataset import DATASETS

    return _registrar("dataset", name, DATASETS)


def register_policy(name: str) -> Callable[[type[PolicyRows]], type[PolicyRows]]:
    """A decorator for a class like `titn.pipelines.policies.mnist.MnistRows` that becomes `--augmentation NAME`.

    What its file says is part of what a teacher cache belongs to: with other code the teacher is asked again.

    Raises:
        UserError: the name is one of TITN's own, or the file of the class cannot be read.
    """
    if name == "none" or (name in POLICIES and POLICIES[name].__module__.startswith("titn.")):
        raise UserError(f"there is an augmentation {name!r} already: choose another name")

    def remember(rows: type[PolicyRows]) -> type[PolicyRows]:
        register(name, rows, _code(rows))
        return rows

    return remember


def own_network(name: str) -> Build | None:
    """The registered model or teacher of this name."""
    return _parts["model"].get(name) or _parts["teacher"].get(name)


def is_own(kind: str, name: str) -> bool:
    """Whether a "model", "teacher" or "dataset" of this name is registered."""
    return name in _parts[kind]


def own_dataset(name: str) -> Load | None:
    """The registered data set of this name."""
    return _parts["dataset"].get(name)


def code_of(name: str) -> str | None:
    """SHA-256 of the file that a registered network of this name comes from."""
    build = own_network(name)
    return None if build is None else _code(build)


def load_parts(name: str | None) -> None:
    """Import a Python file, an entry point of the group `titn.parts` or an installed module, once.

    Raises:
        UserError: there is none, or it fails.
    """
    if name is None:
        return
    path = Path(name).expanduser()
    try:
        if path.suffix == ".py" or path.is_file():
            path = path.resolve()
            code = hashlib.sha256(path.read_bytes()).hexdigest()
            if _imported.get(str(path)) != code:
                _import_file(path)
                _imported[str(path)] = code
        elif found := entry_points(group=ENTRY_POINTS, name=name):
            next(iter(found)).load()
        else:
            importlib.import_module(name)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"--import {name}: {error.strerror or error}") from None
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}, line {last.lineno}: "
        raise UserError(f"--import {name} fails: {where}{type(error).__name__}: {error}") from None


def check_network(module: nn.Module, name: str, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """`module`, if it gives logits [2, num_classes] for images [2, in_channels, image_size, image_size].

    Raises:
        UserError: it does not.
    """
    device = next((each.device for each in module.parameters()), torch.device("cpu"))
    shape = (2, in_channels, image_size, image_size)
    training = module.training
    try:
        with torch.no_grad():
            logits = module.eval()(torch.zeros(shape, device=device))
    except Exception as error:
        raise UserError(f"{name} cannot take images {list(shape)}: {type(error).__name__}: {error}") from None
    finally:
        module.train(training)
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, num_classes):
        found = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(f"{name} must give logits {[2, num_classes]} in evaluation mode, not {found}")
    return module


def _registrar(kind: str, name: str, taken: tuple[str, ...]) -> Callable[[Part], Part]:
    other = {"model": "teacher", "teacher": "model"}.get(kind)
    if name in taken or (other and name in _parts[other]):
        raise UserError(f"there is a {kind if name in taken else other} {name!r} already: choose another name")

    def remember(part: Part) -> Part:
        _parts[kind][name] = part
        return part

    return remember


def _import_file(path: Path) -> None:
    name = f"titn_parts_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"--import {path}: a Python file ends in .py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _code(part: Callable[..., Any]) -> str:
    try:
        file = inspect.getsourcefile(part)
        return hashlib.sha256(Path(str(file)).read_bytes()).hexdigest()
    except (OSError, TypeError):
        raise UserError(f"the source of {part.__name__} cannot be read: put it into a Python file") from None
