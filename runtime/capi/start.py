"""What libs2f runs first in Python; build.py puts this text into the library, so that it needs nothing but Python.

It finds the packages, loads the bridge, and answers with a code and a text where something is missing. In a Python that
the library has started itself (`ours`) it also does what Python's own start would do, and keeps it silent.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

UNEXPECTED, BACKEND_MISSING = 1, 40
PACKAGES = {"runtime": "s2f-edge", "_cffi_backend": "cffi"}


def start(functions: int, ours: int, version: str, library: bytes, folder: bytes) -> tuple[int, str]:
    """Make the functions of bridge.py callable from C: (0, "") or what went wrong, as a code and its text.

    `functions`: the address they are written to. `version`: of the library, which lies in the folder `library`.
    `folder`: where the package `runtime` lies, seen from there; for packages of the user, or a checkout.
    """
    try:
        place = Path(os.fsdecode(library))
        if ours:
            prepare(str((place / os.fsdecode(folder)).resolve()))
        from runtime import __version__

        if __version__ != version:
            return BACKEND_MISSING, (
                f"libs2f {version} was built for s2f-edge {version}, but {__version__} is installed for "
                f"{sys.executable}. Run: s2f-capi build"
            )
        native = load_native(str(place / "_s2f_native.so"))
        from runtime.capi import bridge

        bridge.start(native, functions)
    except ModuleNotFoundError as error:
        module = (error.name or str(error)).partition(".")[0]
        package, python = PACKAGES.get(module, module), sys.executable
        return BACKEND_MISSING, (
            f"The package {package} is not installed for {python}. Run: {python} -m pip install {package}"
        )
    except ImportError as error:
        return BACKEND_MISSING, (
            f"{sys.executable} cannot import what libs2f needs: {error}. Reinstall that, or run: s2f-capi build"
        )
    except BaseException as error:  # noqa: BLE001 - nothing passes into C
        return UNEXPECTED, f"unexpected {type(error).__name__} while Python was started: {error}"
    return 0, ""


def load_native(path: str) -> Any:
    """cffi's module, by its path: it belongs to the library, and no package has it."""
    from importlib.machinery import ExtensionFileLoader, ModuleSpec
    from importlib.util import module_from_spec

    loader = ExtensionFileLoader("_s2f_native", path)
    module = module_from_spec(ModuleSpec("_s2f_native", loader, origin=path))
    loader.exec_module(module)
    return module


def prepare(folder: str) -> None:
    """Silence, then the packages of this Python."""
    import io
    import site

    class Nowhere(io.TextIOBase):
        """Takes what is written, without a file: the descriptors 0, 1 and 2 are the program's."""

        def write(self, text: str, /) -> int:
            return len(text)

    sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = Nowhere()  # type: ignore[assignment, misc]
    sys.stdin = sys.__stdin__ = None  # type: ignore[misc]
    sys.path.append(folder)
    site.main()
