"Abstention and trade-offs: bounds by definition, monotone sets, coverage by simulation, hostile input."
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st
from scipy import stats

from safetune.abstention import (Conformal, ConformalCoverage, EntityCandidates, SelectiveRisk, aurc, conformal_quantile, control_risk, expected_coverage,
                                 nonconformity, risk_bound, risk_coverage, sgr, span_probabilities)
from safetune.checks import CannotRun
from safetune.data import InputError
from safetune.tradeoff import Front, Limits, Policy, break_p_values, choose

quick = settings(max_examples=40, deadline=None)
pairs = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50)


@quick
@given(pairs)
def test_risk_and_coverage_by_counting(answers):
    c, w = map(np.array, zip(*answers))
    for line in risk_coverage(c, w).itertuples():
        kept = c >= line.threshold
        assert line.n == kept.sum() and abs(line.risk - w[kept].mean()) < 1e-12 and abs(line.coverage - kept.mean()) < 1e-12
    area, excess = aurc(c, w)
    assert -1e-9 <= excess <= area <= 1 and (w.any() or area == 0)


def test_aurc_of_ties_is_the_mean_over_orders():
    import itertools
    wrong = [1, 0, 0, 1, 0]
    areas = [np.mean([np.mean(order[:k]) for k in range(1, 6)]) for order in itertools.permutations(wrong)]
    assert aurc([0.5] * 5, wrong)[0] == pytest.approx(np.mean(areas))


@quick
@given(st.integers(0, 40), st.integers(1, 60), st.sampled_from([0.01, 0.05, 0.2]))
def test_the_bound_solves_its_equation(errors, n, delta):
    errors = min(errors, n)
    b = risk_bound(errors, n, delta)
    assert b == 1 if errors == n else stats.binom.cdf(errors, n, b) == pytest.approx(delta, abs=1e-6)


@quick
@given(pairs, st.sampled_from([0.05, 0.2, 0.5]))
def test_sgr_keeps_its_own_bound(answers, target):
    c, w = map(np.array, zip(*answers))
    chosen = sgr(c, w, target)
    kept = chosen.keeps(c)
    assert chosen.threshold == math.inf and not kept.any() or (chosen.bound <= target and w[kept].mean() <= target)


@quick
@given(st.integers(0, 10_000), st.sampled_from(["lac", "aps"]))
def test_sets_grow_with_the_level_and_hold_the_calibration_rows(seed, score):
    rng = np.random.default_rng(seed)
    p, gold = rng.dirichlet(np.ones(4), 200), rng.integers(0, 4, 200)
    small, large = (Conformal(alpha, score, seed=1).fit(p, gold).sets(p) for alpha in (0.3, 0.05))
    assert (large | ~small).all()
    assert large[np.arange(200), gold].mean() >= 0.95


def test_coverage_lies_between_its_bounds_over_many_splits():
    rng, hits = np.random.default_rng(0), []
    for _ in range(300):
        scores = rng.random(100)
        hits.append((rng.random(200) <= conformal_quantile(scores, 0.1)).mean())
    assert 0.9 - 0.006 < np.mean(hits) < 0.9 + 1 / 101 + 0.006


@pytest.mark.parametrize("n", [3, 20])
@pytest.mark.parametrize("score, by_label, ties", [("lac", False, False), ("aps", False, False), ("lac", True, False), ("lac", False, True)])
def test_smoothed_sets_cover_exactly_and_plain_ones_as_the_formula_says(n, score, by_label, ties):
    rng, plain, smooth, times = np.random.default_rng(n), [], [], 300
    for t in range(times):
        p = rng.dirichlet(np.ones(3), n + 10)
        if ties:    # few distinct scores
            p = np.array([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3]])[rng.integers(0, 2, n + 10)]
        gold = np.array([rng.choice(3, p=one) for one in p])
        for found, smoothed in ((plain, False), (smooth, True)):
            fitted = Conformal(0.2, score, by_label=by_label, smoothed=smoothed, seed=t).fit(p[:n], gold[:n], ["g"] * n)
            found.append(fitted.sets(p[n:], ["g"] * 10)[np.arange(10), gold[n:]].mean())
    error = 4 * np.std(smooth) / times ** 0.5
    assert abs(np.mean(smooth) - 0.8) < error
    if not by_label:
        assert np.mean(plain) >= expected_coverage(n, 0.2) - error and (ties or np.mean(plain) <= expected_coverage(n, 0.2) + error)


def test_an_unseen_group_gets_all_labels_when_smoothed_too():
    rng = np.random.default_rng(0)
    p, gold = rng.dirichlet(np.ones(3), 40), rng.integers(0, 3, 40)
    fitted = Conformal(smoothed=True).fit(p, gold, ["a"] * 40)
    assert fitted.sets(p, ["b"] * 40).all() and not fitted.sets(p, ["a"] * 40).all()
    assert (fitted.sets(p, ["a"] * 40) == fitted.sets(p, ["a"] * 40)).all()


@quick
@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=4), min_size=1, max_size=30), st.sampled_from([0.1, 0.3]))
def test_risk_control_picks_the_highest_threshold(scores, alpha):
    scores = [np.array(s) for s in scores]
    fitted = EntityCandidates(["O", "B-X"], alpha).fit_scores(scores)
    grid = sorted({float(v) for s in scores for v in s if v > 0} | {1.0})
    def corrected(t): return (sum((s < t).mean() for s in scores) + 1) / (len(scores) + 1)
    assume(all(abs(corrected(t) - alpha) > 1e-9 for t in grid))    # at equality the rounding of a sum decides
    fine = [t for t in grid if corrected(t) <= alpha]
    assert fitted.threshold == (max(fine) if fine else -math.inf)
    assert fitted.threshold == control_risk(lambda t: np.array([(s < t).mean() for s in scores]), grid, alpha)


def test_hostile_probabilities():
    for bad in ([[np.nan, 1]], [[-1, 2]], [0.5, 0.5]):
        with pytest.raises(InputError):
            nonconformity(np.array(bad, dtype=float))
    with pytest.raises(CannotRun):
        Conformal().fit(np.zeros((0, 2)), [])
    with pytest.raises(InputError):
        Conformal().sets(np.array([[0.5, 0.5]]))
    with pytest.raises(CannotRun):
        risk_coverage([np.nan], [0])
    assert np.isfinite(span_probabilities(np.zeros((2, 3)), [(0, 2)], ["O", "B-X", "I-X"])).all()
    bare = type("P", (), {"predict": lambda self, rows: [{"label": "a"}], "task": type("T", (), {"labels": ["a", "b"]})()})()
    fitted = Conformal().fit(np.full((50, 2), 0.5), np.zeros(50, dtype=int))
    assert SelectiveRisk(0.5)(bare, [{"text": "x", "label": "a"}]).verdict == "not run"
    assert ConformalCoverage(fitted)(bare, [{"text": "x", "label": "a"}]).verdict == "not run"


@quick
@given(st.integers(0, 10_000), st.integers(1, 3))
def test_a_policy_of_the_front_does_what_its_table_says(seed, groups):
    rng = np.random.default_rng(seed)
    c, w, g = rng.random(80), rng.random(80) < 0.3, rng.integers(0, groups, 80).astype(str)
    front = Front(c, w, g, levels=5)
    for number in rng.integers(0, len(front.table), 5):
        kept, line = front.policy(number).keeps(c, g), front.table.iloc[number]
        assert kept.mean() == pytest.approx(line["coverage"])
        assert (w[kept].mean() if kept.any() else 0) == pytest.approx(line["risk"])
        each = [kept[g == name].mean() for name in set(g)]
        assert max(each) - min(each) == pytest.approx(line["gap"])


def test_p_values_of_broken_limits():
    counts = np.array([[[100, 50, 1], [100, 50, 1]]])
    p = break_p_values(counts, Limits(risk=0.1))
    assert p[0] == pytest.approx(stats.binom.cdf(2, 100, 0.1))
    assert break_p_values(counts, Limits(risk=0.1, coverage=0.6))[0] > 0.9
    assert break_p_values(np.array([[[100, 90, 1], [100, 10, 0]]]), Limits(risk=0.5, gap=0.3))[0] > 0.99
    assert not choose(np.full(40, 0.5), np.ones(40), limits=Limits(risk=0.1)).certified
    assert Policy({}).keeps([0.9]).tolist() == [False]
