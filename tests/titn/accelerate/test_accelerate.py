"""`titn.accelerate` on timm's own models: the same results, gradients and state dict, and an exact way back."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator

import pytest
import timm
import torch
from foreign_weights import fill, message
from timm.layers import SwiGLU, set_fused_attn
from timm.models.tnt import TNT
from timm.models.vision_transformer import Block, ParallelScalingBlock, VisionTransformer
from torch import Tensor, nn

import titn

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TNT_PARTS = {
    "attn_in": "inner_block",
    "mlp_in": "inner_block",
    "proj": "pixels_to_patches",
    "attn_out": "outer_block",
    "mlp": "outer_block",
}


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Nothing compiled before or after the test."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def tnt(**options) -> nn.Module:
    sizes = {"embed_dim": 32, "inner_dim": 8, "num_heads_inner": 2, "num_heads_outer": 4, "depth": 2}
    return filled(TNT(img_size=32, patch_size=8, num_classes=5, **{**sizes, **options}))


def legacy(**options) -> nn.Module:
    return tnt(legacy=True, **options)


def biased(**options) -> nn.Module:
    return tnt(qkv_bias=True, **options)


def wide_pixels(**options) -> nn.Module:
    """A norm of another eps, one row of pixels, a narrow MLP."""
    return legacy(norm_layer=lambda *a, **k: nn.LayerNorm(*a, eps=1e-3, **k), mlp_ratio=2, first_stride=8, **options)


def vit(**options) -> nn.Module:
    return filled(timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5, **{"depth": 2, **options}))


def vit_scaled(**options) -> nn.Module:
    """LayerScale, registers, no class token."""
    return vit(init_values=0.3, reg_tokens=2, class_token=False, global_pool="avg", **options)


def deit(**options) -> nn.Module:
    return filled(timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=2, num_classes=5, **options))


def filled(model: nn.Module) -> nn.Module:
    """Weights far from their initialisation, so that no residual branch is negligible; float64."""
    model = fill(model).double().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(4)
    return model


def results(model: nn.Module, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    """Logits and the gradient of every parameter, all weighted unevenly."""
    torch.manual_seed(seed)
    model.zero_grad()
    logits = model(IMAGES.to(dtype))
    (logits * torch.linspace(-1, 1, logits.numel(), dtype=dtype).view_as(logits)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    return [logits.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Each tensor within `tolerance` of the largest of its expected values."""
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other.double()).abs().max() <= tolerance * other.abs().max().clamp(min=1e-3)


MODELS = [tnt, legacy, biased, wide_pixels, vit, vit_scaled, deit]


@pytest.mark.parametrize("build", MODELS)
def test_same_logits_and_gradients(build: Callable[..., nn.Module]) -> None:
    model = build()
    before = results(model)
    parameters, state = dict(model.named_parameters()), list(model.state_dict())
    report = titn.accelerate(model, kernels="torch")
    assert_close(results(model), before, 1e-10)
    assert list(model.state_dict()) == state
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    report.undo()
    assert all(torch.equal(one, other) for one, other in zip(results(model), before, strict=True))


@pytest.mark.parametrize("build", [tnt, legacy, vit])
def test_same_with_triton(build: Callable[..., nn.Module]) -> None:
    """Within 160 roundings of float32, through sums of up to 768 products; timm's own float32 errs by up to 2.3e-6."""
    model = build(depth=1)
    before = results(model)
    model = model.float()
    report = titn.accelerate(model, kernels="triton")
    assert set(report.replaced.values()) <= {*TNT_PARTS.values(), "layernorm_mlp"}
    assert_close(results(model, torch.float32), before, 1e-5)


def test_everything_of_a_legacy_block_is_replaced() -> None:
    report = titn.accelerate(legacy())
    assert report.replaced == {
        f"blocks.{i}.{part}": operation for i in range(2) for part, operation in TNT_PARTS.items()
    }
    assert report.kept == {}
    assert str(report).splitlines() == [
        "replaced, kernels='auto':",
        *(f"  blocks.0-1.{part}: {operation}" for part, operation in TNT_PARTS.items()),
    ]


def test_the_replaced_modules_are_not_called() -> None:
    """What is reported as replaced does not run timm's code; what is kept does."""
    for build in (tnt, legacy, vit):
        model = build()
        report = titn.accelerate(model)
        called: list[str] = []
        names = {id(module): name for name, module in model.named_modules()}

        def record(module: nn.Module, *_: object, names: dict[int, str] = names, called: list[str] = called) -> None:
            called.append(names[id(module)])

        with nn.modules.module.register_module_forward_hook(record):
            model(IMAGES)
        assert not set(report.replaced) & set(called)
        assert set(report.kept) <= set(called)


def test_reasons() -> None:
    report = titn.accelerate(tnt())
    assert "norm2_proj" in report.kept["blocks.1.proj"] and "blocks.1.proj" not in report.replaced
    report = titn.accelerate(tnt(attn_drop_rate=0.1))
    assert report.kept["blocks.0.attn_in"] == ("in training, dropout 0.1 inside it is not part of the fused operation")
    assert report.replaced["blocks.0.attn_in"] == "inner_block in evaluation"
    assert report.replaced["blocks.0.mlp"] == "outer_block in evaluation, layernorm_mlp in training"
    model = vit()
    model.blocks[0].mlp = SwiGLU(192, 300).double()
    assert titn.accelerate(model).kept["blocks.0.mlp"] == "SwiGLU is not timm's Mlp"
    assert type(model.blocks[0]) is Block
    model.blocks[1].mlp.act = nn.GELU(approximate="tanh")
    assert "SwiGLU is not timm's Mlp and 3 more" in message(lambda: titn.accelerate(model))
    del model.blocks[0]
    assert "not the exact GELU" in message(lambda: titn.accelerate(model))
    model = vit()
    model.blocks[1].norm2 = nn.LayerNorm(192, elementwise_affine=False, dtype=torch.float64)
    model.blocks[0].mlp.fc1.register_forward_hook(lambda *_: None)
    assert "fc1 has hooks" in message(lambda: titn.accelerate(model))
    model.blocks[0].mlp.fc1._forward_hooks.clear()
    kept = titn.accelerate(model).kept
    assert "its LayerNorm is not one over channels with weight and bias" in kept["blocks.1.mlp"]


def test_blocks_of_other_kinds_are_named() -> None:
    model = vit()
    model.blocks[1] = ParallelScalingBlock(192, 3)
    report = titn.accelerate(model)
    assert report.kept["blocks.1"] == "ParallelScalingBlock is no block that has fused operations"
    assert list(report.replaced) == ["blocks.0.mlp"]


def test_mistakes() -> None:
    assert message(lambda: titn.accelerate(legacy(), kernels="cuda")).startswith("unknown kernels 'cuda'; choose from")
    assert "ResNet has none" in message(lambda: titn.accelerate(timm.create_model("resnet10t", num_classes=2)))
    assert "not str" in message(lambda: titn.accelerate("tnt_s_patch16_224"))  # type: ignore[arg-type]
    with torch.device("meta"):
        wide = timm.create_model("vit_base_patch16_224", depth=1)
    assert "768 channels, Triton kernels exist up to 640" in message(lambda: titn.accelerate(wide, kernels="triton"))
    assert type(wide.blocks[0]) is Block


def test_another_module_afterwards_is_never_ignored() -> None:
    model = vit()
    report = titn.accelerate(model)
    model.blocks[1].mlp.act = nn.ReLU()
    assert "call titn.accelerate(model) again" in message(lambda: model(IMAGES))
    assert list(titn.accelerate(model).replaced) == ["blocks.0.mlp"]
    expected = copy.deepcopy(model)
    titn.restore(expected)
    torch.testing.assert_close(model(IMAGES), expected(IMAGES), rtol=0, atol=1e-10)
    report.undo()
    assert not any(hasattr(block, "titn_kinds") for block in model.blocks)


def test_other_changes_are_seen_by_the_next_call() -> None:
    """A hook and a rate: blocks are checked when they are replaced, not in every forward pass."""
    model = vit(drop_path_rate=0.5).train()
    titn.accelerate(model)
    model.blocks[0].drop_path2.drop_prob = model.blocks[1].drop_path2.drop_prob = 0.0
    model.blocks[1].mlp.register_forward_hook(lambda *_: torch.zeros((), dtype=torch.float64))
    report = titn.accelerate(model)
    assert "has hooks" in report.kept["blocks.1.mlp"] and list(report.replaced) == ["blocks.0.mlp"]
    torch.manual_seed(0)
    found = model(IMAGES)
    report.undo()
    torch.manual_seed(0)
    torch.testing.assert_close(found, model(IMAGES), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("build", "count"), [("tnt_s", 23.8), ("tnt_s_legacy", 23.8), ("tnt_b", 65.4)])
def test_parameter_counts_of_timm(build: str, count: float) -> None:
    with torch.device("meta"):
        model = timm.create_model(f"{build}_patch16_224")
    report = titn.accelerate(model)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == count
    assert len(report.replaced) == 12 * (5 if "legacy" in build else 4)
    assert len(titn.accelerate(model, kernels="triton").replaced) == len(report.replaced)
    titn.restore(model)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == count


@pytest.mark.parametrize(
    ("build", "rates"),
    [
        (legacy, {"drop_path_rate": 0.5}),
        (tnt, {"drop_path_rate": 0.5, "proj_drop_rate": 0.3}),
        (vit, {"drop_path_rate": 0.5}),
        (vit_scaled, {"drop_path_rate": 0.5}),
        (vit, {"proj_drop_rate": 0.3, "drop_path_rate": 0.5}),
    ],
)
def test_training_drops_what_timm_drops(build: Callable[..., nn.Module], rates: dict[str, float]) -> None:
    """timm draws in the same order, so that one seed gives one result; and evaluation is fused again."""
    model = build(**rates).train()
    before = [results(model, seed=seed) for seed in range(3)]
    assert not torch.equal(before[0][0], before[1][0])
    titn.accelerate(model)
    for seed, expected in enumerate(before):
        assert_close(results(model, seed=seed), expected, 1e-10)
    model.eval()
    found = results(model)
    titn.restore(model)
    assert_close(found, results(model), 1e-10)


@torch.no_grad()
def test_attention_dropout_in_training_is_timms() -> None:
    """Forward only: timm's own backward fails, its dropout overwrites what the softmax saved."""
    model = legacy(attn_drop_rate=0.3).train()
    titn.accelerate(model)
    torch.manual_seed(0)
    found = model(IMAGES)
    titn.restore(model)
    torch.manual_seed(0)
    torch.testing.assert_close(found, model(IMAGES), rtol=0, atol=1e-10)
    assert not torch.allclose(found, model(IMAGES))


def test_drop_path_alone_keeps_nothing_in_training() -> None:
    report = titn.accelerate(legacy(drop_path_rate=0.5))
    assert report.kept == {}
    assert report.replaced["blocks.0.mlp_in"] == "inner_block"  # the first block drops nothing
    assert report.replaced["blocks.1.mlp_in"] == "inner_block in evaluation, layernorm_mlp in training"
    assert report.replaced["blocks.1.attn_out"] == "outer_block in evaluation, outer_attention in training"


@pytest.mark.parametrize("build", [legacy, vit])
def test_twice_copied_and_pickled(build: Callable[..., nn.Module]) -> None:
    model = build()
    before = model(IMAGES)
    first = titn.accelerate(model, kernels="triton")
    second = titn.accelerate(model, kernels="torch")
    assert (first.replaced, first.kept) == (second.replaced, second.kept)
    fused = model(IMAGES)
    clone = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for other in (clone, loaded):
        assert torch.equal(other(IMAGES), fused)
        titn.restore(other)
        assert torch.equal(other(IMAGES), before)
        titn.restore(other)
    second.undo()
    first.undo()
    assert [type(module) for module in model.modules()] == [type(module) for module in clone.modules()]
    assert [list(vars(block)) for block in model.blocks] == [list(vars(block)) for block in build().blocks]


@pytest.mark.parametrize("build", [tnt, deit])
def test_state_dict_both_ways(build: Callable[..., nn.Module]) -> None:
    original, fused = build(), build()
    titn.accelerate(fused)
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.mul_(0.9)
    fused.load_state_dict(original.state_dict())
    torch.testing.assert_close(fused(IMAGES), original(IMAGES), rtol=0, atol=1e-10)
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.mul_(1.1)
    original.load_state_dict(fused.state_dict())
    torch.testing.assert_close(original(IMAGES), fused(IMAGES), rtol=0, atol=1e-10)


@pytest.mark.parametrize("build", [legacy, vit])
def test_checkpointing_of_activations(build: Callable[..., nn.Module]) -> None:
    model = build().train()
    before = results(model)
    titn.accelerate(model)
    model.set_grad_checkpointing()
    assert_close(results(model), before, 1e-10)


@pytest.mark.parametrize("build", [legacy, vit])
def test_compiles_in_one_graph(build: Callable[..., nn.Module], fresh_compiler: None) -> None:
    model = build(depth=1)
    before = results(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    titn.accelerate(compiled)
    assert_close(results(compiled), before, 1e-10)


@torch.no_grad()
def test_compiled_training_drops_what_timm_drops(fresh_compiler: None) -> None:
    model = legacy(drop_path_rate=0.5).train()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    titn.accelerate(model)
    torch.manual_seed(3)
    found = compiled(IMAGES)
    titn.restore(model)
    torch.manual_seed(3)
    torch.testing.assert_close(found, model(IMAGES), rtol=0, atol=1e-10)


@torch.no_grad()
def test_accelerated_after_compilation(fresh_compiler: None) -> None:
    """No Triton kernel takes float64: the error shows that the graph of timm's code is not used again."""
    model = vit(depth=1)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    before = compiled(IMAGES)
    titn.accelerate(model, kernels="triton")
    with pytest.raises(Exception, match="none of float32, float16, bfloat16"):
        compiled(IMAGES)
    titn.accelerate(model, kernels="torch")
    torch.testing.assert_close(compiled(IMAGES), before, rtol=0, atol=1e-10)
    titn.restore(model)
    assert torch.equal(compiled(IMAGES), before)


@pytest.mark.parametrize("build", [tnt, legacy, vit])
def test_autocast(build: Callable[..., nn.Module]) -> None:
    model = build()
    expected = model(IMAGES)
    model = model.float().train()
    titn.accelerate(model)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(IMAGES.float())
        logits.float().square().sum().backward()
    assert (logits.double() - expected).abs().max() <= 2**-5 * expected.abs().max()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_attention_masks_reach_timms_attention() -> None:
    set_fused_attn(False)
    try:
        model = vit()
    finally:
        set_fused_attn(True)
    titn.accelerate(model)
    block, tokens = model.blocks[0], torch.randn(2, 5, 192, dtype=torch.float64)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    found = block(tokens, attn_mask=mask)
    assert not torch.allclose(found, block(tokens))
    titn.restore(block)
    torch.testing.assert_close(found, block(tokens, attn_mask=mask), rtol=0, atol=1e-10)


def test_models_inside_other_modules() -> None:
    both = nn.ModuleDict(
        {"student": legacy(depth=1), "teacher": VisionTransformer(32, 16, depth=1, embed_dim=48, num_heads=3)}
    )
    report = titn.accelerate(both)
    assert {"student.blocks.0.mlp", "teacher.blocks.0.mlp"} <= set(report.replaced)
    report.undo()
    block = legacy(depth=1).blocks[0]
    assert list(titn.accelerate(block).replaced) == list(TNT_PARTS)
