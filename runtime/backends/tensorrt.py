"""TensorRT engines: whether they can run here, reading them from the cache, and their tensors. v3 tensor API only.

Engines are made by `s2f prepare` (in `export`), never here. Works with the `tensorrt` package, 8.6 to 11.x, and with
`tensorrt_lean`, which only runs engines. An engine's bytes come from the cache (`runtime.cache` says what it refuses);
host code inside an engine is never allowed to run (`engine_host_code_allowed` stays False).
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Mapping
from typing import Any

from ..bundle import Manifest, TensorSpec
from ..cache import Cache, Refused
from ..engines import ENGINES, EngineSpec, Place, Prepared, engine_key, engine_tensors, read_record
from ..errors import BackendFailed, BackendMissing, DeviceOutOfMemory, NotPrepared, S2FError
from . import cuda
from .base import Device, lacks_memory

logger = logging.getLogger(__name__)

NAME = "tensorrt"
PACKAGES = ("tensorrt", "tensorrt_lean")
LEAN = f"{NAME} lean"
OLDEST = (8, 6)
PREPARE = "Run: s2f prepare BUNDLE --device tensorrt"

_DTYPES = {"FLOAT": "float32", "INT32": "int32", "UINT8": "uint8"}


def require() -> None:
    """Raise BackendMissing or DeviceUnavailable unless engines can run here. Makes no context on the GPU."""
    package()
    cuda.describe()


def probe() -> Device:
    """Whether engines can run here; never raises for what is missing. Whether there are any is asked per bundle."""
    try:
        require()
    except S2FError as error:
        reason, _, cure = str(error).partition(" Run: ")
        logger.info("device tensorrt: %s", error)
        return Device(NAME, NAME, False, reason, cure or "see the reason")
    return Device(NAME, NAME, True)


def package() -> Any:
    """The module `tensorrt`, or `tensorrt_lean` where that alone is installed. Raises BackendMissing."""
    found = next((name for name in PACKAGES if importlib.util.find_spec(name) is not None), None)
    if found is None:
        raise BackendMissing(f"TensorRT is not installed. {cuda.install_cure()}")
    try:
        module = importlib.import_module(found)
    except Exception as error:  # the package loads its libraries at import and raises whatever that raises
        raise BackendMissing(
            f"{found} is installed but cannot be imported: {error}. Run: python -c 'import {found}', and install the "
            "library it misses"
        ) from error
    if release(module) < OLDEST:
        raise BackendMissing(
            f"{found} {module.__version__} is too old: this release needs 8.6 or newer (JetPack 6 or newer)"
        )
    return module


def release(module: Any) -> tuple[int, int]:
    """(major, minor) of the package."""
    major, minor = (int(part) for part in str(module.__version__).split(".")[:2])
    return major, minor


def place_here(module: Any) -> Place:
    """What engines of this process are keyed by. Raises BackendMissing, DeviceUnavailable."""
    gpu = cuda.describe()
    backend = LEAN if module.__name__ == "tensorrt_lean" else f"{NAME} {module.__version__}"
    return Place(backend, gpu.capability, f"{gpu.name}, {gpu.processors} multiprocessors", gpu.driver)


def prepared(manifest: Manifest, cache: Cache, place: Place) -> Prepared:
    """The record of what serves a bundle here. Raises NotPrepared with the reason."""
    try:
        record = read_record(cache, manifest, place)
    except Refused as reason:
        raise NotPrepared(f"What was prepared for the bundle {manifest.name} is refused: {reason}. {PREPARE}") from None
    if record is None:
        raise NotPrepared(
            f"There are no engines for the bundle {manifest.name} on {place.gpu} with {place.backend}, "
            f"{place.driver}. {PREPARE}"
        )
    return record


def is_prepared(manifest: Manifest, precision: str = "auto") -> bool:
    """Whether a bundle can run here as it is, in a precision; what stands against it is logged."""
    try:
        record = prepared(manifest, Cache.default(), place_here(package()))
    except S2FError as reason:
        logger.info("tensorrt is passed over: %s", reason)
        return False
    return precision in ("auto", record.precision)


def make_logger(trt: Any) -> Any:
    """A TensorRT logger that hands on to `logging` and remembers the last error in `last_error`."""
    levels = {
        trt.ILogger.Severity.INTERNAL_ERROR: logging.ERROR,
        trt.ILogger.Severity.ERROR: logging.ERROR,
        trt.ILogger.Severity.WARNING: logging.INFO,
    }

    class Logger(trt.ILogger):  # type: ignore[misc]  # a class known at run time only
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = ""

        def log(self, level: Any, message: str) -> None:
            """Called by TensorRT, from any of its threads."""
            if levels.get(level) == logging.ERROR:
                self.last_error = " ".join(message.split())[:300]
            logger.log(levels.get(level, logging.DEBUG), "TensorRT: %s", message)

    return Logger()


class Runtime:
    """Turns the engines of one bundle from the cache into `Engine`s. For the thread that holds the CUDA context."""

    def __init__(self, module: Any, cache: Cache, manifest: Manifest, place: Place) -> None:
        self._module, self._cache, self._manifest, self._place = module, cache, manifest, place
        self.logger = make_logger(module)
        self._runtime = module.Runtime(self.logger)

    def load(self, spec: EngineSpec, options: Mapping[str, str | int]) -> Engine:
        """Raises NotPrepared (absent, refused), BackendFailed (other tensors), DeviceOutOfMemory."""
        try:
            data = self._cache.read(ENGINES, engine_key(self._manifest, self._place, spec, options))
        except Refused as reason:
            raise NotPrepared(f"The engine {spec} is refused: {reason}. {PREPARE}") from None
        if data is None:
            raise NotPrepared(f"The engine {spec} is missing from the cache {self._cache.folder}. {PREPARE}")
        return self.deserialise(data, spec)

    def deserialise(self, data: bytes, spec: EngineSpec) -> Engine:
        """An engine from bytes that are trusted."""
        self.logger.last_error = ""
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            problem = self.logger.last_error
            if lacks_memory(problem):
                raise DeviceOutOfMemory(f"The GPU has not enough memory for the engine {spec}: {problem}")
            raise NotPrepared(f"TensorRT refuses the engine {spec}: {problem or 'no reason given'}. {PREPARE}")
        inputs, outputs = engine_tensors(self._manifest, spec)
        return Engine(self._module, engine, spec, {**inputs, **outputs}, self.logger)


class Engine:
    """One engine with one execution context, whose working memory is the caller's: see `scratch` and `enqueue`."""

    def __init__(self, module: Any, engine: Any, spec: EngineSpec, tensors: Mapping[str, TensorSpec], log: Any) -> None:
        self.spec, self._logger = spec, log
        found = {name: _tensor(engine, name) for name in map(engine.get_tensor_name, range(engine.num_io_tensors))}
        if found != tensors:
            names = sorted(name for name in {*found, *tensors} if found.get(name) != tensors.get(name))
            raise BackendFailed(f"The engine {spec} has other tensors than the bundle: {', '.join(names)}. {PREPARE}")
        self._engine = engine
        self._context = _context(module, engine)
        if self._context is None:
            raise DeviceOutOfMemory(f"TensorRT cannot make a context for the engine {spec}: {log.last_error}")

    @property
    def scratch(self) -> int:
        """Bytes of working memory one execution needs. Engines that run one after the other may share them."""
        newer = getattr(self._engine, "device_memory_size_v2", None)
        return int(self._engine.device_memory_size if newer is None else newer)

    def use_scratch(self, address: int, size: int) -> None:
        """Work in these bytes of device memory from now on."""
        if hasattr(self._context, "set_device_memory"):
            self._context.set_device_memory(address, size)
        else:
            self._context.device_memory = address

    def enqueue(self, tensors: Mapping[str, int], stream: int) -> None:
        """Put one execution on the stream with these addresses. Raises BackendFailed."""
        context = self._context
        self._logger.last_error = ""
        for name, address in tensors.items():
            if not context.set_tensor_address(name, address):
                raise BackendFailed(f"TensorRT does not take the address of {name} in {self.spec}: {self._last()}")
        if not context.execute_async_v3(stream):
            if lacks_memory(self._logger.last_error):
                raise DeviceOutOfMemory(f"TensorRT ran out of memory in {self.spec}: {self._last()}")
            raise BackendFailed(f"TensorRT failed in {self.spec}: {self._last()}")

    def _last(self) -> str:
        return self._logger.last_error or "no reason given"


def _context(module: Any, engine: Any) -> Any:
    """A context without memory of its own: TensorRT 10 and newer say how it is to be had, 8.6 has a method for it."""
    strategies = getattr(module, "ExecutionContextAllocationStrategy", None)
    if strategies is None:
        return engine.create_execution_context_without_device_memory()
    return engine.create_execution_context(strategies.USER_MANAGED)


def _tensor(engine: Any, name: str) -> TensorSpec:
    dtype = engine.get_tensor_dtype(name).name
    return TensorSpec(name, _DTYPES.get(dtype, dtype), tuple(int(dim) for dim in engine.get_tensor_shape(name)))
