"""The throughput benchmark runs on this device and writes what it measured."""

import json
from pathlib import Path

import pytest

from bench import throughput


def test_it_measures_every_contender(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    eager = {name: entry for name, entry in throughput.CONTENDERS.items() if not entry[1]}
    monkeypatch.setattr(throughput, "CONTENDERS", eager)
    throughput.main(["--batch-size", "2", "--rounds", "2", "--device", "cpu", "--out", str(tmp_path)])
    (file,) = tmp_path.glob("*/*-throughput.json")
    content = json.loads(file.read_text())
    assert set(content["contenders"]) == set(eager)
    for measured in content["contenders"].values():
        assert len(measured["seconds"]) == 2
        assert measured["images_per_second"] > 0
    assert "timm TNT eager" in capsys.readouterr().out


def test_a_bad_number_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        throughput.main(["--rounds", "0"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: --rounds must be at least 1, not 0\n"
