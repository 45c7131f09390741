"""The contract: what a bundle is. Export writes through these types, the runtime reads through them.

A bundle is a folder with `manifest.json`, one ONNX file per stage and a model card. Reading is strict, because a bundle
may come from anywhere: sizes and nesting are limited, unknown keys are refused at every level, file names are plain
names inside the folder, each file is read once, its size and sha256 are compared with the manifest, and only those very
bytes are handed to a backend. Weights live inside the ONNX files; external data is refused. Files the manifest does not
name are never opened, so they are ignored (a README or a file browser's leftovers do no harm).

Schema 3, tensors (`stage_tensors` is the definition):
- encoder: pcm float32 [batch, 96000] (−1..1, 16 kHz mono) → condition float32 [batch, tokens, width]
- unet, one whole denoising step: latent float32 [batch, C, h, w], condition, step int64 [1] (row of the tables)
  → latent_next. What a bundle lets its caller choose is an input more: guidance, prior_weight float32 [1]; an option
  whose range is one value is folded into the graph. DDPM's solvers (`specs.takes_history`) take and give history, the
  previous denoised latent [batch, C, h, w], zeros before the first step.
- decoder: latent float32 [batch, C, h, w] → image uint8 [batch, H, W, 3]

Variants (`runtime.variants`) are further files for the same stages, with the same tensors.

Schema 2 is schema 3 without variants. Schema 1 is read as schema 2: its prior has one weight (that of mode none is read
as 0) and enters at every step; its unets always have guidance and history, so one whose range of guidance is a single
value is refused.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path

from .bundle_files import bundle_folder, read_checked, read_limited, sha256_hex
from .errors import BundleInvalid, BundleVersion, StepsUnavailable
from .onnx_scan import refuse_external_data
from .specs import (
    DTYPES,
    INJECTIONS,
    MAX_STEPS,
    PRIOR_MODES,
    SAMPLE_RATE,
    SAMPLES,
    SOLVERS,
    AudioSpec,
    ConditionSpec,
    Dim,
    FileRef,
    GuidanceSpec,
    ImageSpec,
    LatentSpec,
    PriorSpec,
    Stage,
    StepTable,
    TensorSpec,
    key_names,
    takes_history,
)
from .strict_json import MAX_BYTES, Fields, as_integer, as_object, invalid, parse_object
from .variants import Variant, read_variants

SCHEMA_VERSION = 3
MANIFEST = "manifest.json"
STAGES = ("encoder", "unet", "decoder")
SYSTEMS = ("scldm",)
AUDIO = AudioSpec()

__all__ = [
    "DTYPES",
    "INJECTIONS",
    "MANIFEST",
    "MAX_STEPS",
    "PRIOR_MODES",
    "SAMPLES",
    "SAMPLE_RATE",
    "SCHEMA_VERSION",
    "SOLVERS",
    "STAGES",
    "SYSTEMS",
    "AudioSpec",
    "Bundle",
    "ConditionSpec",
    "Dim",
    "FileRef",
    "GuidanceSpec",
    "ImageSpec",
    "LatentSpec",
    "Manifest",
    "PriorSpec",
    "Stage",
    "StepTable",
    "TensorSpec",
    "Variant",
    "manifest_to_json",
    "parse_manifest",
    "read_bundle",
    "read_manifest",
    "sha256_hex",
    "stage_tensors",
    "takes_history",
    "verify_variants",
]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What the model is. Everything a caller may want instead is an option of `generate`, not a key here."""

    name: str
    generator: str
    licence: str
    training_data: str
    stages: Mapping[str, Stage]
    latent: LatentSpec
    image: ImageSpec
    condition: ConditionSpec
    prior: PriorSpec
    guidance: GuidanceSpec
    step_tables: Mapping[int, StepTable]
    default_steps: int
    model_card: FileRef
    variants: Mapping[str, Variant] = dataclasses.field(default_factory=dict)
    audio: AudioSpec = AUDIO
    system: str = "scldm"
    schema_version: int = SCHEMA_VERSION

    @property
    def history(self) -> bool:
        """Whether a step hands its denoised latent on to the next."""
        return any(takes_history(table.solver) for table in self.step_tables.values())

    def table(self, steps: int | None = None) -> StepTable:
        """The step table for `steps` (None: the default). Raises StepsUnavailable."""
        wanted = self.default_steps if steps is None else steps
        if wanted not in self.step_tables:
            known = ", ".join(str(n) for n in sorted(self.step_tables))
            raise StepsUnavailable(f"The bundle {self.name} has no table for {wanted} steps; choose one of {known}.")
        return self.step_tables[wanted]

    def to_json(self) -> dict[str, object]:
        """Plain dictionaries, lists, numbers and strings, ready for `json.dumps`."""
        value = dataclasses.asdict(self)
        value["step_tables"] = {str(steps): table for steps, table in value["step_tables"].items()}
        return value

    @classmethod
    def from_json(cls, value: object) -> Manifest:
        """Read and check a whole manifest. Raises BundleInvalid, or BundleVersion where the schema is newer."""
        root = as_object(value, "")
        version = _version(root)
        fields = Fields(root, "", [key for key in key_names(cls) if key != "variants" or version == SCHEMA_VERSION])
        if version < SCHEMA_VERSION:
            root = _as_schema_3(root, version)
        stages = Fields(root["stages"], "stages", STAGES)
        manifest = cls(
            name=fields.text("name", limit=64, pattern=r"[a-z0-9][a-z0-9._-]{0,63}"),
            generator=fields.text("generator", limit=128),
            licence=fields.text("licence", limit=2048),
            training_data=fields.text("training_data", limit=4096),
            stages={name: Stage.from_json(stages.values[name], f"stages.{name}") for name in STAGES},
            latent=LatentSpec.from_json(root["latent"], "latent"),
            image=ImageSpec.from_json(root["image"], "image"),
            condition=ConditionSpec.from_json(root["condition"], "condition"),
            prior=PriorSpec.from_json(root["prior"], "prior"),
            guidance=GuidanceSpec.from_json(root["guidance"], "guidance"),
            step_tables=_read_tables(root["step_tables"]),
            default_steps=fields.integer("default_steps", 1, MAX_STEPS),
            model_card=FileRef.from_json(root["model_card"], "model_card"),
            variants=read_variants(root["variants"], "variants", STAGES),
            audio=AudioSpec.from_json(root["audio"], "audio"),
            system=fields.choice("system", SYSTEMS),
        )
        if version == 1:
            _check_schema_1(manifest)
        _check_tensors(manifest)
        _check_tables(manifest)
        _check_file_names(manifest)
        return manifest


def stage_tensors(
    latent: LatentSpec,
    image: ImageSpec,
    condition: ConditionSpec,
    prior: PriorSpec,
    guidance: GuidanceSpec,
    *,
    history: bool,
) -> dict[str, tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]]:
    """The tensors of each stage, (inputs, outputs) in order: the definition of schema 2."""
    pcm = TensorSpec("pcm", "float32", ("batch", AUDIO.samples))
    tokens = TensorSpec("condition", "float32", ("batch", condition.tokens, condition.width))
    shape: tuple[Dim, ...] = ("batch", latent.channels, latent.height, latent.width)
    portrait = TensorSpec("image", "uint8", ("batch", image.height, image.width, 3))
    state = ("latent", "history") if history else ("latent",)
    options = [name for name, spec in (("guidance", guidance), ("prior_weight", prior)) if not spec.fixed]
    return {
        "encoder": ((pcm,), (tokens,)),
        "unet": (
            (
                *(TensorSpec(name, "float32", shape) for name in state),
                tokens,
                TensorSpec("step", "int64", (1,)),
                *(TensorSpec(name, "float32", (1,)) for name in options),
            ),
            tuple(TensorSpec(f"{name}_next", "float32", shape) for name in state),
        ),
        "decoder": ((TensorSpec("latent", "float32", shape),), (portrait,)),
    }


def _version(root: dict[str, object]) -> int:
    """First of all: a newer schema has keys that would otherwise be refused with a misleading message."""
    if "schema_version" not in root:
        raise invalid("schema_version", "missing")
    version = as_integer(root["schema_version"], "schema_version", 1, 1 << 31)
    if version > SCHEMA_VERSION:
        raise BundleVersion(
            f"manifest.json: the bundle has schema version {version}, this release reads 1 to {SCHEMA_VERSION}. "
            "Upgrade s2f-edge, or fetch a bundle written for this release."
        )
    return version


def _as_schema_3(root: dict[str, object], version: int) -> dict[str, object]:
    """A manifest of schema 1, whose prior is {mode, weight}, or of 2, which has no variants, in the words of 3."""
    if version == 2:
        return {**root, "variants": {}}
    prior = Fields(root["prior"], "prior", ("mode", "weight"))
    weight = prior.number("weight", 0.0, 1.0) if prior.values["mode"] != "none" else 0.0
    fixed = {"weight": weight, "min": weight, "max": weight, "inject": "every"}
    return {**root, "prior": {**prior.values, **fixed}, "variants": {}}


def _check_schema_1(manifest: Manifest) -> None:
    """What later schemas would take for an option folded in, or for a step without history, schema 1 does not know."""
    if manifest.guidance.fixed:
        raise invalid("guidance", "schema 1 knows no fixed guidance: min must be below max")
    for steps, table in manifest.step_tables.items():
        if not takes_history(table.solver):
            raise invalid(f"step_tables.{steps}.solver", f"schema 1 does not know {table.solver}")


def _read_tables(value: object) -> dict[int, StepTable]:
    tables: dict[int, StepTable] = {}
    items = as_object(value, "step_tables")
    if not 1 <= len(items) <= 64:
        raise invalid("step_tables", f"{len(items)} tables, 1 to 64 are allowed")
    for key, item in items.items():
        digits = key.isascii() and key.isdigit() and not key.startswith("0") and len(key) <= 4
        if not digits or int(key) > MAX_STEPS:
            raise invalid("step_tables", f"a key is not a number of steps in 1..{MAX_STEPS}")
        tables[int(key)] = StepTable.from_json(item, f"step_tables.{key}")
    return tables


def _check_tensors(manifest: Manifest) -> None:
    shapes = manifest.latent, manifest.image, manifest.condition
    expected = stage_tensors(*shapes, manifest.prior, manifest.guidance, history=manifest.history)
    for name, stage in manifest.stages.items():
        for side, wanted, found in zip(
            ("inputs", "outputs"), expected[name], (stage.inputs, stage.outputs), strict=True
        ):
            if found != wanted:
                raise invalid(f"stages.{name}.{side}", f"must be {_signature(wanted)}, are {_signature(found)}")


def _signature(tensors: tuple[TensorSpec, ...]) -> str:
    return "; ".join(f"{t.name} {t.dtype} [{', '.join(str(dim) for dim in t.shape)}]" for t in tensors) or "none"


def _check_tables(manifest: Manifest) -> None:
    """One timestep per step, rows of different tables apart, the default among the tables, one network for all."""
    end = 0
    for steps, table in sorted(manifest.step_tables.items(), key=lambda item: item[1].first_row):
        path = f"step_tables.{steps}"
        if len(table.timesteps) != steps:
            raise invalid(f"{path}.timesteps", f"{len(table.timesteps)} values for {steps} steps")
        if table.first_row < end:
            raise invalid(f"{path}.first_row", f"row {table.first_row} belongs to another table")
        end = table.first_row + steps
    if len({takes_history(table.solver) for table in manifest.step_tables.values()}) > 1:
        raise invalid("step_tables", "shortcut beside solvers of DDPM; no network serves both")
    if manifest.default_steps not in manifest.step_tables:
        raise invalid("default_steps", f"there is no step table for {manifest.default_steps}")


def _check_file_names(manifest: Manifest) -> None:
    """No file serves twice; compared without case, as some file systems do."""
    variants = [ref for variant in manifest.variants.values() for ref in variant.stages.values()]
    graphs: list[Stage | FileRef] = [*manifest.stages.values(), *variants]
    names = [one.file.lower() for one in (*graphs, manifest.model_card)]
    if len(set(names)) != len(names):
        raise invalid("stages", "two entries name the same file")


def parse_manifest(data: bytes) -> Manifest:
    """Bytes of manifest.json to a checked Manifest. Raises BundleInvalid or BundleVersion and nothing else."""
    return Manifest.from_json(parse_object(data))


def manifest_to_json(manifest: Manifest) -> bytes:
    """A Manifest to the bytes of manifest.json: UTF-8, sorted keys, indent 2, final newline; always the same bytes.

    What is written has passed the reader: export cannot write a bundle the runtime would refuse. Raises BundleInvalid.
    """
    try:
        text = json.dumps(manifest.to_json(), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
        data = text.encode("utf-8") + b"\n"
    except (TypeError, ValueError) as error:
        raise BundleInvalid(
            f"The manifest cannot be written as JSON: {error}. Use plain int, float and str values."
        ) from None
    parse_manifest(data)
    return data


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A verified bundle. `files`: stage name to ONNX bytes, of a variant where one was asked for; `identity`: sha256
    (hex) of manifest.json's bytes; `variant`: its family, if one was asked for.
    """

    path: Path
    manifest: Manifest
    identity: str
    files: Mapping[str, bytes] = dataclasses.field(repr=False)
    model_card: bytes = dataclasses.field(repr=False)
    variant: str | None = None

    def sha256_of(self, stage: str) -> str:
        """The sha256 (hex) of the file that `files` holds of a stage."""
        own: Stage | FileRef = self.manifest.stages[stage]
        return (own if self.variant is None else self.manifest.variants[self.variant].stages.get(stage, own)).sha256


def read_manifest(path: str | os.PathLike[str]) -> tuple[Manifest, str]:
    """Manifest and identity of a bundle folder, without reading its stages. Raises the BundleXxx errors."""
    data = read_limited(bundle_folder(path), MANIFEST, MAX_BYTES)
    return parse_manifest(data), sha256_hex(data)


def read_bundle(path: str | os.PathLike[str], variant: str | None = None) -> Bundle:
    """Read and verify a whole bundle; every file is opened once and its bytes are kept.

    `variant`: the family whose stages stand in for the bundle's own; only files that are used are read. Raises
    BundleNotFound (no folder, no manifest), BundleInvalid (contract broken, file or variant missing, external data),
    BundleTampered (size or sha256 differs), BundleVersion (newer schema).
    """
    folder = bundle_folder(path)
    manifest, identity = read_manifest(folder)
    card = read_checked(folder, manifest.model_card.file, manifest.model_card.sha256, manifest.model_card.size)
    refs: dict[str, Stage | FileRef] = dict(manifest.stages)
    if variant is not None:
        if variant not in manifest.variants:
            known = ", ".join(manifest.variants) or "none"
            raise BundleInvalid(
                f"The bundle {manifest.name} has no variant {variant} (it has {known}). Make one with s2f-calibrate."
            )
        refs.update(manifest.variants[variant].stages)
    files = {name: _read_graph(folder, ref) for name, ref in refs.items()}
    return Bundle(folder, manifest, identity, files, card, variant)


def verify_variants(bundle: Bundle) -> None:
    """Read and verify the files of all variants too, one after the other. Raises as `read_bundle`."""
    for variant in bundle.manifest.variants.values():
        for ref in variant.stages.values():
            _read_graph(bundle.path, ref)


def _read_graph(folder: Path, ref: Stage | FileRef) -> bytes:
    data = read_checked(folder, ref.file, ref.sha256, ref.size)
    refuse_external_data(data, ref.file)
    return data
