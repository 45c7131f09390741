"""ONNX bytes are searched for weights kept elsewhere, without the onnx package."""

from __future__ import annotations

import contextlib

import pytest
from bundle_factory import dummy_stages, message, number_field, onnx_bytes, write_bundle
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.bundle import read_bundle
from runtime.errors import BundleInvalid, S2FError
from runtime.onnx_scan import FIELDS, refuse_external_data

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


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64), st.integers(0, 40), st.integers(0, 5))
def test_any_onnx_bytes(noise, start, length):
    good = onnx_bytes(message(5, TENSOR))
    for data in (noise, good[:start] + noise + good[start + length :]):
        with contextlib.suppress(S2FError):
            refuse_external_data(data, "unet.onnx")
