"""What `s2f prepare` measured: OpenVINO beside ONNX Runtime, for one bundle on one processor.

Which of the two is faster depends on processor, bundle and releases, so "auto" takes OpenVINO only where this record
says that it draws the same portraits sooner. It names what it was measured with, and holds for nothing else.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from .bundle import Manifest
from .cache import Cache, Refused
from .engines import RECORDS
from .machine import cpu_flags, cpu_model
from .portrait import ALIKE_INT8_DB
from .variants import family_for

ENOUGH_DB = 40.0
"""PSNR to ONNX Runtime's portraits in float32 that OpenVINO's must have; in eight bits the gate's suffices."""

GAIN = 0.95
"""OpenVINO is taken where it needs at most this part of ONNX Runtime's time: less is within what a machine wavers."""


@dataclasses.dataclass(frozen=True)
class Standing:
    """`precision`: OpenVINO's that was found best, "fp32", "bf16" or "int8". `psnr`: dB, of portraits in that precision
    to ONNX Runtime's in float32, the lowest of several seeds at the default steps. `peer`: the precision "auto" takes
    with ONNX Runtime, of which its times are. `milliseconds`: of a portrait, by number of threads: (OpenVINO's, ONNX
    Runtime's). `place`: what it was measured with, by name.
    """

    precision: str
    psnr: float
    peer: str
    milliseconds: Mapping[int, tuple[float, float]]
    place: Mapping[str, str]

    @property
    def wins(self) -> bool:
        """Whether OpenVINO draws the same, and faster with every number of threads that was tried."""
        faster = all(ours <= GAIN * theirs for ours, theirs in self.milliseconds.values())
        return bool(self.milliseconds) and faster and self.psnr >= enough_db(self.precision)

    def __str__(self) -> str:
        times = ", ".join(
            f"{ours:.1f} ms against {theirs:.1f} ms with {threads} thread{'s' if threads > 1 else ''}"
            for threads, (ours, theirs) in sorted(self.milliseconds.items())
        )
        likeness = f"PSNR in {self.precision} {self.psnr:.1f} dB to ONNX Runtime in fp32"
        return f"{self.precision}, {times} of ONNX Runtime in {self.peer}; {likeness}"


def enough_db(precision: str) -> float:
    """The PSNR that OpenVINO's portraits in a precision must have to ONNX Runtime's in float32."""
    return ALIKE_INT8_DB if precision == "int8" else ENOUGH_DB


def standing_key(manifest: Manifest) -> dict[str, Any]:
    """The cache key: bundle, its variant with what the gate said of it, and processor. Releases are in the record, so
    that one can say what has changed.
    """
    family = family_for("openvino", manifest.variants)
    variant = None if family is None else manifest.variants[family]
    return {
        "compared": ["openvino", "onnxruntime"],
        "cpu": cpu_model(),
        "flags": cpu_flags(),
        "sources": {name: stage.sha256 for name, stage in manifest.stages.items()},
        "variant": variant and [variant.gate, {name: ref.sha256 for name, ref in variant.stages.items()}],
        "steps": manifest.default_steps,
    }


def read_standing(cache: Cache, manifest: Manifest) -> Standing | None:
    """The record of a bundle on this processor, None where there is none. Raises Refused."""
    data = cache.read(RECORDS, standing_key(manifest))
    if data is None:
        return None
    try:
        value = json.loads(data)
        times = {int(n): (float(ours), float(theirs)) for n, (ours, theirs) in value["milliseconds"].items()}
        place = {str(name): str(text) for name, text in value["place"].items()}
        return Standing(str(value["precision"]), float(value["psnr"]), str(value["peer"]), times, place)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(f"the record of what was measured is not readable ({type(error).__name__})") from None


def write_standing(cache: Cache, manifest: Manifest, standing: Standing) -> None:
    """Remember a standing. Raises OutputUnwritable."""
    cache.write(RECORDS, standing_key(manifest), json.dumps(dataclasses.asdict(standing), sort_keys=True).encode())
