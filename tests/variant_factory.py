"""Bundles with a variant in eight bits, made from the ranges of a few portraits."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path

import numpy as np
from graph_factory import run

from calibration.activations import Activations, observable
from calibration.layers import float_graphs, layers_of
from calibration.quantise import quantise
from runtime.audio import load_speech
from runtime.bench import synthetic_speech
from runtime.bundle import STAGES, Bundle, FileRef, Variant, manifest_to_json, read_bundle, sha256_hex
from runtime.noise import seeded_noise


def write_variant(bundle: Bundle, folder: Path, family: str, chosen: Collection[str] | None = None) -> Bundle:
    """Write the bundle with a variant of all its stages into `folder`, and read that variant.

    `chosen`: names of layers, all that need not stay float32 if None.
    """
    graphs = float_graphs(bundle)
    layers = {stage: layers_of(graphs[stage], stage) for stage in STAGES}
    watched = {}
    for stage, model in graphs.items():
        known = {tensor.name for tensor in model.graph.initializer}
        between = {name for one in model.graph.node if one.op_type in ("Add", "Relu", "Conv") for name in one.output}
        inputs = {name for one in model.graph.node if one.op_type == "Add" for name in one.input}
        read = {name for layer in layers[stage] for name in (layer.source, layer.result)}
        watched[stage] = sorted((between | inputs | read) - known)
    seen = Activations(watched)
    models = {stage: observable(model, watched[stage]).SerializeToString() for stage, model in graphs.items()}
    for seed in range(2):
        _portrait(bundle, models, seed, seen)
    files, refs = {}, {}
    for stage, model in graphs.items():
        names = {one.name for one in layers[stage] if not one.keep} if chosen is None else chosen
        spans = {name: one.extremes for name, one in seen.tensors[stage].items()}
        data = quantise(model, family, layers[stage], names, spans).SerializeToString(deterministic=True)
        name = f"{stage}.{family}.onnx"
        files[name], refs[stage] = data, FileRef(name, sha256_hex(data), len(data))
    variant = Variant(refs, "unverified", 0, 0.0, 0.0)
    manifest = dataclasses.replace(bundle.manifest, variants={family: variant})
    own = {bundle.manifest.stages[stage].file: (bundle.path / bundle.manifest.stages[stage].file) for stage in STAGES}
    files |= {name: path.read_bytes() for name, path in own.items()}
    files |= {manifest.model_card.file: bundle.model_card, "manifest.json": manifest_to_json(manifest)}
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return read_bundle(folder, family)


def _portrait(bundle: Bundle, models: dict[str, bytes], seed: int, seen: Activations) -> None:
    """Draw one at the default number of steps while `seen` looks."""
    manifest, latent = bundle.manifest, bundle.manifest.latent

    def go(stage: str, row: int, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = run(models[stage], values)
        seen.see(stage, row, {**values, **found})
        return found

    pcm = load_speech((synthetic_speech(seed=seed), 16000))[None]
    values = {
        "condition": go("encoder", 0, {"pcm": pcm})["condition"],
        "guidance": np.array([manifest.guidance.default], np.float32),
        "prior_weight": np.array([manifest.prior.weight], np.float32),
        "latent": seeded_noise(seed, (latent.channels, latent.height, latent.width))[None],
    }
    values["history"] = np.zeros_like(values["latent"])
    table = manifest.table(manifest.default_steps)
    for row in range(table.first_row, table.first_row + len(table.timesteps)):
        made = go("unet", row, {**values, "step": np.array([row])})
        values |= {name: made[f"{name}_next"] for name in ("latent", "history") if f"{name}_next" in made}
    go("decoder", 0, {"latent": values["latent"]})
