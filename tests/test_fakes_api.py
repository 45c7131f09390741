"""What the fakes offer is what the releases offer; and the names that our sources use exist where they are used."""

import gzip
import importlib.util
import json
import shutil
from pathlib import Path

import fakes
import pytest
from fakes import bindings_fake, introspect, pycuda_fake, stand_ins, usage
from fakes.small import Setup

RELEASES = fakes.versions("tensorrt")
KNOWN = [
    (fakes.TENSORRT, [fakes.load("tensorrt", version) for version in RELEASES]),
    (pycuda_fake.BEHAVIOURS, [fakes.load("pycuda.driver", "2026.1")]),
    (bindings_fake.BEHAVIOURS, [fakes.load("cuda.bindings.driver", version) for version in ("12.9", "13.4")]),
]


@pytest.fixture
def world(monkeypatch):
    return fakes.install(monkeypatch, "10.3")


@pytest.mark.parametrize(("behaviours", "tables"), KNOWN, ids=["tensorrt", "pycuda", "cuda-bindings"])
def test_every_behaviour_exists_in_some_release(behaviours, tables):
    unknown = []
    for name, behaviour in behaviours.items():
        if name.endswith(".members"):
            continue
        unknown += [name] * (not any(table.has(name) for table in tables))
        members = vars(behaviour) if isinstance(behaviour, type) and not issubclass(behaviour, Exception) else {}
        for member in [member for member in members if not member.startswith("_")]:
            unknown += [f"{name}.{member}"] * (not any(table.has(f"{name}.{member}") for table in tables))
            settable = getattr(members[member], "fset", None) is None or any(
                member in table.writable.get(name, ()) for table in tables
            )
            unknown += [f"{name}.{member} (set)"] * (not settable)
    assert unknown == []


@pytest.mark.parametrize(("release", "lean"), [*((v, False) for v in RELEASES), ("10.16", True), ("11.4", True)])
def test_a_module_offers_every_class_of_its_table_and_no_other(monkeypatch, release, lean):
    name = "tensorrt_lean" if lean else "tensorrt"
    module, table = fakes.install(monkeypatch, release, lean=lean).modules[name], fakes.load(name, release)
    public = {key for key, value in vars(module).items() if not key.startswith("_") and isinstance(value, type)}
    assert public == {*table.classes, *(key for key in table.enums if "." not in key)}
    for key, members in table.enums.items():
        found = module
        for part in key.split("."):
            found = getattr(found, part)
        assert {member: int(value) for member, value in found.__members__.items()} == members


@pytest.mark.parametrize(
    ("path", "present"),
    [
        ("BuilderFlag.FP16", RELEASES[:4]),
        ("BuilderFlag.STRICT_TYPES", ["8.6"]),
        ("NetworkDefinitionCreationFlag.EXPLICIT_BATCH", RELEASES[:4]),
        ("NetworkDefinitionCreationFlag.STRONGLY_TYPED", RELEASES[1:]),
        ("ILayer.set_output_type", RELEASES[:4]),
        ("ICudaEngine.create_execution_context_without_device_memory", RELEASES[:4]),
        ("ICudaEngine.device_memory_size_v2", RELEASES[1:]),
        ("IExecutionContext.set_device_memory", RELEASES[1:]),
        ("IExecutionContext.execute_async_v3", RELEASES),
        ("IExecutionContext.execute_async_v2", ["8.6"]),
        ("IProgressMonitor", RELEASES[1:]),
        ("IBuilderConfig.tiling_optimization_level", RELEASES[2:]),
        ("Logger.Severity.VERBOSE", RELEASES),
        ("Nothing", []),
    ],
)
def test_a_name_exists_in_its_releases_only(monkeypatch, path, present):
    for release in RELEASES:
        with monkeypatch.context() as patch:
            found = fakes.install(patch, release).modules["tensorrt"]
            parts = path.split(".")
            for part in parts[:-1]:
                found = getattr(found, part)
            assert hasattr(found, parts[-1]) == (release in present) == fakes.load("tensorrt", release).has(path)


def test_a_name_the_fake_lacks_says_so(world):
    import pycuda.driver
    import tensorrt as trt

    with pytest.raises(NotImplementedError, match=r"IBuilderConfig\.int8_calibrator"):
        Setup().config.int8_calibrator = None
    with pytest.raises(NotImplementedError, match=r"tensorrt\.Refitter"):
        trt.Refitter(None, None)
    with pytest.raises(NotImplementedError, match="mem_alloc_pitch"):
        pycuda.driver.mem_alloc_pitch(1, 1, 4)


def test_setting_what_a_release_lacks_fails_as_reading_does(monkeypatch):
    fakes.install(monkeypatch, "8.6")
    with pytest.raises(AttributeError, match="progress_monitor"):
        Setup().config.progress_monitor = None
    fakes.install(monkeypatch, "11.4")
    setup = Setup()
    with pytest.raises(AttributeError):
        setup.network.get_input(0).dtype = None
    with pytest.raises(AttributeError, match="precision"):
        setup.network.get_layer(0).precision = None


def test_values_behave_as_pybind11_has_them(world):
    import tensorrt as trt

    flag, shape, plan = trt.BuilderFlag.FP16, trt.Dims([1, 2]), Setup().build()
    assert (flag.name, int(flag), flag == 0, shape == (1, 2), tuple(shape), bool(plan)) == (
        *("FP16", 0, False, True),
        *((1, 2), True),
    )
    assert bytes(plan) == bytes(memoryview(plan))
    assert plan.nbytes == len(bytes(plan))
    for mistake in (
        lambda: 1 << flag,
        lambda: list(trt.BuilderFlag),
        lambda: shape == trt.Dims([1, 2]),
        lambda: len(plan),
    ):
        with pytest.raises(TypeError):
            mistake()
    with pytest.raises(TypeError, match="No constructor"):
        trt.IBuilderConfig()
    with pytest.raises(TypeError):
        trt.Builder(None)


# Our sources

ROOT = Path(__file__).parent.parent
TENSORRT = [fakes.load("tensorrt", version) for version in RELEASES]
LEAN = [fakes.load("tensorrt_lean", version) for version in fakes.versions("tensorrt_lean")]
CUDA = [table for _, tables in KNOWN[1:] for table in tables]
NAMES = {**usage.MODULES, "module": "tensorrt", "api": "cuda.bindings.driver"}
PYCUDA = {"device": "Device", "context": "Context", "stream": "Stream", "block": "DeviceAllocation"}
OBJECTS = {name: f"pycuda.driver.{kind}" for name, kind in PYCUDA.items()}

BRANCHES = {
    *("BuilderFlag.FP16", "BuilderFlag.INT8", "BuilderFlag.PREFER_PRECISION_CONSTRAINTS"),
    *("NetworkDefinitionCreationFlag.EXPLICIT_BATCH", "NetworkDefinitionCreationFlag.STRONGLY_TYPED"),
    *("ILayer.precision", "ILayer.set_output_type"),
    *("IProgressMonitor", "IProgressMonitor.__init__", "IBuilderConfig.progress_monitor"),
    *("ICudaEngine.device_memory_size", "ICudaEngine.create_execution_context_without_device_memory"),
    "IExecutionContext.set_device_memory",
}
"""What our sources use on some releases only, after asking which release it is; the tests run those lines on each."""


@pytest.mark.parametrize(
    ("path", "tables", "receivers"),
    [
        ("export/adaptor.py", TENSORRT, usage.RECEIVERS),
        ("runtime/backends/tensorrt.py", [*TENSORRT, *LEAN], usage.RECEIVERS),
        ("runtime/backends/cuda.py", CUDA, OBJECTS),
    ],
)
def test_our_sources_use_names_that_exist(path, tables, receivers):
    found = usage.missing([ROOT / path], tables, NAMES, receivers)
    assert [str(item) for item in found if item.use.name not in BRANCHES] == []


def test_every_exception_from_that_is_needed():
    sources = [ROOT / path for path in ("export/adaptor.py", "runtime/backends/tensorrt.py")]
    found = usage.missing(sources, [*TENSORRT, *LEAN], NAMES, usage.RECEIVERS)
    assert {item.use.name for item in found} >= BRANCHES


def test_names_are_found_in_source(tmp_path):
    source = tmp_path / "adaptor.py"
    source.write_text(
        """
import tensorrt as trt

class Adaptor:
    def older(self, config):  # TensorRT < 10
        config.set_flag(self._trt.BuilderFlag.STRICT_TYPES)
        config.max_workspace_size = 1

    def newer(self, config, engine):
        engine.device_memory_size_v2  # TensorRT >= 10
        config.progress_monitor = None
        if hasattr(config, "nothing") and getattr(config, "nobody", None):
            return getattr(trt.BuilderFlag, "FP16"), trt.IBuilderConfig.nowhere, trt.Logger.Severity.LOUD
"""
    )
    found = [(item.version, item.use.line, item.use.name) for item in usage.missing([source], TENSORRT[:1])]
    assert found == [
        ("8.6.0", 11, "IBuilderConfig.progress_monitor"),
        ("8.6.0", 13, "IBuilderConfig.nowhere"),
        ("8.6.0", 13, "Logger.Severity.LOUD"),
    ]
    newest = {item.use.name for item in usage.missing([source], TENSORRT[-1:])}
    assert newest == {"BuilderFlag.FP16", "IBuilderConfig.nowhere", "Logger.Severity.LOUD"}


@pytest.mark.parametrize("name", ["tensorrt-11.4", "tensorrt_lean-11.4"])
def test_a_table_is_what_the_real_bindings_have(tmp_path, name):
    """Where they are installed (extra `dev`, x86-64 Linux): imported in another process, with stand-in libraries."""
    module = f"{name.partition('-')[0]}_bindings"
    spec = importlib.util.find_spec(module)
    if spec is None or shutil.which("gcc") is None:
        pytest.skip(f'needs gcc and {module}: pip install "s2f-edge[dev]" on x86-64 Linux')
    found = stand_ins.introspect(module, Path(spec.origin).parents[1], tmp_path)
    table = json.loads(gzip.decompress((Path(fakes.__file__).parent / "api" / f"{name}.json.gz").read_bytes()))
    for key in ("names", "classes", "enums", "writable"):
        assert found[key] == table[key]


def test_our_sources_use_names_that_the_installed_cuda_bindings_have():
    driver = pytest.importorskip("cuda.bindings.driver", reason="comes with torch for CUDA")
    real = introspect.describe(driver)
    source = (ROOT / "runtime/backends/cuda.py").read_text()
    used = [use.name for use in usage.uses(source, "cuda.py", NAMES, {}) if use.module == "cuda.bindings.driver"]
    assert used
    for name in used:
        first, _, member = name.partition(".")
        assert first in {*real["names"], *real["classes"], *real["enums"]}
        assert not member or member in real["enums"][first]
