"""The arms of the arena by name, and which of them can run here."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Mapping

from benchmarks.peers.task import Peer, Task
from runtime.backends import Device, available
from runtime.bundle import Manifest
from runtime.errors import S2FError
from runtime.precision import PREPARED, SERVED, check

REFERENCE = "ours cpu fp32"
"""The float32 portraits that quality is told against."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """`what`: a sentence for the table; `needs`: packages by the names they are imported by; `precision`: one of the
    runtime's, "auto" where the arm itself tells once it is prepared; `device`: the runtime's, for ours and for what
    opens the graphs that ours opens there; `steps`: where not the task's; `random`: its weights are not the bundle's.
    """

    what: str
    make: Callable[[Task], Peer]
    needs: tuple[str, ...]
    precision: str
    device: str = ""
    steps: int | None = None
    random: bool = False


def _ours(device: str, precision: str) -> Arm:
    def make(task: Task) -> Peer:
        from benchmarks.peers.ours import Ours

        return Ours(task, device, precision)

    asked = "" if precision == "auto" else f', precision="{precision}"'
    return Arm(f'runtime.load(device="{device}"{asked})', make, (), precision, device=device)


def _torch(kind: str, *, compiled: bool) -> Arm:
    def make(task: Task) -> Peer:
        import torch

        from benchmarks.peers.torch_arms import TorchArm

        return TorchArm(task, getattr(torch, kind), compiled=compiled)

    way = "torch.compile, frozen" if compiled else "torch eager"
    what, precision = f"{way}, {kind}, channels last, same graphs and steps", "fp32" if kind == "float32" else "bf16"
    return Arm(what, make, ("torch", "diffusers", "onnx"), precision)


def _diffusers(steps: int, *, guided: bool) -> Arm:
    def make(task: Task) -> Peer:
        from benchmarks.peers.diffusers_arms import DiffusersArm

        return DiffusersArm(task, steps, guided=guided)

    guidance = "guidance in two forwards" if guided else "no guidance"
    what = f"diffusers pipeline, torch eager float32, DPM-Solver++, {guidance}, larger decoder"
    return Arm(what, make, ("torch", "diffusers"), "fp32", steps=steps, random=True)


def _naive_onnxruntime() -> Arm:
    def make(task: Task) -> Peer:
        from benchmarks.peers.by_hand import ByHand, naive_onnxruntime

        return ByHand(task, naive_onnxruntime, "cpu", "fp32")

    return Arm("three sessions with default options, loop in numpy", make, ("onnxruntime",), "fp32")


def _openvino(precision: str) -> Arm:
    def make(task: Task) -> Peer:
        from benchmarks.peers.by_hand import ByHand, openvino

        return ByHand(task, openvino(precision), "openvino", precision)

    what = "the same ONNX as ours in this precision, batch 1, latency hint, loop in numpy"
    return Arm(what, make, ("openvino",), precision, device="openvino")


def arms() -> dict[str, Arm]:
    """All arms, ours for every device and precision of the runtime; in the order in which they take their turns.

    A GPU has the one precision of what was prepared.
    """
    asked = {device: ("auto",) if device in PREPARED else precisions for device, precisions in SERVED.items()}
    ours = [(device, precision) for device, precisions in asked.items() for precision in precisions]
    return {
        **{f"ours {device} {precision}".removesuffix(" auto"): _ours(device, precision) for device, precision in ours},
        "onnxruntime naive": _naive_onnxruntime(),
        **{f"openvino {precision} by hand": _openvino(precision) for precision in SERVED["openvino"]},
        "torch eager fp32": _torch("float32", compiled=False),
        "torch eager bf16": _torch("bfloat16", compiled=False),
        "torch compile fp32": _torch("float32", compiled=True),
        "torch compile bf16": _torch("bfloat16", compiled=True),
        "diffusers 25 steps": _diffusers(25, guided=True),
        "diffusers 25 steps, one forward": _diffusers(25, guided=False),
        "diffusers 4 steps": _diffusers(4, guided=True),
    }


def missing(arm: Arm, manifest: Manifest) -> str:
    """Why an arm cannot run here with a bundle, empty if nothing is known to stand against it."""
    for package in arm.needs:
        if importlib.util.find_spec(package) is None:
            return f"the package {package} is not installed"
    if not arm.device:
        return ""
    state = _devices().get(arm.device)
    if state is None or not state.usable:
        return state.reason if state else f"the runtime has no device {arm.device}"
    try:
        check(arm.device, arm.precision, manifest)
    except S2FError as reason:
        return str(reason)
    return ""


@functools.cache
def _devices() -> Mapping[str, Device]:
    return {found.name: found for found in available()}
