"""The plain way: diffusers' UNet, its DPM-Solver++ and the larger face decoder in a DiffusionPipeline of one's own.

This is how the reference arm of the model, which needs 25 steps and guidance in two forwards, runs in the framework it
was trained in. Its weights are not shipped (only the few-step arm's are), so they are random; they take as long.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler
from torch import Tensor, nn

from benchmarks.gpu.parts import JSON
from benchmarks.peers.task import Pixels, Task
from training.arms import GUIDANCE
from training.config import Config, load_config
from training.models.denoiser import Denoiser
from training.models.face import build_face_decoder
from training.models.speech import build_speech_encoder


class SpeechToFace(DiffusionPipeline):  # type: ignore[misc]
    """pcm float32 [1, 96000] and noise [1, C, h, w] to uint8 [1, H, W, 3], as diffusers' own pipelines are written."""

    def __init__(
        self, speech_encoder: nn.Module, projection: nn.Module, unet: nn.Module, decoder: nn.Module, scheduler: Any
    ) -> None:
        super().__init__()
        self.register_modules(
            speech_encoder=speech_encoder, projection=projection, unet=unet, decoder=decoder, scheduler=scheduler
        )
        self.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def __call__(self, pcm: Tensor, noise: Tensor, steps: int, guidance: float) -> Tensor:
        condition = self.projection(self.speech_encoder(pcm)).unflatten(1, (-1, self.unet.config.cross_attention_dim))
        guided = guidance != 1
        if guided:
            condition = torch.cat([torch.zeros_like(condition), condition])
        self.scheduler.set_timesteps(steps)
        latent = noise * self.scheduler.init_noise_sigma
        for t in self.progress_bar(self.scheduler.timesteps):
            batch = torch.cat([latent, latent]) if guided else latent
            predicted = self.unet(self.scheduler.scale_model_input(batch, t), t, encoder_hidden_states=condition).sample
            if guided:
                free, bound = predicted.chunk(2)
                predicted = free + guidance * (bound - free)
            latent = self.scheduler.step(predicted, t, latent).prev_sample
        image = (self.decoder(latent) * 127.5 + 127.5).clamp(0, 255)
        return image.permute(0, 2, 3, 1).round().to(torch.uint8)


def plain_pipeline(config: Config) -> SpeechToFace:
    """The reference arm's networks in a configuration's shapes, random weights."""
    torch.manual_seed(0)
    denoiser = Denoiser(config)
    denoiser.unet.class_embedding = None  # of the few-step arm
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=config.diffusion.timesteps,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction" if config.diffusion.prediction == "v" else "epsilon",
        algorithm_type="dpmsolver++",
        solver_order=2,
        timestep_spacing="trailing",
    )
    encoder, decoder = build_speech_encoder(config), build_face_decoder(config)
    _stir(decoder)
    for module in (encoder, denoiser, decoder):
        module.requires_grad_(False).eval()
    return SpeechToFace(encoder, denoiser.project, denoiser.unet, decoder, scheduler)


class DiffusersArm:
    """A pipeline in eager mode, float32."""

    def __init__(self, task: Task, steps: int, *, guided: bool) -> None:
        self._task, self._steps, self._guidance = task, steps, GUIDANCE if guided else 1.0
        self._pipeline: SpeechToFace | None = None

    def prepare(self) -> JSON:
        """Build the pipeline."""
        begin = time.monotonic()
        torch.set_num_threads(self._task.cores)
        self._pipeline = plain_pipeline(load_config(self._task.network))
        return {"seconds": round(time.monotonic() - begin, 2), "guidance": self._guidance}

    def draw(self, seed: int) -> Pixels:
        """See `Peer`."""
        if self._pipeline is None:
            raise RuntimeError("prepare first")
        pcm, noise = torch.from_numpy(self._task.window()), torch.from_numpy(self._task.noise(seed))
        return self._pipeline(pcm, noise, self._steps, self._guidance)[0].numpy()  # type: ignore[no-any-return]

    def close(self) -> None:
        """See `Peer`."""
        self._pipeline = None


def _stir(module: nn.Module) -> None:
    """Weights that start as zeros as numbers like the others."""
    for value in module.parameters():
        if value.ndim > 1 and not value.any():
            nn.init.kaiming_uniform_(value)
