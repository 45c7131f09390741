"""What reads identity, sex, age and other attributes from portraits, without torch.

The weights are those of evaluation's judge (`training.evaluate.judge`), a small network that knows rendered heads of
the synthetic corpus and nothing else. Here they become an ONNX graph, so that calibration measures with the instrument
that evaluation measures with. The file is found beside this package, because importing `training` would import torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from runtime.backends import Settings
from runtime.backends.ort import open_session
from runtime.errors import CheckpointInvalid

SHIPPED = Path(__file__).resolve().parent.parent / "training" / "evaluate" / "judge.safetensors"
FORMAT = "s2f-judge/2"
SCALE = ".scale"  # ends the name of what a kernel in eight bits is to be multiplied with
SIZE = 128  # pixels; portraits of other sizes are resized
PATCH = 4
BLOCKS = 4  # of which the first keeps the size
CHUNK = 64

Weights = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Readings:
    """What the judge sees in n portraits: features float64 [n, F], male [n] (probability), age [n] in years, attributes
    [n, A] in the units of the corpus' table.
    """

    features: NDArray[np.float64]
    male: NDArray[np.float64]
    age: NDArray[np.float64]
    attributes: NDArray[np.float64]


class Judge:
    """The judge's graph in a session of one thread. `names`: of the attributes."""

    def __init__(self, weights: Weights, names: Sequence[str], mean: NDArray[Any], std: NDArray[Any]) -> None:
        self.names = tuple(names)
        self._mean, self._std = mean.astype(np.float64), std.astype(np.float64)
        self._session = open_session(graph(weights).SerializeToString(), Settings("cpu", 1), "the judge's graph")

    @classmethod
    def shipped(cls) -> Judge:
        """The judge that comes with the package. Raises CheckpointInvalid."""
        return cls.read_file(SHIPPED)

    @classmethod
    def read_file(cls, path: Path) -> Judge:
        """A judge's file, as `s2f-train judge` writes it. Raises CheckpointInvalid."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "np") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CheckpointInvalid(f"The judge {path} cannot be read: {error}. Install the package anew") from error
        if metadata.get("format") != FORMAT:
            raise CheckpointInvalid(f"{path} is not a {FORMAT} file; give one written by `s2f-train judge`")
        try:
            names = json.loads(metadata["attributes"])
            weights = {
                name.removeprefix("network."): value * tensors[name + SCALE] if name + SCALE in tensors else value
                for name, value in tensors.items()
            }
            return cls(weights, names, tensors["mean"], tensors["std"])
        except (KeyError, ValueError) as error:
            raise CheckpointInvalid(f"The judge {path} is not complete: {error}. Train it again") from error

    def read(self, portraits: NDArray[np.uint8]) -> Readings:
        """Readings of portraits uint8 [n, H, W, 3], n ≥ 1; those of another size are resized with antialiasing."""
        parts = [self._run(portraits[i : i + CHUNK]) for i in range(0, len(portraits), CHUNK)]
        features, raw = (np.concatenate(side).astype(np.float64) for side in zip(*parts, strict=True))
        values = raw[:, 1:] * self._std + self._mean
        return Readings(features, 1.0 / (1.0 + np.exp(-raw[:, 0])), values[:, 0], values[:, 1:])

    def _run(self, portraits: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        features, readings = self._session.run(None, {"image": resized(portraits)})
        return features, readings


def resized(portraits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Portraits uint8 [n, H, W, 3] at SIZE × SIZE."""
    if portraits.shape[1:3] == (SIZE, SIZE):
        return portraits
    from PIL import Image

    how = Image.Resampling.BILINEAR
    return np.stack([np.asarray(Image.fromarray(one).resize((SIZE, SIZE), how)) for one in portraits])


def graph(weights: Weights) -> ModelProto:
    """The judge as ONNX: image uint8 [n, 128, 128, 3] → features float32 [n, F], readings [n, 2 + A] (sex logit, age
    and attributes in deviations). Raises KeyError for a weight that is missing.
    """
    made = _Graph(weights)
    places = SIZE // PATCH
    x = made.node("Cast", "image", to=TensorProto.FLOAT)
    x = made.node("Sub", made.node("Div", x, made.constant(np.float32(127.5))), made.constant(np.float32(1)))
    x = made.node("Reshape", x, made.constant(np.array([-1, places, PATCH, places, PATCH, 3], np.int64)))
    x = made.node("Transpose", x, perm=[0, 5, 2, 4, 1, 3])  # torch's PixelUnshuffle: channel, then place in the patch
    x = made.node("Reshape", x, made.constant(np.array([-1, 3 * PATCH * PATCH, places, places], np.int64)))
    x = made.node("Relu", made.convolution(x, "trunk.1"))
    for index in range(BLOCKS):
        x = made.block(x, f"trunk.{3 + index}", halves=index > 0)
    x = made.node("Flatten", x, axis=1)
    x = made.linear(x, "project")
    mean, variance = weights["standardise.running_mean"], weights["standardise.running_var"]
    x = made.node("Sub", x, made.constant(mean))
    x = made.node("Div", x, made.constant(np.sqrt(variance + 1e-5)), result="features")
    made.linear(x, "heads", result="readings")
    return made.model()


class _Graph:
    """Nodes and constants of the judge as they come."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._nodes: list[NodeProto] = []
        self._constants: list[TensorProto] = []

    def constant(self, value: Any) -> str:
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, kind: str, *inputs: str, result: str = "", **attributes: Any) -> str:
        name = result or f"t{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def convolution(self, x: str, name: str) -> str:
        """A convolution and its batch norm in one; the image keeps its size."""
        norm = {part: self._weights[f"{name}.1.{part}"] for part in ("weight", "bias", "running_mean", "running_var")}
        scale = norm["weight"] / np.sqrt(norm["running_var"] + 1e-5)
        kernel = self._weights[f"{name}.0.weight"]
        numbers = kernel * scale[:, None, None, None], norm["bias"] - norm["running_mean"] * scale
        pad = kernel.shape[2] // 2
        return self.node("Conv", x, *(self.constant(value.astype(np.float32)) for value in numbers), pads=[pad] * 4)

    def block(self, x: str, name: str, *, halves: bool) -> str:
        """relu(skip(x) + conv(relu(conv(x)))), after halving the size of x where asked."""
        if halves:
            x = self.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
        skip = self.convolution(x, f"{name}.skip") if f"{name}.skip.0.weight" in self._weights else x
        inner = self.node("Relu", self.convolution(x, f"{name}.first"))
        return self.node("Relu", self.node("Add", skip, self.convolution(inner, f"{name}.second")))

    def linear(self, x: str, name: str, result: str = "") -> str:
        numbers = (self.constant(self._weights[f"{name}.{part}"]) for part in ("weight", "bias"))
        return self.node("Gemm", x, *numbers, transB=1, result=result)

    def model(self) -> ModelProto:
        image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", SIZE, SIZE, 3])
        outputs = [helper.make_empty_tensor_value_info(name) for name in ("features", "readings")]
        made = helper.make_graph(self._nodes, "judge", [image], outputs, self._constants)
        return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
