"""In which precision a device draws: what the caller asks for, and what "auto" makes of it.

On the CPU eight bits come with the bundle, as a variant (`runtime.variants`); bfloat16 is OpenVINO's own doing. On a
GPU precision is decided by what `s2f prepare` made.
"""

from __future__ import annotations

import logging

from .bundle import Manifest
from .errors import BundleInvalid, DeviceUnavailable, InvalidArgument
from .variants import FAMILIES, computes_bf16, family_for, multiplies_int8

logger = logging.getLogger(__name__)

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")
SERVED = {
    "cpu": ("fp32", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
    "cuda": ("fp32", "fp16"),
    "tensorrt": ("fp32", "fp16", "int8"),
}
"""What a device can be asked for, by its name."""

PREPARED = ("cuda", "tensorrt")
"""Devices whose precision is that of what was prepared."""


def check_known(precision: str) -> None:
    """Raise InvalidArgument unless it is one of PRECISIONS."""
    if precision not in PRECISIONS:
        raise InvalidArgument(f"precision is {precision!r:.40}. Choose one of {', '.join(PRECISIONS)}.")


def serves(device: str, precision: str) -> bool:
    """Whether a device can be asked for a precision at all."""
    return precision == "auto" or precision in SERVED[device]


def check(device: str, precision: str, manifest: Manifest) -> None:
    """Whether a device can be asked for a precision with a bundle.

    Raises DeviceUnavailable (not on this device or processor), BundleInvalid
    (the bundle has no graphs for it).
    """
    if precision == "auto":
        return
    if not serves(device, precision):
        served = ", ".join(SERVED[device])
        raise DeviceUnavailable(
            f"The device {device} draws in {served}, not in {precision}. Choose one of those or auto."
        )
    if precision == "bf16" and not computes_bf16():
        raise DeviceUnavailable("This processor does not compute in bfloat16. Use precision fp32 or auto.")
    if precision != "int8":
        return
    family = family_for(device, manifest.variants)
    if family is None:
        raise BundleInvalid(
            f"The bundle {manifest.name} has no graphs in eight bits for {device}. Make them: s2f-calibrate BUNDLE "
            "--data RECORDINGS -o BUNDLE8"
        )
    if device not in PREPARED and not multiplies_int8():
        raise DeviceUnavailable(
            "This processor has no instructions for eight bits (VNNI), sums would overflow. Use precision fp32 or auto."
        )
    gate = manifest.variants[family].gate
    if gate != "passed":
        logger.warning("the variant %s of the bundle %s is used though its gate says %s", family, manifest.name, gate)


def offers_int8(device: str, manifest: Manifest) -> bool:
    """Whether "auto" may draw in eight bits: the bundle has them, they passed, the processor is made for it."""
    family = family_for(device, manifest.variants)
    return family is not None and manifest.variants[family].gate == "passed" and multiplies_int8()


def variant_for(device: str, precision: str) -> str | None:
    """The family whose graphs a device opens for a precision; None for the bundle's own. Engines hold theirs."""
    if precision != "int8" or device in PREPARED:
        return None
    return next(family for family, devices in FAMILIES.items() if device in devices)
