"""Imports real bindings where NVIDIA's libraries are not: to ask for names, never to run anything.

The bindings of TensorRT are extension modules of 1-2 MB that are linked with libnvinfer and others of some hundred MB.
Importing them calls none of the few functions they want, so libraries of the same names whose functions do nothing
satisfy the loader. They are compiled with gcc, from the names that the extension module lacks.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

INTROSPECT = Path(__file__).with_name("introspect.py")


def introspect(module: str, site: Path, folder: Path, version: str = "", source: str = "") -> dict[str, Any]:
    """The table of a module below `site`, in a process of its own; `folder` is for the stand-ins."""
    libraries = build(site, folder)
    table = folder / "table.json"
    environment = {**os.environ, "PYTHONPATH": str(site), "LD_LIBRARY_PATH": str(libraries)}
    command = [sys.executable, str(INTROSPECT), module, version, source, str(table)]
    subprocess.run(command, env=environment, check=True)
    content: dict[str, Any] = json.loads(table.read_text(encoding="utf-8"))
    return content


def build(site: Path, folder: Path) -> Path:
    """Stand-ins in `folder` for the libraries that the bindings below `site` want of NVIDIA."""
    folder.mkdir(parents=True, exist_ok=True)
    for module in [*site.glob("tensorrt*/tensorrt*.so"), *site.glob("pycuda/_driver*.so")]:
        needed = re.findall(r"\[(lib(?:nv|cuda)\S+)\]", _output("readelf", "--dynamic", module))
        lacking = re.sub(r"@\S+$", "", _output("nm", "--dynamic", "--undefined-only", module), flags=re.MULTILINE)
        symbols = re.findall(r" U ((?:create|get|init|cu[A-Z]|_ZN\d+nv)\w+)$", lacking, re.MULTILINE)
        source = folder / "stand_in.c"
        source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in sorted(set(symbols))))
        for library in needed:
            flags = ["-shared", "-fPIC", "-w", "-fno-builtin", f"-Wl,-soname,{library}"]
            subprocess.run(["gcc", *flags, str(source), "-o", str(folder / library)], check=True)
    return folder


def _output(*command: object) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout
