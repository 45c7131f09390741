"""Which layers are given back to float32: the fewest that meet the gate, the worst first, in one order."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from graph_factory import SIZE, conv, graph, node, norm_net, normal, pictures, residual_net, run
from hypothesis import given
from hypothesis import strategies as st

from calibration.activations import Activations, observable
from calibration.layers import layers_of
from calibration.plan import Sensitivity, operations_of, search, sensitivity_of, worst_first
from runtime.portrait import psnr


@given(st.integers(1, 40), st.integers(0, 60))
def test_as_few_as_possible_are_given_back(count, needed):
    """`needed`: how many must go until the gate has nothing to say."""
    order = [f"layer {index}" for index in range(count)]
    asked = []

    def misses(names):
        asked.append(names)
        assert names == frozenset(order[count - len(names) :])  # always the worst first
        return ["psnr"] if count - len(names) < needed else []

    found = search(order, misses)
    assert found == (None if needed >= count else frozenset(order[needed:]))
    assert len(asked) <= 2 * count.bit_length() + 2
    assert len(set(asked)) == len(asked)


def one_layer():
    return layers_of(residual_net(), "decoder")[0]


def test_damage_is_the_mean_squared_error_of_portraits():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 200, (3, 8, 8, 3), dtype=np.uint8)
    second = first + np.array([1, 2, 5], np.uint8)[:, None, None, None]
    reference, drawn = SimpleNamespace(images=first), SimpleNamespace(images=second)
    found = sensitivity_of(one_layer(), 100, reference, drawn)
    assert found.damage == pytest.approx((1 + 4 + 25) / 3)
    assert found.worth == pytest.approx(0.1)
    assert found.psnr == tuple(psnr(a, b) for a, b in zip(first, second, strict=True))
    back = sensitivity_of(one_layer(), 100, drawn, reference)  # no wrap-around of uint8
    assert back.damage == pytest.approx(found.damage)
    assert sensitivity_of(one_layer(), 0, reference, reference).worth == 0


def test_the_worst_for_its_work_comes_first():
    layer = one_layer()
    found = {
        "b cheap": Sensitivity(layer, 10, (), 5.0),
        "dear": Sensitivity(layer, 1000, (), 50.0),
        "a cheap": Sensitivity(layer, 20, (), 10.0),
        "free": Sensitivity(layer, 0, (), 1.0),
    }
    order = ["free", "a cheap", "b cheap", "dear"]
    assert worst_first(found) == order
    assert worst_first(dict(reversed(found.items()))) == order


@pytest.mark.parametrize(
    ("model", "shape", "wanted"),
    [
        (graph([conv("x w", "y")], {"w": normal(24, 16, 3, 3)}), (16, SIZE, SIZE), [24 * SIZE * SIZE * 16 * 9]),
        (
            graph([node("Conv", "x w", "y", group=4, strides=[2, 2])], {"w": normal(24, 4, 2, 2)}),
            (16, SIZE, SIZE),
            [24 * 4 * 4 * 4 * 4],
        ),
        (graph([node("Gemm", "x w", "y", transB=1)], {"w": normal(24, 16)}, source=("n", 16)), (16,), [24 * 16]),
        (graph([node("Gemm", "x w", "y")], {"w": normal(16, 24)}, source=("n", 16)), (16,), [24 * 16]),
        (norm_net(), (6, 64), [6 * 64 * 64] * 3),
    ],
)
def test_multiply_adds_of_one_portrait(model, shape, wanted):
    """Whatever the number of portraits that were looked at."""
    layers = layers_of(model, "unet")
    results = [layer.result for layer in layers]
    for count in (1, 3):
        seen = Activations({"unet": results})
        seen.see("unet", 0, run(observable(model, results), {"x": pictures(count, shape=shape)}))
        assert [operations_of(layer, seen) for layer in layers] == wanted
