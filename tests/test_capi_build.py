"""`s2f-capi build`: what it writes, what the library shows, and what it says where something is missing."""

from __future__ import annotations

import importlib
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from capi.host import HERE, STRICT, build_library, needs_compiler, run
from tiny_bundle import write_tiny_bundle

import runtime
from runtime.capi import build
from runtime.errors import CODES, BackendFailed, BackendMissing, OutputUnwritable

pytestmark = needs_compiler

SOURCES = Path(runtime.__file__).parent / "capi"
WRITTEN = {
    "include/s2f.h",
    "lib/_s2f_native.so",
    "lib/cmake/S2F/S2FConfig.cmake",
    "lib/cmake/S2F/S2FConfigVersion.cmake",
    "lib/cmake/S2F/s2f-config-version.cmake",
    "lib/cmake/S2F/s2f-config.cmake",
    "lib/libs2f.so",
    "lib/libs2f.so.1",
    "lib/pkgconfig/s2f.pc",
}
CMAKE = """
cmake_minimum_required(VERSION 3.16)
project(host C)
find_package({name} 0.1 REQUIRED)
add_executable(host {source})
target_compile_definitions(host PRIVATE _GNU_SOURCE)
target_link_libraries(host PRIVATE S2F::s2f m)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(tmp_path_factory.mktemp("s2f"))


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def output(*command: object) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def exported() -> set[str]:
    """The export list."""
    return set(re.findall(r"^    (s2f_\w+);", (SOURCES / "exports.map").read_text(), re.MULTILINE))


def test_what_is_written(library: Path) -> None:
    assert files_in(library) == WRITTEN
    assert (library / "lib" / "libs2f.so").resolve().name == "libs2f.so.1"
    assert (library / "include" / "s2f.h").read_bytes() == (SOURCES / "s2f.h").read_bytes()


@pytest.mark.parametrize(
    ("compiler", "flags"),
    [(c, f"-std={std}") for c in ("gcc", "clang") for std in ("c99", "c11")]
    + [(c, f"-std={std}") for c in ("g++", "clang++") for std in ("c++11", "c++17", "c++20")],
)
def test_the_header_stands_alone(compiler: str, flags: str, tmp_path: Path) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler} here")
    source = tmp_path / ("a.cpp" if "++" in compiler else "a.c")
    source.write_text(f'#include "{SOURCES / "s2f.h"}"\n#include "{SOURCES / "s2f.h"}"\nint one = S2F_ABI_VERSION;\n')
    output(compiler, flags, *STRICT[1:], "-c", source, "-o", tmp_path / "a.o")


def test_the_header_shows_no_trace_of_python() -> None:
    text = (SOURCES / "s2f.h").read_text(encoding="utf-8")
    assert not re.search(r"\bpy|python|numpy|cffi|\bGIL\b", text, re.IGNORECASE)


def symbols(library: Path, name: str) -> set[str]:
    """What a shared object shows and needs."""
    lines = output("nm", "-D", library / "lib" / name).splitlines()
    return {line.split()[-1].partition("@")[0] for line in lines}


def test_every_function_of_the_header_is_exported_and_nothing_else(library: Path) -> None:
    header = (SOURCES / "s2f.h").read_text(encoding="utf-8")
    declared = set(re.findall(r"^S2F_API .*?\b(s2f_\w+)\(", header, re.MULTILINE))
    lines = output("nm", "-D", "--defined-only", library / "lib" / "libs2f.so").splitlines()
    shown = {line.split()[-1].partition("@")[0] for line in lines} - {"S2F_1"}  # the name of the version itself
    assert declared == exported() == shown


def test_the_library_cannot_end_the_program_or_write_to_it(library: Path) -> None:
    needed = symbols(library, "libs2f.so") | symbols(library, "_s2f_native.so")
    forbidden = {"exit", "_exit", "_Exit", "quick_exit", "abort", "__assert_fail", "Py_Exit", "Py_FatalError"}
    forbidden |= {"printf", "fprintf", "puts", "fputs", "putchar", "write", "perror", "stderr", "stdout", "PyErr_Print"}
    forbidden |= {"signal", "sigaction", "setenv", "putenv", "setlocale", "Py_Finalize", "Py_FinalizeEx"}
    assert not needed & (forbidden | {f"__{name}_chk" for name in forbidden})


def test_the_library_is_linked_with_no_python(library: Path) -> None:
    """So a program starts where there is none, and is told what is missing."""
    assert not {name for name in symbols(library, "libs2f.so") if name.startswith(("Py", "_Py"))}
    needed = re.findall(r"NEEDED.*\[(.*)\]", output("readelf", "-d", library / "lib" / "libs2f.so"))
    assert all(re.match(r"lib(c|dl|pthread)\.so|ld-linux", name) for name in needed)


def test_name_and_version(library: Path) -> None:
    read = output("readelf", "-d", library / "lib" / "libs2f.so")
    assert "soname: [libs2f.so.1]" in read
    assert "NODELETE" in read
    assert f"Version: {runtime.__version__}" in (library / "lib" / "pkgconfig" / "s2f.pc").read_text()


def test_the_interface_is_that_of_the_baseline(library: Path) -> None:
    """`abidw` of release 1, types and functions without places; to be made anew only when something is added:
    abidw --no-elf-needed --headers-dir DIR/include --drop-private-types --no-show-locs --no-corpus-path
    --no-comp-dir-path --drop-undefined-syms DIR/lib/libs2f.so.1 | sed "s|path='.*/|path='|"
    """
    if shutil.which("abidiff") is None:
        pytest.skip("there is no abidiff here (apt-get install abigail-tools)")
    if platform.machine() != "x86_64":
        pytest.skip("the baseline is of x86-64")
    output("abidiff", HERE / "libs2f.abi", library / "lib" / "libs2f.so.1")


@pytest.mark.parametrize("moved", [False, True])
def test_pkg_config(moved: bool, library: Path, tmp_path: Path) -> None:
    if shutil.which("pkg-config") is None:
        pytest.skip("there is no pkg-config here")
    place = shutil.copytree(library, tmp_path / "moved", symlinks=True) if moved else library
    config = "env", f"PKG_CONFIG_PATH={place / 'lib' / 'pkgconfig'}", "pkg-config"
    assert output(*config, "--modversion", "s2f").strip() == runtime.__version__
    flags = output(*config, "--cflags", "--libs", "s2f").split()
    source = HERE / "opening.c"
    output("cc", *STRICT, "-I", HERE, source, "-o", tmp_path / "host", *flags, f"-Wl,-rpath,{place / 'lib'}")
    bundle = write_tiny_bundle(tmp_path / "tiny")
    assert run(tmp_path / "host", bundle, 1) == "0\t\n"


@pytest.mark.parametrize("name", ["S2F", "s2f"])
def test_cmake(name: str, library: Path, tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("there is no cmake here")
    (tmp_path / "CMakeLists.txt").write_text(CMAKE.format(name=name, source=HERE / "opening.c"))
    output(
        "cmake", "-S", tmp_path, "-B", tmp_path / "out", f"-DCMAKE_PREFIX_PATH={library}", f"-DCMAKE_C_FLAGS=-I{HERE}"
    )
    output("cmake", "--build", tmp_path / "out")
    assert run(tmp_path / "out" / "host", write_tiny_bundle(tmp_path / "tiny"), 1) == "0\t\n"


def test_every_code_has_a_sentence() -> None:
    text = build.settings("", "")
    assert all(re.search(rf'\{{{code}, "[^"]+\."\}}', text) for code in [0, 1, *CODES.values()])


def test_strings_of_c() -> None:
    assert build.quoted('a"b\\c\né?') == '"a\\042b\\134c\\012\\303\\251\\077"'


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -m64")
    assert build.main(["build", "-o", str(tmp_path / "out")]) == BackendMissing.code
    assert "no C compiler 'no-such-compiler'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_headers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    with pytest.raises(BackendMissing, match=r"Python\.h.*apt-get install python3-dev"):
        build.build(tmp_path / "out")


def test_no_cffi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "cffi", None)
    with pytest.raises(BackendMissing, match="cffi is not installed"):
        build.build(tmp_path / "out")


def test_another_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(BackendMissing, match="on Linux, not on win32"):
        build.find_compiler()


@pytest.mark.parametrize(("name", "value"), [("CFLAGS", "-no-such-flag"), ("LDFLAGS", "-lno_such_library")])
def test_a_build_that_fails_leaves_what_was_there(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("cffi")
    out = tmp_path / "out"
    (out / "lib").mkdir(parents=True)
    (out / "lib" / "libs2f.so.1").write_bytes(b"older")
    monkeypatch.setenv(name, value)
    with pytest.raises(BackendFailed, match=r"no.such"):
        build.build(out)
    assert files_in(out) == {"lib/libs2f.so.1"}
    assert (out / "lib" / "libs2f.so.1").read_bytes() == b"older"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    pytest.importorskip("cffi")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputUnwritable, match="Choose another folder"):
        build.build(tmp_path / "out")
    (tmp_path / "taken" / "lib" / "libs2f.so").mkdir(parents=True)
    with pytest.raises(OutputUnwritable):
        build.build(tmp_path / "taken")


def test_a_library_in_use_is_replaced(tmp_path: Path) -> None:
    folder = build_library(tmp_path / "s2f")
    first = (folder / "lib" / "libs2f.so.1").stat().st_ino
    build_library(folder)
    assert files_in(folder) == WRITTEN
    assert (folder / "lib" / "libs2f.so.1").stat().st_ino != first


def test_the_command_is_a_module_too() -> None:
    assert importlib.import_module("runtime.capi.build").main is build.main
    with pytest.raises(SystemExit) as usage:
        build.main([])
    assert usage.value.code == 2
