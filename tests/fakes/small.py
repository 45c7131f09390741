"""A small graph, its engine, and buffers for it: what the tests of the fakes run."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from .trt_context import session


def graph(opset=17, batch=2, *, operator="Tanh", middle="FLOAT"):
    """x float32 [batch, 3, 8, 8], gain float32 [1] → image uint8 [batch, 4, 8, 8]; `middle`: a type passed through."""
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["cells"], name="conv"),
        helper.make_node("Mul", ["cells", "gain"], ["scaled"], name="mul"),
        helper.make_node(operator, ["scaled"], ["bent"], name="bend"),
        helper.make_node("Mul", ["bent", "range"], ["pixels"], name="range_mul"),
        *_through(middle),
        helper.make_node("Cast", ["positive"], ["image"], name="cast", to=TensorProto.UINT8),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 8, 8])]
    inputs.append(helper.make_tensor_value_info("gain", TensorProto.FLOAT, [1]))
    outputs = [helper.make_tensor_value_info("image", TensorProto.UINT8, [batch, 4, 8, 8])]
    kernel = np.random.default_rng(0).standard_normal((4, 3, 1, 1)).astype(np.float32)
    weights = [numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(np.float32(255), "range")]
    made = helper.make_graph(nodes, "g", inputs, outputs, weights)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8).SerializeToString()


def _through(kind):
    """ "positive" cast to another type and back."""
    if kind == "FLOAT":
        return [helper.make_node("Abs", ["pixels"], ["positive"], name="abs")]
    there = helper.make_node("Cast", ["pixels"], ["there"], name="there", to=TensorProto.DataType.Value(kind))
    return [there, helper.make_node("Cast", ["there"], ["positive"], name="back", to=TensorProto.FLOAT)]


def expected(x, gain, data=None):
    """The picture as ONNX Runtime has it."""
    return session(data or graph()).run(None, {"x": np.array(x), "gain": np.float32(gain)})[0]


class Setup:
    """Builder, network with the graph in it, and configuration, as each release wants them."""

    def __init__(self, data=None, flag=None):
        import tensorrt as trt

        self.logger = trt.Logger()
        self.builder = trt.Builder(self.logger)
        flags = trt.NetworkDefinitionCreationFlag
        flag = flag or ("EXPLICIT_BATCH" if trt.__version__.startswith("8") else "STRONGLY_TYPED")
        self.network = self.builder.create_network(1 << int(getattr(flags, flag)))
        self.parser = trt.OnnxParser(self.network, self.logger)
        self.parsed = self.parser.parse(data or graph())
        self.config = self.builder.create_builder_config()

    def build(self):
        """The plan, None where the build fails."""
        return self.builder.build_serialized_network(self.network, self.config)


def engine_of(plan):
    """The engine of a plan, None where it is refused."""
    import tensorrt as trt

    return trt.Runtime(trt.Logger()).deserialize_cuda_engine(plan)


class Running:
    """An engine of the graph with buffers, in the primary context, current in this thread until `close`."""

    def __init__(self, plan=None):
        import pycuda.driver as cuda

        cuda.init()
        self.context = cuda.Device(0).retain_primary_context()
        self.context.push()
        self.stream = cuda.Stream()
        self.engine = engine_of(plan or Setup().build())
        self.execution = self.engine.create_execution_context()
        self.x, self.gain, self.image = (cuda.mem_alloc(size) for size in (2 * 3 * 64 * 4, 4, 2 * 4 * 64))
        self.source = cuda.pagelocked_empty((2, 3, 8, 8), np.float32)
        self.target = cuda.pagelocked_empty((2, 4, 8, 8), np.uint8)
        cuda.memcpy_htod(self.gain, np.float32([0.5]))
        for name, address in (("x", self.x), ("gain", self.gain), ("image", self.image)):
            assert self.execution.set_tensor_address(name, int(address))

    def enqueue(self):
        """Copy in, run, copy out; nothing is waited for."""
        import pycuda.driver as cuda

        cuda.memcpy_htod_async(self.x, self.source, self.stream)
        assert self.execution.execute_async_v3(self.stream.handle)
        cuda.memcpy_dtoh_async(self.target, self.image, self.stream)

    def capture(self, mode="THREAD_LOCAL"):
        """Begin a capture of the stream."""
        from cuda.bindings import driver

        modes = driver.CUstreamCaptureMode
        (code,) = driver.cuStreamBeginCapture(self.stream.handle, getattr(modes, f"CU_STREAM_CAPTURE_MODE_{mode}"))
        assert code == driver.CUresult.CUDA_SUCCESS

    def end_capture(self):
        """(code, graph)"""
        from cuda.bindings import driver

        return driver.cuStreamEndCapture(driver.CUstream(self.stream.handle))

    def warm_up(self):
        """The run that a capture wants to have seen."""
        self.enqueue()
        self.stream.synchronize()

    def close(self):
        """Give everything back."""
        for memory in (self.source.base, self.target.base, self.x, self.gain, self.image):
            memory.free()
        del self.execution, self.engine, self.stream
        self.context.pop()
        self.context.detach()
