"""Inference-only modules, one per graph of a bundle: everything a stage needs is inside, the host adds no arithmetic.

They are built on a copy of a trained `System`; the system itself stays as it is and serves as parity reference.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from training.checkpoint import System
from training.prior_shift import prior_shift
from training.sampling import StepTable

COEFFICIENTS = ("P", "Q", "A", "B", "C", "first")


@dataclass(frozen=True)
class StepRows:
    """The step tables of all step counts one below the other; `first_row[n]` is where the table of n steps begins."""

    tables: Mapping[int, StepTable]
    first_row: Mapping[int, int]

    @classmethod
    def of(cls, tables: Mapping[int, StepTable]) -> StepRows:
        """Stack the tables by rising number of steps."""
        ordered = dict(sorted(tables.items()))
        starts = np.cumsum([0, *ordered])
        return cls(ordered, dict(zip(ordered, (int(s) for s in starts), strict=False)))

    def column(self, name: str) -> Tensor:
        """One coefficient of every row, float32 [rows]."""
        return torch.from_numpy(np.concatenate([getattr(t, name) for t in self.tables.values()]).astype(np.float32))

    def __len__(self) -> int:
        return sum(self.tables)


class EncoderGraph(nn.Module):
    """pcm float32 [batch, 96000] (−1…1, 16 kHz mono) → condition float32 [batch, tokens, width]."""

    def __init__(self, system: System) -> None:
        super().__init__()
        self.speech_encoder = copy.deepcopy(system.speech_encoder)
        self.denoiser = copy.deepcopy(system.denoiser)

    def forward(self, pcm: Tensor) -> Tensor:
        return cast("Tensor", cast("Any", self.denoiser).tokens(self.speech_encoder(pcm)))


class StepGraph(nn.Module):
    """One whole denoising step; the coefficients of every table are constants, chosen by `step`.

    x = (x' − d)/s,  x0 = clip(P·x + Q·net(x'), ±latent_clip),  x_next = A·x + B·x0 + C·history,  x'_next = s·x_next + d
    with the prior shift x' = s·x + d of SCLDM eq. 2; a table's first row receives pure noise and shifts it first.
    Guidance (Ho and Salimans 2022): net = net(null) + guidance·(net(condition) − net(null)), as a doubled batch.
    """

    def __init__(self, system: System, rows: StepRows) -> None:
        super().__init__()
        self.scale, offset = prior_shift(system.prior_mode, system.prior_weight, system.prior.float())
        self.shifts = bool(offset.any())
        self.register_buffer("offset", offset)
        self.clip = float(system.config.diffusion.latent_clip)
        self.denoiser = copy.deepcopy(system.denoiser)
        for name in (*COEFFICIENTS, "timesteps"):
            self.register_buffer(name, rows.column(name))
        first = cast("Tensor", self.first)
        self.register_buffer("enter_scale", 1 + first * (self.scale - 1))
        self.row = _CurrentRow()
        _use_plain_attention(self.denoiser)
        _tabulate_time(
            self.denoiser,
            cast("Tensor", self.timesteps),
            self.row,
            cast("Tensor", system.denoiser.null_tokens),
            system.prior.shape,
        )

    def forward(
        self, latent: Tensor, history: Tensor, condition: Tensor, step: Tensor, guidance: Tensor
    ) -> tuple[Tensor, Tensor]:
        P, Q, A, B, C, first = (cast("Tensor", getattr(self, name)).index_select(0, step) for name in COEFFICIENTS)
        shifted = self._enter(latent, first, step)
        x = self._without_prior(shifted)
        x0 = torch.clamp(P * x + Q * self._network(shifted, condition, step, guidance), -self.clip, self.clip)
        return self._with_prior(A * x + B * x0 + C * history), x0

    def _enter(self, latent: Tensor, first: Tensor, step: Tensor) -> Tensor:
        if self.scale != 1:
            latent = latent * cast("Tensor", self.enter_scale).index_select(0, step)
        return latent + first * cast("Tensor", self.offset) if self.shifts else latent

    # The two leave out what does nothing, so that no needless node reaches the graph.
    def _with_prior(self, x: Tensor) -> Tensor:
        scaled = x if self.scale == 1 else x * self.scale
        return scaled + cast("Tensor", self.offset) if self.shifts else scaled

    def _without_prior(self, shifted: Tensor) -> Tensor:
        centred = shifted - cast("Tensor", self.offset) if self.shifts else shifted
        return centred if self.scale == 1 else centred * (1 / self.scale)

    def _network(self, shifted: Tensor, condition: Tensor, step: Tensor, guidance: Tensor) -> Tensor:
        batch, channels, height, width = shifted.shape
        null = cast("Tensor", self.denoiser.null_tokens).expand(batch, -1, -1)
        times = cast("Tensor", self.timesteps).index_select(0, step).expand(2 * batch)
        with self.row.set(step):
            both = self.denoiser(torch.cat([shifted, shifted]), times, torch.cat([null, condition]))
        pair = both.reshape(2, batch, channels, height, width)
        return cast("Tensor", pair[0] + guidance * (pair[1] - pair[0]))


class DecoderGraph(nn.Module):
    """latent float32 [batch, C, h, w] → image uint8 [batch, H, W, 3]; undoes prior shift and latent scale first."""

    def __init__(self, system: System) -> None:
        super().__init__()
        scale, offset = prior_shift(system.prior_mode, system.prior_weight, system.prior.float())
        std, mean = system.latent_std.float()[:, None, None], system.latent_mean.float()[:, None, None]
        self.register_buffer("scale", (std / scale).unsqueeze(0))
        self.register_buffer("bias", mean - std * offset / scale)
        self.face_decoder = copy.deepcopy(system.face_decoder)

    def forward(self, latent: Tensor) -> Tensor:
        image = self.face_decoder(latent * cast("Tensor", self.scale) + cast("Tensor", self.bias))
        levels = torch.round(torch.clamp(image, -1, 1) * 127.5 + 127.5)
        # Cast last: TensorRT 8.6 knows uint8 only as the type of a network's output.
        return levels.permute(0, 2, 3, 1).to(torch.uint8)


class _CurrentRow:
    """The table row of the step being computed, seen by the modules inside the UNet that look up their constants."""

    def __init__(self) -> None:
        self.step: Tensor | None = None

    @contextmanager
    def set(self, step: Tensor) -> Iterator[None]:
        self.step = step
        try:
            yield
        finally:
            self.step = None


class _TimeTable(nn.Module):
    """Stands in for a projection of the time embedding: its output for each table row, float32 [rows, channels]."""

    def __init__(self, table: Tensor, row: _CurrentRow) -> None:
        super().__init__()
        self.register_buffer("table", table)
        self.row = row

    def forward(self, embedding: Tensor) -> Tensor:
        step = torch.zeros(1, dtype=torch.int64) if self.row.step is None else self.row.step
        return cast("Tensor", self.table).index_select(0, step)


def _tabulate_time(denoiser: nn.Module, timesteps: Tensor, row: _CurrentRow, null: Tensor, shape: torch.Size) -> None:
    """Replace every time projection of diffusers' residual blocks by its outputs at the tables' timesteps.

    Exact, because they depend on the timestep alone; it removes the time MLP and its weights from the graph. A denoiser
    without such blocks keeps its own time embedding.
    """
    owners: list[Any] = [m for m in denoiser.modules() if isinstance(getattr(m, "time_emb_proj", None), nn.Linear)]
    outputs: dict[int, list[Tensor]] = {i: [] for i in range(len(owners))}
    hooks = [owner.time_emb_proj.register_forward_hook(_keeper(outputs[i])) for i, owner in enumerate(owners)]
    with torch.no_grad():
        for t in timesteps if owners else ():
            denoiser(torch.zeros(1, *shape), t.reshape(1), null)
    for i, (owner, hook) in enumerate(zip(owners, hooks, strict=True)):
        hook.remove()
        owner.time_emb_proj = _TimeTable(torch.cat(outputs[i]), row)


def _keeper(kept: list[Tensor]) -> Callable[..., None]:
    def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
        kept.append(output.detach().clone())

    return keep


def _use_plain_attention(denoiser: nn.Module) -> None:
    """Attention as MatMul and Softmax: opset 17 has no fused form; heads reshaped without shape arithmetic."""
    from diffusers.models.attention_processor import Attention

    for module in denoiser.modules():
        if not isinstance(module, Attention):
            continue
        extras = (module.spatial_norm, module.group_norm, module.norm_cross, module.norm_q, module.norm_k)
        simple = (
            all(extra is None for extra in extras)
            and not module.residual_connection
            and module.rescale_output_factor == 1
        )
        module.set_processor(cast("Any", _PlainAttention()) if simple else _stock_attention())


def _stock_attention() -> Any:
    from diffusers.models.attention_processor import AttnProcessor

    return AttnProcessor()


class _PlainAttention:
    """softmax(Q K^T / sqrt(d)) V over [batch, length, channels] (SCLDM eq. 5), heads kept as an axis of their own."""

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.to_q(hidden_states).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        key = attn.to_k(context).unflatten(2, (attn.heads, -1)).permute(0, 2, 3, 1)
        value = attn.to_v(context).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        mixed = torch.matmul(torch.softmax(torch.matmul(query, key) * attn.scale, dim=-1), value)
        return cast("Tensor", attn.to_out[0](mixed.transpose(1, 2).flatten(2)))
