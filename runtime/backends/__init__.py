"""Which devices work here, and opening a graph on one of them. One module per backend, imported only when asked for."""

from __future__ import annotations

from ..errors import DeviceUnavailable
from .base import Device, Session, Settings

DEVICES = ("cpu", "cuda")
PREFERENCE = ("cuda", "cpu")

__all__ = ["DEVICES", "PREFERENCE", "Device", "Session", "Settings", "available", "select", "session_class"]


def available() -> list[Device]:
    """Every device name with its state here, most preferred first. Opens a tiny graph on each: can take a second.

    Never raises for a missing package or driver; that is what `reason` and `cure` are for.
    """
    from . import ort

    return [ort.probe(name) for name in PREFERENCE]


def select(device: str = "auto") -> str:
    """The device to use: the one asked for, or with "auto" the first of PREFERENCE that works.

    Raises DeviceUnavailable for an unknown name or a device that does not work here, BackendMissing where the package
    is not installed. A device that was asked for is never replaced by another.
    """
    from . import ort

    if device in DEVICES:
        ort.require(device)
        return device
    if device != "auto":
        known = ", ".join(("auto", *DEVICES))
        raise DeviceUnavailable(
            f"Unknown device {str(device)[:40]!r}. Choose one of {known}; `s2f doctor` says which work."
        )
    for name in PREFERENCE[:-1]:
        if ort.probe(name).usable:
            return name
    ort.require(PREFERENCE[-1])
    return PREFERENCE[-1]


def session_class(device: str) -> type[Session]:
    """The class that opens graphs on a device `select` returned."""
    from . import ort

    if device not in DEVICES:
        raise DeviceUnavailable(f"No backend serves the device {device[:40]!r}.")
    return ort.OrtSession
