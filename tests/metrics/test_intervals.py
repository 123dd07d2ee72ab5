"""The clustered bootstrap against a plain loop, and against what an interval promises."""

import time

import numpy as np
import pytest

from sidr_core.metrics import intervals
from sidr_core.metrics.intervals import (
    bootstrap,
    differences,
    draw_means,
    judge,
    judge_family,
    least_draws,
    p_of,
    paired,
    share_summary,
    smallest_detectable,
    summary,
    unseen_share,
)

OPTIONS = {"draws": 500, "confidence": 0.9, "seed": 5}


def loop(values: np.ndarray, users: list[str], draws: int, confidence: float, seed: int):
    """Draw users one by one, collect their rows, average, take percentiles."""
    names = sorted(set(users))
    generator = np.random.default_rng(seed)
    picks = generator.integers(len(names), size=(draws, len(names)))
    means = []
    for pick in picks:
        rows = [row for p in pick for row, user in zip(values, users, strict=True) if user == names[p]]
        means.append(np.mean(rows, axis=0))
    return np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)


def test_equals_a_loop_over_users():
    values = np.random.default_rng(1).random((13, 3))
    users = list("abbcccddddeee")
    found = bootstrap(values, users, **OPTIONS)
    low, high = loop(values, users, **OPTIONS)
    np.testing.assert_allclose(found.value, values.mean(axis=0))
    np.testing.assert_allclose(found.low, low)
    np.testing.assert_allclose(found.high, high)


def test_one_row_per_user_is_the_ordinary_bootstrap():
    values = np.random.default_rng(2).random((40, 1))
    found = bootstrap(values, [f"{i:02d}" for i in range(40)], **OPTIONS)
    picks = np.random.default_rng(5).integers(40, size=(500, 40))
    means = values[picks, 0].mean(axis=1)
    np.testing.assert_allclose([found.low[0], found.high[0]], np.quantile(means, [0.05, 0.95]))


def test_row_order_and_user_names_do_not_matter():
    values = np.random.default_rng(3).random((30, 2))
    users = np.repeat(np.arange(10), 3)
    shuffle = np.random.default_rng(4).permutation(30)
    a, b = bootstrap(values, users, **OPTIONS), bootstrap(values[shuffle], users[shuffle], **OPTIONS)
    np.testing.assert_allclose([a.low, a.high], [b.low, b.high])
    assert not np.array_equal(a.low, bootstrap(values, users, **{**OPTIONS, "seed": 6}).low)


def test_blocks_only_bound_the_memory(monkeypatch):
    values = np.random.default_rng(3).random((30, 2))
    users = np.repeat(np.arange(10), 3)
    whole = bootstrap(values, users, **OPTIONS)
    monkeypatch.setattr(intervals, "_BLOCK", 70)  # 7 draws at a time
    parts = bootstrap(values, users, **OPTIONS)
    np.testing.assert_allclose([whole.low, whole.high], [parts.low, parts.high])


def test_clustering_widens_the_interval_of_users_whose_rows_agree():
    """Every user's ten rows are equal, so there are 20 observations, not 200."""
    each = np.random.default_rng(0).random(20)
    values = np.repeat(each, 10)[:, None]
    clustered = bootstrap(values, np.repeat(np.arange(20), 10), **OPTIONS)
    naive = bootstrap(values, np.arange(200), **OPTIONS)
    ratio = (clustered.high - clustered.low)[0] / (naive.high - naive.low)[0]
    assert 2.5 < ratio < 4  # sqrt(10) = 3.16


def test_coverage_is_near_the_confidence():
    """80 users of unequal size with a random effect each; the truth is 0.3."""
    generator = np.random.default_rng(11)
    sizes = generator.integers(1, 6, 80)
    users = np.repeat(np.arange(80), sizes)
    covered = 0
    for trial in range(300):
        effect = generator.beta(3, 7, 80)  # mean 0.3
        values = (generator.random(len(users)) < effect[users]).astype(float)[:, None]
        found = bootstrap(values, users, draws=300, confidence=0.9, seed=trial)
        covered += found.low[0] <= 0.3 <= found.high[0]
    assert 0.84 <= covered / 300 <= 0.95


def test_paired_counts_and_verdicts():
    users = np.arange(60)
    b = np.zeros((60, 3))
    a = np.zeros((60, 3))
    a[:50, 0] = 1  # helps 50 of 60
    b[:50, 1] = 1  # harms 50 of 60
    a[:5, 2], b[5:10, 2] = 1, 1  # helps 5, harms 5
    found = paired(a, b, users, **OPTIONS)
    np.testing.assert_allclose(found.interval.value, [50 / 60, -50 / 60, 0])
    assert found.helped.tolist() == [50, 0, 5]
    assert found.harmed.tolist() == [0, 50, 5]
    assert found.same.tolist() == [10, 10, 50]
    words = [verdict.word for verdict in judge(found.interval.value, found.p, 0.9)]
    assert words == ["higher", "lower", "not distinguishable"]
    # All 500 draws are above 0, or below: the least p, times 3 and 2 for the family.
    assert found.p[:2].tolist() == pytest.approx([2 / 501] * 2)
    assert [verdict.p_holm for verdict in judge(found.interval.value, found.p, 0.9)][:2] == pytest.approx([6 / 501] * 2)


def test_equal_models_are_not_distinguishable_and_no_interval_is_a_point():
    a = np.random.default_rng(1).random((20, 1))
    found = paired(a, a, np.arange(20), **OPTIONS)
    # Of 20 users none differs: up to 1 - 0.05 ** (1 / 20) of all may.
    assert (found.interval.low[0], found.interval.high[0]) == pytest.approx((-0.13911, 0.13911), abs=1e-5)
    assert found.p[0] == 1 and found.se[0] == pytest.approx(0.13911 / 1.64485, abs=1e-5)
    assert judge(found.interval.value, found.p, 0.9)[0].word == "not distinguishable"


@pytest.mark.parametrize(("value", "low", "high"), [(0.0, 0.0, 0.13911), (1.0, 0.86089, 1.0)])
def test_what_no_user_had_some_user_may_have(value, low, high):
    values, users = np.full((40, 1), value), np.repeat(np.arange(20), 2)
    means = draw_means(values, users, draws=50, seed=1)
    assert summary(values, means, 0.9).low == summary(values, means, 0.9).high == value
    found = share_summary(values, means, 20, 0.9)
    assert (found.low[0], found.high[0]) == pytest.approx((low, high), abs=1e-5)
    # The bound is exact: so many users without one have a chance of 0.05 where the share is at it.
    assert (1 - unseen_share(20, 0.9)) ** 20 == pytest.approx(0.05)


def test_few_users_who_differ_give_no_small_p():
    """Four users, all better: draws without any of them are rare, but four equal signs have a chance of 1 in 8."""
    a, b = np.zeros((500, 1)), np.zeros((500, 1))
    a[:4] = 1
    found = paired(a, b, np.arange(500), draws=2000, confidence=0.95, seed=1)
    assert p_of(draw_means(a - b, np.arange(500), draws=2000, seed=1))[0] < 0.05
    assert found.p[0] == 2 / 2**4


def test_the_standard_error_is_clustered_and_gives_the_smallest_detectable_difference():
    each = np.random.default_rng(0).normal(0, 0.1, 400)
    gap, users = np.repeat(each, 3)[:, None], np.repeat(np.arange(400), 3)
    found = paired(gap, np.zeros_like(gap), users, draws=4000, confidence=0.95, seed=2)
    assert found.se[0] == pytest.approx(each.std(ddof=1) / 20, rel=0.05)
    # 1.960 + 0.842 standard errors alone; as one of 20, 3.023 + 0.842.
    assert smallest_detectable(0.01, 0.95) == pytest.approx(0.028016, abs=1e-6)
    assert smallest_detectable(0.01, 0.95, 20) == pytest.approx(0.038650, abs=1e-6)


def test_the_smallest_detectable_difference_is_found_in_80_of_100_cases():
    generator, users = np.random.default_rng(5), np.arange(300)
    true = smallest_detectable(0.1 / 300**0.5, 0.95)
    cases = [
        paired(generator.normal(true, 0.1, (300, 1)), np.zeros((300, 1)), users, draws=400, confidence=0.95, seed=n)
        for n in range(200)
    ]
    assert 0.72 <= np.mean([case.p[0] < 0.05 for case in cases]) <= 0.88


def test_a_difference_lies_within_a_margin_only_where_enough_users_say_so():
    generator = np.random.default_rng(3)

    def within(users: int, shift: float) -> float:
        gap = generator.normal(shift, 0.02, (users, 1))
        options = {"draws": 1000, "confidence": 0.95, "seed": 1}
        return paired(gap, np.zeros_like(gap), np.arange(users), **options, margin=0.005).p_within[0]

    assert within(2000, 0.0) == pytest.approx(1 / 1001, abs=1e-4)
    assert within(2000, 0.005) > 0.05 and within(2000, 0.01) > 0.9
    assert within(60, 0.0) > 0.5
    # Equal lists of few users prove no more: 0.995 ** 60.
    same = paired(np.zeros((60, 1)), np.zeros((60, 1)), np.arange(60), **OPTIONS, margin=0.005)
    assert same.p_within[0] == pytest.approx(0.995**60)
    assert paired(np.zeros((60, 1)), np.zeros((60, 1)), np.arange(60), **OPTIONS).p_within[0] == 1


def test_equal_models_are_equal_however_their_draws_are_rounded():
    """All lists are drawn in one matrix product, whose last columns may be rounded otherwise than the first."""
    own = np.random.default_rng(3).random((201, 1))
    users = np.arange(201)
    means = draw_means(np.hstack([own] * 7), users, draws=500, seed=5)
    for a, b in ((0, 6), (3, 4)):
        assert differences((own - own), means[:, [a]] - means[:, [b]], users, 0.9).p[0] == 1
    noise = np.where(np.arange(500) % 10 == 0, -1e-17, 3e-17)[:, None]
    found = differences(own - own, noise, users, 0.9)
    assert found.p[0] == 1
    assert judge(found.interval.value, found.p, 0.9)[0].word == "not distinguishable"
    # What is no rounding is kept.
    assert p_of(np.full((500, 1), 1e-9))[0] == pytest.approx(2 / 501)


def test_a_difference_of_nothing_has_no_direction():
    assert [v.word for v in judge([0.0, 0.1], [0.001, 0.001], 0.95)] == ["not distinguishable", "higher"]


def test_words_need_a_corrected_p_below_the_level():
    """0.03 alone is below 0.05; as one of two it is 0.06."""
    assert [v.word for v in judge([0.2], [0.03], 0.95)] == ["higher"]
    assert [v.word for v in judge([-0.2], [0.03], 0.95)] == ["lower"]
    assert [v.word for v in judge([0.2, 0.1], [0.03, 0.9], 0.95)] == ["not distinguishable"] * 2
    assert [v.word for v in judge([0.2], [0.05], 0.95)] == ["not distinguishable"]  # at the level is not below it
    assert judge([], [], 0.95) == []


def test_a_difference_of_draws_is_the_draw_of_the_difference():
    """One resampling serves every model and every pair."""
    a, b = np.random.default_rng(6).random((2, 40, 3))
    users = np.repeat(np.arange(10), [1, 7, 4, 4, 4, 4, 4, 4, 4, 4])
    options = {"draws": 50, "seed": 1}
    apart = draw_means(a, users, **options) - draw_means(b, users, **options)
    np.testing.assert_allclose(apart, draw_means(a - b, users, **options))
    np.testing.assert_allclose(p_of(apart), paired(a, b, users, confidence=0.9, **options).p)


@pytest.mark.parametrize(("family", "confidence"), [(1, 0.95), (22, 0.95), (60, 0.95), (3, 0.9)])
def test_least_draws_are_the_fewest_that_can_decide(family, confidence):
    draws = least_draws(family, confidence)
    for number, decided in ((draws, True), (draws - 1, False)):
        p = [2 / (number + 1)] + [1.0] * (family - 1)
        assert (judge([1.0] * family, p, confidence)[0].word == "higher") == decided


def test_a_table_is_judged_as_one_family_of_its_rows_with_a_p():
    rows = [{"gap": 0.1, "p": 0.01}, {"gap": 0.5}, {"gap": -0.1, "p": 0.02}, {"gap": 0.2, "p": None}]
    judge_family(rows, 0.95, "gap")
    assert rows == [
        {"gap": 0.1, "p": 0.01, "p_holm": 0.02, "verdict": "higher"},
        {"gap": 0.5},
        {"gap": -0.1, "p": 0.02, "p_holm": 0.02, "verdict": "lower"},
        {"gap": 0.2, "p": None},
    ]


def test_pairing_is_narrower_than_two_separate_intervals():
    generator = np.random.default_rng(8)
    common = generator.random((200, 1))
    a, b = common + 0.02 + 0.01 * generator.random((200, 1)), common
    found = paired(a, b, np.arange(200), **OPTIONS)
    alone = bootstrap(a, np.arange(200), **OPTIONS)
    assert judge(found.interval.value, found.p, 0.9)[0].word == "higher"
    assert (found.interval.high - found.interval.low)[0] < 0.2 * (alone.high - alone.low)[0]


def test_refuses_what_has_no_interval():
    with pytest.raises(ValueError, match="at least 2"):
        bootstrap(np.ones((3, 1)), ["u", "u", "u"], **OPTIONS)
    with pytest.raises(ValueError, match="must match"):
        paired(np.ones((3, 1)), np.ones((2, 1)), ["u", "v", "w"], **OPTIONS)


def test_the_size_of_a_real_split_takes_seconds(capsys):
    """10,000 draws of 5,000 rows × 12 metrics: intervals, and differences with their p-values."""
    generator = np.random.default_rng(0)
    values, users = generator.random((5000, 12)), generator.integers(2000, size=5000)
    started = time.perf_counter()
    bootstrap(values, users, draws=10_000, confidence=0.95, seed=1)
    middle = time.perf_counter()
    paired(values, values[::-1], users, draws=10_000, confidence=0.95, seed=1)
    ended = time.perf_counter()
    with capsys.disabled():
        print(f"\n10,000 draws, 5,000 rows × 12: intervals {middle - started:.2f} s, paired {ended - middle:.2f} s")
    assert ended - started < 40
