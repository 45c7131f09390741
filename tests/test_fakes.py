"""The fakes of CUDA and of TensorRT's runtime work by the real ones' rules: order, memory, contexts, capture."""

import importlib
import threading

import fakes
import numpy as np
import pytest
from fakes.small import Running, Setup, engine_of, expected

RELEASES = fakes.versions("tensorrt")


@pytest.fixture
def world(monkeypatch):
    return fakes.install(monkeypatch, "10.3")


@pytest.fixture
def running(world):
    return Running()


@pytest.mark.parametrize("bindings", ["12.9", "13.4"])
@pytest.mark.parametrize("release", RELEASES)
def test_build_run_and_replay(monkeypatch, release, bindings):
    """One copy in, one launch, one copy out, one wait per run; the picture is ONNX Runtime's."""
    world = fakes.install(monkeypatch, release, cuda=bindings)
    from cuda.bindings import driver

    running = Running()
    running.source[...] = 0.25
    running.warm_up()
    assert np.array_equal(running.target, expected(running.source, [0.5]))
    running.capture()
    running.enqueue()
    code, captured = running.end_capture()
    assert code == driver.CUresult.CUDA_SUCCESS
    assert driver.cuGraphGetNodes(captured)[2] == 3
    code, executable = driver.cuGraphInstantiate(captured, 0)
    driver.cuGraphDestroy(captured)
    before = world.counts.copy()
    running.source[...] = -0.5
    assert driver.cuGraphLaunch(executable, running.stream.handle) == (driver.CUresult.CUDA_SUCCESS,)
    running.stream.synchronize()
    done = world.counts - before
    assert np.array_equal(running.target, expected(running.source, [0.5]))
    assert (done.h2d, done.launches, done.executions, done.d2h, done.synchronisations) == (1, 1, 1, 1, 1)
    assert (done.allocations, done.h2d_bytes, done.d2h_bytes) == (0, 2 * 3 * 64 * 4, 2 * 4 * 64)
    driver.cuGraphExecDestroy(executable)
    running.close()
    world.check()


def test_work_is_done_when_the_host_waits(running):
    running.source[...] = 1.0
    running.target[...] = 7
    running.enqueue()
    assert (running.target == 7).all()  # read too early
    running.source[...] = 2.0  # changed too early
    running.stream.synchronize()
    assert np.array_equal(running.target, expected(running.source, [0.5]))


def test_streams_wait_for_each_other_only_by_events(running):
    import pycuda.driver as cuda

    other, passed, later = cuda.Stream(), cuda.Event(), cuda.Event()
    running.source[...] = 1.0
    running.target[...] = 7
    cuda.memcpy_htod_async(running.x, running.source, running.stream)
    assert running.execution.execute_async_v3(running.stream.handle)
    passed.record(running.stream)
    cuda.memcpy_dtoh_async(running.target, running.image, other)
    other.synchronize()
    assert (running.target == 0xDB).all()  # memory nobody wrote to
    other.wait_for_event(passed)
    cuda.memcpy_dtoh_async(running.target, running.image, other)
    later.record(other)
    later.synchronize()
    assert np.array_equal(running.target, expected(running.source, [0.5]))
    assert later.time_since(passed) == pytest.approx(0.01)


def test_a_thread_of_its_own_needs_the_context_current(running, world):
    import pycuda.driver as cuda

    seen = []

    def work():
        for call in (lambda: cuda.mem_alloc(8), cuda.Stream, running.x.free):
            try:
                call()
            except (cuda.LogicError, fakes.Violation) as error:
                seen.append(type(error).__name__)
        running.context.push()
        seen.append(int(cuda.mem_alloc(8)) > 0)
        cuda.Context.pop()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == ["LogicError", "LogicError", "Violation", True]
    with pytest.raises(fakes.Violation, match="MainThread ends with 1 contexts"):
        world.check(freed=False)


def test_no_driver_no_device(monkeypatch):
    world = fakes.install(monkeypatch, "11.4", no_driver=True)
    import pycuda.driver as cuda
    import tensorrt as trt
    from cuda.bindings import driver

    with pytest.raises(cuda.RuntimeError, match="no CUDA-capable device"):
        cuda.init()
    with pytest.raises(RuntimeError, match="NVIDIA driver library"):
        driver.cuInit(0)
    with pytest.raises(TypeError, match="factory function returned nullptr"):
        trt.Builder(trt.Logger())
    with pytest.raises(fakes.Violation, match="SIGSEGV"):
        trt.Runtime(trt.Logger())
    with pytest.raises(fakes.Violation, match="autoinit"):
        import pycuda.autoinit  # noqa: F401
    assert len(world.violations) == 2


@pytest.mark.parametrize("path", ["pycuda.driver", "cuda.bindings.driver", "tensorrt_lean"])
def test_packages_that_are_not_installed(monkeypatch, path):
    fakes.install(monkeypatch, "10.3", without=("pycuda.driver", "cuda"))
    with pytest.raises(ImportError):
        importlib.import_module(path)


def test_memory_is_limited_and_counted(running, world):
    import pycuda.driver as cuda

    free, total = cuda.mem_get_info()
    assert total - free == world.live_bytes
    with pytest.raises(cuda.MemoryError, match="cuMemAlloc failed: out of memory"):
        cuda.mem_alloc(free + 1)
    world.memory = world.live_bytes
    assert running.engine.create_execution_context() is None
    assert "OutOfMemory" in world.log[-1]
    running.close()
    assert (world.live_bytes, world.live_pinned_bytes, world.counts.device_frees) == (0, 0, 3)


def test_numbers_must_be_pythons(running):
    import pycuda.driver as cuda

    for mistake in (lambda: cuda.mem_alloc(np.int64(8)), lambda: cuda.memcpy_dtoh(bytearray(4), np.int64(4096))):
        with pytest.raises(TypeError, match="did not match C"):
            mistake()
    with pytest.raises(cuda.LogicError, match="invalid argument"):
        cuda.mem_alloc(0)


def test_what_corrupts_memory_is_a_violation(running, world):
    import pycuda.driver as cuda

    spare = cuda.mem_alloc(64)
    mistakes = {
        "end 1 bytes behind": lambda: cuda.memcpy_htod(running.gain, bytes(5)),
        "not pinned|not pinned memory": lambda: cuda.memcpy_htod_async(spare, np.zeros(4), running.stream),
        "not aligned": lambda: running.execution.set_tensor_address("x", int(running.x) + 4),
        "that was freed": lambda: (spare.free(), cuda.memcpy_htod(int(spare), bytes(4))),
    }
    for number, (text, mistake) in enumerate(mistakes.items(), start=1):
        with pytest.raises(fakes.Violation, match=text):
            mistake()
        assert len(world.violations) == number
    running.enqueue()
    running.execution.set_tensor_address("x", int(spare))
    with pytest.raises(fakes.Violation, match="tensor x of an engine"):
        running.execution.execute_async_v3(running.stream.handle)


# Capture


def test_nothing_runs_during_capture_and_replay_uses_the_addresses_of_then(running, world):
    import pycuda.driver as cuda
    from cuda.bindings import driver

    running.warm_up()
    running.capture()
    before = world.counts.copy()
    running.enqueue()
    assert (world.counts - before).executions == 0
    kinds = driver.CUgraphNodeType
    _, captured = running.end_capture()
    nodes = driver.cuGraphGetNodes(captured, 3)[1]
    copy, kernel = kinds.CU_GRAPH_NODE_TYPE_MEMCPY, kinds.CU_GRAPH_NODE_TYPE_KERNEL
    assert [driver.cuGraphNodeGetType(node)[1] for node in nodes] == [copy, kernel, copy]
    _, executable = driver.cuGraphInstantiate(captured, 0)
    elsewhere = cuda.mem_alloc(2 * 3 * 64 * 4)
    running.execution.set_tensor_address("x", int(elsewhere))
    running.source[...] = 0.125
    driver.cuGraphLaunch(executable, running.stream.handle)
    running.stream.synchronize()
    assert np.array_equal(running.target, expected(running.source, [0.5]))
    running.gain.free()
    driver.cuGraphLaunch(executable, running.stream.handle)
    with pytest.raises(fakes.Violation, match=r"tensor gain of an engine: .* freed"):
        running.stream.synchronize()


def other_thread(work, context):
    """Run `work` in a thread that has the context current; the text of the CUDA error it raised, if any."""
    import pycuda.driver as cuda

    raised = []

    def run():
        context.push()
        try:
            work()
        except cuda.Error as error:
            raised.append(str(error))
        finally:
            cuda.Context.pop()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised


@pytest.mark.parametrize(
    ("mode", "where", "broken"),
    [
        *(("GLOBAL", "here", True), ("GLOBAL", "elsewhere", True), ("THREAD_LOCAL", "here", True)),
        *(("THREAD_LOCAL", "elsewhere", False), ("RELAXED", "here", False)),
    ],
)
def test_allocating_breaks_a_capture_as_its_mode_has_it(running, mode, where, broken):
    import pycuda.driver as cuda

    running.warm_up()
    running.capture(mode)
    try:
        raised = other_thread(lambda: cuda.mem_alloc(8), running.context) if where == "elsewhere" else []
        if where == "here":
            cuda.mem_alloc(8)
    except cuda.LogicError as error:
        raised = [str(error)]
    assert raised == ["cuMemAlloc failed: operation not permitted when stream is capturing"] * broken
    code, captured = running.end_capture()
    assert (code.name, captured is None) == (
        ("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", True) if broken else ("CUDA_SUCCESS", False)
    )


def test_waiting_copying_and_the_default_stream_break_a_capture(running):
    import pycuda.driver as cuda

    running.warm_up()
    for mistake, text in (
        (running.stream.synchronize, "cuStreamSynchronize failed: operation not permitted"),
        (cuda.Context.synchronize, "cuCtxSynchronize failed: operation not permitted"),
        (lambda: cuda.memcpy_dtoh(bytearray(4), running.gain), "cuMemcpyDtoH failed: operation not permitted"),
        (lambda: cuda.memset_d8_async(running.gain, 0, 4, None), "legacy stream depend on a capturing"),
    ):
        running.capture()
        with pytest.raises(cuda.LogicError, match=text):
            mistake()
        with pytest.raises(cuda.LogicError, match="previous error during capture"):
            cuda.memcpy_htod_async(running.x, running.source, running.stream)
        assert running.end_capture()[0].name == "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"


def test_what_cannot_be_captured(running, world):
    running.capture()
    assert not running.execution.execute_async_v3(running.stream.handle)  # its first run
    assert "run once before the capture" in world.log[-1]
    assert running.end_capture()[0].name == "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"
    running.warm_up()
    world.break_capture = True
    running.capture()
    assert not running.execution.execute_async_v3(running.stream.handle)
    codes = []
    other_thread(lambda: codes.append(running.end_capture()[0].name), running.context)
    assert codes == ["CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD"]
    assert running.end_capture()[0].name == "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"
    assert running.end_capture()[0].name == "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED"
    world.refuse_capture = True
    with pytest.raises(AssertionError):
        running.capture()


# Engines and their contexts


@pytest.mark.parametrize("release", RELEASES)
def test_memory_of_a_context_that_is_the_callers(monkeypatch, release):
    world = fakes.install(monkeypatch, release)
    import pycuda.driver as cuda
    import tensorrt as trt

    running = Running()
    taken = world.counts.context_allocations
    if release == "8.6":
        own = running.engine.create_execution_context_without_device_memory()
        needed = running.engine.device_memory_size
    else:
        own = running.engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        needed = running.engine.device_memory_size_v2
    for name in ("x", "gain", "image"):
        own.set_tensor_address(name, running.execution.get_tensor_address(name))
    assert needed > 0
    assert not own.execute_async_v3(running.stream.handle)
    memory = cuda.mem_alloc(needed)
    if release == "8.6":
        own.device_memory = int(memory)
    else:
        own.set_device_memory(int(memory), needed)
    assert own.execute_async_v3(running.stream.handle)
    assert world.counts.context_allocations == taken
    memory.free()  # waits for the run
    own_again = own.execute_async_v3
    with pytest.raises(fakes.Violation, match="activations"):
        own_again(running.stream.handle)


def test_an_execution_that_lacks_something_says_so(running, world):
    fresh = running.engine.create_execution_context()
    assert not fresh.execute_async_v3(running.stream.handle)
    assert "Address is not set for tensor x" in world.log[-1]
    assert not fresh.set_tensor_address("nothing", int(running.x))
    assert not fresh.set_input_shape("x", (1, 3, 8, 8))
    assert fresh.set_input_shape("x", (2, 3, 8, 8))
    world.fail_execution = True
    assert not running.execution.execute_async_v3(running.stream.handle)


def test_what_an_engine_says_of_itself(world):
    import tensorrt as trt

    engine = engine_of(Setup().build())
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    assert names == ["x", "gain", "image"]
    assert [engine.get_tensor_mode(name).name for name in names] == ["INPUT", "INPUT", "OUTPUT"]
    assert [engine.get_tensor_dtype(name) for name in names] == [trt.float32, trt.float32, trt.uint8]
    assert engine.get_tensor_shape("image") == (2, 4, 8, 8)
    assert trt.nptype(engine.get_tensor_dtype("image")) is np.uint8
    assert world.counts.engine_allocations == 1
    del engine
    assert world.live_bytes == 0
