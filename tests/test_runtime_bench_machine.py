"""What the bench reads of a machine: the counters behind "dirty", clocks, power. All from text, nothing is timed."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.bench import between, disturbance, energy, snapshot, system
from runtime.bench.disturbance import Snapshot, cpu_seconds, stalled_seconds, throttled_seconds
from runtime.errors import BackendFailed

STAT = """cpu  1218937 4126 250082 1092657 7794 0 2076 1379 0 0
cpu0 520968 1781 103589 657159 3164 10 301 734 0 0
cpu1 697969 2344 146492 435497 4630 0 1775 645 0 0
intr 42
"""
BEFORE = Snapshot(wall=100.0, own=10.0, cpus=2, busy=1000.0, steal=5.0, stalled=3.0, throttled=None)


def later(seconds: float = 10.0, **changes: float | None) -> Snapshot:
    """`seconds` after BEFORE, in which this process kept both CPUs busy and nothing else did anything."""
    quiet = {"own": 10.0 + 2 * seconds, "busy": 1000.0 + 2 * seconds, "steal": 5.0, "stalled": 3.0, "throttled": None}
    return Snapshot(wall=100.0 + seconds, cpus=2, **{**quiet, **changes})  # type: ignore[arg-type]


def test_cpu_seconds_of_the_cpus_we_may_use() -> None:
    assert cpu_seconds(STAT, {0}, 100) == ((520968 + 1781 + 103589 + 10 + 301) / 100, 7.34)
    busy, steal = cpu_seconds(STAT, {0, 1}, 100) or (0, 0)
    assert steal == pytest.approx(13.79)
    assert busy == pytest.approx((520968 + 1781 + 103589 + 10 + 301 + 697969 + 2344 + 146492 + 1775) / 100)


@pytest.mark.parametrize("text", ["", "cpu 1 2 3 4", "cpu0 x y z", "cpu7 1 2 3 4 5 6 7 8"])
def test_a_system_that_does_not_tell(text: str) -> None:
    assert cpu_seconds(text, {0}, 100) is None


def test_an_old_kernel_without_steal() -> None:
    assert cpu_seconds("cpu0 100 0 50 900 10", {0}, 100) == (1.5, 0.0)


def test_pressure_and_quota() -> None:
    assert (
        stalled_seconds("some avg10=57.81 avg60=17.09 avg300=6.10 total=2613306788\nfull avg10=0 total=7")
        == 2613.306788
    )
    assert stalled_seconds("") is None
    assert throttled_seconds("nr_periods 5\nnr_throttled 2\nthrottled_usec 1500000") == 1.5
    assert throttled_seconds("nr_throttled 2\nthrottled_time 1500000000") == 1.5
    assert throttled_seconds("usage_usec 12") is None


def test_a_machine_that_does_nothing_else_is_clean() -> None:
    found = between(BEFORE, later())
    assert found == {
        **{"seconds": 10.0, "own": 1.0, "others": 0.0, "steal": 0.0, "stalled": 0.0, "throttled": None},
        "dirty": [],
    }


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"own": 18.0, "busy": 1020.0}, "other programs took 60% of the CPU time"),
        ({"own": 28.0, "busy": 1020.0}, "other programs took 10% of the CPU time"),
        ({"steal": 7.0}, "the host gave 10% of the CPU time to other guests"),
    ],
)
def test_what_makes_a_span_dirty(changes: dict[str, float], reason: str) -> None:
    dirty = between(BEFORE, later(**changes))["dirty"]
    assert len(dirty) == 1
    assert dirty[0].startswith(reason)


def test_a_quota_that_held_us_back() -> None:
    before = Snapshot(**{**vars(BEFORE), "throttled": 1.0})
    assert between(before, later(throttled=1.05))["dirty"] == []
    assert "quota" in between(before, later(throttled=3.0))["dirty"][0]


def test_short_spans_give_away_the_ticks_they_cannot_see() -> None:
    """In a tenth of a second a tick of 10 ms on each CPU is a tenth of the time."""
    assert between(BEFORE, later(0.1, own=10.17, busy=1000.2))["dirty"] == []
    assert between(BEFORE, later(0.1, own=10.1, busy=1000.2))["dirty"] != []


def test_where_the_system_does_not_tell_nothing_is_claimed() -> None:
    unknown = {"busy": None, "steal": None, "stalled": None}
    found = between(Snapshot(**{**vars(BEFORE), **unknown}), later(**unknown))
    assert (found["others"], found["steal"], found["dirty"]) == (None, None, None)


def test_spans_together_leave_out_what_lay_between_them() -> None:
    quiet, busy = between(BEFORE, later()), between(BEFORE, later(own=18.0, busy=1020.0))
    assert disturbance.together([quiet, quiet]) == {**quiet, "seconds": 20.0}
    found = disturbance.together([quiet, busy])
    assert (found["others"], found["own"], found["throttled"]) == (0.3, 0.7, None)
    assert found["dirty"] == ["other programs took 30% of the CPU time, 5% is the limit"]
    unknown = {**quiet, "others": None, "dirty": None}
    assert disturbance.together([quiet, unknown])["dirty"] is None


def test_this_machine_can_be_looked_at() -> None:
    found = between(snapshot(), snapshot())
    assert found["seconds"] >= 0
    assert found["own"] >= 0
    waited = disturbance.waited_ms()
    assert waited is None or waited >= 0


def test_a_machine_id_is_a_file_name_and_tells_machines_apart() -> None:
    one = system.id_of("AMD EPYC 9R14 (Zen/4)", 2, ["avx2", "fma"])
    assert one.startswith("amd-epyc-9r14-zen-4-2-cores-")
    assert system.id_of("AMD EPYC 9R14 (Zen/4)", 2, ["fma", "avx2"]) == one
    others = [("AMD EPYC 9R14 (Zen/4)", 4, ["avx2", "fma"]), ("AMD EPYC 9R14 (Zen/4)", 2, ["avx2"]), ("", 2, [])]
    assert len({one, *(system.id_of(*other) for other in others)}) == 4
    assert system.id_of("../../etc/passwd", 1, []).startswith("etc-passwd-1-cores-")


def test_cpu_lists_as_the_kernel_writes_them() -> None:
    assert system.ranges({0, 1, 2, 5, 7, 8}) == "0-2,5,7-8"
    assert system.ranges(set()) == ""


def test_pressure_averages() -> None:
    assert system.pressure("some avg10=57.81 avg60=17.09 avg300=6.10 total=1") == [57.81, 17.09, 6.1]
    assert system.pressure("") == []


GPU = "NVIDIA H100 80GB HBM3, 570.86.15, P0, Enabled, 1980, 2619, 1980, 2619, 114.51, 700.00, 33, 1, 81559\n"


def test_nvidia_smi() -> None:
    (gpu,) = system.parse_gpus(GPU)
    assert gpu["name"] == "NVIDIA H100 80GB HBM3"
    assert (gpu["clocks_sm"], gpu["clocks_max_sm"], gpu["power_draw"], gpu["memory_used"]) == (1980, 1980, 114.51, 1)
    (orin,) = system.parse_gpus(GPU.replace("114.51", "[N/A]").replace("700.00", "[Not Supported]"))
    assert (orin["power_draw"], orin["power_limit"]) == (None, None)
    assert len(system.parse_gpus(GPU * 2)) == 2


@pytest.mark.parametrize("text", ["", "No devices were found\n", "Failed to initialize NVML: Driver/library mismatch"])
def test_nvidia_smi_without_a_gpu(text: str) -> None:
    assert system.parse_gpus(text) == []


def test_a_jetsons_power_mode() -> None:
    assert system.power_mode("NV Fan Mode:quiet\nNV Power Mode: MAXN_SUPER\n2\n") == "MAXN_SUPER"
    assert system.power_mode("") is None


def test_a_tool_that_is_missing_or_fails_says_nothing() -> None:
    assert system.asked("no-such-tool-anywhere") == ""
    assert system.asked("false") == ""


def counter(root: Path, name: str, count: object, limit: object = 1000) -> None:
    (root / name).mkdir(parents=True, exist_ok=True)
    (root / name / "energy_uj").write_text(f"{count}\n")
    (root / name / "max_energy_range_uj").write_text(f"{limit}\n")


def test_rapl_counts_packages_once(tmp_path: Path) -> None:
    for name, count in (("intel-rapl:0", 5), ("intel-rapl:1", 7), ("intel-rapl:0:0", 3), ("intel-rapl:2", "")):
        counter(tmp_path, name, count)
    (tmp_path / "intel-rapl").mkdir()
    assert energy.rapl(tmp_path) == {"intel-rapl:0": (5, 1000), "intel-rapl:1": (7, 1000)}
    assert energy.rapl(tmp_path / "nowhere") == {}


def test_joules_between_two_readings() -> None:
    one = {"a": (2_000_000, 10_000_000), "b": (9_500_000, 10_000_000)}
    two = {"a": (3_500_000, 10_000_000), "b": (500_000, 10_000_000)}  # b went over its end
    assert energy.used(one, two) == 2.5
    assert energy.used({}, {}) is None
    assert energy.used(one, {"a": (1, 1)}) is None
    assert energy.used(one, one) is None  # a counter that stands still, as in some guests


TEGRA = (
    "11-28-2026 12:00:00 RAM 2448/7620MB (lfb 4x4MB) CPU [1%@1510,off] GR3D_FREQ 0% cpu@45C "
    "VDD_IN {0}mW/4402mW VDD_CPU_GPU_CV 520mW/520mW VDD_SOC 1331mW/1331mW\n"
)


def test_power_of_the_samplers() -> None:
    assert energy.watts_of("board", TEGRA.format(4000) + TEGRA.format(6000)) == 5.0
    assert energy.watts_of("board", "POM_5V_IN 3000/3000 POM_5V_CPU 1/1") is None  # another form: not understood
    assert energy.watts_of("board", "nothing") is None
    assert energy.watts_of("gpu", "100.50\n[N/A]\n99.50\n") == 100.0
    assert energy.watts_of("gpu", "") is None


def test_energy_where_nothing_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    monkeypatch.setattr(energy, "SAMPLERS", {"gpu": ("no-such-tool",)})
    assert energy.joules_per_call(lambda _: pytest.fail("called for nothing")) is None


def test_energy_of_a_counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    monkeypatch.setattr(energy, "SAMPLERS", {"gpu": ("no-such-tool",)})
    counter(tmp_path, "intel-rapl:0", 0, 10**12)

    def call(number: int) -> None:
        counter(tmp_path, "intel-rapl:0", (number + 1) * 2_000_000, 10**12)

    found = energy.joules_per_call(call, seconds=0.01)
    assert found is not None
    assert (found["cpu_package_j"], found["gpu_j"]) == (2.0, None)


def test_energy_of_a_sampler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in of nvidia-smi that says 50 W until it is ended; nothing of it stays behind when a call fails."""
    tool = tmp_path / "power"
    tool.write_text("#!/bin/sh\necho 50.0\nexec sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    monkeypatch.setattr(energy, "SAMPLERS", {"gpu": (str(tool),)})
    found = energy.joules_per_call(lambda _: None, seconds=0.3)
    assert found is not None
    assert found["gpu_j"] == pytest.approx(50 * 0.3 / found["calls"], rel=0.5, abs=1e-4)

    def broken(_: int) -> None:
        raise BackendFailed("no")

    with pytest.raises(BackendFailed):
        energy.joules_per_call(broken)
