"""Gates and results say what the interval says; the statistics agree with scipy and with brute force; intervals cover."""
import itertools
import json
import math
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from safetune.checks import (VERDICTS, CannotRun, Check, Gate, Result, benjamini_hochberg, cluster_bootstrap,
                             cluster_difference, correct, detection_table, gate_p_value, holm, minimum_detectable,
                             newcombe, paired_permutation, permutation_test, plot_detection, plot_parts, wilson)
from safetune.data import InputError
from safetune.metrics import Interval, bootstrap_interval

numbers = st.floats(-5, 5, allow_nan=False)
p_values = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def share(sums):
    return sums[..., 0] / sums[..., 1]


def f1(sums):
    return 2 * sums[..., 0] / (sums[..., 1] + sums[..., 2])


settings.register_profile("slow machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("slow machine")


# gates and results

@given(numbers, numbers, numbers, st.sampled_from(["max", "min"]))
def test_a_gate_says_where_the_interval_lies(a, b, limit, kind):
    low, high = sorted((a, b))
    verdict = Gate(kind, limit).verdict(Interval((low + high) / 2, low, high, 10))
    good = [value <= limit if kind == "max" else value >= limit for value in (low, high)]
    strictly_bad = [value > limit if kind == "max" else value < limit for value in (low, high)]
    assert verdict == ("pass" if all(good) else "fail" if all(strictly_bad) else "not enough evidence")


@given(numbers, st.floats(0, 3), st.floats(0, 3), numbers, st.sampled_from(["max", "min"]))
def test_the_p_value_of_a_gate_is_its_interval(value, down, up, limit, kind):
    "A fail has p at most 2.5%, everything else at least that."
    interval, gate = Interval(value, value - down, value + up, 10), Gate(kind, limit)
    p = gate_p_value(interval, gate)
    assert 0 <= p <= 1
    assert p <= 0.025 + 1e-9 if gate.verdict(interval) == "fail" else p >= 0.025 - 1e-9


texts = st.text(max_size=20)


@st.composite
def results(draw, depth=1):
    "Any result, with parts one level deep."
    ends = draw(st.one_of(st.tuples(numbers, numbers).map(sorted), st.just((-math.inf, math.inf)),
                          numbers.map(lambda low: (low, math.inf)), numbers.map(lambda high: (-math.inf, high))))
    interval = Interval(draw(numbers), *ends, draw(st.integers(1, 10 ** 6)), 0.95, draw(texts))
    reason = draw(st.one_of(st.none(), st.just("no rows")))
    return Result(draw(texts), draw(texts), None if reason else interval, draw(texts),
                  draw(st.one_of(st.none(), st.builds(Gate, st.sampled_from(["max", "min"]), numbers))),
                  draw(st.one_of(st.none(), st.floats(0, 1))), draw(texts),
                  draw(st.lists(st.dictionaries(texts, st.one_of(texts, st.floats(), st.integers(), st.none())), max_size=2)),
                  draw(st.lists(results(depth=0), max_size=3)) if depth else (), reason=reason)


@settings(max_examples=30)
@given(st.lists(results(), min_size=1, max_size=3))
def test_any_result_survives_json_and_shows_itself(found):
    correct(found)
    for result in found:
        text = result.to_json()
        again = Result.from_dict(json.loads(text, parse_constant=pytest.fail))  # NaN is not JSON
        assert again.to_dict() == result.to_dict() and again.verdict == result.verdict in VERDICTS
        assert len(result.to_frame()) == max(1, len(result.parts))
        assert result.sentence and result.decision and result._repr_html_().startswith("<div>")


@pytest.mark.parametrize("field", ["name", "measure", "unit", "sentence", "rows", "reason"])
def test_html_is_escaped(field):
    evil = '"><img src=x onerror=alert(1)>'
    options = {"name": "a", "measure": "b", "unit": "rows", "sentence": "", "rows": [], "reason": None}
    options[field] = [{evil: evil}] if field == "rows" else evil
    interval = None if field == "reason" else Interval(0.1, 0.0, 0.2, 9, method=evil)
    one = Result(interval=interval, gate=Gate("max", 0.3), **options)
    for shown in (one, Result("whole", "b", Interval(0.1, 0, 0.2, 9), parts=[one])):
        assert "<img" not in shown._repr_html_()


def test_from_dict_refuses_what_is_no_result():
    whole = Result("a", "b", Interval(0.1, 0.0, 0.2, 9), gate=Gate("max", 0.3)).to_dict()
    for broken in ({}, [], None, whole | {"gate": {"kind": "most", "limit": 1}}, whole | {"parts": [1]},
                   whole | {"gate": {"limit": 1}}, {key: value for key, value in whole.items() if key != "n"}):
        with pytest.raises(InputError):
            Result.from_dict(broken)


def test_a_check_hides_no_other_error():
    class Broken(Check):
        def run(self, predictor, data):
            raise {"cannot": CannotRun("no rows"), "bug": ZeroDivisionError()}[data]
    assert Broken()(None, "cannot").verdict == "not run"
    with pytest.raises(ZeroDivisionError):
        Broken()(None, "bug")


def test_undecided_results_say_what_would_decide():
    "About 80% of samples of the size that is named decide, if the value is true."
    interval = wilson(180, 200)
    result = Result("recall", "recall", interval, "names", Gate("min", 0.87))
    assert result.verdict == "not enough evidence" and "80% power" in result.sentence
    needed = int(result.sentence.split("about ")[1].split(" names")[0].replace(",", ""))
    rng = np.random.default_rng(0)
    decided = [result.gate.verdict(wilson(k, needed)) == "pass" for k in rng.binomial(needed, 0.9, 1000)]
    assert 0.7 < np.mean(decided) < 0.9


def test_minimum_detectable_gap_has_the_power_it_says():
    "Draw estimates that gap away from the limit: 80% of their intervals clear it."
    error = 0.02
    drawn = np.random.default_rng(0).normal(minimum_detectable(error), error, 20_000)
    assert abs(np.mean(drawn - stats.norm.ppf(0.975) * error > 0) - 0.8) < 0.01


# intervals

@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_is_scipys(case, confidence):
    k, n = case
    expected = stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    found = wilson(k, n, confidence)
    assert np.allclose([found.low, found.high], [expected.low, expected.high], atol=1e-12)


@given(*[st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))] * 2)
def test_newcombe_is_antisymmetric_and_stays_in_bounds(a, b):
    one, other = newcombe(*a, *b), newcombe(*b, *a)
    assert np.allclose([one.low, one.high], [-other.high, -other.low])
    assert -1 <= one.low < one.value + 1e-12 and one.value - 1e-12 < one.high <= 1 and one.low < one.high


@settings(max_examples=60)
@given(st.integers(1, 40), st.integers(0, 10 ** 6), st.sampled_from([(0, 1), (0, 1), (0.5, 0.5), (1, 0)]))
def test_no_interval_has_zero_width(n, seed, shape):
    "Whatever the counts, a bounded interval has width and holds the value; a gate at the value does not pass."
    rng = np.random.default_rng(seed)
    gold = rng.integers(1, 4, n)
    right = rng.binomial(gold, rng.uniform(*sorted(shape), n) if shape[0] != shape[1] else shape[0])
    found = cluster_bootstrap(np.stack([right, gold], axis=1), share, resamples=200, seed=seed)
    assert 0 <= found.low <= found.value <= found.high <= 1 and found.high - found.low > 0.01
    assert found.value == 1 or Gate("max", found.value).verdict(found) != "pass"
    assert found.value == 0 or Gate("min", found.value).verdict(found) != "pass"


def test_percentile_method_is_that_of_metrics():
    rng = np.random.default_rng(0)
    gold = rng.poisson(2, 300)
    table = np.stack([rng.binomial(gold, 0.9), gold, gold], axis=1)
    ours = cluster_bootstrap(table, f1, method="percentile", seed=4)
    theirs = bootstrap_interval(table, lambda sums: {"f1": f1(sums)}, seed=4)["f1"]
    assert (ours.low, ours.high) == (theirs.low, theirs.high)


def test_score_interval_of_single_trials_is_nearly_wilsons():
    "With one trial a cluster, and m - 1 degrees of freedom, nothing but Wilson's formula is left."
    for k, n in [(450, 500), (490, 500), (100, 1000)]:
        counts = np.repeat([[1, 1], [0, 1]], [k, n - k], axis=0)
        found, expected = cluster_bootstrap(counts, share, resamples=20_000, few=False), wilson(k, n)
        assert np.allclose([found.low, found.high], [expected.low, expected.high], atol=0.0015)


def test_rows_of_a_cluster_are_no_evidence_of_their_own():
    "Ten copies of each row leave the interval as it was; without the keys it shrinks to about a third."
    rng = np.random.default_rng(1)
    table = np.stack([rng.binomial(1, 0.8, 100), np.ones(100)], axis=1)
    copies, keys = np.repeat(table, 10, axis=0), np.repeat([f"user {i}" for i in range(100)], 10)
    single, naive = cluster_bootstrap(table, share), cluster_bootstrap(copies, share)
    clustered = cluster_bootstrap(copies, share, keys)
    assert clustered.n == 100 and naive.n == 1000
    assert abs((clustered.high - clustered.low) / (single.high - single.low) - 1) < 0.1
    assert (naive.high - naive.low) / (single.high - single.low) < 0.4


def test_distinct_numbers_in_chunks_give_the_standard_error():
    "Many distinct rows take the other path; the bootstrap error of a mean is its formula."
    values = np.random.default_rng(0).normal(0.5, 0.1, 5000)
    found = cluster_bootstrap(np.stack([values, np.ones(5000)], axis=1), share, bounds=None, few=False)
    half = stats.t.ppf(0.975, 4999) * values.std(ddof=1) / 5000 ** 0.5
    assert abs((found.high - found.low) / (2 * half) - 1) < 0.05


def test_few_clusters_take_the_t_quantile():
    "Six clusters: a normal quantile would be a quarter too short, and the bootstrap variance without 6/5 a tenth more."
    values = np.array([0.1, 0.4, 0.5, 0.6, 0.7, 0.9])
    found = cluster_bootstrap(np.stack([values, np.ones(6)], axis=1), share, bounds=None, few=False, resamples=20_000)
    half = stats.t.ppf(0.975, 5) * values.std(ddof=1) / 6 ** 0.5
    assert abs((found.high - found.low) / (2 * half) - 1) < 0.03
    # one cluster holds most of the spread: the kurtosis leaves fewer degrees of freedom
    odd = np.stack([[0.9] * 19 + [0.1], np.ones(20)], axis=1)
    careful, plain = (cluster_bootstrap(odd, share, few=few) for few in (True, False))
    assert careful.high - careful.low > 1.3 * (plain.high - plain.low)


def sentences(n, rng):
    "Counts of sentences whose entities share a difficulty, F1 about 0.95."
    ease, gold = rng.beta(3.8, 0.4, n), rng.poisson(2.5, n)
    right = rng.binomial(gold, ease)
    return np.stack([right, right + rng.binomial(gold - right, 0.5) + rng.poisson(0.5 * (1 - ease)), gold], axis=1)


@pytest.mark.parametrize("n", [30, 100])
def test_coverage_of_f1(n):
    "95% nominal within 93 to 97 (give or take two standard errors of 600 draws); the percentile interval fails this."
    mean = 3.8 / 4.2
    truth = 5 * mean / (2.5 * mean + 2.5 * (1 - mean) * 0.5 + 0.5 * (1 - mean) + 2.5)
    rng = np.random.default_rng(0)
    found = [cluster_bootstrap(sentences(n, rng), f1, resamples=500, seed=i) for i in range(600)]
    covered = np.mean([i.low <= truth <= i.high for i in found])
    assert 0.93 - 0.018 <= covered <= 0.97 + 0.018
    rng = np.random.default_rng(0)
    plain = [cluster_bootstrap(sentences(n, rng), f1, resamples=500, seed=i, method="percentile") for i in range(600)]
    assert np.mean([i.low <= truth <= i.high for i in plain]) < covered


def test_coverage_of_rates_and_their_difference():
    "Truth drawn anew: Wilson and Newcombe are within 93 to 97 on average."
    rng = np.random.default_rng(0)
    for n in (20, 50, 200):
        truth = rng.uniform(0.7, 0.99, (1500, 2))
        right = rng.binomial(n, truth)
        ones = [wilson(int(k), n) for k in right[:, 0]]
        gaps = [newcombe(int(a), n, int(b), n) for a, b in right]
        assert 0.92 < np.mean([i.low <= p <= i.high for i, p in zip(ones, truth[:, 0])]) < 0.975
        assert 0.92 < np.mean([i.low <= p <= i.high for i, p in zip(gaps, truth[:, 0] - truth[:, 1])]) < 0.975


def test_coverage_of_a_gap_with_a_small_group():
    "The plain bootstrap of the gap covers in about 83% here; the joined intervals hold their 95%."
    rng, hits, plain = np.random.default_rng(0), 0, 0
    for i in range(300):
        big = np.stack([rng.binomial(1, 0.95, 300), np.ones(300)], axis=1)
        small = np.stack([rng.binomial(1, 0.95, 25), np.ones(25)], axis=1)
        found = cluster_difference(small, big, share, resamples=300, seed=i)
        hits += found.low <= 0 <= found.high
        both = np.block([[small, np.zeros((25, 2))], [np.zeros((300, 2)), big]])
        naive = cluster_bootstrap(both, lambda s: share(s[..., :2]) - share(s[..., 2:]), resamples=300, seed=i,
                                  bounds=(-1, 1), method="percentile")
        plain += naive.low <= 0 <= naive.high
    assert 0.92 <= hits / 300 <= 0.99 and plain < hits


def test_difference_of_groups_that_share_clusters():
    "Shared difficulty moves both groups together: the interval is shorter than without the keys, and turns with the sign."
    rng = np.random.default_rng(0)
    ease = rng.beta(0.8, 0.2, 400)
    a, b = (np.stack([rng.binomial(3, ease), np.full(400, 3)], axis=1) for _ in range(2))
    keys = np.arange(400)
    shared, apart = cluster_difference(a, b, share, keys, keys), cluster_difference(a, b, share)
    assert (shared.n, apart.n) == (400, 800) and shared.high - shared.low < 0.8 * (apart.high - apart.low)
    back = cluster_difference(b, a, share, keys, keys)
    assert np.allclose([back.low, back.high], [-shared.high, -shared.low], atol=0.002)
    same = cluster_difference(a, a, share, keys, keys)    # a pair that never differs is no proof of equality
    assert same.low < -0.005 and same.high > 0.005


def test_two_thousand_resamples_of_ten_thousand_sentences():
    "Under 2 s on a free core; the bound is wide for a loaded machine. A loop over resamples takes far longer."
    rng = np.random.default_rng(0)
    gold = rng.poisson(2.5, 10_000)
    counts = np.stack([rng.binomial(gold, 0.9), gold, gold], axis=1)
    distinct = np.stack([rng.random(10_000), np.ones(10_000)], axis=1)
    for table, statistic in ((counts, f1), (distinct, share)):
        start = time.process_time()
        cluster_bootstrap(table, statistic, resamples=2000)
        assert time.process_time() - start < 6


@pytest.mark.parametrize("counts", [[], np.zeros((0, 2)), [[np.nan, 1]], [[np.inf, 1]], np.zeros((4, 2))])
def test_nothing_to_resample_cannot_run(counts):
    with pytest.raises(CannotRun):
        cluster_bootstrap(counts, lambda sums: sums[..., 0] / sums[..., -1])


def test_wrong_bounds_are_noticed():
    "A difference with the bounds of a share, even if the value itself is inside."
    counts = np.array([[1, 1], [-1, 1], [1, 1], [-1, 1]])
    with pytest.raises(InputError, match=r"bounds=\(-1, 1\)"):
        cluster_bootstrap(counts, share)
    found = cluster_bootstrap(counts, share, bounds=(-1, 1))
    assert -1 <= found.low < 0 < found.high <= 1


# permutation

@settings(max_examples=40)
@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=9))
def test_exact_paired_test_is_brute_force(rows):
    a, b, cluster = (np.array(column) for column in zip(*rows))
    sums = np.array([(a - b)[cluster == key].sum() for key in np.unique(cluster)])
    totals = [abs(np.dot(signs, sums)) for signs in itertools.product((-1, 1), repeat=len(sums))]
    expected = np.mean(np.array(totals) >= abs(sums.sum()) - 1e-9)
    mean, p = paired_permutation(a, b, cluster)
    assert math.isclose(mean, (a - b).mean()) and math.isclose(p, expected)


def test_random_paired_test_is_scipys():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.15, 1, 60), rng.normal(0, 1, 60)
    expected = stats.permutation_test((a, b), lambda x, y, axis: (x - y).mean(axis=axis), permutation_type="samples",
                                      vectorized=True, n_resamples=9999, rng=0).pvalue
    assert abs(paired_permutation(a, b)[1] - expected) < 0.02


def test_group_test_is_scipys():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.4, 1, 40), rng.normal(0, 1, 50)
    expected = stats.permutation_test((a, b), lambda x, y, axis: np.abs(x.mean(axis=axis) - y.mean(axis=axis)),
                                      vectorized=True, n_resamples=9999, alternative="greater", rng=0).pvalue
    gap, p = permutation_test(np.r_[a, b], ["a"] * 40 + ["b"] * 50)
    assert math.isclose(gap, abs(a.mean() - b.mean())) and abs(p - expected) < 0.02


def test_p_values_are_never_zero_and_repeat():
    values, groups = np.r_[np.zeros(500), np.ones(500)], np.repeat([0, 1], 500)
    assert permutation_test(values, groups, resamples=99) == (1.0, 0.01)
    assert paired_permutation(values + 1, values, resamples=99)[1] == 0.01
    rng = np.random.default_rng(0)
    a, b = rng.random(100), rng.random(100)
    assert paired_permutation(a, b, seed=1) == paired_permutation(a, b, seed=1) != paired_permutation(a, b, seed=2)


def test_clusters_protect_the_group_test():
    "Users answer in runs: with the keys about 5% of clean samples are accused, without them many more."
    def accused(clustered):
        rng, found = np.random.default_rng(0), []
        for i in range(150):
            user = np.arange(40).repeat(5)
            right = rng.random(200) < rng.beta(1, 1, 40)[user]
            found.append(permutation_test(right, user % 2, user if clustered else None, 99, i)[1] <= 0.05)
        return np.mean(found)
    assert accused(True) < 0.11 < accused(False)


# many tests

@given(p_values)
def test_corrections_are_ordered_and_bounded(p):
    bh, strict = benjamini_hochberg(p), holm(p)
    bonferroni = np.minimum(1, len(p) * np.array(p))
    for smaller, larger in [(np.array(p), bh), (bh, strict), (strict, bonferroni)]:
        assert (smaller <= larger + 1e-12).all()
    order = np.argsort(p)
    assert (np.diff(bh[order]) >= -1e-12).all() and (np.diff(strict[order]) >= -1e-12).all()
    # the step-down rule itself: reject while p <= 5% / (tests left)
    rejected = list(itertools.takewhile(lambda i: p[order[i]] * (len(p) - i) <= 0.05, range(len(p))))
    assert (strict <= 0.05).sum() == len(rejected)


def test_the_family_is_the_whole_audit():
    def one(name, p, parts=()):
        return Result(name, "gap", Interval(0.1, 0.06, 0.14, 100), gate=Gate("max", 0.05), p_value=p, parts=parts)
    audit = [one("a", 0.01, [one("b", 0.02), one("c", None)]), one("d", 0.9), Result("e", "x", reason="no rows")]
    correct(audit, "holm")
    assert [audit[0].p_adjusted, audit[0].parts[0].p_adjusted, audit[1].p_adjusted] == pytest.approx([0.03, 0.04, 0.9])
    assert audit[0].tests == 3 and audit[0].parts[1].p_adjusted is None and audit[2].p_adjusted is None
    assert [r.verdict for r in audit] == ["fail", "not enough evidence", "not run"]


@pytest.mark.parametrize("call", [lambda: benjamini_hochberg([]), lambda: holm([0.1, float("nan")]), lambda: holm([1.2]),
                                  lambda: wilson(0, 0), lambda: wilson(3, 2), lambda: newcombe(0, 0, 1, 2),
                                  lambda: paired_permutation([], []), lambda: permutation_test([1, 2], ["a", "a"]),
                                  lambda: wilson(float("nan"), 3), lambda: permutation_test([1, float("nan")], ["a", "b"])])
def test_bad_numbers_cannot_run(call):
    with pytest.raises(CannotRun) as error:
        call()
    assert "\n" not in str(error.value) and str(error.value)


# the harness and the figures

def test_detection_table_counts():
    "Faults seen in three of four seeds; a clean case that does not run is not counted as clean."
    verdicts = {"seen": Result("x", "y", Interval(0.2, 0.1, 0.3, 9), gate=Gate("max", 0.05)),
                "open": Result("x", "y", Interval(0.2, 0.0, 0.3, 9), gate=Gate("max", 0.05)),
                "none": Result("x", "y", reason="no rows")}
    table = detection_table(verdicts.get, {"big": lambda seed: "open" if seed == 0 else "seen"},
                            {"clean": lambda seed: "none" if seed == 0 else "open"}, seeds=range(4))
    fault, clean = table.to_dict("records")
    assert (fault["n"], fault["detections"], fault["rate"], fault["undecided"], fault["not_run"]) == (4, 3, 0.75, 1, 0)
    assert (clean["n"], clean["detections"], clean["undecided"], clean["not_run"]) == (3, 0, 3, 1)
    assert clean["high"] == pytest.approx(wilson(0, 3).high)


def test_figures_take_hostile_names():
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    parts = [Result(name, "gap", Interval(0.1, -math.inf, 0.2, 9), gate=Gate("max", 0.15))
             for name in ("$x_{", "a" * 500, "\n")]
    plot_parts(Result("w", "gap", parts=parts)).figure.canvas.draw()
    plot_detection(detection_table(bool, {1: lambda seed: 1}, lambda seed: 0, 2)).figure.canvas.draw()
    plt.close("all")
    with pytest.raises(CannotRun):
        plot_parts(Result("w", "gap", reason="no rows"))
