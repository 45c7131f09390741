"""MODEL_CARD.md: what a bundle is, what it must not be used for, where it comes from, how exactly it was exported."""

from __future__ import annotations

import json
import re
import shlex

from export.options import ExportOptions
from export.parity import CHAIN_LEVELS, TOLERANCE, ParityReport
from runtime.bundle import Manifest
from training.checkpoint import System
from training.config import config_to_dict

RESPECT = """## Limits and respect

A voice does not determine a face. A portrait from this model is one of many that fit the statistics of its training
data; it is not a picture of the speaker. Of a real person's looks, a voice carries a little about sex and age and next
to nothing else.

- Not for identification: do not compare these portraits with photographs, and do not search for people with them.
- Not for surveillance, law enforcement, hiring, insurance, border control, or any decision about a person.
- Do not present a portrait as what somebody looks like, and do not make one of a person who would object.
- Saved portraits are marked as made by an algorithm (IPTC digitalSourceType trainedAlgorithmicMedia); leave it in.
- The training data fixes what the model can draw: sex is binary in it, ages, skin tones and accents are those of its
  sources, and whatever is missing there is drawn badly or not at all.
"""


def render_card(manifest: Manifest, system: System, options: ExportOptions, parity: ParityReport, drift: float) -> str:
    """The card as Markdown. `manifest` need not know the card yet.

    `drift`: mean grey levels between the portraits of the stored weights and of the trained ones.
    """
    parts = [
        f"# {manifest.name}\n\n{_what(manifest, system)}",
        RESPECT,
        f"## Training data\n\n{system.training_data}",
        _licences(system, options),
        _making(manifest, system, options),
        _parity_table(parity, drift, options),
        _files(manifest),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _what(manifest: Manifest, system: System) -> str:
    latent, image, condition = manifest.latent, manifest.image, manifest.condition
    tables = ", ".join(str(n) for n in sorted(manifest.step_tables))
    solvers = ", ".join(dict.fromkeys(table.solver for table in manifest.step_tables.values()))
    return (
        f"Speech in, portrait out: six seconds of 16 kHz speech to a {image.width}×{image.height} portrait, by latent "
        "diffusion conditioned on the voice and centred on a statistical face prior. System: SCLDM, rebuilt from its "
        f"paper; no weights or code of its authors are used. Made by {manifest.generator}.\n\n"
        f"- arm: {system.arm}, {_objective(system)}\n"
        f"- latent {latent.channels}×{latent.height}×{latent.width}, condition {condition.tokens}×{condition.width}\n"
        f"- steps: {tables} (default {manifest.default_steps}), solver {solvers}{_searched(manifest, system)}\n"
        f"- guidance: {_guidance(manifest)}\n"
        f"- prior: {_prior(manifest)}"
    )


def _searched(manifest: Manifest, system: System) -> str:
    """Which schedules are the outcome of a search; the others are even."""
    used = [n for n, table in sorted(manifest.step_tables.items()) if system.searched(n, table.solver)]
    return f"; timesteps searched for {', '.join(map(str, used))} steps" if used else ""


def _objective(system: System) -> str:
    if system.arm == "shortcut":
        return (
            "a rectified flow in few steps: step-size conditioning and self-consistency (Frans et al. 2024), "
            "started from the diffusion arm"
        )
    return f"DDPM, prediction of {'v' if system.prediction == 'v' else 'the noise'}"


def _guidance(manifest: Manifest) -> str:
    guidance = manifest.guidance
    if guidance.fixed:
        return f"{guidance.default:g}, folded into the network: one forward per step"
    return f"{guidance.default:g}, or {guidance.min:g} to {guidance.max:g} by call: two forwards per step"


def _prior(manifest: Manifest) -> str:
    prior = manifest.prior
    weight = f"weight {prior.weight:g}"
    weight += ", folded in" if prior.fixed else f", or {prior.min:g} to {prior.max:g} by call"
    return f"{prior.mode}, {weight}; " + (
        "in the noise that sampling starts from" if prior.inject == "start" else "at every step"
    )


def _licences(system: System, options: ExportOptions) -> str:
    return (
        f"## Licences and attribution\n\nThe weights in this bundle: {options.licence}.\n\n"
        f"The sources of its training data, with the attributions they ask for: {system.licence}\n\n"
        "Keep this section with every copy of the bundle."
    )


def _making(manifest: Manifest, system: System, options: ExportOptions) -> str:
    config = config_to_dict(system.config)
    settings = ",\n".join(f' "{key}": {json.dumps(value)}' for key, value in config.items())
    commands = "\n".join(
        [
            _corpus_command(system.training_data),
            f"s2f-train all --config {config['name']} --corpus CORPUS --out RUN_DIR",
            _export_command(manifest, system, options),
        ]
    )
    return (
        f"## How it was made\n\nCorpus, training, export:\n\n```\n{commands}\n```\n\n"
        f"Training seed {config['seed']}; feature loss used in pre-training: {system.feature_loss} "
        f"(asked for: {config['pretrain']['feature_loss']}). The whole configuration:\n\n"
        f"```json\n{{\n{settings}\n}}\n```"
    )


def _corpus_command(training_data: str) -> str:
    """The command that the data statement names in brackets, with the folders that it leaves out."""
    named = re.search(r"\(s2f-train corpus(( --[\w-]+ [^\s()]+)*) ?\)", training_data)
    arguments = named[1] if named else ""
    number = "" if "--identities" in arguments else " --identities N"
    return f"s2f-train corpus --makehuman MAKEHUMAN --speech SPEECH --out CORPUS{number}{arguments}"


def _export_command(manifest: Manifest, system: System, options: ExportOptions) -> str:
    steps = ",".join(str(n) for n in sorted(manifest.step_tables))
    guidance = "" if manifest.guidance.fixed else f"--guidance {manifest.guidance.default:g} "
    return (
        f"s2f-export RUN_DIR -o BUNDLE --name {manifest.name} --arm {system.arm} --steps {steps} "
        f"--default-steps {manifest.default_steps} --solver {manifest.table().solver} --store {options.store} "
        f"{guidance}--licence {shlex.quote(options.licence)}"
    )


def _parity_table(parity: ParityReport, drift: float, options: ExportOptions) -> str:
    units = {"decoder": " levels"}
    rows = [
        f"| {r.stage} | {r.cases} | {r.max_abs:.2g}{units.get(r.stage, '')} | {r.tolerance:.2g} |"
        for r in parity.stages
    ]
    loosened = (
        f"\n\nA row allows more than {TOLERANCE:g} where a step divides the network's prediction by a small alpha: its "
        "rounding is divided with it, so the limit of each step is multiplied by the same factor."
        if any(r.stage == "unet" and r.tolerance > TOLERANCE for r in parity.stages)
        else ""
    )
    table = "\n".join(rows) + loosened
    return "\n".join(
        [
            "## Parity with the trained model",
            "",
            "ONNX Runtime on a CPU against training's own modules and sampler in torch, seeded inputs, batch 1 and 3.",
            "",
            "| graph | cases | largest difference | allowed |",
            "|---|---|---|---|",
            table,
            "",
            f"Whole chain, {', '.join(map(str, parity.chain_steps))} steps: at most {parity.chain_max_levels:g} grey "
            f"levels ({CHAIN_LEVELS:g} allowed), {100 * parity.chain_differing:.2g} % of the values differ.",
            f"Weights stored as {options.store}: the portraits of {max(parity.chain_steps)} steps with the default "
            f"prior weight move by {drift:.2g} grey levels on average against the trained float32 weights.",
        ]
    )


def _files(manifest: Manifest) -> str:
    rows = [f"| {s.file} | {s.size:,} | `{s.sha256}` |" for s in manifest.stages.values()]
    return "\n".join(["## Files", "", "| file | bytes | sha256 |", "|---|---|---|", *rows])
