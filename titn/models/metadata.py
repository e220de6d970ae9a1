"""What the metadata of a safetensors file say about the network whose weights it holds."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError, safe_open

from titn.errors import UserError
from titn.models.registry import SIZES, model_sizes
from titn.models.sizes import Sizes

_KEY = "titn"


@dataclass(frozen=True)
class StoredNetwork:
    """Architecture, data set and classes of a trained network; `mean` and `std` are per channel on the 0..1 scale."""

    name: str
    sizes: Sizes
    """A student's `TNTSizes` or `ViTSizes`; plain for a teacher."""
    dataset: str
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def read(cls, path: str | Path) -> Self | None:
        """What stands in the metadata of the safetensors file `path`; None where they are not `to_metadata`'s.

        Raises:
            UserError: the file is missing or damaged, or this version cannot read what its metadata say.
        """
        try:
            with safe_open(path, framework="pt") as file:
                text = (file.metadata() or {}).get(_KEY)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is not a readable safetensors file: {error}") from None
        if text is None:
            return None
        try:
            values = json.loads(text)
            sequences = (tuple(values[name]) for name in ("class_names", "mean", "std"))
            return cls(values["name"], _sizes(values), values["dataset"], *sequences)
        except (ValueError, KeyError, TypeError, UserError) as error:
            what = f"{type(error).__name__}: {error}"
            raise UserError(f"{path} describes its network in a way this version cannot read ({what})") from None

    def to_metadata(self) -> dict[str, str]:
        """The metadata to store in a safetensors file beside the weights."""
        return {"format": "pt", _KEY: json.dumps(asdict(self))}


def _sizes(values: dict[str, Any]) -> Sizes:
    """The sizes in a file's description; an old one names only what differs from the model's own."""
    name = values["name"]
    if "sizes" in values:
        kind = type(SIZES[name]) if name in SIZES else Sizes
        return kind(**values["sizes"])
    arguments = [values[key] for key in ("num_classes", "in_channels", "image_size")]
    return model_sizes(name, *arguments, **values["overrides"]) if name in SIZES else Sizes(*arguments)
