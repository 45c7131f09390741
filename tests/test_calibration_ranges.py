"""What is observed in graphs while portraits are drawn, and the ranges that come of it."""

from __future__ import annotations

import numpy as np
import pytest
from graph_factory import normal, pictures, residual_net, run
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from calibration import ranges
from calibration.activations import BINS, Activations, Observed, observable
from runtime.errors import BackendFailed

FINITE = st.floats(-1e6, 1e6, width=32)
ARRAYS = npst.arrays(np.float32, st.integers(1, 40), elements=FINITE)


# Observing


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), ARRAYS), min_size=1, max_size=6))
def test_a_grown_histogram_is_the_one_of_all_values(runs):
    seen = Observed()
    for row, values in runs:
        seen.add(values, row)
    everything = np.concatenate([values for _, values in runs]).astype(np.float64)
    assert seen.counts.sum() == everything.size
    assert seen.edges[0] <= everything.min() <= everything.max() <= seen.edges[-1]
    np.testing.assert_array_equal(seen.counts, np.histogram(everything, seen.edges)[0])
    assert seen.extremes == (everything.min(), everything.max())
    for step, (low, high) in seen.steps.items():
        own = np.concatenate([values for row, values in runs if row == step])
        assert (low, high) == (own.min(), own.max())
    assert seen.steps.keys() == {row for row, _ in runs}


@pytest.mark.parametrize(
    "values", [[1.0, 2.0, 4.0], [-4.0, 4.0], [2.0**-64], [1e-42], [3.4e38, 1.0], [-3.4e38, 3.4e38]]
)
def test_values_at_the_edges_of_bins_and_of_float32(values):
    seen = Observed()
    for value in values:
        seen.add(np.array([value], np.float32), 0)
    np.testing.assert_array_equal(seen.counts, np.histogram(np.float32(values).astype(np.float64), seen.edges)[0])


def test_a_histogram_is_fine_enough():
    """Values up to 1 are told apart to a thousandth or so, even after much smaller ones were seen."""
    seen = Observed()
    seen.add(np.array([1e-6], np.float32), 0)
    seen.add(np.array([0.9], np.float32), 0)
    assert np.diff(seen.edges)[0] <= 2 / BINS


def watching():
    return Activations({"unet": ["a", "b"], "decoder": ["a"]}, [("unet", "b")])


def test_columns_are_the_largest_magnitudes_of_the_last_axis():
    seen, first, second = watching(), normal(3, 4, 5, seed=1), normal(2, 4, 5, seed=2)
    for values in (first, second):
        seen.see("unet", 0, {"a": values, "b": values})
    both = np.abs(np.concatenate([first, second])).max(axis=(0, 1))
    np.testing.assert_array_equal(seen.tensors["unet"]["b"].columns, both)
    assert seen.tensors["unet"]["a"].columns is None


def test_observing_goes_on_where_it_stopped():
    straight, first = watching(), watching()
    runs = [{"a": normal(3, 4, seed=i, size=3.0**i), "b": normal(2, 4, seed=9 + i)} for i in range(4)]
    for row, values in enumerate(runs):
        straight.see("unet", row, values)
    for row, values in enumerate(runs[:2]):
        first.see("unet", row, values)
    first.done = 2
    second = watching()
    second.restore(first.to_bytes())
    assert second.done == 2
    for row, values in enumerate(runs[2:], 2):
        second.see("unet", row, values)
    for name, one in straight.tensors["unet"].items():
        other = second.tensors["unet"][name]
        assert (one.steps, one.exponent, one.shape) == (other.steps, other.exponent, other.shape)
        np.testing.assert_array_equal(one.counts, other.counts)
    np.testing.assert_array_equal(straight.tensors["unet"]["b"].columns, second.tensors["unet"]["b"].columns)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_notes_change_nothing(data):
    source = watching()
    source.see("unet", 0, {"a": normal(3, 4), "b": normal(2, 4)})
    source.see("decoder", 0, {"a": normal(3, 4)})
    source.done = 7
    whole = source.to_bytes()
    end = data.draw(st.integers(0, len(whole) - 1))
    place = data.draw(st.integers(0, end))
    damaged = data.draw(st.sampled_from([whole[:end], whole[:place] + b"\0" * (end - place) + whole[end:], b"junk"]))
    target = watching()
    if damaged == whole:
        return
    with pytest.raises(ValueError, match="What was observed is damaged"):
        target.restore(damaged)
    assert target.done == 0
    assert not any(one.steps or one.counts.any() for names in target.tensors.values() for one in names.values())


def test_notes_of_other_tensors_change_nothing():
    source = Activations({"unet": ["a"]})
    source.see("unet", 0, {"a": normal(3, 4)})
    source.done = 3
    target = watching()
    with pytest.raises(ValueError, match="of other tensors"):
        target.restore(source.to_bytes())
    assert target.done == 0
    assert not target.tensors["unet"]["a"].counts.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_tensor_that_is_not_finite_is_named(bad):
    with pytest.raises(BackendFailed, match=r"tensor b of the unet graph"):
        watching().see("unet", 0, {"a": np.ones(3, np.float32), "b": np.array([1, bad], np.float32)})


def test_observing_changes_no_graph():
    model = residual_net()
    before = model.SerializeToString()
    more = observable(model, ["first", "h", "x", "y", "sum"])
    assert model.SerializeToString() == before
    x = pictures(2)
    found = run(more, {"x": x})
    assert list(found) == ["y", "first", "h", "sum"]
    np.testing.assert_array_equal(found["h"], np.maximum(found["first"], 0))
    np.testing.assert_allclose(found["y"], run(model, {"x": x})["y"], atol=1e-5)


# Ranges


def observed(values):
    seen = Observed()
    seen.add(np.asarray(values, np.float32), 0)
    return seen


@settings(max_examples=80, deadline=None)
@given(npst.arrays(np.float32, st.integers(1, 60), elements=FINITE))
def test_a_range_lies_within_what_was_seen(values):
    seen = observed(values)
    low, high = seen.extremes
    assert ranges.METHODS["minmax"](seen) == (values.min(), values.max())
    for method, function in ranges.METHODS.items():
        first, last = function(seen)
        assert low <= first <= last <= high, method


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.floats(20, 1000), st.sampled_from([1, -1]))
def test_percentile_cuts_what_is_rare_and_nothing_else(seed, outlier, sign):
    values = np.random.default_rng(seed).normal(0, 1, 60_000)
    low, high = ranges.percentile(observed([*values, sign * outlier]))
    cut = low if sign < 0 else high
    assert abs(cut) < 8 + 4 * outlier / BINS
    assert np.mean((values < low) | (values > high)) <= 2e-4


def test_entropy_cuts_a_lonely_value():
    values = np.random.default_rng(0).normal(0, 1, 20_000)
    low, high = ranges.entropy(observed([*values, 60.0]))
    assert 3 < high < 30
    assert low == pytest.approx(values.min())
