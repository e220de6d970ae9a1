"""The report writes what the result files say, notices every file that is not up to date, and passes nothing over."""

from __future__ import annotations

import copy
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from report_samples import (
    GPU,
    KERNELS,
    PAPER,
    SECTIONS,
    THROUGHPUT,
    accuracy,
    kernel,
    paper_table,
    stat,
    trained,
)
from rich.console import Console

from bench.record import Record, describe_device, label
from bench.report import page as report
from bench.report.chapters import CHAPTERS
from bench.report.numbers import times
from bench.report.pictures import DRAWINGS, fingerprint, svg
from bench.report.render import LeftOut, Table, markdown, show
from bench.report.results import read_results
from titn.provenance import ROOT


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "bench" / "results").mkdir(parents=True)
    (tmp_path / "README.md").write_text(f"# Mine\n\n{report.BEGIN}\nold\n{report.END}\n\nrest stays\n")
    return tmp_path


def add(
    checkout: Path, sections: dict[str, Any], day: int, gpu: bool = True, dry_run: bool = False, finished: bool = True
) -> Path:
    """A result file of the day, written by Record itself and then moved to the device and the time."""
    record = Record("python -m bench.something", torch.device("cpu"), 7, checkout / "scratch", dry_run=dry_run)
    for name, data in sections.items():
        record.add(name, data)
    if finished:
        record.finish()
    content = copy.deepcopy(record.content)
    record.path.unlink()
    content |= {"utc": f"2026-11-{day:02}T10:00:00+00:00", "commit": f"{day:012x}"}
    if gpu:
        content["device"] = GPU
    path = checkout / "bench" / "results" / label(content["device"]) / f"202611{day:02}-{content['commit']}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def run(checkout: Path, *arguments: str) -> int:
    try:
        report.main(["--root", str(checkout), *arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def page(checkout: Path) -> str:
    return (checkout / "bench" / "RESULTS.md").read_text()


def chapter(checkout: Path, title: str) -> str:
    return page(checkout).partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_this_repository_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(ROOT, "--check") == 0, capsys.readouterr().err


def test_numbers_come_from_the_files(checkout: Path) -> None:
    add(checkout, SECTIONS, 3)
    assert run(checkout) == 0
    training = chapter(checkout, "Training against timm's TNT")
    assert "| 1,024 | titn --fast | 61,234 (55,111 to 73,481) | 2.25 (2.02 to 2.70) | 3.00 | 31.2 | 4.5 |" in training
    assert "out of memory \\| 79 GiB: titn --fast, 4096 images per step" in training
    steps = chapter(checkout, "One switch after another")
    gain = "1.60 (1.44 to 1.92)"
    assert f"| bfloat16 | `--amp bf16` | 8,000 (7,200 to 9,600) | {gain} | {gain} | 4.5678 | 5.00 |" in steps
    assert "| reference |  | 5,000 (4,500 to 6,000) | – | – | 4.5678 | 9.00 |" in steps
    assert (
        "cifar100, 1,024 images per step, teacher vgg16_bn; 20 steps each. The loss is the mean of the last 10."
        in steps
    )
    assert "stored at 4,321 images per second" in steps
    assert "no room: CUDA graph" in steps
    cpu = chapter(checkout, "On a CPU")
    assert "| 1 | 64 | training | titn --fast | 100 (90.0 to 120) | 1.50 (1.35 to 1.80) | 71.0% |" in cpu
    assert "| `aten::mm` | 300,000 | 96 | 50.0% | 1.50 |" in cpu
    assert "no C++ compiler: timm TNT, torch.compile, training, 1 threads, 64 images" in cpu
    assert "790 | 711 | 948 | 5" in chapter(checkout, "Ceilings of the device")
    assert "titn dali: it is so." in chapter(checkout, "Making batches")
    right = chapter(checkout, "Kernels: are they right?")
    assert "right, 4.0e-03 | skipped | **failed**: RuntimeError: of a kind" in right
    assert "* for a reason: inner_block, a, fp16" in right
    fast = chapter(checkout, "Kernels: how fast?")
    ours = (
        "| forward | triton | 41.5 (39.4 to 45.7) | 7.0% | compile | 83.0 (78.8 to 91.3) | 166 | 2.00 (1.73 to 2.32) |"
    )
    assert ours in fast
    slower = "| triton | 130 (124 to 143) | 2.2% | compile | 104 (98.8 to 114) | – | 0.80 (0.69 to 0.93) |"
    assert f"| forward and backward {slower}" in fast
    assert "the package xformers is not installed: xformers: inner_block" in fast
    scaling = chapter(checkout, "Scaling")
    sizes = "| batch | 256 | 256 | 7,000 (6,300 to 8,400) | 256.00 | 0.664 |"
    assert f"{sizes} 7.0% | 60.0% | 11.7% | element-wise, 20% |" in scaling
    assert "Farthest from the ceiling, at 5.0%: batch 1,024. Products take 60% of that step and run at 8.3%" in scaling
    assert "Nearest to the ceiling, at 9.0%: depth 6." in scaling
    assert "| `inner_forward` | 1,500 | 12 | 16.7% |" in chapter(checkout, "Where a step goes")
    for title in ("Training against timm's TNT", "Kernels: how fast?"):
        for words in ("NVIDIA H200, driver 570.1", torch.__version__, "2026-11-03", "000000000003", "bench.something"):
            assert words in chapter(checkout, title)


def test_the_readme_begins_with_the_same_table(checkout: Path) -> None:
    add(checkout, SECTIONS | {"accuracy": accuracy("cifar100", "test", [0.71, 0.73])}, 3)
    assert run(checkout) == 0
    readme = (checkout / "README.md").read_text()
    assert readme.startswith("# Mine\n") and readme.endswith("\nrest stays\n") and "\nold\n" not in readme
    assert (
        "titn --fast, bfloat16, 1,024 images per step | 61,234 images per second, 2.25 times timm's fastest TNT"
        in readme
    )
    assert (
        "1 of 2 checks right; clearly faster in 1, clearly slower in 1 of 2 cases, 0.80 to 2.00 times | NVIDIA H200"
        in readme
    )
    assert "top-1 72.00%, last epoch, 2 seeds, 95% interval of the mean 71.00% to 73.00%" in readme
    assert "GPU yet" not in readme
    assert "| cifar100 | 74.71% | 72.00% (71.00% to 73.00%), 2 seeds | 30 epochs, " in readme
    assert "| cifar10 | 92.03% | not run yet |" in readme
    rows = [line for line in readme.splitlines() if line.startswith("| training")]
    assert rows[0].replace("bench/results/", "results/") in page(checkout)


def test_without_a_profile_or_a_ceiling_scaling_shows_the_rest(checkout: Path) -> None:
    unknown = ("percent_by_kind", "percent_of_product_ceiling", "percent_of_ceiling_in_arithmetic")
    rows = [row | dict.fromkeys(unknown) for row in SECTIONS["scaling"]["rows"]]
    add(checkout, {"scaling": {"rows": rows}}, 3)
    assert run(checkout) == 0
    text = chapter(checkout, "Scaling")
    assert "| batch | 256 | 256 | 7,000 (6,300 to 8,400) | 256.00 | 0.664 |\n" in text
    assert "Farthest" not in text


def test_without_results_it_says_so(checkout: Path) -> None:
    assert run(checkout) == 0
    assert page(checkout).count(report.NOT_MEASURED) == len(CHAPTERS) + 1  # and the headline
    assert "Nothing has been timed on a GPU yet." in (checkout / "README.md").read_text()


def test_a_cpu_result_leaves_the_gpu_line(checkout: Path) -> None:
    add(checkout, SECTIONS, 3, gpu=False)
    assert run(checkout) == 0
    readme = (checkout / "README.md").read_text()
    assert "Nothing has been timed on a GPU yet." in readme and "61,234 images per second" in readme
    assert "fused kernels" not in readme, "a headline of kernels on a CPU"


def test_the_newest_of_each_section_counts_and_no_dry_run(checkout: Path) -> None:
    older, newer = copy.deepcopy(THROUGHPUT), copy.deepcopy(THROUGHPUT)
    newer["rows"][2]["images_per_second"] = stat(77_777.0)
    add(checkout, {"throughput": newer}, 5)
    add(checkout, SECTIONS | {"throughput": older}, 3)
    add(checkout, {"waterfall": {"error": "RuntimeError: lost"}}, 6)
    dry = copy.deepcopy(THROUGHPUT)
    dry["rows"][2]["images_per_second"] = stat(99_999.0)
    add(checkout, {"throughput": dry}, 9, dry_run=True)
    assert run(checkout) == 0
    text = page(checkout)
    assert "77,777" in text and "61,234" not in text and "99,999" not in text
    assert "| stored answers | `--teacher-cache auto` |" in text, "a newer failure must not hide an older measurement"


def test_accuracy_is_kept_apart_by_data_set_and_split(checkout: Path) -> None:
    add(checkout, {"accuracy": accuracy("cifar100", "test", [0.5])}, 1)
    add(checkout, {"accuracy": accuracy("cifar100", "test", [0.61])}, 2)
    add(checkout, {"accuracy": accuracy("cifar100", "development", [0.55, 0.57])}, 3)
    assert run(checkout) == 0
    text = chapter(checkout, "Accuracy")
    of_test = "| cifar100 | test | vgg16_bn, 70.00% | 30 | 1 of 5 | 61.00% | one seed: none | 74.71% | not reached |"
    of_development = "| cifar100 | development | vgg16_bn, 70.00% | 30 | 2 of 5 | 56.00% | 55.00% to 57.00% | 74.71% |"
    assert of_test in text and of_development + " 20 to 20, in 1 of 2 runs | shortened |" in text
    assert "50.00%" not in text


def test_the_papers_tables_stand_beside_the_papers_numbers(checkout: Path) -> None:
    nothing = dict.fromkeys(("top1", "top5", "precision", "recall", "f1", "parameters", "gflops"))
    adam = trained("cifar100", "Adam", "vgg16_bn", [0.7], paper=nothing)
    add(checkout, {"paper": PAPER}, 3)
    add(checkout, {"paper": paper_table("optimisers", "test", adam)}, 4)
    add(checkout, {"paper": paper_table("optimisers", "test", adam | {"epochs": 7})}, 2)
    assert run(checkout) == 0
    text = chapter(checkout, "The paper's tables")
    ours = "| 75.00 (70.00% to 80.00%) | *74.71* | 90.00 | *92.28* | 70 / 71 / 72 | *72 / 75 / 74* |"
    assert (
        f"| cifar100 | TITN {ours} 5,852,564 | *5.85 M* | 110.69 M | 111.40 | *111.40* | 50,000 | 600 | 2 of 2 |"
        in text
    )
    assert "| mnist | ViT | – | *74.71* | – | *92.28* | – | *72 / 75 / 74* |" in text
    assert "* not run: the time was over: mnist, ViT" in text
    assert "| cifar100 | Adam | 70.00 | 90.00 | 70 / 71 / 72 |" in text, (
        "columns without a number of the paper are left out"
    )
    assert "| 7 |" not in text, "the newest of each table"
    assert "| cifar100 | TITN | 1 | 76.00 | 99.0 | `paper-titn-1` | `abc` |" in text
    readme = (checkout / "README.md").read_text()
    words = "95% interval of the mean 70.00% to 80.00%; the paper's best epoch 74.71%; run `paper-titn-0` and 1 more"
    assert f"| TITN, cifar100, test split, 50,000 images, 600 epochs | top-1 75.00%, last epoch, {words} |" in readme
    assert "ViT" not in readme
    assert text.index("**Optimisers**, test split.") < text.index("**Students**, test split.")


def test_a_bank_is_compared_with_fresh_augmentation(checkout: Path) -> None:
    add(checkout, SECTIONS, 3)
    assert run(checkout) == 0
    text = chapter(checkout, "Repeating a few epochs of augmentation")
    assert "cifar10: 3,000 training images, 48 epochs, titn with 2 blocks, adamw at 0.001, 64 images per step" in text
    assert "| 16 in turn | 3.00 | 2 of 3 | 51.12% | 51.25%, 51.00% | -1.00 (-3.00 to +1.00) |" in text
    assert "| always fresh | 1 | 1 of 3 | 52.00% | 52.00% | – |" in text
    readme = (checkout / "README.md").read_text()
    assert "points of top-1 to always fresh: " in readme and "K = 16: -1.00 (-3.00 to +1.00)" in readme


def test_the_time_to_an_accuracy_stands_beside_the_references(checkout: Path) -> None:
    add(checkout, SECTIONS, 3)
    assert run(checkout) == 0
    text = chapter(checkout, "Time to an accuracy")
    assert "| titn --fast | 0 | 100 | 90,000 | 100 | 1.50 | 91.00% | 90.50% |" in text
    assert "To the target the reference takes 3.00 times as long, one seed." in text
    assert "Teacher: vgg16_bn, 93.00%; it trained for 77.0 seconds." in text
    readme = (checkout / "README.md").read_text()
    words = "| 100 seconds, in 1 of 1 trainings; the reference takes 3.00 times as long, one seed |"
    assert f"| training to 90% on held-out images of cifar10, titn --fast {words}" in readme
    slow = copy.deepcopy(SECTIONS["time_to_accuracy"])
    slow["paths"][1]["runs"][0]["to_target"], slow["ratio"]["to_target"] = None, None
    add(checkout, {"time_to_accuracy": slow}, 4)
    assert run(checkout) == 0
    assert "| titn --fast | 0 | not reached | not reached | 100 |" in chapter(checkout, "Time to an accuracy")
    assert "training to 90%" not in (checkout / "README.md").read_text()


def test_the_readme_names_training_and_prediction_on_a_cpu(checkout: Path) -> None:
    add(checkout, SECTIONS, 3)
    assert run(checkout) == 0
    readme = (checkout / "README.md").read_text()
    ours = [row for row in SECTIONS["cpu"]["rows"] if row["contender"] == "titn --fast" and "images_per_second" in row]
    assert ours
    for row in ours:
        assert f"| {row['work']}, titn --fast, {row['threads']} thread" in readme


def test_choices_on_a_development_split_are_listed_by_what_distinguishes_them(checkout: Path) -> None:
    for day, (lr, top1) in enumerate([(0.1, 0.5), (0.1, 0.6), (0.05, 0.7)], 1):
        tried = accuracy("cifar100", "development", [top1]) | {"settings": {"depth": 12, "lr": lr}}
        tried["interval95"] = [0.9, 1.1]
        add(checkout, {"accuracy": tried}, day)
    assert run(checkout) == 0
    text = chapter(checkout, "Accuracy")
    assert "| cifar100 | development | lr 0.05 | vgg16_bn, 70.00% | 30 | 1 of 5 | 70.00% |" in text
    assert "| cifar100 | development | lr 0.1 | vgg16_bn, 70.00% | 30 | 1 of 5 | 60.00% |" in text
    assert "50.00%" not in text, "the newest of each choice"
    assert "| 90.00% to 100.00% |" in text, "a share is at most 1"


def test_a_failed_section_is_named(checkout: Path) -> None:
    add(checkout, {"waterfall": {"error": "RuntimeError: lost"}}, 6)
    parts = [{"part": "training", "error": "killed when its time was over", "sections": ["throughput"]}]
    add(checkout, {"kernels": KERNELS}, 7, finished=False)
    add(checkout, {"throughput": THROUGHPUT, "scaling": SECTIONS["scaling"], "harvest": {"parts": parts}}, 8)
    assert run(checkout) == 0
    assert "Not complete: killed when its time was over." in chapter(checkout, "Training against timm's TNT")
    assert "Not complete" not in chapter(checkout, "Scaling")
    assert "The newest measurement failed: RuntimeError: lost" in chapter(checkout, "One switch after another")
    assert "Not complete: the command was stopped before its end." in chapter(checkout, "Kernels: how fast?")


def test_an_interval_that_spans_one_is_no_gain(checkout: Path) -> None:
    assert times({"median": 1.19, "low": 0.85, "high": 1.43}) == "no clear difference (0.85 to 1.43)"
    assert times({"median": 1.19, "low": 1.01, "high": 1.43}) == "1.19 (1.01 to 1.43)"
    data = copy.deepcopy(THROUGHPUT)
    data["rows"][2]["ratio_to_timm"] = {"median": 1.2, "low": 0.9, "high": 1.5, "repetitions": 9}
    near = [kernel("triton", 80.0), kernel("compile", 83.0)]
    add(checkout, {"throughput": data, "kernels": near}, 3)
    assert run(checkout) == 0
    readme = (checkout / "README.md").read_text()
    assert "61,234 images per second, no clear difference to timm's fastest TNT (0.90 to 1.50 over 9" in readme
    assert "clearly faster in 0, clearly slower in 0 of 1 cases" in readme
    assert "| no clear difference (0.90 to 1.20) |" in chapter(checkout, "Kernels: how fast?")


def test_what_is_wrong_is_shown_with_its_time_and_is_no_gain(checkout: Path) -> None:
    rows = [kernel("triton", 20.0, wrong="its errors are 1.0"), kernel("compile", 83.0)]
    add(checkout, {"kernels": rows}, 3)
    assert run(checkout) == 0
    text = chapter(checkout, "Kernels: how fast?")
    assert "| triton (**wrong**) | 20.0 (19.0 to 22.0) |" in text
    assert "its errors are 1.0: triton: inner_block" in text
    assert "clearly faster" not in page(checkout)


def test_one_description_serves_terminal_and_markdown() -> None:
    blocks = [
        Table.of([{"a": "x|y <z>", "b": "–"}], [("name", lambda r: r["a"]), ("none:", lambda r: r["b"])], "all of it"),
        LeftOut.of("Not timed", [("one", "no [red]GPU"), ("two", None), ("one", "no [red]GPU")]),
    ]
    console = Console(file=io.StringIO(), width=80)
    show(blocks, console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "x|y <z>" in printed and "none" not in printed and "not timed: one: no [red]GPU" in printed
    written = "\n".join(markdown(blocks))
    assert "| x\\|y &lt;z> |" in written and "none" not in written
    assert "<summary>Not timed: 1, with the reasons</summary>\n\n* no [red]GPU: one" in written


def test_check_names_what_is_old(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = add(checkout, SECTIONS, 3)
    assert run(checkout, "--check") == 1
    assert "README.md is not up to date" in capsys.readouterr().err
    assert run(checkout) == 0
    assert run(checkout, "--check") == 0
    picture = checkout / "bench" / "pictures" / "NVIDIA-H200-roofline.svg"
    drawn = picture.read_text()

    def named() -> list[str]:
        capsys.readouterr()
        assert run(checkout, "--check") == 1
        return re.findall(r"^(\S+) is not up to date", capsys.readouterr().err, flags=re.MULTILINE)

    picture.unlink()
    assert named() == ["bench/pictures/NVIDIA-H200-roofline.svg"]
    picture.write_text(re.sub(r"data [0-9a-f]{16}", "data 0123456789abcdef", drawn))
    assert named() == ["bench/pictures/NVIDIA-H200-roofline.svg"]
    picture.write_text(drawn)
    (picture.parent / "left-over.svg").write_text("")
    assert named() == ["bench/pictures/left-over.svg"]
    assert run(checkout) == 0 and not (picture.parent / "left-over.svg").exists()
    results = checkout / "bench" / "RESULTS.md"
    results.write_text(results.read_text().replace("61,234", "99,999"))
    assert named() == ["bench/RESULTS.md"]
    assert run(checkout) == 0
    content = json.loads(path.read_text())
    content["sections"]["step_profile"]["rows"][0]["percent"] = 51.0
    path.write_text(json.dumps(content))
    assert named() == ["bench/RESULTS.md", "bench/pictures/NVIDIA-H200-step_profile.svg"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("commit"), "'commit' is missing"),
        (lambda content: content.update(dry_run="no"), "'dry_run' is missing or of the wrong type"),
        (lambda content: content["sections"].update(speeds={}), "unknown section 'speeds'"),
        (lambda content: content["device"].pop("name"), "its device has no 'name'"),
        (lambda content: content["device"].update(name="NVIDIA H100"), "belongs into"),
        (lambda content: content["sections"]["throughput"]["rows"][0].pop("batch_size"), "'throughput' is not in the"),
        (lambda content: content["sections"].update(waterfall=[1]), "'waterfall' is not in the known format"),
    ],
)
def test_a_file_that_is_no_result_is_named(
    change: Any, message: str, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = add(checkout, SECTIONS, 3)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    assert run(checkout) == 2
    error = capsys.readouterr().err
    assert message in error and str(path) in error and error.count("\n") == 1


@pytest.mark.parametrize("place", ["stray.json", "device/deeper/stray.json", "device/digits.json"])
def test_other_json_is_an_error(place: str, checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkout / "bench" / "results" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"top1": 0.5}')
    assert run(checkout) == 2
    assert f"{path} is not a result file" in capsys.readouterr().err


def test_a_readme_without_markers_is_an_error(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkout / "README.md").write_text("# Mine\n")
    assert run(checkout) == 2
    assert "needs the markers" in capsys.readouterr().err


def drawing(name: str) -> dict[str, Any]:
    data = {"device": "NVIDIA H200", **SECTIONS}
    return data | {"accuracy": [accuracy("cifar100", "test", [0.71, 0.73])], "paper": [PAPER]}


@pytest.mark.parametrize("name", DRAWINGS)
def test_pictures_repeat_and_are_small(name: str) -> None:
    drawn = svg(name, drawing(name))
    assert drawn is not None and drawn == svg(name, drawing(name))
    assert f"data {fingerprint(name, drawing(name))}" in drawn
    assert len(drawn) < 100_000


@pytest.mark.parametrize("name", DRAWINGS)
def test_there_is_no_picture_of_nothing(name: str) -> None:
    reason = {"reason": "none", "axis": "batch", "contender": "a", "name": "a", "provider": "a", "value": 1}
    empty: dict[str, Any] = {key: {"rows": [reason], "batch_size": 2} for key in SECTIONS} | {"kernels": [reason]}
    empty["paper"] = [paper_table("students", "test", trained("mnist", "ViT", "vit", []))]
    empty |= {"device": "x", "accuracy": [accuracy("digits", "test", [0.5]) | {"runs": []}]}
    empty["step_profile"] = {"rows": []}
    empty["time_to_accuracy"] = {"paths": [{"name": "reference", "runs": []}]}
    assert svg(name, empty) is None


def test_another_fact_is_another_fingerprint() -> None:
    data = drawing("waterfall")
    changed = copy.deepcopy(data)
    changed["waterfall"]["rows"][0]["images_per_second"]["median"] += 1
    assert fingerprint("waterfall", data) != fingerprint("waterfall", changed)


def test_devices_are_sorted_gpus_first(checkout: Path) -> None:
    add(checkout, {"ceilings": SECTIONS["ceilings"]}, 1, gpu=False)
    add(checkout, {"ceilings": SECTIONS["ceilings"]}, 1)
    found = read_results(checkout / "bench" / "results")
    assert [device.is_gpu for device in found] == [True, False]
    assert found[1].label == label(describe_device(torch.device("cpu")))
