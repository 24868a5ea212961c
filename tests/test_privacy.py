"""Attacks, canaries, redaction and private training: properties, agreement with references, hostile input."""
import dataclasses
import math
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

import safetune.privacy as privacy
from safetune.checks import CannotRun
from safetune.data import InputError
from safetune.predict import Predictor
from safetune.privacy import (Canary, CanaryExposure, MembershipInference, RedactingPredictor, Shadows, attack_interval, auc_bound, examples,
                              exposure, fitted_exposure, lira, log_complement, log_odds, number_canaries, original_span, random_halves,
                              replace_matches, rmia, roc, row_logs, sample_canaries, train_shadows)
from safetune.sample import sample_ner
from safetune.tasks import MultiLabelClassification, SequenceClassification, TokenClassification
from safetune.tuning import Tuner, new_encoder, noise_for, spent_epsilon

FEW = settings(max_examples=60, deadline=None)


@FEW
@given(st.lists(st.floats(-700, 0), min_size=1, max_size=20))
def test_log_odds_are_finite_and_keep_the_order(values):
    log_p = np.array(values)
    phi = log_odds(log_p)
    assert np.isfinite(phi).all()
    order = np.argsort(log_p)
    assert (np.diff(phi[order]) >= 0).all()
    assert np.allclose(np.exp(log_p) + np.exp(log_complement(log_p)), 1)


scores = st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=4, max_size=60).filter(lambda pairs: len({m for _, m in pairs}) == 2)


@FEW
@given(scores)
def test_area_and_rate_agree_with_references(pairs):
    values, member = np.array([v for v, _ in pairs], dtype=float), np.array([m for _, m in pairs])
    assert math.isclose(attack_interval(values, member, resamples=20).value, roc_auc_score(member, values), abs_tol=1e-12)
    fpr, tpr = roc(values, member)
    assert fpr[-1] == tpr[-1] == 1 and (np.diff(fpr) >= 0).all() and (np.diff(tpr) >= 0).all()
    rate = 1 / (~member).sum()
    best = max([0.0] + [(values[member] >= t).mean() for t in values if (values[~member] >= t).mean() <= rate + 1e-12])
    assert math.isclose(attack_interval(values, member, rate, resamples=20).value, best)


@FEW
@given(scores, st.integers(0, 3))
def test_only_the_order_of_scores_matters(pairs, seed):
    values, member = np.array([v for v, _ in pairs], dtype=float), np.array([m for _, m in pairs])
    a, b = (attack_interval(v, member, resamples=50, seed=seed) for v in (values, np.exp(values) * 3 - 7))
    assert (a.value, a.low, a.high) == (b.value, b.low, b.high) and 0 <= a.low <= a.value <= a.high <= 1


def test_copies_in_one_cluster_are_no_new_evidence():
    rng = np.random.default_rng(0)
    member = np.arange(100) < 50
    values = rng.normal(size=100) + member
    once = attack_interval(values, member)
    thrice = attack_interval(np.repeat(values, 3), np.repeat(member, 3), clusters=np.repeat(np.arange(100), 3))
    naive = attack_interval(np.repeat(values, 3), np.repeat(member, 3))
    assert thrice.n == once.n == 100 and math.isclose(once.value, thrice.value)
    assert abs((thrice.high - thrice.low) / (once.high - once.low) - 1) < 0.1 < 1 - (naive.high - naive.low) / (once.high - once.low)


@pytest.mark.parametrize("values, member", [([], []), ([1.0, 2.0], [True, True]), ([1.0, math.nan], [True, False])])
def test_what_cannot_be_ranked_is_refused(values, member):
    with pytest.raises(CannotRun):
        attack_interval(values, member)


def test_a_tenth_of_a_percent_needs_a_thousand():
    values, member = np.arange(1999.0), np.arange(1999) < 1000
    with pytest.raises(CannotRun, match="needs 1,000 non-members, there are 999"):
        attack_interval(values, member, 0.001)
    assert attack_interval(np.arange(2000.0), np.arange(2000) < 1000, 0.001, resamples=50).n == 2000


def test_lira_is_the_likelihood_ratio():
    rng = np.random.default_rng(1)
    inside = random_halves(5, 80, 0)
    shadow = -np.exp(rng.normal(size=(80, 5)))
    target = -np.exp(rng.normal(size=5))
    phi, other = log_odds(target), log_odds(shadow)
    for i, found in enumerate(lira(target, shadow, inside)):
        a, b = other[inside[:, i], i], other[~inside[:, i], i]
        expected = stats.norm.logpdf(phi[i], a.mean(), a.std(ddof=1)) - stats.norm.logpdf(phi[i], b.mean(), b.std(ddof=1))
        assert math.isclose(found, expected, rel_tol=1e-6)
    pooled = lira(target, shadow, inside, online=False, pooled=True)
    sd = math.sqrt(sum(((other[~inside[:, i], i] - other[~inside[:, i], i].mean()) ** 2).sum() for i in range(5)) / (5 * 39))
    assert np.allclose(pooled, [(phi[i] - other[~inside[:, i], i].mean()) / sd for i in range(5)])


def test_rmia_is_the_share_of_beaten_others():
    rng = np.random.default_rng(2)
    inside = random_halves(30, 4, 0)
    shadow, target = np.log(rng.uniform(0.05, 1, (4, 30))), np.log(rng.uniform(0.05, 1, 30))
    p, reference = np.exp(target), np.exp(shadow)
    rise = p / reference.mean(axis=0)
    expected = [(rise[i] / rise >= 2).mean() for i in range(30)]
    assert np.allclose(rmia(target, shadow, inside), expected, atol=2e-6)
    outside = np.array([reference[~inside[:, i], i].mean() for i in range(30)])
    rise = p / ((1.3 * outside + 0.7) / 2)
    assert np.allclose(rmia(target, shadow, inside, online=False), [(rise[i] / rise >= 2).mean() for i in range(30)], atol=2e-6)


def test_no_attack_beats_the_bound():
    for epsilon, delta in ((0.5, 0.0), (1.0, 0.05), (3.0, 1e-3)):
        # a worst-case mechanism (Kairouz et al.): with probability delta it tells all, else randomised response
        fpr = np.array([0, 0, (1 - delta) / (1 + math.exp(epsilon)), 1 - delta, 1])
        tpr = np.array([0, delta, delta + (1 - delta) * math.exp(epsilon) / (1 + math.exp(epsilon)), 1, 1])
        assert math.isclose(auc_bound(epsilon, delta), np.trapezoid(tpr, fpr), rel_tol=1e-9)


@given(st.integers(2, 50), st.integers(1, 6), st.integers(0, 9))
def test_every_row_is_in_half_of_the_shadows(rows, pairs, seed):
    inside = random_halves(rows, 2 * pairs, seed)
    assert (inside.sum(axis=0) == pairs).all() and abs(int(inside[0].sum()) - rows / 2) <= 0.5


def answering(rows, probabilities, task):
    "A predictor whose function answers with fixed probabilities."
    return Predictor(lambda asked: [{"label": "x", "probabilities": np.array(p)} for p in probabilities[:len(asked)]], task=task)


def test_probabilities_of_texts_labels_and_words():
    rows = [{"text": "a", "label": "no"}, {"text": "b", "label": "yes"}]
    single = answering(rows, [[0.2, 0.8], [0.3, 0.7]], SequenceClassification(["yes", "no"]))
    assert np.allclose(np.exp(np.concatenate(row_logs(single, rows))), [0.8, 0.3])
    several = answering(rows, [[0.2, 0.8], [0.3, 0.7]], MultiLabelClassification(["yes", "no"]))
    logs = row_logs(several, [{"text": "a", "label": ["no"]}, {"text": "b", "label": []}])
    assert np.allclose(np.exp([log.sum() for log in logs]), [0.8 * 0.8, 0.7 * 0.3])
    with pytest.raises(CannotRun, match="does not know the label 'maybe'"):
        row_logs(single, [{"text": "a", "label": "maybe"}])


def test_joint_probability_of_an_entity():
    row = {"tokens": ["Ada", "Low", "sang"], "tags": ["B-PER", "I-PER", "O"]}
    task = TokenClassification(["O", "B-PER", "I-PER"])
    table = np.array([[0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.9, 0.05, 0.05]])
    predictor = Predictor(lambda asked: [{"tags": ["B-PER", "I-PER", "O"], "probabilities": table}], task=task)
    logs = row_logs(predictor, [row])
    assert np.allclose(np.exp(examples([row], "entity").log_p(logs)), 0.8 * 0.6)
    assert np.allclose(np.exp(examples([row]).log_p(logs)), 0.8 * 0.6 * 0.9)


def test_shadows_are_kept_and_a_killed_run_goes_on(tmp_path, monkeypatch):
    rows, asked = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(10)], []
    data = DatasetDict({split: Dataset.from_list(rows) for split in ("train", "validation", "test")})
    tuner = SimpleNamespace(settings=SimpleNamespace(), data=data, source="x", max_length=9, stride=1, task=SequenceClassification(["a", "b"]))
    monkeypatch.setattr(dataclasses, "asdict", lambda settings: {"epochs": 1, "seed": 0})

    def one(tuner, data, pool, settings):
        asked.append(settings["seed"])
        if len(asked) == 3:
            raise KeyboardInterrupt
        return [np.array([-float(settings["seed"]) - i]) for i in range(len(pool))]

    monkeypatch.setattr(privacy, "_one_shadow", one)
    with pytest.raises(KeyboardInterrupt):
        train_shadows(tuner, rows, models=4, cache=tmp_path, progress=False)
    shadows = train_shadows(tuner, rows, models=4, cache=tmp_path, progress=False)
    assert asked == [1, 2, 3, 3, 4]
    assert np.allclose(shadows.log_p(examples(rows))[:, 2], [-3, -4, -5, -6])
    train_shadows(tuner, rows, models=4, cache=tmp_path, progress=False)
    assert len(asked) == 5
    train_shadows(tuner, rows, models=4, cache=tmp_path, progress=False, epochs=2)
    assert len(asked) == 9, "another recipe is not taken from the folder"
    with pytest.raises(InputError, match="fit the tuner first"):
        train_shadows(SimpleNamespace(), rows)


def test_the_check_says_what_it_lacks():
    rows = [{"text": f"t {i}", "label": "a"} for i in range(6)]
    fixed = answering(rows, [[0.9, 0.1]] * 12, SequenceClassification(["a", "b"]))
    assert "no rows in 'test'" in MembershipInference()(fixed, {"train": rows}).reason
    assert "gives no probabilities" in MembershipInference()(Predictor(lambda rows: ["a"] * len(rows)), {"train": rows, "test": rows[:2]}).reason
    result = MembershipInference()(fixed, {"train": rows, "test": [{"text": f"u {i}", "label": "a"} for i in range(6)]})
    assert result.value == 0.5 and result.verdict == "not enough evidence"
    shadows = Shadows([[np.zeros(1)] * 6] * 2, random_halves(6, 2), "other rows")
    with pytest.raises(InputError, match="trained on other rows"):
        MembershipInference(shadows=shadows)(fixed, {"train": rows, "test": rows})


@FEW
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=40), st.floats(-60, 60))
def test_exposure_is_between_nothing_and_all(others, loss):
    bits = exposure(loss, np.array(others))
    rank = 1 + sum(other <= loss for other in others)
    assert math.isclose(bits, math.log2((len(others) + 1) / rank), abs_tol=1e-12) and 0 <= bits <= math.log2(len(others) + 1)


def test_fitted_exposure_of_a_normal_law():
    others = np.random.default_rng(0).normal(10, 2, 4000)
    for z in (-1.0, -3.0, -5.0, -8.0):
        bits, p = fitted_exposure(10 + 2 * z, others)
        assert abs(bits / (-stats.norm.logcdf(z) / math.log(2)) - 1) < 0.15 and p > 0.001


def test_canaries_stand_where_the_sample_plants_them():
    data, truth = sample_ner(n=60, seed=4, faults={"kind": "canaries", "n": 3, "repeats": 2}, return_truth=True)
    planted = {" ".join(row["tokens"]) for row in data["train"]}
    for canary in sample_canaries("ner", 3, 20, seed=4):
        assert " ".join(canary.place(canary.secret)["tokens"]) in planted
        assert canary.secret not in canary.candidates and set(truth.after) >= {canary.secret}
        assert all(len(canary.place(other)["tags"]) == len(canary.place(other)["tokens"]) for other in canary.candidates)
    assert len({c.secret for c in number_canaries(n=20, digits=8, candidates=5)}) == 20


def test_exposure_of_a_classifier_that_knows_one_code():
    known = sample_canaries("single", 1, 50)[0]
    label = known.place(known.secret)["label"]
    labels = ["negative", "neutral", "positive"]

    def knows(rows):
        return [{name: (0.9 if known.secret in row["text"] else 0.4) if name == label else 0.05 if known.secret in row["text"] else 0.3
                 for name in labels} for row in rows]

    predictor = Predictor(knows, task=SequenceClassification(labels))
    result = CanaryExposure()(predictor, [known])
    assert math.isclose(result.value, math.log2(51)) and math.isclose(result.p_value, 1 / 51, rel_tol=1e-6)
    assert CanaryExposure()(predictor, ["1234"]).verdict == "not run"
    assert isinstance(known, Canary)


FOUND = re.compile(r"\S+@\S+|\d{3}-\d{4}")
Match = SimpleNamespace


def find(text):
    "Addresses and numbers."
    return [Match(start=m.start(), end=m.end(), kind="email" if "@" in m.group() else "phone") for m in FOUND.finditer(text)]


@FEW
@given(st.lists(st.sampled_from(["a@b.org", "555-0143", "Ada", " ", "é", "\n", "x", "😀", "."]), max_size=25).map("".join))
def test_what_is_kept_is_where_it_was(text):
    new, pieces = replace_matches(text, find(text), lambda kind: f"[{kind}]")
    assert not FOUND.search(new.replace("[email]", "").replace("[phone]", " ")) or "@" not in new
    for a, b, old_a, old_b, kept in pieces:
        assert original_span(pieces, a, b) == (old_a, old_b) or a == b
        for i in range(a, b):
            x, y = original_span(pieces, i, i + 1)
            assert (text[x:y] == new[i]) if kept else (x, y) == (old_a, old_b)
    assert sum(old_b - old_a for _, _, old_a, old_b, _ in pieces) == len(text)


def test_the_model_neither_sees_nor_repeats_personal_data():
    seen = []

    def tagging(rows):
        seen.extend(rows)
        return [["B-PER" if word == "Ada" else "O" for word in row["tokens"]] for row in rows]

    inner = Predictor(tagging, task=TokenClassification(["O", "B-PER", "I-PER"]))
    guarded = RedactingPredictor(inner, find, lambda kind: f"[{kind.upper()}]", hide=("PER",))
    words = ["Ask", "Ada", "at", "a@b.org", "or", "555-0143"]
    answer = guarded(words)
    assert answer["tags"] == ["O", "B-PER", "O", "O", "O", "O"] and answer["tokens"] == ["Ask", "[PER]", "at", "[EMAIL]", "or", "[PHONE]"]
    text = "Mail a@b.org : Ada 555-0143"
    for entity in guarded(text)["entities"]:
        assert entity["text"] == "[PER]"
    assert "a@b.org" not in str(seen) and "555" not in str(seen)
    assert [a["tags"] for a in guarded.stream([words] * 5, window=2)] == [answer["tags"]] * 5
    assert words[3] == "a@b.org", "the input is left as it was"


LEAK = "I am ada@example.org, call +44 20 7946 0958"
nested = st.recursive(st.sampled_from([LEAK, "ada@example.org", "fine", 5, None, 0.5]),
                      lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["text", "label", "messages", "x"]), inner, max_size=3),
                                              st.tuples(inner, inner)), max_leaves=8)


@FEW
@given(st.dictionaries(st.sampled_from(["text", "label", "messages", "choices", "notes"]), nested, min_size=1), st.booleans())
def test_a_model_that_knows_an_address_cannot_say_it(answer, redacted):
    class Writer:
        task = SequenceClassification([])
        def predict(self, items, *_): return [answer] * len(items)
    told = RedactingPredictor(Writer()).predict(["x", {"text": "y"}])
    assert "ada@" not in str(told) and "7946" not in str(told) and len(told) == 2
    assert set(told[0]) == set(answer), "the form stays"


@pytest.mark.parametrize("item", [None, 5, 2.5, b"x", {"text": None}, {"text": 3}, {"tokens": None}, {"tokens": "ab"}, ["a", None], [1],
                                  {"messages": [{"role": "user"}]}, {"messages": 3}, {"choices": [3]}, {}])
def test_what_is_no_item_is_refused_in_one_line(item):
    guarded = RedactingPredictor(Predictor(lambda rows: [{"text": "a"} for _ in rows]), find, str.upper)
    if item == {"tokens": "ab"}:
        assert len(guarded.predict([{"tokens": list("ab")}])) == 1
        return
    with pytest.raises(InputError, match="row 2"):
        guarded.predict(["fine", item])


@pytest.mark.parametrize("extra", [{"mail": "ada@example.org"}, {"user": {"ada@example.org": ["ada@example.org"]}}, {"who": ("x", {"ada@example.org"})},
                                   {"number": 4111111111111111}, {"thing": SimpleNamespace(mail="ada@example.org")}, {"raw": b"ada@example.org"},
                                   {"deep": [SimpleNamespace(mail="ada@example.org")]}, {"error": ValueError("ada@example.org")}])
def test_a_log_record_keeps_no_personal_data_in_its_extra_fields(extra):
    import json
    import logging
    from safetune.personal import Redactor
    record = logging.LogRecord("x", 20, "f", 1, "asked by %s", ("bob@example.org",), None)
    vars(record).update(extra, count=3, kept="a word")
    assert Redactor().filter(record)
    printed = json.dumps(vars(record), default=str)
    assert "example.org" not in printed and "4111111111111111" not in printed
    assert record.count == 3 and record.kept == "a word" and record.lineno == 1


@given(st.floats(), st.floats())
def test_the_bound_of_the_area_is_a_number_or_a_refusal(epsilon, delta):
    if epsilon >= 0 and 0 <= delta <= 1:
        assert 0.5 - 1e-12 <= auc_bound(epsilon, delta) <= 1 + 1e-12
        assert auc_bound(epsilon, delta) >= auc_bound(epsilon / 2, delta) - 1e-12
    else:
        with pytest.raises(InputError):
            auc_bound(epsilon, delta)


@pytest.mark.parametrize("row, answer", [
    ({"question": "Who has a@b.org?", "context": "Ada has a@b.org here."}, {"text": "Ada", "start": 0, "end": 3}),
    ({"source": "Mail a@b.org"}, {"text": "Schreib"}),
    ({"messages": [{"role": "user", "content": "I am a@b.org"}]}, {"text": "Hello"}),
    ({"question": "Whose?", "choices": ["a@b.org", "555-0143"]}, {"label": 0}),
    ({"tokens": ["Ada", "has", "a@b.org"], "head": [0, 1], "tail": [2, 3]}, {"label": "has"})])
def test_rows_of_every_task_are_redacted(row, answer):
    seen = []

    def answering(rows):
        seen.extend(rows)
        return [dict(answer)] * len(rows)
    told = RedactingPredictor(Predictor(answering), find, lambda kind: f"[{kind.upper()}]")(row)
    assert {name: told[name] for name in answer} == answer
    assert set(seen[0]) == set(row) and "a@b.org" not in str(seen) and "555" not in str(seen)


def test_an_answer_stands_at_its_place_in_the_original_context():
    context = "Ask a@b.org, that is Ada."

    def answering(rows):
        at = rows[0]["context"].index("Ada")
        return [{"text": "Ada", "start": at, "end": at + 3}]
    told = RedactingPredictor(Predictor(answering), find, lambda kind: f"[{kind.upper()}]")(
        {"question": "Who?", "context": context})
    assert context[told["start"]:told["end"]] == "Ada"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    "A tiny encoder with random weights."
    return new_encoder(sample_ner(n=200, seed=0)["train"]["tokens"], tmp_path_factory.mktemp("encoder"), vocab_size=300, hidden=16, heads=2, layers=1)


def weights(tuner):
    return torch.cat([p.detach().flatten() for p in tuner.model.parameters()])


PRIVATE = {"epochs": 2, "lr": 1e-3, "batch_size": 16, "dp_epsilon": 8, "dp_seed": 0, "checkpoint_steps": 2}


def test_private_training_repeats_with_a_seed_and_resumes(encoder, tmp_path, monkeypatch):
    from safetune.tuning import PrivateTrainer
    data = sample_ner(n={"train": 64, "validation": 10, "test": 10}, seed=0)
    whole = Tuner(data, encoder, progress=False)
    whole.fit(**PRIVATE, lora_rank=2)
    step = PrivateTrainer.training_step

    def dies(self, *args):
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return step(self, *args)

    broken = Tuner(data, encoder, out=tmp_path / "run", progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(PrivateTrainer, "training_step", dies)
        with pytest.raises(KeyboardInterrupt):
            broken.fit(**PRIVATE, lora_rank=2)
    assert broken.privacy["steps"] == 5 and broken.privacy["epsilon"] < whole.privacy["epsilon"] <= 8
    broken.fit(resume=True, **PRIVATE, lora_rank=2)
    assert torch.equal(weights(whole), weights(broken)) and broken.privacy == whole.privacy
    other = Tuner(data, encoder, progress=False)
    other.fit(**{**PRIVATE, "dp_seed": None}, lora_rank=2)
    assert not torch.equal(weights(whole), weights(other)) and not other.privacy["seeded"]


def test_empty_batches_still_get_noise(encoder):
    tuner = Tuner(sample_ner(n={"train": 12, "validation": 5, "test": 5}, seed=0), encoder, progress=False)
    tuner.fit(epochs=1, lr=1e-3, batch_size=1, dp_epsilon=50, dp_seed=1)
    assert tuner.privacy["steps"] == 12 and torch.isfinite(weights(tuner)).all()
    assert not any(hasattr(p, "grad_sample") for p in tuner.model.parameters())


def test_a_model_with_low_rank_updates_is_saved_as_an_ordinary_one(encoder, tmp_path):
    from transformers import AutoModelForTokenClassification
    tuner = Tuner(sample_ner(n=60, seed=0), encoder, progress=False)
    tuner.fit(epochs=1, lr=1e-2, lora_rank=2)
    plain = tuner.new_model(tuner.settings.__class__())
    tuner.save(tmp_path)
    again = AutoModelForTokenClassification.from_pretrained(tmp_path)
    assert list(again.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), tuner.model.state_dict().values()))
    moved = [name for (name, a), b in zip(again.state_dict().items(), plain.state_dict().values()) if not torch.equal(a, b)]
    assert any("query" in name for name in moved) and not any("embeddings" in name for name in moved)


def test_what_private_training_cannot_do_is_said(encoder, monkeypatch):
    tuner = Tuner(sample_ner(n={"train": 20, "validation": 5, "test": 5}, seed=0), encoder, max_length=8, progress=False)
    with pytest.raises(InputError, match="a row is longer than the model's input"):
        tuner.fit(dp_epsilon=3, batch_size=4)
    tuner = Tuner(sample_ner(n={"train": 20, "validation": 5, "test": 5}, seed=0), encoder, progress=False)
    for setting in ({"adversarial": "fgm"}, {"precision": "bf16"}, {"class_weights": "balanced"}):
        with pytest.raises(InputError, match=f"cannot be combined with {next(iter(setting))}"):
            tuner.fit(dp_epsilon=3, batch_size=4, **setting)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="one process only"):
        tuner.fit(dp_epsilon=3, batch_size=4)
    monkeypatch.delenv("WORLD_SIZE")
    for package, settings in (("opacus", {"dp_epsilon": 3}), ("peft", {"lora_rank": 2})):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(InputError, match=re.escape("pip install 'safetune[privacy]'")):
                tuner.fit(batch_size=4, **settings)


def test_noise_keeps_the_budget_and_agrees_with_another_accountant():
    from opacus.accountants import RDPAccountant
    for epsilon, rate, steps in ((1.0, 0.02, 200), (8.0, 0.1, 60)):
        noise = noise_for(epsilon, 1e-4, rate, steps)
        spent = spent_epsilon(noise, 1e-4, rate, steps)
        rdp = RDPAccountant()
        rdp.history = [(noise, rate, steps)]
        assert 0.97 * epsilon < spent <= epsilon and spent < rdp.get_epsilon(1e-4) < 2 * spent
        assert spent_epsilon(noise, 1e-4, rate, steps // 2) < spent and spent_epsilon(noise, 1e-4, rate, 0) == 0
