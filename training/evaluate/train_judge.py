"""`s2f-train judge`: trains the judge on the renders of the train split, with the shared loop.

Generated portraits are softer than renders, a little off in light and place; so are the pictures it learns from, lest
it take softness for youth.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, conv2d, mse_loss, pad

from runtime.errors import CorpusInvalid, InvalidArgument
from training.config import Config, PretrainConfig
from training.corpus.table import Corpus, Identity, read_corpus
from training.data import load_portraits, origin_of
from training.evaluate.judge import NAME, SIZE, Judge, JudgeNetwork, as_input, attributes_of, load_judge, save_judge
from training.evaluate.metrics import age_errors, sex_accuracy
from training.loop import Stage, clear_state, run_stage
from training.sheets import grid

logger = logging.getLogger(__name__)

STEPS, BATCH, RATE, DECAY = 3500, 64, 3e-3, 0.05
DROPOUT = 0.2
SAVE_EVERY = 250
AGE_WEIGHT, ATTRIBUTE_WEIGHT = 2.0, 2.0
SHIFT = 4  # pixels, at most, each way
SOFT_SIGMA = 1.6  # pixels; a picture is mixed with its blur of this deviation


def judge(corpus_dir: Path, out: Path, *, steps: int = STEPS, seed: int = 0) -> Path:
    """Writes OUT/judge.safetensors. Runs on the CPU, in bfloat16: some ten minutes of one core for 3,500 steps.

    Raises CorpusInvalid, CheckpointInvalid, InvalidArgument, OutputUnwritable.
    """
    if not 1 <= steps <= 10**9 or not 0 <= seed < 2**63:
        raise InvalidArgument(f"steps is {steps} and seed {seed}; give at least one step, and a seed from 0")
    corpus = read_corpus(corpus_dir)
    identities = corpus.split("train")
    if {identity.sex for identity in identities} != {"F", "M"}:
        raise CorpusInvalid(
            f"corpus {corpus_dir} needs women and men in its train split; build it with more identities"
        )
    portraits = load_portraits(corpus, identities, SIZE, out / "cache" / f"judge-train-{SIZE}px")[:, 0]
    names, table = attributes_of(identities)
    mean, std = table.mean(axis=0), np.maximum(table.std(axis=0), 1e-3)  # a slider that nobody has stays a constant
    targets = np.concatenate([[[i.sex == "M"] for i in identities], (table - mean) / std], axis=1).astype(np.float32)
    torch.manual_seed(seed)
    network = JudgeNetwork(len(names), DROPOUT).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)

    def loss(_: int, rng: np.random.Generator) -> dict[str, Tensor]:
        rows = rng.choice(len(identities), BATCH, replace=len(identities) < BATCH)
        return judge_loss(network, augmented(portraits[rows], rng), torch.from_numpy(targets[rows]))

    def sheet() -> Image.Image:
        some = portraits[np.arange(32) % len(portraits)]
        return grid(list(torch.split(augmented(some, np.random.default_rng(seed)), 8)))

    settings = PretrainConfig(steps=steps, batch=BATCH, reconstruct=BATCH)  # what of it decides on these weights
    config = Config(NAME, seed, save_every=SAVE_EVERY, sample_every=steps, pretrain=settings)
    faces = f"Faces: {corpus.info['licences']['faces']}"  # it never hears a voice
    origin = dataclasses.replace(origin_of(corpus, "none: learnt from the corpus' table"), licence=faces)
    stage = Stage("judge", config, steps, nn.ModuleDict({"judge": network}), optimiser, loss, sheet, origin)
    run_stage(stage, out)
    command = f"s2f-train judge --corpus CORPUS --out OUT --steps {steps} --seed {seed}"
    training = {"command": command, "seed": seed, "steps": steps, "batch": BATCH}
    made = Judge(network, names, torch.from_numpy(mean), torch.from_numpy(std), origin, training, {})
    path = out / "judge.safetensors"
    save_judge(path, made)
    measured = load_judge(path)  # what is measured are the rounded weights
    measured.accuracy.update(accuracy(measured, corpus, out / "cache"))
    save_judge(path, measured)
    clear_state(stage, out)
    return path


def judge_loss(network: nn.Module, portraits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Cross-entropy of sex, mean squares of age and attributes; targets float32 [n, 2 + A], sex 0 or 1, z-scores."""
    with torch.autocast("cpu", torch.bfloat16):
        _, readings = network(portraits.contiguous(memory_format=torch.channels_last))
    readings = readings.float()
    sex = binary_cross_entropy_with_logits(readings[:, 0], targets[:, 0])
    age, attributes = mse_loss(readings[:, 1], targets[:, 1]), mse_loss(readings[:, 2:], targets[:, 2:])
    return {
        "loss": sex + AGE_WEIGHT * age + ATTRIBUTE_WEIGHT * attributes,
        "sex": sex, "age": age, "attributes": attributes,
    }  # fmt: skip


def augmented(portraits: NDArray[np.uint8], rng: np.random.Generator) -> Tensor:
    """uint8 [n, 128, 128, 3] to input [n, 3, 128, 128]: mirrored, shifted, softened, brightness and contrast changed.

    All per picture: half of them mirrored, half of them softened by 0 to all of `SOFT_SIGMA`'s blur.
    """
    n = len(portraits)
    moved = pad(as_input(portraits), (SHIFT,) * 4, mode="reflect")
    corners = rng.integers(2 * SHIFT + 1, size=(n, 2))
    x = torch.stack([one[:, y : y + SIZE, x : x + SIZE] for one, (y, x) in zip(moved, corners, strict=True)])
    mirror, softness, contrast, brightness = (
        torch.from_numpy(value.astype(np.float32)).view(n, 1, 1, 1)
        for value in (rng.random(n) < 0.5, np.clip(rng.uniform(-1, 1, n), 0, 1),
                      rng.uniform(0.85, 1.15, n), rng.uniform(-0.12, 0.12, n))
    )  # fmt: skip
    x = torch.where(mirror > 0, x.flip(3), x)
    x = x + softness * (blurred(x, SOFT_SIGMA) - x)
    return (contrast * x + brightness).clamp(-1, 1)


def blurred(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of [n, 3, H, W] with this deviation in pixels, edges mirrored."""
    radius = int(np.ceil(3 * sigma))
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).expand(3, 1, 1, -1)
    x = pad(x, (radius,) * 4, mode="reflect").contiguous(memory_format=torch.channels_last)  # ten times faster so
    return conv2d(conv2d(x, weights, groups=3), weights.transpose(2, 3), groups=3)


def accuracy(judge: Judge, corpus: Corpus, cache: Path) -> dict[str, object]:
    """How it reads the test renders, as they are and blurred by 1 px; all values are described in `metrics`."""
    identities = corpus.split("test")
    if not identities:
        logger.warning("the corpus has no test split: nothing is known of the accuracy of this judge")
        return {"renders": 0}
    portraits = load_portraits(corpus, identities, SIZE, cache / f"judge-test-{SIZE}px")[:, 0]
    result: dict[str, object] = {"renders": len(identities)}
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        "sharp": lambda x: x,
        "blurred by 1 px": lambda x: blurred(x, 1.0),
    }
    for name, change in changes.items():
        changed = ((change(as_input(portraits)) + 1) * 127.5).round().clamp(0, 255).byte()
        result[name] = read_accuracy(judge, changed.permute(0, 2, 3, 1).numpy(), identities)
        logger.info("judge on %d test renders, %s: %s", len(identities), name, result[name])
    return result


def read_accuracy(judge: Judge, portraits: NDArray[np.uint8], identities: tuple[Identity, ...]) -> dict[str, float]:
    """Sex in percent, age errors, and the mean correlation of attributes, for portraits of these identities."""
    readings = judge.read(portraits)
    names, table = attributes_of(identities)
    mae, within = age_errors(readings.age, table[:, 0])
    order = [names.index(name) for name in judge.attributes if name in names]
    truth, seen = table[:, 1:][:, order], readings.attributes[:, [n in names for n in judge.attributes]]
    varied = truth.std(axis=0) > 1e-6
    correlations = [np.corrcoef(a, b)[0, 1] for a, b in zip(truth.T[varied], seen.T[varied], strict=True)]
    return {
        "sex_percent": sex_accuracy(readings.male, [identity.sex for identity in identities]),
        "age_mae_years": mae,
        "age_within_10_percent": within,
        "attribute_correlation": float(np.mean(correlations)),
    }
