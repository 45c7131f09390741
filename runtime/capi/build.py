"""`s2f-capi build`: libs2f.so for the Python this runs under, with its header and what build systems look for.

The library finds its Python without the environment: the interpreter is the one that runs this command, and what it
imports is what that interpreter imports. Where library and interpreter lie in one folder (a virtual environment, a
Python of its own) the way is kept relative to the library, so that the folder may be moved as a whole.
CC, CFLAGS and LDFLAGS are taken from the environment, as by make.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import ALL_ERRORS, BackendFailed, BackendMissing, OutputUnwritable, S2FError
from ..output import write_files

HERE = Path(__file__).parent
MODULE = "_s2f_native"
SONAME = "libs2f.so.1"
HEADERS = ("s2f.h", "bridge.h")
SOURCES = ("library.c", "structs.c", "start.c")
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic")
EXTRA = "s2f-edge[capi]"
UNEXPECTED = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, an error's code, 2 (usage, by SystemExit)."""
    parser = argparse.ArgumentParser(prog="s2f-capi", description="The C interface of s2f-edge.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    made = commands.add_parser("build", help="build libs2f.so for this Python", description=__doc__.split("\n\n")[1])
    made.add_argument(
        "-o", "--out", default="build/s2f", metavar="DIR", help="folder for lib and include; default: build/s2f"
    )
    arguments = parser.parse_args(argv)
    try:
        for path in build(Path(arguments.out)):
            sys.stdout.write(f"{path}\n")
    except S2FError as error:
        sys.stderr.write(f"s2f-capi: error [{error.code}]: {error}\n")
        return error.code
    return 0


def build(out: Path) -> list[Path]:
    """Write lib/libs2f.so, include/s2f.h, pkg-config and CMake files into `out`, all or nothing; returns their paths.

    Raises BackendMissing (no compiler, Python headers, shared libpython or cffi), BackendFailed (the compiler's words),
    OutputUnwritable.
    """
    compiler, headers, libpython, cffi = find_compiler(), find_headers(), find_libpython(), find_cffi()
    library = out.absolute() / "lib"
    with tempfile.TemporaryDirectory(prefix="s2f-capi-") as folder:
        work = Path(folder)
        (work / "settings.h").write_text(settings(library), encoding="utf-8")
        emit_module(cffi, work / f"{MODULE}.c")
        binary = compile_library(compiler, headers, libpython, library, work)
        files = {
            library / SONAME: binary.read_bytes(),
            out / "include" / "s2f.h": (HERE / "s2f.h").read_bytes(),
            library / "pkgconfig" / "s2f.pc": filled("s2f.pc.in"),
            library / "cmake" / "S2F" / "S2FConfig.cmake": filled("S2FConfig.cmake.in"),
            library / "cmake" / "S2F" / "S2FConfigVersion.cmake": filled("S2FConfigVersion.cmake.in"),
            library / "cmake" / "S2F" / "s2f-config.cmake": b'include("${CMAKE_CURRENT_LIST_DIR}/S2FConfig.cmake")\n',
            library / "cmake" / "S2F" / "s2f-config-version.cmake": filled("S2FConfigVersion.cmake.in"),
        }
        install(files, library / "libs2f.so")
    return [*files, library / "libs2f.so"]


def find_compiler() -> list[str]:
    """The C compiler's command: CC, or cc. Raises BackendMissing."""
    command = shlex.split(os.environ.get("CC", "")) or ["cc"]
    if sys.platform != "linux":
        raise BackendMissing(f"libs2f is built on Linux, not on {sys.platform}. Use the Python package instead.")
    if shutil.which(command[0]) is None:
        raise BackendMissing(
            f"There is no C compiler {command[0]!r}. Run: apt-get install gcc, or name one in the variable CC."
        )
    return command


def find_headers() -> Path:
    """The folder of Python.h. Raises BackendMissing."""
    folder = Path(sysconfig.get_paths()["include"])
    if not (folder / "Python.h").is_file():
        raise BackendMissing(
            f"The headers of {sys.executable} are not installed: there is no {folder / 'Python.h'}. For the system's "
            f"Python run: apt-get install python{sys.version_info[0]}-dev"
        )
    return folder


def find_libpython() -> Path:
    """The shared library of this Python, with its version. Raises BackendMissing."""
    name = f"libpython{sysconfig.get_config_var('LDVERSION')}.so"
    folders = [sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("LIBPL"), f"{sys.base_prefix}/lib"]
    found = [path for folder in folders if folder for path in (Path(folder) / f"{name}.1.0", Path(folder) / name)]
    for path in found:
        if path.is_file():
            return path
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    raise BackendMissing(
        f"{sys.executable} has no shared library {name}. For the system's Python run: apt-get install "
        f"libpython{version}-dev; pyenv builds one with PYTHON_CONFIGURE_OPTS=--enable-shared."
    )


def find_cffi() -> Any:
    """The package, imported on first use. Raises BackendMissing."""
    try:
        import cffi
    except ImportError:
        raise BackendMissing(f'The package cffi is not installed. Run: pip install "{EXTRA}"') from None
    return cffi


def settings(library: Path) -> str:
    """The text of settings.h, for a library that will lie in the folder `library`: what is fixed at build time."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    paths = {
        "PYTHON": Path(sys.executable),
        "STDLIB": Path(sysconfig.get_paths()["stdlib"]) / "os.py",
        "FOLDER": HERE.parent.parent,
    }
    codes = [(0, "Success."), (UNEXPECTED, "An unexpected failure. Please report it with its message.")]
    codes += [(error.code, (error.__doc__ or error.__name__).strip().split("\n")[0]) for error in ALL_ERRORS]
    text = (HERE / "start.py").read_bytes()
    lines = [
        f"#define SETTING_VERSION {quoted(__version__)}",
        f"#define SETTING_PYTHON_VERSION {quoted(version)}",
        *(f"#define SETTING_{name} {quoted(located(path, library))}" for name, path in paths.items()),
        "#define SETTING_CODES {" + ", ".join(f"{{{code}, {quoted(words)}}}" for code, words in codes) + "}",
        # As numbers: C99 promises no more than 4095 characters to a string.
        "#define SETTING_START {" + ", ".join(str(byte) for byte in (*text, 0)) + "}",
    ]
    return "\n".join(lines) + "\n"


def located(path: Path, library: Path) -> str:
    """`path` relative to the folder of the library, as "$ORIGIN/…", if this Python's own folder holds both."""
    path = path.absolute()
    for root in {Path(sys.prefix).absolute(), Path(sys.base_prefix).absolute()}:
        if root != Path("/usr") and library.is_relative_to(root) and path.is_relative_to(root):
            return f"$ORIGIN/{os.path.relpath(path, library)}"
    return str(path)


def quoted(text: str) -> str:
    """A C string literal."""
    bytes_ = text.encode("utf-8", "surrogateescape")
    return '"' + "".join(chr(b) if 32 <= b < 127 and b not in b'"\\?' else f"\\{b:03o}" for b in bytes_) + '"'


def emit_module(cffi: Any, path: Path) -> None:
    """Write cffi's C module: the types of both headers, and the functions of bridge.h as Python functions."""
    ffi = cffi.FFI()
    ffi.cdef(declarations())
    ffi.set_source(MODULE, '#include "bridge.h"')
    with contextlib.redirect_stdout(None):
        ffi.emit_c_code(str(path))


def declarations() -> str:
    """What cffi must know of s2f.h and bridge.h: the types, the size of a message, and what Python implements."""
    text = "".join((HERE / name).read_text(encoding="utf-8") for name in HEADERS)
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    sizes = [f"{found} ..." for found in re.findall(r"^#define BRIDGE_MESSAGE_BYTES", text, re.MULTILINE)]
    types = re.findall(r"^typedef [^{;]*(?:\{[^}]*\}[^;]*)?;", text, re.MULTILINE)
    functions = re.findall(r"^int32_t bridge_[^;]*;", text, re.MULTILINE)
    return "\n".join([*sizes, *types, 'extern "Python+C" {', *functions, "}"])


def compile_library(compiler: list[str], headers: Path, libpython: Path, library: Path, work: Path) -> Path:
    """Compile and link in the folder `work`; returns the shared library. Raises BackendFailed."""
    flags = [*shlex.split(os.environ.get("CFLAGS", "-O2")), "-fPIC", "-fvisibility=hidden", "-DNDEBUG", "-pthread"]
    include = [f"-I{HERE}", f"-I{work}", "-isystem", str(headers)]
    objects = []
    for source in (*(HERE / name for name in SOURCES), work / f"{MODULE}.c"):
        own = ["-std=c99", *WARNINGS] if source.parent == HERE else ["-w"]
        objects.append(work / f"{source.stem}.o")
        run([*compiler, *own, *flags, *include, "-c", str(source), "-o", str(objects[-1])])
    binary = work / SONAME
    run(
        [
            *(*compiler, "-shared", "-pthread", "-o", str(binary), *map(str, objects)),
            f"-Wl,-soname,{SONAME}",
            f"-Wl,--version-script={HERE / 'exports.map'}",
            "-Wl,-z,nodelete",  # Python and the threads below outlive a dlclose
            "-Wl,-z,lazy",  # in a program with another Python the wrong symbols must not be missed before we say so
            f"-Wl,-rpath,{located(libpython.parent, library)}",
            *(str(libpython), "-ldl", "-lm"),
            *shlex.split(os.environ.get("LDFLAGS", "")),
        ]
    )
    return binary


def run(command: list[str]) -> None:
    """Run the compiler. Raises BackendFailed with the first errors it tells."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).splitlines()
        told = [line.strip() for line in lines if re.search("error|cannot|undefined", line)] or lines
        problem = f"The C compiler {command[0]} failed with status {done.returncode}: {'; '.join(told[:3]):.600}"
        raise BackendFailed(f"{problem}. Check CC, CFLAGS and LDFLAGS.")


def filled(name: str) -> bytes:
    """A template with the version in its place."""
    return (HERE / name).read_text(encoding="utf-8").replace("@VERSION@", __version__).encode()


def install(files: dict[Path, bytes], link: Path) -> None:
    """Write the files, and the link to the library that linkers look for. Raises OutputUnwritable."""
    try:
        for path in files:
            path.parent.mkdir(parents=True, exist_ok=True)
        write_files(files)
        temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(SONAME)
        temporary.replace(link)
    except OSError as error:
        raise OutputUnwritable(
            f"{error.filename or link} cannot be written: {error.strerror}. Choose another folder."
        ) from error


if __name__ == "__main__":
    raise SystemExit(main())
