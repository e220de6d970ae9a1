"""The models: counts of the paper, numerics against independent implementations, options and errors."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch._dynamo.testing
from timm.models.tnt import Block
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import titn
from titn.errors import UserError
from titn.models import MODELS, create_model

SMALL = {"num_classes": 7, "in_channels": 3, "image_size": 16}


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def perturbed(name: str, **options) -> nn.Module:
    """A small model in float64 whose parameters are all random, so that no zero bias or unit gamma hides a mistake."""
    module = create_model(name, **{**SMALL, "depth": 2, "kernels": "torch", **options}).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
    return module


def images(count: int = 3, channels: int = 3, size: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, channels, size, size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "expected", "tolerance"),
    [
        ("titn", 5_852_564, 0),
        ("titn_authors", 5_856_020, 0),
        ("titn_large_patch", 5_848_388, 0),
        ("tnt", 5_832_496, 0),
        ("deit", 5_421_320, 10_000),
        ("vit", 5_397_604, 10_000),
    ],
)
def test_parameter_counts_of_the_paper(name: str, expected: int, tolerance: int) -> None:
    assert abs(parameters(create_model(name, num_classes=100)) - expected) <= tolerance


@pytest.mark.parametrize(
    ("name", "forward", "training"),
    [
        ("titn", 110.69, 332.0),
        ("titn_authors", 110.69, 332.0),
        ("titn_large_patch", 35.48, 106.4),
        ("tnt", 105.20, 315.6),
        ("deit", 97.67, 292.4),
        ("vit", 92.18, 276.0),
    ],
)
def test_macs_of_the_paper_on_real_tensors(name: str, forward: float, training: float) -> None:
    module = create_model(name, num_classes=100, kernels="torch")
    batch = torch.randn(1, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        module.eval()(batch)
    assert round(counter.get_total_flops() / 2e6, 2) == forward
    with FlopCounterMode(display=False) as counter:
        output = module.train()(batch)
        sum(part.sum() for part in (output if isinstance(output, tuple) else (output,))).backward()
    assert round(counter.get_total_flops() / 2e6, 1) == training


class NaiveLayer:
    """A pre-norm Transformer layer on one sequence, written out head by head from the equations."""

    def __init__(self, layer: nn.Module, heads: int) -> None:
        self.w = dict(layer.named_parameters())
        self.heads = heads

    def norm(self, name: str, x: Tensor) -> Tensor:
        return naive_norm(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def __call__(self, x: Tensor) -> Tensor:
        width = x.shape[1]
        d = width // self.heads
        h = self.norm("norm1", x)
        weight, bias = self.w["qkv.weight"], self.w["qkv.bias"]
        q, k, v = (h @ weight[i * width : (i + 1) * width].T + bias[i * width : (i + 1) * width] for i in range(3))
        heads = []
        for i in range(self.heads):
            part = slice(i * d, (i + 1) * d)
            scores = torch.exp(q[:, part] @ k[:, part].T / math.sqrt(d))
            heads.append(scores / scores.sum(1, keepdim=True) @ v[:, part])
        x = x + self.linear("proj", torch.cat(heads, 1))
        h = self.linear("fc1", self.norm("norm2", x))
        h = h * (1 + torch.erf(h / math.sqrt(2))) / 2
        return x + self.linear("fc2", h)


def naive_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5) * weight + bias


def naive_tnt(module: nn.Module, image: Tensor, patch: int, pixel: int) -> list[Tensor]:
    """Logits of each head for one image, from the paper's description, one patch and one pixel at a time."""
    grid = image.shape[1] // patch
    streams = []
    for row in range(grid):
        for column in range(grid):
            square = image[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            cells = [
                square[:, y : y + pixel, x : x + pixel].flatten()
                for y in range(0, patch, pixel)
                for x in range(0, patch, pixel)
            ]
            embedded = torch.stack(cells) @ module.pixel_embed.weight.T + module.pixel_embed.bias
            streams.append(embedded + module.pixel_position)
    tokens = module.patch_tokens + module.patch_position
    if module.second_position is not None:
        tokens = tokens + module.second_position
    for block in module.blocks:
        inner, outer = NaiveLayer(block.pixel, 4), NaiveLayer(block.patch, 8)
        streams = [inner(stream) for stream in streams]
        rows = []
        for index in range(len(tokens)):
            if 1 <= index <= len(streams):
                flat = naive_norm(streams[index - 1], block.merge.norm.weight, block.merge.norm.bias).flatten()
                rows.append(tokens[index] + block.merge.proj.weight @ flat + block.merge.proj.bias)
            else:
                rows.append(tokens[index])
        tokens = outer(torch.stack(rows))
    representation = tokens[: grid * grid + 1].mean(0) if module.pool == "mean" else tokens[0]
    logits = [module.head.weight @ naive_norm(representation, module.norm.weight, module.norm.bias) + module.head.bias]
    if module.distilled:
        distillation = naive_norm(tokens[-1], module.norm_dist.weight, module.norm_dist.bias)
        logits.append(module.head_dist.weight @ distillation + module.head_dist.bias)
    return logits


@pytest.mark.parametrize("pool", ["mean", "token"])
@pytest.mark.parametrize(
    ("name", "patch", "pixel"),
    [
        ("titn", 8, 2),
        ("titn_authors", 8, 2),
        ("titn_large_patch", 16, 4),
        ("titn_patch4", 4, 2),
        ("titn_patch4_pixel1", 4, 1),
        ("tnt", 8, 2),
    ],
)
def test_logits_equal_the_equations_written_out(name: str, patch: int, pixel: int, pool: str) -> None:
    module = perturbed(name, pool=pool)
    batch = images(2)
    naive = [torch.stack(naive_tnt(module, image, patch, pixel)) for image in batch]
    expected = torch.stack(naive, dim=1)  # [heads, images, classes]
    trained = module.train()(batch)
    for ours, theirs in zip(trained if isinstance(trained, tuple) else (trained,), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(module.eval()(batch), expected.mean(0), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["deit", "vit"])
@pytest.mark.parametrize("pool", ["mean", "token"])
def test_vit_equals_torch_encoder_layers(name: str, pool: str) -> None:
    module = perturbed(name, pool=pool)
    batch = images()
    squares = nn.functional.unfold(batch, 8, stride=8).transpose(1, 2)
    tokens = torch.cat([module.tokens[:1].expand(3, 1, -1), squares @ module.patch_embed.weight.T], 1)
    if name == "deit":
        tokens = torch.cat([tokens, module.tokens[1:].expand(3, 1, -1)], 1)
    tokens = tokens + module.position
    for block in module.blocks:
        layer = nn.TransformerEncoderLayer(192, 8, 768, 0.0, "gelu", batch_first=True, norm_first=True).double()
        source = block.state_dict()
        names = {
            "self_attn.in_proj_": "qkv.", "self_attn.out_proj.": "proj.", "linear1.": "fc1.", "linear2.": "fc2.",
            "norm1.": "norm1.", "norm2.": "norm2.",
        }  # fmt: skip
        layer.load_state_dict({a + kind: source[b + kind] for a, b in names.items() for kind in ("weight", "bias")})
        tokens = layer(tokens)
    tokens = module.norm(tokens)
    representation = tokens[:, :5].mean(1) if pool == "mean" else tokens[:, 0]
    expected = module.head(representation)
    if name == "deit":
        expected = (expected + module.head_dist(tokens[:, 5])) / 2
    torch.testing.assert_close(module.eval()(batch), expected, rtol=1e-10, atol=1e-10)


def test_blocks_equal_timm_tnt_blocks() -> None:
    module = perturbed("tnt")
    pixels = module.embed_pixels(images())
    patches = torch.randn(3, 5, 192, dtype=torch.float64)
    their_pixels, their_patches = pixels.flatten(0, 1), patches
    for block in module.blocks:
        theirs = Block(12, 192, 16, num_heads_in=4, num_heads_out=8, qkv_bias=True, legacy=True).double()
        weights = {}
        for ours, suffix, width in ((block.pixel, "in", 12), (block.patch, "out", 192)):
            mlp, norm_mlp = ("mlp_in", "norm_mlp_in") if suffix == "in" else ("mlp", "norm_mlp")
            for kind in ("weight", "bias"):
                qkv = getattr(ours.qkv, kind)
                weights[f"attn_{suffix}.qk.{kind}"], weights[f"attn_{suffix}.v.{kind}"] = qkv.split([2 * width, width])
                weights[f"attn_{suffix}.proj.{kind}"] = getattr(ours.proj, kind)
                weights[f"norm_{suffix}.{kind}"] = getattr(ours.norm1, kind)
                weights[f"{norm_mlp}.{kind}"] = getattr(ours.norm2, kind)
                weights[f"{mlp}.fc1.{kind}"] = getattr(ours.fc1, kind)
                weights[f"{mlp}.fc2.{kind}"] = getattr(ours.fc2, kind)
        for kind in ("weight", "bias"):
            weights[f"norm1_proj.{kind}"] = getattr(block.merge.norm, kind)
            weights[f"proj.{kind}"] = getattr(block.merge.proj, kind)
        theirs.load_state_dict(weights)
        pixels, patches = block(pixels, patches)
        their_pixels, their_patches = theirs(their_pixels, their_patches)
    torch.testing.assert_close(pixels.flatten(0, 1), their_pixels, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(patches, their_patches, rtol=1e-10, atol=1e-10)


def test_pixel_embedding_is_a_strided_convolution() -> None:
    module = perturbed("titn", patch_size=8)
    weight = module.pixel_embed.weight.view(12, 3, 2, 2)
    convolved = nn.functional.conv2d(images(), weight, module.pixel_embed.bias, stride=2)
    patches = nn.functional.unfold(convolved, 4, stride=4).view(3, 12, 16, 4).permute(0, 3, 2, 1)
    torch.testing.assert_close(module.embed_pixels(images()), patches + module.pixel_position)


@pytest.mark.parametrize("name", MODELS)
def test_training_and_evaluation_outputs(name: str) -> None:
    module = create_model(name, **SMALL, depth=1).train()
    batch = images().float()
    trained = module(batch)
    evaluated = module.eval()(batch)
    assert module.distilled == (name not in ("tnt", "vit"))
    if module.distilled:
        assert isinstance(trained, tuple) and [part.shape for part in trained] == [(3, 7), (3, 7)]
        assert not torch.equal(*trained)
        torch.testing.assert_close(evaluated, (trained[0] + trained[1]) / 2)
    else:
        torch.testing.assert_close(evaluated, trained)
    assert (module.num_classes, module.in_channels, module.image_size) == (7, 3, 16)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_is_trained(name: str) -> None:
    module = create_model(name, **SMALL, depth=2).train()
    output = module(images().float())
    sum(part.square().sum() for part in (output if isinstance(output, tuple) else (output,))).backward()
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, key


def test_state_dict_does_not_depend_on_kernels_and_the_switch_reaches_every_layer() -> None:
    module = create_model("titn", **SMALL, depth=1, kernels="triton", drop_path_rate=0.1)
    other = create_model("titn", **SMALL, depth=1, kernels="torch")
    assert {key: value.shape for key, value in module.state_dict().items()} == {
        key: value.shape for key, value in other.state_dict().items()
    }
    module.kernels = "auto"
    block = module.blocks[0]
    assert block.pixel.kernels == block.merge.kernels == block.patch.kernels == module.kernels == "auto"


def test_initialisation() -> None:
    torch.manual_seed(0)
    module = create_model("titn", num_classes=100)
    for key, parameter in module.named_parameters():
        if "norm" in key and key.endswith("weight"):
            assert torch.equal(parameter, torch.ones_like(parameter)), key
        elif key.endswith("bias"):
            assert torch.equal(parameter, torch.zeros_like(parameter)), key
        elif parameter.numel() > 3000:
            small = key in module.tables or key.startswith("head")
            expected = 0.02 if small else parameter.shape[1] ** -0.5
            assert abs(parameter.std().item() / expected - 1) < 0.05, key
    torch.manual_seed(0)
    again = create_model("titn", num_classes=100)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True))


def test_other_sizes_channels_and_widths() -> None:
    widths = {"patch_dim": 96, "patch_heads": 4, "pixel_dim": 24, "pixel_heads": 2}
    module = create_model("titn", num_classes=3, in_channels=1, image_size=24, depth=1, **widths)
    first, second = module.train()(torch.randn(2, 1, 24, 24))
    assert first.shape == second.shape == (2, 3)
    assert module.blocks[0].pixel.qkv.weight.shape == (72, 24)


def test_long_sequences_use_another_attention_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    from titn.kernels.outer_block import reference

    module = perturbed("vit").eval()
    expected = module(images())
    monkeypatch.setattr(reference, "MAX_TOKENS", 0)
    torch.testing.assert_close(module(images()), expected, rtol=1e-10, atol=1e-10)
    assert create_model("vit", **{**SMALL, "image_size": 80}, depth=1)(torch.randn(1, 3, 80, 80)).shape == (1, 7)


def test_drop_path_leaves_out_whole_branches_only_in_training() -> None:
    module = perturbed("vit", drop_path_rate=0.5, depth=2)
    plain = perturbed("vit", depth=2)
    plain.load_state_dict(module.state_dict())
    torch.testing.assert_close(module.eval()(images()), plain.eval()(images()))
    tokens = torch.randn(64, 5, 192, dtype=torch.float64)
    torch.manual_seed(0)
    branch = module.blocks[1].train()._drop_path(tokens)
    kept = branch.abs().amax((1, 2)) > 0
    assert 16 < kept.sum() < 48
    torch.testing.assert_close(branch[kept], 2 * tokens[kept])


def test_dropout_acts_on_the_heads_in_training() -> None:
    module = create_model("vit", **SMALL, depth=1, drop_rate=0.5)
    batch = images().float()
    assert not torch.equal(module.train()(batch), module(batch))
    assert torch.equal(module.eval()(batch), module(batch))


@pytest.mark.parametrize("name", ["titn", "deit"])
def test_compiled_blocks_share_one_compilation_and_change_nothing(name: str) -> None:
    torch._dynamo.reset()
    module = perturbed(name, depth=3).train()
    expected = module(images())
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = copy.deepcopy(module)
    for block in compiled.blocks:
        block.compile(backend=counter, fullgraph=True)
    for ours, theirs in zip(compiled(images()), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert counter.frame_count == 1


def test_whole_model_compiles_in_one_graph_under_autocast() -> None:
    torch._dynamo.reset()
    module = create_model("titn", **SMALL, depth=1).train()
    with torch.autocast("cpu", torch.bfloat16):
        expected = module(images().float())
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)(images().float())
    for ours, theirs in zip(compiled, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("titm", {}, "did you mean 'titn'"),
        ("resnet", {}, "unknown model 'resnet'; choose from titn"),
        ("titn", {"dept": 3}, "did you mean 'depth'"),
        ("vit", {"pixel_dim": 3}, "unknown option"),
        ("titn", {"image_size": 30}, "patch_size 8 does not divide image_size 30; patch_size 6 would"),
        ("titn", {"pixel_size": 3}, "pixel_size 3 does not divide patch_size 8; pixel_size 2 would"),
        ("titn", {"pixel_heads": 5}, "pixel_heads 5 does not divide pixel_dim 12"),
        ("vit", {"patch_heads": 7}, "patch_heads 7 does not divide patch_dim 192"),
        ("titn", {"depth": 0}, "depth must be a whole number of at least 1, not 0"),
        ("titn", {"num_classes": -1}, "num_classes"),
        ("titn", {"num_classes": 2.5}, "num_classes"),
        ("titn", {"pool": "max"}, "pool must be one of mean, token, not 'max'"),
        ("titn", {"kernels": "cuda"}, "kernels must be one of auto, torch, triton, native"),
        ("titn", {"drop_rate": 1.0}, "drop_rate"),
        ("deit", {"drop_path_rate": -0.1}, "drop_path_rate"),
    ],
)
def test_bad_values_are_one_line(name: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        titn.create_model(name, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 1, 16, 16), (3, 16, 16)])
def test_images_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    for name in ("titn", "vit"):
        with pytest.raises(UserError, match=r"takes images \[batch, 3, 16, 16\], not"):
            create_model(name, **SMALL, depth=1)(torch.zeros(shape))
