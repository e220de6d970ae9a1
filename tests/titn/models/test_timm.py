"""Our models through timm's registry behave as timm's own."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import timm
import timm.optim
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

import titn
from titn.data.dataset import load_dataset
from titn.data.decoding import decode
from titn.errors import UserError
from titn.models.registry import model_sizes
from titn.models.sizes import Sizes
from titn.models.timm_entries import TIMM_NAMES
from titn.network import NetworkSpec, load_network, save_network
from titn.train import TrainConfig, train
from titn.training.trainer import test_logits as logits_of

BATCH = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def distilled(**options) -> torch.nn.Module:
    return timm.create_model("titn", num_classes=5, img_size=16, depth=1, **options)


@pytest.mark.parametrize("name", titn.models.MODELS)
def test_created_by_name(name: str) -> None:
    model = timm.create_model(TIMM_NAMES[name], num_classes=5, in_chans=1, img_size=16, depth=1)
    assert (model.num_classes, model.in_chans, model.image_size) == (5, 1, 16)
    assert model.train()(torch.randn(2, 1, 16, 16)).shape == (2, 5)
    assert timm.models.is_model(TIMM_NAMES[name])
    assert model.pretrained_cfg["num_classes"] == 5
    data = timm.data.resolve_model_data_config(model)
    assert data["input_size"] == (1, 16, 16) and len(data["mean"]) == len(data["std"]) == 1


def test_default_configuration() -> None:
    model = timm.create_model("titn")
    assert model.num_classes == 100 and model.image_size == 32
    assert model.default_cfg["architecture"] == "titn" and model.default_cfg["input_size"] == (3, 32, 32)
    classifiers = model.default_cfg["classifier"]
    assert tuple(model.get_submodule(name) for name in classifiers) == model.get_classifier()
    assert model.get_submodule(model.default_cfg["first_conv"]) is model.pixel_embed
    with pytest.raises(RuntimeError, match="pretrained"):
        timm.create_model("titn", pretrained=True)


def test_distilled_training_means_what_it_means_in_timm() -> None:
    ours = distilled()
    theirs = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=5, img_size=16)
    for model in (ours, theirs):
        assert isinstance(model.train()(BATCH), torch.Tensor)
        model.set_distilled_training(True)
        assert isinstance(model(BATCH), tuple)
        assert isinstance(model.eval()(BATCH), torch.Tensor)
        model.set_distilled_training(False)
        assert isinstance(model.train()(BATCH), torch.Tensor)
    assert titn.create_model("titn", num_classes=5, image_size=16, depth=1).distilled_training
    ours.set_distilled_training()
    with torch.no_grad():
        parts = ours(BATCH)
        torch.testing.assert_close(ours.eval()(BATCH), (parts[0] + parts[1]) / 2)


def test_distilled_training_needs_a_distillation_token() -> None:
    model = titn.create_model("tnt", depth=1)
    model.set_distilled_training(False)
    with pytest.raises(UserError, match="no distillation token"):
        model.set_distilled_training(True)


@pytest.mark.parametrize("name", ["titn", "tnt", "deit", "vit"])
def test_classifier_can_be_replaced(name: str) -> None:
    model = timm.create_model(TIMM_NAMES[name], num_classes=5, img_size=16, depth=1)
    model.reset_classifier(9, "avg")
    assert model.pool == "mean" and model.num_classes == 9
    assert model(BATCH).shape == (2, 9)
    logits = model.eval()(BATCH)
    features = model.forward_features(BATCH)
    assert features.shape == (2, model.num_tokens, 192)
    torch.testing.assert_close(model.forward_head(features), logits)
    before = model.forward_head(features, pre_logits=True)
    assert before.shape == (2, model.num_features)
    model.reset_classifier(0)
    torch.testing.assert_close(model(BATCH), before)


def test_num_classes_zero_gives_features() -> None:
    assert timm.create_model("titn", num_classes=0, img_size=16, depth=1).eval()(BATCH).shape == (2, 192)


def test_global_pool_and_rates_pass_through() -> None:
    model = distilled(global_pool="token", drop_rate=0.1, drop_path_rate=0.2)
    assert model.pool == "token" and model.head_drop.p == 0.1 and model.blocks[0].patch.keep is not None
    with pytest.raises(UserError, match="global_pool"):
        distilled(global_pool="max")
    with pytest.raises(UserError, match="square"):
        timm.create_model("titn", img_size=(16, 32))
    with pytest.raises(UserError, match="img_size must be a whole number"):
        timm.create_model("titn", img_size=16.5)
    assert distilled(in_chans=np.int64(1), drop_rate=np.float32(0.5)).in_chans == 1


def test_optimizer_groups() -> None:
    model = distilled()
    assert model.no_weight_decay() == {"pixel_position", "patch_tokens", "patch_position"}
    groups = timm.optim.param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    undecayed = {id(parameter) for parameter in groups[0]["params"]}
    assert groups[0]["weight_decay"] == 0.0
    for name, parameter in model.named_parameters():
        assert (id(parameter) in undecayed) == (parameter.ndim == 1 or name in model.no_weight_decay()), name
    layered = timm.optim.create_optimizer_v2(model, "sgd", lr=0.1, layer_decay=0.5)
    scales = {id(parameter): group["lr_scale"] for group in layered.param_groups for parameter in group["params"]}
    named = dict(model.named_parameters())
    assert scales[id(named["pixel_embed.weight"])] == scales[id(named["patch_position"])] == 0.25
    assert scales[id(named["blocks.0.pixel.qkv.weight"])] == 0.5
    assert scales[id(named["norm.weight"])] == scales[id(named["norm_dist.weight"])] == 0.5  # as the last block
    assert scales[id(named["head.weight"])] == 1.0


def test_weights_pass_between_both_ways_of_creating() -> None:
    ours = titn.create_model("titn", num_classes=5, image_size=16, depth=1).eval()
    theirs = distilled().eval()
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours(BATCH), theirs(BATCH))


def saved(path: Path, name: str = "titn", **sizes) -> tuple[NetworkSpec, torch.nn.Module]:
    """A small network for RGB images of 24 pixels, stored in the file `path`."""
    options = {"num_classes": 3, "in_channels": 3, "image_size": 24, "depth": 1, **sizes}
    spec = NetworkSpec(
        name, model_sizes(name, **options), "scans", ("digit0", "digit1", "digit2"), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    )
    module = spec.build().eval()
    save_network(path, module, spec)
    return spec, module


def transform(model: torch.nn.Module):
    """timm's own preprocessing for the model."""
    return timm.data.create_transform(**timm.data.resolve_model_data_config(model))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run: digits, two epochs."""
    config = TrainConfig(
        dataset="digits", limit_train=64, depth=1, epochs=2, batch_size=32, teacher="none", device="cpu", pool="token",
        name="digits", runs_dir=str(tmp_path_factory.mktemp("runs")),
    )  # fmt: skip
    return Path(train(config, console=Console(quiet=True)).run)


def test_a_run_in_timm_sees_its_images_as_it_was_trained_on_them(run: Path) -> None:
    file = run / "checkpoints" / "epoch-0002" / "model.safetensors"
    module, spec = load_network(file)
    digits = load_dataset("digits", "data", image_size=spec.image_size)
    expected = logits_of(module, digits, torch.device("cpu"))
    model = timm.create_model("titn", checkpoint_path=str(file)).eval()
    assert (model.num_classes, model.in_chans, model.image_size, model.pool) == (10, 1, spec.image_size, "token")
    config = timm.data.resolve_model_data_config(model)
    assert config["input_size"] == (1, spec.image_size, spec.image_size)
    assert (config["mean"], config["std"]) == (spec.mean, spec.std) == (digits.mean, digits.std)
    assert config["interpolation"] == "bilinear" and config["crop_pct"] == 1.0
    assert model.pretrained_cfg["label_names"] == digits.class_names
    images = torch.stack([transform(model)(Image.fromarray(image[..., 0])) for image in digits.test_images])
    with torch.no_grad():
        torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_timms_preprocessing_is_ours(channels: int, image_folder: Path, tmp_path: Path) -> None:
    sizes = {"in_channels": channels}
    spec = NetworkSpec("vit", model_sizes("vit", 3, **sizes, image_size=24, depth=1), "scans", tuple("abc"),
                       (0.3,) * channels, (0.2,) * channels)  # fmt: skip
    save_network(tmp_path / "model.safetensors", spec.build(), spec)
    model = timm.create_model(TIMM_NAMES["vit"], checkpoint_path=tmp_path / "model.safetensors")
    files = sorted(path for path in image_folder.rglob("*.*") if path.suffix in (".png", ".JPG"))
    assert len(files) == 30
    for file in files:
        ours = torch.tensor(decode(file.read_bytes(), 24, channels).pixels).permute(2, 0, 1)
        theirs = transform(model)(Image.open(file).convert("L" if channels == 1 else "RGB"))
        torch.testing.assert_close(theirs, (ours / 255 - 0.3) / 0.2)


def test_arguments_beside_a_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    spec, module = saved(file, pixel_dim=24)
    module.kernels = "auto"  # as in timm's registry
    images = torch.randn(2, 3, 24, 24)
    given = {"num_classes": 3, "in_chans": 3, "img_size": (24, 24), "pixel_dim": 24, "depth": 1}
    for options in ({}, given):
        model = timm.create_model("titn", checkpoint_path=file, **options).eval()
        assert model.sizes == spec.sizes and model.pretrained_cfg["mean"] == (0.1, 0.2, 0.3)
        assert torch.equal(model(images), module(images))
    pooled = timm.create_model(
        "titn", checkpoint_path=file, global_pool="token", pretrained_cfg_overlay={"std": (1.0,) * 3}
    )
    assert pooled.pool == "token"
    assert (pooled.pretrained_cfg["mean"], pooled.pretrained_cfg["std"]) == ((0.1, 0.2, 0.3), (1.0,) * 3)
    with pytest.raises(RuntimeError, match="size mismatch"):
        timm.create_model("titn", checkpoint_path=file, num_classes=5)


def test_weights_of_other_programs_follow_the_arguments(tmp_path: Path) -> None:
    source = distilled()
    save_file(source.state_dict(), tmp_path / "plain.safetensors")
    torch.save({"state_dict": source.state_dict()}, tmp_path / "plain.pth")
    for file in (tmp_path / "plain.safetensors", tmp_path / "plain.pth"):
        model = distilled(checkpoint_path=file)
        assert torch.equal(model.eval()(BATCH), source.eval()(BATCH))
        assert model.pretrained_cfg["input_size"] == (3, 16, 16) and "label_names" not in model.pretrained_cfg


def test_a_run_or_checkpoint_as_a_folder(run: Path) -> None:
    newest = run / "checkpoints" / "epoch-0002"
    expected = load_file(newest / "model.safetensors")
    for folder in (run, newest):
        with pytest.raises(UserError, match="timm loads a file") as caught:
            timm.create_model("titn", checkpoint_path=folder)
        assert f"checkpoint_path={str(newest / 'model.safetensors')!r}" in str(caught.value)
    model = timm.create_model("titn", pretrained=True, pretrained_cfg_overlay={"file": run})
    assert model.pretrained_cfg["num_classes"] == 10 and len(model.pretrained_cfg["mean"]) == 1
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def test_what_was_saved_last_is_newest(tmp_path: Path) -> None:
    for name, moment in (("epoch-9999", 100), ("epoch-10000", 200)):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        file = tmp_path / "checkpoints" / name / "model.safetensors"
        saved(file)
        os.utime(file, (moment, moment))
    with pytest.raises(UserError, match="epoch-10000"):
        timm.create_model("titn", checkpoint_path=tmp_path)


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    saved(file, "vit")
    with pytest.raises(UserError, match="the weights of vit, not of titn; ask timm for 'vit'"):
        timm.create_model("titn", checkpoint_path=file)
    teacher = NetworkSpec("small_cnn", Sizes(3, 1, 16), "scans", tuple("abc"), (0.5,), (0.5,))
    save_network(file, teacher.build(), teacher)
    with pytest.raises(UserError, match="the weights of small_cnn, not of titn; timm has no such teacher"):
        timm.create_model("titn", checkpoint_path=file)
    file.write_bytes(b"damaged")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        timm.create_model("titn", checkpoint_path=file)
    with pytest.raises(UserError, match="neither a run nor a checkpoint"):
        timm.create_model("titn", checkpoint_path=tmp_path.parent)
