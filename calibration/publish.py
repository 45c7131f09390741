"""From a calibration to a bundle: variants beside the graphs they stand for, the card, all or nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx

from calibration.calibrate import Result
from calibration.layers import layers_of, smaller_stored
from export import fuse, simplify
from export.writer import write_bundle
from runtime.bundle import STAGES, Bundle, FileRef, Variant, sha256_hex
from runtime.variants import multiplies_int8

HEADING = "## Eight bits"


def stored_small(bundle: Bundle) -> Bundle:
    """The bundle with the weights of its layers in eight bits per channel; the arithmetic stays float32.

    They are rounded to the numbers that its quantised variants compute with, the front end excepted, so the whole
    bundle takes half the room. Its portraits change a little: the gate compares with those of the bundle given.
    """
    files, stages = {}, {}
    for stage in STAGES:
        model = onnx.load_from_string(bundle.files[stage])
        fuse.widen_weights(model)
        layers = layers_of(model, stage)
        simplify.store_int8(model, smaller_stored(model, layers))
        simplify.store_float16(model, 256)
        files[stage] = model.SerializeToString(deterministic=True)
        old = bundle.manifest.stages[stage]
        stages[stage] = dataclasses.replace(old, sha256=sha256_hex(files[stage]), size=len(files[stage]))
    return dataclasses.replace(bundle, files=files, manifest=dataclasses.replace(bundle.manifest, stages=stages))


def gate_word(result: Result) -> str:
    """What the manifest says of a variant: an x86 one can be judged only where integers are multiplied as there."""
    if result.family == "int8-x86" and not multiplies_int8():
        return "unverified"
    return "missed" if result.misses else "passed"


def publish(bundle: Bundle, results: Iterable[Result], target: Path, *, note: str, force: bool) -> str:
    """Write the bundle with these variants; returns its identity. Variants it had before of other families stay out.

    `note`: what the model card says of them. Raises OutputUnwritable; nothing half-written stays.
    """
    files = {bundle.manifest.stages[stage].file: data for stage, data in bundle.files.items()}
    variants = {}
    for result in results:
        names = {stage: f"{stage}.{result.family}.onnx" for stage in result.graphs}
        refs = {stage: FileRef(names[stage], sha256_hex(data), len(data)) for stage, data in result.graphs.items()}
        files |= {names[stage]: data for stage, data in result.graphs.items()}
        quality = result.quality
        psnr, cosine = (float(values.mean()) if quality.pairs else 0.0 for values in (quality.psnr, quality.cosine))
        variants[result.family] = Variant(refs, gate_word(result), quality.pairs, round(psnr, 2), round(cosine, 5))
    card = _card(bundle.model_card.decode(), note).encode()
    name = bundle.manifest.model_card.file
    manifest = dataclasses.replace(
        bundle.manifest, variants=variants, model_card=FileRef(name, sha256_hex(card), len(card))
    )
    return write_bundle(target, manifest, {**files, name: card}, force=force)


def sizes(bundle: Bundle, result: Result) -> Mapping[str, int]:
    """Bytes of what a device reads with a variant, by stage: the variant's graph, or the bundle's own."""
    return {stage: len(result.graphs.get(stage, bundle.files[stage])) for stage in STAGES}


def _card(card: str, note: str) -> str:
    """The card with one section on eight bits, in place of an earlier one."""
    before, found, after = card.partition(f"{HEADING}\n")
    if found:
        after = "".join(f"## {part}" for part in after.split("\n## ")[1:])
    return f"{before.rstrip()}\n\n{HEADING}\n\n{note}\n" + (f"\n{after}" if after else "")
