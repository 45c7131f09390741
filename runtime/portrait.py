"""The portrait: pixels, how they came about, and files that say so themselves.

Every saved file carries XMP: IPTC's digital source type "trained algorithmic media", the generator, the bundle and its
hash, seed, steps and guidance; never anything of the speech or its name. The same portrait is always the same bytes.
"""

from __future__ import annotations

import dataclasses
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import BackendMissing, InvalidArgument
from .output import write_file

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}

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
     <rdf:li xml:lang="x-default">A plausible portrait drawn by a model from a voice. It shows no real person and \
identifies nobody.</rdf:li>
    </rdf:Alt>
   </dc:description>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""


@dataclasses.dataclass(frozen=True)
class Timings:
    """Milliseconds of the call that made a portrait; the portraits of one call share them.

    `audio`: reading, resampling, window. `encoder`, `steps` (one entry per step) and `decoder`: the graphs, summed over
    the call's batches. `total`: the whole call, waiting for another thread's call included.
    """

    audio: float
    encoder: float
    steps: tuple[float, ...]
    decoder: float
    total: float


@dataclasses.dataclass(frozen=True, eq=False)
class Portrait:
    """One generated face. `image`: uint8 [H, W, 3], RGB. `bundle_sha256`: the bundle's identity."""

    image: npt.NDArray[np.uint8]
    seed: int
    steps: int
    guidance: float
    timings: Timings
    bundle_name: str
    bundle_sha256: str

    def save(self, path: str | os.PathLike[str], *, format: str | None = None) -> None:  # noqa: A002 - Pillow's word
        """Write the portrait to `path`, whole or not at all; the format is that of the suffix unless given.

        Raises InvalidArgument (unknown format) and OutputUnwritable.
        """
        target = Path(path)
        write_file(target, self.encode(format or format_of(target)))

    def encode(self, format: str = "png") -> bytes:  # noqa: A002 - Pillow's word
        """The bytes of an image file: "png" (exact), "jpeg" or "webp" (quality 95). Raises InvalidArgument."""
        kind = FORMATS.get("." + str(format).lower().lstrip("."))
        if kind is None:
            raise InvalidArgument(f"Unknown image format {str(format)[:20]!r}. Choose one of {', '.join(SUFFIXES)}.")
        try:
            from PIL import Image
        except ImportError:
            raise BackendMissing("The package Pillow is not installed. Run: pip install pillow") from None
        buffer = io.BytesIO()
        Image.fromarray(self.image).save(buffer, kind, **_save_options(kind, self.xmp().encode("utf-8")))
        return buffer.getvalue()

    def xmp(self) -> str:
        """The provenance written into every file, an XMP packet."""
        from html import escape

        from . import __version__

        values = {
            "Iptc4xmpExt:DigitalSourceType": DIGITAL_SOURCE_TYPE,
            "xmp:CreatorTool": f"s2f-edge {__version__}",
            "s2f:Generator": "s2f-edge",
            "s2f:GeneratorVersion": __version__,
            "s2f:Bundle": self.bundle_name,
            "s2f:BundleSha256": self.bundle_sha256,
            "s2f:Seed": self.seed,
            "s2f:Steps": self.steps,
            "s2f:Guidance": self.guidance,
        }
        attributes = "\n".join(f'    {key}="{escape(str(value))}"' for key, value in values.items())
        return _XMP.format(attributes=attributes)


def format_of(path: Path) -> str:
    """The format a suffix stands for. Raises InvalidArgument for another suffix or none."""
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        known = ", ".join(FORMATS)
        raise InvalidArgument(
            f"{path.name!r:.80} has no suffix of an image format. Use one of {known}, or name the format."
        )
    return kind


def _save_options(kind: str, xmp: bytes) -> dict[str, Any]:
    """Pillow's options per format, with the XMP packet where the format wants it."""
    if kind == "png":
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8"))
        return {"pnginfo": info}
    if kind == "webp":
        return {"xmp": xmp, "quality": 95, "method": 4}
    # APP1 written by hand: Pillow takes `xmp` for JPEG only from version 11 on. Its length counts itself.
    payload = b"http://ns.adobe.com/xap/1.0/\x00" + xmp
    segment = b"\xff\xe1" + (len(payload) + 2).to_bytes(2, "big") + payload
    return {"extra": segment, "quality": 95, "subsampling": 0}
