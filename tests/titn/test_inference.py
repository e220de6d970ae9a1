"""Trained runs in use: loading, predicting, exporting, comparing."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

import titn
from titn import export, predict, runs
from titn.__main__ import COMMANDS
from titn.__main__ import main as titn_command
from titn.config import TeacherConfig, TrainConfig
from titn.data.dataset import load_dataset
from titn.errors import UserError
from titn.evaluate import evaluate
from titn.evaluate import main as main_evaluate
from titn.inference import TrainedModel, load
from titn.train import train

QUIET = Console(quiet=True)
SMALL = TrainConfig(
    limit_train=64, depth=1, epochs=2, batch_size=32, teacher="none", device="cpu", average=0.5, name="small"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with a TITN of one block and a small teacher, both on digits."""
    root = tmp_path_factory.mktemp("runs")
    train(SMALL.changed(runs_dir=str(root)), console=QUIET)
    teacher = TeacherConfig(
        teacher="small_cnn", limit_train=64, epochs=1, batch_size=32, device="cpu", name="teacher", runs_dir=str(root)
    )
    train(teacher, console=QUIET)
    return root


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of several sizes, modes and formats, in a folder and below, and one file that is no image."""
    from sklearn.datasets import load_sample_images

    root = tmp_path_factory.mktemp("photos")
    (root / "below").mkdir()
    china, flower = (Image.fromarray(image) for image in load_sample_images().images)
    china.save(root / "a.jpg")
    flower.convert("L").save(root / "b.png")
    flower.convert("P").resize((31, 77)).save(root / "c.gif")
    china.convert("CMYK").resize((80, 33)).save(root / "below" / "d.jpg")
    flower.convert("RGBA").resize((64, 64)).save(root / "below" / "e.png")
    china.crop((0, 0, 9, 5)).save(root / "f.bmp")
    (root / "broken.png").write_bytes(b"no image")
    return root


def run_evaluation(folder: Path, weights: str) -> Tensor:
    """Logits of the run's test images by the pipeline that the run itself is evaluated with."""
    from titn.training.trainer import test_logits

    model = load(folder / "small", weights=weights)
    return test_logits(model.network, load_dataset("digits"), torch.device("cpu"))


@pytest.mark.parametrize("weights", ["last", "average", "best"])
def test_a_loaded_model_gives_the_runs_own_logits(folder: Path, weights: str) -> None:
    model = load("small", weights=weights, runs_dir=str(folder))
    assert isinstance(model, TrainedModel) and not model.training
    assert model.classes == tuple("0123456789")
    images = load_dataset("digits").test_images
    with torch.inference_mode():
        logits = model(model.normalize(torch.from_numpy(images)))
    assert logits.shape == (len(images), 10)
    torch.testing.assert_close(logits, run_evaluation(folder, weights), rtol=1e-5, atol=1e-5)


def test_last_best_and_average_are_other_weights(folder: Path) -> None:
    run = folder / "small"
    last, average = (load(run, weights=weights).state_dict() for weights in ("last", "average"))
    assert any(not torch.equal(last[name], average[name]) for name in last)
    file = load(run).source
    assert file.parent.name == "epoch-0002"
    assert load(file).source == load(run, weights=str(file)).source == file
    stored = json.loads((run / "result.json").read_text())
    assert load(run, weights="best").source.parent.name == f"epoch-{stored['best_epoch']:04d}"
    assert evaluate(str(run)).scores["top1"] == stored["top1"]


def test_preprocessing_is_that_of_training(folder: Path, photographs: Path) -> None:
    model = load(folder / "small")
    dataset = load_dataset("digits")
    pixels = dataset.test_images[:3]
    expected = (pixels.astype(np.float64) / 255 - dataset.mean[0]) / dataset.std[0]
    for given in (
        pixels,
        list(pixels),
        [Image.fromarray(image[:, :, 0]) for image in pixels],
        torch.from_numpy(pixels),
    ):
        result = model.preprocess(given)
        np.testing.assert_allclose(result[:, 0].numpy(), expected[..., 0], atol=1e-5)
    file = photographs / "a.jpg"
    first = model.preprocess(file)
    for same in (str(file), file.read_bytes(), Image.open(file), np.asarray(Image.open(file))):
        assert torch.equal(model.preprocess(same), first)
    with pytest.raises(ValueError, match="pixels must be uint8"):
        model.preprocess(pixels[0].astype(np.float32))


def test_predictions_are_the_softmax_of_the_logits(folder: Path) -> None:
    model = load(folder / "small")
    images = load_dataset("digits").test_images[:5]
    shares = model(model.preprocess(images)).softmax(1)
    found = model.predict(images, top=3, batch_size=2)
    for row, prediction in zip(shares, found, strict=True):
        values, order = row.sort(descending=True)
        assert prediction.classes == tuple(model.classes[index] for index in order[:3])
        assert prediction.probabilities == pytest.approx(values[:3].tolist(), rel=1e-5)
    assert len(model.predict(images[0], top=99)[0].classes) == 10


def test_predict_names_every_file(folder: Path, photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(folder / "small"), str(photographs), "--batch-size", "4", "--device", "cpu"]
    predict.main([*arguments, "--json"])
    said = capsys.readouterr()
    rows = {Path(row["file"]).name: row for row in json.loads(said.out)}
    assert set(rows) == {"a.jpg", "b.png", "c.gif", "d.jpg", "e.png", "f.bmp", "broken.png"}
    assert rows["broken.png"]["error"] == "it is no image of a known format"
    assert "broken.png" in said.err and "1 of 7 files could not be read" in said.err
    model = load(folder / "small")
    for name, row in rows.items():
        if "error" not in row:
            file = next(photographs.rglob(name))
            assert tuple(row["classes"]) == model.predict(file)[0].classes
    predict.main([*arguments, "--csv", "--top", "2"])
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(lines) == 12 and {line["rank"] for line in lines} == {"1", "2"}
    predict.main(arguments)
    assert "a.jpg" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["small", "nowhere.png"], "nowhere.png: no such file or folder"),
        (["small", "EMPTY"], "holds no images"),
        (["small", "EMPTY/x.png"], "none of the 1 files could be read"),
        (["small", "x", "--top", "0"], "--top must be at least 1"),
        (["absent", "x"], "absent is no run folder"),
        (["small", "x", "--weights", "lost"], "--weights lost: neither last, best nor average, and no such file"),
        (["teacher", "x", "--weights", "average"], "has no averaged weights"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "EMPTY/x.png" in arguments:
        (tmp_path / "x.png").write_bytes(b"")
    line = [each.replace("EMPTY", str(tmp_path)) for each in arguments]
    with pytest.raises(SystemExit) as caught:
        predict.main([*line, "--runs-dir", str(folder)])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("normalized", [False, True])
def test_onnx_takes_any_batch_size(folder: Path, tmp_path: Path, normalized: bool) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: the export to ONNX was not tested")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: no ONNX file was run")
    path, apart = export.export(str(folder / "small"), "onnx", tmp_path / "net.onnx", normalized=normalized)
    assert list(tmp_path.iterdir()) == [path] and apart < 1e-3
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["classes"]) == list("0123456789")
    model = load(folder / "small")
    pixels = load_dataset("digits").test_images[:7]
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    given = model.preprocess(pixels) if normalized else images
    with torch.inference_mode():
        expected = model(model.preprocess(pixels)).numpy()
    for count in (1, 2, 7):
        (found,) = session.run(None, {"images": given[:count].numpy()})
        np.testing.assert_allclose(found, expected[:count], rtol=1e-4, atol=1e-4)


def test_torch_export_and_safetensors(folder: Path, tmp_path: Path) -> None:
    model = load(folder / "small")
    path, _ = export.export("small", "torch", tmp_path / "net.pt2", runs_dir=str(folder))
    program = torch.export.load(path).module()
    pixels = load_dataset("digits").test_images[:5]
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        torch.testing.assert_close(program(images), model(model.preprocess(pixels)), rtol=1e-4, atol=1e-4)
    path, apart = export.export(
        "small", "safetensors", tmp_path / "net.safetensors", weights="average", runs_dir=str(folder)
    )
    assert apart == 0
    again, average = titn.load(path), load(folder / "small", weights="average")
    assert again.classes == model.classes
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in average.state_dict().items())


def test_timm_folder_has_the_runs_own_facts(folder: Path, tmp_path: Path) -> None:
    path, _ = export.export("small", "timm", tmp_path / "hub", runs_dir=str(folder))
    built = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    model, dataset = load(folder / "small"), load_dataset("digits")
    images = model.preprocess(dataset.test_images[:4])
    with torch.inference_mode():
        torch.testing.assert_close(built(images), model(images))
    config = timm.data.resolve_model_data_config(built)
    assert config["input_size"] == (1, 32, 32) and config["interpolation"] == "bilinear"
    assert config["mean"] == pytest.approx(dataset.mean) and config["std"] == pytest.approx(dataset.std)
    card = (path / "README.md").read_text()
    stored = json.loads((folder / "small" / "result.json").read_text())
    for fact in ("license: apache-2.0", f"{stored['top1']:.4f}", "epochs: 2", "depth: 1", "digits"):
        assert fact in card


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["teacher", "--format", "timm"], "--format timm is for students"),
        (["small", "--push", "me/net"], "--push uploads what --format timm writes"),
        (["small", "--format", "timm", "--normalized"], "--normalized has no effect"),
        (["small", "--format", "docx"], "invalid choice"),
    ],
)
def test_exports_that_cannot_be(
    arguments: list[str], message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        export.main([*arguments, "--runs-dir", str(folder), "--out", str(tmp_path / "new")])
    assert caught.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_exists_is_not_written_over(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_text("mine")
    with pytest.raises(UserError, match="exists already: choose another --out"):
        export.export(str(folder / "small"), "onnx", tmp_path / "net.onnx")


def test_a_graph_that_differs_is_not_written(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.export.load

    def worse(file: Path) -> torch.export.ExportedProgram:
        program = real(file)
        for value in program.state_dict.values():
            value.data.mul_(1.01)
        return program

    monkeypatch.setattr(torch.export, "load", worse)
    with pytest.raises(UserError, match="differs from PyTorch by"):
        export.export(str(folder / "small"), "torch", tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())


def test_runs_shows_what_differs(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "runs"
    shutil.copytree(folder, root)
    (root / "torn").mkdir()
    (root / "torn" / "config.yaml").write_text("{")
    runs.main(["--runs-dir", str(root), "--sort", "top1", "--json"])
    said = capsys.readouterr()
    rows = {row["run"]: row for row in json.loads(said.out)}
    stored = json.loads((folder / "small" / "result.json").read_text())
    assert rows["small"]["top1"] == stored["top1"] and rows["small"]["epochs"] == "2/2"
    assert rows["small"]["average"] == 0.5 and rows["small"]["role"] == "student"
    assert "limit_train" not in rows["small"] and "torn" in said.err
    assert [row["top1"] for row in json.loads(said.out)] == sorted((row["top1"] for row in rows.values()), reverse=True)
    runs.main(["--runs-dir", str(root)])
    assert f"{stored['top1']:.2%}" in capsys.readouterr().out
    runs.main(["--runs-dir", str(root), "--csv", "--dataset", "cifar10"])
    assert capsys.readouterr().out.strip() == "run"
    with pytest.raises(SystemExit):
        runs.main(["--runs-dir", str(tmp_path / "nowhere")])
    assert "is no folder" in capsys.readouterr().err


def test_the_titn_command_leads_to_every_other(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    titn_command(["runs", "--runs-dir", str(folder)])
    assert "small" in capsys.readouterr().out
    titn_command(["--help"])
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in COMMANDS)
    for name in COMMANDS:
        with pytest.raises(SystemExit) as caught:
            titn_command([name, "--help"])
        assert caught.value.code in (0, None) and f"titn.{name}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        titn_command(["trian"])
    assert caught.value.code == 2 and "did you mean train?" in capsys.readouterr().err


def test_any_labelled_images_are_evaluated(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of the digits' own scans, with fewer classes, in another order: the labels are found by name."""
    run, dataset = folder / "small", load_dataset("digits")
    chosen = np.flatnonzero(np.isin(dataset.test_labels, (3, 8)))[:20]
    for split in ("train", "test"):
        for number, row in enumerate(chosen):
            place = tmp_path / "scans" / split / str(dataset.test_labels[row])
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(dataset.test_images[row].repeat(3, axis=2)).save(place / f"{number}.png")
    with pytest.raises(UserError, match="images of 3 channels, titn takes 1"):
        evaluate(str(run), dataset=str(tmp_path / "scans"))
    result = train(
        SMALL.changed(dataset=str(tmp_path / "scans"), limit_train=None, batch_size=8, average=0.0, name="colour",
                      runs_dir=str(tmp_path / "runs")),
        console=QUIET,
    )  # fmt: skip
    own = evaluate(result.run)
    assert own.scores["top1"] == result.top1 and own.classes == ("3", "8")
    again = evaluate(str(load(result.run).source), dataset=str(tmp_path / "scans"), split="all")
    assert len(again.labels) == 40 and torch.equal(again.labels[20:], own.labels)
    torch.testing.assert_close(again.logits[20:], own.logits)
    main_evaluate([result.run, "--split", "train", "--images", str(tmp_path / "images.csv"), "--json"])
    rows = list(csv.DictReader((tmp_path / "images.csv").open()))
    right = np.mean([row["label"] == row["prediction"] for row in rows])
    assert json.loads(capsys.readouterr().out)["top1"] == pytest.approx(right)
    (tmp_path / "scans" / "test" / "8").rename(tmp_path / "scans" / "test" / "eight")
    (tmp_path / "scans" / "train" / "8").rename(tmp_path / "scans" / "train" / "eight")
    with pytest.raises(UserError, match="classes that titn was not trained for: eight; it knows 3, 8"):
        evaluate(result.run, dataset=str(tmp_path / "scans"))
    with pytest.raises(UserError, match="has no split val: choose from test, train, all"):
        evaluate(str(run), split="val")
