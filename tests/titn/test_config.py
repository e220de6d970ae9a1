"""Configuration: precedence of recipe, file and arguments; every bad value is one line."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from titn.cli import parse
from titn.config import RunConfig, TeacherConfig, TrainConfig, stored_config, to_yaml
from titn.errors import UserError
from titn.training.schedule import Schedule, Shape


@pytest.mark.parametrize("dataset", ["digits", "mnist", "cifar10", "cifar100", "photos/of birds"])
@pytest.mark.parametrize("cls", [TrainConfig, TeacherConfig])
def test_every_data_set_has_a_complete_recipe(dataset: str, cls: type[RunConfig]) -> None:
    config = cls(dataset=dataset)
    assert config.epochs >= 1
    assert Schedule.of(config, 50_000).batch_size >= 32


def test_the_recipes_of_the_paper_hold_its_settings() -> None:
    for dataset, epochs in (("cifar10", 600), ("cifar100", 600), ("mnist", 350)):
        for config in (TrainConfig(dataset=dataset), TeacherConfig(dataset=dataset)):
            schedule = Schedule.of(config, 50_000)
            settings = (config.optimizer, schedule.peak, config.weight_decay, schedule.batch_size, schedule.epochs)
            assert settings == ("sgd", 0.1, 1e-4, 1024, epochs)
    student = TrainConfig(dataset="cifar100")
    assert (student.model, student.teacher, student.distillation, student.distillation_weight) == (
        "titn", "vgg16_bn", "hard", 0.5,
    )  # fmt: skip
    assert (student.augmentation, student.mix, student.mix_alpha) == ("cifar10", "cutmix", 0.5)


@pytest.mark.parametrize("dataset", ["mnist", "cifar10", "cifar100", "photos/of birds"])
def test_the_quick_recipe_is_another_and_its_warm_up_follows_the_epochs(dataset: str) -> None:
    paper, quick = TrainConfig(dataset=dataset), TrainConfig(dataset=dataset, recipe="quick")
    assert quick.epochs <= paper.epochs and quick.optimizer in ("adamw", "muon")
    assert Schedule.of(quick, 50_000).batch_size <= 256 < 1024
    for epochs in (4, 50):
        short = TrainConfig(dataset=dataset, recipe="quick", epochs=epochs)
        assert short.warmup_epochs == pytest.approx(quick.warmup_epochs * epochs / quick.epochs)
        assert short.changed(seed=1).warmup_epochs == short.warmup_epochs
    assert TrainConfig(dataset=dataset, recipe="quick", epochs=4, warmup_epochs=1.0).warmup_epochs == 1.0
    teacher = quick.teacher_training(quick.teacher)
    assert (teacher.recipe, teacher.epochs, teacher.optimizer) == ("quick", quick.teacher_epochs, quick.optimizer)


def test_digits_have_one_recipe() -> None:
    with pytest.raises(UserError, match="digits has one recipe"):
        TrainConfig(recipe="quick")
    with pytest.raises(UserError, match="--recipe must be one of paper, quick, not 'fast'"):
        parse(TrainConfig, ["--recipe", "fast"])


MINE = "dataset: cifar10\nlr: 2e-2\nepochs: 7\nseed: 5\ncompile: off\nfast: true\n"


@pytest.fixture
def mine(tmp_path: Path) -> str:
    (tmp_path / "mine.yaml").write_text(MINE)
    return str(tmp_path / "mine.yaml")


def test_arguments_beat_the_file_and_the_file_beats_the_recipe(mine: str) -> None:
    config = parse(TrainConfig, ["--config", mine, "--epochs", "3"])
    assert (config.dataset, config.lr, config.epochs, config.seed) == ("cifar10", 0.02, 3, 5)
    assert (config.compile, config.augmentation) == ("off", "cifar10")
    assert config.said == {"dataset", "lr", "epochs", "seed", "compile", "fast"}


def test_what_is_said_counts_even_where_it_equals_the_default(mine: str) -> None:
    said = ["--seed", "0", "--dataset", "digits", "--no-fast", "--depth", "none", "--lr", "auto"]
    python: dict[str, Any] = {"seed": 0, "dataset": "digits", "fast": False, "depth": None, "lr": "auto"}
    for config in (parse(TrainConfig, ["--config", mine, *said]), TrainConfig(config=mine, **python)):
        assert (config.seed, config.dataset, config.fast, config.depth, config.lr) == (0, "digits", False, None, "auto")
        assert config.epochs == 7
    assert TrainConfig().depth == 6
    assert TrainConfig(depth=None).depth is None


def test_a_configuration_survives_yaml(tmp_path: Path) -> None:
    config = TrainConfig(
        dataset="mnist", amp="off", compile="off", limit_train=10, depth=None, name="on", teacher_settings={"lr": 0.1}
    )  # fmt: skip
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert stored_config(tmp_path / "config.yaml") == config
    assert replace(config, epochs=3) == config.changed(epochs=3)


def test_numbers_of_numpy_and_paths_are_taken_as_what_they_are(tmp_path: Path) -> None:
    config = TrainConfig(epochs=np.int64(3), lr=np.float32(0.5), runs_dir=tmp_path, flip=np.bool_(True))
    assert (config.epochs, config.lr, config.runs_dir, config.flip) == (3, 0.5, str(tmp_path), True)
    assert type(config.epochs) is int
    assert "epochs: 3\n" in to_yaml(config)


def test_settings_for_a_teacher_reach_it() -> None:
    config = parse(
        TrainConfig, ["--teacher-settings", "lr=0.5", "optimizer=sgd", "mix=cutmix", "--teacher-epochs", "3"]
    )
    teacher = config.teacher_training(config.teacher)
    assert (teacher.lr, teacher.optimizer, teacher.mix, teacher.epochs, teacher.seed) == (0.5, "sgd", "cutmix", 3, 0)
    with pytest.raises(UserError, match="takes it from its student"):
        TrainConfig(teacher_settings={"dataset": "mnist"}).teacher_training("vgg16_bn")
    with pytest.raises(UserError, match="did you mean optimizer"):
        TrainConfig(teacher_settings={"optimiser": "sgd"}).teacher_training("vgg16_bn")


def test_a_setting_that_decides_nothing_is_said_to() -> None:
    assert parse(TrainConfig, ["--temperature", "4"]).without_effect == [
        "--temperature has no effect with --distillation hard"
    ]
    for kind, beta in (("hard", True), ("soft", True), ("standardized", True), ("decoupled", False)):
        config = TrainConfig(distillation=kind, decoupled_beta=2.0)
        assert config.without_effect == [f"--decoupled-beta has no effect with --distillation {kind}"] * beta
    alone = parse(TrainConfig, ["--teacher", "none", "--distillation", "soft", "--mix-alpha", "1"])
    assert alone.without_effect == [
        "--mix-alpha has no effect with --mix none", "--distillation has no effect without a teacher",
    ]  # fmt: skip
    assert TrainConfig(epochs=2, warmup_epochs=10).without_effect == [
        "--warmup-epochs 10 is all of the training: --lr is never reached"
    ]
    assert TrainConfig().without_effect == []


def test_each_distillation_has_its_papers_temperature_unless_told() -> None:
    papers = {"hard": 1.0, "soft": 1.0, "standardized": 2.0, "decoupled": 4.0}
    for kind, temperature in papers.items():
        assert TrainConfig(distillation=kind).distillation_term["temperature"] == temperature
        assert TrainConfig(distillation=kind, temperature=3.0).distillation_term["temperature"] == 3.0


@pytest.mark.parametrize("width", ["80", "140"])
def test_help_shows_what_the_recipe_gives(
    width: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    with pytest.raises(SystemExit) as left:
        parse(TrainConfig, ["--dataset", "cifar100", "--epochs", "7", "--help"])
    assert left.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in ("[cifar100]", "[7]", "[auto, at most 1024]", "[vgg16_bn]", "[cutmix]", "linear warm-up"):
        assert words in shown
    assert "None" not in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--epochs", "many"], "--epochs"),
        (["--batch-size", "-4"], "--batch-size must be at least 1"),
        (["--lr", "nan"], "--lr must be finite"),
        (["--lr", "inf"], "--lr must be finite"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--distillation-weight", "1.5"], "--distillation-weight must be at most 1"),
        (["--limit-train", "0"], "--limit-train must be at least 1"),
        (["--name", "../elsewhere"], "--name"),
        (["--name", "a/b"], "--name"),
        (["--amp", "fp8"], "--amp"),
        (["--no-such-flag", "1"], "--no-such-flag"),
        (["--epochs"], "--epochs"),
        (["--epoch", "3"], "did you mean --epochs?"),
        (["--epochs", "2.5"], "--epochs must be a whole number, not '2.5'"),
        (["--teacher-settings", "lr"], "takes name=value"),
        (["--crop-padding", "40"], "--crop-padding 40 must not exceed"),
        (["--config", "no-such.yaml"], "no-such.yaml"),
    ],
)
def test_bad_arguments_are_one_line(arguments: list[str], words: str) -> None:
    with pytest.raises(UserError) as raised:
        parse(TrainConfig, arguments)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoch: 3\n", "no setting 'epoch'; did you mean epochs"),
        ("epochs: 3\nepochs: 4\n", "twice"),
        ("epochs: yes\n", "--epochs cannot be True"),
        ("name: yes\n", "--name cannot be True"),
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


@pytest.mark.parametrize("values", [{"epochs": True}, {"flip": "maybe"}, {"dataset": None}, {"lr": float("nan")}])
def test_a_bad_value_from_python_is_one_line(values: dict[str, Any]) -> None:
    (name,) = values
    with pytest.raises(UserError, match=f"--{name}"):
        TrainConfig(**values)
    with pytest.raises(UserError, match="did you mean optimizer"):
        TeacherConfig(optimiser="sgd")


def test_a_short_training_gets_smaller_batches_and_rates_unless_told() -> None:
    short = Schedule.of(TrainConfig(dataset="mnist", epochs=1), 6000)
    assert short.batch_size == 32
    assert short.peak == pytest.approx(0.1 * (32 / 1024) ** 0.5)
    assert Schedule.of(TrainConfig(dataset="mnist", epochs=20), 60_000).batch_size == 600
    told = TrainConfig(dataset="mnist", epochs=1, batch_size=1024, lr=0.3)
    assert Schedule.of(told, 6000) == Schedule(1024, 5, 1, 0.3)
    assert Schedule.of(told, 100).batch_size == 100


def test_a_rate_of_sgd_is_not_for_adamw_and_muon() -> None:
    peaks = {name: Schedule.of(TrainConfig(dataset="cifar10", optimizer=name), 50_000).peak for name in ("sgd", "muon")}
    assert peaks == {"sgd": 0.1, "muon": 1e-3}
    assert Schedule.of(TrainConfig(dataset="digits", optimizer="muon", batch_size=32), 1438).peak == 1e-3


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("linear", [0.5 * (1 - step / 20) for step in range(21)]),
        ("constant", [0.5] * 21),
        ("step", [0.5] * 8 + [0.05] * 6 + [0.005] * 7),
    ],
)
def test_other_shapes_of_the_rate(shape: Shape, expected: list[float]) -> None:
    schedule = Schedule(batch_size=4, steps=10, epochs=3, peak=0.5, warmup_epochs=1.0, shape=shape)
    rates = [schedule.rate(step) for step in range(31)]
    assert rates[:10] == pytest.approx([0.5 * (step + 1) / 11 for step in range(10)])
    assert rates[10:] == pytest.approx(expected)


def test_settings_of_other_optimisers_are_said_to_have_no_effect() -> None:
    assert TrainConfig(optimizer="adamw", momentum=0.5, beta1=0.8).without_effect == [
        "--momentum has no effect with --optimizer adamw"
    ]
    assert TrainConfig(optimizer="sgd", beta2=0.99, momentum=0.0).without_effect == [
        "--beta2 has no effect with --optimizer sgd"
    ]


def test_the_rate_warms_up_and_falls_along_a_cosine_to_zero() -> None:
    schedule = Schedule(batch_size=4, steps=10, epochs=3, peak=0.5, warmup_epochs=1.0)
    rates = [schedule.rate(step) for step in range(schedule.total_steps + 1)]
    assert rates[:10] == pytest.approx([0.5 * (step + 1) / 11 for step in range(10)])
    assert rates[10:] == pytest.approx([0.25 * (1 + math.cos(math.pi * step / 20)) for step in range(21)])
