"""A tiny bundle with a variant, for what chooses between graphs by precision."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx

from runtime.bundle import FileRef, Variant, manifest_to_json, read_bundle, sha256_hex
from tests.tiny_bundle import SHORTCUT, write_tiny_bundle


def eights(folder: Path) -> Path:
    """A tiny bundle with a variant for this processor, whose decoder draws with less contrast. No eight bits in it."""
    bundle = read_bundle(write_tiny_bundle(folder, arm=SHORTCUT))
    graph = onnx.load_from_string(bundle.files["decoder"])
    half = next(tensor for tensor in graph.graph.initializer if tensor.name == "half")
    half.CopyFrom(onnx.numpy_helper.from_array(np.float32(80.0), "half"))
    data = graph.SerializeToString()
    (folder / "decoder.int8.onnx").write_bytes(data)
    variant = Variant({"decoder": FileRef("decoder.int8.onnx", sha256_hex(data), len(data))}, "passed", 1, 40.0, 0.99)
    changed = dataclasses.replace(bundle.manifest, variants={"int8-x86": variant})
    (folder / "manifest.json").write_bytes(manifest_to_json(changed))
    return folder
