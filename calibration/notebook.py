"""What an interrupted calibration has done so far, in a folder beside the target, so that the same command goes on."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.errors import OutputUnwritable
from runtime.output import write_file

log = logging.getLogger(__name__)

KEY = "command.json"


class Notebook:
    """Named pieces of bytes that belong to one calibration; those of another are thrown away."""

    def __init__(self, target: Path, what: Mapping[str, Any]) -> None:
        """`what`: everything the results hang on (bundle, data, options, versions). Raises OutputUnwritable."""
        self.folder = target.parent / f".{target.name}.calibration"
        wanted = json.dumps(what, sort_keys=True).encode()
        self.resumed = self.folder.is_dir() and self.read(KEY) == wanted
        if not self.resumed:
            if self.folder.exists() and self.read(KEY) is None:
                raise OutputUnwritable(
                    f"{self.folder} is in the way: it is no calibration's. Remove it, or give another -o"
                )
            self.remove()
            try:
                self.folder.mkdir(parents=True)
            except OSError as error:
                raise OutputUnwritable(f"{self.folder} cannot be made: {error.strerror or error}") from error
            self.write(KEY, wanted)
        else:
            log.info("going on with what %s holds", self.folder)

    def read(self, name: str) -> bytes | None:
        """A piece, None where it is not there."""
        try:
            return (self.folder / name).read_bytes()
        except OSError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Keep a piece, whole or not at all. Raises OutputUnwritable."""
        write_file(self.folder / name, data)

    def remove(self) -> None:
        """Forget everything."""
        shutil.rmtree(self.folder, ignore_errors=True)
