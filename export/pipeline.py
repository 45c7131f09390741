"""The export of a trained system, top to bottom: weights as stored, three graphs, parity, manifest, card, folder."""

from __future__ import annotations

import copy
import dataclasses
import logging
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from export.card import render_card
from export.graphs import STORED_AS_FLOAT16, Signature, export_graph
from export.modules import DecoderGraph, EncoderGraph, StepGraph, StepRows
from export.options import GUIDANCE_RANGE, ExportOptions
from export.parity import ParityReport, chain_reference, check_parity
from export.writer import check_target, write_bundle
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
    sha256_hex,
    stage_tensors,
)
from training.checkpoint import System, load_system
from training.sampling import step_table

log = logging.getLogger(__name__)

CARD = "MODEL_CARD.md"
MODULES = ("speech_encoder", "denoiser", "face_decoder")


@dataclass(frozen=True)
class Exported:
    """What an export made: the folder, its identity (sha256 of the manifest), manifest and parity."""

    path: Path
    identity: str
    manifest: Manifest
    parity: ParityReport


def export_run(run_dir: Path, target: Path, options: ExportOptions) -> Exported:
    """Export the system a training run left behind. Raises CheckpointInvalid besides what `export_system` raises."""
    check_target(target, force=options.force)
    return export_system(load_system(run_dir), target, options)


def export_system(system: System, target: Path, options: ExportOptions) -> Exported:
    """Export a system into the folder `target`. Raises OutputUnwritable, ParityFailed, BackendFailed."""
    check_target(target, force=options.force)
    stored = round_weights(system) if options.store == "float16" else system
    tables = {n: step_table(system.alphas_cumprod, n, options.solver, system.prediction) for n in options.steps}
    rows = StepRows.of(tables)
    latent, image, condition = _shapes(stored)
    graphs = _export_graphs(stored, rows, stage_tensors(latent, image, condition), options)
    parity = check_parity(stored, rows, graphs)
    log.info("parity: %s", parity)
    manifest = _manifest(stored, rows, graphs, (latent, image, condition), options)
    drift = _drift(system, stored, rows)
    card = render_card(manifest, system, options, parity, drift).encode()
    manifest = dataclasses.replace(manifest, model_card=FileRef(CARD, sha256_hex(card), len(card)))
    files = {f"{stage}.onnx": data for stage, data in graphs.items()} | {CARD: card}
    identity = write_bundle(target, manifest, files, force=options.force)
    return Exported(target, identity, manifest, parity)


def round_weights(system: System) -> System:
    """A copy whose larger parameters are what float16 can hold, so that storing them loses nothing more.

    Fixed kernels (DFT, mel bank) count as parameters: rounded, their error lies 100 dB under a full-scale tone.
    Batch-norm statistics, other vectors of buffers and what float16 cannot reach stay as they are.
    """
    copies: dict[str, nn.Module] = {name: copy.deepcopy(getattr(system, name)) for name in MODULES}
    for module in copies.values():
        kernels = [b for b in module.buffers() if b.ndim > 1 and b.dtype == torch.float32]
        for tensor in (*module.parameters(), *kernels):
            rounded = tensor.data.half().float()
            if tensor.numel() >= STORED_AS_FLOAT16 and bool(torch.isfinite(rounded).all()):
                tensor.data = rounded
    return dataclasses.replace(system, **copies)  # type: ignore[arg-type]


def _shapes(system: System) -> tuple[LatentSpec, ImageSpec, ConditionSpec]:
    channels, height, width = system.prior.shape
    denoiser: Any = system.denoiser
    _, tokens, token_width = denoiser.null_tokens.shape
    with torch.no_grad():
        image = system.face_decoder(torch.zeros(1, channels, height, width))
    return (
        LatentSpec(channels, height, width),
        ImageSpec(int(image.shape[2]), int(image.shape[3])),
        ConditionSpec(int(tokens), int(token_width)),
    )


def _export_graphs(system: System, rows: StepRows, tensors: Any, options: ExportOptions) -> dict[str, bytes]:
    modules = {"encoder": EncoderGraph(system), "unet": StepGraph(system, rows), "decoder": DecoderGraph(system)}
    graphs = {}
    for stage, module in modules.items():
        signature = Signature(stage, *tensors[stage])
        graphs[stage] = export_graph(module, signature, float16=options.store == "float16", producer=generator())
        log.info("%s.onnx: %d bytes", stage, len(graphs[stage]))
    return graphs


def _manifest(
    system: System,
    rows: StepRows,
    graphs: dict[str, bytes],
    shapes: tuple[LatentSpec, ImageSpec, ConditionSpec],
    options: ExportOptions,
) -> Manifest:
    tensors = stage_tensors(*shapes)
    return Manifest(
        name=options.name or system.name,
        generator=generator(),
        licence=f"{options.licence} for the weights; sources: {system.licence}",
        training_data=system.training_data,
        stages={n: Stage(f"{n}.onnx", sha256_hex(data), len(data), *tensors[n]) for n, data in graphs.items()},
        latent=shapes[0],
        image=shapes[1],
        condition=shapes[2],
        prior=PriorSpec(system.prior_mode, float(system.prior_weight)),
        guidance=GuidanceSpec(options.guidance, *GUIDANCE_RANGE),
        step_tables={
            n: StepTable(options.solver, rows.first_row[n], tuple(float(t) for t in table.timesteps))
            for n, table in rows.tables.items()
        },
        default_steps=options.default_steps,
        model_card=FileRef(CARD, "0" * 64, 1),  # filled in once the card, which lists the files, is written
    )


def _drift(trained: System, stored: System, rows: StepRows) -> float:
    """Mean absolute grey levels that rounding the weights moves the portraits of the parity chain."""
    if trained is stored:
        return 0.0
    before, after = (chain_reference(s, rows, min(rows.tables)).astype(np.int16) for s in (trained, stored))
    return float(np.abs(before - after).mean())


def generator() -> str:
    """Name and version of the package, for manifests and files."""
    try:
        return f"s2f-edge {metadata.version('s2f-edge')}"
    except metadata.PackageNotFoundError:  # run from a source folder that was never installed
        return "s2f-edge 0.1.0"
