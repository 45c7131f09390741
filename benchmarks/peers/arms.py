"""The arms of the arena by name, and which of them can run here."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable

from benchmarks.peers.task import Peer, Task

REFERENCE = "ours cpu"
"""The float32 portraits that quality is told against."""
OWN = {"cpu": "fp32", "cuda": "fp32"}
"""The precision of ours by device, where it is that of the shipped graphs."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """`what`: a sentence for the table; `needs`: packages by the names they are imported by; `precision`: "fp32" or
    "bf16", empty where the arm itself tells once it is prepared; `device`: the runtime's, for ours; `steps`: where not
    the task's; `random`: its weights are not the bundle's."""

    what: str
    make: Callable[[Task], Peer]
    needs: tuple[str, ...]
    precision: str = ""
    device: str = ""
    steps: int | None = None
    random: bool = False


def _ours(device: str) -> Arm:
    def make(task: Task) -> Peer:
        from benchmarks.peers.ours import Ours

        return Ours(task, device)

    return Arm(f'runtime.load(device="{device}")', make, (), precision=OWN.get(device, ""), device=device)


def _ours_on_openvino(precision: str) -> Arm:
    def make(task: Task) -> Peer:
        from benchmarks.peers.ours import OursOnOpenVino

        return OursOnOpenVino(task, precision)

    what = "the runtime's executor, Settings(precision), which load takes from s2f prepare"
    return Arm(what, make, (), precision=precision, device="openvino")


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

        return ByHand(task, naive_onnxruntime, exact=True)

    return Arm("three sessions with default options, loop in numpy", make, ("onnxruntime",), "fp32")


def _openvino(precision: str) -> Arm:
    def make(task: Task) -> Peer:
        from benchmarks.peers.by_hand import ByHand, openvino

        return ByHand(task, openvino(precision), exact=precision == "fp32")

    return Arm("the same ONNX, batch 1, latency hint, loop in numpy", make, ("openvino",), precision)


def arms() -> dict[str, Arm]:
    """All arms, ours for every device the runtime knows; in the order in which they take their turns."""
    from runtime.backends import DEVICES

    return {
        **{f"ours {device}": _ours(device) for device in DEVICES},
        "ours openvino fp32": _ours_on_openvino("fp32"),
        "onnxruntime naive": _naive_onnxruntime(),
        "openvino fp32 by hand": _openvino("fp32"),
        "openvino bf16 by hand": _openvino("bf16"),
        "torch eager fp32": _torch("float32", compiled=False),
        "torch eager bf16": _torch("bfloat16", compiled=False),
        "torch compile fp32": _torch("float32", compiled=True),
        "torch compile bf16": _torch("bfloat16", compiled=True),
        "diffusers 25 steps": _diffusers(25, guided=True),
        "diffusers 25 steps, one forward": _diffusers(25, guided=False),
        "diffusers 4 steps": _diffusers(4, guided=True),
    }


def missing(arm: Arm) -> str:
    """Why an arm cannot run here, empty if nothing is known to stand against it."""
    for package in arm.needs:
        if importlib.util.find_spec(package) is None:
            return f"the package {package} is not installed"
    if arm.device:
        from runtime.backends import available

        state = {found.name: found for found in available()}.get(arm.device)
        if state is None or not state.usable:
            return state.reason if state else f"the runtime has no device {arm.device}"
    return ""
