"""A trained system in miniature: random weights, every part of the export contract, small enough for seconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from export.modules import StepRows
from export.pipeline import contract_of
from training.arms import GUIDANCE
from training.checkpoint import Origin, System
from training.config import config_from_dict
from training.sampling import alphas_cumprod

torch.set_num_threads(1)  # toys gain nothing from threads, and spinning ones cost a busy machine dearly

CHANNELS, SIZE, TOKENS, WIDTH, EMBEDDING, LEVELS = 4, 8, 3, 16, 12, 4


class ToySpeechEncoder(nn.Module):
    """Strided convolution, batch norm, mean over time."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(1, 24, 400, 160), nn.BatchNorm1d(24), nn.ReLU(), nn.Conv1d(24, EMBEDDING, 3, 2)
        )

    def forward(self, pcm: Tensor) -> Tensor:
        return nn.functional.normalize(self.layers(pcm.unsqueeze(1)).mean(dim=2), dim=1)


class ToyDenoiser(nn.Module):
    """diffusers' UNet with cross-attention at the lower of two levels, as small as it goes."""

    def __init__(self, attention_first: bool = False) -> None:
        super().__init__()
        self.project = nn.Linear(EMBEDDING, TOKENS * WIDTH)
        self.null_tokens = nn.Parameter(torch.randn(1, TOKENS, WIDTH))
        first = "CrossAttnDownBlock2D" if attention_first else "DownBlock2D"
        last = "CrossAttnUpBlock2D" if attention_first else "UpBlock2D"
        self.unet = UNet2DConditionModel(
            sample_size=SIZE,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=(first, "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", last),
            cross_attention_dim=WIDTH,
            attention_head_dim=(2, 2),
            norm_num_groups=4,
            num_class_embeds=LEVELS + 1,
        )

    def tokens(self, embedding: Tensor) -> Tensor:
        return self.project(embedding * EMBEDDING**0.5).unflatten(1, (TOKENS, WIDTH))

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor, level: Tensor | None = None) -> Tensor:
        labels = torch.zeros(len(x), dtype=torch.int64) if level is None else level
        return self.unet(x, t, tokens, class_labels=labels, return_dict=False)[0]


class ToyFaceDecoder(nn.Module):
    """Latent to a 32 px portrait in −1…1 and somewhat beyond, so that clamping matters."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(CHANNELS, 24, 3, padding=1), nn.SiLU(), nn.Upsample(scale_factor=2.0, mode="nearest"),
            nn.Conv2d(24, 12, 3, padding=1), nn.PixelShuffle(2),
        )  # fmt: skip

    def forward(self, latent: Tensor) -> Tensor:
        return 3 * self.layers(latent)


def toy_system(
    *,
    arm: str = "diffusion",
    mode: str = "add",
    weight: float = 0.3,
    weights: tuple[float, float] = (0.0, 0.9),
    prediction: str = "v",
    attention_first: bool = False,
    **changes: Any,
) -> System:
    """A toy system; the same arguments give the same weights. The prior is large, so that forgetting it shows.

    `weights`: those that the shortcut arm serves.
    """
    with torch.random.fork_rng():
        torch.manual_seed(7)
        speech, denoiser, face = ToySpeechEncoder(), ToyDenoiser(attention_first), ToyFaceDecoder()
        for module in speech.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2.0)
        mean, std, prior = torch.randn(CHANNELS), torch.rand(CHANNELS) + 0.5, torch.randn(CHANNELS, SIZE, SIZE)
    config = config_from_dict(
        {
            "name": "toy",
            "diffusion": {"prediction": prediction, "prior_mode": mode, "prior_weight": weight},
            "shortcut": {"levels": LEVELS, "prior_weight": weight, "prior_weights": list(weights)},
        }
    )
    config = dataclasses.replace(config, face=dataclasses.replace(config.face, size=4 * SIZE))
    system = System(
        config=config,
        arm=arm,
        speech_encoder=speech.eval(),
        denoiser=denoiser.eval(),
        face_decoder=face.eval(),
        latent_mean=mean,
        latent_std=std,
        prior=prior,
        alphas_cumprod=alphas_cumprod("linear", 1000),
        origin=Origin(
            corpus="0" * 64,
            parent="1" * 64,
            training_data="Random numbers. Identities: 5 train (s2f-train corpus --identities 7 --seed 3 --size 32).",
            licence="Numbers: from nobody, CC0.",
            feature_loss="toy-loss",
        ),
    )
    return dataclasses.replace(system, **changes)


def toy_rows(system: System, steps: Sequence[int] = (2, 4), solver: str | None = None) -> StepRows:
    """The step tables a toy is exported with; `solver` None: the arm's default."""
    solver = solver or ("shortcut" if system.arm == "shortcut" else "dpmpp_2m")
    return StepRows.of({n: system.table(n, solver) for n in steps})


def toy_tensors(system: System, rows: StepRows) -> dict[str, Any]:
    """(inputs, outputs) of every stage of an exported toy."""
    return contract_of(system, rows, GUIDANCE).tensors
