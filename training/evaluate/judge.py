"""The judge: a small network that reads sex, age and every other number of the corpus' table from a portrait.

It is the measuring instrument of evaluation, the same on both sides of every comparison. It knows rendered heads of the
synthetic corpus and nothing else, so its numbers say something about portraits of that world only. `train_judge`
makes it; its file carries the data it was made from, its licence and how well it reads renders it has not seen.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from runtime.errors import CheckpointInvalid, InvalidArgument
from training.checkpoint import Origin, restore, write_tensors
from training.corpus.table import SHARE_COLUMNS, Identity, to_row

NAME = "s2f-judge-1"
FORMAT = "s2f-judge/2"
SCALE = ".scale"  # ends the name of what a kernel in eight bits is to be multiplied with
SIZE = 128  # pixels; other sizes are resized
FEATURES = 128
CHUNK = 64
WIDTHS = (32, 64, 128, 128)
NUMBERS = (*SHARE_COLUMNS, "skin_tone", "hair_r", "hair_g", "hair_b", "stubble")


class JudgeNetwork(nn.Module):
    """Portraits float32 [n, 3, 128, 128], −1…1, to features [n, 128] and readings [n, 2 + A].

    Readings: sex logit (positive: male), then age and A attributes in units of their deviation over the training
    renders. They are linear in the features, which have mean 0 and variance 1 over the training renders, so that two
    unrelated faces have a cosine near 0. A stem of 4×4 patches makes the network fast where it would cost most; the
    features see the last 4×4 places apart, because where things are in a face is half of what there is to read.
    """

    def __init__(self, attributes: int, dropout: float = 0.0) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.PixelUnshuffle(4), _Convolution(48, WIDTHS[0]), nn.ReLU()]
        layers.append(_Block(WIDTHS[0], WIDTHS[0], halves=False))
        layers += [_Block(a, b, halves=True) for a, b in itertools.pairwise(WIDTHS)]
        self.trunk = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(WIDTHS[-1] * (SIZE // 32) ** 2, FEATURES)
        self.standardise = nn.BatchNorm1d(FEATURES, affine=False)
        self.heads = nn.Linear(FEATURES, 2 + attributes)

    def features(self, portraits: Tensor) -> Tensor:
        places = self.dropout(self.trunk(portraits).flatten(1))
        return cast("Tensor", self.standardise(self.project(places).float()))

    def forward(self, portraits: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(portraits)
        return features, self.heads(features)


class _Convolution(nn.Sequential):
    """3×3 convolution and batch norm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))


class _Block(nn.Module):
    """relu(skip(x) + conv(relu(conv(x)))), after halving the size of x where asked."""

    def __init__(self, inputs: int, outputs: int, *, halves: bool) -> None:
        super().__init__()
        self.halves = halves
        self.first, self.second = _Convolution(inputs, outputs), _Convolution(outputs, outputs)
        self.skip: nn.Module = nn.Identity()
        if inputs != outputs:
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        x = avg_pool2d(x, 2) if self.halves else x
        return torch.relu(self.skip(x) + self.second(torch.relu(self.first(x))))


@dataclass(frozen=True)
class Readings:
    """What the judge sees in n portraits. Row i of each belongs to portrait i."""

    male: NDArray[np.float64]  # [n], probability
    age: NDArray[np.float64]  # [n], years
    attributes: NDArray[np.float64]  # [n, A], in the units of the table
    features: NDArray[np.float64]  # [n, 128]

    def __len__(self) -> int:
        return len(self.age)


@dataclass(frozen=True)
class Judge:
    """A trained judge. `mean`, `std`: float32 [1 + A] of age and attributes; `accuracy`: on renders it has not seen."""

    network: JudgeNetwork
    attributes: tuple[str, ...]
    mean: Tensor
    std: Tensor
    origin: Origin
    training: dict[str, Any]  # command, seed, steps
    accuracy: dict[str, Any]

    def read(self, portraits: NDArray[np.uint8]) -> Readings:
        """Readings of portraits uint8 [n, H, W, 3] of any size from 16 px. Raises InvalidArgument for anything else."""
        if (
            portraits.dtype != np.uint8
            or portraits.ndim != 4
            or portraits.shape[3] != 3
            or min(portraits.shape[1:3]) < 16
        ):
            raise InvalidArgument(f"portraits are uint8 [n, H, W, 3], not {portraits.dtype} {list(portraits.shape)}")
        outputs = [self._outputs(portraits[i : i + CHUNK]) for i in range(0, len(portraits), CHUNK)]
        features, readings = (torch.cat(parts).double() for parts in zip(*outputs, strict=True))
        values = (readings[:, 1:] * self.std + self.mean).numpy()
        return Readings(readings[:, 0].sigmoid().numpy(), values[:, 0], values[:, 1:], features.numpy())

    @torch.no_grad()
    def _outputs(self, portraits: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        return cast("tuple[Tensor, Tensor]", self.network(as_input(portraits)))


def as_input(portraits: NDArray[np.uint8]) -> Tensor:
    """uint8 [n, H, W, 3] to float32 [n, 3, 128, 128], −1…1; other sizes are resized with antialiasing."""
    pixels = torch.from_numpy(np.array(portraits)).permute(0, 3, 1, 2).float() / 127.5 - 1
    if pixels.shape[2:] != (SIZE, SIZE):
        pixels = interpolate(pixels, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
    return pixels


def attributes_of(identities: Sequence[Identity]) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """Names, and float32 [n, 1 + A]: age, then every other number that the table says of a face."""
    sliders = sorted({name for identity in identities for name in identity.face.sliders})
    names = ("age", *NUMBERS, *sliders)
    rows = [to_row(identity) for identity in identities]
    return names[1:], np.array([[float(row.get(name, 0.0)) for name in names] for row in rows], dtype=np.float32)


def save_judge(path: Path, judge: Judge) -> None:
    """One safetensors file, kernels in eight bits per channel, the rest in float16; OutputUnwritable says why not."""
    tensors = {f"network.{name}": value for name, value in judge.network.state_dict().items()}
    stored = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    for name, value in tensors.items():
        if value.ndim > 1:
            stored[name], stored[name + SCALE] = _eight_bits(value)
    metadata = {
        "format": FORMAT,
        "name": NAME,
        "attributes": json.dumps(judge.attributes),
        "origin": json.dumps(dataclasses.asdict(judge.origin)),
        "training": json.dumps(judge.training),
        "accuracy": json.dumps(judge.accuracy),
    }
    write_tensors(path, {**stored, "mean": judge.mean, "std": judge.std}, metadata)


def _eight_bits(value: Tensor) -> tuple[Tensor, Tensor]:
    """int8 −127…127 and float32 scales, one per row of the first axis."""
    scale = value.abs().flatten(1).amax(dim=1).clamp(min=1e-12) / 127
    scale = scale.reshape(-1, *[1] * (value.ndim - 1)).float()
    return (value / scale).round().to(torch.int8), scale


def shipped_judge() -> Path:
    """The judge inside the package."""
    return Path(str(resources.files("training.evaluate").joinpath("judge.safetensors")))


def load_judge(path: Path | None = None) -> Judge:
    """A judge's file, None for the one that is shipped. CheckpointInvalid where it is missing, damaged or no judge."""
    path = path or shipped_judge()
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
    except FileNotFoundError as error:
        raise CheckpointInvalid(f"no judge {path}; train one with `s2f-train judge`") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointInvalid(
            f"judge {path} cannot be read: {error}; train it again with `s2f-train judge`"
        ) from error
    if metadata.get("format") != FORMAT:
        raise CheckpointInvalid(f"{path} is not a {FORMAT} file; give one written by `s2f-train judge`")
    try:
        names = tuple(json.loads(metadata["attributes"]))
        origin = Origin(**json.loads(metadata["origin"]))
        training, accuracy = (json.loads(metadata[key]) for key in ("training", "accuracy"))
        mean, std = tensors.pop("mean"), tensors.pop("std")
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointInvalid(f"judge {path} has broken metadata ({error}); train it again") from error
    if mean.shape != (1 + len(names),) or std.shape != mean.shape:
        raise CheckpointInvalid(f"judge {path} has {len(mean)} scales for {len(names)} attributes; train it again")
    scales = {name.removesuffix(SCALE): tensors.pop(name) for name in list(tensors) if name.endswith(SCALE)}
    scaled = {name: value.float() * scales[name] if name in scales else value for name, value in tensors.items()}
    weights = {name.removeprefix("network."): v.float() if v.is_floating_point() else v for name, v in scaled.items()}
    network = restore(JudgeNetwork(len(names)), weights, "judge")
    return Judge(cast("JudgeNetwork", network), names, mean, std, origin, training, accuracy)
