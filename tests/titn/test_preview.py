"""The picture of what a training sees."""

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from titn.config import TrainConfig
from titn.pipelines import EpochPlan, make_pipeline
from titn.pipelines.policies import Operation, OperationRows
from titn.preview import describe, differences, main, preview
from titn.training.plans import augmentation_of
from titn.training.preparation import load_data

WORDS = {"dataset": "digits", "augmentation": "cifar10", "erase": 0.5, "flip": True, "mix": "cutmix", "device": "cpu"}
FLAGS = ["--dataset", "digits", "--augmentation", "cifar10", "--erase", "0.5", "--flip", "--device", "cpu"]


def test_stages_end_with_the_bytes_that_a_training_sees() -> None:
    config = TrainConfig(**WORDS)
    name, found = preview(config, 20, 3)
    assert name == "torch"
    assert [stage.name for stage in found] == ["stored", "crop and flip", "policy", "erase", "mix"]
    dataset = load_data(config, None)
    size = len(dataset.train_labels)
    plan = EpochPlan.draw(augmentation_of(config, 64), size=size, image_size=dataset.image_size, seed=0, epoch=3)
    ids = plan.order[:20]
    assert_array_equal(found[0].pixels, dataset.train_images[ids])
    assert found[0].captions == [dataset.class_names[label] for label in dataset.train_labels[ids]]
    batch = make_pipeline(dataset, backend="torch").batch(plan, np.arange(20))
    pixels = batch.images[:, 0].numpy() * 255 * dataset.std[0] + dataset.mean[0] * 255
    np.testing.assert_allclose(found[-1].pixels[..., 0], pixels, atol=1e-3)
    for caption, lam in zip(found[-1].captions, batch.lam.tolist(), strict=True):
        assert caption.startswith(f"{lam:.2f} ")
    erased = ["erase" in caption for caption in found[3].captions]
    assert_array_equal(erased, (found[2].pixels != found[3].pixels).any((1, 2, 3)))


def test_nothing_is_shown_that_is_not_done() -> None:
    _, found = preview(TrainConfig(**(WORDS | {"augmentation": "none", "erase": 0.0, "mix": "none"})), 2, 0)
    assert [stage.name for stage in found] == ["stored", "crop and flip"]


def test_operations_in_words() -> None:
    parameters = np.zeros((1, 4, 6))
    parameters[0, :, 0] = 1.25, 240, 128, 0
    codes = np.array([[Operation.COLOR, Operation.POSTERIZE, Operation.SOLARIZE, Operation.IDENTITY]], dtype=np.uint8)
    assert describe(OperationRows(codes, parameters), 0) == "color 1.25\nposterize 4 bits\nsolarize 128"
    assert describe(OperationRows(codes[:, 3:], parameters[:, 3:]), 0) == "as it was"


def test_differences_are_shown_and_counted() -> None:
    _, mine = preview(TrainConfig(**WORDS), 3, 0)
    _, theirs = preview(TrainConfig(**WORDS), 3, 0)
    theirs[1].pixels[1, 0, 0] += 5
    columns = differences("a", mine, "b", theirs)
    assert [column.name for column in columns[:3]] == ["crop and flip: a", "b", "difference x 16"]
    share = 1 / mine[0].pixels[0].size
    assert columns[2].captions[1] == f"max 5, {share:.1%} off by > 2"
    assert columns[2].pixels[1, 0, 0] == 80 and columns[2].pixels.sum() == 80
    assert not columns[-1].pixels.any()


def test_command_writes_both_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "sheet.png"
    main([*FLAGS, "--images", "2", "--out", str(out), "--compare", "torch"])
    paths = out, tmp_path / "new" / "sheet-difference.png"
    assert capsys.readouterr().out.split() == list(map(str, paths))
    for path in paths:
        with Image.open(path) as picture:
            assert min(picture.size) > 200 and len(picture.convert("RGB").getcolors(1 << 24)) > 20


def test_an_unknown_format_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*FLAGS, "--out", str(tmp_path / "sheet.docx")])
    assert caught.value.code == 2 and "docx" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
