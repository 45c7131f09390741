"""The corpus command's options and licence texts; the help must print where training's packages are not installed."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from training.corpus.arguments import add_arguments

ROOT = Path(__file__).parent.parent
HEAVY = ("scipy", "numba", "pyworld", "torch", "soundfile")
RUN_WITHOUT = f"""
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError("blocked: " + name, name=name)
sys.meta_path.insert(0, Refuse())
sys.argv = ["s2f-train", *sys.argv[1:]]
runpy.run_module("training", run_name="__main__")
"""


def train_without_packages(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m training` in a process that cannot import HEAVY."""
    return subprocess.run([sys.executable, "-c", RUN_WITHOUT, *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(("arguments", "named"), [((), "corpus"), (("corpus",), "--makehuman")])
def test_help_needs_no_package_of_training(arguments, named):
    done = train_without_packages(*arguments, "--help")
    assert done.returncode == 0, done.stderr
    assert named in done.stdout


def test_building_without_the_packages_says_what_to_install(tmp_path):
    places = [f"--{name}={tmp_path / name}" for name in ("makehuman", "speech", "out")]
    done = train_without_packages("corpus", *places, "--identities", "1")
    assert done.returncode == 40, done.stderr
    assert "s2f-edge[train]" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_command_line_names_what_it_needs():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(["--makehuman", "m", "--speech", "s", "--out", "o", "--identities", "5"])
    assert (args.identities, args.portraits, args.clips, args.size, args.seed, args.workers) == (5, 1, 1, 256, 0, None)
