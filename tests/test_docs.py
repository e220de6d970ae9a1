"""The documentation: it builds without a broken link, and every command in it has the flags it is given."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from titn.__main__ import COMMANDS
from titn.cli import parse
from titn.config import FillConfig, TeacherConfig, TrainConfig, VerifyConfig

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
PARSED = {"train": TrainConfig, "teacher": TeacherConfig, "cache fill": FillConfig, "cache verify": VerifyConfig}


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
    return [line for block in blocks for line in block.splitlines() if line.startswith("titn ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_have_the_flags_that_they_are_given(page: Path, tmp_path: Path) -> None:
    for line in commands(page):
        _, command, *arguments = shlex.split(line, comments=True)
        assert command in COMMANDS
        kind = PARSED.get(f"{command} {arguments[0]}" if command == "cache" else command)
        if kind is None:
            source = (ROOT / "titn" / f"{command}.py").read_text()
            assert all(f'"{each}"' in source for each in arguments if each.startswith("--")), line
        elif "--config" not in arguments:
            parse(kind, arguments[command == "cache" :])


def test_every_page_is_in_the_site() -> None:
    listed = re.findall(r": (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(listed) == [page.name for page in PAGES]


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("mkdocs", "mkdocstrings", "material")),
    reason="the documentation's tools are not installed: make docs installs them and builds it",
)
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "api" / "index.html").stat().st_size > 10_000
