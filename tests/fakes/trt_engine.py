"""Behaviours of TensorRT's runtime and engines: which plans it takes, what an engine says of itself."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx

from .surface import make
from .trt_common import ALIGNMENT, SIZES, Plan, Tensor, host_memory, report, require_logger


class Runtime:
    """trt.Runtime."""

    def __init__(self, logger: Any) -> None:
        self._logger = require_logger(self, logger)
        if self._world.no_driver:
            raise self._world.violate(
                "Runtime without a working driver: the real one ends the process with SIGSEGV (8.6.0, lean 11.4.0)"
            )
        self._host_code = False
        self._lean = self._world.lean
        self._threads = 1

    @property
    def logger(self) -> Any:
        return self._logger

    @property
    def engine_host_code_allowed(self) -> bool:
        return self._host_code

    @engine_host_code_allowed.setter
    def engine_host_code_allowed(self, value: bool) -> None:
        self._host_code = bool(value)
        self._world.host_code = self._world.host_code or self._host_code

    @property
    def max_threads(self) -> int:
        return self._threads

    @max_threads.setter
    def max_threads(self, value: int) -> None:
        self._threads = int(value)

    def load_runtime(self, path: str) -> Any:
        """A runtime with the code of a lean runtime's library."""
        loaded = type(self)(self._logger)
        loaded._lean = True
        return loaded

    def deserialize_cuda_engine(self, serialized_engine: Any) -> Any:
        """The engine; None, after a word to the logger, where the plan or the device does not do."""
        if isinstance(serialized_engine, str):
            raise TypeError("deserialize_cuda_engine(): incompatible function arguments: a buffer is needed")
        try:
            plan = Plan.from_bytes(bytes(memoryview(serialized_engine)))
            problem = self._misfit(plan)
        except (ValueError, KeyError) as error:
            problem = str(error)
        if problem:
            report(self, self._logger, "ERROR", f"IRuntime::deserializeCudaEngine: Error Code 1: ({problem})")
            return None
        engine = make(self._api.ICudaEngine, self, plan)
        if engine._weights is None:
            report(self, self._logger, "ERROR", "IRuntime::deserializeCudaEngine: Error Code 2: OutOfMemory")
            return None
        self._world.counts.deserialisations += 1
        return engine

    def _misfit(self, plan: Plan) -> str:
        world = self._world
        if plan.capability != tuple(world.capability) and plan.settings.get("hardware_compatibility_level") is None:
            built, here = (".".join(map(str, pair)) for pair in (plan.capability, world.capability))
            what = "The engine plan file is generated on an incompatible device"
            return f"{what}, expecting compute {here} got compute {built}, please rebuild."
        if "VERSION_COMPATIBLE" in plan.flags:
            return self._version_misfit(plan)
        if self._lean:
            return "The lean runtime takes version compatible engines only"
        if plan.version != world.version:
            what = "The engine plan file is not compatible with this version of TensorRT"
            return f"{what}, expecting library version {world.version} got {plan.version}, please rebuild."
        return ""

    def _version_misfit(self, plan: Plan) -> str:
        """Version compatible: older plans run on newer runtimes; a plan with code of its own wants that allowed."""
        if tuple(int(part) for part in plan.version.split(".")[:2]) > self._world.release:
            return f"The plan of {plan.version} is newer than {self._world.version}"
        if "EXCLUDE_LEAN_RUNTIME" in plan.flags:
            return "" if self._lean else "The plan has no lean runtime in it and none was loaded"
        return "" if self._host_code else "The plan has a lean runtime in it, and engine_host_code_allowed is false"


class ICudaEngine:
    """trt.ICudaEngine. Its weights take device memory for as long as it lives."""

    def _setup(self, runtime: Any, plan: Plan) -> None:
        model = onnx.load_model_from_string(plan.onnx)
        initialisers = {tensor.name for tensor in model.graph.initializer}
        self._runtime = runtime  # keeps it alive, as TensorRT asks
        self._logger = runtime._logger
        self._plan = plan
        self._inputs = [Tensor.of(value) for value in model.graph.input if value.name not in initialisers]
        self._outputs = [Tensor.of(value) for value in model.graph.output]
        self._tensors = {tensor.name: tensor for tensor in [*self._inputs, *self._outputs]}
        activations = self._world.activation_bytes
        self._activations = activation_bytes(model) if activations is None else activations
        size = sum(int(np.prod(t.dims, dtype=np.int64)) * 4 for t in model.graph.initializer)
        with self._world.lock:
            self._world.gpu.unsafe()
            self._weights = self._world.gpu.device_heap.allocate(max(size, 1), "weights of engines")
            self._world.counts.engine_allocations += self._weights is not None

    def __del__(self) -> None:
        if getattr(self, "_weights", None) is not None:
            with self._world.lock:
                self._world.gpu.drain_all()
                self._world.gpu.device_heap.release(self._weights)

    @property
    def name(self) -> str:
        return "Unnamed Network 0"

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    @property
    def num_layers(self) -> int:
        return len(self._plan.settings["layers"])

    @property
    def num_optimization_profiles(self) -> int:
        return 1

    @property
    def num_aux_streams(self) -> int:
        return max(0, int(self._plan.settings.get("max_aux_streams", 0)))

    @property
    def refittable(self) -> bool:
        return "REFIT" in self._plan.flags

    @property
    def device_memory_size(self) -> int:
        return int(self._activations)

    @property
    def device_memory_size_v2(self) -> int:
        return int(self._activations)

    @property
    def hardware_compatibility_level(self) -> Any:
        name = self._plan.settings.get("hardware_compatibility_level") or "NONE"
        return getattr(self._api.HardwareCompatibilityLevel, name)

    @property
    def profiling_verbosity(self) -> Any:
        name = self._plan.settings.get("profiling_verbosity") or "LAYER_NAMES_ONLY"
        return getattr(self._api.ProfilingVerbosity, name)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        if name not in self._tensors:
            return self._api.TensorIOMode.NONE
        return getattr(self._api.TensorIOMode, "INPUT" if self._tensors[name] in self._inputs else "OUTPUT")

    def get_tensor_dtype(self, name: str) -> Any:
        return getattr(self._api.DataType, self._dtype(name))

    def get_tensor_shape(self, name: str) -> Any:
        return self._api.Dims(self._tensors[name].shape)

    def get_tensor_location(self, name: str) -> Any:
        return self._api.TensorLocation.DEVICE

    def is_shape_inference_io(self, name: str) -> bool:
        return False

    def serialize(self) -> Any:
        return host_memory(self, self._plan.to_bytes())

    def create_engine_inspector(self) -> Any:
        return make(self._api.EngineInspector, self)

    def create_execution_context(self, strategy: Any = None) -> Any:
        """None where the device has no room for it."""
        if strategy is None:
            return self._context(False)
        if self._world.release[0] < 10 or not isinstance(strategy, self._api.ExecutionContextAllocationStrategy):
            raise TypeError(f"create_execution_context(): incompatible function arguments: {strategy!r}")
        return self._context(strategy.name == "USER_MANAGED")

    def create_execution_context_without_device_memory(self) -> Any:
        return self._context(True)

    def _context(self, managed: bool) -> Any:
        address = None
        with self._world.lock:
            gpu = self._world.gpu
            gpu.unsafe()
            if not managed and self._activations:
                address = gpu.device_heap.allocate(self._activations, "execution contexts")
                if address is None:
                    text = f"Requested amount of GPU memory ({self._activations} bytes) could not be allocated."
                    report(self, self._logger, "ERROR", f"Error Code 2: OutOfMemory ({text})")
                    return None
                self._world.counts.context_allocations += 1
        return make(self._api.IExecutionContext, self, address)

    def _dtype(self, name: str) -> str:
        """8.6 has no 64-bit integers: its parser makes 32-bit ones of them."""
        dtype = self._tensors[name].dtype
        return "INT32" if dtype == "INT64" and self._world.release[0] < 10 else dtype


class EngineInspector:
    """trt.EngineInspector: layers by name, or with what is known of them where the engine was built DETAILED."""

    def _setup(self, engine: Any) -> None:
        self._engine = engine

    def get_engine_information(self, format: Any) -> str:  # noqa: A002 - its name there
        tensors = [{"Name": tensor.name, "Dimensions": list(tensor.shape)} for tensor in self._engine._tensors.values()]
        content = {"Layers": self._layers(), "Bindings": tensors}
        return json.dumps(content) if format.name == "JSON" else "\n".join(map(str, content["Layers"]))

    def get_layer_information(self, layer_index: int, format: Any) -> str:  # noqa: A002 - its name there
        return json.dumps(self._layers()[layer_index])

    def _layers(self) -> list[Any]:
        layers = self._engine._plan.settings["layers"]
        if self._engine._plan.settings.get("profiling_verbosity") != "DETAILED":
            return [name for name, _ in layers]
        return [{"Name": name, "LayerType": kind, "TacticName": "", "StreamId": 0} for name, kind in layers]


def activation_bytes(model: onnx.ModelProto) -> int:
    """The largest sum of one node's tensors, a stand-in for what a planner finds; free dimensions count as 1."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    sizes = {}
    for value in [*inferred.value_info, *inferred.input, *inferred.output]:
        kind = value.type.tensor_type
        count = int(np.prod([max(1, d.dim_value) for d in kind.shape.dim], dtype=np.int64))
        sizes[value.name] = count * SIZES.get(Tensor.of(value).dtype, 4)
    peaks = [sum(sizes.get(name, 0) for name in {*node.input, *node.output}) for node in inferred.node]
    return -(-max(peaks, default=0) // ALIGNMENT) * ALIGNMENT


ENGINE: dict[str, Any] = {cls.__name__: cls for cls in (Runtime, ICudaEngine, EngineInspector)}
