"""Graphs as ONNX Runtime has optimised them for this processor, kept by `s2f prepare`: where they lie, and as what.

Most of the time a session takes to open is for optimising, and most of its memory is for weights: those of a bundle are
narrower than what they are computed in, so they are converted, and copied, in each process. An optimised graph has
them ready in a file of its own, which ONNX Runtime maps; processes share it, and what is not touched is not read. The
layouts in it are those of one processor, so it is made where it runs. `benchmarks.cold` measures what that gains. With
its weights inside, such a graph opens more slowly than the bundle's and takes more memory: it is larger.

The graph itself is an entry of the cache, handed over as verified bytes. The weights are its bare file: their sha256 is
looked at first, and ONNX Runtime opens the file by name. Who could change it in between could change the cache. Files
there are replaced, never written into: cut short while it is mapped, one would take the process down as a library does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from ..cache import Cache, Refused
from ..machine import cpu_flags, cpu_model

KIND = "graphs"

RECIPE = 1
"""Rises when graphs are optimised with other options, so that those kept before are not used."""


@dataclasses.dataclass(frozen=True)
class Optimised:
    """`graph`: ONNX whose weights lie in a file of the folder `weights`."""

    graph: bytes
    weights: Path


def key_of(source: str, version: str) -> dict[str, Any]:
    """The cache key of a graph: the sha256 of its ONNX, ONNX Runtime's release, processor; threads are no matter."""
    return {
        "recipe": RECIPE,
        "backend": f"onnxruntime {version}",
        "cpu": cpu_model(),
        "flags": cpu_flags(),
        "source": source,
    }


def write(cache: Cache, source: str, version: str, graph: bytes, weights: bytes) -> int:
    """Keep a graph whose weights are looked for under `weights_name`; returns the bytes. Raises OutputUnwritable."""
    key = key_of(source, version)
    cache.write_bare(KIND, key, weights)
    about = {"sha256": hashlib.sha256(weights).hexdigest(), "size": len(weights)}
    cache.write(KIND, key, json.dumps(about).encode() + b"\n" + graph)
    return len(graph) + len(weights)


def read(cache: Cache, source: str, version: str) -> Optimised | None:
    """What is kept of a graph, None where nothing is. Raises Refused."""
    key = key_of(source, version)
    data = cache.read(KIND, key)
    if data is None:
        return None
    head, _, graph = data.partition(b"\n")
    try:
        about = json.loads(head)
        sha256, size = str(about["sha256"]), int(about["size"])
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"a graph that was kept is not readable ({type(error).__name__})") from None
    return Optimised(graph, cache.check_bare(KIND, key, sha256, size).parent)


def forget(cache: Cache, source: str, version: str) -> None:
    """Remove a graph; harmless where there is none."""
    cache.remove(KIND, key_of(source, version))


def weights_name(cache: Cache, source: str, version: str) -> str:
    """The name of the file of weights, which stands in the graph."""
    return cache.bare_path(KIND, key_of(source, version)).name
