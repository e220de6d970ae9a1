"""Muon against its formula and PyTorch's own, the choice of its matrices, resuming, and the search for apex."""

import copy
import math
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

import titn
from titn.config import TrainConfig
from titn.errors import UserError
from titn.teachers.architectures import create_teacher
from titn.train import train
from titn.training import checkpoint
from titn.training.muon import COEFFICIENTS, ITERATIONS, Muon, newton_schulz
from titn.training.optimizers import apex_reasons, build_optimizer, check_optimizer, muon_matrices
from titn.training.run import Run

QUIET = Console(quiet=True)
CPU = torch.device("cpu")


def gradients(shape: tuple[int, int], steps: int, seed: int = 0) -> list[Tensor]:
    """Float64 gradients of low rank and noise, as those of a network are."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = shape
    made = []
    for _ in range(steps):
        left = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
        right = torch.randn(4, columns, generator=generator, dtype=torch.float64)
        made.append(0.01 * left @ right + 0.003 * torch.randn(shape, generator=generator, dtype=torch.float64))
    return made


def by_singular_values(matrix: Tensor) -> Tensor:
    """The iteration in closed form: its polynomial, five times, on the singular values."""
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    values = values / values.square().sum().sqrt()
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        values = a * values + b * values**3 + c * values**5
    return u @ values.diag() @ v


def expected(weight: Tensor, grads: list[Tensor], maps: int, lr: float, decay: float) -> Tensor:
    """The formula of `Muon`, one map at a time."""
    results = []
    for index, w in enumerate(weight.chunk(maps)):
        b = torch.zeros_like(w)
        for grad in grads:
            g = grad.chunk(maps)[index]
            b = 0.95 * b + 0.05 * g
            direction = by_singular_values(0.95 * b + 0.05 * g)
            w = (1 - lr * decay) * w - 0.2 * max(w.shape) ** 0.5 * lr * direction
        results.append(w)
    return torch.cat(results)


@pytest.mark.parametrize("maps", [1, 3])
def test_muon_follows_its_formula_for_all_shapes_at_once(maps: int) -> None:
    shapes = [(96, 64), (96, 64), (192, 96), (96, 192), (96, 96)]
    start = [gradients(shape, 1, seed=9 + index)[0] for index, shape in enumerate(shapes)]
    grads = [gradients(shape, 3, seed=index) for index, shape in enumerate(shapes)]
    params = [nn.Parameter(each.clone()) for each in start]
    optimizer = Muon([{"params": params, "maps": maps}], lr=0.02, weight_decay=0.5)
    for step in range(3):
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad[step].clone()
        optimizer.step()
    for param, weight, grad in zip(params, start, grads, strict=True):
        torch.testing.assert_close(param.detach(), expected(weight, grad, maps, 0.02, 0.5), rtol=1e-9, atol=1e-12)


def test_a_step_is_that_of_torch_within_the_rounding_of_its_bfloat16() -> None:
    start = gradients((128, 192), 1, seed=5)[0]
    grads = gradients((128, 192), 3)
    ours, theirs = (nn.Parameter(start.float()) for _ in range(2))
    optimizers = (
        Muon([ours], lr=0.1, weight_decay=0.5),
        torch.optim.Muon([theirs], lr=0.1, weight_decay=0.5, adjust_lr_fn="match_rms_adamw"),
    )
    for grad in grads:
        for param, optimizer in zip((ours, theirs), optimizers, strict=True):
            param.grad = grad.float()
            optimizer.step()
    exact = expected(start, grads, 1, 0.1, 0.5)
    moved = torch.linalg.norm(exact - start)
    our_error, their_error = (torch.linalg.norm(each.detach() - exact) / moved for each in (ours, theirs))
    assert their_error < 0.05
    assert our_error < 1.25 * their_error


def test_one_learning_rate_moves_matrices_as_far_as_adamw_does() -> None:
    matrix, same = (nn.Parameter(torch.zeros(192, 768)) for _ in range(2))
    muon = Muon([matrix], lr=1e-3)
    adamw = torch.optim.AdamW([same], lr=1e-3, weight_decay=0.0)
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        grad = torch.randn(192, 768, generator=generator)
        matrix.grad, same.grad = grad.clone(), grad.clone()
        before = [matrix.detach().clone(), same.detach().clone()]
        muon.step()
        adamw.step()
    ours, theirs = (
        (now.detach() - then).square().mean().sqrt().item()
        for now, then in zip((matrix, same), before, strict=True)
    )  # fmt: skip
    assert 0.1e-3 < ours < 0.3e-3
    assert 0.5 < ours / theirs < 2


def test_singular_values_come_near_one() -> None:
    values = torch.linalg.svdvals(newton_schulz(gradients((96, 160), 1)[0][None])[0])
    assert 0.6 < values.min() <= values.max() < 1.2


def test_muon_gets_the_matrices_of_the_patch_stream_and_nothing_else() -> None:
    model = titn.create_model("titn", num_classes=100, depth=2)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    matrices, packed = muon_matrices(model)
    layers = ("merge.proj", "patch.proj", "patch.fc1", "patch.fc2")
    assert {names[id(each)] for each in matrices} == {
        f"blocks.{block}.{layer}.weight" for block in range(2) for layer in layers
    }
    assert {names[id(each)] for each in packed} == {f"blocks.{block}.patch.qkv.weight" for block in range(2)}
    optimizer = build_optimizer("muon", model, 1e-3, 0.05)
    trained = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(trained) == sorted(names)


def test_muon_gets_the_filters_of_features_and_no_others() -> None:
    """Not those of the colours, of single channels (depthwise), norms, or the heads."""
    network = create_teacher("cnn_17m", 10, 3, 32)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    matrices, packed = muon_matrices(network)
    assert packed == []
    filters = [name for name, parameter in network.named_parameters() if parameter.ndim == 4]
    assert [names[id(each)] for each in matrices] == filters[1:] and len(filters) == 7
    mobile = muon_matrices(create_teacher("mobilenet_v3_large", 10, 3, 32))[0]
    assert mobile and all(each.shape[1] > 3 for each in mobile)


def test_filters_move_as_matrices_of_their_rows() -> None:
    shapes = [(32, 8, 3, 3), (96, 64, 1, 1), (32, 72)]
    flat = [(rows, math.prod(rest)) for rows, *rest in shapes]
    start = [gradients(shape, 1, seed=9 + index)[0] for index, shape in enumerate(flat)]
    grads = [gradients(shape, 3, seed=index) for index, shape in enumerate(flat)]
    params = [nn.Parameter(each.clone().view(shape)) for each, shape in zip(start, shapes, strict=True)]
    params[0] = nn.Parameter(params[0].detach().to(memory_format=torch.channels_last))
    optimizer = Muon(params, lr=0.02, weight_decay=0.5)
    for step in range(3):
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad[step].view(param.shape).clone()
        optimizer.step()
    for param, weight, grad in zip(params, start, grads, strict=True):
        torch.testing.assert_close(
            param.detach().flatten(1), expected(weight, grad, 1, 0.02, 0.5), rtol=1e-9, atol=1e-12
        )


def test_both_parts_follow_the_rate_that_is_set_and_the_state_that_is_loaded() -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = titn.create_model("titn", num_classes=10, depth=1)
        return model, build_optimizer("muon", model, 1e-3, 0.05)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, rate: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()

    model, optimizer = build()
    step(model, optimizer, 1, 1e-3)
    other, loaded = build()
    other.load_state_dict(model.state_dict())
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed, rate in ((2, 5e-4), (3, 0.0)):
        before = [parameter.detach().clone() for parameter in model.parameters()]
        step(model, optimizer, seed, rate)
        step(other, loaded, seed, rate)
        for parameter, same, was in zip(model.parameters(), other.parameters(), before, strict=True):
            assert torch.equal(parameter, same)
            assert torch.equal(parameter, was) == (rate == 0)


def test_a_run_with_muon_and_an_average_resumes_bit_equal(tmp_path: Path) -> None:
    config = TrainConfig(
        limit_train=96, depth=1, epochs=2, batch_size=32, teacher="none", device="cpu", runs_dir=tmp_path,
        optimizer="muon", lr=1e-3, average=0.9,
    )  # fmt: skip
    train(config.changed(name="whole"), console=QUIET)
    train(config.changed(name="part"), console=QUIET)
    part = Run(tmp_path / "part")
    (part.folder / "result.json").unlink()
    part.newest_checkpoint().rename(tmp_path / "set aside")
    train(TrainConfig(resume=str(part.folder)), console=QUIET)
    for name in (checkpoint.MODEL, checkpoint.AVERAGE, "state.safetensors"):
        resumed, uninterrupted = (load_file(run.newest_checkpoint() / name) for run in (part, Run(tmp_path / "whole")))
        assert resumed.keys() == uninterrupted.keys()
        assert [key for key in resumed if not torch.equal(resumed[key], uninterrupted[key])] == []


def test_muon_is_refused_for_a_network_without_such_matrices() -> None:
    network = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(UserError, match="--optimizer muon is for matrices"):
        check_optimizer("muon", network, CPU)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([], "NVIDIA apex is not installed"),
        (["apex/__init__.py", "apex/views.py"], "not NVIDIA's, but another one of that name"),
        (["apex/__init__.py", "apex/optimizers/fused_sgd.py"], "built without its CUDA extensions"),
        (["apex/__init__.py", "apex/optimizers/fused_sgd.py", "amp_C.py"], None),
    ],
)
def test_apex_is_found_by_its_modules(
    files: list[str], reason: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("raise AssertionError('it is only looked at')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("apex", "amp_C"):  # another test of this process may have put one of them there
        monkeypatch.delitem(sys.modules, name, raising=False)
    on_a_gpu = apex_reasons(torch.device("cuda"))
    assert on_a_gpu == [] if reason is None else reason in on_a_gpu[0]
    assert apex_reasons(CPU) == ["no GPU", *on_a_gpu]
    with pytest.raises(UserError, match="--optimizer apex_sgd cannot run here: no GPU"):
        check_optimizer("apex_sgd", nn.Linear(2, 2), CPU)
