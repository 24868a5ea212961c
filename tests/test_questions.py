"""Questions and choices: scores against SQuAD's own, windows and spans, models that load without safetune, and the command."""
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import AutoModelForMultipleChoice, AutoModelForQuestionAnswering, AutoTokenizer

from safetune.cli import main
from safetune.data import InputError, full_text, load_data
from safetune.predict import Predictor
from safetune.questions import (MultipleChoice, QuestionAnswering, answer_pieces, best_span, best_threshold, choice_pairs, judge_answer,
                                question_scores, read_windows, word_f1)
from safetune.small_data import sample_choices, sample_questions
from safetune.tasks import infer_task, load_tokenizer
from safetune.tuning import Tuner, new_encoder

# What `squad_evaluate` of transformers 4.46.3 (its port of SQuAD 2's evaluate-v2.0.py) says of these answers, threshold 0.5.
# Beside this case it was compared on 20,000 pairs of answers and 300 such sets: all equal, but for `best_f1` of one set where
# two no-answer scores tie, between which the script puts its threshold.
REFERENCE = {'gold': [['of Rome. a', '東京 Rome. u.s a of', '1000'], [], ['$5 $5', 'u.s of “quoted”'], [], [], [], ['Rome'], ['in "q" 1000 theatre of'],
          ['Adas $5 -- the-end Adas', 'Rome İstanbul The', '東京 u.s'], [], [], ['Rome', '- Café The in', 'Rome Rome u.s a'], [],
          ['Adas $5 - $5 $5', '-- İstanbul', 'İstanbul the Rome. 東京'], [], [], ['"q"', 'of', 'Rome.'],
          ['the-end 1000 東京 the', '“quoted” the-end 東京 theatre the-end'], [], ['café -- 1000 -'], [],
          ['theatre u.s 1,000 Café Café', 'Rome. the rome, theatre']],
 'pred': ['of Rome. a', '東京 $5 u.s 1,000 $5', 'u.s of “quoted”', 'u.s  1000 1,000', 'café the $5 $5', "theatre café an Ada's the", '',
          'in "q" 1000 theatre of', '5 theatre', 'café café “quoted” Café an', '“quoted” Rome.', '- Café The in', '東京 in Rome.  rome,',
          '-- İstanbul', '', '', '"q"', 'the-end 1000 東京 the', 'Café U.S. U.S.', 'café -- 1000 -', '東京 a the-end -- The',
          'of İstanbul rome, Café the'],
 'none': [0.64, -0.83, -3.28, -2.13, -0.98, -1.82, -2.18, 3.48, 1.7, -2.21, 0.89, 0.82, -0.18, -1.13, -2.04, -2.81, -3.58, -1.99, 0.54,
          4.96, -1.74, -1.77],
 'scores': {'exact': 36.3636363636,
            'f1': 37.6623376623,
            'total': 22.0,
            'HasAns_exact': 36.3636363636,
            'HasAns_f1': 38.961038961,
            'HasAns_total': 11.0,
            'NoAns_exact': 36.3636363636,
            'NoAns_f1': 36.3636363636,
            'NoAns_total': 11.0,
            'best_exact': 59.0909090909,
            'best_exact_thresh': -3.28,
            'best_f1': 59.0909090909,
            'best_f1_thresh': -3.28}}


def test_scores_are_those_of_the_squad_script():
    rows = [{"context": str(i), "answers": {"text": gold}} for i, gold in enumerate(REFERENCE["gold"])]
    predictions = [{"text": "" if none > 0.5 else text, "candidate": {"text": text}, "no_answer_score": none}
                   for text, none in zip(REFERENCE["pred"], REFERENCE["none"])]
    scores, theirs = question_scores(rows, predictions), REFERENCE["scores"]
    for ours, name in (("exact_match", "exact"), ("f1", "f1"), ("has_answer_exact_match", "HasAns_exact"), ("has_answer_f1", "HasAns_f1"),
                       ("no_answer_exact_match", "NoAns_exact"), ("no_answer_f1", "NoAns_f1"), ("best_f1", "best_f1")):
        assert 100 * scores[ours] == pytest.approx(theirs[name]), ours
    above, below = QuestionAnswering().judge(rows, predictions).sum(0)
    assert above / below == pytest.approx(scores["f1"])
    intervals = QuestionAnswering().intervals(rows, predictions)
    assert intervals["f1"].low <= scores["f1"] <= intervals["f1"].high and intervals["has_answer_f1"].value == pytest.approx(scores["has_answer_f1"])


@given(st.text(alphabet="ab the.,'\"A", max_size=12), st.text(alphabet="ab the.,'\"A", max_size=12))
def test_word_f1_is_symmetric_and_bounded(a, b):
    assert word_f1(a, b) == word_f1(b, a) and 0 <= word_f1(a, b) <= 1 and word_f1(a, a) == 1
    exact, f1 = judge_answer({"text": [a, b]}, a)
    assert exact <= f1


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1), st.integers(-5, 5)), min_size=1, max_size=25))
def test_no_threshold_beats_the_fitted_one(questions):
    none = np.array([float(n) for n, _, _ in questions])
    values = np.array([0.0 if n else v for n, v, _ in questions])
    declining = np.array([d for _, _, d in questions])
    threshold, value = best_threshold(values, none, declining)
    assert np.where(declining > threshold, none, values).mean() == pytest.approx(value)
    assert value >= max(np.where(declining > t, none, values).mean() for t in np.arange(-6.5, 7)) - 1e-9


@given(st.integers(1, 20), st.integers(1, 25), st.integers(0, 10**6))
def test_the_best_span_is_the_best_of_all(n, longest, seed):
    rng = np.random.default_rng(seed)
    start, end = rng.normal(size=(2, n))
    inside = rng.random(n) < 0.7
    inside[rng.integers(n)] = True
    score, first, last = best_span(start, end, inside, longest)
    every = {(i, j): start[i] + end[j] for i in range(n) for j in range(i, min(n, i + longest)) if inside[i] and inside[j]}
    assert every[first, last] == max(every.values()) == pytest.approx(score)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    rows = [row for data in (sample_questions(60), sample_choices(60)) for row in data["train"]]
    return new_encoder(map(full_text, rows), tmp_path_factory.mktemp("encoder"), vocab_size=250, hidden=32, heads=2, max_length=256)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_every_answer_is_found_in_some_window(encoder, data):
    tokenizer = load_tokenizer(encoder)
    words = data.draw(st.lists(st.sampled_from("Ada Rome 1870 café — the-end Ltd.".split()), min_size=1, max_size=60))
    context, question = " ".join(words), " ".join(data.draw(st.lists(st.just("Who"), min_size=1, max_size=30)))
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, min(len(words) - 1, first + 1)))
    start = len(" ".join(words[:first])) + (first > 0)
    answer = " ".join(words[first:last + 1])
    max_length, stride = data.draw(st.integers(48, 90)), data.draw(st.integers(20, 64))
    windows = read_windows(tokenizer, [question], [context], max_length, stride)
    found, covered = [], set()
    for k in range(len(windows["input_ids"])):
        assert len(windows["input_ids"][k]) <= max_length
        offsets = [place if part == 1 else None for place, part in zip(windows["offset_mapping"][k], windows.sequence_ids(k))]
        covered |= {c for place in offsets if place for c in range(*place)}
        a, b = answer_pieces(offsets, {"text": [answer], "answer_start": [start]})
        if b:
            found.append(context[offsets[a][0]:offsets[b][1]])
    assert set(found) <= {answer}    # to the character, whatever the window
    assert covered == {i for i, char in enumerate(context) if char != " "}
    if len(windows["input_ids"]) == 1:
        assert found == [answer]


@pytest.fixture(scope="module")
def tuned(encoder, tmp_path_factory):
    folder, tuners = tmp_path_factory.mktemp("tuned"), {}
    for name, data in (("qa", sample_questions(120)), ("mc", sample_choices(120))):
        tuner = tuners[name] = Tuner(data, encoder, progress=False)
        tuner.fit(epochs=1, lr=1e-3)
        tuner.save(folder / name)
    return folder, tuners


def test_tasks_are_read_off_the_columns_and_the_model(tuned):
    folder, tuners = tuned
    for name, kind in (("qa", QuestionAnswering), ("mc", MultipleChoice)):
        assert isinstance(infer_task(tuners[name].data), kind) and isinstance(Predictor(folder / name).task, kind)
    assert Predictor(folder / "qa").task.threshold == tuners["qa"].task.threshold
    history = tuners["qa"].history
    assert history["validation_loss"].notna().all() and {"f1", "has_answer_f1", "best_f1"} <= set(history)


def test_a_model_of_questions_answers_in_plain_transformers(tuned):
    folder, tuners = tuned
    row = tuners["qa"].data["test"][0]
    tokenizer, model = AutoTokenizer.from_pretrained(folder / "qa"), AutoModelForQuestionAnswering.from_pretrained(folder / "qa")
    inputs = tokenizer(row["question"], row["context"], return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    start, end = outputs.start_logits[0].numpy(), outputs.end_logits[0].numpy()
    inside = np.array([part == 1 for part in inputs.sequence_ids(0)])
    score, first, last = best_span(start, end, inside, 30)
    (p,) = Predictor(folder / "qa").predict([row])
    assert p["no_answer_score"] == pytest.approx(start[0] + end[0] - score, abs=1e-4)
    assert p["candidate"]["text"] == row["context"][inputs.token_to_chars(first).start:inputs.token_to_chars(last).end]
    assert p["text"] == ("" if p["no_answer_score"] > model.config.safetune_threshold else p["candidate"]["text"])


def test_a_model_of_choices_answers_in_plain_transformers(tuned):
    folder, tuners = tuned
    rows = list(tuners["mc"].data["test"].select(range(6)))
    rows[0] = {**rows[0], "choices": rows[0]["choices"][:2], "context": "Ada has a shop."}    # fewer choices than the others of its batch
    tokenizer, model = AutoTokenizer.from_pretrained(folder / "mc"), AutoModelForMultipleChoice.from_pretrained(folder / "mc")
    for row, p in zip(rows, Predictor(folder / "mc").predict(rows)):
        inputs = tokenizer(*map(list, zip(*choice_pairs(row))), padding=True, return_tensors="pt")
        with torch.no_grad():
            logits = model(**{k: v[None] for k, v in inputs.items()}).logits[0]
        assert np.allclose(logits.softmax(-1).numpy(), p["probabilities"], atol=1e-4)
        assert p["text"] == row["choices"][p["label"]] == row["choices"][int(logits.argmax())]


def test_choices_of_different_number_train_together(encoder):
    rows = [{**row, "choices": row["choices"][:2 + i % 3], "label": 0} for i, row in enumerate(sample_choices(60)["train"])]
    tuner = Tuner(load_data(rows), encoder, progress=False)
    history = tuner.fit(epochs=1, lr=1e-3)
    assert history["validation_loss"].notna().all() and np.isfinite(history["train_loss"]).all()
    assert {len(p["probabilities"]) for p in tuner.predict(rows)} == {2, 3, 4}


def test_baselines_are_honest(tuned):
    _, tuners = tuned
    for name, tuner in tuners.items():
        rows = list(tuner.data["test"])
        predictions, words = tuner.task.baseline(list(tuner.data["train"]), rows)
        above, below = tuner.task.judge(rows, predictions).sum(0)
        assert 0.1 < above / below < 0.6 and words    # of use against a model that has learned nothing, no more


@pytest.mark.parametrize("name, item, what", [
    ("qa", {"question": "Who?"}, "the item has no context"), ("qa", {"question": " ", "context": "x"}, "the item has no question"),
    ("mc", {"question": "Who?"}, "no question with choices"), ("mc", {"question": "Who?", "choices": ["Ada"]}, "1 choice"),
    ("mc", {"question": "Who?", "choices": ["Ada", " "]}, "none may be empty")])
def test_bad_input_is_told_in_one_line(tuned, name, item, what):
    with pytest.raises(InputError, match=what) as error:
        Predictor(tuned[0] / name).predict([item])
    assert "\n" not in str(error.value)


def test_a_long_question_is_cut_and_a_tiny_input_refused(encoder, caplog):
    tokenizer = load_tokenizer(encoder)
    with caplog.at_level("WARNING", "safetune"):
        windows = read_windows(tokenizer, ["Who left " * 200], ["Ada left Rome. " * 30], 64, 16)
    assert "1 of 1 questions are longer than 30 subwords and are cut" in caplog.text and max(map(len, windows["input_ids"])) <= 64
    with pytest.raises(InputError, match="too few for a question and a piece of its context"):
        read_windows(tokenizer, ["Who left Rome and when?"], ["Ada"], 8, 2)


def test_the_command_scores_and_predicts(tuned, tmp_path, capsys):
    folder, tuners = tuned
    for name, metric in (("qa", "f1"), ("mc", "accuracy")):
        file = tmp_path / f"{name}.jsonl"
        tuners[name].data["test"].to_json(file)
        assert main(["evaluate", str(folder / name), "--test", str(file), "--json"]) == 0
        scores = json.loads(capsys.readouterr().out)
        assert scores[metric] == pytest.approx(tuners[name].evaluate()[metric]) and scores["intervals"][metric]["n"] > 1
        assert main(["predict", str(folder / name), str(file)]) == 0
        answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [answer["text"] for answer in answers] == [p["text"] for p in tuners[name].predict("test")]
    (tmp_path / "bad.jsonl").write_text('{"question": "Who?"}\n')
    assert main(["predict", str(folder / "qa"), str(tmp_path / "bad.jsonl")]) == 2
    assert "bad.jsonl, row 1: the item has no context" in capsys.readouterr().err
