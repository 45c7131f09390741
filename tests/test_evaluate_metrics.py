"""Every metric on data whose answer is known beforehand."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from training.evaluate import metrics

EYE = np.eye(100)


def test_sex_is_right_on_the_voice_s_side():
    assert metrics.sex_accuracy(np.array([0.9, 0.2, 0.6, 0.4]), "MFFM") == 50.0
    assert metrics.sex_accuracy(np.array([0.9, 0.2]), ["M", "F"]) == 100.0


def test_exactly_ten_years_are_within_ten():
    mae, within = metrics.age_errors(np.array([20.0, 30.0, 50.0]), np.array([30.0, 41.0, 50.0]))
    assert mae == pytest.approx(7.0)
    assert within == pytest.approx(200 / 3)


def test_cosine_is_of_pairs_and_knows_no_length():
    a, b = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0]]), np.array([[5.0, 0.0], [1.0, np.sqrt(3)], [1.0, 0.0]])
    np.testing.assert_allclose(metrics.cosine(a, b), [1.0, 0.5, 0.0])
    np.testing.assert_allclose(metrics.angle(np.array([1.0, 0.5, 0.0, -1.0, 1.0 + 1e-12])), [0, 60, 90, 180, 0])


def test_l1_is_a_sum_and_l2_a_length():
    a, b = np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([[3.0, -1.0], [3.0, 4.0]])
    np.testing.assert_allclose(metrics.l1(a, b), [5.0, 7.0])
    np.testing.assert_allclose(metrics.l2(a, b), [np.sqrt(13), 5.0])
    np.testing.assert_allclose(np.linalg.norm(metrics.unit(a + 1), axis=1), 1.0)


def test_retrieval_counts_who_is_nearer():
    ahead = EYE + 2 * np.roll(EYE, 1, axis=1)  # one stranger is nearer than the true row, the others are not
    assert metrics.retrieval(3 * EYE, EYE)[1] == 100.0
    assert metrics.retrieval(ahead, EYE) == {1: 0.0, 2: 100.0, 5: 100.0, 10: 100.0, 20: 100.0, 50: 100.0}


def test_retrieval_without_information_is_chance():
    same_for_all = np.ones((100, 100))
    assert metrics.retrieval(same_for_all, EYE) == pytest.approx(metrics.chance(100))
    assert metrics.retrieval(EYE, same_for_all) == pytest.approx(metrics.chance(100))
    assert metrics.chance(100) == {1: 1.0, 2: 2.0, 5: 5.0, 10: 10.0, 20: 20.0, 50: 50.0}
    assert metrics.chance(8)[50] == 100.0


def test_every_seed_of_every_gallery_counts_alike():
    queries = np.stack([EYE, np.roll(EYE, 1, axis=0)], axis=1)  # the second portrait of each is somebody else's
    halves = [np.arange(50), np.arange(50, 100)]
    halved = metrics.mean_retrieval(queries, EYE, halves)[1]  # at one edge the somebody else is in the other gallery
    assert halved == pytest.approx(50.0, abs=0.1)


@pytest.mark.parametrize(("count", "sizes"), [(600, [100] * 3), (299, [100] * 2), (100, [100]), (7, [7])])
def test_galleries_are_disjoint_and_seeded(count, sizes):
    groups = metrics.galleries(count, seed=3)
    assert [len(group) for group in groups] == sizes
    joined = np.concatenate(groups)
    assert len(set(joined.tolist())) == len(joined)
    assert joined.max() < count
    assert all(np.array_equal(a, b) for a, b in zip(groups, metrics.galleries(count, seed=3), strict=True))
    if count > 100:
        assert not np.array_equal(groups[0], metrics.galleries(count, seed=4)[0])


def test_diversity_tells_seeds_from_voices():
    x, y, z = EYE[:3]
    only_voice = np.stack([[x, x], [y, y], [z, z]])
    only_seed = np.stack([[x, y]] * 3)
    assert (metrics.same_voice(only_voice), metrics.other_voice(only_voice)) == pytest.approx((1.0, 0.0))
    assert (metrics.same_voice(only_seed), metrics.other_voice(only_seed)) == pytest.approx((0.0, 0.5))
    half = np.stack([[x, 0.5 * x + np.sqrt(0.75) * y], [z, z]])
    assert metrics.same_voice(half) == pytest.approx((0.5 + 1) / 2)
    assert metrics.other_voice(np.stack([[x, y], [y, z]])) == pytest.approx(0.25)  # one of x·y, x·z, y·y, y·z
    assert metrics.same_voice(only_voice[:, :1]) is None
    assert metrics.other_voice(only_voice[:1]) is None


def test_kid_of_two_points_is_the_kernel_s_arithmetic():
    a, b = np.tile([1.0, 0.0], (120, 1)), np.tile([0.0, 1.0], (130, 1))
    mean, deviation = metrics.kid(a, b, seed=0)
    assert mean == pytest.approx(1000 * (2 * 1.5**3 - 2 * 1.0))  # k(x, y) = (x·y / 2 + 1)^3
    assert deviation == pytest.approx(0.0, abs=1e-6)
    assert metrics.kid(a[:1], b, seed=0) is None


def test_kid_is_seeded_near_zero_for_equal_distributions_and_leaves_torch_alone():
    rng = np.random.default_rng(0)
    a, b, moved = (rng.standard_normal((300, 8)) + offset for offset in (0, 0, 1))
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    near, far = metrics.kid(a, b, seed=1), metrics.kid(a, moved, seed=1)
    assert torch.equal(torch.rand(1), expected)
    assert abs(near[0]) < 3 * near[1] / np.sqrt(metrics.KID_SUBSETS) + 30
    assert far[0] > 10 * abs(near[0])
    assert metrics.kid(a, b, seed=1) == near
    assert metrics.kid(a, b, seed=2) != near


def test_fid_of_a_shift_is_its_square_and_of_a_scale_the_trace():
    x = np.random.default_rng(0).standard_normal((500, 4))
    x -= x.mean(axis=0)
    assert metrics.fid(x, x + np.array([3.0, 0.0, 4.0, 0.0])) == pytest.approx(25.0, rel=1e-4)
    assert metrics.fid(x, 2 * x) == pytest.approx(np.trace(np.cov(x.T)), rel=1e-4)  # tr(S + 4S − 2·2S)
    assert metrics.fid(x, x) == pytest.approx(0.0, abs=1e-6)
    assert metrics.fid(x[:1], x) is None
