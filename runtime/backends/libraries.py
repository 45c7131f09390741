"""Which shared libraries a native library asks for and this machine does not have: what loaders tell one at a time."""

from __future__ import annotations

import ctypes
import mmap
import re
from pathlib import Path

_NAME = re.compile(rb"\0(lib[A-Za-z0-9_+-]+\.so\.\d+)(?=\0)")


def missing(library: Path) -> list[str]:
    """Names like libcudnn.so.9 that stand in an ELF file's string table and cannot be loaded here.

    Names are searched for in the whole file instead of being looked up in its dynamic section: the few that a library
    opens later by itself count as well, and are as much needed. Empty where the file cannot be read.
    """
    try:
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            names = sorted({match[1].decode() for match in _NAME.finditer(data)})
    except (OSError, ValueError):
        return []
    return [name for name in names if not _loads(name)]


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
