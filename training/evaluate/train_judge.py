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
from torch.nn.functional import affine_grid, binary_cross_entropy_with_logits, conv2d, grid_sample, mse_loss, pad

from runtime.errors import CorpusInvalid, InvalidArgument
from training.config import Config, PretrainConfig
from training.corpus.table import Corpus, Identity, read_corpus
from training.data import load_portraits, origin_of
from training.evaluate.judge import NAME, SIZE, Judge, JudgeNetwork, as_input, attributes_of, load_judge, save_judge
from training.evaluate.metrics import age_errors, sex_accuracy
from training.loop import Stage, clear_state, run_stage
from training.sheets import grid

logger = logging.getLogger(__name__)

STEPS, BATCH, RATE, DECAY, EMA = 3500, 64, 3e-3, 0.2, 0.998
DROPOUT = 0.4
SAVE_EVERY = 250
AGE_WEIGHT, ATTRIBUTE_WEIGHT = 4.0, 2.0
SHIFT, TURN, ZOOM = 0.08, 0.07, 0.05  # at most, either way: of half the picture's width, radians, of the size
SOFT_SIGMA = 1.6  # pixels; a picture is mixed with its blur of this deviation
SETTLING = 40  # batches


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
    stage = Stage("judge", config, steps, nn.ModuleDict({"judge": network}), optimiser, loss, sheet, origin, EMA)
    run_stage(stage, out)
    settle(network, portraits, seed)
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


@torch.no_grad()
def settle(network: JudgeNetwork, portraits: NDArray[np.uint8], seed: int) -> None:
    """Takes the running statistics of batch norm anew: those of training belong to weights that were not averaged."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # the plain mean over what follows
    network.train()
    network.dropout.eval()
    for batch in range(SETTLING):
        rng = np.random.default_rng([seed, 0x5E7, batch])
        network(augmented(portraits[rng.integers(len(portraits), size=BATCH)], rng))
    network.eval()


def augmented(portraits: NDArray[np.uint8], rng: np.random.Generator) -> Tensor:
    """uint8 [n, 128, 128, 3] to input [n, 3, 128, 128]: moved, softened, brightness and contrast changed.

    All per picture: half of them mirrored, half of them softened by 0 to all of `SOFT_SIGMA`'s blur.
    """
    n = len(portraits)
    grid_of = affine_grid(torch.from_numpy(_movements(n, rng)), [n, 3, SIZE, SIZE], align_corners=False)
    x = grid_sample(as_input(portraits), grid_of, padding_mode="reflection", align_corners=False)
    softness, contrast, brightness = (
        torch.from_numpy(value.astype(np.float32)).view(n, 1, 1, 1)
        for value in (np.clip(rng.uniform(-1, 1, n), 0, 1), rng.uniform(0.85, 1.15, n), rng.uniform(-0.12, 0.12, n))
    )
    x = x + softness * (blurred(x, SOFT_SIGMA) - x)
    return (contrast * x + brightness).clamp(-1, 1)


def _movements(n: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Affine maps float32 [n, 2, 3]: mirror, turn, zoom, shift."""
    turn, zoom = rng.uniform(-TURN, TURN, n), rng.uniform(1 - ZOOM, 1 + ZOOM, n)
    mirror = np.where(rng.random(n) < 0.5, -1.0, 1.0)
    shift = rng.uniform(-SHIFT, SHIFT, (n, 2))
    rows = [[zoom * np.cos(turn) * mirror, -zoom * np.sin(turn), shift[:, 0]],
            [zoom * np.sin(turn) * mirror, zoom * np.cos(turn), shift[:, 1]]]  # fmt: skip
    return np.array(rows, dtype=np.float32).transpose(2, 0, 1)


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
