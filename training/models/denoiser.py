"""The speech-conditioned denoiser: diffusers' UNet with self- and cross-attention (SCLDM eq. 5)."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from training.config import Config
from training.models.face import latent_shape


class Denoiser(nn.Module):
    """net(x', t, tokens, level) → epsilon or v, float32 [batch, C, h, w]; also turns an embedding into its tokens.

    The condition is a short sequence, because cross-attention to a single token has nothing to attend between:
    the unit embedding is mapped linearly onto `tokens` vectors of `token_width`, learnt with the UNet.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        diffusion = config.diffusion
        channels, height, _ = latent_shape(config)
        self.shape = (diffusion.tokens, diffusion.token_width)
        self.scale = float(config.embedding) ** 0.5  # unit-length embedding → unit variance per component
        self.project = nn.Linear(config.embedding, diffusion.tokens * diffusion.token_width)
        self.null_tokens = nn.Parameter(torch.zeros(1, diffusion.tokens, diffusion.token_width))
        kinds = ["CrossAttn" if attends else "" for attends in diffusion.attention]
        self.unet = UNet2DConditionModel(
            sample_size=height,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=diffusion.channels,
            layers_per_block=diffusion.layers,
            down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
            up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
            cross_attention_dim=diffusion.token_width,
            attention_head_dim=tuple(width // diffusion.head_width for width in diffusion.channels),
            norm_num_groups=diffusion.norm_groups,
            num_class_embeds=config.step_sizes or None,
        )
        if self.unet.class_embedding is not None:  # without effect until the shortcut stage tells step sizes apart
            nn.init.zeros_(self.unet.class_embedding.weight)

    def tokens(self, embedding: Tensor) -> Tensor:
        """Unit embedding [batch, E] → condition [batch, tokens, token_width]."""
        return self.project(embedding * self.scale).unflatten(1, self.shape)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor, level: Tensor | None = None) -> Tensor:
        """`level`: int64 [batch], index of the step size (see `training.sampling.shortcut_table`); None is 0."""
        if self.unet.class_embedding is None:
            return self.unet(x, t, encoder_hidden_states=tokens, return_dict=False)[0]  # type: ignore[no-any-return]
        labels = torch.zeros(len(x), dtype=torch.int64, device=x.device) if level is None else level
        return self.unet(x, t, tokens, class_labels=labels, return_dict=False)[0]  # type: ignore[no-any-return]
