"""The training step alone: a batch in pieces, and the average of the weights."""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from titn.config import TeacherConfig, TrainConfig
from titn.errors import UserError
from titn.evaluate import evaluate
from titn.models import create_model
from titn.network import load_network
from titn.pipelines import Batch
from titn.train import train
from titn.training import checkpoint
from titn.training.average import WeightAverage
from titn.training.optimizers import build_optimizer
from titn.training.preparation import load_data
from titn.training.run import Run
from titn.training.step import TrainStep, distillation_objective
from titn.training.trainer import test_logits as logits_of

QUIET = Console(quiet=True)
SMALL = TrainConfig(limit_train=96, depth=1, epochs=2, batch_size=32, teacher="none", device="cpu")


class TwoHeads(nn.Module):
    """A small float64 network with a class and a distillation head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.GELU())
        self.heads = nn.ModuleList(nn.Linear(32, 10) for _ in range(2))
        self.double()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(images)
        return self.heads[0](features), self.heads[1](features)


def mixed_batch(images: int, seed: int = 0) -> tuple[Batch, Tensor]:
    """A CutMix batch in float64 and a teacher's logits."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (images,), generator=generator)
    batch = Batch(
        images=torch.randn(images, 3, 4, 4, generator=generator, dtype=torch.float64),
        ids=torch.arange(images),
        labels_a=labels,
        labels_b=labels.roll(1),
        lam=torch.rand(images, generator=generator),
    )
    return batch, torch.randn(images, 10, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("images", "pieces"), [(64, 4), (64, 64), (50, 7)])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_a_batch_in_pieces_takes_the_step_of_the_whole(images: int, pieces: int, kind: str) -> None:
    modules, sums = [], []
    for accumulate in (1, pieces):
        torch.manual_seed(0)
        module = TwoHeads()
        optimizer = torch.optim.SGD(module.parameters(), momentum=0.9)
        objective = distillation_objective(kind, label_smoothing=0.1)  # type: ignore[arg-type]
        step = TrainStep(module, optimizer, objective, accumulate=accumulate)
        for seed in range(3):
            batch, teacher = mixed_batch(images, seed)
            last = step(batch, teacher.argmax(1) if kind == "hard" else teacher, 0.5)
        modules.append(module)
        sums.append(last)
    for whole, cut in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        torch.testing.assert_close(cut, whole, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(sums[1], sums[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("limit", [0.05, 1e6])
def test_gradients_are_clipped_as_torch_clips_them(limit: float, accumulate: int) -> None:
    batch, targets = mixed_batch(48)
    objective = distillation_objective("soft")
    modules = []
    for ours in (True, False):
        torch.manual_seed(0)
        module = TwoHeads()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
        if ours:
            TrainStep(module, optimizer, objective, accumulate=accumulate, clip_grad=limit)(batch, targets, 0.5)
        else:
            objective(batch, *module(batch.images), targets)[0].backward()
            norm = torch.nn.utils.clip_grad_norm_(module.parameters(), limit)
            assert (norm > limit) == (limit < 1)
            optimizer.step()
        modules.append(module)
    for mine, theirs in zip(*(each.parameters() for each in modules), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_settings_reach_the_optimiser() -> None:
    module = nn.Linear(3, 2)
    (group,) = build_optimizer("sgd", module, 0.1, 0.0, momentum=0.5).param_groups
    assert group["momentum"] == 0.5
    for name in ("adam", "adamw"):
        (group,) = build_optimizer(name, module, 0.1, 0.0, betas=(0.8, 0.95)).param_groups
        assert group["betas"] == (0.8, 0.95)
    groups = build_optimizer("muon", create_model("titn", depth=1), 0.1, 0.0, betas=(0.8, 0.95)).param_groups
    assert [group["betas"] for group in groups if "betas" in group] == [(0.8, 0.95)]


def test_a_run_may_accumulate(tmp_path: Path) -> None:
    whole, cut = (
        train(SMALL.changed(runs_dir=tmp_path, name=f"in-{count}", accumulate=count, mix="cutmix"), console=QUIET)
        for count in (1, 3)
    )
    first, second = (Run(Path(each.run)).metrics()[-1]["loss"] for each in (whole, cut))
    assert second == pytest.approx(first, rel=1e-4)


def test_pieces_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--accumulate 64 is more than the 32 images of a batch"):
        train(SMALL.changed(accumulate=64, runs_dir=tmp_path), console=QUIET)
    with pytest.raises(UserError, match="normalises over the batch: --accumulate 32 leaves it one image"):
        teacher = TeacherConfig(limit_train=64, batch_size=32, accumulate=32, device="cpu", runs_dir=tmp_path)
        train(teacher, console=QUIET)
    assert not list(tmp_path.iterdir())


def test_the_average_is_the_weighted_sum_of_all_weights() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    seen = [module[0].weight.detach().clone()]
    average = WeightAverage(module, 0.7)
    for _ in range(40):
        with torch.no_grad():
            module[0].weight.normal_()
        module(torch.randn(8, 4, dtype=torch.float64))
        average.update()
        seen.append(module[0].weight.detach().clone())
    kept = [min(0.7, (1 + update) / (10 + update)) for update in range(40)]
    shares = [torch.tensor(kept, dtype=torch.float64).prod()]
    shares += [(1 - kept[n]) * torch.tensor(kept[n + 1 :], dtype=torch.float64).prod() for n in range(40)]
    assert sum(shares).item() == pytest.approx(1)  # type: ignore[union-attr]
    wanted = sum(share * weight for share, weight in zip(shares, seen, strict=True))
    torch.testing.assert_close(average.module[0].weight, wanted, rtol=1e-12, atol=1e-14)
    assert average.module[1].num_batches_tracked == 40
    assert not torch.equal(average.module[1].running_mean, module[1].running_mean)


def test_the_average_is_reported_apart_and_changes_nothing_else(tmp_path: Path) -> None:
    plain = train(SMALL.changed(runs_dir=tmp_path, name="plain"), console=QUIET)
    config = SMALL.changed(runs_dir=tmp_path, name="averaged", average=0.5)
    averaged = train(config, console=QUIET)
    assert plain.average_top1 is None
    assert (averaged.top1, averaged.best_top1) == (plain.top1, plain.best_top1)
    assert evaluate(averaged.run, device="cpu").scores["top1"] == averaged.top1
    assert evaluate(averaged.run, device="cpu", weights="average").scores["top1"] == averaged.average_top1
    with pytest.raises(UserError, match="trained without --average"):
        evaluate(plain.run, device="cpu", weights="average")
    newest = Run(Path(averaged.run)).newest_checkpoint()
    module, _ = load_network(newest / checkpoint.AVERAGE)
    dataset = load_data(config, None)
    hits = logits_of(module, dataset, torch.device("cpu")).argmax(1) == torch.from_numpy(dataset.test_labels)
    assert averaged.average_top1 == pytest.approx(hits.double().mean().item())
    assert Run(Path(averaged.run)).metrics()[-1]["test_top1_average"] == averaged.average_top1
    assert json.loads((newest / "state.json").read_text())["sha256"].keys() == {
        "average.safetensors", "model.safetensors", "state.safetensors",
    }  # fmt: skip


def test_a_damaged_average_is_refused(tmp_path: Path) -> None:
    run = Run(Path(train(SMALL.changed(runs_dir=tmp_path, average=0.5, epochs=1), console=QUIET).run))
    path = run.newest_checkpoint() / checkpoint.AVERAGE
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"average\.safetensors is damaged"):
        train(TrainConfig(resume=str(run.folder)), console=QUIET)


def test_evaluation_may_be_rarer_and_changes_nothing_else(tmp_path: Path) -> None:
    often, rarely = (
        train(SMALL.changed(runs_dir=tmp_path, name=f"every-{count}", epochs=3, eval_every=count), console=QUIET)
        for count in (1, 2)
    )
    each, some = (Run(Path(result.run)).metrics() for result in (often, rarely))
    assert [line["test_top1"] is None for line in some] == [True, False, False]
    for mine, theirs in zip(some, each, strict=True):
        assert mine["loss"] == theirs["loss"] and mine["test_top1"] in (None, theirs["test_top1"])
    assert rarely.top1 == often.top1
    assert rarely.best_top1 == max(line["test_top1"] for line in each[1:])
