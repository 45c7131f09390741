"""Attention in few operators, and the voice's part of it computed once for all steps.

Cross-attention to a short condition that stays the same from step to step is, per layer, two small matrices: with the
keys K = c W_k, queries x W_q and values V = c W_v of a head (SCLDM eq. 5),

    softmax(x W_q K^T / sqrt(d)) V W_o = softmax(x k^T) v      with  k = K W_q^T / sqrt(d),  v = V W_o

so that k and v, float32 [heads · tokens, channels] of all heads below each other, are all that a step needs to know of
the voice. The encoder graph computes them for every layer at once, once per voice; the step graph applies them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn


def cross_attention_layers(denoiser: nn.Module) -> list[Attention]:
    """The cross-attention of every transformer block, in the order of registration."""
    found = (getattr(module, "attn2", None) for module in denoiser.modules())
    return [layer for layer in found if isinstance(layer, Attention)]


class VoiceMatrices(nn.Module):
    """Condition tokens float32 [batch, T, W] → k and v of every cross-attention layer, float32 [batch, T, width].

    Layers of equal channels and heads are computed together. Row-major, their part of `width` holds the rows
    (k or v, layer, head, token) of `channels` numbers; `split_matrices` takes it apart again.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.groups = nn.ModuleList(_Group(layers) for layers in _grouped(cross_attention_layers(denoiser)))

    def forward(self, tokens: Tensor) -> Tensor:
        parts = [group(tokens) for group in self.groups]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


class _Group(nn.Module):
    """Layers of equal channels C and heads h."""

    def __init__(self, layers: Sequence[Attention]) -> None:
        super().__init__()
        self.rows, channels = 2 * len(layers) * layers[0].heads, _channels(layers[0])
        weights: list[Any] = [*(layer.to_k for layer in layers), *(layer.to_v for layer in layers)]
        to_query: list[Any] = [layer.to_q for layer in layers]
        to_out: list[Any] = [cast("Any", layer.to_out)[0] for layer in layers]
        outer = [*(m.weight for m in to_query), *(m.weight.t() for m in to_out)]  # [h · d, C]
        scales = [layer.scale for layer in layers for _ in range(layer.heads)]
        self.register_buffer("inner", torch.cat([m.weight.detach() for m in weights]).t().contiguous())
        self.register_buffer("outer", torch.cat([w.detach() for w in outer]).reshape(self.rows, -1, channels))
        self.register_buffer("scale", torch.tensor(scales + [1.0] * len(scales)).reshape(-1, 1, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, T, W] → [batch, T, 2 · layers · h · C]"""
        batch, count, _ = tokens.shape
        inner = torch.matmul(tokens, cast("Tensor", self.inner)).reshape(batch, count, self.rows, -1)
        matrices = torch.matmul(inner.transpose(1, 2), cast("Tensor", self.outer)) * cast("Tensor", self.scale)
        return matrices.reshape(batch, count, -1)


def split_matrices(condition: Tensor, denoiser: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """What `VoiceMatrices` made → (k, v) of every layer in order, float32 [batch, heads · tokens, channels] each."""
    layers = cross_attention_layers(denoiser)
    batch, tokens, _ = condition.shape
    groups = _grouped(layers)
    widths = [2 * len(group) * group[0].heads * _channels(group[0]) for group in groups]
    parts = torch.split(condition, widths, dim=2) if len(groups) > 1 else (condition,)
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for group, part in zip(groups, parts, strict=True):
        rows = torch.split(part.reshape(batch, -1, _channels(group[0])), group[0].heads * tokens, dim=1)
        for layer, k, v in zip(group, rows[: len(group)], rows[len(group) :], strict=True):
            found[id(layer)] = k, v
    return [found[id(layer)] for layer in layers]


def _grouped(layers: Sequence[Attention]) -> list[list[Attention]]:
    groups: dict[tuple[int, int], list[Attention]] = {}
    for layer in layers:
        groups.setdefault((_channels(layer), layer.heads), []).append(layer)
    return list(groups.values())


def _channels(layer: Attention) -> int:
    return int(layer.to_q.in_features)


class CrossAttention:
    """The processor of the cross-attention layer number `index`: softmax(x k^T) v per head, and the output's bias."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, *_: Any, **__: Any
    ) -> Tensor:
        """`encoder_hidden_states`: the list of `split_matrices`."""
        k, v = encoder_hidden_states[self.index]
        logits = torch.matmul(hidden_states, k.transpose(1, 2))
        per_head = logits.reshape(*logits.shape[:2], attn.heads, -1)
        weights = torch.softmax(per_head, dim=-1).reshape(logits.shape)
        return cast("Tensor", torch.matmul(weights, v) + attn.to_out[0].bias)


class SelfAttention:
    """The processor softmax(Q K^T / sqrt(d)) V over [batch, length, channels], its three projections as one."""

    def __init__(self, attn: Any) -> None:
        weights = [projection.weight.detach() for projection in (attn.to_q, attn.to_k, attn.to_v)]
        attn.register_buffer("to_qkv", torch.cat(weights).t().contiguous())

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        projected = torch.matmul(hidden_states, attn.to_qkv)
        heads = projected.reshape(*projected.shape[:2], 3 * attn.heads, -1).transpose(1, 2)
        query, key, value = torch.split(heads, attn.heads, dim=1)
        weights = torch.softmax(torch.matmul(query, key.transpose(2, 3)) * attn.scale, dim=-1)
        return cast("Tensor", attn.to_out[0](torch.matmul(weights, value).transpose(1, 2).flatten(2)))
