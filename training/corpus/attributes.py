"""What describes one portrait: the face that belongs to an identity, and the view that belongs to one picture.

Slider names are MakeHuman's logical sliders without the side: ``group/name`` where ``name`` is the target file's name
without its direction (``-decr|-incr``, ``-in|-out`` …) and without ``l-``/``r-``. Examples: ``head/head-oval``,
``nose/nose-scale-horiz``, ``eyes/eye-scale`` (moves both eyes). A side may be asked for by MakeHuman's own name,
``eyes/l-eye-scale``; it then adds to the symmetric one. Two-ended sliders take -1…1, single-ended ones 0…1.
`Renderer.catalogue().sliders` lists the names with their lower end.
"""

from __future__ import annotations

from dataclasses import dataclass, field

RENDER_VERSION = 1  # raise it when the portrait of the same attributes changes: an older corpus is not continued


@dataclass(frozen=True)
class FaceAttributes:
    """One identity's face. Shares need not sum to 1; they are normalised. Unknown names raise `InvalidArgument`."""

    sex: float  # 0 female … 1 male
    age: float  # years, 15 … 85
    african: float = 1 / 3
    asian: float = 1 / 3
    caucasian: float = 1 / 3
    weight: float = 0.5  # 0 thin … 1 heavy
    muscle: float = 0.5  # 0 … 1
    sliders: dict[str, float] = field(default_factory=dict)
    hair: str = ""  # style name from the catalogue; "" is a shaven head
    hair_colour: tuple[float, float, float] = (0.22, 0.14, 0.09)  # sRGB 0 … 1, before greying with age
    brow: str = ""  # "" takes the first of the catalogue
    lashes: str = ""  # "" takes the first of the catalogue
    eyes: str = "brown"
    skin_tone: float = 0.0  # -1 lighter … 1 darker than the ethnic shares' mean
    stubble: float = 0.0  # 0 … 1, above 0.6 a grown beard; fades out towards female
    seed: int = 0  # pores, freckles, blotches, grey strands


@dataclass(frozen=True)
class ViewAttributes:
    """One picture of a face: pose, light, surroundings, expression. Angles in degrees."""

    yaw: float = 0.0  # positive turns the face to the picture's right
    pitch: float = 0.0  # positive looks up
    roll: float = 0.0  # positive tilts the head clockwise in the picture
    key_azimuth: float = 35.0  # 0 from the camera, positive from the picture's right
    key_elevation: float = 35.0
    key_strength: float = 1.0  # 0.5 … 1.5
    fill_strength: float = 0.4  # 0 … 1
    background: tuple[float, float, float] = (0.55, 0.58, 0.62)  # sRGB 0 … 1, centre of a soft gradient
    garment: tuple[float, float, float] = (0.25, 0.28, 0.35)  # sRGB 0 … 1
    expression: dict[str, float] = field(default_factory=dict)  # unit name -> 0 … 1, e.g. "mouth-corner-puller"


@dataclass(frozen=True)
class Catalogue:
    """What a data folder can draw."""

    hair_female: tuple[str, ...]
    hair_male: tuple[str, ...]  # "" among them: a shaven head
    brows: tuple[str, ...]
    lashes: tuple[str, ...]
    eye_colours: tuple[str, ...]
    sliders: dict[str, float]  # name -> lower end: -1.0, or 0.0 for single-ended ones
    expressions: tuple[str, ...]
