"""Face encoders (portrait to latent and embedding) and decoders (latent to portrait). Portraits are −1…1, RGB."""

from __future__ import annotations

import itertools
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, interpolate, normalize

from training.config import Config


def build_face_encoder(config: Config) -> nn.Module:
    """The encoder that `config.face.kind` names: [batch, 3, size, size] → (latent [batch, C, h, w], unit embedding)."""
    return FaceEncoder(
        config, _vgg_trunk() if config.face.kind == "vgg" else _compact_trunk(config.face.encoder_widths)
    )


def build_face_decoder(config: Config) -> nn.Module:
    """The decoder that `config.face.kind` names: latent [batch, C, h, w] → [batch, 3, size, size]."""
    if config.face.kind == "vgg":
        return VGGDecoder(config.face.latent_channels)
    face = config.face
    return CompactDecoder(face.latent_channels, face.decoder_widths, face.decoder_blocks)


def build_slim_decoder(config: Config) -> nn.Module:
    """The decoder that devices run, of the same tensors as `build_face_decoder`'s."""
    return CompactDecoder(config.face.latent_channels, config.decoder.widths, config.decoder.blocks)


def latent_shape(config: Config) -> tuple[int, int, int]:
    """(channels, height, width) of the latent: 1/8 of the portrait for `compact` of three widths, 1/16 for `vgg`."""
    factor = 16 if config.face.kind == "vgg" else 2 ** len(config.face.encoder_widths)
    return config.face.latent_channels, config.face.size // factor, config.face.size // factor


class FaceEncoder(nn.Module):
    """A convolutional trunk with two heads: the latent that diffusion models, and the embedding aligned with speech.

    The latent leaves standardised, zero mean and unit variance per channel whatever the trunk does: the scale that
    diffusion and the statistical prior (eq. 3) assume.
    """

    def __init__(self, config: Config, trunk: nn.Sequential) -> None:
        super().__init__()
        self.trunk = trunk
        width = next(m.out_channels for m in reversed(list(trunk.modules())) if isinstance(m, nn.Conv2d))
        self.latent = nn.Conv2d(width, config.face.latent_channels, 1)
        self.standardise = Standardise(config.face.latent_channels)
        self.embedding = nn.Sequential(
            nn.Linear(2 * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, config.embedding)
        )

    def forward(self, portrait: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk(portrait)
        pooled = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)
        return self.standardise(self.latent(x)), normalize(self.embedding(pooled), dim=1)


class Standardise(nn.BatchNorm2d):
    """(x − mean) / std per channel with slowly running statistics, in training too.

    With a batch's own statistics the decoder sees every portrait shifted by what else was in the batch, and never
    learns the small differences that hues are.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=False, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                batch_norm(x.float(), self.running_mean, self.running_var, training=True, momentum=self.momentum or 0.0)
        return batch_norm(x, self.running_mean, self.running_var, training=False, eps=self.eps)


def _compact_trunk(widths: tuple[int, ...]) -> nn.Sequential:
    """No block at the first, largest resolution: it would cost as much as all the others."""
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, 2, 1), nn.SiLU()]
    inputs = widths[0]
    for width in widths[1:]:
        layers += [nn.Conv2d(inputs, width, 3, 2, 1), nn.SiLU(), ResidualBlock(width, nn.SiLU())]
        inputs = width
    return nn.Sequential(*layers, ResidualBlock(inputs, nn.SiLU()))


def _vgg_trunk() -> nn.Sequential:
    """VGG-16's thirteen convolutions without the last pooling, as VGGFace has them; its weights are not shipped."""
    layers: list[nn.Module] = []
    inputs = 3
    for block, (width, convolutions) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        if block:
            layers.append(nn.MaxPool2d(2))
        for _ in range(convolutions):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
            inputs = width
    return nn.Sequential(*layers)


class ResidualBlock(nn.Module):
    """relu(x + conv(relu(conv(x)))), without normalisation: runtimes fuse all of it into two convolutions.

    The encoder, which no device runs, takes SiLU instead: a quarter of its ReLUs died in training.
    """

    def __init__(self, width: int, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.activation = activation or nn.ReLU()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)  # identity at the start, so depth costs no trainability
        nn.init.zeros_(cast("Tensor", self.second.bias))

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.activation(x + self.second(self.activation(self.first(x)))))


class CompactDecoder(nn.Module):
    """Residual stages; between them a 1×1 convolution to fewer channels, then nearest ×2 (in this order, because the
    convolution is then four times cheaper). The last doubling is a pixel shuffle: at full resolution every 3×3 channel
    costs most. `widths` and `blocks` go from the latent's resolution to the portrait's."""

    def __init__(self, latent_channels: int, widths: tuple[int, ...], blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(latent_channels, widths[0], 3, padding=1)
        self.stages = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(w) for _ in range(b))) for w, b in zip(widths, blocks, strict=True)
        )
        self.narrow = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in itertools.pairwise(widths[:-1]))
        self.shuffle = nn.Sequential(nn.Conv2d(widths[-2], 4 * widths[-1], 3, padding=1), nn.PixelShuffle(2))
        self.refine = nn.Conv2d(widths[-1], widths[-1], 3, padding=1)
        self.out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.stages[0](torch.relu(self.stem(latent)))
        for narrow, stage in zip(self.narrow, list(self.stages)[1:-1], strict=True):
            x = stage(interpolate(narrow(x), scale_factor=2.0, mode="nearest"))
        x = self.stages[-1](torch.relu(self.shuffle(x)))
        return self.out(torch.relu(self.refine(x)))


class VGGDecoder(nn.Module):
    """CNN symmetric to VGG-16's convolutions (SCLDM: "symmetrical to the VGGFace"), nearest ×2 in place of pooling."""

    def __init__(self, latent_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(latent_channels, 512, 1)]
        inputs = 512
        for block, (width, convolutions) in enumerate(((512, 3), (512, 3), (256, 3), (128, 2), (64, 2))):
            if block:
                layers.append(nn.Upsample(scale_factor=2.0, mode="nearest"))
            for _ in range(convolutions):
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
                inputs = width
        self.layers = nn.Sequential(*layers, nn.Conv2d(inputs, 3, 3, padding=1))

    def forward(self, latent: Tensor) -> Tensor:
        return cast("Tensor", self.layers(latent))
