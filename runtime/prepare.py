"""Everything slow or bound to this machine, once: what `s2f prepare` does, so that `generate` never has to.

What a device needs is known to packages that are not part of the runtime; they register a function under the
entry-point group `s2f.prepare` by the name of the device: (bundle, tell) → None, `tell` takes a line for the user.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata

from .backends import DEVICES, available
from .bundle import Bundle
from .errors import BackendMissing, DeviceUnavailable, S2FError

GROUP = "s2f.prepare"

Tell = Callable[[str], None]


def prepare(bundle: Bundle, device: str, tell: Tell) -> None:
    """Prepare a bundle for a device, or with "auto" for every device that works here and has something to prepare.

    Raises DeviceUnavailable, BackendMissing and what the device's own function raises; with "auto" only if all fail.
    """
    if device not in ("auto", *DEVICES):
        raise DeviceUnavailable(f"Unknown device {device[:40]!r}. Choose one of {', '.join(('auto', *DEVICES))}.")
    found = {point.name: point for point in metadata.entry_points(group=GROUP)}
    if device == "auto":
        names = [one.name for one in available() if one.usable and one.name in found]
    elif device in found:
        names = [device]
    elif device == "tensorrt":
        raise BackendMissing("Nothing here builds engines. Run: pip install --force-reinstall s2f-edge")
    else:
        names = []
    if not names:
        tell("nothing to prepare: the devices that work here run the bundle as it is")
    problems: list[S2FError] = []
    for name in names:
        try:
            _function(found[name])(bundle, tell)
        except S2FError as problem:
            problems.append(type(problem)(*problem.args))  # without the frames, which hold the memory the next needs
            if device == "auto":
                tell(f"{name} is not prepared: {problem}")
    if names and len(problems) == len(names):
        raise problems[0]


def _function(point: metadata.EntryPoint) -> Callable[[Bundle, Tell], None]:
    """What an entry point names. Raises BackendMissing."""
    try:
        function: Callable[[Bundle, Tell], None] = point.load()
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise BackendMissing(f"Preparing for {point.name} needs the package onnx. Run: pip install onnx") from error
    except ImportError as error:
        raise BackendMissing(f"What prepares for {point.name} cannot be imported: {error}. Run: s2f doctor") from error
    return function
