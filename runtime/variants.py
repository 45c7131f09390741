"""Quantised variants of a bundle's graphs: what a manifest says of them, and when "auto" takes one.

A variant holds some or all stages in eight bits, with the tensors of the stages they stand for; a stage it lacks is the
bundle's own. Its family is the kind of machine it was made for. It carries what the gate of calibration said.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from .bundle_files import MAX_STAGE_BYTES
from .machine import cpu_flags
from .specs import FileRef, key_names
from .strict_json import Fields, as_object, invalid

FAMILIES: Mapping[str, tuple[str, ...]] = {"int8-x86": ("cpu", "openvino"), "int8-tensorrt": ("tensorrt",)}
"""The devices that run a family, by its name."""

GATES = ("passed", "missed", "unverified")
INT8 = frozenset(("avx512_vnni", "avx_vnni", "amx_int8"))
"""Instruction sets that multiply eight bits exactly. Without one, sums of products of uint8 and int8 saturate."""
BF16 = frozenset(("avx512_bf16", "amx_bf16"))


@dataclasses.dataclass(frozen=True)
class Variant:
    """`stages`: an ONNX file per stage. `gate`: "passed", "missed" (written by force) or "unverified" (the machine that
    made it could not run it as the target will). `pairs`: portraits compared with float32; `psnr` in dB and `cosine` of
    identities: their means.
    """

    stages: Mapping[str, FileRef]
    gate: str
    pairs: int
    psnr: float
    cosine: float

    @classmethod
    def from_json(cls, value: object, path: str, stages: Sequence[str]) -> Variant:
        """Read {stages, gate, pairs, psnr, cosine}; `stages`: the names there are."""
        fields = Fields(value, path, key_names(cls))
        files = as_object(fields.values["stages"], fields.at("stages"))
        unknown = [name for name in files if name not in stages]
        if unknown or not files:
            raise invalid(fields.at("stages"), f"must hold one or more of {', '.join(stages)} and nothing else")
        refs = {}
        for name in stages:
            if name in files:
                part = f"{path}.stages.{name}"
                refs[name] = FileRef.read(Fields(files[name], part, key_names(FileRef)), ".onnx", MAX_STAGE_BYTES)
        return cls(
            refs,
            fields.choice("gate", GATES),
            fields.integer("pairs", 0, 1 << 31),
            fields.number("psnr", -1000.0, 1000.0),
            fields.number("cosine", -1.0, 1.0),
        )


def read_variants(value: object, path: str, stages: Sequence[str]) -> dict[str, Variant]:
    """The variants of a manifest by family. Raises BundleInvalid."""
    items = as_object(value, path)
    for name in items:
        if name not in FAMILIES:
            raise invalid(path, f"must hold nothing but {', '.join(FAMILIES)}")
    return {name: Variant.from_json(items[name], f"{path}.{name}", stages) for name in FAMILIES if name in items}


def family_for(device: str, variants: Mapping[str, Variant]) -> str | None:
    """The family of a bundle that a device runs; None where the bundle has none for it."""
    return next((name for name in variants if device in FAMILIES[name]), None)


def computes_bf16() -> bool:
    """Whether this processor multiplies in bfloat16."""
    return bool(BF16 & set(cpu_flags()))


def multiplies_int8() -> bool:
    """Whether this processor multiplies eight bits exactly, and fast."""
    return bool(INT8 & set(cpu_flags()))
