"""benchmarks/peers: the arena's protocol on arms that are none, the arms themselves, the command. No time is judged."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.children import Child
from benchmarks.gpu.parts import Deadline
from benchmarks.peers import __main__ as command
from benchmarks.peers import arena, by_hand, ratios, report, task
from benchmarks.peers.arms import REFERENCE, Arm, arms, missing
from benchmarks.peers.quality import compare
from benchmarks.peers.task import Task, check_parity
from benchmarks.peers.worker import arguments_of
from runtime.bundle import read_bundle, read_manifest
from runtime.errors import BundleInvalid, InvalidArgument
from runtime.portrait import psnr
from tests.tiny_bundle import DIFFUSION, SHORTCUT, write_tiny_bundle
from tests.tiny_variant import eights

ROOT = Path(__file__).parents[1]
FIXTURE = Path(__file__).parent / "data" / "peers.json"
FAST = arena.Counts(rounds=2, most_rounds=2, runs=2, most=0.5, retries=0, warm=0.0, patience=0.0, seeds=3)
FAKE = """
import os, sys, time
import numpy as np
from benchmarks import children
from benchmarks.peers.worker import Answers

class Fake:
    drawn = 0
    def prepare(self):
        if KIND == "broken":
            raise RuntimeError("cannot be prepared")
        return {"seconds": 0.0}
    def draw(self, seed):
        self.drawn += 1
        if KIND == "dying" and self.drawn > 6:
            os._exit(3)
        if KIND == "slow" and self.drawn > 6:
            time.sleep(60)
        print("what libraries print must not harm the protocol")
        return np.full((2, 2, 3), seed + (KIND == "other"), np.uint8)
    def close(self): pass

KIND = sys.argv[1]
children.serve(Answers(Fake()))
"""


@pytest.fixture
def opener(tmp_path: Path) -> Any:
    """Opens fakes: the last word of an arm's name says what kind it is."""

    def open_arm(name: str, _: Task) -> Child:
        kind, path = name.rpartition(" ")[2], os.pathsep.join(sys.path)
        command = [sys.executable, "-c", FAKE, kind]
        return Child(command, {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{path}"}, tmp_path / "log", name)

    return open_arm


def contest(names: list[str], opener: Any, counts: arena.Counts = FAST, seconds: float | None = None) -> dict[str, Any]:
    told: list[str] = []
    some = Task(Path(), "", 1, 1)
    found = arena.contest(names, some, opener, counts=counts, deadline=Deadline(seconds), tell=told.append)
    assert told[0] == f"prepare {names[0]}"
    return found


def test_arms_take_turns_and_are_compared(opener: Any) -> None:
    found = contest([REFERENCE, "an other"], opener)
    assert [[one["round"] for one in arm["rounds"]] for arm in found.values()] == [[0, 1], [0, 1]]
    for arm in found.values():
        assert {"seconds", "versions"} <= arm["prepared"].keys()
        for one in arm["rounds"]:
            assert len(one["ms"]) == FAST.runs
            assert {"seconds", "others", "steal", "dirty", "load_before", "load_after"} <= one["conditions"].keys()
    same, other = found[REFERENCE]["quality"], found["an other"]["quality"]
    assert (same["identical"], same["psnr_db"], same["seeds"]) == (True, 100.0, FAST.seeds)
    assert (other["identical"], other["psnr_db"], other["max_levels"]) == (False, 48.13, 1)


def test_one_that_dies_and_one_that_cannot_be_prepared_leave_the_others_alone(opener: Any) -> None:
    found = contest(["first dying", REFERENCE, "never broken"], opener)
    assert "ended at" in found["first dying"]["error"]
    assert len(found["first dying"]["rounds"]) < 2
    assert "cannot be prepared" in found["never broken"]["error"]
    assert found["never broken"]["rounds"] == []
    assert len(found[REFERENCE]["rounds"]) == 2
    assert "error" not in found[REFERENCE]


def test_a_slow_one_is_ended(opener: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "QUICK", 2.0)
    found = contest([REFERENCE, "far too slow"], opener)
    assert "no answer" in found["far too slow"]["error"]
    assert len(found[REFERENCE]["rounds"]) == 2


def test_no_round_begins_when_time_is_up(opener: Any) -> None:
    """The first one is always taken, since nobody knows what it takes."""
    counts = dataclasses.replace(FAST, rounds=5, most_rounds=5)
    found = contest([REFERENCE, "an other"], opener, counts, seconds=0.0)
    assert [[one["round"] for one in arm["rounds"]] for arm in found.values()] == [[0], [0]]
    assert all(len(arm["rounds"][0]["ms"]) == FAST.runs for arm in found.values())
    assert not any("error" in arm for arm in found.values())


def test_dirty_rounds_are_followed_by_more(monkeypatch: pytest.MonkeyPatch) -> None:
    dirt = itertools.cycle([["busy"], [], None])

    class Scripted:
        def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
            if request["do"] == "measure":
                return {"ms": [1.0], "conditions": {"dirty": next(dirt)}}
            return {} if request["do"] == "prepare" else {"images": "AAAA", "shape": [1, 1, 1, 3]}

        def close(self, grace: float) -> None:
            pass

    counts = dataclasses.replace(FAST, rounds=2, most_rounds=9)
    found = contest([REFERENCE], lambda *_: Scripted(), counts)[REFERENCE]["rounds"]
    assert [(one["round"], one["conditions"]["dirty"]) for one in found] == [(0, ["busy"]), (1, []), (2, None)]
    again = contest([REFERENCE], lambda *_: Scripted(), dataclasses.replace(counts, retries=1))[REFERENCE]["rounds"]
    assert [(one["round"], one["conditions"]["dirty"]) for one in again] == [(0, ["busy"]), (0, []), (1, None)]


def test_what_is_missing_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, eight = (
        read_manifest(write(tmp_path / name))[0] for name, write in (("t", write_tiny_bundle), ("e", eights))
    )
    lacking = Arm("nothing", lambda _: pytest.fail("made"), ("numpy", "no_such_package"), "fp32")
    assert missing(lacking, plain) == "the package no_such_package is not installed"
    assert missing(dataclasses.replace(lacking, needs=("numpy",)), plain) == ""
    abacus = dataclasses.replace(lacking, needs=(), device="abacus")
    assert missing(abacus, plain) == "the runtime has no device abacus"
    known = arms()
    assert missing(known["ours cpu fp32"], plain) == missing(known["ours cpu fp32"], eight) == ""
    assert "no graphs in eight bits for cpu" in missing(known["ours cpu int8"], plain)
    monkeypatch.setattr("runtime.precision.multiplies_int8", lambda: True)
    assert missing(known["ours cpu int8"], eight) == ""
    monkeypatch.setattr("runtime.precision.multiplies_int8", lambda: False)
    assert "no instructions for eight bits" in missing(known["ours cpu int8"], eight)


def test_ours_are_of_every_device_and_precision() -> None:
    assert [name for name in arms() if name.startswith("ours ")] == [
        *("ours cpu fp32", "ours cpu int8", "ours openvino fp32", "ours openvino bf16", "ours openvino int8"),
        *("ours cuda", "ours tensorrt"),
    ]
    assert REFERENCE in arms()
    named = {name for ours, peer, _ in ratios.OWN_GOALS for name in (ours, peer)} | {peer for peer, _ in ratios.GOALS}
    assert named | {name for pair in ratios.ENGINES for name in pair} <= arms().keys()


def test_children_have_as_many_threads_as_told() -> None:
    found = arena.environment({"OMP_NUM_THREADS": "7", "PYTHONPATH": "/x", "HOME": "/h"}, 2)
    assert (found["OMP_NUM_THREADS"], found["HOME"]) == ("2", "/h")
    assert found["PYTHONPATH"] == f"{ROOT}{os.pathsep}/x"
    assert "--threads" not in arguments_of("ours cpu fp32", Task(Path("b"), "demo", 4, None))
    assert arguments_of("ours cpu fp32", Task(Path("b"), "demo", 4, 1))[-2:] == ["--threads", "1"]


def test_quality_by_hand() -> None:
    black = np.zeros((2, 2, 2, 3), np.uint8)
    assert psnr(black, black) == 100.0
    assert psnr(black, black + np.uint8(255)) == 0.0
    found = compare(black, black + np.uint8(255))
    assert (found["cosine"], found["max_levels"]) == (-1.0, 255)


def test_plot_and_table_come_out_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    copy = tmp_path / "again.json"
    copy.write_bytes(FIXTURE.read_bytes())
    assert command.main(["--from", str(copy)]) == 0
    assert copy.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert copy.with_suffix(".md").read_text(encoding="utf-8") == capsys.readouterr().out


def test_a_file_that_is_no_report(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text("{}")
    with pytest.raises(InvalidArgument, match="no report"):
        report.read(other)
    assert command.main(["--from", str(tmp_path / "nothing.json")]) == InvalidArgument.code


def test_an_unknown_arm_is_refused(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny")
    words = ["-o", str(tmp_path / "out.json"), "--bundle", str(bundle), "--arms", "magic"]
    assert command.main(words) == InvalidArgument.code


def test_the_whole_command_on_a_tiny_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(command, "Counts", lambda **_: FAST)
    bundle, out = write_tiny_bundle(tmp_path / "tiny", arm=SHORTCUT), tmp_path / "peers.json"
    words = ["-o", str(out), "--bundle", str(bundle), "--threads", "1", "--arms", "ours cpu fp32", "onnxruntime naive"]
    assert command.main(words) == 0
    found = json.loads(out.read_bytes())
    measured = found["contests"][0]["arms"]
    assert measured.keys() == {"ours cpu fp32", "onnxruntime naive"}
    assert measured["onnxruntime naive"]["quality"]["identical"]
    assert measured["onnxruntime naive"]["prepared"]["parity_db"] == 100.0
    assert out.with_suffix(".png").is_file()
    assert {arm["precision"] for arm in measured.values()} == {"fp32"}
    assert found["contests"][0].keys() >= {"began", "ended", "machine", "versions", "counts", "state_after"}
    assert command.main([*words[:5], "2", *words[6:]]) == 0
    again = json.loads(out.read_bytes())["contests"]
    assert [contest["threads"] for contest in again] == [2, 1]
    assert again[1] == found["contests"][0]  # of the earlier run
    bundle = write_tiny_bundle(tmp_path / "other")
    assert command.main([*words[:3], str(bundle), *words[4:]]) == InvalidArgument.code
    assert json.loads(out.read_bytes())["contests"] == again


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("bundle", "sha256", "another"),
        ("settings", "steps", 8),
        ("machine", "id", "another"),
        ("versions", "torch", "9.9"),
        ("versions", "s2f-edge", "9.9"),
    ],
)
def test_contests_that_do_not_belong_together_are_not_mixed(
    section: str, name: str, value: Any, tmp_path: Path
) -> None:
    out = tmp_path / "peers.json"
    out.write_bytes(FIXTURE.read_bytes())
    earlier = report.read(out)
    now = {what: dict(earlier["contests"][0][what]) for what in ("machine", "versions")}
    new = {what: dict(earlier[what]) for what in ("bundle", "settings", "arms")}
    now["machine"]["load"] = [9.0, 9.0, 9.0]  # is each one's own
    assert command.kept(out, new, [1], now) == [earlier["contests"][0]]
    {**now, **new}[section][name] = value
    with pytest.raises(InvalidArgument, match=f"{section} {name} was .*, is {value}.*Measure all again"):
        command.kept(out, new, [1], now)
    assert command.kept(out, new, [1, 2], now) == []  # nothing of it stays


def test_an_arm_that_is_gone_is_not_kept(tmp_path: Path) -> None:
    earlier = report.read(FIXTURE)
    new = {**earlier, "arms": {"ours cpu fp32": {}}}
    with pytest.raises(InvalidArgument, match="the arm onnxruntime naive is gone"):
        command.kept(FIXTURE, new, [1], earlier["contests"][0])
    assert command.kept(tmp_path / "nothing.json", new, [1], earlier["contests"][0]) == []


@pytest.mark.parametrize("arm", [SHORTCUT, DIFFUSION])
def test_graphs_driven_by_hand_draw_the_same(tmp_path: Path, arm: Any) -> None:
    some = Task(write_tiny_bundle(tmp_path / "tiny", arm=arm), "", 2, 1)
    peer = by_hand.ByHand(some, by_hand.naive_onnxruntime, "cpu", "fp32")
    assert peer.prepare()["parity_db"] == 100.0


@pytest.mark.parametrize("device", ["cpu", "openvino"])
def test_ours_and_by_hand_in_the_precision_asked_for(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand opens the files that ours opens, and the variant draws something else."""
    pytest.importorskip(device.replace("cpu", "onnxruntime"))
    from benchmarks.peers.ours import Ours

    monkeypatch.setenv("S2F_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("runtime.precision.multiplies_int8", lambda: True)
    some = Task(eights(tmp_path / "eights"), "", 2, 1)
    drawn = {}
    for precision in ("fp32", "int8"):
        open_graph = by_hand.naive_onnxruntime if device == "cpu" else by_hand.openvino(precision)
        ours, by = Ours(some, device, precision), by_hand.ByHand(some, open_graph, device, precision)
        about = ours.prepare()
        assert about["precision"] == precision
        assert ("parity_db" in about, "parity_db" in by.prepare()) == (precision == "fp32", precision == "fp32")
        drawn[precision] = ours.draw(3)
        assert psnr(drawn[precision], by.draw(3)) >= task.PARITY_DB
        ours.close()
        by.close()
    assert psnr(drawn["fp32"], drawn["int8"]) < 40


def test_an_arm_that_draws_something_else_is_not_timed(tmp_path: Path) -> None:
    some = Task(write_tiny_bundle(tmp_path / "tiny"), "", 2, 1)

    class Liar:
        def draw(self, seed: int) -> task.Pixels:
            return np.zeros((32, 32, 3), np.uint8)

    with pytest.raises(task.BadParityError, match="must reach 60"):
        check_parity(some, Liar())  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["shortcut", "diffusion"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Task:
    """A bundle of the tiny networks with weights that no fresh network has, and their configuration."""
    torch = pytest.importorskip("torch")
    from benchmarks.gpu.torch_baseline import random_system
    from export.options import ExportOptions
    from export.pipeline import export_system

    folder = tmp_path_factory.mktemp(request.param)
    text = (ROOT / "training" / "configs" / "tiny.toml").read_text(encoding="utf-8")
    if request.param == "diffusion":
        text = text.replace("[shortcut]\nsteps = 20", "[shortcut]\nsteps = 0")
    (folder / "tiny.toml").write_text(text, encoding="utf-8")
    torch.set_num_threads(1)
    system = random_system(str(folder / "tiny.toml"))
    assert system.arm == request.param
    generator = torch.Generator().manual_seed(5)
    for module in (system.speech_encoder, system.denoiser, system.face_decoder):
        for value in (*module.parameters(), *(b for b in module.buffers() if b.dtype == torch.float32 and b.ndim == 1)):
            value.data += 0.1 * torch.rand(value.shape, generator=generator)
    export_system(system, folder / "bundle", ExportOptions(steps=(2,), default_steps=2))
    return Task(folder / "bundle", str(folder / "tiny.toml"), 2, 1)


def test_networks_in_torch_draw_the_same(exported: Task) -> None:
    torch = pytest.importorskip("torch")
    from benchmarks.peers.torch_arms import TorchArm

    about = TorchArm(exported, torch.float32, compiled=False).prepare()
    assert about["parity_db"] >= task.PARITY_DB


def test_networks_in_bfloat16_draw_nearly_the_same(exported: Task) -> None:
    torch = pytest.importorskip("torch")
    from benchmarks.peers.torch_arms import TorchArm

    exact, low = (TorchArm(exported, kind, compiled=False) for kind in (torch.float32, torch.bfloat16))
    exact.prepare()
    low.prepare()
    assert 20 < psnr(exact.draw(0), low.draw(0)) < 100.0


def test_weights_of_another_configuration_are_refused(exported: Task) -> None:
    torch = pytest.importorskip("torch")
    import onnx

    from benchmarks.peers.native import fill

    graph = onnx.load_from_string(read_bundle(exported.folder).files["decoder"])
    with pytest.raises(BundleInvalid, match="has no place"):
        fill(torch.nn.Linear(2, 2), graph)


def test_the_plain_pipeline_draws(exported: Task) -> None:
    pytest.importorskip("diffusers")
    from benchmarks.peers.diffusers_arms import DiffusersArm

    for guided in (True, False):
        arm = DiffusersArm(exported, 3, guided=guided)
        arm.prepare()
        image = arm.draw(1)
        assert (image.shape, image.dtype) == ((32, 32, 3), np.uint8)
        assert image.std() > 0
        assert not np.array_equal(image, arm.draw(2))
