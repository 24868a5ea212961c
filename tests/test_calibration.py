"Calibration: agreement with references, unbiased at zero, hostile input."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from safetune.calibration import (Calibrated, CalibrationError, Scored, Temperature, Vector, bin_numbers, brier, ece, ece_if_calibrated,
                                  entity_temperature, fit_scaling, nll, reliability, score_units, signed_gaps)
from safetune.checks import CannotRun
from safetune.data import InputError

quick = settings(max_examples=40, deadline=None)
confidences = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60)


def by_hand(pairs, bins):
    "ECE with equal widths as the definition reads."
    total = 0.0
    for b in range(bins):
        inside = [(c, r) for c, r in pairs if min(int(c * bins), bins - 1) == b]
        if inside:
            total += abs(sum(c for c, _ in inside) - sum(r for _, r in inside)) / len(pairs)
    return total


@quick
@given(confidences, st.integers(1, 20))
def test_ece_agrees_with_its_definition(pairs, bins):
    c, r = map(np.array, zip(*pairs))
    assert abs(ece(c, r, bins) - by_hand(pairs, bins)) < 1e-9
    for kind in ("width", "mass"):
        place = bin_numbers(c, bins, kind)
        assert place.min() >= 0 and place.max() < bins and 0 <= ece(c, r, bins, kind) <= 1
        assert len(reliability(c, r, bins, kind)) == len(set(place))
        assert all(len({p for p, x in zip(place, c) if x == value}) == 1 for value in c)    # equal values, one bin
    assert (abs(signed_gaps(c, r, np.arange(len(c)), bins)) <= abs(c - r) + 1e-9).all()    # only signs change


def test_bins_of_equal_mass_hold_equally_many():
    c = np.random.default_rng(0).random(1000)
    assert set(np.bincount(bin_numbers(c, 10, "mass"))) == {100}


def test_the_expected_bias_agrees_with_the_formula():
    "One bin of n answers with confidence 0.8: E|mean error| is about sqrt(2 p (1 - p) / (pi n))."
    found = ece_if_calibrated(np.full(400, 0.8), 1, draws=4000).mean()
    assert abs(found - np.sqrt(2 * 0.8 * 0.2 / (np.pi * 400))) < 0.001


@quick
@given(st.integers(0, 10_000), st.floats(0.3, 4))
def test_temperature_undoes_what_was_done(seed, factor):
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 2, (3000, 3))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    gold = (p.cumsum(1) > rng.random((3000, 1))).argmax(1)
    sharp = np.exp(z * factor) / np.exp(z * factor).sum(1, keepdims=True)
    fitted = Temperature().fit(sharp, gold)
    assert 0.8 < fitted.temperature / factor < 1.25
    scaled = fitted(sharp)
    assert np.allclose(scaled.sum(1), 1) and (scaled.argmax(1) == sharp.argmax(1)).all()


def test_vector_scaling_finds_the_minimum_of_its_loss():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), 500)
    gold = rng.integers(0, 3, 500)
    fitted = Vector(penalty=1.0).fit(p, gold)
    logs = np.log(p)
    def loss(w, b):
        z = logs * w + b
        after = z - np.log(np.exp(z).sum(1, keepdims=True))
        return -after[np.arange(500), gold].mean() + (((w - 1) ** 2).sum() + (b ** 2).sum()) / 1000
    best = loss(fitted.weights, fitted.offsets)
    for _ in range(50):
        assert loss(fitted.weights + rng.normal(0, 0.05, 3), fitted.offsets + rng.normal(0, 0.05, 3)) >= best - 1e-6


class Fixed:
    def __init__(self, answers, labels): self.answers, self.task = answers, type("T", (), {"labels": labels})()
    def predict(self, rows, **_): return self.answers


def test_words_without_probabilities_are_left_alone():
    p = np.array([[np.nan, np.nan], [0.9, 0.1]])
    answer = {"tokens": ["a", "b"], "tags": ["O", "O"], "entities": [], "probabilities": p, "scores": p.max(1)}
    row = {"tokens": ["a", "b"], "tags": ["O", "B-X"]}
    assert len(score_units([row], [answer], "tokens", ["O", "B-X"]).right) == 1
    assert Calibrated(Fixed([answer], ["O", "B-X"]), Temperature(2)).predict([row])[0]["tags"] == ["O", "O"]
    empty = {"tokens": [], "tags": [], "entities": [], "probabilities": np.zeros((0, 2), dtype=np.float32)}
    assert Calibrated(Fixed([empty], ["O", "B-X"]), Temperature(2)).predict([{"tokens": []}])[0]["tags"] == []


def test_errors_say_what_is_wrong():
    rows, answers = [{"text": "a", "label": "x"}], [{"label": "x"}]
    assert CalibrationError()(Fixed(answers, ["x", "y"]), rows).verdict == "not run"
    with pytest.raises(InputError, match="is no unit"):
        score_units(rows, answers, "tokens")
    with pytest.raises(CannotRun, match="no entities"):
        entity_temperature([{"tokens": ["a"], "tags": ["O"]}], [{"entities": []}])
    with pytest.raises(InputError, match="order of the labels"):
        fit_scaling(type("P", (), {"predict": lambda self, rows: [{"probabilities": [0.5, 0.5]}]})(), rows)
    unknown = Scored(np.array([0.9]), np.array([False]), np.array([0]), np.array([[0.9, 0.1]]), np.array([-1]))
    assert brier(unknown) == pytest.approx(0.82) and np.isnan(nll(unknown))
