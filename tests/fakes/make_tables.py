"""Make the API tables in api/ from the real bindings of each release: names only, nothing is run on a device.

    python make_tables.py [NAME ...] [--scratch DIR]        needs: pip, gcc, binutils, CPython 3.10 or newer

The bindings come from PyPI as wheels of 1-2 MB. They load libnvinfer when imported; a shared library with the same name
whose functions return nothing satisfies the loader, because importing calls none of them. tensorrt 8.6 is one wheel of
800 MB for CPython 3.10 at most. pycuda has no wheel and is compiled: it needs the CUDA toolkit's headers (CUDA_ROOT).

For a new release: add it to RELEASES and to trt_operators.OPSETS, run this, and see what the tests say.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import introspect
import stand_ins

HERE = Path(__file__).parent


class Release(NamedTuple):
    """One table: the requirement to download, the module inside, and the version written into the table."""

    requirement: str
    module: str
    version: str


RELEASES = {
    "tensorrt-8.6": Release("tensorrt==8.6.0", "tensorrt", "8.6.0"),
    "tensorrt-10.3": Release("tensorrt-cu12-bindings==10.3.0", "tensorrt_bindings", "10.3.0"),
    "tensorrt-10.13": Release("tensorrt-cu13-bindings==10.13.3.9", "tensorrt_bindings", "10.13.3.9"),
    "tensorrt-10.16": Release("tensorrt-cu13-bindings==10.16.1.11", "tensorrt_bindings", "10.16.1.11"),
    "tensorrt-11.4": Release("tensorrt-cu13-bindings==11.4.0.106", "tensorrt_bindings", "11.4.0.106"),
    "tensorrt_lean-10.16": Release("tensorrt-lean-cu13-bindings==10.16.1.11", "tensorrt_lean_bindings", "10.16.1.11"),
    "tensorrt_lean-11.4": Release("tensorrt-lean-cu13-bindings==11.4.0.106", "tensorrt_lean_bindings", "11.4.0.106"),
    "cuda.bindings.driver-12.9": Release("cuda-bindings==12.9.*", "cuda.bindings.driver", "12.9"),
    "cuda.bindings.driver-13.4": Release("cuda-bindings==13.4.*", "cuda.bindings.driver", "13.4"),
    "pycuda.driver-2026.1": Release("pycuda==2026.1", "pycuda.driver", "2026.1"),
}


def main() -> int:
    """Write the tables asked for, all of them by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *RELEASES], metavar="NAME", help=", ".join(RELEASES))
    parser.add_argument("--scratch", type=Path, help="folder for wheels and environments (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = options.scratch or Path(temporary)
        for name in options.names or RELEASES:
            make(name, RELEASES[name], scratch / name)
    return 0


def make(name: str, release: Release, folder: Path) -> None:
    """Install a release into `folder` and write api/NAME.json.gz."""
    site = folder / "site"
    if not site.exists():
        _install(release, site)
    source = f"introspection of {release.requirement}"
    table = stand_ins.introspect(release.module, site, folder / "stand-ins", release.version, source)
    introspect.write(table, HERE / "api" / f"{name}.json.gz")


def _install(release: Release, site: Path) -> None:
    wheels = site.with_name("wheels")
    if release.module == "pycuda.driver":
        _build_pycuda(release.requirement, wheels)
        extra = ["numpy<2.3", "pytools", "platformdirs", "mako", "markupsafe", "siphash24", "typing_extensions"]
    else:
        extra = ["cuda-pathfinder"] if release.module.startswith("cuda.") else []
        _pip("download", "--only-binary=:all:", "-d", wheels, release.requirement)
    if extra:
        _pip("download", "--only-binary=:all:", "-d", wheels, *extra)
    site.mkdir(parents=True, exist_ok=True)
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)


def _build_pycuda(requirement: str, wheels: Path) -> None:
    """Compile pycuda against the CUDA headers and an empty libcuda."""
    work = wheels.with_name("build")
    work.mkdir(parents=True, exist_ok=True)
    _pip("download", "--no-build-isolation", "--no-binary=:all:", "-d", work, requirement)
    (archive,) = work.glob("pycuda-*.tar.gz")
    subprocess.run(["tar", "-xzf", archive, "-C", work], check=True)
    (source,) = (path for path in work.glob("pycuda-*") if path.is_dir())
    empty = ["gcc", "-shared", "-fPIC", "-x", "c", "/dev/null", "-Wl,-soname,libcuda.so.1", "-o", work / "libcuda.so"]
    subprocess.run(empty, check=True)
    toolkit = os.environ.get("CUDA_ROOT", "/usr/local/cuda")
    configure = [sys.executable, "configure.py", f"--cuda-root={toolkit}", "--no-cuda-enable-curand"]
    subprocess.run(configure, cwd=source, check=True, stdout=subprocess.DEVNULL)
    paths = {"LDFLAGS": "-Wl,--no-as-needed", "LIBRARY_PATH": f"{work}:{toolkit}/lib64"}
    _pip("wheel", "--no-build-isolation", "-w", wheels, source, **paths)


def _pip(verb: str, *arguments: object, **environment: str) -> None:
    command = [sys.executable, "-m", "pip", verb, "--quiet", "--no-deps", *map(str, arguments)]
    subprocess.run(command, env={**os.environ, **environment}, check=True)


if __name__ == "__main__":
    raise SystemExit(main())
