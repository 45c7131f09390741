"""The fakes of TensorRT's parser and builder: what each release takes, refuses and makes; which plans load where."""

import hashlib

import fakes
import pytest
from fakes.small import Setup, engine_of, graph

RELEASES = fakes.versions("tensorrt")
VERSIONED = "VERSION_COMPATIBLE"


def plan(monkeypatch, release, *flags, **settings):
    """A plan built under a release with these builder flags."""
    with monkeypatch.context() as patch:
        module = fakes.install(patch, release, **settings).modules["tensorrt"]
        setup = Setup()
        for flag in flags:
            setup.config.set_flag(getattr(module.BuilderFlag, flag))
        return bytes(setup.build())


@pytest.mark.parametrize("release", RELEASES)
def test_a_network_is_what_the_graph_says(monkeypatch, release):
    fakes.install(monkeypatch, release)
    import tensorrt as trt

    network = Setup().network
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    assert [layer.name for layer in layers] == ["range", "conv", "mul", "bend", "range_mul", "abs", "cast"]
    assert (layers[0].type, layers[1].type) == (trt.LayerType.CONSTANT, trt.LayerType.CONVOLUTION)
    assert (layers[-1].get_output(0).name, layers[-1].get_output(0).dtype) == ("image", trt.uint8)
    assert (network.num_inputs, network.get_input(0).shape == (2, 3, 8, 8), network.get_layer(99)) == (2, True, None)
    assert [layer.name for layer in network] == [layer.name for layer in layers]


@pytest.mark.parametrize(
    ("data", "text", "refused_by"),
    [
        (b"no graph", "Failed to parse", RELEASES),
        (graph(opset=18), "opset 18 is newer than 17", ["8.6"]),
        (graph(opset=99), "opset 99", RELEASES),
        (graph(operator="Mish"), "No importer registered for op: Mish", RELEASES),
        (graph(middle="UINT8"), "is cast to UINT8", ["8.6"]),
        (graph(middle="DOUBLE"), "is cast to DOUBLE", ["8.6"]),
    ],
)
def test_a_parser_refuses_with_a_reason(monkeypatch, data, text, refused_by):
    for release in RELEASES:
        with monkeypatch.context() as patch:
            world = fakes.install(patch, release)
            setup = Setup(data)
            assert setup.parsed == (release not in refused_by)
            assert setup.parser.num_errors == (not setup.parsed)
            if not setup.parsed:
                assert text in setup.parser.get_error(0).desc()
                assert text in world.log[-1]
                assert setup.build() is None


def test_a_parser_refuses_what_a_test_wants_refused(monkeypatch):
    fakes.install(monkeypatch, "10.3", unsupported=("Conv",))
    setup = Setup()
    assert (setup.parsed, setup.parser.supports_operator("Conv"), setup.parser.supports_operator("Mul")) == (
        *(False, False),
        True,
    )


def test_8_6_wants_an_explicit_batch(monkeypatch):
    fakes.install(monkeypatch, "8.6")
    assert not Setup(flag="EXPLICIT_PRECISION").parsed


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"build_failure": "none"}, "Could not find any implementation"),
        ({"build_failure": "memory"}, "OutOfMemory"),
        ({"build_memory": 9 << 30}, "OutOfMemory"),
        ({"workspace_needed": 2 << 20}, "workspace of 1048576 bytes is too small"),
    ],
)
@pytest.mark.parametrize("release", ["8.6", "11.4"])
def test_a_build_fails_with_a_reason(monkeypatch, release, settings, text):
    world = fakes.install(monkeypatch, release, **settings)
    import tensorrt as trt

    setup = Setup()
    setup.config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 20)
    assert setup.build() is None
    assert text in world.log[-1]
    assert [build.succeeded for build in world.builds] == [False]


def test_flags_of_precision_are_for_weakly_typed_networks(monkeypatch):
    world = fakes.install(monkeypatch, "10.3")
    import tensorrt as trt

    setup = Setup()
    setup.config.set_flag(trt.BuilderFlag.FP16)
    assert setup.build() is None
    assert "FP16 must not be set for a strongly typed network" in world.log[-1]
    assert Setup(flag="EXPLICIT_BATCH").build() is not None


def test_layers_of_8_6_take_precisions(monkeypatch):
    world = fakes.install(monkeypatch, "8.6")
    import tensorrt as trt

    setup = Setup()
    layer = setup.network.get_layer(1)
    layer.precision = trt.float16
    layer.set_output_type(0, trt.float32)
    setup.config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    assert setup.build() is None
    assert "kFP16 is not set" in world.log[-1]
    setup.config.set_flag(trt.BuilderFlag.FP16)
    assert setup.build() is not None
    assert world.builds[-1].layers[1] == ("conv", "HALF", ["FLOAT"])
    assert world.builds[-1].flags == ("FP16", "OBEY_PRECISION_CONSTRAINTS", "TF32")
    with pytest.raises(TypeError):
        layer.precision = 1


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_monitor_is_told_and_may_cancel(monkeypatch, goes_on):
    fakes.install(monkeypatch, "10.3")
    import tensorrt as trt

    told = []

    class Monitor(trt.IProgressMonitor):
        def __init__(self):
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name, parent_phase, num_steps):
            told.append(("start", phase_name))

        def step_complete(self, phase_name, step):
            told.append(("step", phase_name))
            return goes_on

        def phase_finish(self, phase_name):
            told.append(("finish", phase_name))

    setup = Setup()
    setup.config.progress_monitor = Monitor()
    assert (setup.build() is not None) == goes_on
    starts = sum(kind == "start" for kind, _ in told)
    assert starts - sum(kind == "finish" for kind, _ in told) == (0 if goes_on else 1)


def test_a_timing_cache_fits_its_release_and_device(monkeypatch):
    world = fakes.install(monkeypatch, "10.3")
    setup = Setup()
    cache = setup.config.create_timing_cache(b"")
    assert setup.config.set_timing_cache(cache, False)
    setup.build()
    data = bytes(setup.config.get_timing_cache().serialize())
    assert hashlib.sha256(setup.parser._network._serialised()).hexdigest().encode() in data
    assert setup.config.set_timing_cache(setup.config.create_timing_cache(data), False)
    for other in (data.replace(b"10.3", b"10.2"), b"rubbish"):
        assert not setup.config.set_timing_cache(setup.config.create_timing_cache(other), False)
        assert setup.config.set_timing_cache(setup.config.create_timing_cache(other), True)
    assert "timing cache does not match" in world.log[-1]


def test_settings_and_plans(monkeypatch):
    world = fakes.install(monkeypatch, "11.4", plan_padding=1000)
    setup = Setup()
    assert setup.config.builder_optimization_level == 3
    setup.config.builder_optimization_level = 5
    setup.config.builder_optimization_level = 9
    assert (setup.config.builder_optimization_level, "must be in 0..5" in world.log[-1]) == (5, True)
    padded = bytes(setup.build())
    world.plan_padding = 0
    assert len(padded) - len(bytes(setup.build())) == 1000 + len("1000") - len("0")
    assert engine_of(padded) is not None
    assert world.builds[0].settings == {"builder_optimization_level": 5}


def test_only_a_whole_plan_of_this_release_and_device_loads(monkeypatch):
    good = plan(monkeypatch, "10.3")
    foreign = plan(monkeypatch, "10.13")
    other_device = plan(monkeypatch, "10.3", capability=(9, 0))
    world = fakes.install(monkeypatch, "10.3")
    assert engine_of(good) is not None
    for data, reason in (
        (b"", "magic"),
        (b"rubbish", "magic"),
        (good[:-1], "damaged"),
        (good[:-1] + bytes([good[-1] ^ 1]), "damaged"),
        (foreign, "expecting library version 10.3.0 got 10.13.3.9"),
        (other_device, "expecting compute 8.7 got compute 9.0"),
    ):
        assert engine_of(data) is None
        assert reason in world.log[-1]


@pytest.mark.parametrize(
    ("flags", "lean", "loads"),
    [
        ((VERSIONED,), False, {True}),
        ((VERSIONED, "EXCLUDE_LEAN_RUNTIME"), True, {False, True}),
        ((VERSIONED, "EXCLUDE_LEAN_RUNTIME"), False, set()),
        ((), True, set()),
    ],
)
def test_version_compatible_plans(monkeypatch, flags, lean, loads):
    """`loads`: with which values of engine_host_code_allowed a newer release takes the plan."""
    data = plan(monkeypatch, "10.13", *flags)
    module = fakes.install(monkeypatch, "11.4", lean=lean).modules["tensorrt_lean" if lean else "tensorrt"]
    runtime = module.Runtime(module.Logger())
    assert not runtime.engine_host_code_allowed
    for host_code in (False, True):
        runtime.engine_host_code_allowed = host_code
        assert (runtime.deserialize_cuda_engine(data) is not None) == (host_code in loads)
    if "EXCLUDE_LEAN_RUNTIME" in flags:
        assert runtime.load_runtime("libnvinfer_lean.so").deserialize_cuda_engine(data) is not None


def test_an_older_release_does_not_load_a_newer_plan(monkeypatch):
    data = plan(monkeypatch, "11.4", VERSIONED, "EXCLUDE_LEAN_RUNTIME")
    module = fakes.install(monkeypatch, "10.16", lean=True).modules["tensorrt_lean"]
    assert module.Runtime(module.Logger()).deserialize_cuda_engine(data) is None
