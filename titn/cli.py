"""The command line of the training commands: a flag for every setting, grouped by subject."""

from __future__ import annotations

import argparse
import difflib
import sys
from typing import Any, TypeVar

import yaml
from pydantic.fields import FieldInfo

from titn.config import RunConfig
from titn.errors import OneLineParser, UserError
from titn.settings import choices, fields_of, flag, subjects

Config = TypeVar("Config", bound=RunConfig)


def parse(cls: type[Config], argv: list[str] | None = None) -> Config:
    """The configuration that `argv` (default: the process's own) asks for; `--help` prints its values and leaves.

    Raises:
        UserError: one line, for an unknown flag, a value of the wrong type or an unreadable `--config`.
    """
    arguments = sys.argv[1:] if argv is None else argv
    asks_for_help = any(argument in ("-h", "--help") for argument in arguments)
    parser = _parser(cls)
    said, unknown = parser.parse_known_args([each for each in arguments if each not in ("-h", "--help")])
    if unknown:
        raise UserError(_unknown(cls, unknown[0]))
    config = cls(**vars(said))
    if asks_for_help:
        _parser(cls, config).print_help()
        raise SystemExit(0)
    return config


def _parser(cls: type[RunConfig], shown: RunConfig | None = None) -> argparse.ArgumentParser:
    """A parser that leaves out what was not said; `shown` gives the values for its help."""
    parser = OneLineParser(
        prog=cls.program,
        usage=f"{cls.program} [--dataset DATASET] [--fast] [--FLAG VALUE ...]",
        description=f"{cls.__doc__} In brackets: what the flags given and the data set's recipe lead to.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for subject, fields in subjects(cls).items():
        group = parser.add_argument_group(subject)
        for name, field in fields.items():
            value = "" if shown is None else f" [{_shown(shown, name)}]"
            _add(group, name, field, f"{field.description}{value}".replace("%", "%%"))
    return parser


def _add(group: Any, name: str, field: FieldInfo, text: str) -> None:
    if field.annotation is bool:
        group.add_argument(flag(name), dest=name, action=argparse.BooleanOptionalAction, help=text)
    elif field.default_factory is dict:
        group.add_argument(flag(name), dest=name, nargs="+", action=_NamedValues, metavar="NAME=VALUE", help=text)
    else:
        words = "{" + ",".join(choices(field)) + "}" if choices(field) else flag(name).rpartition("-")[2].upper()
        optional = type(None) in getattr(field.annotation, "__args__", ())
        group.add_argument(flag(name), dest=name, metavar=words, type=_or_none if optional else str, help=text)


class _NamedValues(argparse.Action):
    """`name=value ...` as a dictionary; values are read as YAML."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        found = {}
        for pair in values:
            name, equals, value = pair.partition("=")
            if not equals:
                raise UserError(f"{self.option_strings[0]} takes name=value, not {pair!r}")
            found[name.replace("-", "_")] = yaml.safe_load(value)
        setattr(namespace, self.dest, found)


def _or_none(text: str) -> str | None:
    return None if text.lower() == "none" else text


def _shown(config: RunConfig, name: str) -> str:
    """The value of a setting in words."""
    value = getattr(config, name)
    if isinstance(value, dict):
        return " ".join(f"{key}={each}" for key, each in value.items()) or "none"
    if value == "auto" and name in ("batch_size", "lr"):
        return f"auto, at most {config.recipe_batch_and_rate[name == 'lr']:g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def _unknown(cls: type[RunConfig], argument: str) -> str:
    name = argument.partition("=")[0]
    flags = [flag(each) for each in fields_of(cls)]
    close = difflib.get_close_matches(name, flags, 1)
    hint = f"did you mean {close[0]}?" if close else f"see {cls.program} --help"
    return f"unknown argument {argument}; {hint}"
