"""Writing a bundle folder: complete and verified, or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from runtime.bundle import MANIFEST, Manifest, manifest_to_json, read_bundle
from runtime.errors import OutputUnwritable


def check_target(target: Path, *, force: bool) -> None:
    """Refuse early what `write_bundle` would refuse. Raises OutputUnwritable.

    `force` replaces a bundle (or an empty folder), never a folder that holds something else.
    """
    try:
        _refuse_target(target, force)
    except OSError as error:
        raise OutputUnwritable(
            f"{target} cannot be looked into: {error.strerror or error}; choose another place"
        ) from error


def _refuse_target(target: Path, force: bool) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise OutputUnwritable(f"{target} is not a folder; give a new folder name with -o")
    if target.is_dir() and any(target.iterdir()):
        if not force:
            raise OutputUnwritable(f"{target} exists; give another folder with -o, or --force to replace it")
        if not (target / MANIFEST).is_file():
            raise OutputUnwritable(f"{target} holds something that is not a bundle; give another folder with -o")


def write_bundle(target: Path, manifest: Manifest, files: Mapping[str, bytes], *, force: bool = False) -> str:
    """Write manifest and files into a folder beside `target`, verify it as the runtime would, then rename it.

    Returns the bundle's identity (sha256 of the manifest). Raises OutputUnwritable; nothing half-written stays.
    """
    check_target(target, force=force)
    work = target.parent / f".{target.name}.{secrets.token_hex(4)}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work.mkdir()
        for name, data in {**files, MANIFEST: manifest_to_json(manifest)}.items():
            _write(work / name, data)
        identity = read_bundle(work).identity
        _put_in_place(work, target)
    except OSError as error:
        raise OutputUnwritable(
            f"{target} cannot be written: {error.strerror or error}; choose another place"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return identity


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _put_in_place(work: Path, target: Path) -> None:
    """Rename `work` to `target`; an older bundle steps aside first and comes back if that fails."""
    if not target.exists():
        work.rename(target)
        return
    aside = target.parent / f".{target.name}.{secrets.token_hex(4)}.old"
    target.rename(aside)
    try:
        work.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)
