"""A bundle's networks as PyTorch modules with its own weights, written as PyTorch runs them best in eager mode.

The modules are those the graphs are exported from (`export.modules`); the weights are read out of the ONNX files, whose
initialisers carry the parameters' names. What the exporter spells out for other runtimes is put back into PyTorch's own
operators: group norm, scaled dot-product attention, pixel shuffle; a batch norm after a convolution is folded into it,
as `torch.nn.utils.fusion` does. The solver's arithmetic is float32 whatever the networks are.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import onnx
import torch
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from benchmarks.gpu.torch_baseline import random_system
from export import denoiser as lean
from export import fuse
from export.modules import DecoderGraph, EncoderGraph, StepRows, step_graph
from runtime.bundle import Bundle
from runtime.errors import BundleInvalid
from training.arms import ARMS


class Networks(nn.Module):
    """pcm float32 [batch, 96000], noise float32 [batch, C, h, w] → image uint8 [batch, H, W, 3], in so many steps."""

    def __init__(self, bundle: Bundle, network: str, steps: int, kind: torch.dtype = torch.float32) -> None:
        """`network`: the configuration of the bundle (a shipped name or a TOML file); `kind`: what the networks compute
        in. Raises BundleInvalid where the bundle is not of that configuration, StepsUnavailable."""
        super().__init__()
        system, manifest = random_system(network), bundle.manifest
        solver = ARMS[system.arm].solvers[0]
        rows = StepRows.of({count: system.table(count, solver) for count in manifest.step_tables})
        self.encoder, self.step, self.decoder = EncoderGraph(system), step_graph(system, rows), DecoderGraph(system)
        for stage, module in (("encoder", self.encoder), ("unet", self.step), ("decoder", self.decoder)):
            fill(module, onnx.load_from_string(bundle.files[stage]))
        self.kind, self.history = kind, manifest.history
        nativise(self)
        lower(self, kind)
        first = manifest.table(steps).first_row
        self.register_buffer("indices", torch.arange(first, first + steps)[:, None])
        self.options = [torch.tensor([value]) for value in _free_options(bundle)]
        self.requires_grad_(False).eval()

    def forward(self, pcm: Tensor, noise: Tensor) -> Tensor:
        condition, latent = self.encoder(pcm), noise
        history = torch.zeros_like(noise)
        for index in cast("Tensor", self.indices).unbind():
            if self.history:
                latent, history = self.step(latent, history, condition, index, *self.options)
            else:
                latent = self.step(latent, condition, index, *self.options)
        return self.decoder(latent)  # type: ignore[no-any-return]


def fill(module: nn.Module, graph: ModelProto) -> None:
    """Give a module the weights of the graph that was exported from it.

    Matrix products keep their parameter's name in that of the node alone; their matrix is transposed. Raises
    BundleInvalid where a weight of the graph finds no place of its shape.
    """
    places = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, value in weights(graph).items():
        place = places.get(name)
        if place is None or place.shape != value.shape:
            raise BundleInvalid(f"The weight {name} {list(value.shape)} has no place in it. Name its --network.")
        with torch.no_grad():
            place.copy_(torch.from_numpy(value.astype(np.float32)))


def weights(graph: ModelProto) -> dict[str, np.ndarray[Any, Any]]:
    """The graph's weights by their parameters' names, widened in place; the constants of the exporter are left out."""
    fuse.widen_weights(graph)
    stored = {tensor.name: tensor for tensor in graph.graph.initializer}
    found = {
        name: numpy_helper.to_array(tensor)
        for name, tensor in stored.items()
        if tensor.data_type == onnx.TensorProto.FLOAT and not name.startswith(("/", "onnx"))
    }
    for node in graph.graph.node:
        for name in node.input:
            if name.startswith("onnx::MatMul") and name in stored:
                owner = node.name.strip("/").rpartition("/")[0].replace("/", ".")
                found[f"{owner}.weight"] = numpy_helper.to_array(stored[name]).T
    return found


def nativise(module: nn.Module) -> None:
    """Put PyTorch's own operators in the place of those written for other runtimes."""
    lean.replace(module, lean.GroupNorm, _group_norm)
    lean.replace(module, lean.PixelShuffle, lambda shuffle: nn.PixelShuffle(shuffle.factor))
    for layer in [m for m in module.modules() if hasattr(m, "to_qkv")]:
        cast("Any", layer).set_processor(_SelfAttention())
    for sequence in [m for m in module.modules() if isinstance(m, nn.Sequential)]:
        _fold_norms(sequence)


def lower(networks: Networks, kind: torch.dtype) -> None:
    """Run the networks in `kind`; the front end, the solver's arithmetic and the last rounding stay float32."""
    if kind is torch.float32:
        return
    speech: Any = networks.encoder.speech_encoder
    frontend = speech.frontend
    networks.encoder.to(kind)
    speech.frontend = _Casting(frontend.float(), kind)
    step: Any = networks.step
    step.denoiser = _LowDenoiser(step.denoiser.to(kind), step.row, kind)
    decoder: Any = networks.decoder
    decoder.face_decoder = _Casting(_Lowered(decoder.face_decoder.to(kind), kind), torch.float32)


class _Casting(nn.Module):
    """A module whose result is cast."""

    def __init__(self, module: nn.Module, kind: torch.dtype) -> None:
        super().__init__()
        self.module, self.kind = module, kind

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.module(x)).to(self.kind)


class _Lowered(nn.Module):
    """A module whose input is cast."""

    def __init__(self, module: nn.Module, kind: torch.dtype) -> None:
        super().__init__()
        self.module, self.kind = module, kind

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.module(x.to(self.kind)))


class _LowDenoiser(nn.Module):
    """The denoiser in another type, between float32 latents. `row` holds the constants it adds for the step."""

    def __init__(self, module: nn.Module, row: lean.Row, kind: torch.dtype) -> None:
        super().__init__()
        self.module, self.row, self.kind = module, row, kind

    def forward(self, x: Tensor, t: Tensor, layers: list[tuple[Tensor, Tensor]]) -> Tensor:
        self.row.constants = tuple(value.to(self.kind) for value in self.row.constants)
        low = [(k.to(self.kind), v.to(self.kind)) for k, v in layers]
        return cast("Tensor", self.module(x.to(self.kind), t.to(self.kind), low)).float()


def _group_norm(norm: Any) -> nn.GroupNorm:
    made = nn.GroupNorm(norm.groups, len(norm.weight), norm.eps)
    made.weight, made.bias = norm.weight, norm.bias
    return made


class _SelfAttention:
    """The processor of self-attention: one product for all three projections, then PyTorch's fused attention."""

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        projected = functional.linear(hidden_states, attn.to_qkv.t())
        heads = projected.unflatten(2, (3, attn.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(heads[0], heads[1], heads[2])
        return cast("Tensor", attn.to_out[0](mixed.transpose(1, 2).flatten(2)))


def _fold_norms(sequence: nn.Sequential) -> None:
    """A batch norm right after a convolution becomes part of it."""
    for index in range(len(sequence) - 1):
        conv, norm = sequence[index], sequence[index + 1]
        if isinstance(conv, nn.Conv1d | nn.Conv2d) and isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            sequence[index] = fuse_conv_bn_eval(conv.eval(), norm.eval())
            sequence[index + 1] = nn.Identity()


def _free_options(bundle: Bundle) -> list[float]:
    """The defaults of what the bundle's caller may choose, in the order of the step's inputs."""
    manifest = bundle.manifest
    specs = ((manifest.guidance, manifest.guidance.default), (manifest.prior, manifest.prior.weight))
    return [value for spec, value in specs if not spec.fixed]
