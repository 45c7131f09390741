"""Portraits on disk: the pixels, the provenance in every format, atomic writing."""

from __future__ import annotations

import errno
import os
import runpy
import stat
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_bundle import write_tiny_bundle

import runtime
from runtime import output
from runtime.errors import AudioNotFound, InvalidArgument, OutputUnwritable
from runtime.portrait import DIGITAL_SOURCE_TYPE, Portrait, Timings, save_marked

IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"
XMP = "{http://ns.adobe.com/xap/1.0/}"
S2F = "{urn:s2f-edge:provenance:1#}"
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
DIGEST = "ab" * 32


@pytest.fixture
def portrait() -> Portrait:
    rows = np.linspace(0, 255, 48, dtype=np.uint8)
    image = np.stack(
        [np.tile(rows, (40, 1)), np.full((40, 48), 90, np.uint8), np.full((40, 48), 200, np.uint8)], axis=2
    )
    return Portrait(image, 7, 4, 2.5, 0.01, Timings(1, 2, (3, 4), 5, 14, 15), "demo-1", DIGEST)


def xmp_packet(path: Path) -> bytes:
    """The packet as any reader finds it in the bytes of the file, with no help of the library that wrote it."""
    data = path.read_bytes()
    begin, end = data.index(b"<?xpacket begin="), data.index(b'<?xpacket end="r"?>')
    return data[begin:end]


def description(path: Path) -> dict[str, str]:
    packet = xmp_packet(path).decode("utf-8")
    root = ET.fromstring(packet[packet.index("<x:xmpmeta") :])
    found = root.find(f"{RDF}RDF/{RDF}Description")
    assert found is not None
    return dict(found.attrib)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.jpeg", "a.webp", "A.PNG"])
def test_every_format_says_that_it_was_generated(portrait: Portrait, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    portrait.save(path)
    facts = description(path)
    assert facts[f"{IPTC}DigitalSourceType"] == DIGITAL_SOURCE_TYPE
    assert DIGITAL_SOURCE_TYPE.endswith("/digitalsourcetype/trainedAlgorithmicMedia")
    assert facts[f"{XMP}CreatorTool"] == f"s2f-edge {runtime.__version__}"
    assert facts[f"{S2F}Bundle"] == "demo-1"
    assert facts[f"{S2F}BundleSha256"] == DIGEST
    assert [facts[f"{S2F}{name}"] for name in ("Seed", "Steps", "Guidance", "PriorWeight")] == ["7", "4", "2.5", "0.01"]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_a_composed_picture_carries_the_same_mark(portrait: Portrait, tmp_path: Path, name: str) -> None:
    alone, sheet = tmp_path / f"alone-{name}", tmp_path / f"sheet-{name}"
    portrait.save(alone)
    facts = {**portrait.facts, "Seed": "0 to 3", "Generator": "another"}
    save_marked(np.tile(portrait.image, (2, 3, 1)), sheet, facts=facts, description='Faces <of> "nobody" & no one.')
    with Image.open(sheet) as image:
        assert image.size == (3 * 48, 2 * 40)
    assert description(sheet) == {**description(alone), f"{S2F}Seed": "0 to 3"}
    packet = xmp_packet(sheet).decode("utf-8")
    assert [*ET.fromstring(packet[packet.index("<x:xmpmeta") :]).itertext()].count('Faces <of> "nobody" & no one.') == 1


def test_quality_makes_smaller_files(portrait: Portrait, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name in ("a.jpg", "a.webp"):
        sizes = []
        for quality in (50, 95):
            save_marked(noise, tmp_path / name, facts=portrait.facts, quality=quality)
            sizes.append((tmp_path / name).stat().st_size)
        assert sizes[0] < 0.7 * sizes[1]


PIXELS = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("image", "facts", "text"),
    [
        (PIXELS.astype(np.float32), {}, "x"),
        (PIXELS[:, :, 0], {}, "x"),
        (PIXELS[:0], {}, "x"),
        (PIXELS, {'Seed="1" x': 1}, "x"),
        (PIXELS, {"Bundle": "a\0b"}, "x"),
        (PIXELS, {"Bundle": "\ud800"}, "x"),
        (PIXELS, {}, "two\nlines"),
        (PIXELS, {}, "x" * 70_000),
        (np.zeros((1, 70_000, 3), np.uint8), {}, "x"),
    ],
)
def test_what_no_file_can_hold(
    tmp_path: Path, image: np.ndarray[tuple[int, ...], np.dtype[np.generic]], facts: dict[str, object], text: str
) -> None:
    with pytest.raises(InvalidArgument):
        save_marked(image, tmp_path / "a.jpg", facts=facts, description=text)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "seeds"), [("sheet.jpg", 1), ("sheet.png", 2)])
def test_the_contact_sheet_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, seeds: int) -> None:
    examples = Path(__file__).parent.parent / "examples"
    bundle, out = write_tiny_bundle(tmp_path / "tiny"), tmp_path / name
    voices = [str(examples / "woman.wav"), str(examples / "man.wav")]
    command = ["contact_sheet.py", *voices, "-o", str(out), "--bundle", str(bundle), "--seeds", str(seeds)]
    assert run_example(monkeypatch, command) == 0
    facts = description(out)
    assert facts[f"{IPTC}DigitalSourceType"] == DIGITAL_SOURCE_TYPE
    assert (facts[f"{S2F}Bundle"], facts[f"{S2F}Seed"]) == ("tiny", "0" if seeds == 1 else "0 to 1")
    with Image.open(out) as image:
        assert image.size == (2 * 32, seeds * 32 + 14)


def run_example(monkeypatch: pytest.MonkeyPatch, command: list[str]) -> object:
    """A program of examples/, its exit status."""
    path = Path(__file__).parent.parent / "examples" / command[0]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    return ended.value.code


def test_a_sheet_of_step_counts_has_a_row_for_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, out = write_tiny_bundle(tmp_path / "tiny"), tmp_path / "steps.png"
    voice = str(Path(__file__).parent.parent / "examples" / "woman.wav")
    command = ["contact_sheet.py", voice, "-o", str(out), "--bundle", str(bundle), "--seeds", "3", "--steps", "1", "4"]
    assert run_example(monkeypatch, command) == 0
    assert description(out)[f"{S2F}Steps"] == "1, 4"
    with Image.open(out) as image:
        assert image.size == (3 * 32, 2 * 32 + 14)
    missing = [*command[:1], str(tmp_path / "no.wav"), *command[2:]]
    assert run_example(monkeypatch, missing) == AudioNotFound.code
    assert run_example(monkeypatch, [*command, "--seeds", "0"]) == 2


@pytest.mark.parametrize(("name", "tolerance"), [("a.png", 0), ("a.jpg", 12), ("a.webp", 24)])
def test_pixels_survive(portrait: Portrait, tmp_path: Path, name: str, tolerance: int) -> None:
    portrait.save(tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert image.mode == "RGB"
        saved = np.asarray(image)
    assert np.abs(saved.astype(int) - portrait.image).max() <= tolerance


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_pillow_finds_the_packet(portrait: Portrait, tmp_path: Path, kind: str) -> None:
    portrait.save(tmp_path / "x", format=kind)
    with Image.open(tmp_path / "x") as image:
        assert image.format == kind.upper()
        assert DIGITAL_SOURCE_TYPE.encode() in image.info["xmp"]


def test_the_png_chunk_is_the_one_readers_look_for(portrait: Portrait) -> None:
    assert b"iTXtXML:com.adobe.xmp\x00\x00\x00" in portrait.encode("png")


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_same_portrait_same_bytes(portrait: Portrait, kind: str) -> None:
    assert portrait.encode(kind) == portrait.encode(kind)


def test_saving_replaces_and_leaves_nothing_beside(portrait: Portrait, tmp_path: Path) -> None:
    path = tmp_path / "face.png"
    path.write_bytes(b"old")
    portrait.save(path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [item.name for item in tmp_path.iterdir()] == ["face.png"]


@pytest.mark.skipif(os.name != "posix", reason="POSIX rights")
def test_rights_follow_the_umask(portrait: Portrait, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        portrait.save(tmp_path / "face.png")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "face.png").stat().st_mode) == 0o640


@pytest.mark.parametrize("name", ["face.bmp", "face", "face.", "face.png.txt"])
def test_unknown_suffix_is_refused(portrait: Portrait, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"\.png"):
        portrait.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_unknown_format_is_refused(portrait: Portrait, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="png, jpeg, webp"):
        portrait.save(tmp_path / "face.png", format="gif")


def test_missing_folder(portrait: Portrait, tmp_path: Path) -> None:
    with pytest.raises(OutputUnwritable, match="Choose"):
        portrait.save(tmp_path / "nowhere" / "face.png")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_that_name(portrait: Portrait, tmp_path: Path) -> None:
    (tmp_path / "face.png").mkdir()
    with pytest.raises(OutputUnwritable):
        portrait.save(tmp_path / "face.png")
    assert list((tmp_path / "face.png").iterdir()) == []
    assert [item.name for item in tmp_path.iterdir()] == ["face.png"]


def test_impossible_names(portrait: Portrait, tmp_path: Path) -> None:
    for name in ("a\0b.png", "x" * 300 + ".png"):
        with pytest.raises(OutputUnwritable):
            portrait.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="POSIX device files")
def test_device_files_are_left_alone(portrait: Portrait) -> None:
    with pytest.raises(OutputUnwritable):
        portrait.save("/dev/null", format="png")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    portrait: Portrait, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "face.png"
    path.write_bytes(b"old")
    monkeypatch.setattr(*((os, "fsync", full) if call == "fsync" else (Path, "replace", full)))
    with pytest.raises(OutputUnwritable, match="space"):
        portrait.save(path)
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["face.png"]


def test_several_files_are_written_all_or_none(tmp_path: Path) -> None:
    good, bad = tmp_path / "a", tmp_path / "nowhere" / "b"
    with pytest.raises(OutputUnwritable, match="nowhere"):
        output.write_files({good: b"1", bad: b"2"})
    assert list(tmp_path.iterdir()) == []
    output.write_files({good: b"1", tmp_path / "b": b"2"})
    assert [(p.name, p.read_bytes()) for p in sorted(tmp_path.iterdir())] == [("a", b"1"), ("b", b"2")]
