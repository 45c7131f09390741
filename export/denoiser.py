"""The denoiser rewritten for inference: the same numbers from fewer operators.

Parity holds all of it against training's own modules.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional

from export.attention import CrossAttention, SelfAttention, cross_attention_layers


@dataclass
class Row:
    """The constants of the step being computed, float32 [1, n, 1, 1] each, as the modules inside the UNet see them."""

    constants: tuple[Tensor, ...] = ()


class RowTable(nn.Module):
    """All that depends on the step alone, one table row per step: two operators look everything up."""

    def __init__(self, columns: Sequence[Tensor]) -> None:
        """`columns`: float32 [rows, n] each, of any n."""
        super().__init__()
        self.sizes = [column.shape[1] for column in columns]
        self.register_buffer("table", torch.cat(list(columns), dim=1)[:, :, None, None])

    def forward(self, step: Tensor) -> tuple[Tensor, ...]:
        """int64 [1] → float32 [1, n, 1, 1] for each of the columns."""
        row = cast("Tensor", self.table).index_select(0, step)
        return torch.split(row, self.sizes, dim=1)


def lean_denoiser(denoiser: nn.Module, timesteps: Tensor, levels: Tensor, row: Row) -> tuple[nn.Module, list[Tensor]]:
    """A copy of the denoiser for inference, and its columns of the row table, float32 [rows, channels].

    `timesteps`, `levels`: float32 [rows]. The copy takes the condition as `split_matrices` gives it, looks up
    its constants in `row`, where they begin at index 0, and needs neither timestep nor level.
    """
    columns = _time_projections(denoiser, timesteps, levels)
    lean = copy.deepcopy(denoiser)
    for index, layer in enumerate(cross_attention_layers(lean)):
        layer.set_processor(cast("Any", CrossAttention(index)))
    for module in lean.modules():
        if getattr(module, "attn1", None) is not None:
            cast("Any", module).attn1.set_processor(SelfAttention(cast("Any", module).attn1))
    replace(lean, nn.GroupNorm, GroupNorm)
    places = iter(range(len(columns)))
    replace(lean, ResnetBlock2D, lambda block: ResidualBlock(block, row, next(places)))
    return lean, columns


def _time_projections(denoiser: nn.Module, timesteps: Tensor, levels: Tensor) -> list[Tensor]:
    """What each residual block adds for its timestep and step size, for every row: float32 [rows, channels] per block.

    Exact, because both embeddings depend on nothing else; it removes them and their projections from the graph.
    """
    blocks: list[Any] = [module for module in denoiser.modules() if isinstance(module, ResnetBlock2D)]
    outputs: list[list[Tensor]] = [[] for _ in blocks]
    hooks = [
        block.time_emb_proj.register_forward_hook(_keeper(kept)) for block, kept in zip(blocks, outputs, strict=True)
    ]
    null = cast("Tensor", denoiser.null_tokens)
    unet = cast("Any", denoiser).unet
    x = torch.zeros(1, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    with torch.no_grad():
        for t, level in zip(timesteps, levels, strict=True):
            denoiser(x, t.reshape(1), null, level.reshape(1).long())
    for hook in hooks:
        hook.remove()
    return [torch.cat(kept) for kept in outputs]


def _keeper(kept: list[Tensor]) -> Callable[..., None]:
    def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
        kept.append(output.detach().clone())

    return keep


def replace(root: nn.Module, kind: type[nn.Module], make: Callable[[Any], nn.Module]) -> None:
    """Put `make(module)` in the place of every module of a kind below `root`, in the order of their registration."""
    for name, child in list(root.named_children()):
        if isinstance(child, kind):
            made = make(child)
            setattr(root, name, made)
            replace(made, kind, make)
        else:
            replace(child, kind, make)


class ResidualBlock(nn.Module):
    """diffusers' ResnetBlock2D with what it adds for the step taken from the row table."""

    def __init__(self, block: Any, row: Row, place: int) -> None:
        super().__init__()
        self.norm1, self.conv1, self.norm2, self.conv2 = block.norm1, block.conv1, block.norm2, block.conv2
        self.conv_shortcut = block.conv_shortcut
        self.row, self.place = row, place

    def forward(self, x: Tensor, embedding: object = None) -> Tensor:
        inner = self.conv1(functional.silu(self.norm1(x))) + self.row.constants[self.place]
        inner = self.conv2(functional.silu(self.norm2(inner)))
        return cast("Tensor", (x if self.conv_shortcut is None else self.conv_shortcut(x)) + inner)


class GroupNorm(nn.Module):
    """nn.GroupNorm whose scale and bias are one operator, a batch norm of mean 0 and variance 1, instead of two."""

    ones: Tensor
    zeros: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = norm.weight, norm.bias
        for name, value, size in (
            ("ones", 1.0, norm.num_groups),
            ("zeros", 0.0, norm.num_groups),
            ("mean", 0.0, norm.num_channels),
            ("variance", 0.5, norm.num_channels),
        ):
            self.register_buffer(name, torch.full((size,), value))

    def forward(self, x: Tensor) -> Tensor:
        grouped = x.reshape(x.shape[0], self.groups, -1)
        normal = functional.instance_norm(grouped, weight=self.ones, bias=self.zeros, eps=self.eps).reshape(x.shape)
        # variance 1/2 + epsilon 1/2 = 1 without rounding
        return functional.batch_norm(normal, self.mean, self.variance, self.weight, self.bias, eps=0.5)


class PixelShuffle(nn.Module):
    """nn.PixelShuffle as two transpositions of neighbouring axes: ONNX Runtime's DepthToSpace moves single numbers."""

    def __init__(self, shuffle: nn.PixelShuffle) -> None:
        super().__init__()
        self.factor = shuffle.upscale_factor

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        r, fewer = self.factor, channels // self.factor**2
        wide = x.reshape(batch, fewer * r, r, height * width).transpose(2, 3)
        tall = wide.reshape(batch, fewer, r, height, width * r).transpose(2, 3)
        return tall.reshape(batch, fewer, height * r, width * r)
