"""`s2f-capi wheel` and `where`: what the wheel holds, and that a program in C needs nothing but what pip installs."""

from __future__ import annotations

import base64
import csv
import hashlib
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest
from capi.host import HERE, ROOT, STRICT, compile_program, make_environment, needs_compiler, run, write_voice

import runtime
from runtime.capi import build
from runtime.capi.wheel import platform_tag
from runtime.errors import BackendFailed, BackendMissing, InvalidArgument
from runtime.pipeline import shipped_bundle

pytestmark = needs_compiler

VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
INFO = f"s2f_edge-{runtime.__version__}.dist-info"


def write_pure(folder: Path) -> Path:
    """The wheel of this package as pip makes it, without training and export."""
    path = folder / f"s2f_edge-{runtime.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for source in (ROOT / "runtime").rglob("*"):
            if source.is_file() and source.suffix != ".pyc":
                archive.write(source, source.relative_to(ROOT))
        archive.writestr(f"{INFO}/METADATA", f"Metadata-Version: 2.1\nName: s2f-edge\nVersion: {runtime.__version__}\n")
        archive.writestr(f"{INFO}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n\n")
        archive.writestr(f"{INFO}/RECORD", f"{INFO}/RECORD,,\n")
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("cffi")
    folder = tmp_path_factory.mktemp("wheel")
    return build.pack(write_pure(folder), folder)


class Device:
    """An environment into which pip has installed the wheel, and a program made with what pkg-config tells."""

    def __init__(self, wheel: Path, folder: Path) -> None:
        self.root, self.packages = make_environment(folder / "venv")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
        output(*pip, "--target", self.packages, wheel)
        self.python = self.root / "bin" / f"python{VERSION}"
        self.library = Path(output(self.python, "-m", "runtime.capi.build", "where").strip())
        self.voice = write_voice(folder)
        self.folder = folder
        config = "env", f"PKG_CONFIG_PATH={self.library / 'lib' / 'pkgconfig'}", "pkg-config"
        flags = output(*config, "--cflags", "--libs", "s2f").split()
        output("cc", *STRICT, f"-I{HERE}", HERE / "demo.c", "-o", folder / "demo", *flags, "-lm")

    def draw(self, library: Path | None = None) -> bytes:
        """What the program draws with the library in that folder."""
        place = str((library or self.library) / "lib")
        run(self.folder / "demo", self.folder / "voice.f32", self.folder, LD_LIBRARY_PATH=place)
        return (self.folder / "demo.rgb").read_bytes()


def output(*command: object) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def device(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Device:
    if shutil.which("pkg-config") is None:
        pytest.skip("there is no pkg-config here")
    return Device(wheel, tmp_path_factory.mktemp("device"))


def test_the_name_tells_for_what_it_is(wheel: Path) -> None:
    python = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    tag = rf"({python}-{python}{sys.abiflags}-manylinux_2_\d+_{platform.machine()})"
    name = re.fullmatch(rf"s2f_edge-{re.escape(runtime.__version__)}-{tag}\.whl", wheel.name)
    assert name is not None
    text = zipfile.ZipFile(wheel).read(f"{INFO}/WHEEL").decode()
    assert f"Root-Is-Purelib: false\nTag: {name.group(1)}\n" in text


def test_every_file_is_listed_with_its_hash(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    rows = {row[0]: row[1:] for row in csv.reader(files.pop(f"{INFO}/RECORD").decode().splitlines())}
    assert rows.pop(f"{INFO}/RECORD") == ["", ""]
    assert rows.keys() == files.keys()
    for name, (hashed, size) in rows.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).decode().rstrip("=")
        assert (hashed, int(size)) == (f"sha256={digest}", len(files[name]))


def test_nothing_else_differs_from_the_pure_wheel(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive, zipfile.ZipFile(write_pure(tmp_path)) as pure:
        more = set(archive.namelist()) - set(pure.namelist())
        same = set(pure.namelist()) - {f"{INFO}/WHEEL", f"{INFO}/RECORD"}
        assert all(archive.read(name) == pure.read(name) for name in same)
    assert all(name.startswith(("runtime/capi/lib/", "runtime/capi/include/")) for name in more)
    assert {"runtime/capi/lib/libs2f.so", "runtime/capi/lib/libs2f.so.1", "runtime/capi/include/s2f.h"} <= more


def test_a_program_in_c_draws_what_python_draws(device: Device) -> None:
    assert device.library == device.packages / "runtime" / "capi"
    with runtime.load(shipped_bundle(), device="cpu", threads=1) as pipeline:
        expected = pipeline.generate((device.voice, 16000), seed=3).image
    assert device.draw() == np.asarray(expected).tobytes()


def test_the_environment_may_be_moved(device: Device, tmp_path: Path) -> None:
    before, moved = device.draw(), tmp_path / "moved"
    device.root.rename(moved)
    try:
        assert device.draw(moved / device.library.relative_to(device.root)) == before
    finally:
        moved.rename(device.root)


def test_an_environment_of_copies(device: Device) -> None:
    """`python -m venv --copies`: only pyvenv.cfg tells which Python it was made with."""
    before, link = device.draw(), device.python.readlink()
    real = device.python.resolve()
    device.python.unlink()
    shutil.copy(real, device.python)
    try:
        assert device.draw() == before
    finally:
        device.python.unlink()
        device.python.symlink_to(link)


def test_packages_below_the_prefix_of_python(device: Device, tmp_path: Path) -> None:
    """As Debian's: /usr/lib/python3/dist-packages with /usr/bin/python3.X, and no environment."""
    packages = tmp_path / "usr" / "lib" / "python3" / "dist-packages"
    packages.parent.mkdir(parents=True)
    shutil.copytree(device.packages, packages, symlinks=True)
    (tmp_path / "usr" / "bin").mkdir()
    (tmp_path / "usr" / "bin" / f"python{VERSION}").symlink_to(device.python.resolve())
    assert device.draw(packages / "runtime" / "capi") == device.draw()


def test_no_shared_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A library for one that nobody has."""
    pytest.importorskip("cffi")
    known = sysconfig.get_config_var
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: "9.9x" if name == "LDVERSION" else known(name))
    build.build(tmp_path / "s2f")
    for line in run(compile_program("opening", tmp_path / "s2f", tmp_path), tmp_path, 2).splitlines():
        assert re.match(rf"40\t.*no /.*/lib/libpython9\.9x\.so\.1\.0.*apt-get install libpython{VERSION}", line), line


def test_a_wheel_that_is_not_of_this_release(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cffi")
    other = write_pure(tmp_path).rename(tmp_path / "s2f_edge-0.0.1-py3-none-any.whl")
    assert build.main(["wheel", str(other), "-o", str(tmp_path)]) == InvalidArgument.code
    assert "pip wheel --no-deps" in capsys.readouterr().err
    broken = tmp_path / f"s2f_edge-{runtime.__version__}-py3-none-any.whl"
    broken.write_bytes(b"no archive")
    assert build.main(["wheel", str(broken), "-o", str(tmp_path)]) == InvalidArgument.code
    assert "cannot be read" in capsys.readouterr().err
    assert set(tmp_path.iterdir()) == {other, broken}


def test_the_tag_is_of_the_newest_glibc_that_is_needed() -> None:
    def needs(machine: int, *versions: bytes) -> bytes:
        return b"\x7fELF".ljust(18) + machine.to_bytes(2, "little") + b"\0".join(versions)

    assert platform_tag([needs(183, b"GLIBC_2.17"), needs(183, b"GLIBC_2.9", b"GLIBC_2.2.5")]) == (
        "manylinux_2_17_aarch64"
    )
    assert platform_tag([needs(62, b"GLIBC_2.4", b"GLIBC_2.34")]) == "manylinux_2_34_x86_64"
    for binary in (needs(243, b"GLIBC_2.34"), needs(62, b"")):
        with pytest.raises(BackendFailed, match="x86-64 or aarch64"):
            platform_tag([binary])


def test_where_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "HERE", tmp_path)
    with pytest.raises(BackendMissing, match="s2f-capi build -o DIR"):
        build.installed()


def test_another_compiler_makes_a_wheel_for_another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("cffi")
    compiler = {"x86_64": "aarch64-linux-gnu-gcc", "aarch64": "x86_64-linux-gnu-gcc"}.get(platform.machine(), "")
    if shutil.which(compiler) is None:
        pytest.skip("there is no cross compiler here")
    monkeypatch.setenv("CC", compiler)
    made = build.pack(write_pure(tmp_path), tmp_path)
    assert made.name.endswith(f"_{compiler.partition('-')[0]}.whl")
