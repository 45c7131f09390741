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
from runtime.bundle import STAGES, Bundle, FileRef, Manifest, Stage, Variant, sha256_hex
from runtime.variants import multiplies_int8


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
    """What the manifest says of a variant. One that passed is verified only if it runs here as on its target: an x86
    one where integers are multiplied as there, one for TensorRT nowhere, since ONNX Runtime drew everything.
    """
    if result.misses:
        return "missed"
    as_on_target = result.family == "int8-x86" and multiplies_int8()
    return "passed" if as_on_target else "unverified"


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
    manifest = dataclasses.replace(bundle.manifest, variants=variants)
    card = bundle.model_card.decode()
    for heading, text in (("Files", _files(manifest)), ("Eight bits", note)):
        card = with_section(card, heading, text)
    name, data = manifest.model_card.file, card.encode()
    manifest = dataclasses.replace(manifest, model_card=FileRef(name, sha256_hex(data), len(data)))
    return write_bundle(target, manifest, {**files, name: data}, force=force)


def _files(manifest: Manifest) -> str:
    """The table of all graphs, as an export's model card has it."""
    variants = [ref for variant in manifest.variants.values() for ref in variant.stages.values()]
    graphs: list[Stage | FileRef] = [*manifest.stages.values(), *variants]
    rows = [f"| {one.file} | {one.size:,} | `{one.sha256}` |" for one in graphs]
    return "\n".join(["| file | bytes | sha256 |", "|---|---|---|", *rows])


def sizes(bundle: Bundle, result: Result) -> Mapping[str, int]:
    """Bytes of what a device reads with a variant, by stage: the variant's graph, or the bundle's own."""
    return {stage: len(result.graphs.get(stage, bundle.files[stage])) for stage in STAGES}


def with_section(card: str, heading: str, text: str) -> str:
    """A Markdown text with a section of that heading, in the place of the one it has, or at its end."""
    before, found, after = card.partition(f"## {heading}\n")
    rest = after.partition("\n## ") if found else ("", "", "")
    following = f"\n## {rest[2].lstrip()}" if rest[1] else ""
    return f"{before.rstrip()}\n\n## {heading}\n\n{text.rstrip()}\n{following}"
