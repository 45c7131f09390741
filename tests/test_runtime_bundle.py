"""Bundles on disk: which files are read, and which are refused with which error."""

from __future__ import annotations

import os

import pytest
from bundle_factory import dummy_stages, edit_manifest, make_manifest, put, write_bundle

from runtime import bundle_files
from runtime.bundle import SAMPLES, read_bundle, read_manifest, sha256_hex
from runtime.errors import BundleInvalid, BundleNotFound, BundleTampered, BundleVersion


@pytest.fixture
def folder(tmp_path):
    return write_bundle(tmp_path / "bundle")


def test_bundle_is_read_and_its_bytes_are_handed_on(folder):
    bundle = read_bundle(folder)
    assert bundle.files == dummy_stages()
    assert bundle.identity == sha256_hex((folder / "manifest.json").read_bytes())
    assert bundle.manifest == make_manifest()
    assert read_manifest(str(folder)) == (bundle.manifest, bundle.identity)
    assert bundle.manifest.audio.samples == SAMPLES
    assert repr(bundle.files["unet"]) not in repr(bundle)


def test_files_the_manifest_does_not_name_are_ignored(folder):
    (folder / "notes.txt").write_text("mine")
    (folder / "evil.pkl").write_bytes(b"\x80\x04.")
    assert read_bundle(folder).files == dummy_stages()


def test_a_linked_folder_is_the_users_choice(folder, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(folder, target_is_directory=True)
    assert read_bundle(link).files == dummy_stages()


def test_no_folder_no_manifest(tmp_path):
    for path in (tmp_path / "nowhere", tmp_path, "bad\0path", 7):
        with pytest.raises(BundleNotFound):
            read_bundle(path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleNotFound):
        read_bundle(tmp_path / "file")


@pytest.mark.parametrize("name", ["encoder.onnx", "unet.onnx", "decoder.onnx", "MODEL_CARD.md"])
def test_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(BundleInvalid, match=name):
        read_bundle(folder)


@pytest.mark.parametrize("name", ["encoder.onnx", "unet.onnx", "decoder.onnx", "MODEL_CARD.md"])
def test_every_flipped_bit_is_found(folder, name):
    good = (folder / name).read_bytes()
    for position in range(0, len(good) * 8, 5):
        bad = bytearray(good)
        bad[position // 8] ^= 1 << position % 8
        (folder / name).write_bytes(bad)
        with pytest.raises(BundleTampered, match=name):
            read_bundle(folder)


def test_hash_is_compared_before_any_parser_sees_a_byte(folder):
    size = (folder / "unet.onnx").stat().st_size
    (folder / "unet.onnx").write_bytes(b"\xff" * size)
    with pytest.raises(BundleTampered):
        read_bundle(folder)


@pytest.mark.parametrize("change", [lambda data: data + b"\0", lambda data: data[:-1], lambda data: b""])
def test_other_size(folder, change):
    path = folder / "decoder.onnx"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(BundleTampered, match=r"decoder\.onnx"):
        read_bundle(folder)


def test_oversized_files_are_refused_before_reading(folder, monkeypatch):
    with (folder / "manifest.json").open("r+b") as file:
        file.truncate(1 << 32)  # sparse: 4 GiB of nothing on disk
    with pytest.raises(BundleInvalid, match="limit"):
        read_bundle(folder)
    write_bundle(folder)
    monkeypatch.setattr(bundle_files, "MAX_STAGE_BYTES", 10)
    with pytest.raises(BundleInvalid, match="limit"):
        read_bundle(folder)


def test_symlinked_files_are_refused(folder, tmp_path):
    outside = tmp_path / "outside.onnx"
    (folder / "unet.onnx").rename(outside)
    (folder / "unet.onnx").symlink_to(outside)
    with pytest.raises(BundleInvalid, match="link"):
        read_bundle(folder)


def test_symlink_is_refused_by_the_open_itself(folder, tmp_path, monkeypatch):
    """A link that appears between the look and the open must not be followed either."""
    if not hasattr(os, "O_NOFOLLOW"):
        pytest.skip("this system cannot open without following links")
    (folder / "unet.onnx").rename(tmp_path / "outside.onnx")
    (folder / "unet.onnx").symlink_to(tmp_path / "outside.onnx")
    monkeypatch.setattr(type(folder), "is_symlink", lambda self: False)
    with pytest.raises(BundleInvalid, match="link"):
        read_bundle(folder)


def test_symlinked_manifest_is_refused(folder, tmp_path):
    (folder / "manifest.json").rename(tmp_path / "m.json")
    (folder / "manifest.json").symlink_to(tmp_path / "m.json")
    with pytest.raises(BundleInvalid, match="link"):
        read_bundle(folder)


def test_directory_or_pipe_instead_of_a_file(folder):
    (folder / "unet.onnx").unlink()
    (folder / "unet.onnx").mkdir()
    with pytest.raises(BundleInvalid):
        read_bundle(folder)
    if hasattr(os, "mkfifo"):
        (folder / "unet.onnx").rmdir()
        os.mkfifo(folder / "unet.onnx")
        with pytest.raises(BundleInvalid, match="regular"):
            read_bundle(folder)


ESCAPES = ["../x.onnx", "/etc/x.onnx", "a/b.onnx", "..\\x.onnx", "C:x.onnx", ".hidden.onnx", "", "..", "x\0.onnx"]
ESCAPES += ["unet.onnx\n", "unet.plan", "unet.onnx.pkl", "ünet.onnx", "-x.onnx", "a" * 130 + ".onnx", " unet.onnx"]


@pytest.mark.parametrize("name", ESCAPES)
def test_only_plain_file_names(folder, name):
    for path in ("stages.unet.file", "model_card.file"):
        edit_manifest(folder, lambda value, path=path: put(value, path, name))
        with pytest.raises(BundleInvalid, match=r"unet\.file|model_card\.file"):
            read_bundle(folder)


def test_reader_of_files_does_not_trust_its_caller(folder):
    with pytest.raises(BundleInvalid, match="plain"):
        bundle_files.read_limited(folder / "..", "bundle/manifest.json", 1000)


def test_newer_schema_says_upgrade(folder):
    edit_manifest(folder, lambda value: value.update(schema_version=4, something_new=1))
    with pytest.raises(BundleVersion, match="Upgrade s2f-edge"):
        read_bundle(folder)
