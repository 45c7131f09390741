"""The one training loop: resumable, logged, with samples, for any stage that can give a loss for a step number.

Everything random in step n is drawn from (seed, stage, n). So a run that was killed and started again continues as if
nothing had happened, from its last saved step.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from runtime.errors import CheckpointInvalid, TrainingDiverged
from training.checkpoint import Checkpoint, Origin, check_belongs, load_checkpoint, restore, save_checkpoint
from training.config import Config

logger = logging.getLogger(__name__)

LossOfStep = Callable[[int, np.random.Generator], dict[str, Tensor]]


@dataclass
class Stage:
    """What the loop needs to know of a stage: `loss(step, rng)` returns named scalars, of which "loss" is minimised."""

    name: str
    config: Config
    steps: int
    model: nn.ModuleDict
    optimiser: torch.optim.Optimizer
    loss: LossOfStep
    sheet: Callable[[], Image.Image]
    origin: Origin
    ema_decay: float = 0.0


def device_of_training() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def step_rng(config: Config, stage: str, step: int) -> np.random.Generator:
    """The generator of one step; torch's own is seeded from it too, for dropout and noise on the device."""
    rng = np.random.default_rng([config.seed, zlib.crc32(stage.encode()), step])
    torch.manual_seed(int(rng.integers(2**63)))
    return rng


def run_stage(stage: Stage, run: Path) -> nn.ModuleDict:
    """Trains from the last saved step to `stage.steps`; returns the model in eval mode with its averaged weights.

    Writes RUN/logs (TensorBoard), RUN/samples/STAGE-NNNNNN.png and RUN/STAGE.state.safetensors. The caller writes the
    finished checkpoint, because only it knows what belongs in it, and then calls `clear_state`.
    """
    ema = _ema(stage) if stage.ema_decay else None
    start = _resume(stage, ema, run)
    if start:
        logger.info("%s continues at step %d of %d", stage.name, start, stage.steps)
    stage.model.train()
    every = stage.config
    with SummaryWriter(run / "logs" / stage.name, purge_step=start) as writer:
        bar = tqdm(range(start, stage.steps), stage.name, initial=start, total=stage.steps, mininterval=5, ncols=110)
        for step in bar:
            values = _step(stage, step)
            if ema is not None:
                ema.step(stage.model.parameters())
            done = step + 1
            if done % every.log_every == 0 or done == stage.steps:
                shown = {name: float(value.detach()) for name, value in values.items()}
                for name, value in shown.items():
                    writer.add_scalar(name, value, done)
                bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items()}, refresh=False)
            if done % every.save_every == 0 or done == stage.steps:
                _save(stage, ema, run, done)
            if done % every.sample_every == 0 or done == stage.steps:
                _sheet(stage, ema, run, done)
    if ema is not None:
        ema.copy_to(stage.model.parameters())
    return stage.model.eval()  # type: ignore[return-value]


def clear_state(stage: Stage, run: Path) -> None:
    """Deletes the resume state of a finished stage."""
    state_path(run, stage.name).unlink(missing_ok=True)


def state_path(run: Path, stage: str) -> Path:
    return run / f"{stage}.state.safetensors"


def _step(stage: Stage, step: int) -> dict[str, Tensor]:
    values = stage.loss(step, step_rng(stage.config, stage.name, step))
    stage.optimiser.zero_grad(set_to_none=True)
    values["loss"].backward()
    norm = nn.utils.clip_grad_norm_(stage.model.parameters(), 1.0)
    if not torch.isfinite(norm):  # before the weights are touched, so the last saved step stays good
        raise TrainingDiverged(
            f"{stage.name} diverged at step {step}; lower its learning rate and train into another --out folder"
        )
    for group in stage.optimiser.param_groups:  # linear warm-up over the first 5 %, cosine to a tenth
        group["lr"] = group["initial_lr"] * _rate(step / stage.steps)
    stage.optimiser.step()
    return values


def _rate(progress: float) -> float:
    warm_up = 0.05
    if progress < warm_up:
        return (progress + 1e-3) / (warm_up + 1e-3)
    return 0.1 + 0.45 * (1 + float(np.cos(np.pi * (progress - warm_up) / (1 - warm_up))))


def _ema(stage: Stage) -> EMAModel:
    return EMAModel(stage.model.parameters(), decay=stage.ema_decay, use_ema_warmup=True, power=0.75)


def _sheet(stage: Stage, ema: EMAModel | None, run: Path, step: int) -> None:
    path = run / "samples" / f"{stage.name}-{step:06d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    stage.model.eval()
    if ema is not None:
        ema.store(stage.model.parameters())
        ema.copy_to(stage.model.parameters())
    with torch.no_grad():
        stage.sheet().save(path)
    if ema is not None:
        ema.restore(stage.model.parameters())
    stage.model.train()


def _save(stage: Stage, ema: EMAModel | None, run: Path, step: int) -> None:
    tensors = {f"model.{name}": value for name, value in stage.model.state_dict().items()}
    for index, state in stage.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    if ema is not None:
        tensors |= {f"ema.{i}": value.clone() for i, value in enumerate(ema.shadow_params)}
    save_checkpoint(state_path(run, stage.name), Checkpoint(tensors, stage.config, stage.name, step, stage.origin))


def _resume(stage: Stage, ema: EMAModel | None, run: Path) -> int:
    for group in stage.optimiser.param_groups:
        group["initial_lr"] = group["lr"]
    path = state_path(run, stage.name)
    if not path.exists():
        return 0
    saved = load_checkpoint(path)
    check_belongs(saved, path, stage.config, stage.origin.corpus)
    if saved.origin != stage.origin:  # corpus apart: other encoders, or LPIPS weights that came or went
        raise CheckpointInvalid(f"{path} was begun on other encoders or with another loss; delete it and start again")
    restore(stage.model, saved.group("model"), stage.name)
    optimiser = stage.optimiser.state_dict()
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in saved.group("optimiser").items():
        index, name = key.split(".")
        states.setdefault(int(index), {})[name] = value
    optimiser["state"] = states
    stage.optimiser.load_state_dict(optimiser)
    if ema is not None:
        ema.shadow_params = [saved.tensors[f"ema.{i}"].to(p.device) for i, p in enumerate(ema.shadow_params)]
        ema.optimization_step = saved.step
    return saved.step
