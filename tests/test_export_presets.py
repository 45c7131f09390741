"""Presets, how a device is recognised, and the estimate for each: arithmetic, and a page that says what they say."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.presets import FORMS, PRESETS, Figures, board, detect, preset
from runtime.bundle import STAGES, read_manifest
from runtime.engines import MAX_ENGINE_BATCH
from runtime.errors import DeviceUnavailable, InvalidArgument
from runtime.pipeline import shipped_bundle

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import jetson_estimate

GIB = 1024**3
NANO = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
NX = "NVIDIA Jetson Orin NX Engineering Reference Developer Kit"


@pytest.mark.parametrize(
    ("model", "capability", "memory", "name"),
    [
        (NANO, "8.7", 7.4, "orin-nano"),
        (NANO, "8.7", 3.3, "orin-nano-4gb"),
        (NANO, "8.7", None, "orin-nano-4gb"),
        (f"{NANO} nvidia,p3768-0000+p3767-0005-super nvidia,p3767-0005 nvidia,tegra234", "8.7", None, "orin-nano"),
        (f"{NANO} nvidia,p3768-0000+p3767-0004 nvidia,tegra234", "8.7", 7.4, "orin-nano-4gb"),
        (NX, "8.7", 15.3, "orin-nx"),
        (NX, "8.7", 7.4, "orin-nx-8gb"),
        (f"{NX} Super nvidia,p3768-0000+p3767-0000-super nvidia,p3767-0000", "8.7", None, "orin-nx"),
        ("NVIDIA Jetson AGX Orin Developer Kit", "8.7", 61.4, "agx-orin"),
        ("NVIDIA Jetson AGX Orin Developer Kit", "8.7", 29.8, "agx-orin-32gb"),
        ("NVIDIA Jetson AGX Orin nvidia,p3737-0000+p3701-0005 nvidia,tegra234", "8.7", None, "agx-orin"),
        ("NVIDIA IGX Orin Developer Kit", "8.7", 61.0, "agx-orin"),
        ("a carrier board of somebody's", "8.7", 7.4, "orin-nano"),
        ("", "8.7", None, "orin-nano-4gb"),
        ("NVIDIA Jetson AGX Thor Developer Kit", "11.0", 122.8, "thor"),
        ("NVIDIA Jetson Thor Developer Kit nvidia,p4071-0080+p3834-0008", "11.0", None, "thor"),
        ("NVIDIA Jetson Thor", "11.0", 61.0, "thor-t4000"),
        ("", "8.9", 24.0, "desktop"),
        ("", "9.0", None, "desktop"),
        ("NVIDIA IGX Orin Developer Kit", "8.6", 48.0, "desktop"),  # its discrete GPU decides, not its board
    ],
)
def test_devices_are_recognised(model, capability, memory, name):
    assert detect(model, capability, None if memory is None else int(memory * GIB)).name == name


@pytest.mark.parametrize(("capability", "name"), [("7.2", "Xavier"), ("6.2", "TX2"), ("5.3", "Nano")])
def test_older_jetsons_are_sent_to_the_cpu(capability, name):
    with pytest.raises(DeviceUnavailable, match=rf"{name}.*JetPack 5.*--device cpu"):
        detect(f"NVIDIA Jetson {name}", capability)


@given(st.text(max_size=80), st.sampled_from(("8.7", "11.0", "8.6", "12.1", "", "odd")), st.integers(0, 2**40))
def test_any_board_has_a_preset_of_its_capability(model, capability, memory):
    found = detect(model, capability, memory)
    assert found.capability == (capability if capability in ("8.7", "11.0") else "")


def test_presets_are_sound():
    for name, one in PRESETS.items():
        assert one.name == name == preset(name).name
        assert set(one.forms) <= set(FORMS)
        assert "stages" in one.forms
        assert one.batches == tuple(sorted(set(one.batches)))
        assert (one.batches[0], one.batches[-1] <= MAX_ENGINE_BATCH) == (1, True)
        assert 0 <= one.optimisation <= 5
        assert one.workspace_mib <= one.memory_mib / 4
        assert one.precision == "fp16"


def test_published_figures_agree_with_each_other():
    """Dense fp16 of the tensor cores is 16 (Orin) or 64 (Thor) times cores × clock by the data sheets' own numbers."""
    for one in PRESETS.values():
        if one.figures is not None:
            per_core = 16 if one.capability == "8.7" else 64
            expected = per_core * one.figures.cuda_cores * one.figures.gpu_ghz / 1000
            assert one.figures.fp16_tflops == pytest.approx(expected, rel=0.02), one.name
    assert Figures(1024, 1.0, 16, 100, "").fp32_tflops == pytest.approx(2.048)


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(InvalidArgument, match="orin-nano"):
        preset("jetson")


def test_board_reads_the_device_tree(tmp_path):
    assert board(tmp_path) == ""
    (tmp_path / "model").write_bytes(b"NVIDIA Jetson Orin\0")
    assert board(tmp_path) == "NVIDIA Jetson Orin"
    (tmp_path / "compatible").write_bytes(b"nvidia,p3767-0003\0nvidia,tegra234\0")
    assert board(tmp_path) == "NVIDIA Jetson Orin nvidia,p3767-0003 nvidia,tegra234"


def test_presets_need_neither_torch_nor_onnx():
    code = "import sys, export.presets; sys.exit(bool({'torch', 'onnx', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_times_by_hand():
    """1 GFLOP float16 at 10 TFLOP/s: 0.1 ms. 0.1 GFLOP float32 at 1 TFLOP/s: 0.1 ms. 10 MB at 100 GB/s: 0.1 ms."""
    figures = Figures(cuda_cores=500, gpu_ghz=1.0, fp16_tflops=10, bandwidth=100, source="")
    cost = {"matrix": {"float16": 10**9, "float32": 10**8}, "weight_reads": 4 * 10**6, "kernels": 100}
    found = jetson_estimate.times({**cost, "fused_activation_bytes": 6 * 10**6}, figures)
    assert found["compute"] == 0.2
    assert found["bandwidth"] == 0.1
    assert found["launch"] == [0.15, 0.5]
    assert found["floor"] == 0.2
    # 15 %: 1.5 TFLOP/s, for float32 no more than the CUDA cores' 1; 5 %: 0.5 TFLOP/s for both
    assert found["expected"] == [pytest.approx(1 / 1.5 + 0.1, abs=1e-4), pytest.approx(2 + 0.2)]


def test_a_portrait_is_its_stages_one_after_the_other():
    stage = {"floor": 1.0, "expected": [2.0, 3.0]}
    found = jetson_estimate.chain(dict.fromkeys(STAGES, stage), 4)
    assert found == {"floor": 6.0, "expected": [12.0, 18.0]}


@pytest.fixture(scope="module")
def result():
    return json.loads(jetson_estimate.RESULT.read_text(encoding="utf-8"))


def test_the_page_has_the_tables_of_the_result(result):
    page = jetson_estimate.DOCS.read_text(encoding="utf-8")
    assert jetson_estimate.with_tables(page, jetson_estimate.tables(result)) == page
    assert page.count("ESTIMATE") == 1


def test_the_result_is_of_the_shipped_bundle_and_of_these_presets(result):
    manifest, identity = read_manifest(shipped_bundle())
    assert result["bundle"] == {"name": "demo", "identity": identity, "default_steps": manifest.default_steps}
    assert result["devices"].keys() == {one.name for one in PRESETS.values() if one.figures is not None}
    for name, entry in result["devices"].items():
        figures = PRESETS[name].figures
        assert entry["stages_ms"]["unet"] == jetson_estimate.times(result["counts"]["stages"]["1"]["unet"], figures)
        assert entry["memory"]["module_mib"] == PRESETS[name].memory_mib


def test_the_result_counts_what_is_derived_now(result):
    """Where this fails the graphs have changed: run benchmarks/jetson_estimate.py again."""
    from runtime.bundle import read_bundle

    counted = jetson_estimate.count_bundle(read_bundle(shipped_bundle()), [1])
    assert counted["stages"]["1"] == result["counts"]["stages"]["1"]
    assert counted["pipeline"] == result["counts"]["pipeline"]


def test_the_page_s_presets_are_the_presets():
    page = jetson_estimate.DOCS.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| .+ \| ([\d, ]+) \| (yes|no) \| (\d+) MiB \|$", page, re.MULTILINE)
    known = {
        one.name: (one.batches, "yes" if "pipeline" in one.forms else "no", one.workspace_mib)
        for one in PRESETS.values()
    }
    assert {name: (ast.literal_eval(f"({batches},)"), form, int(limit)) for name, batches, form, limit in rows} == known


@pytest.mark.parametrize("page", ["", "<!-- estimate: end --> <!-- estimate: begin -->", "<!-- estimate: begin -->"])
def test_a_page_without_its_markers_is_not_written(page):
    with pytest.raises(ValueError, match=r"jetson\.md has not one"):
        jetson_estimate.with_tables(page, "text")
