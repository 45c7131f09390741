"""Reading the files of a bundle: contained, size-limited, hashed before use.

Only plain names inside the folder are opened, links are not followed, only regular files are read, and never more
bytes than allowed. The bytes returned are the bytes that were hashed; nothing is opened twice, so nothing can be
swapped in between.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import re
import stat
from pathlib import Path

from .errors import BundleInvalid, BundleNotFound, BundleTampered

MAX_STAGE_BYTES = 512 * 1024 * 1024
MAX_CARD_BYTES = 1024 * 1024

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# O_NONBLOCK: opening a pipe must not wait for a writer. Windows has neither flag, and no links without special rights.
_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


def sha256_hex(data: bytes) -> str:
    """sha256 of the bytes, 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def bundle_folder(path: str | os.PathLike[str]) -> Path:
    """The folder of a bundle. Raises BundleNotFound where it is not a folder or holds no manifest.json."""
    try:
        folder = Path(path)
        is_folder = folder.is_dir()
        has_manifest = is_folder and os.path.lexists(folder / "manifest.json")
    except (OSError, TypeError, ValueError):
        raise BundleNotFound(f"{path!r} is not a path. Give the folder of a bundle.") from None
    if not is_folder:
        raise BundleNotFound(f"{folder} is not a folder. Give the folder that holds manifest.json.")
    if not has_manifest:
        raise BundleNotFound(f"{folder} holds no manifest.json. Give the folder of a bundle made by s2f-export.")
    return folder


def read_checked(folder: Path, name: str, sha256: str, size: int) -> bytes:
    """The bytes of one file whose size and sha256 are those given. Raises BundleInvalid, BundleTampered."""
    data = read_limited(folder, name, MAX_STAGE_BYTES, expected=size)
    if not hmac.compare_digest(sha256_hex(data), sha256):
        raise BundleTampered(f"{folder / name}: the sha256 is not that of the manifest. Fetch the bundle again.")
    return data


def read_limited(folder: Path, name: str, limit: int, expected: int | None = None) -> bytes:
    """The bytes of one regular file of the folder, at most `limit`, exactly `expected` where given."""
    if _PLAIN_NAME.fullmatch(name) is None:
        raise BundleInvalid(f"{folder}: {name[:64]!a} is not a plain file name. Fetch the bundle again.")
    path = folder / name
    try:
        descriptor = _open(path)
        with os.fdopen(descriptor, "rb") as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise BundleInvalid(f"{path} is not a regular file. Put the file itself into the bundle folder.")
            _check_size(path, info.st_size, limit, expected)
            data = file.read(info.st_size + 1)
    except OSError as error:
        raise BundleInvalid(f"{path} cannot be read: {error.strerror or error}. Fetch the bundle again.") from None
    # A file that changes while it is read must not get past the checks just made.
    _check_size(path, len(data), limit, expected)
    return data


def _open(path: Path) -> int:
    """Open without following a link. Raises BundleInvalid for a link, OSError for everything else."""
    problem = f"{path} is a symbolic link; a bundle holds its files themselves. Copy the file into the folder."
    if path.is_symlink():
        raise BundleInvalid(problem)
    try:
        return os.open(path, _FLAGS)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise BundleInvalid(problem) from None
        raise


def _check_size(path: Path, size: int, limit: int, expected: int | None) -> None:
    if size > limit:
        raise BundleInvalid(f"{path} has {size} bytes, the limit is {limit}. This is not a bundle for this release.")
    if expected is not None and size != expected:
        raise BundleTampered(f"{path} has {size} bytes, the manifest says {expected}. Fetch the bundle again.")
