"""What an installation holds: configurations, type markers, the shipped bundle, versions that agree."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import runtime

ROOT = Path(__file__).parents[1]


def test_version_is_the_project_file_s():
    declared = re.search(r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert declared is not None
    assert runtime.__version__ == declared.group(1)


@pytest.mark.slow
def test_wheel_holds_what_the_programs_open(tmp_path):
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    built = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in names if ".so" in name]
    for room in ("runtime", "export", "training", "calibration"):
        assert f"{room}/py.typed" in names
    assert {"training/configs/tiny.toml", "training/configs/demo.toml", "training/configs/paper.toml"} <= names
    bundle = {f"runtime/bundles/demo/{file}" for file in ("manifest.json", "encoder.onnx", "unet.onnx", "decoder.onnx")}
    bundle |= {f"runtime/bundles/demo/{stage}.int8-x86.onnx" for stage in ("encoder", "unet", "decoder")}
    assert bundle | {"runtime/bundles/demo/MODEL_CARD.md"} <= names
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "examples"))]
    assert wheel.stat().st_size < 21e6
