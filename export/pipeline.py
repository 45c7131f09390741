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

from export.attention import VoiceMatrices
from export.card import render_card
from export.graphs import STORED_AS_FLOAT16, Signature, export_graph
from export.modules import DecoderGraph, EncoderGraph, StepRows, step_graph
from export.options import GUIDANCE_RANGE, ExportOptions, Sampling
from export.parity import ParityReport, chain_reference, chain_steps, check_parity
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
    TensorSpec,
    sha256_hex,
    stage_tensors,
)
from runtime.errors import ConfigInvalid, InvalidArgument
from training.checkpoint import System, load_system

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
    return export_system(load_system(run_dir, options.arm), target, options)


def export_system(system: System, target: Path, options: ExportOptions) -> Exported:
    """Export a system into the folder `target`.

    Raises InvalidArgument (options that do not fit the system), OutputUnwritable, ParityFailed, BackendFailed.
    """
    check_target(target, force=options.force)
    sampling = options.sampling(system.arm, most_steps=_most_steps(system))
    guidance = options.guidance_scale(system.guidance)
    stored = round_weights(system) if options.store == "float16" else system
    rows = step_rows(system, sampling)
    contract = contract_of(stored, rows, guidance)
    graphs = _export_graphs(stored, rows, contract.tensors, options)
    parity = check_parity(stored, rows, graphs)
    log.info("parity: %s", parity)
    manifest = _manifest(stored, rows, graphs, contract, (options, sampling))
    drift = _drift(system, stored, rows)
    card = render_card(manifest, system, options, parity, drift).encode()
    manifest = dataclasses.replace(manifest, model_card=FileRef(CARD, sha256_hex(card), len(card)))
    files = {f"{stage}.onnx": data for stage, data in graphs.items()} | {CARD: card}
    identity = write_bundle(target, manifest, files, force=options.force)
    return Exported(target, identity, manifest, parity)


def _most_steps(system: System) -> int:
    """How many steps the network knows: of the smallest trained size, or all of DDPM's."""
    finest = system.config.shortcut.levels
    return int(2 ** (finest - 1)) if system.arm == "shortcut" else len(system.alphas_cumprod)


def step_rows(system: System, sampling: Sampling) -> StepRows:
    """The tables of all step counts. Raises InvalidArgument for numbers of steps that the arm cannot divide into."""
    try:
        return StepRows.of({n: system.table(n, sampling.solver) for n in sampling.steps})
    except ConfigInvalid as error:
        raise InvalidArgument(f"export option steps is {sampling.steps!r}: {error}") from error


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


@dataclass(frozen=True)
class Contract:
    """The parts of a manifest that decide on the graphs' tensors."""

    latent: LatentSpec
    image: ImageSpec
    condition: ConditionSpec
    prior: PriorSpec
    guidance: GuidanceSpec
    history: bool

    @property
    def tensors(self) -> dict[str, tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]]:
        """(inputs, outputs) of every stage."""
        shapes = self.latent, self.image, self.condition
        return stage_tensors(*shapes, self.prior, self.guidance, history=self.history)


def contract_of(system: System, rows: StepRows, guidance: float) -> Contract:
    """`guidance`: the default, see `ExportOptions.guidance_scale`."""
    channels, height, width = system.prior.shape
    denoiser: Any = system.denoiser
    with torch.no_grad():
        image = system.face_decoder(torch.zeros(1, channels, height, width))
        condition = VoiceMatrices(denoiser)(denoiser.null_tokens)
    low, high = system.prior_weights
    inject = "start" if system.arm == "shortcut" else "every"
    guidances = GUIDANCE_RANGE if system.guidance is None else (guidance, guidance)
    return Contract(
        LatentSpec(channels, height, width),
        ImageSpec(int(image.shape[2]), int(image.shape[3])),
        ConditionSpec(int(condition.shape[1]), int(condition.shape[2])),
        PriorSpec(system.prior_mode, float(system.prior_weight), float(low), float(high), inject),
        GuidanceSpec(guidance, *guidances),
        rows.history,
    )


def _export_graphs(system: System, rows: StepRows, tensors: Any, options: ExportOptions) -> dict[str, bytes]:
    modules = {"encoder": EncoderGraph(system), "unet": step_graph(system, rows), "decoder": DecoderGraph(system)}
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
    contract: Contract,
    chosen: tuple[ExportOptions, Sampling],
) -> Manifest:
    options, sampling = chosen
    stages = {n: Stage(f"{n}.onnx", sha256_hex(data), len(data), *contract.tensors[n]) for n, data in graphs.items()}
    return Manifest(
        name=options.name or system.name,
        generator=generator(),
        licence=f"{options.licence} for the weights; sources: {system.licence}",
        training_data=system.training_data,
        stages=stages,
        latent=contract.latent,
        image=contract.image,
        condition=contract.condition,
        prior=contract.prior,
        guidance=contract.guidance,
        step_tables={
            n: StepTable(table.solver, rows.first_row[n], tuple(float(t) for t in table.timesteps))
            for n, table in rows.tables.items()
        },
        default_steps=sampling.default_steps,
        model_card=FileRef(CARD, "0" * 64, 1),  # filled in once the card, which lists the files, is written
    )


def _drift(trained: System, stored: System, rows: StepRows) -> float:
    """Mean absolute grey levels that rounding the weights moves the portraits of the longest parity chain."""
    if trained is stored:
        return 0.0
    steps = max(chain_steps(rows))
    before, after = (chain_reference(s, rows, steps, s.prior_weight).astype(np.int16) for s in (trained, stored))
    return float(np.abs(before - after).mean())


def generator() -> str:
    """Name and version of the package, for manifests and files."""
    try:
        return f"s2f-edge {metadata.version('s2f-edge')}"
    except metadata.PackageNotFoundError:  # run from a source folder that was never installed
        return "s2f-edge 0.1.0"
