"""The manifest: strict parsing, exact round trip, and nothing but our errors for any bytes."""

from __future__ import annotations

import dataclasses
import json

import pytest
from bundle_factory import make_manifest, manifest_dict, manifest_of_schema_1, manifest_of_schema_2, put
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import strict_json
from runtime.bundle import SCHEMA_VERSION, PriorSpec, StepTable, manifest_to_json, parse_manifest
from runtime.errors import BundleInvalid, BundleVersion, S2FError, StepsUnavailable


def parse(value):
    return parse_manifest(json.dumps(value).encode())


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


OPTIONAL_KEYS = ("variants", "variants.int8-x86.stages")
FREE_KEYS = ("step_tables", *OPTIONAL_KEYS)
"""Objects that may have fewer keys: fewer tables, but not no default, no variant, and not every stage in one."""


@pytest.mark.parametrize("path", list(every_object(manifest_dict())))
def test_unknown_and_missing_keys_are_refused_at_every_level(path):
    value = manifest_dict()
    put(value, f"{path}.surprise".lstrip("."), 1)
    with pytest.raises(BundleInvalid, match=path if path in FREE_KEYS else "surprise"):
        parse(value)
    victim = manifest_dict()
    target = victim
    for key in filter(None, path.split(".")):
        target = target[int(key)] if isinstance(target, list) else target[key]
    for key in {"step_tables": ["4"], **dict.fromkeys(OPTIONAL_KEYS, ())}.get(path, list(target)):
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
    ("licence", "x" * 2049),
    ("training_data", "x" * 4097),
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
    ("stages.unet.inputs.5.name", "weight"),
    ("stages.unet.inputs.5.dtype", "int64"),
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
    ("condition.width", (1 << 18) + 1),
    ("prior.mode", "multiply"),
    ("prior.mode", "subtract"),
    ("prior.inject", "every"),
    ("prior.inject", "end"),
    ("prior.inject", None),
    ("prior.weight", -0.01),
    ("prior.weight", True),
    ("prior.weight", 0.2),
    ("prior.min", 0.05),
    ("prior.min", -0.1),
    ("prior.max", 1.5),
    ("prior.max", 0.001),
    ("prior.max", None),
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


def test_statements_may_be_long():
    """Licences and attributions of several sources, in full."""
    manifest = dataclasses.replace(make_manifest(), licence="L" * 2048, training_data="T" * 4096)
    assert parse_manifest(manifest_to_json(manifest)) == manifest


def fold(value, *names):
    """Take tensors of the unet out of a manifest."""
    for side in ("inputs", "outputs"):
        value["stages"]["unet"][side] = [t for t in value["stages"]["unet"][side] if t["name"] not in names]


def test_an_option_of_one_value_is_no_input():
    value = manifest_dict()
    value["guidance"] = {"default": 2.0, "min": 2.0, "max": 2.0}
    with pytest.raises(BundleInvalid, match=r"stages\.unet\.inputs"):
        parse(value)
    fold(value, "guidance")
    assert parse(value).guidance.fixed
    value["prior"] |= {"min": 0.01, "max": 0.01}
    with pytest.raises(BundleInvalid, match=r"stages\.unet\.inputs"):
        parse(value)
    fold(value, "prior_weight")
    manifest = parse(value)
    assert [t.name for t in manifest.stages["unet"].inputs] == ["latent", "history", "condition", "step"]
    assert parse_manifest(manifest_to_json(manifest)) == manifest


@pytest.mark.parametrize("mode", ["add", "subtract", "interpolate", "none"])
def test_a_fixed_prior_may_have_any_mode(mode):
    value = manifest_dict()
    fold(value, "prior_weight")
    weight = 0.0 if mode == "none" else 0.5
    value["prior"] = {"mode": mode, "weight": weight, "min": weight, "max": weight, "inject": "every"}
    assert parse(value).prior == PriorSpec(mode, weight, weight, weight, "every")


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        (("interpolate", 0.5, "start"), "start needs mode add"),
        (("none", 0.0, "start"), "start needs mode add"),
        (("none", 0.5, "every"), "mode none has weight 0"),
    ],
)
def test_priors_that_no_graph_has(prior, words):
    mode, weight, inject = prior
    value = manifest_dict()
    fold(value, "prior_weight")
    value["prior"] = {"mode": mode, "weight": weight, "min": weight, "max": weight, "inject": inject}
    with pytest.raises(BundleInvalid, match=words):
        parse(value)


def test_steps_that_do_not_look_back_have_no_history():
    value = manifest_dict()
    for table in value["step_tables"].values():
        table["solver"] = "shortcut"
    with pytest.raises(BundleInvalid, match=r"stages\.unet\.inputs"):
        parse(value)
    fold(value, "history", "history_next")
    assert not parse(value).history
    value["step_tables"]["8"]["solver"] = "ddim"
    with pytest.raises(BundleInvalid, match=r"stages\.unet\.inputs"):
        parse(value)


def test_one_network_is_no_shortcut_and_ddpm():
    value = manifest_dict()
    value["step_tables"]["8"]["solver"] = "shortcut"
    with pytest.raises(BundleInvalid, match="no network serves both"):
        parse(value)


def test_schema_2_is_read_as_schema_3_without_variants():
    old = parse(manifest_of_schema_2())
    assert old.schema_version == SCHEMA_VERSION
    assert old == dataclasses.replace(make_manifest(), variants={})
    with pytest.raises(BundleInvalid, match="variants: unknown key"):
        parse(manifest_dict() | {"schema_version": 2})


@pytest.mark.parametrize(
    ("path", "bad", "where"),
    [
        ("variants.int4-arm", {}, "variants: must hold nothing but"),
        ("variants.int8-x86.stages", {}, r"variants\.int8-x86\.stages: must hold one or more"),
        ("variants.int8-x86.stages.critic", {}, r"variants\.int8-x86\.stages: must hold one or more"),
        ("variants.int8-x86.stages.unet.file", "../unet.onnx", r"variants\.int8-x86\.stages\.unet\.file"),
        ("variants.int8-x86.stages.unet.file", "unet.onnx", "stages: two entries name the same file"),
        ("variants.int8-x86.gate", "fine", r"variants\.int8-x86\.gate"),
        ("variants.int8-x86.pairs", -1, r"variants\.int8-x86\.pairs"),
        ("variants.int8-x86.cosine", 1.5, r"variants\.int8-x86\.cosine"),
    ],
)
def test_bad_variants_are_refused_with_their_path(path, bad, where):
    value = manifest_dict()
    put(value, path, bad)
    with pytest.raises(BundleInvalid, match=where):
        parse(value)


def test_schema_1_is_read_as_schema_2():
    old = parse(manifest_of_schema_1())
    assert old.prior == PriorSpec("add", 0.01, 0.01, 0.01, "every")
    assert old.history
    assert old.schema_version == SCHEMA_VERSION
    assert parse_manifest(manifest_to_json(old)) == old
    assert json.loads(manifest_to_json(old))["schema_version"] == SCHEMA_VERSION
    value = manifest_of_schema_1()
    value["prior"]["mode"] = "none"  # whose weight, if any, no graph of schema 1 had
    assert parse(value).prior == PriorSpec("none", 0.0, 0.0, 0.0, "every")


def test_schema_1_is_read_strictly():
    for path, bad, where in (
        ("prior.min", 0.01, r"prior\.min: unknown key"),
        ("prior.inject", "every", r"prior\.inject: unknown key"),
        ("prior", {"mode": "add"}, r"prior\.weight: missing"),
        ("prior", None, "prior: not an object"),
        ("prior.weight", "1", r"prior\.weight: not a number"),
        ("guidance.max", 1.0, "guidance"),
        ("guidance", {"default": 2.0, "min": 2.0, "max": 2.0}, "guidance: schema 1 knows no fixed guidance"),
        ("step_tables.4.solver", "shortcut", r"step_tables\.4\.solver: schema 1 does not know shortcut"),
        ("surprise", 1, "surprise: unknown key"),
    ):
        value = manifest_of_schema_1()
        put(value, path, bad)
        with pytest.raises(BundleInvalid, match=where):
            parse(value)


def test_one_schema_in_the_dress_of_the_other():
    value = manifest_of_schema_1()
    fold(value, "history", "history_next")
    with pytest.raises(BundleInvalid, match=r"stages\.unet\.inputs"):
        parse(value)
    for value, version in ((manifest_of_schema_2(), 1), (manifest_of_schema_1(), 2)):
        value["schema_version"] = version
        with pytest.raises(BundleInvalid, match="prior"):
            parse(value)
    with pytest.raises(BundleVersion, match="schema version 4, this release reads 1 to 3"):
        parse(manifest_dict() | {"schema_version": 4})


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(PATHS), JSON)
def test_any_value_anywhere_in_schema_1(path, value):
    document = manifest_of_schema_1()
    if path.startswith("stages.unet.inputs.5") or path == "schema_version":
        return
    put(document, path, value)
    only_our_errors(json.dumps(document).encode())


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
    weight = data.draw(st.floats(0, 0.1))
    manifest = dataclasses.replace(
        make_manifest(),
        licence=data.draw(printable.filter(str.isprintable)),
        training_data=data.draw(printable.filter(str.isprintable)),
        prior=dataclasses.replace(make_manifest().prior, weight=weight),
        step_tables=tables,
        default_steps=data.draw(st.sampled_from(sorted(tables))),
    )
    assert parse_manifest(manifest_to_json(manifest)) == manifest
