"""Behaviours of TensorRT's builder configuration, timing cache, optimisation profile and progress monitor."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from .surface import make
from .trt_common import host_memory, report


def _setting(name: str, default: Any, low: float | None = None, high: float | None = None) -> property:
    """A plain attribute of IBuilderConfig; a value outside of its range is refused as the binding refuses it."""

    def read(self: Any) -> Any:
        return self._settings.get(name, default(self) if callable(default) else default)

    def write(self: Any, value: Any) -> None:
        if low is not None and high is not None and not low <= value <= high:
            report(
                self, self._builder._logger, "ERROR", f"Error Code 3: API Usage Error ({name} must be in {low}..{high})"
            )
            return
        self._settings[name] = value

    return property(read, write)


class IBuilderConfig:
    """trt.IBuilderConfig."""

    def _setup(self, builder: Any) -> None:
        self._builder = builder
        self._flags = {"TF32"}
        self._limits: dict[str, int] = {}
        self._settings: dict[str, Any] = {}
        self._profiles: list[Any] = []
        self._cache: Any = None
        self._tactics: int | None = None
        self._previews: dict[str, bool] = {}

    def _names(self) -> tuple[str, ...]:
        return tuple(sorted(self._flags))

    def set_flag(self, flag: Any) -> None:
        self._flags.add(self._flag(flag))

    def clear_flag(self, flag: Any) -> None:
        self._flags.discard(self._flag(flag))

    def get_flag(self, flag: Any) -> bool:
        return self._flag(flag) in self._flags

    def _flag(self, flag: Any) -> str:
        if not isinstance(flag, self._api.BuilderFlag):
            raise TypeError(f"set_flag(): incompatible function arguments: {flag!r}")
        return str(flag.name)

    @property
    def flags(self) -> int:
        return sum(1 << int(flag) for name, flag in self._api.BuilderFlag.__members__.items() if name in self._flags)

    @flags.setter
    def flags(self, value: int) -> None:
        self._flags = {name for name, flag in self._api.BuilderFlag.__members__.items() if value >> int(flag) & 1}

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        if not isinstance(pool, self._api.MemoryPoolType):
            raise TypeError(f"set_memory_pool_limit(): incompatible function arguments: {pool!r}")
        self._limits[pool.name] = int(pool_size)

    def get_memory_pool_limit(self, pool: Any) -> int:
        return int(self._limits.get(pool.name, self._world.memory))

    def create_timing_cache(self, serialized_timing_cache: Any) -> Any:
        return make(self._api.ITimingCache, bytes(serialized_timing_cache), self._world)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        if not cache._fits and not ignore_mismatch:
            report(self, self._builder._logger, "ERROR", "Error Code 4: API Usage Error (timing cache does not match)")
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self._cache

    def set_tactic_sources(self, tactic_sources: int) -> bool:
        self._tactics = self._settings["tactic_sources"] = int(tactic_sources)
        return True

    def get_tactic_sources(self) -> int:
        every = sum(1 << int(source) for source in self._api.TacticSource.__members__.values())
        return every if self._tactics is None else self._tactics

    def set_preview_feature(self, feature: Any, enable: bool) -> None:
        self._previews[feature.name] = bool(enable)

    def get_preview_feature(self, feature: Any) -> bool:
        return self._previews.get(feature.name, False)

    def add_optimization_profile(self, profile: Any) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    def reset(self) -> None:
        self._setup(self._builder)

    builder_optimization_level = _setting("builder_optimization_level", 3, 0, 5)
    avg_timing_iterations = _setting("avg_timing_iterations", 1)
    max_aux_streams = _setting("max_aux_streams", -1)
    max_num_tactics = _setting("max_num_tactics", -1)
    profile_stream = _setting("profile_stream", 0)
    l2_limit_for_tiling = _setting("l2_limit_for_tiling", 0)
    progress_monitor = _setting("progress_monitor", None)
    profiling_verbosity = _setting("profiling_verbosity", lambda self: self._api.ProfilingVerbosity.LAYER_NAMES_ONLY)
    engine_capability = _setting("engine_capability", lambda self: self._api.EngineCapability.STANDARD)
    hardware_compatibility_level = _setting(
        "hardware_compatibility_level", lambda self: self._api.HardwareCompatibilityLevel.NONE
    )
    tiling_optimization_level = _setting(
        "tiling_optimization_level", lambda self: self._api.TilingOptimizationLevel.NONE
    )
    runtime_platform = _setting("runtime_platform", lambda self: self._api.RuntimePlatform.SAME_AS_BUILD)


class ITimingCache:
    """trt.ITimingCache: which graphs were timed, on which version and device."""

    def _setup(self, data: bytes, world: Any) -> None:
        self._key = [world.version, list(world.capability)]
        self._graphs: list[str] = []
        self._fits = True
        if data:
            try:
                stored = json.loads(data)
                self._fits = stored["key"] == self._key
                self._graphs = list(stored["graphs"])
            except (ValueError, KeyError, TypeError):
                self._fits = False

    @property
    def _data(self) -> bytes:
        return json.dumps({"key": self._key, "graphs": self._graphs}).encode()

    def _learn(self, graph: bytes) -> None:
        name = hashlib.sha256(graph).hexdigest()
        if name not in self._graphs:
            self._graphs.append(name)

    def serialize(self) -> Any:
        return host_memory(self, self._data)

    def combine(self, input_cache: Any, ignore_mismatch: bool) -> bool:
        if self._key != input_cache._key and not ignore_mismatch:
            return False
        self._graphs += [name for name in input_cache._graphs if name not in self._graphs]
        return True

    def reset(self) -> bool:
        self._graphs = []
        return True


class IOptimizationProfile:
    """trt.IOptimizationProfile."""

    def _setup(self) -> None:
        self._shapes: dict[str, tuple[Any, Any, Any]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:  # noqa: A002 - their names there
        self._shapes[input] = (tuple(min), tuple(opt), tuple(max))

    def get_shape(self, input: str) -> list[Any]:  # noqa: A002 - its name there
        return [self._api.Dims(shape) for shape in self._shapes.get(input, ())]


class IProgressMonitor:
    """Base of a user's progress monitor; its methods are called by a build."""

    def __init__(self) -> None:
        pass

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise RuntimeError('Tried to call pure virtual function "IProgressMonitor::phase_start"')

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise RuntimeError('Tried to call pure virtual function "IProgressMonitor::step_complete"')

    def phase_finish(self, phase_name: str) -> None:
        raise RuntimeError('Tried to call pure virtual function "IProgressMonitor::phase_finish"')


CONFIG: dict[str, Any] = {
    cls.__name__: cls for cls in (IBuilderConfig, ITimingCache, IOptimizationProfile, IProgressMonitor)
}
