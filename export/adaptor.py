"""TensorRT's builder, 8.6 to 11.x: the one file that knows how the releases differ in building.

| release | network | precision |
|---|---|---|
| 8.6 | explicit batch, weakly typed | flags FP16, INT8; layers are told the types their tensors have in the graph |
| 10.x | strongly typed | the graph's own types |
| 11.x | nothing else exists | the graph's own types |

What the newer ones dropped is asked for by name and only where it exists. Only the types of the graph decide, so TF32,
which would round fp32 without a word, is off everywhere. Eight bits are Q/DQ pairs in the graph. 8.6 takes them only
with its flag and only with weights in float32, and what it is to fuse into a layer in int8 is told no type.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

from export.simplify import constants, element_types, remove_unused
from runtime.backends.base import lacks_memory
from runtime.backends.cuda import install_cure
from runtime.backends.tensorrt import make_logger, package, release
from runtime.errors import BackendFailed, BackendMissing, DeviceOutOfMemory

logger = logging.getLogger(__name__)

STRONGLY_TYPED_SINCE = (10, 0)
ALWAYS_STRONGLY_TYPED_SINCE = (11, 0)


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """`workspace_mib`: limit of scratch memory while tactics are tried. `optimisation`: 0 to 5, 3 where not told.

    `lean`: a version-compatible engine for `tensorrt_lean`, without code of the host in it. `detailed`: keep what
    `layers` reports.
    """

    workspace_mib: int = 1024
    optimisation: int = 3
    lean: bool = False
    detailed: bool = False


def builder_package() -> Any:
    """The module `tensorrt`. Raises BackendMissing, also for `tensorrt_lean`, which only runs engines."""
    module = package()
    if not hasattr(module, "Builder"):
        raise BackendMissing(
            f"{module.__name__} only runs engines; building needs the package tensorrt. {install_cure()}"
        )
    return module


class Builder:
    """Makes engines with one TensorRT, on the GPU they are for."""

    def __init__(self, module: Any) -> None:
        self._trt = module
        self._release = release(module)
        self.logger = make_logger(module)

    def build(
        self,
        data: bytes,
        options: BuildOptions,
        *,
        timings: bytes = b"",
        progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
    ) -> tuple[bytes, bytes]:
        """(engine, timing cache) of an ONNX graph. `timings`: the cache of earlier builds; one that does not fit is not
        used. `progress`: told of (phase, steps done, steps in all), where the release can.

        Raises BackendFailed (the graph or the build is refused), DeviceOutOfMemory.
        """
        trt = self._trt
        self.logger.last_error = ""
        weakly_typed = self._release < STRONGLY_TYPED_SINCE
        data = _float_weights(data) if weakly_typed else data
        builder = trt.Builder(self.logger)
        network = builder.create_network(self._flags())
        parser = trt.OnnxParser(network, self.logger)
        if not parser.parse(data):
            errors = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
            raise BackendFailed(f"TensorRT {trt.__version__} does not read the graph: {errors[:600]}. Please report it")
        config = builder.create_builder_config()
        self._configure(config, options)
        if weakly_typed:
            self._tell_types(network, config, onnx.load_from_string(data))
        cache = config.create_timing_cache(timings)
        if cache is None or not config.set_timing_cache(cache, False):
            logger.info("the timing cache of earlier builds does not fit and is begun anew")
            config.set_timing_cache(config.create_timing_cache(b""), False)
        return self._run(builder, network, config, progress), bytes(config.get_timing_cache().serialize())

    def _run(self, builder: Any, network: Any, config: Any, progress: Callable[[str, int, int], None]) -> bytes:
        """The build itself. What interrupts it, such as Ctrl-C, is raised once TensorRT has let go."""
        interrupted: list[BaseException] = []
        if hasattr(self._trt, "IProgressMonitor"):
            config.progress_monitor = _monitor(self._trt, progress, interrupted)
        try:
            plan = builder.build_serialized_network(network, config)
        except RuntimeError as error:
            raise BackendFailed(f"TensorRT {self._trt.__version__} failed while it built: {error}") from error
        if interrupted:
            raise interrupted[0]
        if plan is None:
            raise self._failure("cannot build the engine")
        return bytes(plan)

    def layers(self, plan: bytes) -> Any:
        """What TensorRT says of each layer of an engine built with `detailed`: plain JSON values."""
        trt = self._trt
        engine = trt.Runtime(self.logger).deserialize_cuda_engine(plan)
        if engine is None:
            raise self._failure("cannot read the engine back")
        inspector = engine.create_engine_inspector()
        return json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))

    def _flags(self) -> int:
        trt = self._trt
        if self._release < STRONGLY_TYPED_SINCE:
            return 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
        if self._release < ALWAYS_STRONGLY_TYPED_SINCE:
            return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return 0

    def _configure(self, config: Any, options: BuildOptions) -> None:
        trt = self._trt
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
        config.builder_optimization_level = options.optimisation
        config.clear_flag(trt.BuilderFlag.TF32)
        if options.detailed:
            config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if options.lean:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
            config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)

    def _tell_types(self, network: Any, config: Any, model: ModelProto) -> None:
        """8.6: layers compute in the type their inputs have in the graph, and give what the graph says.

        cuBLAS and cuDNN are left out as sources of kernels: 8.6 alone would need these libraries, and no release since.
        """
        trt = self._trt
        sources = (trt.TacticSource.EDGE_MASK_CONVOLUTIONS, trt.TacticSource.JIT_CONVOLUTIONS)
        config.set_tactic_sources(sum(1 << int(source) for source in sources))
        types, fused = _float_types(model, trt), _in_integers(model)
        if fused:
            config.set_flag(trt.BuilderFlag.INT8)
        if trt.float16 not in types.values():
            return
        config.set_flag(trt.BuilderFlag.FP16)
        config.set_flag(trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
        for index in range(network.num_layers):
            _tell_layer(network.get_layer(index), types, fused, trt)

    def _failure(self, what: str) -> BackendFailed | DeviceOutOfMemory:
        text = self.logger.last_error or "no reason given"
        message = f"TensorRT {self._trt.__version__} {what}: {text}."
        if lacks_memory(text):
            return DeviceOutOfMemory(
                f"{message} Close what else uses the GPU, or give less workspace (s2f-export engines --workspace)."
            )
        return BackendFailed(f"{message} Run again with -v for all that TensorRT says, and please report it")


def _float_weights(data: bytes) -> bytes:
    """8.6 has no constants in int8: such weights become float32 and a QuantizeLinear that gives the same integers."""
    model = onnx.load_from_string(data)
    known = constants(model)
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in known:
            integers, scale = known[node.input[0]], known[node.input[1]]
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            shape = [-1 if index == axis % integers.ndim else 1 for index in range(integers.ndim)]
            wide = integers.astype(np.float32) * scale.astype(np.float32).reshape(shape if scale.ndim else ())
            name, narrow = f"{node.output[0]}_float", f"{node.output[0]}_int8"
            model.graph.initializer.append(numpy_helper.from_array(wide, name))
            inputs = [name, *node.input[1:]]
            nodes.append(helper.make_node("QuantizeLinear", inputs, [narrow], name=narrow, axis=axis))
            node.input[0] = narrow
        nodes.append(node)
    if len(nodes) == len(model.graph.node):
        return data
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    remove_unused(model)
    return model.SerializeToString(deterministic=True)  # type: ignore[no-any-return]


def _in_integers(model: ModelProto) -> set[str]:
    """What was dequantised, and the layers, sums and ReLUs after it: TensorRT makes one kernel in int8 of them."""
    found: set[str] = set()
    for node in model.graph.node:
        follows = node.op_type in ("Conv", "MatMul", "Gemm", "Add", "Relu") and not found.isdisjoint(node.input)
        if node.op_type == "DequantizeLinear" or follows:
            found.update(node.output)
    return found


def _float_types(model: ModelProto, trt: Any) -> dict[str, Any]:
    """TensorRT's type of every float tensor of the graph, by name."""
    names: dict[int, Any] = {onnx.TensorProto.FLOAT: trt.float32, onnx.TensorProto.FLOAT16: trt.float16}
    inferred = onnx.shape_inference.infer_shapes(model)
    return {name: names[kind] for name, kind in element_types(inferred).items() if kind in names}


def _tell_layer(layer: Any, types: dict[str, Any], fused: set[str], trt: Any) -> None:
    """Outputs the graph does not name, of layers the parser added, have the type of what comes in.

    `fused`: tensors of which nothing is told, see `_in_integers`.
    """
    inputs = [layer.get_input(i) for i in range(layer.num_inputs)]
    outputs = {layer.get_output(i).name for i in range(layer.num_outputs)}
    if any(tensor is not None and tensor.name in fused for tensor in inputs):
        fused.update(outputs - types.keys())
    if outputs <= fused or layer.type in (trt.LayerType.QUANTIZE, trt.LayerType.DEQUANTIZE):
        return
    known = [types[tensor.name] for tensor in inputs if tensor is not None and tensor.name in types]
    computed = trt.float32 if trt.float32 in known else trt.float16 if known else None
    for index in range(layer.num_outputs):
        name = layer.get_output(index).name
        if name not in types and computed is not None:
            types[name] = computed
        if name in types and layer.type != trt.LayerType.CAST:
            layer.set_output_type(index, types[name])
    if computed is not None and layer.type not in (trt.LayerType.CAST, trt.LayerType.CONSTANT):
        layer.precision = computed


def _monitor(trt: Any, progress: Callable[[str, int, int], None], interrupted: list[BaseException]) -> Any:
    """A progress monitor that hands on to `progress`; what that raises ends the build and lies in `interrupted`."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # a class known at run time only
        """Called from TensorRT's threads, through C++, which must not see an exception."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                progress(phase_name, step + 1, self._steps.get(phase_name, 0))
            except BaseException as error:  # noqa: BLE001 - see above
                interrupted.append(error)
            return not interrupted

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()
