"""Audio front end: raw PCM to a compressed spectrogram, as convolutions so that export can fuse it into the encoder."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from runtime.specs import SAMPLE_RATE
from training.config import FrontendConfig

TINY = 1e-8  # keeps the root of a silent bin differentiable; 80 dB under a compressed value of 1


class Frontend(nn.Module):
    """PCM float32 [batch, samples] (−1…1, 16 kHz) to a spectrogram float32 [batch, channels, frames, bands].

    `complex` (Speech2Face, which SCLDM follows): channels are the real and the imaginary part, each compressed as
    sign(s)·|s|^power. `mel`: one channel of compressed mel-band magnitudes.
    No centre padding: frames = 1 + (samples − window) // hop.
    """

    def __init__(self, config: FrontendConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("kernels", dft_kernels(config.window, config.fft), persistent=False)
        self.bins = config.fft // 2 + 1
        if config.features == "mel":
            bank = mel_filterbank(config.mels, config.fft, config.max_hz)
            used = int(bank.sum(dim=1).nonzero().max()) + 1  # bins above max_hz are never computed
            self.bins = used
            self.kernels = torch.cat([self.kernels[:used], self.kernels[config.fft // 2 + 1 :][:used]])
            self.register_buffer("bank", bank[:used], persistent=False)

    @property
    def channels(self) -> int:
        return 1 if self.config.features == "mel" else 2

    @property
    def bands(self) -> int:
        return self.config.mels if self.config.features == "mel" else self.bins

    def forward(self, pcm: Tensor) -> Tensor:
        spectrum = nn.functional.conv1d(pcm.unsqueeze(1), self.kernels, stride=self.config.hop)
        real, imaginary = spectrum.transpose(1, 2).split(self.bins, dim=2)
        if self.config.features == "mel":
            magnitude = torch.sqrt(real * real + imaginary * imaginary + TINY)
            return torch.matmul(magnitude, self.bank).pow(self.config.power).unsqueeze(1)
        both = torch.stack([real, imaginary], dim=1)
        return torch.sign(both) * both.abs().pow(self.config.power)


def dft_kernels(window: int, fft: int) -> Tensor:
    """Periodic-Hann-windowed DFT as convolution weights, float32 [2·(fft/2+1), 1, window], real rows then imaginary."""
    n = torch.arange(window, dtype=torch.float64)
    k = torch.arange(fft // 2 + 1, dtype=torch.float64)
    hann = 0.5 - 0.5 * torch.cos(2 * math.pi * n / window)
    angle = 2 * math.pi * k[:, None] * n[None, :] / fft
    return (torch.cat([torch.cos(angle), -torch.sin(angle)]) * hann).float().unsqueeze(1)


def mel_filterbank(mels: int, fft: int, max_hz: float) -> Tensor:
    """Triangular HTK-mel filters with unit sum per band, float32 [fft/2+1, mels], 50 Hz to `max_hz`."""
    hz = torch.arange(fft // 2 + 1, dtype=torch.float64) * SAMPLE_RATE / fft
    low, high = (2595 * math.log10(1 + f / 700) for f in (50.0, max_hz))
    edges = 700 * (10 ** (torch.linspace(low, high, mels + 2, dtype=torch.float64) / 2595) - 1)
    rising = (hz[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hz[:, None]) / (edges[2:] - edges[1:-1])
    bank = torch.minimum(rising, falling).clamp(min=0)
    return (bank / bank.sum(dim=0).clamp(min=TINY)).float()
