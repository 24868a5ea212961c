"Ranking: agreement with scikit-learn, properties of the scores, re-ranking by hand, hostile input."
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from sklearn.metrics import ndcg_score

from safetune.data import InputError
from safetune.ranking import (ExposureControl, compare_rankings, discounts, diversity_scores, exposure_gap, exposure_table,
                              judge_list, judge_lists, list_diversity, mmr, plot_exposure, popularity, provider_sums,
                              ranking_scores, without_seen)

quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
gain_lists = st.lists(st.integers(0, 5), min_size=2, max_size=12).filter(any)


@quick
@given(gain_lists, st.integers(1, 14), st.randoms(use_true_random=False))
def test_ndcg_is_that_of_scikit_learn(gains, k, random):
    ranked = list(range(len(gains)))
    random.shuffle(ranked)
    scores = np.empty(len(gains))
    scores[ranked] = np.arange(len(gains), 0, -1)
    assert judge_list(ranked, dict(enumerate(gains)), k)["ndcg"] == pytest.approx(ndcg_score([gains], [scores], k=k))


@quick
@given(gain_lists, st.integers(1, 14))
def test_the_best_order_is_best_and_nothing_beats_it(gains, k):
    wanted = dict(enumerate(gains))
    best = sorted(wanted, key=lambda item: -wanted[item])
    assert judge_list(best, wanted, k)["ndcg"] == pytest.approx(1)
    worst = judge_list(best[::-1], wanted, k)
    assert 0 <= worst["ndcg"] <= 1 + 1e-12 and worst["rr"] >= 1 / len(gains)
    assert judge_list(best, wanted, len(gains))["recall"] == 1


def test_means_by_hand_and_clusters():
    rankings, wanted = [["a", "b"], ["b", "a"], ["c"], ["x"]], [{"a"}, {"a"}, {"a"}, {}]
    found = ranking_scores(rankings, wanted, k=2)
    second = 1 / math.log2(3)
    assert found["ndcg@2"].value == pytest.approx((1 + second) / 3) and found["ndcg@2"].n == 3
    assert found["mrr"].value == pytest.approx(0.5) and found["hit@1"].value == pytest.approx(1 / 3)
    assert ranking_scores(rankings, wanted, clusters=["u", "u", "v", "w"])["mrr"].n == 2
    assert all(0 <= one.low <= one.value <= one.high <= 1 for one in found.values())


def test_lists_of_one_user_widen_the_interval():
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(30), 10)
    good = rng.random(30)[users] > 0.5      # a user's lists are all good or all bad
    rankings = [["a", "b"] if ok else ["b", "a"] for ok in good]
    alone, together = (ranking_scores(rankings, [{"a"}] * 300, clusters=keys)["hit@1"] for keys in (None, users))
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_a_difference_is_paired():
    rng = np.random.default_rng(1)
    wanted = [set(rng.choice(20, 3, replace=False).tolist()) for _ in range(200)]
    first = [rng.permutation(20).tolist() for _ in wanted]
    second = [[one[1], one[0], *one[2:]] for one in first]     # almost the same lists
    gap, apart = compare_rankings(first, second, wanted)["ndcg@10"], ranking_scores(first, wanted)["ndcg@10"]
    assert gap.high - gap.low < (apart.high - apart.low) / 2
    opposite = compare_rankings(second, first, wanted)["ndcg@10"]
    assert (opposite.value, opposite.low) == pytest.approx((-gap.value, -gap.high))


def test_popularity_counts_users_not_clicks():
    assert popularity([["a", "a", "a"], ["b"], ["b"]]) == ["b", "a"]
    assert popularity([[2, 1], [1, 2], [3]]) == [1, 2, 3]
    assert popularity([]) == [] and without_seen([3, 1, 2], [1]) == [3, 2]


@quick
@given(st.integers(1, 12), st.integers(1, 12), st.floats(0, 1), st.integers(0, 10 ** 6))
def test_mmr_is_its_formula(n, k, trade, seed):
    rng = np.random.default_rng(seed)
    scores, vectors = rng.random(n), rng.normal(size=(n, 3))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    taken = []
    for _ in range(min(n, k)):
        def value(i):
            return trade * scores[i] - (1 - trade) * max((unit[i] @ unit[j] for j in taken), default=0.0)
        taken.append(max((i for i in range(n) if i not in taken), key=value))
    assert mmr(scores, vectors, k, trade) == taken


def test_diversity_by_pairs():
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(6, 4))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [1 - unit[i] @ unit[j] for i in range(6) for j in range(6) if i != j]
    assert list_diversity(vectors) == pytest.approx(np.mean(pairs))
    found = diversity_scores([[0, 1], [1, 0], [2]], vectors, k=2)
    assert found["coverage"] == 0.5 and found["diversity"].n == 2


def test_exposure_by_hand():
    table = exposure_table([[0, 2], [2, 0]], ["x", "x", "y"], [[1, 1, 2], [1, 1, 2]], k=2)
    assert table["provider"].tolist() == ["x", "y"] and table["items"].tolist() == [2, 1]
    assert table["exposure"].tolist() == pytest.approx([0.5, 0.5]) and table["ratio"].tolist() == pytest.approx([1, 1])
    assert exposure_gap([[0], [0]], ["x", "y"], k=1).value == pytest.approx(0.5)
    assert provider_sums([[1, 0]], ["x", "y"], k=2)[1].tolist() == [[discounts(2)[1], discounts(2)[0]]]
    assert len(plot_exposure({"now": table}).axes) == 1


@pytest.mark.parametrize("seed", range(3))
def test_the_controller_evens_what_scores_skew(seed):
    rng = np.random.default_rng(seed)
    providers = np.array(["big"] * 10 + ["small"] * 10)
    merit = rng.uniform(0.2, 0.8, (150, 20))
    scores = merit + 0.5 * (providers == "big") + 0.1 * rng.normal(size=merit.shape)
    gaps = []
    for pull in (0.0, 0.2):
        control = ExposureControl(providers, pull, k=5)
        lists = [control.rank(row, due) for row, due in zip(scores, merit)]
        assert all(len(set(ranked)) == 5 for ranked in lists)
        gaps.append(exposure_gap(lists, providers, merit, k=5).value)
    assert gaps[0] > 0.3 and gaps[1] < 0.05, gaps


def test_the_controller_takes_candidates():
    control = ExposureControl(["a", "b", "b"], 1.0, k=2)
    assert control.rank([0.1, 0.9], [1, 1], items=[2, 0]) == [0, 2]
    assert control.owed().shape == (2,) and (control.owed() >= 0).all()
    assert ExposureControl(["a", "b"], 1.0).rank([1, 2], [0, 0]) == [1, 0]     # no merit at all is no crash


@pytest.mark.parametrize("call, words", [
    (lambda: judge_lists([["a"]], [{"a": float("nan")}]), "row 1"),
    (lambda: judge_lists([["a"]], [{"a"}], k=0), "at least 1"),
    (lambda: judge_list(["a"], {"a": "x"}), "at least 0"),
    (lambda: ranking_scores([], []), "nobody wants anything"),
    (lambda: compare_rankings([["a"]], [["a"]], [set()]), "nobody wants anything"),
    (lambda: mmr([math.nan], [[1.0]]), "finite"),
    (lambda: exposure_table([[0]], ["a"], [[math.inf]]), "at least 0"),
    (lambda: ExposureControl(["a"], math.nan), "at least 0"),
    (lambda: ExposureControl(["a"]).rank([1], [-1]), "at least 0")])
def test_bad_input_is_told_in_one_line(call, words):
    with pytest.raises(InputError) as caught:
        call()
    assert words in str(caught.value) and "\n" not in str(caught.value)
