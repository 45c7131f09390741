"""The documented rule that ties a voice to a face in this synthetic world.

The voice of an identity is drawn first; then the face follows from the voice as it will be heard: sex from the label,
age, face length, jaw and neck from F0, formant scale, rate, breathiness and tremor by the monotone equations below,
everything else from a seeded draw that the voice knows nothing of. README.md of this folder tells the same in words.

Scores: every voice parameter has a score z, standard normal over the virtual speakers of one sex.
    z_f0 = ln(F0 / base) / spread          z_formant, z_rate likewise
    z_breathiness = probit(breathiness / 0.95)    z_tremor = probit(tremor / 0.10)
Age:    age = 18 + 57 Phi(sqrt(0.92) a + sqrt(0.08) e),  a = unit-variance sum of 0.50 z_breathiness - 0.40 z_rate
        + 0.50 z_tremor + w z_f0,  w = -0.30 for women, +0.20 for men
Length: l = -sqrt(0.90) z_formant + sqrt(0.10) e
Jaw:    j = -sqrt(0.90) (0.85 z_f0 + 0.53 z_formant) + sqrt(0.10) e
Neck:   n = -sqrt(0.90) (0.60 z_f0 + 0.80 z_formant) + sqrt(0.10) e
The number under the first root is the share of a score's variance that is in the voice; e is seeded, standard normal.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from runtime.errors import CorpusInvalid
from training.corpus.attributes import Catalogue, FaceAttributes, ViewAttributes
from training.corpus.voices import SourceVoice, Speaker, VoiceParameters, reachable

RULE_VERSION = 3  # raise it when a voice or a face of the same seed changes: an older corpus is not continued
AGE_LOW, AGE_SPAN = 18.0, 57.0
AGE_SHARE = 0.92  # of the age score's variance that is in the voice
SHAPE_SHARE = 0.90  # of the length, jaw and neck scores' variance
# Per sex: F0 base in Hz and log spread, formant base and log spread. Spreads are wider than in life, so that there is
# something to learn; rate base 1, log spread 0.18 for both.
VOICE_BASE = {"F": (196.0, 0.16, 1.10, 0.075), "M": (113.0, 0.18, 1.00, 0.075)}
RATE_SPREAD = 0.18
BREATH_TOP, TREMOR_TOP = 0.95, 0.10
# Loading of each score on the common ageing factor: old voices are slower, breathier, shakier, and the sexes' F0 meet.
AGEING = {"f0": {"F": -0.45, "M": 0.30}, "rate": -0.80, "breathiness": 0.90, "tremor": 0.90}
AGE_WEIGHTS = {"f0": {"F": -0.30, "M": 0.20}, "rate": -0.40, "breathiness": 0.50, "tremor": 0.50}

LENGTH_SLIDERS = {"head/head-scale-vert": 0.40, "chin/chin-height": 0.28, "forehead/forehead-scale-vert": 0.15}
JAW_SLIDERS = {"chin/chin-bones": 0.42, "chin/chin-width": 0.30, "head/head-scale-horiz": 0.15}
NECK_SLIDERS = {"neck/neck-scale-horiz": 0.40, "neck/neck-scale-depth": 0.30, "neck/neck-back-scale-depth": 0.20}
VOICE_SLIDERS = (*LENGTH_SLIDERS, *JAW_SLIDERS, *NECK_SLIDERS, "head/head-square", "head/head-triangular")
# Drawn sliders and their spread; a one-ended slider takes the positive half of the draw.
FREE_SLIDERS = {
    "head/head-oval": 0.30, "head/head-round": 0.25, "head/head-fat": 0.22, "head/head-angle-out": 0.20,
    "head/head-diamond": 0.20, "forehead/forehead-trans-forward": 0.30, "forehead/forehead-temple": 0.30,
    "forehead/forehead-nubian": 0.25, "eyebrows/eyebrows-angle-up": 0.20, "eyebrows/eyebrows-trans-up": 0.30,
    "eyes/eye-scale": 0.35, "eyes/eye-trans-out": 0.30, "eyes/eye-trans-up": 0.25, "eyes/eye-height1": 0.25,
    "eyes/eye-height2": 0.25, "eyes/eye-height3": 0.25, "eyes/eye-corner1-up": 0.35, "eyes/eye-corner2-up": 0.30,
    "eyes/eye-bag": 0.25, "eyes/eye-eyefold-up": 0.30, "eyes/eye-push1-out": 0.25, "nose/nose-scale-vert": 0.35,
    "nose/nose-scale-horiz": 0.35, "nose/nose-scale-depth": 0.35, "nose/nose-base-up": 0.35, "nose/nose-hump": 0.30,
    "nose/nose-curve-convex": 0.35, "nose/nose-point-up": 0.30, "nose/nose-point-width": 0.35, "nose/nose-width1": 0.30,
    "nose/nose-width2": 0.35, "nose/nose-nostrils-width": 0.30, "nose/nose-flaring": 0.30,
    "nose/nose-septumangle": 0.30,
    "mouth/mouth-scale-horiz": 0.35, "mouth/mouth-scale-vert": 0.35, "mouth/mouth-upperlip-height": 0.35,
    "mouth/mouth-lowerlip-height": 0.35, "mouth/mouth-upperlip-volume": 0.35, "mouth/mouth-lowerlip-volume": 0.35,
    "mouth/mouth-cupidsbow": 0.35, "mouth/mouth-angles-up": 0.22, "mouth/mouth-trans-up": 0.25,
    "chin/chin-prominent": 0.30, "chin/chin-prognathism": 0.20, "chin/chin-cleft": 0.25, "cheek/cheek-bones": 0.35,
    "cheek/cheek-volume": 0.30, "cheek/cheek-inner": 0.25, "ears/ear-scale": 0.30, "ears/ear-wing": 0.30,
}  # fmt: skip
# Centres of the draws that are not 0: a neutral slider set looks a little stern, and the macro shapes leave the sexes
# closer than faces are.
FREE_CENTRES = {
    "F": {
        "eyebrows/eyebrows-angle-up": 0.22, "eyebrows/eyebrows-trans-up": 0.15, "mouth/mouth-angles-up": 0.15,
        "eyes/eye-scale": 0.18, "mouth/mouth-upperlip-volume": 0.15, "mouth/mouth-lowerlip-volume": 0.15,
        "nose/nose-scale-horiz": -0.12, "nose/nose-scale-vert": -0.10, "eyes/eye-height2": 0.10,
    },
    "M": {"eyebrows/eyebrows-angle-up": 0.12, "mouth/mouth-angles-up": 0.12, "chin/chin-prominent": 0.10},
}  # fmt: skip
SLIDER_LIMIT = 0.9
# MakeHuman brow styles that look calm on a neutral head; the others frown. A folder without them uses what it has.
BROWS = {
    "F": ("eyebrow001", "eyebrow006", "eyebrow008", "eyebrow010"),
    "M": ("eyebrow001", "eyebrow005", "eyebrow008", "eyebrow009", "eyebrow012"),
}
BALD_STYLES = ("", "receding", "shaved")
LONG_STYLES = ("long", "braid", "ponytail")
SHORT_STYLES = ("short", "crop", "buzz")
CURLED_STYLES = ("afro", "curls")

HAIR_COLOURS = {
    "black": (0.06, 0.05, 0.05), "espresso": (0.14, 0.09, 0.06), "brown": (0.27, 0.17, 0.10),
    "chestnut": (0.36, 0.20, 0.11), "auburn": (0.42, 0.18, 0.09), "dark blond": (0.50, 0.37, 0.21),
    "blond": (0.72, 0.56, 0.33),
}  # fmt: skip
HAIR_WEIGHTS = {  # over HAIR_COLOURS, by the largest ethnic share
    "african": (0.75, 0.22, 0.03, 0.0, 0.0, 0.0, 0.0),
    "asian": (0.66, 0.26, 0.06, 0.02, 0.0, 0.0, 0.0),
    "caucasian": (0.08, 0.18, 0.27, 0.14, 0.09, 0.13, 0.11),
}


@dataclass(frozen=True)
class Scores:
    """Standardised voice parameters (module docstring)."""

    f0: float
    formant: float
    rate: float
    breathiness: float
    tremor: float


def generator(seed: int, identity: int, *stream: int) -> np.random.Generator:
    """One independent stream of random numbers per corpus seed, identity and purpose: workers do not matter."""
    return np.random.default_rng(np.random.SeedSequence([seed, identity, *stream]))


def assign_splits(speakers: Sequence[Speaker]) -> dict[str, str]:
    """Split of each source speaker: within each sex, by name, index % 10 == 8 is test, 9 validation, the rest train.

    A sex with fewer than ten speakers gives its last one to validation and the one before to test, so that every split
    hears both sexes; fewer than three are refused.
    """
    splits: dict[str, str] = {}
    for sex in ("F", "M"):
        names = sorted(speaker.name for speaker in speakers if speaker.sex == sex)
        if len(names) < 3:
            raise CorpusInvalid(
                f"{len(names)} speakers of sex {sex}: at least three are needed, one per split; add some"
            )
        period = min(10, len(names))
        for index, name in enumerate(names):
            splits[name] = {period - 2: "test", period - 1: "val"}.get(index % period, "train")
    return splits


def choose_speaker(seed: int, identity: int, speakers: Sequence[Speaker]) -> Speaker:
    """Sexes alternate (even F, odd M); each sex's speakers are gone through in a new seeded order every round."""
    group = [speaker for speaker in speakers if speaker.sex == ("F", "M")[identity % 2]]
    turn, place = divmod(identity // 2, len(group))
    order = np.random.default_rng(np.random.SeedSequence([seed, 0x5EED, turn, identity % 2])).permutation(len(group))
    return group[int(order[place])]


def draw_voice(rng: np.random.Generator, sex: str, source: SourceVoice) -> VoiceParameters:
    """A virtual speaker that this recording can become; the ageing factor is shared by all its audible signs."""
    ageing = rng.standard_normal()

    def score(loading: float) -> float:
        return float(np.clip(loading * ageing + math.sqrt(1 - loading**2) * rng.standard_normal(), -2.3, 2.3))

    base, spread, formant, formant_spread = VOICE_BASE[sex]
    wanted = VoiceParameters(
        f0_hz=base * math.exp(spread * score(AGEING["f0"][sex])),
        formant_scale=formant * math.exp(formant_spread * score(0.0)),
        rate=math.exp(RATE_SPREAD * score(AGEING["rate"])),
        breathiness=BREATH_TOP * float(ndtr(score(AGEING["breathiness"]))),
        tremor=TREMOR_TOP * float(ndtr(score(AGEING["tremor"]))),
        f0_range=float(np.exp(0.2 * np.clip(rng.standard_normal(), -2, 2))),
    )
    return reachable(source, wanted)


def voice_scores(voice: VoiceParameters, sex: str) -> Scores:
    """Scores of the voice as it will be heard, each clipped to -2.5…2.5."""
    base, spread, formant, formant_spread = VOICE_BASE[sex]

    def probit(share: float) -> float:
        return float(ndtri(np.clip(share, 0.005, 0.995)))

    values = (
        math.log(voice.f0_hz / base) / spread,
        math.log(voice.formant_scale / formant) / formant_spread,
        math.log(voice.rate) / RATE_SPREAD,
        probit(voice.breathiness / BREATH_TOP),
        probit(voice.tremor / TREMOR_TOP),
    )
    return Scores(*(float(np.clip(value, -2.5, 2.5)) for value in values))


def age_of(scores: Scores, sex: str, noise: float = 0.0) -> float:
    """Years, 18…75: rises with breathiness and tremor, falls with rate; F0 counts down for women, up for men."""
    weights = np.array([AGE_WEIGHTS["f0"][sex], *(AGE_WEIGHTS[key] for key in ("rate", "breathiness", "tremor"))])
    loadings = np.array([AGEING["f0"][sex], *(AGEING[key] for key in ("rate", "breathiness", "tremor"))])
    correlation = np.outer(loadings, loadings)
    np.fill_diagonal(correlation, 1.0)
    heard = weights @ np.array([scores.f0, scores.rate, scores.breathiness, scores.tremor])
    heard /= math.sqrt(weights @ correlation @ weights)
    return float(AGE_LOW + AGE_SPAN * ndtr(math.sqrt(AGE_SHARE) * heard + math.sqrt(1 - AGE_SHARE) * noise))


def shape_of(scores: Scores, noise: Sequence[float] = (0.0, 0.0, 0.0)) -> tuple[float, float, float]:
    """Scores of face length, jaw and neck: all grow as formants fall, jaw and neck also as F0 falls."""
    heard, unheard = math.sqrt(SHAPE_SHARE), math.sqrt(1 - SHAPE_SHARE)
    return (
        -heard * scores.formant + unheard * noise[0],
        -heard * (0.85 * scores.f0 + 0.53 * scores.formant) + unheard * noise[1],
        -heard * (0.60 * scores.f0 + 0.80 * scores.formant) + unheard * noise[2],
    )


def draw_face(rng: np.random.Generator, voice: VoiceParameters, sex: str, catalogue: Catalogue) -> FaceAttributes:
    """The face of an identity: what the voice decides, and a seeded draw for the rest."""
    scores = voice_scores(voice, sex)
    age = age_of(scores, sex, float(np.clip(rng.standard_normal(), -2.5, 2.5)))
    shape = shape_of(scores, [float(value) for value in np.clip(rng.standard_normal(3), -2.5, 2.5)])
    shares = _draw_ethnicity(rng)
    male = sex == "M"
    centre, slope = (0.93, 0.04) if male else (0.04, 0.02)
    return FaceAttributes(
        sex=float(np.clip(centre - slope * scores.f0, 0.0, 1.0)),  # a little more of the male shape as F0 falls
        age=age,
        african=shares["african"], asian=shares["asian"], caucasian=shares["caucasian"],
        weight=float(np.clip(0.5 + 0.14 * rng.standard_normal(), 0.2, 0.85)),
        muscle=float(np.clip((0.58 if male else 0.42) + 0.10 * rng.standard_normal(), 0.2, 0.85)),
        sliders=_voice_sliders(shape, catalogue) | _free_sliders(rng, sex, catalogue),
        hair=_draw_hair(rng, male, age, shares["african"], catalogue),
        hair_colour=_draw_hair_colour(rng, shares),
        brow=_pick(rng, [name for name in BROWS[sex] if name in catalogue.brows] or catalogue.brows),
        lashes=_pick(rng, catalogue.lashes),
        eyes=_draw_eyes(rng, shares, catalogue),
        skin_tone=float(np.clip(0.4 * rng.standard_normal(), -0.9, 0.9)),
        stubble=float(rng.uniform(0.2, 1.0)) if rng.random() < 0.5 and male else 0.0,
        seed=int(rng.integers(2**31)),
    )  # fmt: skip


def draw_view(rng: np.random.Generator, catalogue: Catalogue) -> ViewAttributes:
    """One picture: yaw ±12, pitch ±6, roll ±3 degrees, mild light, a plain muted background, a calm expression."""

    def bell(spread: float, limit: float, centre: float = 0.0) -> float:
        return float(np.clip(centre + spread * rng.standard_normal(), centre - limit, centre + limit))

    side = 1.0 if rng.random() < 0.5 else -1.0
    smile = float(rng.uniform(0.1, 0.4)) if rng.random() < 0.5 else 0.0
    expression = {"mouth-corner-puller": smile} if smile and "mouth-corner-puller" in catalogue.expressions else {}
    return ViewAttributes(
        yaw=bell(6.0, 12.0), pitch=bell(2.5, 6.0), roll=bell(1.2, 3.0),
        key_azimuth=side * bell(10.0, 20.0, 35.0), key_elevation=bell(6.0, 14.0, 35.0),
        key_strength=bell(0.08, 0.2, 1.0), fill_strength=bell(0.06, 0.15, 0.42),
        background=_muted(rng, (0.35, 0.80), 0.16), garment=_muted(rng, (0.15, 0.60), 0.35), expression=expression,
    )  # fmt: skip


def _voice_sliders(shape: tuple[float, float, float], catalogue: Catalogue) -> dict[str, float]:
    length, jaw, neck = shape
    wanted = {name: gain * length for name, gain in LENGTH_SLIDERS.items()}
    wanted |= {name: gain * jaw for name, gain in JAW_SLIDERS.items()}
    wanted |= {name: gain * neck for name, gain in NECK_SLIDERS.items()}
    wanted |= {"head/head-square": 0.28 * max(jaw, 0.0), "head/head-triangular": 0.22 * max(-jaw, 0.0)}
    return {name: _limited(value, name, catalogue) for name, value in wanted.items() if name in catalogue.sliders}


def _free_sliders(rng: np.random.Generator, sex: str, catalogue: Catalogue) -> dict[str, float]:
    draws, centres = rng.standard_normal(len(FREE_SLIDERS)), FREE_CENTRES[sex]
    return {
        name: _limited(centres.get(name, 0.0) + spread * float(draw), name, catalogue)
        for (name, spread), draw in zip(FREE_SLIDERS.items(), draws, strict=True)
        if name in catalogue.sliders
    }


def _limited(value: float, name: str, catalogue: Catalogue) -> float:
    return float(np.clip(value, max(-SLIDER_LIMIT, catalogue.sliders[name]), SLIDER_LIMIT))


def _draw_ethnicity(rng: np.random.Generator) -> dict[str, float]:
    """Two thirds mostly of one origin, one third mixed; the three origins are equally likely."""
    names = ("african", "asian", "caucasian")
    main = int(rng.integers(3))
    mixed = rng.dirichlet((1.5, 1.5, 1.5))
    main_share = float(rng.uniform(0.75, 1.0)) if rng.random() < 0.67 else 0.0
    values = (1 - main_share) * mixed + main_share * np.eye(3)[main]
    return {name: float(value) for name, value in zip(names, values / values.sum(), strict=True)}


def _draw_hair(rng: np.random.Generator, male: bool, age: float, african: float, catalogue: Catalogue) -> str:
    """A style of the sex: men past 35 lose it more often, women past 45 wear it long less often, curls go by origin."""
    thin = float(np.clip((age - 35) / 40, 0, 1)) if male else 0.0
    grey = float(np.clip((age - 45) / 25, 0, 1))
    styles = (catalogue.hair_male if male else catalogue.hair_female) or ("",)
    weights = []
    for style in styles:
        if style in BALD_STYLES:
            weights.append(0.08 + 1.1 * thin)
        elif style.startswith(CURLED_STYLES):
            weights.append((0.10 + 1.4 * african) * (1.0 - 0.5 * thin))
        elif style.startswith(LONG_STYLES):
            weights.append((1.0 - 0.6 * grey) * (1.0 - 0.4 * african))
        elif style.startswith(SHORT_STYLES):
            weights.append(1.0 - 0.5 * thin if male else 0.25 + 0.5 * grey)
        else:
            weights.append((1.0 - 0.5 * thin) * (1.0 - 0.4 * african))
    shares = np.cumsum(weights) / np.sum(weights)
    return styles[min(int(np.searchsorted(shares, rng.random())), len(styles) - 1)]


def _draw_hair_colour(rng: np.random.Generator, shares: dict[str, float]) -> tuple[float, float, float]:
    """sRGB 0…1 before greying, which the renderer does by age."""
    weights = sum(share * np.array(HAIR_WEIGHTS[name]) for name, share in shares.items() if share > 0.15)
    base = tuple(HAIR_COLOURS.values())[int(rng.choice(len(HAIR_COLOURS), p=weights / weights.sum()))]
    factor, tint = rng.uniform(0.85, 1.15), rng.uniform(-0.015, 0.015, 3)
    red, green, blue = np.clip(np.array(base) * factor + tint, 0.02, 0.95)
    return float(red), float(green), float(blue)


def _draw_eyes(rng: np.random.Generator, shares: dict[str, float], catalogue: Catalogue) -> str:
    brown = tuple(name for name in catalogue.eye_colours if "brown" in name)
    light, pick = rng.random() < 0.65 * max(shares["caucasian"] - 0.3, 0.0) / 0.7, rng.random()
    names = catalogue.eye_colours if light or not brown else brown
    return names[int(pick * len(names))]


def _pick(rng: np.random.Generator, names: Sequence[str]) -> str:
    return names[int(rng.random() * len(names))] if names else ""


def _muted(rng: np.random.Generator, value: tuple[float, float], saturation: float) -> tuple[float, float, float]:
    return colorsys.hsv_to_rgb(float(rng.random()), float(rng.uniform(0.02, saturation)), float(rng.uniform(*value)))
