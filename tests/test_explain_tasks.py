"""Explanations of relations, answers and choices: planted cues, completeness, agreement with the predictor."""
import math

import numpy as np
import pytest
import torch

from safetune.data import InputError
from safetune.explain import METHODS, NO_ANSWER, Explainer, Target, plot_text, row_words, targets_of, text_html
from safetune.faithfulness import Faithfulness
from safetune.predict import Predictor
from safetune.questions import MultipleChoice, QuestionAnswering
from safetune.relations import RelationExtraction
from safetune.tasks import load_model, load_tokenizer
from safetune.tuning import Tuner, new_encoder

CUES = {"married": "spouse", "acquired": "owner", "visited": "no_relation"}
COLOURS = ["red", "blue", "green", "white"]
FILLER = ["old", "quiet", "long", "early", "near", "late", "often", "small"]


def relation_rows(n, rng):
    "The verb decides the relation; the rest is noise."
    rows = []
    for _ in range(n):
        cue = str(rng.choice(list(CUES)))
        tokens = [*rng.choice(FILLER, 2), "Ann", *rng.choice(FILLER, 2), cue, *rng.choice(FILLER, 2), "Bo", str(rng.choice(FILLER))]
        rows.append({"tokens": [str(t) for t in tokens], "head": [2, 3], "tail": [8, 9], "label": CUES[cue]})
    return rows


def question_rows(n, rng):
    "The context names a colour, which is the answer only where it also says surely."
    rows = []
    for _ in range(n):
        colour, cue = str(rng.choice(COLOURS)), str(rng.choice(["surely", "often"]))
        context = " ".join([*rng.choice(FILLER, int(rng.integers(1, 4))), cue, *rng.choice(FILLER, 2), colour, str(rng.choice(FILLER))])
        told = {"text": [colour], "answer_start": [context.index(colour)]}
        rows.append({"question": "which colour is it", "context": context,
                     "answers": told if cue == "surely" else {"text": [], "answer_start": []}})
    return rows


def choice_rows(n, rng):
    "The choice with the word zirp is right."
    rows = []
    for _ in range(n):
        choices = [" ".join(rng.choice(FILLER, 3)) for _ in range(3)]
        right = int(rng.integers(3))
        words = choices[right].split()
        words[int(rng.integers(3))] = "zirp"
        rows.append({"question": "which one is it ?", "choices": [*choices[:right], " ".join(words), *choices[right + 1:]], "label": right})
    return rows


MAKERS = {"relation-extraction": relation_rows, "question-answering": question_rows, "multiple-choice": choice_rows}


@pytest.fixture(scope="module", params=list(MAKERS))
def taught(request, tmp_path_factory):
    "An explainer of a small model that has learned the cue, and rows that it has not seen."
    make = MAKERS[request.param]
    rng = np.random.default_rng(0)
    data = {"train": make(400, rng), "validation": make(40, rng)}
    words = [" ".join(FILLER), " ".join(CUES), " ".join(COLOURS), "which colour one is it ? zirp Ann Bo surely"] * 4
    folder = new_encoder(words, tmp_path_factory.mktemp("tiny"), vocab_size=300, hidden=64, layers=1, heads=2, max_length=48)
    tuner = Tuner(data, folder, task=request.param, progress=False)
    tuner.fit(epochs=6, lr=2e-3, batch_size=16, dropout=0.0, seed=0)
    return Explainer(Predictor(tuner.model, tuner.tokenizer, tuner.task)), make(8, rng)


def cue_of(row):
    "The planted word of a row."
    words = row["tokens"] if "tokens" in row else row.get("context", "zirp").split()
    return next(word for word in words if word in (*CUES, "zirp", "surely"))


@pytest.mark.parametrize("method, options", [("integrated gradients", {"steps": 64}), ("occlusion", {}), ("shap", {"samples": 4})])
def test_the_planted_cue_is_found_first(taught, method, options):
    explainer, rows = taught
    targets = None
    if "context" in rows[0]:      # where there is an answer, against "no answer"
        rows = [row for row in rows if "surely" in row["context"]]
        targets = [[Target(row["answers"]["text"][0], against=NO_ANSWER)] for row in rows]
    found = explainer.explain(rows, method, targets, **options)
    assert len(found) == len(rows) > 1
    for e, row in zip(found, rows):
        scores = np.where(np.isin(e.words, COLOURS), 0, np.nan_to_num(e.scores))    # a colour speaks for itself
        assert e.words[int(scores.argmax())] == cue_of(row), e


def test_integrated_gradients_are_complete(taught):
    explainer, rows = taught
    for scale in ("log-probability", "logit"):
        own = Explainer(explainer.predictor, scale=scale)
        cued = [row for row in rows if "surely" in row.get("context", "surely") and "visited" not in row.get("tokens", ())][:2]
        found = own.explain(cued, "integrated gradients", steps=400)
        assert any(abs(e.value - e.base) > 0.3 for e in found)    # there is something to explain
        for e in found:
            assert e.gap < 0.02 + 0.01 * abs(e.value - e.base), (scale, e.gap)


def test_the_value_is_what_the_predictor_says(taught):
    explainer, rows = taught
    for e, p in zip(explainer.explain(rows, "random"), explainer.predictor.predict(rows)):
        if "context" in rows[0] and not p["text"]:
            assert e.target == Target(NO_ANSWER)
        else:
            assert abs(math.exp(e.value) - p["score"]) < 1e-3


def test_every_method_in_batches_and_alone(taught):
    explainer, rows = taught
    one = Explainer(explainer.predictor, batch_tokens=1)
    for method in METHODS:
        options = {"samples": 4} if method in ("shap", "lime") else {"steps": 5} if "integrated" in method else {}
        together = explainer.explain(rows[:2], method, **options)
        for a, b in zip(together, one.explain(rows[:2], method, **options)):
            np.testing.assert_allclose(a.scores, b.scores, atol=1e-4, rtol=1e-3, err_msg=method)
        for e in together:
            assert len(e.scores) == len(e.words) and np.isfinite(e.scores).all(), method
            if method == "attention rollout":
                assert abs(np.nansum(e.scores) + e.rest - 1) < 1e-3


def test_against_another_answer(taught):
    explainer, rows = taught
    targets = targets_of(explainer.predictor, rows, against="each")
    for own in targets:
        assert own and all(target.against not in (None, target.label) for target in own if target.label != NO_ANSWER)
    for e in explainer.explain(rows[:4], "occlusion", targets[:4]):
        assert math.isfinite(e.value) and (e.value > 0 or e.target.label == NO_ANSWER)
    with pytest.raises(InputError):
        explainer.explain(rows[:1], targets=[[Target("no such answer")]])


def test_explanations_are_faithful_and_pictures_show_the_parts(taught):
    explainer, rows = taught
    result = Faithfulness("occlusion", names=("comprehensiveness",), draws=3)(explainer.predictor, rows)
    assert result.verdict in ("pass", "not enough evidence") and result.value > 0
    e = explainer.explain(rows[:1], "occlusion")[0]
    page = text_html([e])
    assert page.count("border-bottom") == len(_spans(e))
    if "tokens" in rows[0]:
        assert "<small>head</small>" in page and "<small>tail</small>" in page
    else:
        assert page.count("<br>") == 1 + len([part for part in e.parts if part])
    import matplotlib.pyplot as plt
    plt.close(plot_text(e))


def _spans(e):
    spans = [e.target.words] if e.target.words else [mark[:2] for mark in e.marks]
    return {i for start, end in spans for i in range(start, end)}


def blank(task, tmp_path, **options):
    "A predictor with large random weights."
    folder = new_encoder(["the quick fox saw a long train in the old town"] * 20, tmp_path, vocab_size=200, hidden=16,
                         layers=2, heads=2, max_length=64)
    tokenizer = load_tokenizer(folder)
    torch.manual_seed(1)
    model = load_model(folder, task, tokenizer, new_head=True, hidden_dropout_prob=0.0)
    task.prepare(tokenizer, model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    return Predictor(model, tokenizer, task, **options)


def test_answers_in_long_contexts_are_explained_where_they_were_found(tmp_path):
    explainer = Explainer(blank(QuestionAnswering(threshold=1e9), tmp_path, max_length=32, stride=8))
    rows = [{"question": f"what did the fox see {i} ?", "context": " ".join(["the old town", "a fox", "train"] * 12) + f" {i}"} for i in range(4)]
    for e, row, p in zip(explainer.explain(rows, "occlusion"), rows, explainer.predictor.predict(rows)):
        assert e.target.label == p["text"] and abs(math.exp(e.value) - p["score"]) < 1e-3
        assert np.isnan(e.scores).any() and np.isfinite(e.scores).any()
    declining = Explainer(blank(QuestionAnswering(threshold=-1e9), tmp_path / "b", max_length=32, stride=8))
    e, = declining.explain(rows[:1], "occlusion")
    assert e.target == Target(NO_ANSWER) and e.target.words is None
    named, = explainer.explain(rows[:1], "occlusion", [[Target("old town", against=NO_ANSWER)]])
    assert named.words[named.target.words[0]:named.target.words[1]] == ["old", "town"]
    for bad in (Target("Oslo"), Target("old", against="train"), Target("old", words=(0, 2))):
        with pytest.raises(InputError):
            explainer.explain(rows[:1], targets=[[bad]])


def test_words_of_choices_with_a_context(tmp_path):
    explainer = Explainer(blank(MultipleChoice([]), tmp_path))
    row = {"context": "The fox saw a train.", "question": "What was it?", "choices": ["a long train", "an old fox!", "town"]}
    words, parts = row_words(row)
    assert words[parts[3]:parts[4]] == ["an", "old", "fox", "!"] and parts[-1] == len(words)
    subject, = explainer.subjects([row])
    assert subject.inside.all()
    base = explainer.predictor(row)["probabilities"]
    target = [[Target("town", (parts[4], parts[5]), "an old fox!")]]
    e, = explainer.explain([row], "occlusion", target)
    assert abs(e.value - math.log(base[2] / base[1])) < 1e-3
    raw, = Explainer(explainer.predictor, scale="logit").explain([row], "occlusion", [[Target("town", (parts[4], parts[5]))]])
    others = np.r_[parts[2]:parts[4]]
    assert np.abs(raw.scores[others]).max() < 1e-4 and np.abs(raw.scores[parts[4]]) > 1e-3    # other choices have no part in a logit


def test_relation_words_beyond_the_window_have_no_score(tmp_path):
    explainer = Explainer(blank(RelationExtraction(["no_relation", "saw"]), tmp_path, max_length=32))
    row = {"tokens": ["the", "fox"] * 30, "head": [1, 2], "tail": [5, 6]}
    e, = explainer.explain([row], steps=64)
    assert np.isnan(e.scores).any() and np.isfinite(e.scores[:8]).all()
    assert e.marks == ((1, 2, "head"), (5, 6, "tail"))


def test_functions_for_relations():
    def answer(rows):
        return [{"no_relation": 1 - p, "saw": p} for p in (0.9 if "saw" in row["tokens"] else 0.2 for row in rows)]
    explainer = Explainer(Predictor(answer, task=RelationExtraction(["no_relation", "saw"])))
    row = {"tokens": ["Ann", "saw", "the", "Po"], "head": [0, 1], "tail": [3, 4]}
    e, = explainer.explain([row], "occlusion")
    assert e.top(1)[0][0] == "saw" and e.marks[0] == (0, 1, "head")
    with pytest.raises(InputError, match="give a model"):
        Explainer(Predictor(lambda rows: [""] * len(rows), task=QuestionAnswering()))
