"""libs2f called from programs in C: the same bytes as Python's, and a code for every mistake."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from capi.host import build_library, compile_program, needs_compiler, run, write_voice
from tiny_bundle import write_tiny_bundle

import runtime

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(tmp_path_factory.mktemp("s2f"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tïny")


def test_every_way_to_draw_gives_the_bytes_that_python_gives(library: Path, bundle: Path, tmp_path: Path) -> None:
    voice = write_voice(tmp_path)
    short = (voice * 32767).astype(np.int16)
    stereo = np.stack([voice, 0.3 * voice[::-1]], axis=1)
    (tmp_path / "voice.i16").write_bytes(short.tobytes())
    (tmp_path / "stereo.f32").write_bytes(stereo.tobytes())
    soundfile.write(tmp_path / "voice.wav", voice, 16000)
    run(compile_program("calls", library, tmp_path), bundle, tmp_path)

    with runtime.load(bundle, device="cpu", threads=1) as pipeline:
        options = {"seed": 7, "steps": 2, "guidance": 1.3, "window": "loudest"}
        marked = pipeline.generate((voice, 16000), **options)
        expected = {
            "float.rgb": pipeline.generate((voice, 16000), seed=7),
            "short.rgb": pipeline.generate((short, 16000), seed=7),
            "stereo.rgb": pipeline.generate((stereo, 22050), seed=7),
            "file.rgb": pipeline.generate(tmp_path / "voice.wav", seed=7),
            "plain.rgb": pipeline.generate((voice, 16000)),
            "options.rgb": marked,
        }
        speeches = [(voice, 16000), (voice[16000:], 16000), (voice[:16000], 16000)]
        batch = pipeline.generate(speeches, seed=[7, 8, 9], guidance=1.3, window="loudest")
    for name, portrait in expected.items():
        assert (tmp_path / name).read_bytes() == portrait.image.tobytes(), name
    assert (tmp_path / "batch.rgb").read_bytes() == b"".join(one.image.tobytes() for one in batch)
    assert (tmp_path / "portrait.png").read_bytes() == marked.encode("png")
    assert len({(tmp_path / name).read_bytes() for name in expected}) >= 4


def test_every_mistake_gives_its_code_and_a_text(library: Path, bundle: Path, tmp_path: Path) -> None:
    write_voice(tmp_path)
    tampered = shutil.copytree(bundle, tmp_path / "tampered")
    with (tampered / "decoder.onnx").open("r+b") as file:
        file.write(b"?")
    run(compile_program("bad", library, tmp_path), bundle, tampered, tmp_path)


def test_structures_of_older_and_newer_programs(library: Path, bundle: Path, tmp_path: Path) -> None:
    write_voice(tmp_path)
    run(compile_program("structs", library, tmp_path), bundle, tmp_path / "voice.f32")


def test_no_layout_has_changed(library: Path, tmp_path: Path) -> None:
    """structs.txt is the interface of release 1; what is added may only follow it."""
    baseline = (Path(__file__).parent / "capi" / "structs.txt").read_text(encoding="utf-8")
    assert run(compile_program("structs", library, tmp_path)) == baseline


def test_the_header_has_the_codes_of_python() -> None:
    header = (Path(runtime.__file__).parent / "capi" / "s2f.h").read_text(encoding="utf-8")
    found = {name: int(code) for name, code in re.findall(r"^    S2F_([A-Z_]+) = (\d+)", header, re.MULTILINE)}
    expected = {re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper(): code for name, code in runtime.CODES.items()}
    assert found == {"OK": 0, "UNEXPECTED": 1, **expected}


@pytest.mark.skipif(sys.byteorder != "little", reason="the programs read samples as they lie in memory")
def test_the_demo_bundle_is_the_default(library: Path, tmp_path: Path) -> None:
    from runtime.pipeline import shipped_bundle

    write_voice(tmp_path)
    run(compile_program("demo", library, tmp_path), tmp_path / "voice.f32", tmp_path)
    with runtime.load(shipped_bundle(), device="cpu", threads=1) as pipeline:
        voice = np.fromfile(tmp_path / "voice.f32", np.float32)
        assert (tmp_path / "demo.rgb").read_bytes() == pipeline.generate((voice, 16000), seed=3).image.tobytes()
