"""Inference-only modules, one per graph of a bundle: everything a stage needs is inside, the host adds no arithmetic.

They are built on a copy of a trained `System`; the system itself stays as it is and serves as parity reference.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from export.attention import VoiceMatrices, split_matrices
from export.denoiser import PixelShuffle, Row, RowTable, lean_denoiser, replace
from runtime.bundle import takes_history
from training.checkpoint import System
from training.prior_shift import prior_shift
from training.sampling import StepTable


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

    @property
    def history(self) -> bool:
        """Whether a step hands its denoised latent on to the next, as `Manifest.history`."""
        return any(takes_history(table.solver) for table in self.tables.values())

    def column(self, name: str) -> Tensor:
        """One coefficient of every row, float32 [rows]."""
        return torch.from_numpy(np.concatenate([getattr(t, name) for t in self.tables.values()]).astype(np.float32))

    def __len__(self) -> int:
        return sum(self.tables)


class EncoderGraph(nn.Module):
    """pcm float32 [batch, 96000] (−1…1, 16 kHz mono) → condition float32 [batch, tokens, width].

    The condition is what the voice gives every step: the matrices of `export.attention`.
    """

    def __init__(self, system: System) -> None:
        super().__init__()
        self.speech_encoder = copy.deepcopy(system.speech_encoder)
        self.denoiser = copy.deepcopy(system.denoiser)
        self.matrices = VoiceMatrices(self.denoiser)

    def forward(self, pcm: Tensor) -> Tensor:
        return cast("Tensor", self.matrices(cast("Any", self.denoiser).tokens(self.speech_encoder(pcm))))


class _Step(nn.Module):
    """What the steps of both arms share: the lean denoiser and one table row per step with all of its constants."""

    COEFFICIENTS: tuple[str, ...] = ()  # columns of the rows, by the names of `StepTable`

    def __init__(self, system: System, rows: StepRows, extra: Mapping[str, Tensor]) -> None:
        """`extra`: further columns by name, float32 [rows]."""
        super().__init__()
        self.clip = float(system.config.diffusion.latent_clip)
        self.row = Row()
        self.denoiser, constants = lean_denoiser(
            system.denoiser, rows.column("timesteps"), rows.column("levels"), self.row
        )
        scalars = {name: rows.column(name) for name in self.COEFFICIENTS} | dict(extra)
        self.names, self.blocks = tuple(scalars), len(constants)
        self.rows = RowTable([*constants, *(column[:, None] for column in scalars.values())])

    def look_up(self, step: Tensor) -> dict[str, Tensor]:
        """The scalars of a row by name, float32 [1, 1, 1, 1]; the denoiser finds its own constants in `self.row`."""
        found = self.rows(step)
        self.row.constants = found[: self.blocks]
        return dict(zip(self.names, found[self.blocks :], strict=True))

    def network(self, x: Tensor, condition: Tensor) -> Tensor:
        """The prediction for x float32 [batch, C, h, w] in the row looked up last."""
        layers = cast("Any", split_matrices(condition, self.denoiser))
        return cast("Tensor", self.denoiser(x, torch.zeros(1), layers))


class DiffusionStep(_Step):
    """One whole denoising step of the diffusion arm; the coefficients of every table are constants, chosen by `step`.

    x = (x' − d)/s,  x0 = clip(P·x + Q·net(x'), ±latent_clip),  x_next = A·x + B·x0 + C·history,  x'_next = s·x_next + d
    with the prior shift x' = s·x + d of SCLDM eq. 2; a table's first row receives pure noise and shifts it first.
    Guidance (Ho and Salimans 2022): net = net(null) + guidance·(net(condition) − net(null)), as a doubled batch.

    latent, history float32 [batch, C, h, w], condition float32 [batch, tokens, width], step int64 [1], guidance
    float32 [1] → latent_next, history_next float32 [batch, C, h, w].
    """

    COEFFICIENTS = ("P", "Q", "A", "B", "C", "first")

    def __init__(self, system: System, rows: StepRows) -> None:
        scale, offset = prior_shift(system.prior_mode, system.prior_weight, system.prior.float())
        enter = {"enter_scale": 1 + rows.column("first") * (scale - 1)} if scale != 1 else {}
        super().__init__(system, rows, enter)
        self.scale, self.shifts = scale, bool(offset.any())
        self.register_buffer("offset", offset)
        with torch.no_grad():
            self.register_buffer("null", VoiceMatrices(system.denoiser)(system.denoiser.null_tokens))

    def forward(
        self, latent: Tensor, history: Tensor, condition: Tensor, step: Tensor, guidance: Tensor
    ) -> tuple[Tensor, Tensor]:
        row = self.look_up(step)
        shifted = self._enter(latent, row)
        x = self._without_prior(shifted)
        x0 = torch.clamp(row["P"] * x + row["Q"] * self._guided(shifted, condition, guidance), -self.clip, self.clip)
        return self._with_prior(row["A"] * x + row["B"] * x0 + row["C"] * history), x0

    def _enter(self, latent: Tensor, row: Mapping[str, Tensor]) -> Tensor:
        if self.scale != 1:
            latent = latent * row["enter_scale"]
        return latent + row["first"] * cast("Tensor", self.offset) if self.shifts else latent

    # The two leave out what does nothing, so that no needless node reaches the graph.
    def _with_prior(self, x: Tensor) -> Tensor:
        scaled = x if self.scale == 1 else x * self.scale
        return scaled + cast("Tensor", self.offset) if self.shifts else scaled

    def _without_prior(self, shifted: Tensor) -> Tensor:
        centred = shifted - cast("Tensor", self.offset) if self.shifts else shifted
        return centred if self.scale == 1 else centred * (1 / self.scale)

    def _guided(self, shifted: Tensor, condition: Tensor, guidance: Tensor) -> Tensor:
        batch, channels, height, width = shifted.shape
        null = cast("Tensor", self.null).expand(batch, -1, -1)
        both = self.network(torch.cat([shifted, shifted]), torch.cat([null, condition]))
        pair = both.reshape(2, batch, channels, height, width)
        return pair[0] + guidance * (pair[1] - pair[0])


class ShortcutStep(_Step):
    """One whole step of the shortcut arm: a single forward, because guidance is folded into the network.

    x0 = clip(P·x + Q·net(S·x), ±latent_clip),  x_next = A·x + B·x0;  a table's first row receives pure noise and adds
    the prior with its weight: x = noise + prior_weight·prior.

    latent float32 [batch, C, h, w], condition float32 [batch, tokens, width], step int64 [1] and, where the weight is
    free, prior_weight float32 [1] → latent_next float32 [batch, C, h, w].
    """

    COEFFICIENTS = ("P", "Q", "A", "B")

    def __init__(self, system: System, rows: StepRows) -> None:
        low, high = system.prior_weights
        weight = 1.0 if low < high else system.prior_weight
        injects, scales = weight != 0, bool((rows.column("S") != 1).any())
        super().__init__(
            system, rows, {name: rows.column(name) for name, used in (("first", injects), ("S", scales)) if used}
        )
        self.injects, self.scales = injects, scales
        self.register_buffer("prior", weight * system.prior.float().unsqueeze(0))

    def forward(self, latent: Tensor, condition: Tensor, step: Tensor, prior_weight: Tensor | None = None) -> Tensor:
        row = self.look_up(step)
        x = latent
        if self.injects:
            share = row["first"] if prior_weight is None else row["first"] * prior_weight
            x = latent + share * cast("Tensor", self.prior)
        prediction = self.network(row["S"] * x if self.scales else x, condition)
        x0 = torch.clamp(row["P"] * x + row["Q"] * prediction, -self.clip, self.clip)
        return row["A"] * x + row["B"] * x0


def step_graph(system: System, rows: StepRows) -> nn.Module:
    """The step of the system's arm, its inputs and outputs in the order of the contract."""
    return (ShortcutStep if system.arm == "shortcut" else DiffusionStep)(system, rows)


class DecoderGraph(nn.Module):
    """latent float32 [batch, C, h, w] → image uint8 [batch, H, W, 3].

    Undoes the latent scale first, and the prior shift where the steps work on shifted latents.
    """

    def __init__(self, system: System) -> None:
        super().__init__()
        mode = "none" if system.arm == "shortcut" else system.prior_mode
        scale, offset = prior_shift(mode, system.prior_weight, system.prior.float())
        std, mean = system.latent_std.float()[:, None, None], system.latent_mean.float()[:, None, None]
        self.register_buffer("scale", (std / scale).unsqueeze(0))
        bias = mean - std * offset / scale if bool(offset.any()) else mean.unsqueeze(0)
        self.register_buffer("bias", bias)
        self.face_decoder = copy.deepcopy(system.face_decoder)
        replace(self.face_decoder, nn.PixelShuffle, PixelShuffle)

    def forward(self, latent: Tensor) -> Tensor:
        image = self.face_decoder(latent * cast("Tensor", self.scale) + cast("Tensor", self.bias))
        levels = torch.round(torch.clamp(image, -1, 1) * 127.5 + 127.5)
        # Cast last: TensorRT 8.6 knows uint8 only as the type of a network's output.
        return levels.permute(0, 2, 3, 1).to(torch.uint8)
