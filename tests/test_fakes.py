"""The fakes of CUDA and of TensorRT's runtime work by the real ones' rules: order, memory, contexts, capture."""

import threading

import fakes
import numpy as np
import pytest
from fakes.small import Running, expected

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


def test_packages_that_are_not_installed(monkeypatch):
    fakes.install(monkeypatch, "10.3", without=("pycuda.driver", "cuda"))
    with pytest.raises(ImportError):
        pass
    with pytest.raises(ImportError):
        from cuda.bindings import driver  # noqa: F401


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
