"""Arms in PyTorch on the CPU, at equal weights, graphs and steps: eager, and compiled by inductor with freezing."""

from __future__ import annotations

import time
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.gpu.parts import JSON
from benchmarks.peers.native import Networks
from benchmarks.peers.task import Pixels, Task, check_parity

PARTS = ("encoder", "step", "decoder")


class TorchArm:
    """The networks of `benchmarks.peers.native`, channels last."""

    def __init__(self, task: Task, kind: torch.dtype, *, compiled: bool) -> None:
        self._task, self._kind, self._compiled = task, kind, compiled
        self._networks: Networks | None = None

    def prepare(self) -> JSON:
        """Build, fill, compile; in float32 also compare with ours, before anything is compiled."""
        task, begin = self._task, time.monotonic()
        torch.set_num_threads(task.cores)
        networks = Networks(task.bundle, task.network, task.steps, self._kind)
        self._networks = cast("Networks", networks.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
        about: JSON = {}
        if self._kind is torch.float32:
            about["parity_db"] = round(check_parity(task, self), 2)
        if self._compiled:
            compile_parts(self._networks)
            self.draw(0)
            if self._kind is torch.float32:
                about["parity_db"] = round(check_parity(task, self), 2)
        return {**about, "seconds": round(time.monotonic() - begin, 2)}

    def draw(self, seed: int) -> Pixels:
        """See `Peer`."""
        if self._networks is None:
            raise RuntimeError("prepare first")
        noise = torch.from_numpy(self._task.noise(seed)).to(memory_format=torch.channels_last)
        with torch.no_grad() if self._compiled else torch.inference_mode():
            image: Tensor = self._networks(torch.from_numpy(self._task.window()), noise)
        return image[0].numpy()  # type: ignore[no-any-return]

    def close(self) -> None:
        """See `Peer`."""
        self._networks = None


def compile_parts(networks: nn.Module) -> None:
    """Each graph in one program, its weights frozen into it; the loop stays in Python."""
    from torch._inductor import config

    cast("Any", config).freezing = True
    for name in PARTS:
        setattr(networks, name, torch.compile(getattr(networks, name), fullgraph=True, dynamic=False))
