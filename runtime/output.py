"""Writing files whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from .errors import OutputUnwritable


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path`, replacing a file of that name. Raises OutputUnwritable and then leaves nothing new."""
    write_files({Path(path): data})


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write every file or none: all go to temporary names in their folders first, then each is renamed.

    Raises OutputUnwritable; then the temporary files are gone and, unless a rename itself failed, no file has changed.
    Folders must exist. Links are replaced, not followed; anything else that is not a regular file is refused.
    """
    staged: dict[Path, Path] = {}
    path = Path()
    try:
        for path, data in files.items():
            staged[path] = _stage(path, data)
        for path, temporary in staged.items():
            temporary.replace(path)
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from error
    finally:
        for temporary in staged.values():
            with contextlib.suppress(OSError):
                temporary.unlink()


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise OutputUnwritable if `write_file` could not write there now, before long work is done for it.

    Changes nothing: a temporary file is made beside `path` and removed.
    """
    try:
        _stage(Path(path), b"").unlink()
    except (OSError, ValueError) as error:
        raise _unwritable(Path(path), error) from error


def _unwritable(path: Path, error: OSError | ValueError) -> OutputUnwritable:
    problem = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return OutputUnwritable(
        f"{path} cannot be written: {problem}. Choose an existing folder with room and the right to write."
    )


def _stage(path: Path, data: bytes) -> Path:
    """Write `data` to a new file beside `path`. Its rights are those of any new file: the umask decides, not 0600."""
    if path.exists() and not path.is_file():
        raise IsADirectoryError(None, "there is a folder or device of this name")
    temporary = path.parent / f".s2f-{secrets.token_hex(6)}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink()
        raise
    return temporary
