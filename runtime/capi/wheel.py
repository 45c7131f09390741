"""A wheel of this package with libs2f in it, for devices without a compiler.

The wheel that pip makes of the package is for every machine; what is compiled is added to it, and the new one's name
tells for which Python, machine and glibc. All else stays as it was, so both are of one release.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import sys
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from .. import __version__
from ..errors import BackendFailed, InvalidArgument
from ..output import write_file

PLACE = "runtime/capi"
FOLDER = "../../.."
"""Of the package, from the folder of the library, PLACE/lib."""
LINK = b"/* libs2f.so for linkers; a wheel holds no links */\nINPUT(libs2f.so.1)\n"
PURE, TAG = b"Root-Is-Purelib: true", b"Tag: py3-none-any"
ELF = b"\x7fELF"
MACHINES = {62: "x86_64", 183: "aarch64"}
"""By their numbers in the head of such a file."""


def write_wheel(pure: Path, files: Mapping[str, bytes], out: Path) -> Path:
    """Write the wheel `pure` and `files`, by their names under PLACE, as a new wheel into the folder `out`.

    Raises InvalidArgument (`pure` is not the wheel of this release), BackendFailed (machine), OutputUnwritable.
    """
    entries = read_wheel(pure)
    info = f"s2f_edge-{__version__}.dist-info"
    head = entries.get(f"{info}/WHEEL", b"")
    if PURE not in head or TAG not in head:
        raise InvalidArgument(f"{pure} has no WHEEL file of a pure wheel. Make it with: pip wheel --no-deps .")
    entries |= {f"{PLACE}/{name}": data for name, data in files.items()}
    entries[f"{PLACE}/lib/libs2f.so"] = LINK
    tag = f"{python_tag()}-{platform_tag([data for data in files.values() if data.startswith(ELF)])}"
    entries[f"{info}/WHEEL"] = head.replace(PURE, b"Root-Is-Purelib: false").replace(TAG, f"Tag: {tag}".encode())
    entries[f"{info}/RECORD"] = record(entries, f"{info}/RECORD")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            entry = zipfile.ZipInfo(name)  # of 1980: the same files give the same wheel
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED)
    path = out / f"s2f_edge-{__version__}-{tag}.whl"
    write_file(path, packed.getvalue())
    return path


def read_wheel(path: Path) -> dict[str, bytes]:
    """The files of the wheel that pip makes of this release, without its RECORD. Raises InvalidArgument."""
    name = f"s2f_edge-{__version__}-py3-none-any.whl"
    if path.name != name:
        raise InvalidArgument(f"{path} is not {name}, the wheel of this release. Make that with: pip wheel --no-deps .")
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                one: archive.read(one) for one in archive.namelist() if not one.endswith((".dist-info/RECORD", "/"))
            }
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        raise InvalidArgument(f"{path} cannot be read: {error}. Make it with: pip wheel --no-deps .") from error


def python_tag() -> str:
    """Of this interpreter, whose structures the library knows: cp311-cp311."""
    version = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    return f"{version}-{version}{sys.abiflags}"


def platform_tag(binaries: list[bytes]) -> str:
    """Of ELF files: their machine and the newest glibc they need (PEP 600). Raises BackendFailed."""
    (machine,) = {int.from_bytes(data[18:20], "little") for data in binaries}
    needed = [found for data in binaries for found in re.findall(rb"GLIBC_(\d+)\.(\d+)", data)]
    if machine not in MACHINES or not needed:
        raise BackendFailed(
            "The compiler CC makes no programs for x86-64 or aarch64 with glibc. Wheels are made for these only."
        )
    return "manylinux_{}_{}_".format(*max((int(a), int(b)) for a, b in needed)) + MACHINES[machine]


def record(entries: Mapping[str, bytes], own: str) -> bytes:
    """The list of files that is called `own`."""
    lines = [f"{name},sha256={digest(data)},{len(data)}\n" for name, data in entries.items()]
    return "".join([*lines, f"{own},,\n"]).encode()


def digest(data: bytes) -> str:
    """SHA-256 as wheels write it."""
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
