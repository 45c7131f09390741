"""Behaviours of TensorRT's builder: what it refuses, and the plans it makes."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from .surface import make
from .trt_common import Plan, host_memory, report, require_logger

PRECISIONS = ("FP16", "INT8", "BF16", "FP8", "INT4")
CONSTRAINTS = ("OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS")
PHASES = (("Building engine", None, 3), ("Timing tactics", "Building engine", 5))


@dataclasses.dataclass
class Build:
    """What a test may ask about one build: what was asked for, and what came of it."""

    graph: bytes
    flags: tuple[str, ...]
    network_flags: tuple[str, ...]
    settings: dict[str, Any]
    layers: list[tuple[str, str | None, list[str | None]]]  # name, precision set, output types set
    workspace: int | None
    timing_cache: bytes | None
    succeeded: bool = False


class Builder:
    """trt.Builder."""

    def __init__(self, logger: Any) -> None:
        self._logger = require_logger(self, logger)
        if self._world.no_driver:
            report(self, logger, "WARNING", "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._threads = 1

    @property
    def logger(self) -> Any:
        return self._logger

    @property
    def max_threads(self) -> int:
        return self._threads

    @max_threads.setter
    def max_threads(self, value: int) -> None:
        self._threads = int(value)

    @property
    def platform_has_fast_fp16(self) -> bool:
        return tuple(self._world.capability) >= (5, 3)

    @property
    def platform_has_fast_int8(self) -> bool:
        return tuple(self._world.capability) >= (6, 1)

    @property
    def platform_has_tf32(self) -> bool:
        return tuple(self._world.capability) >= (8, 0)

    @property
    def num_DLA_cores(self) -> int:  # noqa: N802 - its name there
        return 0

    def create_network(self, flags: int = 0) -> Any:
        if not hasattr(type(flags), "__index__"):
            raise TypeError(f"create_network(): incompatible function arguments: {flags!r}")
        known = self._api.NetworkDefinitionCreationFlag.__members__
        names = tuple(name for name, flag in known.items() if int(flags) >> int(flag) & 1)
        return make(self._api.INetworkDefinition, self, names)

    def create_builder_config(self) -> Any:
        return make(self._api.IBuilderConfig, self)

    def create_optimization_profile(self) -> Any:
        return make(self._api.IOptimizationProfile)

    def is_network_supported(self, network: Any, config: Any) -> bool:
        return network._model is not None

    def reset(self) -> None:
        pass

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        """The plan, or None with the reason in the logger."""
        world = self._world
        build = Build(
            network._serialised(),
            config._names(),
            network._flags,
            {key: _plain(value) for key, value in config._settings.items()},
            [layer._asked() for layer in network._layers],
            config._limits.get("WORKSPACE"),
            None if config._cache is None else config._cache._data,
        )
        world.builds.append(build)
        world.counts.builds += 1
        if world.on_build is not None:
            world.on_build(network, config)
        problem = self._problem(network, config)
        if problem:
            report(self, self._logger, "ERROR", problem)
            return None
        if not self._work(config):
            report(self, self._logger, "ERROR", "Build was cancelled by the progress monitor")
            return None
        if config._cache is not None:
            config._cache._learn(build.graph)
        build.succeeded = True
        stored = {
            **build.settings,
            "layers": [[layer._layer_name, layer._kind] for layer in network._layers],
            "network_flags": list(build.network_flags),
        }
        plan = Plan(world.version, tuple(world.capability), build.flags, stored, build.graph)
        return host_memory(self, plan.to_bytes(world.plan_padding))

    def _work(self, config: Any) -> bool:
        """Take the time a build takes, tell the progress monitor; False where it cancels."""
        monitor = config._settings.get("progress_monitor")
        steps = sum(count for _, _, count in PHASES)
        for phase, parent, count in PHASES:
            if monitor is not None:
                monitor.phase_start(phase, parent, count)
            for step in range(count):
                time.sleep(self._world.build_seconds / steps)
                if monitor is not None and not monitor.step_complete(phase, step):
                    return False
        if monitor is not None:
            for phase, _, _ in reversed(PHASES):
                monitor.phase_finish(phase)
        return True

    def _problem(self, network: Any, config: Any) -> str:
        """Why this build fails; empty if it does not."""
        world = self._world
        if world.build_failure == "raise":
            raise RuntimeError("std::exception")
        if world.build_failure == "none":
            return "Error Code 10: Internal Error (Could not find any implementation for node {ForeignNode[...]}.)"
        if world.build_failure == "memory" or world.build_memory > world.memory - world.live_bytes:
            return "Error Code 2: OutOfMemory (Requested size was larger than the free device memory.)"
        return _misuse(network, config, world.release) or _too_small(config, world)


def _misuse(network: Any, config: Any, release: tuple[int, int]) -> str:
    """What the builder's own checks refuse."""
    if network._model is None or not network._outputs:
        return "Error Code 4: API Usage Error (Network must have at least one output)"
    if any(-1 in tensor._dims for tensor in network._inputs) and not config._profiles:
        text = "Network has dynamic or shape inputs, but no optimization profile has been defined."
        return f"Error Code 4: Internal Error ({text})"
    strongly = release[0] >= 11 or (release[0] >= 10 and "STRONGLY_TYPED" in network._flags)
    clash = sorted(config._flags & {*PRECISIONS, *CONSTRAINTS})
    if strongly and clash:
        return f"Error Code 4: API Usage Error ({clash[0]} must not be set for a strongly typed network)"
    asked = {layer._precision for layer in network._layers}
    if not strongly and "HALF" in asked and "FP16" not in config._flags and config._flags & {*CONSTRAINTS}:
        return "Error Code 4: API Usage Error (A layer asks for kHALF, but BuilderFlag::kFP16 is not set)"
    kinds = {layer._kind for layer in network._layers}
    if not strongly and kinds & {"QUANTIZE", "DEQUANTIZE"} and "INT8" not in config._flags:
        return (
            "Error Code 4: Internal Error (Int8 precision has been set for a layer or layer output, but int8 is not "
            "configured in the builder)"
        )
    return ""


def _too_small(config: Any, world: Any) -> str:
    limit = config._limits.get("WORKSPACE", world.memory)
    if world.workspace_needed <= limit:
        return ""
    return (
        f"Error Code 10: Internal Error (Could not find any implementation: a workspace of {limit} bytes is too small)"
    )


def _plain(value: Any) -> Any:
    """A number as it is, an enum's member by name, anything else by its class."""
    if value is None or isinstance(value, int | float | str):
        return value
    return value.name if hasattr(value, "name") else type(value).__name__


BUILD: dict[str, Any] = {"Builder": Builder}
