"""A valid bundle folder with dummy stages: right to the reader, not runnable. Tests damage it in one way each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime.bundle import (
    ConditionSpec,
    FileRef,
    GuidanceSpec,
    ImageSpec,
    LatentSpec,
    Manifest,
    PriorSpec,
    Stage,
    StepTable,
    Variant,
    manifest_to_json,
    sha256_hex,
    stage_tensors,
)

CARD = b"# Dummy\nNo model is in here.\n"


def varint(value: int) -> bytes:
    """A protobuf varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def message(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def number_field(number: int, value: int) -> bytes:
    """A varint protobuf field."""
    return varint(number << 3) + varint(value)


def onnx_bytes(graph: bytes = b"", tail: bytes = b"", name: bytes = b"dummy") -> bytes:
    """A ModelProto: ir_version 8, a graph with a name and what is given, opset 17, then `tail`."""
    opset = message(8, number_field(2, 17))
    return number_field(1, 8) + message(7, message(2, name) + graph) + opset + tail


def dummy_stages() -> dict[str, bytes]:
    """Stage name to bytes that the reader accepts."""
    return {name: onnx_bytes(name=name.encode()) for name in ("encoder", "unet", "decoder")}


def dummy_variant() -> dict[str, bytes]:
    """The same for the stages of the dummy's quantised variant."""
    return {name: onnx_bytes(name=f"{name}-int8".encode()) for name in ("unet", "decoder")}


def make_manifest(files: dict[str, bytes] | None = None, card: bytes = CARD) -> Manifest:
    """A small manifest whose hashes and sizes are those of `files`."""
    files = files or dummy_stages()
    latent, image, condition = LatentSpec(4, 8, 8), ImageSpec(32, 32), ConditionSpec(2, 16)
    prior, guidance = PriorSpec("add", 0.01, 0.0, 0.1, "start"), GuidanceSpec(1.5, 1.0, 4.0)
    tensors = stage_tensors(latent, image, condition, prior, guidance, history=True)
    stages = {name: Stage(f"{name}.onnx", sha256_hex(data), len(data), *tensors[name]) for name, data in files.items()}
    refs = {name: FileRef(f"{name}.int8.onnx", sha256_hex(d), len(d)) for name, d in dummy_variant().items()}
    return Manifest(
        name="dummy",
        generator="s2f-edge 0.1.0",
        licence="CC0-1.0",
        training_data="Nothing at all.",
        stages=stages,
        latent=latent,
        image=image,
        condition=condition,
        prior=prior,
        guidance=guidance,
        step_tables={
            4: StepTable("dpmpp_2m", 0, (999.0, 700.5, 400.0, 100.0)),
            8: StepTable("ddim", 4, tuple(999.0 - 120.0 * i for i in range(8))),
        },
        default_steps=4,
        model_card=FileRef("MODEL_CARD.md", sha256_hex(card), len(card)),
        variants={"int8-x86": Variant(refs, "passed", 256, 41.5, 0.99)},
    )


def write_bundle(folder: Path, files: dict[str, bytes] | None = None) -> Path:
    """Write a whole bundle and return its folder."""
    files = files or dummy_stages()
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / f"{name}.onnx").write_bytes(data)
    for name, data in dummy_variant().items():
        (folder / f"{name}.int8.onnx").write_bytes(data)
    (folder / "MODEL_CARD.md").write_bytes(CARD)
    (folder / "manifest.json").write_bytes(manifest_to_json(make_manifest(files)))
    return folder


def manifest_dict() -> dict[str, Any]:
    """The manifest as plain JSON values, to be damaged."""
    value: dict[str, Any] = json.loads(manifest_to_json(make_manifest()))
    return value


def manifest_of_schema_2() -> dict[str, Any]:
    """A manifest as releases before schema 3 wrote it: without variants."""
    value = manifest_dict()
    value["schema_version"] = 2
    del value["variants"]
    return value


def manifest_of_schema_1() -> dict[str, Any]:
    """A manifest as releases before schema 2 wrote it."""
    value = manifest_of_schema_2()
    value["schema_version"] = 1
    value["prior"] = {"mode": "add", "weight": 0.01}
    value["stages"]["unet"]["inputs"].pop()  # the prior weight
    return value


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest of a bundle in place, without the writer's checks."""
    path = folder / "manifest.json"
    value = json.loads(path.read_bytes())
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def put(value: Any, path: str, new: object) -> None:
    """Set value["a"]["b"][0] from the path "a.b.0"."""
    *parents, last = path.split(".")
    for key in parents:
        value = value[int(key)] if isinstance(value, list) else value[key]
    value[int(last) if isinstance(value, list) else last] = new
