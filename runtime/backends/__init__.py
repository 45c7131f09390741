"""Which devices work here, and opening a bundle on one. One module per backend, imported only when asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import DeviceUnavailable
from .base import Device, Session, Settings

if TYPE_CHECKING:
    from ..bundle import Bundle, Manifest
    from ..executor import Executor

DEVICES = ("cpu", "openvino", "cuda", "tensorrt")
PREFERENCE = ("tensorrt", "cuda", "openvino", "cpu")

__all__ = [
    "DEVICES",
    "PREFERENCE",
    "Device",
    "Session",
    "Settings",
    "available",
    "is_preferred",
    "is_ready",
    "open_executor",
    "openvino_standing",
    "select",
    "settle",
]


def available() -> list[Device]:
    """Every device name with its state here, most preferred first. Opens a tiny graph on most: can take a second.

    Never raises for a missing package or driver; that is what `reason` and `cure` are for.
    """
    return [_probe(name) for name in PREFERENCE]


def select(device: str = "auto", manifest: Manifest | None = None, precision: str = "auto") -> str:
    """The device to use: the one asked for, or with "auto" the first of PREFERENCE that works.

    "auto" takes tensorrt only where engines are prepared for the bundle of `manifest`, and openvino only where `s2f
    prepare` found it faster than cpu for it; with a `precision` other than "auto" only those that draw in it. Raises
    DeviceUnavailable for an unknown name or a device that does not work here, BackendMissing where the package is not
    installed. A device that was asked for is never replaced by another.
    """
    if device in DEVICES:
        _require(device)
        return device
    if device != "auto":
        known = ", ".join(("auto", *DEVICES))
        raise DeviceUnavailable(
            f"Unknown device {str(device)[:40]!r}. Choose one of {known}; `s2f doctor` says which work."
        )
    from ..precision import serves

    serving = [name for name in PREFERENCE if serves(name, precision)]
    for name in serving:
        last = name == PREFERENCE[-1]
        if not last and _can_be_here(name) and is_preferred(name, manifest, precision) and _probe(name).usable:
            return name
    if PREFERENCE[-1] not in serving:
        raise DeviceUnavailable(
            f"No device that works here draws in {precision}; {' and '.join(serving)} would. `s2f doctor` says why not."
        )
    _require(PREFERENCE[-1])
    return PREFERENCE[-1]


def settle(device: str, precision: str, manifest: Manifest) -> str:
    """What "auto" means on a device for a bundle; what was asked for stays. A GPU's is known when it is opened."""
    from ..precision import offers_int8

    if precision != "auto" or device not in ("cpu", "openvino"):
        return precision
    if device == "cpu":
        return "int8" if offers_int8(device, manifest) else "fp32"
    from . import openvino

    return openvino.precision_for(manifest)


def is_ready(device: str, manifest: Manifest | None, precision: str = "auto") -> bool:
    """Whether nothing has to be prepared before a bundle runs on a device that works here, in a precision."""
    if device != "tensorrt":
        return True
    from . import tensorrt

    return manifest is not None and tensorrt.is_prepared(manifest, precision)


def is_preferred(device: str, manifest: Manifest | None, precision: str = "auto") -> bool:
    """Whether "auto" takes a device that works here for a bundle, if it comes to it in the order of PREFERENCE, and
    draws in a precision that it serves: for OpenVINO the one it was measured in, or bfloat16, which the cpu has not.
    """
    if device != "openvino":
        return is_ready(device, manifest, precision)
    from . import openvino

    return precision == "bf16" or (manifest is not None and openvino.is_faster(manifest, precision))


def openvino_standing(manifest: Manifest) -> str:
    """What `s2f prepare` measured here of OpenVINO with a bundle, or why that does not hold, for a reader."""
    from . import openvino

    return openvino.standing_text(manifest)


def open_executor(bundle: Bundle, settings: Settings) -> Executor:
    """The graphs of a bundle, open on a device `select` returned. Raises what that device raises."""
    if settings.device == "tensorrt":
        from .tensorrt_executor import TensorRTExecutor

        return TensorRTExecutor(bundle, precision=settings.precision)
    if settings.device not in DEVICES:
        raise DeviceUnavailable(f"No backend serves the device {settings.device[:40]!r}.")
    if settings.device == "cuda":
        from .ort_executor import OrtExecutor

        return OrtExecutor(bundle, settings)
    from ..executor import StepwiseExecutor

    if settings.device == "openvino":
        from .openvino import OpenVinoSession

        return StepwiseExecutor(bundle, OpenVinoSession, settings)
    from .ort import OrtSession

    return StepwiseExecutor(bundle, OrtSession, settings)


def _require(device: str) -> None:
    if device == "tensorrt":
        from . import tensorrt

        tensorrt.require()
    elif device == "openvino":
        from . import openvino

        openvino.require()
    else:
        from . import ort

        ort.require(device)


def _can_be_here(device: str) -> bool:
    """False where that is plain without importing a package, which would stay in the process of another device."""
    from . import ort

    return device != "cuda" or ort.can_have_cuda()


def _probe(device: str) -> Device:
    from . import openvino, ort, tensorrt

    if device == "openvino":
        return openvino.probe()
    return tensorrt.probe() if device == "tensorrt" else ort.probe(device)
