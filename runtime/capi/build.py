"""libs2f.so for the Python this runs under, with its header and what build systems look for.

`build` writes them to a folder, `wheel` into a wheel of this package, and `where` tells where that has put them.

The library finds its Python without the environment, see start.c. If it lies elsewhere than in the folder of this
Python, the way to that is written into it.
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
from . import wheel

HERE = Path(__file__).parent
MODULE = "_s2f_native"
SONAME = "libs2f.so.1"
HEADERS = ("s2f.h", "bridge.h")
SOURCES = ("library.c", "structs.c", "start.c", "end.c")
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic")
FLAGS = (
    f"-Wl,-soname,{SONAME}",
    f"-Wl,--version-script={HERE / 'exports.map'}",
    "-Wl,-z,nodelete",  # Python and the threads below outlive a dlclose
)
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
EXTRA = "s2f-edge[capi]"
UNEXPECTED = 1

BUILD = (
    "Needs a C compiler and the headers of this Python. CC, CFLAGS and LDFLAGS are taken from the environment, as by "
    "make. The library works with this Python, wherever the folder lies; inside this Python's own folder (a virtual "
    "environment) it may be moved with it."
)
WHEEL = (
    "Adds the library to a wheel of this package, for devices without a compiler. The new one is for this Python's "
    "version, and for the machine and the glibc that the compiler makes programs for (CC=aarch64-linux-gnu-gcc)."
)
WHERE = (
    "Prints the folder of lib and include where the package was installed from a wheel with libs2f.so: for "
    "CMAKE_PREFIX_PATH, and with /lib/pkgconfig for PKG_CONFIG_PATH."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, an error's code, 2 (usage, by SystemExit)."""
    parser = argparse.ArgumentParser(prog="s2f-capi", description="The C interface of s2f-edge.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    made = commands.add_parser("build", help="build libs2f.so for this Python", description=BUILD)
    made.add_argument(
        "-o", "--out", default="build/s2f", metavar="DIR", help="folder for lib and include; default: build/s2f"
    )
    made.set_defaults(run=lambda arguments: build(Path(arguments.out)))
    packed = commands.add_parser("wheel", help="make a wheel with libs2f.so in it", description=WHEEL)
    packed.add_argument(
        "pure", metavar="WHEEL", help="this package as pip wheel made it: s2f_edge-...-py3-none-any.whl"
    )
    packed.add_argument("-o", "--out", default=".", metavar="DIR", help="folder for the new wheel; default: this one")
    packed.set_defaults(run=lambda arguments: [pack(Path(arguments.pure), Path(arguments.out))])
    told = commands.add_parser("where", help="the folder of the libs2f.so that was installed", description=WHERE)
    told.set_defaults(run=lambda _: [installed()])
    arguments = parser.parse_args(argv)
    try:
        for path in arguments.run(arguments):
            sys.stdout.write(f"{path}\n")
    except S2FError as error:
        sys.stderr.write(f"s2f-capi: error [{error.code}]: {error}\n")
        return error.code
    return 0


def build(out: Path) -> list[Path]:
    """Write lib/libs2f.so, include/s2f.h, pkg-config and CMake files into `out`, all or nothing; returns their paths.

    Raises as `compile_all`, and OutputUnwritable.
    """
    library = (out / "lib").resolve()
    prefix, package = prefix_for(library), HERE.parent.parent
    moves = not prefix and package.is_relative_to(sys.prefix)
    files = compile_all(prefix, os.path.relpath(package, library) if moves else str(package))
    install({out / name: data for name, data in files.items()}, out / "lib" / "libs2f.so")
    return [*(out / name for name in files), out / "lib" / "libs2f.so"]


def pack(pure: Path, out: Path) -> Path:
    """Make a wheel with the library of the wheel `pure`; returns its path in the folder `out`.

    Raises as `compile_all` and `wheel.write_wheel`.
    """
    return wheel.write_wheel(pure, compile_all("", wheel.FOLDER), out)


def installed() -> Path:
    """The folder with lib and include, where this package came as a wheel that has them. Raises BackendMissing."""
    if not (HERE / "lib" / SONAME).is_file():
        raise BackendMissing(
            "This installation of s2f-edge has no libs2f.so: it is not of a wheel for Linux that was made by s2f-capi "
            "wheel. Run: s2f-capi build -o DIR"
        )
    return HERE


def compile_all(prefix: str, folder: str) -> dict[str, bytes]:
    """The files of the library by their names, lib/... and include/...; without the link that linkers look for.

    `prefix`, `folder`: see `settings`. Raises BackendMissing (no compiler, Python headers or cffi), BackendFailed (the
    compiler's words).
    """
    compiler, headers, cffi = find_compiler(), find_headers(), find_cffi()
    with tempfile.TemporaryDirectory(prefix="s2f-capi-") as place:
        work = Path(place)
        (work / "settings.h").write_text(settings(prefix, folder), encoding="utf-8")
        emit_module(cffi, work / f"{MODULE}.c")
        sources, module = [HERE / name for name in SOURCES], work / f"{MODULE}.c"
        return {
            f"lib/{SONAME}": compile_shared(compiler, headers, work / SONAME, sources, ["-std=c99", *WARNINGS, *FLAGS]),
            f"lib/{MODULE}.so": compile_shared(compiler, headers, module.with_suffix(".so"), [module], ["-w"]),
            "include/s2f.h": (HERE / "s2f.h").read_bytes(),
            "lib/pkgconfig/s2f.pc": filled("s2f.pc.in"),
            "lib/cmake/S2F/S2FConfig.cmake": filled("S2FConfig.cmake.in"),
            "lib/cmake/S2F/S2FConfigVersion.cmake": filled("S2FConfigVersion.cmake.in"),
            "lib/cmake/S2F/s2f-config.cmake": b'include("${CMAKE_CURRENT_LIST_DIR}/S2FConfig.cmake")\n',
            "lib/cmake/S2F/s2f-config-version.cmake": filled("S2FConfigVersion.cmake.in"),
        }


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


def find_cffi() -> Any:
    """The package, imported on first use. Raises BackendMissing."""
    try:
        import cffi
    except ImportError:
        raise BackendMissing(f'The package cffi is not installed. Run: pip install "{EXTRA}"') from None
    return cffi


def prefix_for(library: Path) -> str:
    """Of this Python, for a library in that folder: "" where it will be found from there, by find_prefix in start.c."""
    above = (folder for folder in library.parents if os.path.lexists(folder / "bin" / f"python{VERSION}"))
    return "" if next(above, None) == Path(sys.prefix).resolve() else sys.prefix


def settings(prefix: str, folder: str) -> str:
    """The text of settings.h: what is fixed at build time.

    `prefix`: that of Python, or "". `folder`: that of the package `runtime`, from the folder of the library.
    """
    texts = {
        "VERSION": __version__,
        "PYTHON_VERSION": VERSION,
        "LIBPYTHON": f"libpython{sysconfig.get_config_var('LDVERSION')}.so.1.0",
        "STDLIB": os.path.relpath(sysconfig.get_paths()["stdlib"], sys.base_prefix),
        "PREFIX": prefix,
        "FOLDER": folder,
    }
    codes = [(0, "Success."), (UNEXPECTED, "An unexpected failure. Please report it with its message.")]
    codes += [(error.code, (error.__doc__ or error.__name__).strip().split("\n")[0]) for error in ALL_ERRORS]
    start = (HERE / "start.py").read_bytes()
    lines = [
        *(f"#define SETTING_{name} {quoted(text)}" for name, text in texts.items()),
        "#define SETTING_CODES {" + ", ".join(f"{{{code}, {quoted(words)}}}" for code, words in codes) + "}",
        # As numbers: C99 promises no more than 4095 characters to a string.
        "#define SETTING_START {" + ", ".join(str(byte) for byte in (*start, 0)) + "}",
    ]
    return "\n".join(lines) + "\n"


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
    functions = re.sub(r"\(\*(\w+)\)\(", r"bridge_\1(", re.findall(r"bridge_functions \{([^}]*)\}", text)[0])
    return "\n".join([*sizes, *types, 'extern "Python" {', functions, "}"])


def compile_shared(
    compiler: list[str], headers: Path, target: Path, sources: Sequence[Path], flags: Sequence[str]
) -> bytes:
    """Compile into the file `target`, beside which generated headers lie; returns its bytes. Raises BackendFailed."""
    flags = [*flags, *shlex.split(os.environ.get("CFLAGS", "-O2")), "-fPIC", "-fvisibility=hidden", "-DNDEBUG"]
    include = [f"-I{HERE}", f"-I{target.parent}", "-isystem", str(headers)]
    linked = ["-pthread", "-ldl", *shlex.split(os.environ.get("LDFLAGS", ""))]
    run([*compiler, "-shared", *flags, *include, "-o", str(target), *map(str, sources), *linked])
    return target.read_bytes()


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
