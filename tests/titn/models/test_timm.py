"""Our models through timm's registry behave as timm's own."""

from __future__ import annotations

import pytest
import timm
import timm.optim
import torch

import titn
from titn.errors import UserError
from titn.models.timm_entries import TIMM_NAMES

BATCH = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def distilled(**options) -> torch.nn.Module:
    return timm.create_model("titn", num_classes=5, img_size=16, depth=1, **options)


@pytest.mark.parametrize("name", titn.models.MODELS)
def test_created_by_name(name: str) -> None:
    model = timm.create_model(TIMM_NAMES[name], num_classes=5, in_chans=1, img_size=16, depth=1)
    assert (model.num_classes, model.in_chans, model.image_size) == (5, 1, 16)
    assert model.train()(torch.randn(2, 1, 16, 16)).shape == (2, 5)
    assert timm.models.is_model(TIMM_NAMES[name])
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 32, 32)


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
