"""The lean room: what importing and running `runtime` may load."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_bundle import write_tiny_bundle

import runtime

ROOT = Path(__file__).parent.parent
BACKENDS = {"onnxruntime", "openvino", "tensorrt", "pycuda", "cuda"}
ALLOWED = {"numpy", "platformdirs", "soundfile", "soxr", "PIL", "cffi", "_s2f_native", *BACKENDS}
FORBIDDEN = (
    *(
        "torch",
        "torchaudio",
        "onnx",
        "diffusers",
        "accelerate",
        "safetensors",
        "transformers",
        "scipy",
        "numba",
        "tqdm",
    ),
    *("training", "export", "calibration", "tests", "benchmarks", "pytest", "huggingface_hub"),
)
BLOCKER = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {FORBIDDEN!r}:
            raise ImportError("forbidden in the lean room: " + name)
sys.meta_path.insert(0, Refuse())
"""


def run(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", BLOCKER + code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_blocker_blocks() -> None:
    with pytest.raises(AssertionError, match="forbidden in the lean room: onnx"):
        run("import onnx")


@pytest.mark.parametrize("device", ["cpu", "openvino"])
def test_nothing_is_written_or_reported_by_a_backend(device: str, tmp_path: Path) -> None:
    """ONNX Runtime 1.32 and OpenVINO would leave an identifier in the user's folders, and send it."""
    if device == "openvino" and importlib.util.find_spec(device) is None:
        pytest.skip("OpenVINO is not installed")
    home = tmp_path / "home"
    home.mkdir()
    write_tiny_bundle(tmp_path / "tiny")
    code = """
import sys
sys.addaudithook(lambda event, _: event.startswith("socket.") and print(event))
import runtime
runtime.load(sys.argv[1], device=sys.argv[2]).close()
"""
    known = {n: value for n, value in os.environ.items() if not n.startswith(("XDG_", "ORT_", "S2F_", "CI"))}
    command = [sys.executable, "-c", code, str(tmp_path / "tiny"), device]
    environment = {**known, "HOME": str(home), "TMPDIR": str(home)}
    done = subprocess.run(command, cwd=ROOT, check=True, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert not list(home.rglob("*"))


def test_importing_runtime_loads_none_of_its_dependencies() -> None:
    loaded = set(run("import runtime; print(*sys.modules)").split())
    assert "runtime" in loaded
    assert not {name.split(".")[0] for name in loaded} & (ALLOWED | set(FORBIDDEN))


def test_every_module_imports_and_a_portrait_is_made_without_the_heavy_packages(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny")
    code = """
import importlib, pkgutil, runtime
for module in pkgutil.walk_packages(runtime.__path__, "runtime."):
    if module.name != "runtime.__main__":
        importlib.import_module(module.name)
from runtime.bench import synthetic_speech
with runtime.load(sys.argv[1]) as pipeline:
    pipeline.generate((synthetic_speech(), 16000)).save(sys.argv[2])
print(*sys.modules)
"""
    out = tmp_path / "face.png"
    loaded = {name.split(".")[0] for name in run(code, str(bundle), str(out)).split()}
    assert out.read_bytes().startswith(b"\x89PNG")
    assert not loaded & set(FORBIDDEN)


def test_no_statement_imports_anything_else() -> None:
    """Also the imports inside functions, which no run may happen to reach."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "runtime").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in names:
                found.setdefault(name.split(".")[0], set()).add(path.name)
    strangers = {
        name: sorted(files)
        for name, files in found.items()
        if name not in sys.stdlib_module_names | ALLOWED | {"runtime"}
    }
    assert strangers == {}


def test_library_code_neither_prints_nor_exits() -> None:
    for path in (ROOT / "runtime").rglob("*.py"):
        calls = {
            ast.unparse(node.func)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
        }
        allowed = {"sys.exit"} if path.name == "__main__.py" else set()
        assert not calls & {"print", "exit", "quit", "sys.exit", "os._exit", "os.abort"} - allowed, path


def test_the_public_face() -> None:
    assert set(runtime.__all__) <= set(dir(runtime))
    for name in runtime.__all__:
        assert getattr(runtime, name) is not None
    with pytest.raises(AttributeError, match="nothing_here"):
        runtime.nothing_here  # noqa: B018 - the access is the test


def test_the_version_is_that_of_the_package() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^version = "([^"]+)"', text, re.MULTILINE)
    assert found is not None
    assert found[1] == runtime.__version__
