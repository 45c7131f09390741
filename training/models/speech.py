"""Speech encoders: PCM float32 [batch, 96000] to a unit-length embedding float32 [batch, embedding].

Each is `embed(frontend(pcm))`, so that training can mask the spectrogram in between.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from training.config import Config
from training.models.frontend import Frontend


def build_speech_encoder(config: Config) -> nn.Module:
    """The encoder that `config.speech.kind` names."""
    if config.speech.kind == "paper":
        return PaperSpeechEncoder(config)
    return EdgeSpeechEncoder(config)


class EdgeSpeechEncoder(nn.Module):
    """Temporal convolutions over spectral bands, attentive mean and deviation over time (ECAPA's pooling).

    Three stride-2 convolutions first: the residual blocks, which hold the parameters, see an eighth of the frames.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        speech = config.speech
        self.frontend = Frontend(speech.frontend)
        bands, width = self.frontend.channels * self.frontend.bands, speech.width
        self.norm = nn.BatchNorm1d(bands)
        self.stem = nn.Sequential(*(_conv_norm_relu(n, width, 5, 2) for n in (bands, width, width)))
        self.blocks = nn.ModuleList(_TemporalBlock(width, dilation=1 + i % 3) for i in range(speech.blocks))
        self.attention = nn.Conv1d(width, width, 1)
        self.head = nn.Sequential(
            nn.BatchNorm1d(2 * width), nn.Dropout(speech.dropout), nn.Linear(2 * width, config.embedding)
        )

    def forward(self, pcm: Tensor) -> Tensor:
        return self.embed(self.frontend(pcm))

    def embed(self, spectrogram: Tensor) -> Tensor:
        """[batch, channels, frames, bands] to the embedding."""
        x = self.stem(self.norm(spectrogram.transpose(2, 3).flatten(1, 2)))
        for block in self.blocks:
            x = block(x)
        weight = self.attention(x).softmax(dim=2)
        mean = (weight * x).sum(dim=2)
        deviation = (weight * (x - mean.unsqueeze(2)) ** 2).sum(dim=2).clamp(min=1e-6).sqrt()
        return normalize(self.head(torch.cat([mean, deviation], dim=1)), dim=1)


class _TemporalBlock(nn.Module):
    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _conv_norm_relu(width, width, 3, 1, dilation), nn.Conv1d(width, width, 3, padding=1), nn.BatchNorm1d(width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.layers(x))


def _conv_norm_relu(inputs: int, outputs: int, kernel: int, stride: int, dilation: int = 1) -> nn.Sequential:
    conv = nn.Conv1d(inputs, outputs, kernel, stride, padding=dilation * (kernel // 2), dilation=dilation)
    return nn.Sequential(conv, nn.BatchNorm1d(outputs), nn.ReLU())  # in this order: runtimes fold the norm away


class PaperSpeechEncoder(nn.Module):
    """Speech2Face's voice encoder with CBAM after each pooled stage and at the end.

    4×4 convolutions without padding, ReLU then batch norm, pooling over time only, mean over the remaining time,
    flatten (29184 for the 598 × 257 spectrogram), two 4096-wide layers. Where CBAM sits is not stated by SCLDM.
    """

    POOLED = ((64, 64, 128), (128,), (128,), (256,))

    def __init__(self, config: Config, hidden: int = 4096) -> None:
        super().__init__()
        self.frontend = Frontend(config.speech.frontend)
        layers: list[nn.Module] = []
        inputs = self.frontend.channels
        for widths in self.POOLED:
            for width in widths:
                layers += _conv4(inputs, width)
                inputs = width
            layers += [CBAM(inputs), nn.MaxPool2d((2, 1))]
        layers += [*_conv4(inputs, 512), *_conv4(512, 512, 2), *_conv4(512, 512, 2), CBAM(512)]
        self.layers = nn.Sequential(*layers)
        bands = self.frontend.bands
        for stride in (1, 1, 1, 1, 1, 1, 1, 2, 2):  # nine 4-wide convolutions along frequency
            bands = (bands - 4) // stride + 1
        self.head = nn.Sequential(
            nn.Linear(512 * bands, hidden), nn.ReLU(), nn.BatchNorm1d(hidden), nn.Linear(hidden, config.embedding)
        )

    def forward(self, pcm: Tensor) -> Tensor:
        return self.embed(self.frontend(pcm))

    def embed(self, spectrogram: Tensor) -> Tensor:
        """[batch, channels, frames, bands] to the embedding."""
        x = self.layers(spectrogram).mean(dim=2)
        return normalize(self.head(x.flatten(1)), dim=1)


def _conv4(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 4, stride), nn.ReLU(), nn.BatchNorm2d(outputs)]


class CBAM(nn.Module):
    """Convolutional block attention: channel gate, then spatial gate (Woo et al. 2018, eqs. 2 and 3)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(channels // reduction, 4)
        self.channel = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.channel(x.mean(dim=(2, 3))) + self.channel(x.amax(dim=(2, 3))))
        x = x * gate[:, :, None, None]
        summary = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.spatial(summary))
