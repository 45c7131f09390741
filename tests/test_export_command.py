"""What an export may be asked for, and the command line."""

from __future__ import annotations

import subprocess
import sys

import pytest

from export import cli, pipeline
from export.options import ExportOptions, Sampling
from export.pipeline import export_run, export_system
from runtime.bundle import read_bundle
from runtime.errors import BackendMissing, CheckpointInvalid, InvalidArgument, OutputUnwritable
from tests.toy_system import toy_system
from training.arms import GUIDANCE

OPTIONS = ExportOptions(steps=(2, 4), default_steps=4)


@pytest.mark.parametrize(
    "values",
    [
        {"steps": ()},
        {"steps": (0, 8)},
        {"default_steps": 5, "steps": (4, 8)},
        {"arm": "both"},
        {"solver": "euler"},
        {"store": "int8"},
        {"guidance": -1.0},
        {"guidance": float("nan")},
        {"name": "Demo Bundle"},
        {"licence": ""},
        {"licence": "a\nb"},
    ],
)
def test_bad_options_are_refused(values):
    with pytest.raises(InvalidArgument, match=next(iter(values))):
        ExportOptions(**values)


@pytest.mark.parametrize(
    ("arm", "values", "option"),
    [
        ("diffusion", {"arm": "shortcut"}, "arm"),
        ("shortcut", {"arm": "diffusion"}, "arm"),
        ("diffusion", {"default_steps": 5}, "default_steps"),
        ("diffusion", {"steps": (4, 1001)}, "steps"),
        ("diffusion", {"solver": "shortcut"}, "solver"),
        ("shortcut", {"solver": "ddim"}, "solver"),
        ("shortcut", {"guidance": 3.0}, "guidance"),
        ("shortcut", {"steps": (1, 16)}, "steps"),
        ("shortcut", {"steps": (1, 3)}, "steps"),
    ],
)
def test_options_that_do_not_fit_the_system(tmp_path, arm, values, option):
    with pytest.raises(InvalidArgument, match=rf"option {option} "):
        export_system(toy_system(arm=arm), tmp_path / "b", ExportOptions(**values))
    assert list(tmp_path.iterdir()) == []


def test_every_arm_of_training_has_its_defaults():
    options = ExportOptions()
    assert options.sampling("shortcut", most_steps=4) == Sampling((1, 2, 4), 4, "shortcut")
    assert options.sampling("diffusion", most_steps=1000).default_steps == 8
    one = ExportOptions(steps=(16, 1), guidance=1.5)
    assert one.sampling("shortcut", most_steps=16).default_steps == 1
    assert [one.guidance_scale(folded) for folded in (None, 1.5)] == [1.5, 1.5]
    assert [options.guidance_scale(folded) for folded in (None, 3.0)] == [GUIDANCE, 3.0]


def test_a_run_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(CheckpointInvalid):
        export_run(tmp_path, tmp_path / "b", OPTIONS)
    assert list(tmp_path.iterdir()) == []


def test_command_line_reports_errors_by_code(tmp_path, capsys):
    assert cli.main([str(tmp_path), "-o", str(tmp_path / "b")]) == CheckpointInvalid.code
    assert cli.main([str(tmp_path), "-o", str(tmp_path / "b"), "--steps", "4,x"]) == InvalidArgument.code
    assert "4,x" in capsys.readouterr().err


def test_command_line_writes_a_bundle(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "load_system", lambda run, arm: toy_system())
    arguments = [str(tmp_path), "-o", str(tmp_path / "b"), "--name", "mine", "--steps", "2"]
    assert cli.main([*arguments, "--licence", "CC-BY-NC-4.0"]) == 0
    manifest = read_bundle(tmp_path / "b").manifest
    assert (manifest.name, manifest.default_steps) == ("mine", 2)
    assert manifest.licence.startswith("CC-BY-NC-4.0 for the weights; sources: Numbers")
    assert "parity" in capsys.readouterr().out


def test_missing_package_names_the_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert cli.main([str(tmp_path), "-o", str(tmp_path / "b")]) == BackendMissing.code
    assert "s2f-edge[export]" in capsys.readouterr().err


def test_help_needs_no_torch():
    code = "import sys; sys.modules.update(torch=None, onnx=None, onnxruntime=None, diffusers=None)\n"
    code += "from export.cli import main\nmain(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "RUN_DIR" in text
    assert "A voice does not determine a face." in text
    assert "plausible portraits; it identifies nobody and is not for surveillance" in text


def test_interruption_has_its_own_status(tmp_path, monkeypatch, capsys):
    def interrupted(run, arm):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "load_system", interrupted)
    assert cli.main([str(tmp_path), "-o", str(tmp_path / "b")]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_target_that_cannot_be_looked_into(tmp_path, capsys):
    assert cli.main([str(tmp_path), "-o", str(tmp_path / ("b" * 300))]) == OutputUnwritable.code
    assert "choose another" in capsys.readouterr().err


def test_a_failing_disk_has_a_code_wherever_it_fails(tmp_path, monkeypatch, capsys):
    def full(run, arm):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pipeline, "load_system", full)
    assert cli.main([str(tmp_path), "-o", str(tmp_path / "b")]) == OutputUnwritable.code
    assert "No space left" in capsys.readouterr().err
