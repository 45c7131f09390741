"""The arms of the arena by name, and which of them can run here."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any

from benchmarks.peers.task import Peer, Task

REFERENCE = "ours cpu"
"""The float32 portraits that quality is told against."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """`what`: a sentence for the table; `needs`: packages by the names they are imported by; `steps`: where not the
    task's; `random`: its weights are not the bundle's."""

    what: str
    make: Callable[[Task], Peer]
    needs: tuple[str, ...]
    steps: int | None = None
    random: bool = False


def _ours(device: str) -> Arm:
    def make(task: Task) -> Peer:
        from benchmarks.peers.ours import Ours

        return Ours(task, device)

    return Arm(f'runtime.load(device="{device}")', make, ())


def _torch(kind: str, *, compiled: bool) -> Arm:
    def make(task: Task) -> Peer:
        import torch

        from benchmarks.peers.torch_arms import TorchArm

        return TorchArm(task, getattr(torch, kind), compiled=compiled)

    way = "torch.compile, frozen" if compiled else "torch eager"
    return Arm(f"{way}, {kind}, channels last, same graphs and steps", make, ("torch", "diffusers", "onnx"))


def _diffusers(steps: int, *, guided: bool) -> Arm:
    def make(task: Task) -> Peer:
        from benchmarks.peers.diffusers_arms import DiffusersArm

        return DiffusersArm(task, steps, guided=guided)

    guidance = "guidance in two forwards" if guided else "no guidance"
    what = f"diffusers pipeline, torch eager float32, DPM-Solver++, {guidance}, larger decoder"
    return Arm(what, make, ("torch", "diffusers"), steps, random=True)


def _by_hand(what: str, opener: str, argument: str | None, package: str, *, exact: bool) -> Arm:
    def make(task: Task) -> Peer:
        from benchmarks.peers import by_hand

        found: Any = getattr(by_hand, opener)
        return by_hand.ByHand(task, found if argument is None else found(argument), exact=exact)

    return Arm(what, make, (package,))


def arms() -> dict[str, Arm]:
    """All arms, ours for every device the runtime knows; in the order in which they take their turns."""
    from runtime.backends import DEVICES

    return {
        **{f"ours {device}": _ours(device) for device in DEVICES},
        "onnxruntime naive": _by_hand(
            "three sessions with default options, loop in numpy", "naive_onnxruntime", None, "onnxruntime", exact=True
        ),
        "openvino f32 by hand": _by_hand(
            "the same ONNX, batch 1, latency hint, float32", "openvino", "f32", "openvino", exact=True
        ),
        "openvino bf16 by hand": _by_hand(
            "the same ONNX, batch 1, latency hint, bfloat16", "openvino", "bf16", "openvino", exact=False
        ),
        "torch eager fp32": _torch("float32", compiled=False),
        "torch eager bf16": _torch("bfloat16", compiled=False),
        "torch compile fp32": _torch("float32", compiled=True),
        "torch compile bf16": _torch("bfloat16", compiled=True),
        "diffusers 25 steps": _diffusers(25, guided=True),
        "diffusers 25 steps, one forward": _diffusers(25, guided=False),
        "diffusers 4 steps": _diffusers(4, guided=True),
    }


def missing(name: str, arm: Arm) -> str:
    """Why an arm cannot run here, empty if nothing is known to stand against it."""
    for package in arm.needs:
        if importlib.util.find_spec(package) is None:
            return f"the package {package} is not installed"
    if name.startswith("ours "):
        from runtime.backends import available

        device = name.removeprefix("ours ")
        state = {found.name: found for found in available()}.get(device)
        if state is None or not state.usable:
            return state.reason if state else f"the runtime has no device {device}"
    return ""
