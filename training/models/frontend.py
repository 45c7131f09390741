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
        if config.features == "complex":
            self.register_buffer("kernels", dft_kernels(config.window, config.fft), persistent=False)
            return
        bank = mel_filterbank(config.mels, config.fft, config.max_hz)
        used = int(bank.sum(dim=1).nonzero().max()) + 1  # bins above max_hz are never computed
        cosine, sine = centred_dft(config.window, config.fft)
        for name, value in (("bank", bank[:used]), ("cosine", cosine[:, :used]), ("sine", sine[:, :used])):
            self.register_buffer(name, value.contiguous(), persistent=False)

    @property
    def channels(self) -> int:
        return 1 if self.config.features == "mel" else 2

    @property
    def bands(self) -> int:
        return self.config.mels if self.config.features == "mel" else self.config.fft // 2 + 1

    def forward(self, pcm: Tensor) -> Tensor:
        return self._mel(pcm) if self.config.features == "mel" else self._complex(pcm)

    def _complex(self, pcm: Tensor) -> Tensor:
        spectrum = nn.functional.conv1d(pcm.unsqueeze(1), self.kernels, stride=self.config.hop)
        both = torch.stack(spectrum.transpose(1, 2).split(self.bands, dim=2), dim=1)
        return torch.sign(both) * both.abs().pow(self.config.power)

    def _mel(self, pcm: Tensor) -> Tensor:
        """Magnitudes do not depend on where phase 0 lies. With it in the middle of the window, where Hann is symmetric,
        the real part needs only the sum of both halves and the imaginary part their difference: half the products."""
        hop, window, half = self.config.hop, self.config.window, self.config.window // 2
        count = pcm.shape[1] // hop
        blocks = pcm[:, : count * hop].unflatten(1, (count, hop))
        overlap = window // hop
        frames = torch.cat([blocks[:, i : count - overlap + 1 + i] for i in range(overlap)], dim=2)
        after, before = frames[:, :, half + 1 :], frames[:, :, 1:half].flip(2)
        real = torch.cat([frames[:, :, half : half + 1], after + before], dim=2) @ self.cosine
        imaginary = (after - before) @ self.sine
        magnitude = torch.sqrt(real * real + imaginary * imaginary + TINY)
        return torch.matmul(magnitude, self.bank).pow(self.config.power).unsqueeze(1)


def centred_dft(window: int, fft: int) -> tuple[Tensor, Tensor]:
    """Periodic-Hann-windowed DFT about the middle of the window: float32 [window/2, bins] for the samples 0, 1 … after
    it (cosine), and [window/2 − 1, bins] for 1, 2 … (sine)."""
    n = torch.arange(window // 2, dtype=torch.float64)[:, None]
    k = torch.arange(fft // 2 + 1, dtype=torch.float64)
    hann = 0.5 + 0.5 * torch.cos(2 * math.pi * n / window)
    angle = 2 * math.pi * k * n / fft
    return (torch.cos(angle) * hann).float(), (torch.sin(angle) * hann)[1:].float()


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
