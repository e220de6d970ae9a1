"""Sizes of the models: checked and normalised when made, one object for constructor, registry and file."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, asdict, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from titn.errors import UserError
from titn.models import MODELS, create_model
from titn.models.registry import SIZES, build, model_sizes
from titn.models.sizes import Sizes, TNTSizes, ViTSizes
from titn.network import NetworkSpec, load_network, read_spec, save_network
from titn.teachers.architectures import create_teacher

OLD = {
    "name": "titn",
    "num_classes": 3,
    "in_channels": 1,
    "image_size": 16,
    "dataset": "digits",
    "class_names": ["a", "b", "c"],
    "mean": [0.3],
    "std": [0.2],
    "overrides": {"depth": 1, "pool": "token"},
}
"""What files hold that were written before the sizes were stored."""


def spec(name: str, sizes: Sizes) -> NetworkSpec:
    return NetworkSpec(name, sizes, "digits", tuple("abc"), (0.25,) * sizes.in_channels, (0.5,) * sizes.in_channels)


def test_numbers_of_any_type_are_taken_where_they_are_whole() -> None:
    sizes = TNTSizes(
        num_classes=np.int64(7),
        in_channels=np.uint8(1),
        image_size=np.float32(16),
        depth=2.0,
        patch_heads=Fraction(8),
        pool=np.str_("token"),
        distilled=np.bool_(False),
    )
    assert sizes == TNTSizes(num_classes=7, in_channels=1, image_size=16, depth=2, pool="token", distilled=False)
    assert {type(value) for value in asdict(sizes).values()} == {int, str, bool}
    assert json.loads(json.dumps(asdict(sizes))) == asdict(sizes)
    values = np.array([0.1, 0.25], dtype=np.float32)
    module = create_model(np.array(["vit"])[0], np.arange(10).max() + 1, drop_rate=values[1], drop_path_rate=values[0])
    assert module.num_classes == 10 and module.head_drop.p == 0.25


@pytest.mark.parametrize("value", [True, np.bool_(True), 2.5, np.float64(2.5), np.nan, np.inf, -1, "2", None, [2], 2j])
def test_other_values_are_refused(value: object) -> None:
    for name in ("num_classes", "depth"):
        with pytest.raises(UserError, match=f"{name} must be a whole number of at least [01], not ") as caught:
            TNTSizes(**{name: value})
        assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distilled": 1}, "distilled must be True or False, not 1"),
        ({"pool": None}, "pool must be one of mean, token, not None"),
        ({"pool": ["mean"]}, "pool must be one of mean, token"),
        ({"depth": 0}, "depth must be a whole number of at least 1, not 0"),
        ({"num_classes": -1}, "num_classes must be a whole number of at least 0, not -1"),
        ({"image_size": 30}, "patch_size 8 does not divide image_size 30; patch_size 6 would"),
        ({"pixel_size": 3}, "pixel_size 3 does not divide patch_size 8; pixel_size 2 would"),
    ],
)
def test_no_object_with_bad_sizes_can_be_made(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TNTSizes(**changes)
    with pytest.raises(UserError, match=message):
        replace(SIZES["titn"], **changes)
    with pytest.raises(FrozenInstanceError):
        TNTSizes().depth = 0


@pytest.mark.parametrize("name", MODELS)
def test_the_model_holds_the_sizes_it_was_made_from(name: str) -> None:
    sizes = model_sizes(name, 5, 1, 16, depth=1)
    torch.manual_seed(0)
    module = build(sizes)
    assert module.sizes == sizes and isinstance(sizes, ViTSizes if name in ("vit", "deit") else TNTSizes)
    assert (module.num_classes, module.in_channels, module.image_size) == (5, 1, 16)
    assert module.num_tokens == sizes.num_tokens == (16 // sizes.patch_size) ** 2 + 1 + sizes.distilled
    torch.manual_seed(0)
    again = create_model(name, 5, 1, 16, depth=1).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in module.state_dict().items())
    module.reset_classifier(9, "token")
    assert module.sizes == replace(sizes, num_classes=9, pool="token")


def test_a_file_says_all_sizes_whatever_the_registry_says_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths = {"patch_dim": 96, "patch_heads": 4, "pixel_dim": 24, "pixel_heads": 2}
    stored = spec("titn_authors", model_sizes("titn_authors", 3, 1, 24, depth=2, pool="token", **widths))
    module = stored.build().eval()
    save_network(tmp_path / "model.safetensors", module, stored)
    monkeypatch.setitem(SIZES, "titn_authors", TNTSizes(depth=1))
    loaded, read = load_network(tmp_path / "model.safetensors")
    assert read == stored and loaded.sizes == stored.sizes
    images = torch.randn(2, 1, 24, 24)
    assert torch.equal(loaded.eval()(images), module(images))
    assert load_file(tmp_path / "model.safetensors").keys() == module.state_dict().keys()


def test_a_teachers_file(tmp_path: Path) -> None:
    stored = spec("small_cnn", Sizes(3, 1, 16))
    save_network(tmp_path / "model.safetensors", stored.build(), stored)
    module, read = load_network(tmp_path / "model.safetensors")
    assert read == stored and type(read.sizes) is Sizes
    assert module.eval()(torch.randn(2, 1, 16, 16)).shape == (2, 3)


def test_files_from_before_the_sizes_were_stored(tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    weights = create_model("titn", 3, 1, 16, depth=1, pool="token").state_dict()
    save_file(weights, path, metadata={"format": "pt", "titn": json.dumps(OLD)})
    module, read = load_network(path)
    assert read == NetworkSpec(
        "titn", TNTSizes(3, 1, 16, depth=1, pool="token"), "digits", ("a", "b", "c"), (0.3,), (0.2,)
    )
    assert all(torch.equal(value, weights[key]) for key, value in module.state_dict().items())
    teacher = OLD | {"name": "small_cnn", "overrides": {}}
    save_file(create_teacher("small_cnn", 3, 1, 16).state_dict(), path, metadata={"titn": json.dumps(teacher)})
    assert load_network(path)[1].sizes == Sizes(3, 1, 16)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read"),
        ("[]", "cannot read"),
        ("{}", "cannot read"),
        (json.dumps({**OLD, "overrides": {"layers": 3}}), "layers"),
        (json.dumps({**OLD, "image_size": 30}), "does not divide image_size 30"),
        (json.dumps({**OLD, "mean": None}), "cannot read"),
        (json.dumps({**OLD, "name": "titan", "overrides": {}}), "unknown network 'titan'"),
        (None, "not written by this project"),
    ],
)
def test_a_description_that_cannot_be_read_is_one_line(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(1)}, path, metadata=None if text is None else {"titn": text})
    with pytest.raises(UserError, match=message) as caught:
        read_spec(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_the_description_is_plain_json(tmp_path: Path) -> None:
    stored = spec("vit", model_sizes("vit", np.int64(3), 1, np.int32(16), depth=np.int64(1)))
    save_network(tmp_path / "model.safetensors", stored.build(), stored)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        values = json.loads(file.metadata()["titn"])
    assert values["sizes"] == asdict(ViTSizes(3, 1, 16, depth=1))
    assert {key: value for key, value in values.items() if key != "sizes"} == {
        "name": "vit", "dataset": "digits", "class_names": ["a", "b", "c"], "mean": [0.25], "std": [0.5],
    }  # fmt: skip
