"""Checkpoints: safetensors files in a run folder, one per stage, and the system that export reads from them.

RUN/STAGE.safetensors, for the stages of `STAGES`, hold finished ones; RUN/STAGE.state.safetensors
holds an unfinished one with its optimiser. Metadata carries the configuration, so a run folder needs nothing else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from runtime.errors import CheckpointInvalid, ConfigInvalid, OutputUnwritable
from training.arms import ARMS
from training.config import Config, config_from_dict, config_to_dict
from training.models.denoiser import Denoiser
from training.models.face import build_face_decoder, build_face_encoder, build_slim_decoder
from training.models.speech import build_speech_encoder
from training.sampling import StepTable, alphas_cumprod, shortcut_table, step_table
from training.schedule import Schedule, from_tensors

FORMAT = "s2f-checkpoint/1"
_BASE = ("seed", "precision", "embedding", "speech", "face", "pretrain")
STAGES = {  # in order; which parts of the configuration decide on a stage's weights
    "pretrain": _BASE,
    "align": (*_BASE, "align"),
    "prior": (*_BASE, "prior"),
    "diffusion": (*_BASE, "align", "prior", "diffusion"),
    "shortcut": (*_BASE, "align", "prior", "diffusion", "shortcut"),
    "decoder": (*_BASE, "decoder"),
}
HEARS = ("diffusion", "shortcut")  # stages that build on the speech encoder, aligned or not; the others on faces alone


@dataclass(frozen=True)
class Origin:
    """What a checkpoint was made from, so that stages of different corpora or encoders are never mixed."""

    corpus: str  # `training.data.fingerprint` of the corpus
    parent: str  # `encoders_hash` of what this stage builds on; "" for pretrain itself
    training_data: str  # for the model card
    licence: str  # of the training data's sources, with attributions
    feature_loss: str  # the perceptual loss really used


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name and what the file says about them."""

    tensors: dict[str, Tensor]
    config: Config
    stage: str
    step: int
    origin: Origin

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose name starts with `prefix.`, without it."""
        return {k[len(prefix) + 1 :]: v for k, v in self.tensors.items() if k.startswith(prefix + ".")}


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes atomically: a reader sees the old file or the new one, never a part."""
    metadata = {
        "format": FORMAT,
        "stage": checkpoint.stage,
        "step": str(checkpoint.step),
        "config": json.dumps(config_to_dict(checkpoint.config)),
        "origin": json.dumps(dataclasses.asdict(checkpoint.origin)),
    }
    write_tensors(path, checkpoint.tensors, metadata)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file, whole or not at all; OutputUnwritable says why not."""
    partial = path.with_name(path.name + ".partial")
    try:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, partial, metadata)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise OutputUnwritable(f"cannot write {path}: {error}; free space or choose another folder") from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads one file; CheckpointInvalid where it is missing, damaged or not ours."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
    except FileNotFoundError as error:
        raise CheckpointInvalid(f"no checkpoint {path}; train that stage first") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointInvalid(
            f"checkpoint {path} cannot be read: {error}; delete it and train that stage again"
        ) from error
    if metadata.get("format") != FORMAT:
        raise CheckpointInvalid(f"{path} is not a {FORMAT} file; give a folder written by `s2f-train`")
    try:
        config = config_from_dict(json.loads(metadata["config"]))
        origin = Origin(**json.loads(metadata["origin"]))
        return Checkpoint(tensors, config, metadata["stage"], int(metadata["step"]), origin)
    except (KeyError, ValueError, TypeError, ConfigInvalid) as error:
        raise CheckpointInvalid(f"checkpoint {path} has broken metadata: {error}; train that stage again") from error


def load_stage(run: Path, stage: str, config: Config | None = None, corpus: str | None = None) -> Checkpoint:
    """A finished stage of a run; CheckpointInvalid if of another configuration or corpus, or on other encoders."""
    path = run / f"{stage}.safetensors"
    checkpoint = load_checkpoint(path)
    if config is not None:
        check_belongs(checkpoint, path, config, corpus)
    if stage != "pretrain" and checkpoint.origin.parent != encoders_hash(run, stage):
        raise CheckpointInvalid(
            f"{path} was trained on other encoders than {run}'s; delete it and train that stage again"
        )
    return checkpoint


def check_belongs(checkpoint: Checkpoint, path: Path, config: Config, corpus: str | None) -> None:
    """CheckpointInvalid where a file, finished or not, is of another configuration or another corpus."""
    if not same_weights(checkpoint.config, config, checkpoint.stage):
        other = f"configuration ({checkpoint.config.name})"
    elif corpus is not None and checkpoint.origin.corpus != corpus:
        other = "corpus"
    else:
        return
    raise CheckpointInvalid(f"{path} belongs to another {other}; delete it or choose another --out folder")


def encoders_hash(run: Path, stage: str) -> str:
    """sha256, hex, of the finished checkpoints that hold the encoders `stage` builds on."""
    digest = hashlib.sha256()
    aligned = run / "align.safetensors"
    try:
        digest.update((run / "pretrain.safetensors").read_bytes())
        if stage in HEARS and aligned.exists():
            digest.update(aligned.read_bytes())
    except OSError as error:
        raise CheckpointInvalid(
            f"no checkpoint {run / 'pretrain.safetensors'} ({error}); train that stage first"
        ) from error
    return digest.hexdigest()


def same_weights(a: Config, b: Config, stage: str) -> bool:
    """Whether two configurations describe the same networks and objective up to `stage` (logging rates may differ)."""
    parts = STAGES.get(stage, _BASE)  # the judge is no stage of a run, but trains with the same loop
    if stage == "diffusion" and a.step_sizes != b.step_sizes:
        return False  # the network has an embedding for each
    return all(getattr(a, name) == getattr(b, name) for name in parts)


def restore(module: nn.Module, tensors: dict[str, Tensor], where: str) -> nn.Module:
    """Loads weights strictly, in eval mode; CheckpointInvalid names what does not fit."""
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise CheckpointInvalid(
            f"weights of {where} do not fit the network: {error}; train that stage again"
        ) from error
    return module.eval()


@dataclass(frozen=True)
class System:
    """A trained SCLDM as export and evaluation need it: networks in eval mode on the CPU, float32.

    `arm`: "diffusion" (DDPM: any guidance, the prior shifts what the network sees at every step) or "shortcut"
    (rectified flow in few steps: guidance folded in, the prior lies in the source and its weight may vary).
    """

    config: Config
    arm: str
    speech_encoder: nn.Module
    denoiser: Denoiser
    face_decoder: nn.Module
    latent_mean: Tensor  # float32 [C]
    latent_std: Tensor  # float32 [C]
    prior: Tensor  # float32 [C, h, w], in normalised latent space (SCLDM eq. 3)
    alphas_cumprod: NDArray[np.float64]  # [T]
    origin: Origin
    schedules: Mapping[int, Schedule] = field(default_factory=dict)  # searched ones, by number of steps

    def table(self, steps: int, solver: str) -> StepTable:
        """The table of `steps` steps: the searched schedule where there is one for this solver, else an even one.

        `solver`: "shortcut" for the shortcut arm, one of DDPM's for the other. Raises ConfigInvalid.
        """
        found = self.schedules[steps] if self.searched(steps, solver) else None
        if self.arm == "shortcut":
            return shortcut_table(self.alphas_cumprod, found or (1 / max(steps, 1),) * steps)
        (spacing,) = found or (1.0,)
        return step_table(self.alphas_cumprod, steps, solver, self.prediction, spacing)

    def searched(self, steps: int, solver: str) -> bool:
        """Whether a schedule of so many steps was searched for this solver."""
        return steps in self.schedules and solver == ARMS[self.arm].solvers[0]

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def training_data(self) -> str:
        return self.origin.training_data

    @property
    def licence(self) -> str:
        return self.origin.licence

    @property
    def feature_loss(self) -> str:
        return self.origin.feature_loss

    @property
    def prior_mode(self) -> str:
        return "add" if self.arm == "shortcut" else self.config.diffusion.prior_mode

    @property
    def prior_weight(self) -> float:
        """The default weight; 0 where there is no prior."""
        if self.prior_mode == "none":
            return 0.0
        return self.config.shortcut.prior_weight if self.arm == "shortcut" else self.config.diffusion.prior_weight

    @property
    def prior_weights(self) -> tuple[float, float]:
        """Lowest and highest weight that may be asked for."""
        if self.arm == "shortcut":
            low, high = self.config.shortcut.prior_weights
            return low, high
        return self.prior_weight, self.prior_weight

    @property
    def guidance(self) -> float | None:
        """The guidance that is folded in, None where it is free."""
        return self.config.shortcut.guidance if self.arm == "shortcut" else None

    @property
    def prediction(self) -> str:
        return self.config.diffusion.prediction


def load_pretrained(
    run: Path, config: Config | None = None, corpus: str | None = None, *, aligned: bool = True
) -> tuple[Checkpoint, nn.Module, nn.Module, nn.Module]:
    """The pretrain checkpoint, speech encoder, face encoder and face decoder.

    `aligned`: the speech encoder as the align stage left it, where the configuration has that stage.
    """
    checkpoint = load_stage(run, "pretrain", config, corpus)
    builders: dict[str, Any] = {
        "speech": build_speech_encoder,
        "face_encoder": build_face_encoder,
        "face_decoder": build_face_decoder,
    }
    speech, encoder, decoder = (
        restore(build(checkpoint.config), checkpoint.group(key), key) for key, build in builders.items()
    )
    if aligned and checkpoint.config.align.steps:
        restore(speech, load_stage(run, "align", config, corpus).group("speech"), "speech")
    return checkpoint, speech, encoder, decoder


def load_system(run: str | Path, arm: str = "auto") -> System:
    """A trained run; "auto" takes the shortcut arm where the configuration has it, and the slim decoder likewise.

    Raises CheckpointInvalid, which says what is missing or does not fit.
    """
    run = Path(run)
    if arm == "auto":
        arm = "shortcut" if load_stage(run, "diffusion").config.shortcut.steps else "diffusion"
    trained = load_stage(run, arm)
    config = trained.config
    load_stage(run, "diffusion", config)
    pretrain, speech, _, decoder = load_pretrained(run, config)
    if config.decoder.steps:  # its settings may be newer than the denoiser's, which it knows nothing of
        slim = load_stage(run, "decoder")
        load_stage(run, "pretrain", slim.config)
        config = dataclasses.replace(config, decoder=slim.config.decoder)
        decoder = restore(build_slim_decoder(config), slim.group("decoder"), "decoder")
    prior = load_stage(run, "prior", config)
    denoiser = Denoiser(config)
    restore(denoiser, trained.group("denoiser"), "denoiser")
    return System(
        config=config,
        arm=arm,
        speech_encoder=speech,
        denoiser=denoiser,
        face_decoder=decoder,
        latent_mean=pretrain.tensors["latent_mean"],
        latent_std=pretrain.tensors["latent_std"],
        prior=prior.tensors["prior"],
        alphas_cumprod=alphas_cumprod(config.diffusion.schedule, config.diffusion.timesteps),
        origin=trained.origin,
        schedules=from_tensors(trained.group("schedule")),
    )
