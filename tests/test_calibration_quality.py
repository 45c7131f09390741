"""The judge without torch, what quality measures, and what the gate lets through."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("onnx")
pytest.importorskip("safetensors")

from calibration.judge import SHIPPED, Judge
from calibration.quality import Drawn, Gate, Quality, compare, cosine, kid, pyramid_distance
from runtime.errors import CheckpointInvalid
from runtime.portrait import psnr


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.shipped()


def pictures(seed: int, count: int = 6, size: int = 128) -> np.ndarray:
    """Smooth coloured blobs uint8 [count, size, size, 3]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(size // 4, axis=1).repeat(size // 4, axis=2)


def drawn(images: np.ndarray, seed: int = 0, steps: int = 3) -> Drawn:
    latents = np.random.default_rng(seed).normal(size=(len(images), steps + 1, 2, 4, 4)).astype(np.float32)
    return Drawn(images, latents)


def passing(pairs: int = 256) -> Quality:
    fine = np.full(pairs, 40.0), np.full(pairs, 0.99), np.zeros(pairs)
    return Quality(*fine, 100.0, 100.0, 100.0, 0.0, np.array([0.01, 0.012]), np.array([0.01, 0.02]))


def test_the_judge_reads_as_evaluation_does(judge):
    pytest.importorskip("torch")
    from training.evaluate.judge import load_judge

    images = np.concatenate([pictures(1, 70), np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3), np.uint8)])
    ours, theirs = judge.read(images), load_judge().read(images)
    assert judge.names == load_judge().attributes
    for name in ("features", "male", "age", "attributes"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=1e-3)


def test_portraits_of_other_sizes_are_resized(judge):
    large = pictures(2, 2, 256)
    np.testing.assert_allclose(judge.read(large).features, judge.read(large[:, ::2, ::2]).features, atol=0.35)


def test_a_file_that_is_no_judge_is_refused(tmp_path):
    with pytest.raises(CheckpointInvalid, match="cannot be read"):
        Judge.read_file(tmp_path / "none.safetensors")
    damaged = tmp_path / "judge.safetensors"
    damaged.write_bytes(SHIPPED.read_bytes()[:1000])
    with pytest.raises(CheckpointInvalid, match="cannot be read"):
        Judge.read_file(damaged)
    from safetensors.numpy import load_file, save_file

    tensors = load_file(SHIPPED)
    save_file(tensors, damaged, metadata={"format": "other"})
    with pytest.raises(CheckpointInvalid, match="is not a"):
        Judge.read_file(damaged)
    tensors.pop("network.heads.weight")
    save_file(tensors, damaged, metadata={"format": "s2f-judge/2", "attributes": "[]"})
    with pytest.raises(CheckpointInvalid, match="not complete"):
        Judge.read_file(damaged)


def test_equal_portraits_are_equal(judge):
    one = drawn(pictures(3))
    found = compare(one, one, judge)
    assert found.pairs == 6
    assert (found.psnr == 100).all()
    np.testing.assert_allclose(found.cosine, 1)
    assert not found.perceptual.any()
    assert (found.sex, found.age, found.attributes) == (100, 100, 100)
    assert found.kid == pytest.approx(0, abs=1e-9)
    assert not found.step_errors.any()
    assert found.growth == 0
    assert Gate(pairs=6).misses(found) == []


def test_what_differs_is_measured(judge):
    one = drawn(pictures(4))
    other = Drawn(255 - one.images, one.latents.copy())
    other.latents[:, 2] += 0.1
    found = compare(one, other, judge)
    assert found.psnr[2] == psnr(one.images[2], other.images[2])
    way = np.linalg.norm((one.latents[:, 2] - one.latents[:, 0]).reshape(6, -1), axis=1)
    assert found.step_errors == pytest.approx([0, np.mean(0.1 * np.sqrt(32) / way), 0], abs=1e-6)
    assert found.plain_errors[1] > 0
    assert found.growth == np.inf  # from nothing to something
    assert found.perceptual.min() > 0
    assert found.cosine.mean() < 0.9
    assert found.to_json()["psnr"] == [round(float(x), 2) for x in found.psnr]


def test_nothing_to_compare_is_missed(judge):
    empty = Drawn(np.zeros((0, 8, 8, 3), np.uint8), np.zeros((0, 3, 1, 2, 2), np.float32))
    assert Gate().misses(compare(empty, empty, judge)) == ["0 pairs of other voices were compared, 256 are needed"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"psnr": np.full(256, 29.0)}, "psnr is 29 dB"),
        ({"psnr": np.r_[np.full(253, 60.0), 29.0, 29.0, 29.0]}, "in 1.2 % of the pairs"),
        ({"psnr": np.r_[np.full(255, 60.0), np.nan]}, "psnr is nan"),
        ({"cosine": np.full(256, 0.97)}, "cosine is 0.97"),
        ({"sex": 97.0}, "sex: 97.0 % agree"),
        ({"age": float("nan")}, "age: nan % agree"),
        ({"attributes": 0.0}, "attributes: 0.0 % agree"),
        ({"step_errors": np.array([0.01, 0.016])}, "1.60 times"),
    ],
)
def test_each_miss_is_a_sentence_with_both_numbers(change, said):
    (sentence,) = Gate().misses(dataclasses.replace(passing(), **change))
    assert said in sentence


def test_two_bad_pairs_of_256_pass():
    assert Gate().misses(dataclasses.replace(passing(), psnr=np.r_[np.full(254, 60.0), 20.0, 20.0])) == []


@given(st.floats(20, 45), st.floats(0, 5))
def test_better_portraits_never_miss_more(level, more):
    worse, better = (dataclasses.replace(passing(), psnr=np.full(256, x)) for x in (level, level + more))
    assert len(Gate().misses(better)) <= len(Gate().misses(worse))


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_cosine_is_symmetric_and_bounded(seed):
    a, b = np.random.default_rng(seed).normal(size=(2, 5, 7))
    found = cosine(a, b)
    np.testing.assert_allclose(found, cosine(b, a))
    assert (np.abs(found) <= 1 + 1e-12).all()
    np.testing.assert_allclose(cosine(a, 3 * a), 1)
    np.testing.assert_allclose(cosine(a, -a), -1)


def test_kernel_distance_of_known_sets():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 2000, 8))
    assert abs(kid(a, b)) < 60  # one distribution
    assert kid(a, b + 2) > 1000
    assert kid(a, a) == pytest.approx(0, abs=1e-9)
    x, y = np.array([[1.0], [2.0]]), np.array([[1.0], [3.0]])
    assert kid(x, y) == pytest.approx(1000 * (3.0**3 + 4.0**3 - (4.0**3 + 3.0**3)))


def test_pyramid_distance_of_known_pictures():
    black = np.zeros((16, 16, 3), np.uint8)
    assert pyramid_distance(black, black) == 0
    white = black + np.uint8(255)
    assert pyramid_distance(black, white) == pytest.approx(0.125)  # the same everywhere: the coarsest scale alone
    checks = (np.indices((16, 16)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    grey = np.full_like(black, 127)
    assert pyramid_distance(checks, grey) == pytest.approx(0.5 + 0.5 / 255 / 8, abs=2e-3)  # the finest scale alone
    assert pyramid_distance(pictures(1, 1, 36)[0], pictures(2, 1, 36)[0]) > 0  # sizes that do not halve evenly
