"""The bundle contract: what is read, what is refused and with which error."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os

import pytest
from bundle_factory import (
    dummy_stages,
    edit_manifest,
    make_manifest,
    manifest_dict,
    message,
    number_field,
    onnx_bytes,
    write_bundle,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import bundle_files, strict_json
from runtime.bundle import SAMPLES, StepTable, manifest_to_json, parse_manifest, read_bundle, read_manifest, sha256_hex
from runtime.errors import BundleInvalid, BundleNotFound, BundleTampered, BundleVersion, S2FError, StepsUnavailable
from runtime.onnx_scan import FIELDS, refuse_external_data


@pytest.fixture
def folder(tmp_path):
    return write_bundle(tmp_path / "bundle")


def put(value, path, new):
    """Set value["a"]["b"][0]... from the path "a.b.0"."""
    *parents, last = path.split(".")
    for key in parents:
        value = value[int(key)] if isinstance(value, list) else value[key]
    value[int(last) if isinstance(value, list) else last] = new


def parse(value):
    return parse_manifest(json.dumps(value).encode())


# Reading


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
        file.truncate(1 << 40)  # sparse: reading it would fill the memory
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
    edit_manifest(folder, lambda value: value.update(schema_version=2, something_new=1))
    with pytest.raises(BundleVersion, match="Upgrade s2f-edge"):
        read_bundle(folder)


# The manifest


def test_round_trip_is_exact_and_deterministic():
    manifest = make_manifest()
    data = manifest_to_json(manifest)
    assert parse_manifest(data) == manifest
    assert manifest_to_json(parse_manifest(data)) == data
    assert data.endswith(b"}\n")
    assert list(json.loads(data)) == sorted(json.loads(data))


def test_writer_refuses_what_the_reader_refuses():
    manifest = make_manifest()
    for changes in ({"default_steps": 25}, {"name": "Bad Name"}, {"licence": ""}, {"licence": b"x"}, {"stages": {}}):
        with pytest.raises(BundleInvalid):
            manifest_to_json(dataclasses.replace(manifest, **changes))
    guidance = dataclasses.replace(manifest.guidance, default=float("nan"))
    with pytest.raises(BundleInvalid):
        manifest_to_json(dataclasses.replace(manifest, guidance=guidance))


def test_step_table_lookup():
    manifest = make_manifest()
    assert manifest.table() == manifest.step_tables[4]
    assert manifest.table(8).first_row == 4
    with pytest.raises(StepsUnavailable, match="4, 8"):
        manifest.table(5)


def every_object(value, path=""):
    """Paths of all objects of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if isinstance(value, dict):
        yield path
    for key, item in items:
        yield from every_object(item, f"{path}.{key}".lstrip("."))


@pytest.mark.parametrize("path", list(every_object(manifest_dict())))
def test_unknown_and_missing_keys_are_refused_at_every_level(path):
    value = manifest_dict()
    put(value, f"{path}.surprise".lstrip("."), 1)
    with pytest.raises(BundleInvalid, match="surprise" if path != "step_tables" else "step_tables"):
        parse(value)
    victim = manifest_dict()
    target = victim
    for key in filter(None, path.split(".")):
        target = target[int(key)] if isinstance(target, list) else target[key]
    for key in list(target) if path != "step_tables" else ["4"]:  # a bundle may have fewer tables, not no default
        kept = target.pop(key)
        with pytest.raises(BundleInvalid):
            parse(victim)
        target[key] = kept
    assert parse(victim) == make_manifest()  # whatever order the keys stand in


def test_unknown_key_is_named_with_its_path():
    value = manifest_dict()
    value["stages"]["unet"]["inputs"][1]["layout"] = "nchw"
    with pytest.raises(BundleInvalid, match=r"stages\.unet\.inputs\[1\]\.layout: unknown key"):
        parse(value)


BAD_VALUES = [
    ("schema_version", True),
    ("schema_version", 0),
    ("schema_version", "1"),
    ("schema_version", 1.0),
    ("name", "UPPER"),
    ("name", "a" * 65),
    ("name", "a\n"),
    ("system", "vox2face"),
    ("licence", "x" * 257),
    ("training_data", "x\x1b[31m"),
    ("training_data", "\ud800"),
    ("training_data", None),
    ("generator", ["s2f-edge"]),
    ("stages", []),
    ("stages.unet", None),
    ("stages.unet.sha256", "A" * 64),
    ("stages.unet.sha256", "a" * 63),
    ("stages.unet.size", 0),
    ("stages.unet.size", -1),
    ("stages.unet.size", True),
    ("stages.unet.size", 10.0),
    ("stages.unet.size", 512 * 1024 * 1024 + 1),
    ("stages.unet.file", "ENCODER.onnx"),
    ("stages.unet.inputs", []),
    ("stages.unet.inputs", {}),
    ("stages.unet.inputs.0.name", "Latent"),
    ("stages.unet.inputs.0.name", "latent_in"),
    ("stages.unet.inputs.0.dtype", "float16"),
    ("stages.unet.inputs.0.dtype", ["float32"]),
    ("stages.unet.inputs.0.shape", ["batch", 4, 8]),
    ("stages.unet.inputs.0.shape", ["batch", "batch", 8, 8]),
    ("stages.unet.inputs.0.shape", [1, 4, 8, 8]),
    ("stages.unet.inputs.0.shape", ["batch", 4, 8, -8]),
    ("stages.unet.inputs.0.shape", ["batch", 4, 8, True]),
    ("stages.unet.inputs.3.dtype", "float32"),
    ("stages.unet.inputs.4.shape", ["batch"]),
    ("stages.decoder.outputs.0.shape", ["batch", 3, 32, 32]),
    ("stages.decoder.outputs.0.dtype", "float32"),
    ("stages.encoder.inputs.0.shape", ["batch", 96001]),
    ("audio.sample_rate", 8000),
    ("audio.samples", 48000),
    ("latent.channels", 5),
    ("latent.height", 0),
    ("latent.width", 1.5),
    ("image.width", 64),
    ("image.height", 1 << 40),
    ("condition.tokens", 3),
    ("condition.width", "16"),
    ("prior.mode", "multiply"),
    ("prior.weight", -0.01),
    ("prior.weight", True),
    ("guidance.default", 5.0),
    ("guidance.min", 2.0),
    ("guidance.max", 1000.0),
    ("guidance.max", 10**25),
    ("step_tables", {}),
    ("step_tables.4", []),
    ("step_tables.4.solver", "euler"),
    ("step_tables.4.first_row", -1),
    ("step_tables.4.first_row", 2),
    ("step_tables.8.first_row", 3),
    ("step_tables.4.timesteps", [999.0, 700.0, 400.0]),
    ("step_tables.4.timesteps", [999.0, 700.0, 700.0, 100.0]),
    ("step_tables.4.timesteps", [999.0, 700.0, 400.0, -1.0]),
    ("step_tables.4.timesteps", [999.0, 700.0, 400.0, "1"]),
    ("step_tables.4.timesteps", 4),
    ("default_steps", 25),
    ("default_steps", "4"),
    ("model_card.size", 1024 * 1024 + 1),
    ("model_card.file", "card.onnx"),
    ("model_card", "MODEL_CARD.md"),
]


@pytest.mark.parametrize(("path", "bad"), BAD_VALUES)
def test_bad_values(path, bad):
    value = manifest_dict()
    put(value, path, bad)
    with pytest.raises(BundleInvalid):
        parse(value)


@pytest.mark.parametrize("key", ["04", "0", "-4", "4.0", "1001", "four", "٤", "", " 4"])
def test_keys_of_step_tables_are_plain_numbers(key):
    value = manifest_dict()
    value["step_tables"][key] = value["step_tables"].pop("4")
    with pytest.raises(BundleInvalid, match="step_tables"):
        parse(value)


def raw(old: bytes, new: bytes) -> bytes:
    data = manifest_to_json(make_manifest())
    assert old in data
    return data.replace(old, new, 1)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (raw(b'"name": "dummy"', b'"name": "dummy", "name": "other"'), "twice"),
        (raw(b'"height": 8', b'"height": 8, "h\\u0065ight": 9'), "twice"),
        (raw(b"0.01", b"NaN"), "NaN"),
        (raw(b"0.01", b"-Infinity"), "Infinity"),
        (raw(b"0.01", b"1e999"), "too large"),
        (raw(b"0.01", b"1" * 100000), "characters"),
        (raw(b"0.01", b"0." + b"1" * 100000), "characters"),
        (raw(b"0.01", b"[" * 100000 + b"]" * 100000), "nested"),
        (raw(b"0.01", b'{"a":' * 20 + b"1" + b"}" * 20), "nested"),
        (b"[" * 200000, "nested"),
        (b'"\\"' * 80000 + b"[" * 17, "not JSON|nested"),
        (raw(b"0.01", b"0.01,"), "not JSON"),
        (b"", "not JSON"),
        (b"null", "not an object"),
        (b"[]", "not an object"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (manifest_to_json(make_manifest()).decode().encode("utf-16"), "UTF-8"),
        (b"{}" + b" " * strict_json.MAX_BYTES, "limit"),
    ],
)
def test_hostile_json(data, reason):
    with pytest.raises(BundleInvalid, match=reason):
        parse_manifest(data)


def test_brackets_inside_strings_are_not_nesting():
    value = manifest_dict()
    value["training_data"] = '[{"' * 100 + "\\"
    assert parse(value).training_data == '[{"' * 100 + "\\"


def test_messages_do_not_carry_control_characters():
    value = manifest_dict()
    value["\x1b[31m" + "k" * 500] = 1
    with pytest.raises(BundleInvalid) as caught:
        parse(value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 250


# ONNX bytes

TENSOR = message(9, b"\1\2\3\4") + number_field(14, 0)
EXTERNAL = [number_field(14, 1), message(13, b""), number_field(14, (1 << 32) + 1), TENSOR + message(13, b"x")]


@pytest.mark.parametrize("mark", EXTERNAL)
def test_external_data_is_refused_wherever_a_tensor_may_stand(mark):
    attribute_tensor = message(1, message(5, message(5, mark)))
    subgraph = message(5, mark)
    for _ in range(50):
        subgraph = message(1, message(5, message(6, subgraph)))
    places = [
        onnx_bytes(message(5, mark)),
        onnx_bytes(message(5, TENSOR) + message(5, mark)),
        onnx_bytes(attribute_tensor),
        onnx_bytes(subgraph),
        onnx_bytes(message(15, message(1, mark))),
        onnx_bytes(tail=message(7, message(5, mark))),
        onnx_bytes(tail=message(25, message(7, message(5, message(5, mark))))),
    ]
    for data in places:
        with pytest.raises(BundleInvalid, match="other files"):
            refuse_external_data(data, "unet.onnx")


def test_weights_inside_are_welcome():
    node = message(1, message(5, message(5, TENSOR)) + message(5, number_field(14, 1)))
    refuse_external_data(onnx_bytes(message(5, TENSOR) + node), "unet.onnx")


def test_external_data_in_a_bundle(tmp_path):
    files = dummy_stages() | {"unet": onnx_bytes(message(5, number_field(14, 1)))}
    with pytest.raises(BundleInvalid, match=r"unet\.onnx"):
        read_bundle(write_bundle(tmp_path / "b", files))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02}q\x00.",
        b"PK\3\4" + bytes(100),
        onnx_bytes()[:-1],
        number_field(1, 8),
        b"\x1c\0\0\0ORTM" + bytes(100),
        b"\xff" * 20,
        onnx_bytes(tail=b"\x0b\x0c"),
        onnx_bytes(tail=b"\xba\x80\x80\x80\x80\x01\x00"),
        onnx_bytes(tail=b"\0\0"),
    ],
)
def test_what_is_not_onnx(data):
    with pytest.raises(BundleInvalid, match=r"not an ONNX|ORT-format"):
        refuse_external_data(data, "unet.onnx")


def test_field_numbers_are_those_of_onnx():
    """Every way from a ModelProto to a TensorProto that the onnx package knows is walked."""
    onnx = pytest.importorskip("onnx", reason="the export extra is not installed")
    names = {
        "ModelProto": "model",
        "TrainingInfoProto": "training",
        "FunctionProto": "function",
        "GraphProto": "graph",
        "NodeProto": "node",
        "AttributeProto": "attribute",
        "SparseTensorProto": "sparse",
        "TensorProto": "tensor",
    }
    for proto, ours in names.items():
        found = {
            field.number: names[field.message_type.name]
            for field in getattr(onnx, proto).DESCRIPTOR.fields
            if field.message_type is not None and field.message_type.name in names
        }
        assert found == FIELDS.get(ours, {}), proto


def test_real_external_model_is_refused_and_the_same_model_with_weights_inside_is_not(tmp_path):
    onnx = pytest.importorskip("onnx", reason="the export extra is not installed")
    numpy_helper, helper = onnx.numpy_helper, onnx.helper
    np = pytest.importorskip("numpy")
    weight = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 64])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 64])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    model = helper.make_model(graph)
    refuse_external_data(model.SerializeToString(), "unet.onnx")
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    with pytest.raises(BundleInvalid, match="other files"):
        refuse_external_data((tmp_path / "m.onnx").read_bytes(), "unet.onnx")


# Properties

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
GOOD = manifest_to_json(make_manifest())
PATHS = [path for path, _ in BAD_VALUES]


def only_our_errors(data):
    try:
        manifest = parse_manifest(data)
    except S2FError:
        return
    assert parse_manifest(manifest_to_json(manifest)) == manifest


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_document(data):
    only_our_errors(data)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(PATHS), JSON)
def test_any_value_anywhere(path, value):
    document = manifest_dict()
    put(document, path, value)
    only_our_errors(json.dumps(document).encode())


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.integers(0, 30), st.binary(max_size=8))
def test_any_mutation_of_the_bytes(start, length, new):
    only_our_errors(GOOD[:start] + new + GOOD[start + length :])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64), st.integers(0, 40), st.integers(0, 5))
def test_any_onnx_bytes(noise, start, length):
    good = onnx_bytes(message(5, TENSOR))
    for data in (noise, good[:start] + noise + good[start + length :]):
        with contextlib.suppress(S2FError):
            refuse_external_data(data, "unet.onnx")


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_round_trip_of_valid_manifests(data):
    printable = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=50)
    tables, row = {}, 0
    for steps in data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=5, unique=True)):
        row += data.draw(st.integers(0, 9))
        times = data.draw(st.lists(st.floats(0, 1000), min_size=steps, max_size=steps, unique=True))
        tables[steps] = StepTable("ddim", row, tuple(sorted(times, reverse=True)))
        row += steps
    weight = data.draw(st.floats(0, 1))
    manifest = dataclasses.replace(
        make_manifest(),
        licence=data.draw(printable.filter(str.isprintable)),
        training_data=data.draw(printable.filter(str.isprintable)),
        prior=dataclasses.replace(make_manifest().prior, weight=weight),
        step_tables=tables,
        default_steps=data.draw(st.sampled_from(sorted(tables))),
    )
    assert parse_manifest(manifest_to_json(manifest)) == manifest
