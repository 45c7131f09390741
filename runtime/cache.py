"""The cache of what was prepared for this machine: one rule for keys, rights, hashes and atomic writes.

What lies here is handed to a backend that trusts it (a TensorRT plan is executable code), so an entry is believed only
if nobody but its owner could have written it: folder and file belong to this user or to root, nobody else may write
them, no link is followed, and size and sha256 are those recorded when it was written, under the very key asked for. An
entry is one file, written beside its place and renamed, so it is whole or absent at every moment, also after a kill.

File: a line of JSON {magic, key, sha256, size}, a newline, the bytes. Beside it may lie a bare file, which is nothing
but bytes: for a library that maps a file itself. Its size and sha256 belong into the entry, which vouches for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from .errors import OutputUnwritable

MAGIC = "s2f-cache-1"
MAX_HEADER_BYTES = 64 * 1024
MAX_ENTRY_BYTES = 4 * 1024**3
CHUNK_BYTES = 256 * 1024
BARE = ".raw"
TEMPORARY, STALE_SECONDS = ".new-", 3600
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
# Not following links, not waiting for a pipe's writer; Windows has neither, and opens as text unless told.
_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)

Key: TypeAlias = "Mapping[str, Any]"


class Refused(Exception):  # noqa: N818 - says what happened to the entry
    """An entry is there and not to be trusted; the message says why."""


@dataclasses.dataclass(frozen=True)
class Cache:
    """Entries of several kinds under one folder; `Cache.default()` is the user's."""

    folder: Path

    @classmethod
    def default(cls) -> Cache:
        """The folder named by S2F_CACHE, else s2f-edge in the user's cache folder."""
        named = os.environ.get("S2F_CACHE")
        if named:
            return cls(Path(named).absolute())
        import platformdirs

        return cls(Path(platformdirs.user_cache_dir("s2f-edge", appauthor=False)))

    def path(self, kind: str, key: Key) -> Path:
        """Where the entry of a key lies. `kind`: a plain word; `key`: JSON values."""
        return self.folder / kind / f"{_digest(key)}.bin"

    def read(self, kind: str, key: Key) -> bytes | None:
        """The bytes of an entry, None where there is none. Raises Refused for one that is not to be trusted."""
        path = self.path(kind, key)
        found = self._opened(path)
        if found is None:
            return None
        descriptor, info = found
        with os.fdopen(descriptor, "rb") as file:
            return _checked(file.readline(MAX_HEADER_BYTES), file.read(info.st_size), key, path)

    def write(self, kind: str, key: Key, data: bytes) -> Path:
        """Put an entry in its place, whole or not at all; replaces the old one. Raises OutputUnwritable."""
        header = {"magic": MAGIC, "key": dict(key), "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        return self._put(self.path(kind, key), json.dumps(header, sort_keys=True).encode() + b"\n", data)

    def bare_path(self, kind: str, key: Key) -> Path:
        """Where the bare file of a key lies."""
        return self.path(kind, key).with_suffix(BARE)

    def write_bare(self, kind: str, key: Key, data: bytes) -> Path:
        """Put a bare file in its place, as `write` does; write it before the entry that vouches for it."""
        return self._put(self.bare_path(kind, key), data)

    def check_bare(self, kind: str, key: Key, sha256: str, size: int) -> Path:
        """The path of a bare file nobody else could have written, of this sha256 and size. Raises Refused.

        It is read in pieces, so that a file whose pages are to be mapped is not held in memory beside.
        """
        path = self.bare_path(kind, key)
        found = self._opened(path)
        if found is None:
            raise Refused(f"{path} is missing")
        digest, piece = hashlib.sha256(), bytearray(CHUNK_BYTES)
        with os.fdopen(found[0], "rb", buffering=0) as file:
            if found[1].st_size != size:
                raise Refused(f"{path} is cut short or too long: {found[1].st_size} bytes, {size} were written")
            while count := file.readinto(piece):
                digest.update(memoryview(piece)[:count])
        if digest.hexdigest() != sha256:
            raise Refused(f"{path} is damaged: its sha256 is not the one recorded")
        return path

    def _opened(self, path: Path) -> tuple[int, os.stat_result] | None:
        """A descriptor of a file that is to be trusted, None where there is none. Raises Refused."""
        try:
            _trust(self.folder.lstat(), self.folder, folder=True)
            _trust(path.parent.lstat(), path.parent, folder=True)
            descriptor = os.open(path, os.O_RDONLY | _FLAGS)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Refused(f"{path} cannot be opened: {error.strerror or error}") from None
        try:
            info = os.fstat(descriptor)
            _trust(info, path, folder=False)
            if info.st_size > MAX_ENTRY_BYTES:
                raise Refused(f"{path} has {info.st_size} bytes, more than an entry may have")
        except Refused:
            os.close(descriptor)
            raise
        return descriptor, info

    def _put(self, path: Path, *parts: bytes) -> Path:
        temporary = path.parent / f"{TEMPORARY}{os.urandom(8).hex()}"
        try:
            self._make_folders(path.parent)
            _sweep(path.parent)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            raise OutputUnwritable(
                f"The cache entry {path} cannot be written: {error.strerror or error}. Make room, or name another "
                "folder in S2F_CACHE."
            ) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        return path

    def remove(self, kind: str, key: Key) -> None:
        """Forget an entry and its bare file; harmless where there is none or it cannot be removed."""
        for path in (self.path(kind, key), self.bare_path(kind, key)):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self, kind: str, key: Key, *, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the one lock of an entry, among all processes; the system lets go of it when its process ends.

        `waiting` is called once if another process holds it. Raises OutputUnwritable where no lock can be made.
        """
        try:
            import fcntl
        except (
            ImportError
        ):  # Windows: two may prepare at once, and the later one's entries stay, as whole as the other's
            yield
            return
        path = self.path(kind, key).with_suffix(".lock")
        try:
            self._make_folders(path.parent)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
        except OSError as error:
            raise OutputUnwritable(
                f"The lock {path} cannot be made: {error.strerror or error}. Name another folder in S2F_CACHE."
            ) from error
        try:
            try:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    waiting()
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError as error:  # a file system without locks
                raise OutputUnwritable(
                    f"The file system of {path} has no locks: {error.strerror or error}. Name another folder in "
                    "S2F_CACHE."
                ) from error
            yield
        finally:
            os.close(descriptor)

    def _make_folders(self, folder: Path) -> None:
        """Folders of our own, 0700; one that others may write is refused, for its owner to look at.

        Nothing in such a folder is touched: S2F_CACHE may name any place. What others put there belongs to them and is
        refused entry by entry, so that taking their right to write is enough.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        for one in (self.folder, folder):
            one.mkdir(mode=0o700, exist_ok=True)
            try:
                _trust(one.lstat(), one, folder=True)
            except Refused as reason:
                raise OSError(None, str(reason)) from None


def _digest(key: Key) -> str:
    return hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()[:40]


def _trust(info: os.stat_result, path: Path, *, folder: bool) -> None:
    """Raise Refused unless it is a folder (or a regular file) that only its owner, this user or root, may write.

    On Windows, which has no such rights, the user's profile is what keeps others out.
    """
    if not (stat.S_ISDIR if folder else stat.S_ISREG)(info.st_mode):
        raise Refused(f"{path} is not a {'folder itself' if folder else 'regular file'}")
    if os.name == "nt":
        return
    if info.st_uid not in (os.geteuid(), 0):
        raise Refused(f"{path} belongs to another user")
    if info.st_mode & OTHERS_WRITE:
        cure = f"; run `chmod go-w {path}` if it should not" if folder else ""
        raise Refused(f"{path} may be written by others (its rights are {stat.S_IMODE(info.st_mode):04o}){cure}")


def _checked(head: bytes, data: bytes, key: Key, path: Path) -> bytes:
    """The bytes of an entry whose header fits them and the key. Raises Refused."""
    try:
        header = json.loads(head)
        found = (header["magic"], header["key"], header["size"], header["sha256"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Refused(f"{path} is not a cache entry") from None
    if found[:2] != (MAGIC, json.loads(json.dumps(dict(key)))):
        raise Refused(f"{path} was made for something else")
    if found[2] != len(data):
        raise Refused(f"{path} is cut short or too long: {len(data)} bytes, {found[2]!r:.20} were written")
    if found[3] != hashlib.sha256(data).hexdigest():
        raise Refused(f"{path} is damaged: its sha256 is not the one recorded")
    return data


def _sweep(folder: Path) -> None:
    """Remove what writers that were killed left half-written, once nobody can still be writing it."""
    for left in folder.glob(f"{TEMPORARY}*"):
        with contextlib.suppress(OSError):  # renamed or swept by another process just now, or nothing of ours
            if left.stat().st_mtime < time.time() - STALE_SECONDS:
                left.unlink()
