"""Configurations: one TOML file per system variant, parsed into frozen dataclasses; unknown keys are refused."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from runtime.errors import ConfigInvalid
from runtime.specs import PRIOR_MODES
from training.arms import GUIDANCE
from training.sampling import PREDICTIONS, SCHEDULES, alphas_cumprod, shortcut_table

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class FrontendConfig:
    """Short-time spectrum of the six seconds; lengths in samples at 16 kHz. Defaults are Speech2Face's."""

    features: str = "complex"  # "complex" (Speech2Face) or "mel"
    window: int = 400
    hop: int = 160
    fft: int = 512
    power: float = 0.3
    mels: int = 96
    max_hz: float = 6000.0


@dataclass(frozen=True)
class SpeechConfig:
    """Speech encoder: `paper` (Speech2Face CNN with CBAM) or `edge` (small temporal convolutions)."""

    kind: str = "edge"
    width: int = 192
    blocks: int = 4
    dropout: float = 0.0  # of the edge encoder's pooled statistics
    frontend: FrontendConfig = field(default_factory=FrontendConfig)


@dataclass(frozen=True)
class FaceConfig:
    """Face encoder and decoder: `compact` (residual convolutions) or `vgg` (VGG-16 and its mirror, the paper's)."""

    kind: str = "compact"
    size: int = 128
    latent_channels: int = 4
    encoder_widths: tuple[int, ...] = (32, 64, 128)
    decoder_widths: tuple[int, ...] = (128, 96, 64, 24)
    decoder_blocks: tuple[int, ...] = (3, 2, 1, 0)


@dataclass(frozen=True)
class PretrainConfig:
    """Collaborative pre-training (SCLDM eq. 1). Learning rates default to the paper's."""

    steps: int = 1600
    batch: int = 64  # pairs in the contrastive matrix
    reconstruct: int = 24  # of these, portraits that are also decoded
    contrastive_every: int = 1  # steps; those between reconstruct only, where decoding lags behind pairing
    lr_face: float = 1e-4
    lr_speech: float = 1e-3
    contrastive_weight: float = 1.0
    reconstruction_weight: float = 1.0
    feature_loss: str = "pyramid"  # "lpips" or "pyramid"
    feature_weight: float = 1.0
    colour_weight: float = 0.0  # of opponent colours, beside MAE and the perceptual loss
    latent_noise: float = 0.0  # std of noise on the unit-variance latent while the decoder learns
    mask_frames: int = 0  # longest of two time masks on the spectrogram (SpecAugment), in frames
    mask_bands: int = 0  # longest of two frequency masks, in bands
    weight_decay: float = 1e-4


@dataclass(frozen=True)
class AlignConfig:
    """Tuning of the speech encoder against the frozen embeddings of all training faces."""

    steps: int = 0  # 0: no such stage
    batch: int = 64
    lr: float = 3e-4
    weight_decay: float = 0.02
    label_smoothing: float = 0.1
    attribute_weight: float = 1.0  # of sex and age, as the corpus knows them


@dataclass(frozen=True)
class PriorConfig:
    """Statistical face prior (SCLDM eq. 3): faces per estimate; the last is the one kept."""

    counts: tuple[int, ...] = (100, 500, 1000, 2000)


@dataclass(frozen=True)
class DiffusionConfig:
    """Speech-conditioned latent diffusion (SCLDM eqs. 2, 4-6)."""

    steps: int = 8000
    batch: int = 64
    lr: float = 2e-5
    ema: float = 0.999
    timesteps: int = 1000
    schedule: str = "linear"
    prediction: str = "epsilon"
    prior_mode: str = "add"
    prior_weight: float = 0.01
    condition_dropout: float = 0.1
    latent_clip: float = 4.0
    tokens: int = 8
    token_width: int = 128
    channels: tuple[int, ...] = (96, 128)
    attention: tuple[int, ...] = (0, 1)  # 1: this level has self- and cross-attention
    layers: int = 1
    head_width: int = 32
    norm_groups: int = 32
    preview_steps: int = 25


@dataclass(frozen=True)
class ShortcutConfig:
    """Few-step objective: rectified flow with step-size conditioning and self-consistency (Frans et al. 2024)."""

    steps: int = 0  # 0: no such stage
    batch: int = 64
    lr: float = 2e-4
    ema: float = 0.999
    levels: int = 5  # step sizes 1, 1/2 … 2^(1-levels); twice the finest's number of steps is the teacher's
    bootstrap: float = 0.5  # share of a batch that learns these sizes; the rest is plain flow matching
    guidance: float = GUIDANCE  # folded into the steps of these sizes
    condition_dropout: float = 0.1
    prior_weights: tuple[float, ...] = (0.0, 0.1)  # the range w is drawn from in x_1 = eps + w·prior, and served in
    prior_weight: float = 0.01  # served by default


@dataclass(frozen=True)
class DecoderConfig:
    """Slim face decoder for devices, trained on frozen latents from portraits and the larger decoder."""

    steps: int = 0  # 0: no such stage; the larger decoder is served
    batch: int = 8
    lr: float = 5e-4
    ema: float = 0.998
    widths: tuple[int, ...] = (96, 64, 32, 12)
    blocks: tuple[int, ...] = (2, 2, 1, 0)
    distillation_weight: float = 0.5
    feature_weight: float = 1.0
    colour_weight: float = 0.0
    adversarial_weight: float = 0.0
    latent_noise: float = 0.1


@dataclass(frozen=True)
class Config:
    """Everything that decides what the weights become, given a corpus and a seed."""

    name: str
    seed: int = 0
    embedding: int = 256
    precision: str = "float32"  # "bfloat16" trains under autocast
    log_every: int = 20
    save_every: int = 200
    sample_every: int = 400
    speech: SpeechConfig = field(default_factory=SpeechConfig)
    face: FaceConfig = field(default_factory=FaceConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    align: AlignConfig = field(default_factory=AlignConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    shortcut: ShortcutConfig = field(default_factory=ShortcutConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)

    @property
    def step_sizes(self) -> int:
        """How many step sizes the denoiser tells apart: the flow itself and the leaps; 0 where it need not."""
        return self.shortcut.levels + 1 if self.shortcut.steps else 0


CHOICES = {
    "precision": ("float32", "bfloat16"),
    "speech.kind": ("paper", "edge"),
    "speech.frontend.features": ("complex", "mel"),
    "face.kind": ("compact", "vgg"),
    "pretrain.feature_loss": ("lpips", "pyramid"),
    "diffusion.schedule": SCHEDULES,
    "diffusion.prediction": PREDICTIONS,
    "diffusion.prior_mode": PRIOR_MODES,
}

RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1),
    "embedding": (1, 65536),
    "log_every": (1, 10**9),
    "save_every": (1, 10**9),
    "sample_every": (1, 10**9),
    "face.size": (16, 1024),
    "face.latent_channels": (1, 64),
    "face.encoder_widths": (1, 4096),
    "face.decoder_widths": (1, 4096),
    "face.decoder_blocks": (0, 64),
    "pretrain.steps": (1, 10**9),
    "pretrain.batch": (2, 65536),
    "pretrain.contrastive_every": (1, 1000),
    "pretrain.lr_face": (1e-9, 1.0),
    "pretrain.lr_speech": (1e-9, 1.0),
    "pretrain.latent_noise": (0.0, 1.0),
    "pretrain.mask_frames": (0, 10_000),
    "pretrain.mask_bands": (0, 10_000),
    "pretrain.weight_decay": (0.0, 1.0),
    "speech.dropout": (0.0, 0.9),
    "prior.counts": (1, 10**9),
    "diffusion.steps": (1, 10**9),
    "diffusion.batch": (1, 65536),
    "diffusion.lr": (1e-9, 1.0),
    "diffusion.ema": (0.0, 0.999999),
    "diffusion.timesteps": (2, 100_000),
    "diffusion.prior_weight": (0.0, 0.999),
    "diffusion.condition_dropout": (0.0, 0.999),
    "diffusion.latent_clip": (0.1, 100.0),
    "diffusion.preview_steps": (1, 1000),
    "diffusion.tokens": (1, 1024),
    "diffusion.token_width": (1, 8192),
    "diffusion.channels": (1, 8192),
    "diffusion.layers": (1, 16),
    "diffusion.head_width": (1, 1024),
    "diffusion.norm_groups": (1, 1024),
    "align.steps": (0, 10**9),
    "align.batch": (1, 65536),
    "align.lr": (1e-9, 1.0),
    "align.weight_decay": (0.0, 1.0),
    "align.label_smoothing": (0.0, 0.999),
    "align.attribute_weight": (0.0, 1e6),
    "shortcut.steps": (0, 10**9),
    "shortcut.batch": (2, 65536),
    "shortcut.lr": (1e-9, 1.0),
    "shortcut.ema": (0.0, 0.999999),
    "shortcut.levels": (1, 10),
    "shortcut.bootstrap": (0.05, 0.95),
    "shortcut.guidance": (0.0, 100.0),
    "shortcut.condition_dropout": (0.0, 0.999),
    "shortcut.prior_weights": (0.0, 0.999),
    "decoder.steps": (0, 10**9),
    "decoder.batch": (1, 65536),
    "decoder.lr": (1e-9, 1.0),
    "decoder.ema": (0.0, 0.999999),
    "decoder.widths": (1, 4096),
    "decoder.blocks": (0, 64),
    "decoder.distillation_weight": (0.0, 1e6),
    "decoder.feature_weight": (0.0, 1e6),
    "decoder.colour_weight": (0.0, 1e6),
    "decoder.adversarial_weight": (0.0, 1e6),
    "decoder.latent_noise": (0.0, 1.0),
    "pretrain.contrastive_weight": (0.0, 1e6),
    "pretrain.reconstruction_weight": (0.0, 1e6),
    "pretrain.feature_weight": (0.0, 1e6),
    "pretrain.colour_weight": (0.0, 1e6),
}


def shipped_configs() -> list[str]:
    """Names of the configurations inside the package."""
    return sorted(
        p.name[:-5] for p in resources.files("training").joinpath("configs").iterdir() if p.name[-5:] == ".toml"
    )


def load_config(name_or_path: str) -> Config:
    """A shipped configuration by name (`tiny`, `demo`, `paper`) or any TOML file by path; ConfigInvalid otherwise."""
    if name_or_path in shipped_configs():
        text = resources.files("training").joinpath("configs", f"{name_or_path}.toml").read_text("utf-8")
    else:
        try:
            text = Path(name_or_path).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            known = ", ".join(shipped_configs())
            raise ConfigInvalid(
                f"no configuration {name_or_path!r} ({error}); use one of {known}, or a TOML file"
            ) from error
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigInvalid(f"configuration {name_or_path!r} is not TOML: {error}; mend that line") from error
    return config_from_dict(values)


def config_from_dict(values: dict[str, Any]) -> Config:
    """A checked `Config` from nested plain values, as TOML or a checkpoint's metadata give them."""
    config = _build(Config, values, "")
    _check(config)
    return config


def config_to_dict(config: Config) -> dict[str, Any]:
    """Nested plain values; `config_from_dict` gives the same configuration back."""
    return dataclasses.asdict(config)


def _build(kind: type[Any], values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise ConfigInvalid(f"[{where}] must be a table, found {values!r}")
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in hints:
            raise ConfigInvalid(f"unknown key {where}{key}; known here: {', '.join(hints)}")
    missing = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    if missing and missing[0] not in values:
        raise ConfigInvalid(f"key {where}{missing[0]} is missing")
    return kind(**{key: _convert(hints[key], value, f"{where}{key}") for key, value in values.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast("type[Any]", hint), value, f"{where}.")
    if isinstance(hint, types.GenericAlias):  # tuple[int, ...], tuple[float, ...]
        if not isinstance(value, (list, tuple)) or not value:
            raise ConfigInvalid(f"{where} must be a list of numbers, found {value!r}")
        return tuple(_convert(hint.__args__[0], one, f"{where}[{i}]") for i, one in enumerate(value))
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigInvalid(f"{where} must be {hint.__name__}, found {value!r}")
    return value


def _at(config: Config, path: str) -> Any:
    value: Any = config
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _check(config: Config) -> None:
    for path, choices in CHOICES.items():
        value = _at(config, path)
        if value not in choices:
            raise ConfigInvalid(f"{path} is {value!r}; use one of {', '.join(choices)}")
    for path, (low, high) in RANGES.items():
        value = _at(config, path)
        for one in value if isinstance(value, tuple) else (value,):
            if not low <= one <= high:
                raise ConfigInvalid(f"{path} is {value!r}; it must lie in {low} to {high}")
    if list(config.prior.counts) != sorted(set(config.prior.counts)):
        raise ConfigInvalid("prior.counts must rise")
    served = config.shortcut.prior_weights
    if len(served) != 2 or not served[0] <= config.shortcut.prior_weight <= served[1]:
        raise ConfigInvalid("shortcut.prior_weights must be [lowest, highest], with shortcut.prior_weight among them")
    if config.shortcut.steps and config.diffusion.prediction != "v":
        raise ConfigInvalid('the shortcut stage starts from a network with diffusion.prediction "v"; set that')
    if config.shortcut.steps:
        finest = 2 ** (config.shortcut.levels - 1)  # steps; refused where the schedule has too little noise for them
        alpha_bar = alphas_cumprod(config.diffusion.schedule, config.diffusion.timesteps)
        shortcut_table(alpha_bar, (1 / finest,) * finest)
    _check_geometry(config)


def _check_geometry(config: Config) -> None:
    factor = 16 if config.face.kind == "vgg" else 2 ** len(config.face.encoder_widths)
    across = factor * 2 ** (len(config.diffusion.channels) - 1)  # the UNet halves the latent between its levels
    if config.face.size % across:
        raise ConfigInvalid(f"face.size is {config.face.size}; it must be a multiple of {across} for these networks")
    if not 0 < config.pretrain.reconstruct <= config.pretrain.batch:
        raise ConfigInvalid("pretrain.reconstruct must be 1 to pretrain.batch")
    face, slim, doublings = config.face, config.decoder, factor.bit_length() - 1
    decoders = {"face.decoder_": (face.decoder_widths, face.decoder_blocks)} if face.kind == "compact" else {}
    for where, (widths, blocks) in {**decoders, "decoder.": (slim.widths, slim.blocks)}.items():
        if len(widths) != len(blocks) or (len(widths) != doublings + 1 and (slim.steps or where != "decoder.")):
            raise ConfigInvalid(f"{where}widths and {where}blocks must have {doublings + 1} entries, latent's first")
    frontend = config.speech.frontend
    if frontend.features == "mel" and (
        frontend.window % frontend.hop or frontend.window % 2 or frontend.window > frontend.fft
    ):
        raise ConfigInvalid("speech.frontend.window must be even, a multiple of hop and at most fft for mel features")
    diffusion = config.diffusion
    if any(width % diffusion.norm_groups or width < diffusion.head_width for width in diffusion.channels):
        raise ConfigInvalid("diffusion.channels must be multiples of norm_groups and not less than head_width")
    if diffusion.preview_steps > diffusion.timesteps:
        raise ConfigInvalid("diffusion.preview_steps must not exceed diffusion.timesteps")
    if len(config.diffusion.channels) != len(config.diffusion.attention):
        raise ConfigInvalid("diffusion.channels and diffusion.attention must have the same length")
