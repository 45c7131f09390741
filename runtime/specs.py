"""The parts of a manifest, one frozen dataclass each; `runtime.bundle` puts them together and offers them to others.

Each `from_json(value, path)` reads one JSON object strictly: exactly its keys, checked types and ranges; it raises
BundleInvalid naming the path of what it refuses.
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import TypeAlias

from .bundle_files import MAX_CARD_BYTES, MAX_STAGE_BYTES
from .strict_json import Fields, as_integer, as_number, invalid

PRIOR_MODES = ("add", "interpolate", "subtract", "none")
INJECTIONS = ("every", "start")
SOLVERS = ("ddim", "dpmpp_2m", "shortcut")
DTYPES = ("float32", "int64", "uint8")
SAMPLE_RATE = 16000
SAMPLES = 96000
MAX_STEPS = 1000

Dim: TypeAlias = "int | str"


def takes_history(solver: str) -> bool:
    """Whether the step graph of this solver takes and gives the previous denoised latent.

    DDPM's solvers do, also ddim, which has no use for it: one graph serves both. A shortcut step needs the latent only.
    """
    return solver != "shortcut"


def key_names(cls: type) -> list[str]:
    """The JSON keys of a dataclass: its field names."""
    return [field.name for field in dataclasses.fields(cls)]


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One named tensor of a graph. The first entry of `shape` may be the string "batch", all others are sizes."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    @classmethod
    def from_json(cls, value: object, path: str) -> TensorSpec:
        """Read {name, dtype, shape}."""
        fields = Fields(value, path, key_names(cls))
        shape: list[Dim] = []
        for index, dim in enumerate(fields.array("shape", 8)):
            if index == 0 and dim == "batch":
                shape.append("batch")
            else:
                shape.append(as_integer(dim, f"{path}.shape[{index}]", 1, 1 << 24))
        name = fields.text("name", limit=64, pattern=r"[a-z][a-z0-9_]*")
        return cls(name, fields.choice("dtype", DTYPES), tuple(shape))


@dataclasses.dataclass(frozen=True)
class FileRef:
    """A file of the bundle: a plain name, its sha256 (64 lower-case hex digits) and its size in bytes."""

    file: str
    sha256: str
    size: int

    @classmethod
    def from_json(cls, value: object, path: str) -> FileRef:
        """Read {file, sha256, size} of the model card."""
        return cls.read(Fields(value, path, key_names(cls)), ".md", MAX_CARD_BYTES)

    @classmethod
    def read(cls, fields: Fields, suffix: str, limit: int) -> FileRef:
        """Read file, sha256 and size of an object that may hold more; `limit`: of the size, in bytes."""
        # Plain ASCII names with one known suffix: no separator, no "..", no hidden file.
        name = fields.text("file", limit=128, pattern=r"[A-Za-z0-9][A-Za-z0-9._-]*" + "[.]" + suffix[1:])
        return FileRef(name, fields.text("sha256", limit=64, pattern="[0-9a-f]{64}"), fields.integer("size", 1, limit))


@dataclasses.dataclass(frozen=True)
class Stage:
    """One graph: its file and its tensors, in the order of `stage_tensors`."""

    file: str
    sha256: str
    size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @classmethod
    def from_json(cls, value: object, path: str) -> Stage:
        """Read {file, sha256, size, inputs, outputs}."""
        fields = Fields(value, path, key_names(cls))
        ref = FileRef.read(fields, ".onnx", MAX_STAGE_BYTES)
        sides = [
            tuple(TensorSpec.from_json(item, f"{path}.{side}[{i}]") for i, item in enumerate(fields.array(side, 16)))
            for side in ("inputs", "outputs")
        ]
        return cls(ref.file, ref.sha256, ref.size, sides[0], sides[1])


@dataclasses.dataclass(frozen=True)
class AudioSpec:
    """The audio front end: `samples` mono samples at `sample_rate` Hz; so far always 96000 at 16000, six seconds."""

    sample_rate: int = SAMPLE_RATE
    samples: int = SAMPLES

    @classmethod
    def from_json(cls, value: object, path: str) -> AudioSpec:
        """Read {sample_rate, samples}."""
        fields = Fields(value, path, key_names(cls))
        rate = fields.integer("sample_rate", SAMPLE_RATE, SAMPLE_RATE)
        return cls(rate, fields.integer("samples", SAMPLES, SAMPLES))


@dataclasses.dataclass(frozen=True)
class LatentSpec:
    """Shape of one latent: [channels, height, width]."""

    channels: int
    height: int
    width: int

    @classmethod
    def from_json(cls, value: object, path: str) -> LatentSpec:
        """Read {channels, height, width}."""
        fields = Fields(value, path, key_names(cls))
        return cls(
            fields.integer("channels", 1, 1024), fields.integer("height", 1, 512), fields.integer("width", 1, 512)
        )


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """Size of the portrait in pixels."""

    height: int
    width: int

    @classmethod
    def from_json(cls, value: object, path: str) -> ImageSpec:
        """Read {height, width}."""
        fields = Fields(value, path, key_names(cls))
        return cls(fields.integer("height", 1, 4096), fields.integer("width", 1, 4096))


@dataclasses.dataclass(frozen=True)
class ConditionSpec:
    """Shape of the condition, all that a step knows of the voice: [tokens, width].

    Opaque to everybody but the graphs: export lays down there what all cross-attention layers make of the voice, so
    that no step computes it again.
    """

    tokens: int
    width: int

    @classmethod
    def from_json(cls, value: object, path: str) -> ConditionSpec:
        """Read {tokens, width}."""
        fields = Fields(value, path, key_names(cls))
        return cls(fields.integer("tokens", 1, 4096), fields.integer("width", 1, 1 << 18))


@dataclasses.dataclass(frozen=True)
class PriorSpec:
    """The statistical face prior (SCLDM eq. 2): its default weight, and the range in 0..1 a caller may choose from.

    `inject`: where the graphs let it in. "every": each step works on the latent with the prior, and the decoder takes
    it out again. "start": it lies in the noise that the first step starts from. A range needs mode "add" at the start.
    """

    mode: str
    weight: float
    min: float
    max: float
    inject: str

    @property
    def fixed(self) -> bool:
        """Folded into the graphs: the unet has no input for the weight."""
        return self.min == self.max

    @classmethod
    def from_json(cls, value: object, path: str) -> PriorSpec:
        """Read {mode, weight, min, max, inject} with 0 ≤ min ≤ weight ≤ max ≤ 1."""
        fields = Fields(value, path, key_names(cls))
        mode, inject = fields.choice("mode", PRIOR_MODES), fields.choice("inject", INJECTIONS)
        weight, low, high = _within_range(fields, "weight", 1.0)
        if inject == "start" and mode != "add":
            raise invalid(f"{path}.inject", f"start needs mode add, not {mode}")
        if inject == "every" and low < high:
            raise invalid(path, "a range of weights needs inject start")
        if mode == "none" and weight != 0:
            raise invalid(f"{path}.weight", f"{weight:g} of no prior; mode none has weight 0")
        return cls(mode, weight, low, high, inject)


@dataclasses.dataclass(frozen=True)
class GuidanceSpec:
    """Classifier-free guidance scale: the default and the range a caller may choose from."""

    default: float
    min: float
    max: float

    @property
    def fixed(self) -> bool:
        """Folded into the graphs: the unet has no input for the guidance."""
        return self.min == self.max

    @classmethod
    def from_json(cls, value: object, path: str) -> GuidanceSpec:
        """Read {default, min, max} with 0 ≤ min ≤ default ≤ max ≤ 100."""
        return cls(*_within_range(Fields(value, path, key_names(cls)), "default", 100.0))


def _within_range(fields: Fields, key: str, most: float) -> tuple[float, float, float]:
    """The value of `key`, min and max with 0 ≤ min ≤ value ≤ max ≤ most."""
    low, high = fields.number("min", 0.0, most), fields.number("max", 0.0, most)
    if low > high:
        raise invalid(fields.path, f"min {low} is above max {high}")
    return fields.number(key, low, high), low, high


@dataclasses.dataclass(frozen=True)
class StepTable:
    """One schedule: step i uses row first_row + i of the tables inside the unet graph; timesteps fall strictly."""

    solver: str
    first_row: int
    timesteps: tuple[float, ...]

    @classmethod
    def from_json(cls, value: object, path: str) -> StepTable:
        """Read {solver, first_row, timesteps}."""
        fields = Fields(value, path, key_names(cls))
        items = fields.array("timesteps", MAX_STEPS)
        times = tuple(as_number(item, f"{path}.timesteps[{i}]", 0.0, 1e6) for i, item in enumerate(items))
        if any(after >= before for before, after in pairwise(times)):
            raise invalid(f"{path}.timesteps", "does not fall strictly")
        return cls(fields.choice("solver", SOLVERS), fields.integer("first_row", 0, 1_000_000), times)
