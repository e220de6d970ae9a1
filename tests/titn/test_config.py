"""Configuration: precedence of recipe, file and arguments; every bad value is one line."""

from pathlib import Path

import pytest

from titn.cli import parse
from titn.config import RECIPES, TeacherConfig, TrainConfig, read_yaml, resolve, settle_batch, to_yaml
from titn.errors import UserError


@pytest.mark.parametrize("dataset", ["digits", "mnist", "cifar10", "cifar100", "folder"])
@pytest.mark.parametrize("cls", [TrainConfig, TeacherConfig])
def test_recipes_are_complete(dataset: str, cls: type) -> None:
    assert resolve(cls(dataset=dataset)).epochs >= 1


def test_the_recipes_of_the_paper_hold_its_settings() -> None:
    for dataset, epochs in (("cifar10", 600), ("cifar100", 600), ("mnist", 350)):
        for unsettled in (resolve(TrainConfig(dataset=dataset)), resolve(TeacherConfig(dataset=dataset))):
            config = settle_batch(unsettled, 50_000)
            settings = (config.optimizer, config.lr, config.weight_decay, config.batch_size, config.epochs)
            assert settings == ("sgd", 0.1, 1e-4, 1024, epochs)
    student = resolve(TrainConfig(dataset="cifar100"))
    assert (student.model, student.teacher, student.distillation, student.distillation_weight) == (
        "titn", "vgg16_bn", "hard", 0.5,
    )  # fmt: skip
    assert (student.augmentation, student.mix, student.mix_alpha) == ("cifar10", "cutmix", 0.5)


def test_arguments_beat_the_file_and_the_file_beats_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("dataset: cifar10\nlr: 2e-2\nepochs: 7\nseed: 5\ncompile: off\n")
    config = resolve(parse(TrainConfig, ["--config", str(file), "--epochs", "3", "--seed", "0"]))
    assert (config.dataset, config.lr, config.epochs, config.seed) == ("cifar10", 0.02, 3, 0)
    assert (config.compile, config.augmentation) == ("off", "cifar10")


def test_python_reads_the_same_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("dataset: cifar10\nlr: 0.5\nepochs: 7\n")
    config = resolve(TrainConfig(config=str(file), epochs=3))
    assert (config.dataset, config.lr, config.epochs) == ("cifar10", 0.5, 3)


def test_a_resolved_configuration_survives_yaml(tmp_path: Path) -> None:
    config = resolve(TrainConfig(dataset="mnist", amp="off", compile="off", limit_train=10))
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert TrainConfig(**read_yaml(tmp_path / "config.yaml", TrainConfig)) == config


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--epochs", "many"], "--epochs"),
        (["--batch-size", "-4"], "--batch-size must be at least 1"),
        (["--lr", "nan"], "--lr must be above 0"),
        (["--lr", "inf"], "--lr must be finite"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--distillation-weight", "1.5"], "--distillation-weight must be at most 1"),
        (["--limit-train", "0"], "--limit-train must be at least 1"),
        (["--name", "../elsewhere"], "--name"),
        (["--name", "a/b"], "--name"),
        (["--amp", "fp8"], "--amp"),
        (["--no-such-flag", "1"], "--no-such-flag"),
        (["--epochs"], "--epochs"),
        (["--config", "no-such.yaml"], "no-such.yaml"),
    ],
)
def test_bad_arguments_are_one_line(arguments: list[str], words: str) -> None:
    with pytest.raises(UserError) as raised:
        resolve(parse(TrainConfig, arguments))
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoch: 3\n", "unknown name 'epoch'"),
        ("- 3\n", "name: value"),
        ("epochs: [1\n", "not valid YAML"),
        ("epochs: three\n", "--epochs"),
        ("device: 3\n", "--device"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=words):
        parse(TrainConfig, ["--config", str(file)])


def test_each_recipe_names_only_known_fields() -> None:
    for path in RECIPES.glob("*.yaml"):
        cls = TeacherConfig if path.stem.endswith("-teacher") else TrainConfig
        assert read_yaml(path, cls)


def test_a_short_training_gets_smaller_batches_and_rates_unless_told() -> None:
    short = settle_batch(resolve(TrainConfig(dataset="mnist", epochs=1)), 6000)
    assert short.batch_size == 32
    assert short.lr == pytest.approx(0.1 * (32 / 1024) ** 0.5)
    middle = settle_batch(resolve(TrainConfig(dataset="mnist", epochs=20)), 60_000)
    assert middle.batch_size == 600
    told = settle_batch(resolve(TrainConfig(dataset="mnist", epochs=1, batch_size=1024, lr=0.3)), 6000)
    assert (told.batch_size, told.lr) == (1024, 0.3)
    assert settle_batch(told, 100).batch_size == 100
