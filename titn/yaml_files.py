"""Settings in YAML files: recipes of data sets, `--config`, the configuration of a run; and mistakes in one line."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from titn.errors import UserError
from titn.settings import Subject, choices, fields_of, flag

RECIPES = Path(__file__).parent / "recipes"


def recipe_for(dataset: str, role: str, kind: str = "paper") -> dict[str, Any]:
    """What the data set's recipe says of a student's or a teacher's run where it differs from the defaults.

    Args:
        dataset: name or folder.
        role: "student" or "teacher".
        kind: "paper", or "quick": `recipes/NAME-quick.yaml`.

    Raises:
        UserError: the data set has no quick recipe.
    """
    if kind == "paper" and dataset in ("cifar10", "cifar100"):
        return {}
    if kind == "quick" and dataset == "digits":
        raise UserError("--recipe quick: digits has one recipe, which takes minutes: drop --recipe")
    ending = "" if kind == "paper" else f"-{kind}"
    path = RECIPES / f"{dataset}{ending}.yaml"
    if not re.fullmatch(r"\w+", dataset) or not path.is_file():
        path = RECIPES / f"folder{ending}.yaml"
    recipe = load_yaml(path)
    sections = {section: recipe.pop(section, None) or {} for section in ("student", "teacher")}
    return recipe | sections[role]


def read_yaml(path: Path, cls: type[Subject], *, again: bool = False) -> dict[str, Any]:
    """Settings from a YAML file; an unknown name is a UserError.

    A run's own file, which lies beside its record of the data set, says how to train, not where the new run lies.
    """
    values = {"import_" if name == "import" else name: value for name, value in load_yaml(path).items()}
    if again and (path.parent / "dataset.json").is_file():
        values = {name: value for name, value in values.items() if name not in ("name", "runs_dir")}
    check_names(values, cls, f"{path}: {cls.__name__}")
    return {name: _from_yaml(value, fields_of(cls)[name]) for name, value in values.items()}


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a mapping that names one key twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def load_yaml(path: Path) -> dict[str, Any]:
    """Names and values; a file that cannot be read, or is no mapping, is a UserError."""
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


def check_names(values: Mapping[str, Any], cls: type[Subject], where: str) -> None:
    """Raise UserError for a name that is no setting of `cls`."""
    known = fields_of(cls)
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(sorted(known))}"
            raise UserError(f"{where} has no setting {name!r}; {hint}")


def plain(value: Any) -> Any:
    """numpy's numbers and paths as Python's own."""
    if isinstance(value, np.generic):
        return value.item()
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def one_line(error: ValidationError) -> str:
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
