"Detection: probabilities add up, distances agree with scipy, thresholds hold, hostile input."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.spatial.distance import cdist

from safetune.detection import (AdversarialInput, CharacterModel, Combined, Mahalanobis, Perplexity, Stability, auc, small_edits, threshold)
from safetune.attacks import new_masked_lm
from safetune.checks import Gate
from safetune.data import InputError
from safetune.predict import Predictor
from safetune.sample import sample_ner, sample_text
from safetune.tuning import Tuner, new_encoder

DATA = sample_text(n={"train": 120, "validation": 40, "test": 40}, seed=0)
CHARACTERS = CharacterModel(order=4).fit(DATA["train"])


@settings(max_examples=25, deadline=None)
@given(st.text(min_size=3, max_size=3), st.integers(1, 5))
def test_probabilities_add_up_to_one_after_any_history(history, order):
    model = CharacterModel(order=order).fit([{"text": "abracadabra"}, {"text": "a barb"}])
    history = history[:order - 1] if order > 1 else ""
    history = history.rjust(order - 1, "\2")
    assert abs(sum(model.probability(history, c) for c in [*model.alphabet, "\ue000"]) - 1) < 1e-9


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=60))
def test_any_text_has_finite_bits(text):
    bits = CHARACTERS.bits(text)
    assert len(bits) == len(text) + 1 and np.isfinite(bits).all() and (bits >= 0).all()
    assert np.isfinite(CHARACTERS.score([{"text": text}])).all()


def test_the_model_has_learned():
    random = np.random.default_rng(0)
    texts = DATA["test"]["text"]
    shuffled = ["".join(random.permutation(list(text))) for text in texts]
    mean = lambda texts: np.mean([CHARACTERS.bits(text).mean() for text in texts])
    assert mean(texts) < 0.6 * mean(shuffled)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=40, max_size=80), st.sampled_from((0.05, 0.1, 0.3)))
def test_a_threshold_lets_no_more_through_than_it_says(scores, rate):
    assert np.mean(np.array(scores) > threshold(scores, rate)) <= rate + 1e-12


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=30))
def test_auc_is_the_probability_of_the_right_order(pairs):
    labels, scores = [int(a) for a, _ in pairs], [b for _, b in pairs]
    high, low = [b for a, b in pairs if a], [b for a, b in pairs if not a]
    if not high or not low:
        assert np.isnan(auc(labels, scores))
        return
    assert abs(auc(labels, scores) - np.mean([(h > l) + 0.5 * (h == l) for h in high for l in low])) < 1e-9


@pytest.fixture(scope="module")
def victims(tmp_path_factory):
    "A classifier and a tagger, hardly trained; what they say does not matter here."
    folder, found = tmp_path_factory.mktemp("victims"), []
    for name, data, column in (("text", DATA, "text"), ("ner", sample_ner(n=100, seed=0), "tokens")):
        tuner = Tuner(data, new_encoder(data["train"][column], folder / name, vocab_size=300, hidden=32, heads=2, max_length=32), progress=False)
        tuner.fit(epochs=1)
        found.append((Predictor(tuner.save(folder / f"{name}-model")), data))
    return found


def test_distances_agree_with_scipy(victims):
    for predictor, data in victims:
        detector, rows = Mahalanobis(predictor).fit(data["train"]), list(data["test"])[:10]
        distance = cdist(detector.states(rows), detector.means, "mahalanobis", VI=detector.precision).min(1) ** 2
        assert np.allclose(detector.score(rows), distance, rtol=1e-6)
        assert np.allclose(detector.score(rows[:1]), distance[:1], rtol=1e-3)             # company changes nothing


def test_stability_keeps_the_number_of_words_and_repeats(victims):
    for predictor, data in victims:
        rows = list(data["test"])[:5]
        for row in rows:
            copies = small_edits(row, n=4)
            assert len(copies) == 4 and all(len(c["tokens"]) == len(row["tokens"]) for c in copies if "tokens" in c)
        detector = Stability(predictor, n=3)
        scores = detector.score(rows)
        assert ((0 <= scores) & (scores <= 1)).all() and np.allclose(scores, Stability(predictor, n=3).score(rows))
    assert small_edits({"text": "!"}) == []


def test_perplexity_of_a_masked_model_by_hand(tmp_path):
    import torch
    name = new_masked_lm(DATA["train"]["text"], tmp_path / "lm", epochs=1, vocab_size=300, hidden=32, heads=2, max_length=64)
    detector, row = Perplexity(name), {"text": "the order was late"}
    ids = detector.tokenizer(row["text"])["input_ids"]
    losses = []
    for place in range(1, len(ids) - 1):
        hidden = torch.tensor([[*ids[:place], detector.tokenizer.mask_token_id, *ids[place + 1:]]])
        with torch.no_grad():
            losses.append(-float(torch.log_softmax(detector.model(input_ids=hidden).logits[0, place], -1)[ids[place]]))
    assert abs(detector.score([row, {"text": "x"}])[0] - np.mean(losses)) < 1e-4
    assert detector.score([]).shape == (0,)


def test_a_combination_learns_from_attacked_rows():
    attacked = [{"text": row["text"].replace("e", "ҽ")} for row in DATA["validation"]]
    both = Combined([CHARACTERS]).fit(list(DATA["train"]), attacked)
    assert both.score(attacked).mean() > both.score(list(DATA["test"])).mean()
    with pytest.raises(InputError, match="0 attacked"):
        Combined([CHARACTERS]).fit(list(DATA["train"]), [])


def test_the_check_counts_and_says_why_not():
    check = AdversarialInput(CHARACTERS, list(DATA["validation"]), gate=Gate("max", 0.5))
    attacked = [{"text": row["text"].replace("e", "ҽ")} for row in DATA["test"]]
    result = check(None, attacked)
    assert result.verdict == "fail" and result.n == len(attacked) and len(result.rows) == round(result.value * result.n)
    assert [row["score"] for row in result.rows] == sorted((row["score"] for row in result.rows), reverse=True)
    assert check(None, []).verdict == "not run"
    with pytest.raises(InputError, match="cannot be set on 3 rows"):
        AdversarialInput(CHARACTERS, list(DATA["validation"])[:3])
