"""The throughput benchmark: what a step is, that contenders are alike, what is recorded, and what a failure leaves."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from bench import starts, throughput
from bench.contenders import TOY, Contender, Sizes, Step, all_contenders, fast_contender
from bench.record import statistic
from bench.rounds import fresh_compiler, prepare, take_turns
from bench.starts import cold_and_warm
from titn.training.switches import native_bfloat16

CPU = torch.device("cpu")
AMP = torch.bfloat16 if native_bfloat16(CPU) else None
QUIET = Console(quiet=True)
TOO_MANY = 10**12
"""Images that no machine has the memory for."""


@pytest.fixture(scope="module")
def found() -> dict[str, object]:
    """One toy measurement, in which the first batch size does not fit into memory."""
    return throughput.measure(CPU, AMP, batch_sizes=[TOO_MANY, 2], rounds=3, console=QUIET, small=True)


def by_hand(contender: Contender) -> dict[str, torch.Tensor]:
    """Parameters after one step that is written out: the loss of the paper, plain SGD's first step."""
    step = Step(contender, CPU, 3, TOY)
    batch, module = step.batch, contender.build(TOY).train()
    output = module(batch.images)
    heads = output if isinstance(output, tuple) else (output,)
    first, second = (F.cross_entropy(heads[0], labels, reduction="none") for labels in (batch.labels_a, batch.labels_b))
    loss = (batch.lam * first + (1 - batch.lam) * second).mean()
    if len(heads) == 2:
        assert step.trainer.targets is not None
        loss = 0.5 * loss + 0.5 * F.cross_entropy(heads[1], step.trainer.targets(batch))
    loss.backward()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter -= 0.01 * (parameter.grad + 1e-4 * parameter)
    return dict(module.named_parameters())


@pytest.mark.parametrize("network", ["titn", "timm"])
def test_a_step_is_forward_loss_backward_and_sgd(network: str) -> None:
    contender = Contender("eager", network, "eager", None)  # type: ignore[arg-type]
    step = Step(contender, CPU, 3, TOY)
    step()
    expected = by_hand(contender)
    for name, parameter in step.trainer.module.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-5, atol=1e-7)


def test_contenders_see_the_same_batch() -> None:
    steps = [Step(one, CPU, 4, TOY, small=True).batch for one in all_contenders(CPU, AMP)]
    for batch in steps[1:]:
        for name in ("images", "ids", "labels_a", "labels_b", "lam"):
            assert torch.equal(getattr(batch, name), getattr(steps[0], name))


def test_timm_has_one_token_and_one_head_less() -> None:
    ours, theirs = (Contender("", network, "eager", None).build(Sizes(depth=1)) for network in ("titn", "timm"))  # type: ignore[arg-type]
    assert ours.patch_position.shape == (18, 192)
    assert theirs.patch_pos.shape == (1, 17, 192)
    images = torch.zeros(1, 3, 32, 32)
    assert len(ours.train()(images)) == 2
    assert theirs.train()(images).shape == (1, 100)


def test_fast_is_what_a_training_selects() -> None:
    fast = fast_contender(CPU, AMP)
    assert (fast.form, fast.amp, fast.kernels) == ("blocks", AMP, "auto")
    step = Step(fast, CPU, 2, TOY)
    assert all(block._compiled_call_impl is not None for block in step.trainer.module.blocks)
    assert step.trainer.module._compiled_call_impl is None
    assert step.trainer.module.kernels == step.trainer.parts.kernels == "auto"


def test_every_contender_is_measured_or_has_a_reason(found: dict) -> None:
    rows = [row for row in found["rows"] if row["batch_size"] == 2]
    assert [row["contender"] for row in rows] == [one.name for one in all_contenders(CPU, AMP)]
    (graph,) = (row for row in rows if "CUDA graph" in row["contender"])
    rows.remove(graph)
    assert graph["reason"] == "no GPU"
    for row in rows:
        assert len(row["seconds"]) == 3
        speeds = sorted(2 / seconds for seconds in row["seconds"])
        assert row["images_per_second"] == {
            "median": speeds[1], "low": speeds[0], "high": speeds[2], "repetitions": 3,
        }  # fmt: skip
        assert row["peak_bytes"] > 0


def test_the_ratio_is_to_the_fastest_of_timm_round_by_round(found: dict) -> None:
    rows = [row for row in found["rows"] if "seconds" in row]
    rivals = [row for row in rows if row["contender"].startswith("timm")]
    assert all(row["ratio_to_timm"] is None for row in rivals)
    fastest = max(rivals, key=lambda row: row["images_per_second"]["median"])
    for row in rows:
        if row not in rivals:
            ratios = [theirs / ours for theirs, ours in zip(fastest["seconds"], row["seconds"], strict=True)]
            assert row["ratio_to_timm"] == statistic(ratios)


def test_too_little_memory_is_a_reason_and_the_rest_goes_on(found: dict) -> None:
    rows = [row for row in found["rows"] if row["batch_size"] == TOO_MANY]
    assert len(rows) == len(all_contenders(CPU, AMP))
    assert all(set(row) == {"contender", "batch_size", "reason"} for row in rows)
    assert "memory" in rows[0]["reason"]
    assert any("seconds" in row for row in found["rows"])


def test_a_contender_that_fails_on_the_way_leaves_the_others() -> None:
    with fresh_compiler(CPU):
        ready = {
            name: prepare(Contender(name, "titn", "eager", None), CPU, 2, TOY) for name in ("sound", "broken")
        }  # fmt: skip
        del ready["broken"].step.trainer.module.head  # type: ignore[union-attr]
        seconds, failed = take_turns(ready, 2, CPU)  # type: ignore[arg-type]
    assert list(seconds) == ["sound"]
    assert len(seconds["sound"]) == 2
    assert "head" in failed["broken"]


def test_what_no_time_is_left_for_is_listed() -> None:
    found = throughput.measure(CPU, AMP, batch_sizes=[2], rounds=1, console=QUIET, small=True, seconds=-1.0)
    assert len(found["rows"]) == len(all_contenders(CPU, AMP))
    assert all("was over" in row["reason"] for row in found["rows"])


def test_first_steps_are_timed_in_processes_of_their_own() -> None:
    cold, warm = cold_and_warm("titn reference, float32", CPU, AMP, 2, small=True)
    assert cold > 0
    assert warm > 0


def test_a_first_step_that_fails_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="left with 1: no luck"):
        starts._child([sys.executable, "-c", "raise SystemExit('no luck')"], dict(os.environ))
    with pytest.raises(SystemExit):
        starts.main(["no such one"])
    assert capsys.readouterr().err.startswith("error: unknown contender 'no such one'; choose from titn")


def test_the_command_writes_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    eager = [one for one in all_contenders(CPU, AMP) if one.form == "eager"]
    monkeypatch.setattr(throughput, "all_contenders", lambda device, amp: eager)
    arguments = ["--batch-sizes", "2", "3", "--rounds", "2", "--device", "cpu", "--dry-run", "--out", str(tmp_path)]
    throughput.main(arguments)
    (file,) = tmp_path.glob("*/*.json")
    content = json.loads(file.read_text())
    assert content["dry_run"] is True
    assert content["command"] == f"python -m bench.throughput {' '.join(arguments)}"
    rows = content["sections"]["throughput"]["rows"]
    assert [(row["contender"], row["batch_size"]) for row in rows] == [
        (one.name, size) for size in (2, 3) for one in eager
    ]
    assert "images/s" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--rounds", "--batch-sizes"])
def test_a_bad_number_is_one_line(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        throughput.main([option, "0"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {option} must be at least 1, not 0\n"
