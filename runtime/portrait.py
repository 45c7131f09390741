"""The portrait: pixels, how they came about, and files that say so themselves.

Every saved file carries XMP: IPTC's digital source type "trained algorithmic media", the generator, the bundle and its
hash, seed, steps, guidance and prior weight; never anything of the speech or its name. The same portrait is always the
same bytes.
`save_marked` is the one way to such a file, for a portrait and for a picture composed of portraits.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import BackendMissing, InvalidArgument
from .output import write_file

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
QUALITY = 95
DESCRIPTION = "A plausible portrait drawn by a model from a voice. It shows no real person and identifies nobody."
MAX_XMP_BYTES = 60_000  # one JPEG segment holds 65533

_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:s2f="urn:s2f-edge:provenance:1#"
{attributes}>
   <dc:description>
    <rdf:Alt>
     <rdf:li xml:lang="x-default">{description}</rdf:li>
    </rdf:Alt>
   </dc:description>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""


@dataclasses.dataclass(frozen=True)
class Timings:
    """Milliseconds of the call that made a portrait; the portraits of one call share them.

    `audio`: reading, resampling, window. `encoder`, `steps` (one entry per step) and `decoder`: the graphs one by one,
    summed over the call's batches; None and () where the device draws a whole portrait in one launch. `graphs`: all of
    it, noise included. `total`: the whole call, waiting for another thread's call included.
    """

    audio: float
    encoder: float | None
    steps: tuple[float, ...]
    decoder: float | None
    graphs: float
    total: float


@dataclasses.dataclass(frozen=True, eq=False)
class Portrait:
    """One generated face. `image`: uint8 [H, W, 3], RGB. `bundle_sha256`: the bundle's identity.

    `guidance` and `prior_weight` are those really used, also where the bundle folds them in.
    """

    image: npt.NDArray[np.uint8]
    seed: int
    steps: int
    guidance: float
    prior_weight: float
    timings: Timings
    bundle_name: str
    bundle_sha256: str

    @property
    def facts(self) -> dict[str, str | int | float]:
        """What the file of this portrait says of how it came about."""
        return {
            "Bundle": self.bundle_name,
            "BundleSha256": self.bundle_sha256,
            "Seed": self.seed,
            "Steps": self.steps,
            "Guidance": self.guidance,
            "PriorWeight": self.prior_weight,
        }

    def save(self, path: str | os.PathLike[str], *, format: str | None = None) -> None:  # noqa: A002 - Pillow's word
        """Write the portrait to `path`, whole or not at all; the format is that of the suffix unless given.

        Raises InvalidArgument (unknown format) and OutputUnwritable.
        """
        save_marked(self.image, path, facts=self.facts, format=format)

    def encode(self, format: str = "png") -> bytes:  # noqa: A002 - Pillow's word
        """The bytes of an image file: "png" (exact), "jpeg" or "webp" (quality 95). Raises InvalidArgument."""
        return encode_marked(self.image, format, facts=self.facts)


ALIKE_DB = 35.0
"""PSNR to another device's portrait, under which a device draws something else."""

ALIKE_INT8_DB = 30.0
"""The same for a portrait in eight bits beside one in float32."""


def psnr(image: npt.NDArray[np.uint8], reference: npt.NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB of two images uint8 of one shape; 100 where they are equal."""
    error = float(np.mean((image.astype(np.float64) - reference) ** 2))
    return 100.0 if error == 0 else 10 * math.log10(255**2 / error)


def save_marked(
    image: npt.NDArray[np.uint8],
    path: str | os.PathLike[str],
    *,
    facts: Mapping[str, str | int | float],
    description: str = DESCRIPTION,
    format: str | None = None,  # noqa: A002 - Pillow's word
    quality: int = QUALITY,
) -> None:
    """Write a picture made of generated portraits to `path` with the mark every portrait carries, whole or not at all.

    `image`: uint8 [H, W, 3], RGB. `facts`: names like those of `Portrait.facts` to values. `description`: one line for
    a reader. `format`: that of the suffix unless given. `quality`: 1..100, for JPEG and WebP.
    Raises InvalidArgument and OutputUnwritable.
    """
    target = Path(path)
    kind = format or format_of(target)
    write_file(target, encode_marked(image, kind, facts=facts, description=description, quality=quality))


def encode_marked(
    image: npt.NDArray[np.uint8],
    format: str,  # noqa: A002 - Pillow's word
    *,
    facts: Mapping[str, str | int | float],
    description: str = DESCRIPTION,
    quality: int = QUALITY,
) -> bytes:
    """The bytes `save_marked` writes. Raises InvalidArgument."""
    kind = FORMATS.get("." + str(format).lower().lstrip("."))
    if kind is None:
        raise InvalidArgument(f"Unknown image format {str(format)[:20]!r}. Choose one of {', '.join(SUFFIXES)}.")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise InvalidArgument(f"An image is uint8 [H, W, 3], not {image.dtype} {list(image.shape)}.")
    try:
        from PIL import Image
    except ImportError:
        raise BackendMissing("The package Pillow is not installed. Run: pip install pillow") from None
    options = _save_options(kind, xmp_packet(facts, description).encode("utf-8"), quality)
    buffer = io.BytesIO()
    try:
        Image.fromarray(image).save(buffer, kind, **options)
    except (OSError, ValueError) as error:  # a side beyond 16383 (WebP) or 65535 (JPEG) pixels
        height, width = image.shape[:2]
        raise InvalidArgument(f"{width} x {height} pixels cannot be stored as {kind}: {error}. Use png.") from None
    return buffer.getvalue()


def xmp_packet(facts: Mapping[str, str | int | float], description: str = DESCRIPTION) -> str:
    """The provenance written into every file. Raises InvalidArgument for names and values an XMP packet cannot hold."""
    from html import escape

    from . import __version__

    for name, value in {**facts, "Description": description}.items():
        if re.fullmatch("[A-Z][A-Za-z0-9]{0,63}", name) is None or not str(value).isprintable():
            raise InvalidArgument(
                f"{name!r:.40} cannot be written into an image. Use names like Seed and printable values."
            )
    values = {
        **{f"s2f:{name}": value for name, value in facts.items()},  # first: no fact takes the place of the mark itself
        "Iptc4xmpExt:DigitalSourceType": DIGITAL_SOURCE_TYPE,
        "xmp:CreatorTool": f"s2f-edge {__version__}",
        "s2f:Generator": "s2f-edge",
        "s2f:GeneratorVersion": __version__,
    }
    attributes = "\n".join(f'    {key}="{escape(str(value))}"' for key, value in values.items())
    packet = _XMP.format(attributes=attributes, description=escape(description))
    if len(packet.encode("utf-8")) > MAX_XMP_BYTES:
        raise InvalidArgument(f"The facts take more than {MAX_XMP_BYTES} bytes. Shorten them.")
    return packet


def format_of(path: Path) -> str:
    """The format a suffix stands for. Raises InvalidArgument for another suffix or none."""
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        known = ", ".join(FORMATS)
        raise InvalidArgument(
            f"{path.name!r:.80} has no suffix of an image format. Use one of {known}, or name the format."
        )
    return kind


def _save_options(kind: str, xmp: bytes, quality: int) -> dict[str, Any]:
    """Pillow's options per format, with the XMP packet where the format wants it."""
    if kind == "png":
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8"))
        return {"pnginfo": info}
    if kind == "webp":
        return {"xmp": xmp, "quality": quality, "method": 4}
    # APP1 written by hand: Pillow takes `xmp` for JPEG only from version 11 on. Its length counts itself.
    payload = b"http://ns.adobe.com/xap/1.0/\x00" + xmp
    segment = b"\xff\xe1" + (len(payload) + 2).to_bytes(2, "big") + payload
    return {"extra": segment, "quality": quality, "subsampling": 0}
