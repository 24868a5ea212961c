"""Translation and summarisation: scores against sacrebleu and rouge-score, mentions, padding, models that load without safetune, the command."""
import datetime
import json
import sys

import numpy as np
import pytest
import sacrebleu
import torch
from hypothesis import given, settings, strategies as st
from rouge_score.rouge_scorer import RougeScorer
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.models.bart.modeling_bart import shift_tokens_right

from safetune.cli import main
from safetune.data import IGNORE_INDEX, InputError, load_data
from safetune.predict import Predictor
from safetune.sequences import (ROUGES, SequenceCollator, Summarization, Translation, corpus_intervals, corpus_scores, entity_counts_of,
                                find_dates, find_mentions, find_numbers, rouge_scores, sentence_chrf, sentences_of, shift_right,
                                unsupported)
from safetune.small import new_seq2seq
from safetune.small_texts import translation_pairs
from safetune.tasks import infer_task, load_model, load_tokenizer
from safetune.tuning import Tuner

SENTENCES = st.lists(st.sampled_from("Der Hund the dogs sieht, 1.5 Ärger “x” 東京 . -- don't U.S.".split()), max_size=9).map(" ".join)
PAIRS = st.lists(st.tuples(SENTENCES.filter(bool), SENTENCES), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(PAIRS, st.sampled_from(["13a", "intl", "char", "none"]))
def test_corpus_scores_are_those_of_sacrebleu(pairs, tokenizer):
    targets, texts = map(list, zip(*pairs))
    found = corpus_scores(targets, texts, tokenizer)
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(texts, [targets], tokenize=tokenizer, force=True).score)
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(texts, [targets]).score)
    assert f"tok:{tokenizer}" in found["bleu_signature"] and sacrebleu.__version__ in found["chrf_signature"]
    for target, text, value in zip(targets, texts, sentence_chrf(targets, texts)):
        assert value == pytest.approx(sacrebleu.sentence_chrf(text, [target]).score / 100) or not text.strip()


@settings(max_examples=10, deadline=None)
@given(PAIRS, st.integers(0, 3))
def test_intervals_are_around_the_corpus_score(pairs, seed):
    targets, texts = map(list, zip(*pairs))
    found = corpus_scores(targets, texts)
    for name, interval in corpus_intervals(targets, texts, n_resamples=60, seed=seed).items():
        assert interval.value == pytest.approx(found[name])
        assert interval.low <= interval.high and interval.n == len(pairs)
    again = corpus_intervals(targets, texts, n_resamples=60, seed=seed)["chrf"]
    assert again == corpus_intervals(targets, texts, n_resamples=60, seed=seed)["chrf"]


@settings(max_examples=15, deadline=None)
@given(PAIRS)
def test_rouge_is_that_of_rouge_score(pairs):
    targets, texts = map(list, zip(*pairs))
    scorer = RougeScorer(ROUGES, use_stemmer=True)
    for row, target, text in zip(rouge_scores(targets, texts), targets, texts):
        lines = ["\n".join(sentences_of(part)) for part in (target, text)]
        expected = scorer.score(target, text)
        assert row[:3] == pytest.approx([expected[name].fmeasure for name in ROUGES[:3]])
        assert row[3] == pytest.approx(scorer.score(*lines)["rougeLsum"].fmeasure)


def test_rouge_of_other_scripts_is_not_zero(caplog):
    assert rouge_scores(["東京に雨が降る"], ["東京に雨が降る"], "unicode")[0].tolist() == [1, 1, 1, 1]
    with caplog.at_level("WARNING", "safetune"):
        assert rouge_scores(["東京に雨"], ["東京に雨"])[0, 0] == 0
    assert "drops 100% of the letters" in caplog.text


@given(st.integers(0, 10**9), st.sampled_from(["{:d}", "{:,}", "{:d}%"]))
def test_a_number_is_read_as_it_was_written(number, form):
    (found,) = find_numbers(f"They paid {form.format(number)} in all.")
    assert float(number) in found.key


@given(st.dates(datetime.date(1000, 1, 1), datetime.date(2999, 12, 31)),
       st.sampled_from(["%Y-%m-%d", "%d.%m.%Y", "%d %B %Y", "%B %d, %Y", "%d %b %Y"]))
def test_a_date_is_read_as_it_was_written(day, form):
    text = day.strftime(form).replace(day.strftime("%Y"), f"{day.year:04d}")
    (found,) = find_dates(f"It was on {text}, they said.")
    assert found.key == (day.year, day.month, day.day)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from("Anna Keller's left Rome on 3 May 2021 with 1,200 O'Neil de la Cruz . \n “The U.S. 5% twenty-one né".split(" ")),
                max_size=25).map(" ".join))
def test_a_text_supports_itself(text):
    assert unsupported(text, text)[1] == []
    for one in find_mentions(text):
        assert text[one.start:one.end] == one.text
    (counts,) = entity_counts_of([{"source": text, "target": text}], [text])
    assert counts[0] == counts[1] and counts[2] == counts[3]


def test_what_the_source_does_not_have_is_seen():
    source = "Anna Keller left Rome on 3 May with 1,200 books."
    for false, kind in (("Anna Weber left Rome.", "name"), ("She had 1,300 books.", "number"), ("It was on 4 May.", "date")):
        (one,) = unsupported(source, false)[1]
        assert one.kind == kind
    assert unsupported(source, "In May Keller had 1200 books.")[1] == []    # other spelling, less said of the date
    assert [one.text for one in unsupported(source, "It was on 3 May 2021.")[1]] == ["3 May 2021"]    # the year is new


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(2, 50), min_size=1, max_size=7), min_size=1, max_size=5), st.integers(0, 1), st.integers(1, 8))
def test_decoder_inputs_are_those_of_transformers(rows, start, multiple):
    tokenizer = type("Tokenizer", (), {"pad_token_id": 0})
    features = [{"input_ids": row, "attention_mask": [1] * len(row), "labels": row} for row in rows]
    batch = SequenceCollator(tokenizer, start, multiple)(features)
    assert batch["labels"].shape[1] % multiple == batch["input_ids"].shape[1] % multiple == 0
    assert batch["decoder_input_ids"].equal(shift_tokens_right(batch["labels"], 0, start))
    assert (batch["labels"] != IGNORE_INDEX).sum() == sum(map(len, rows)) == batch["attention_mask"].sum()
    assert [row[0] for row in shift_right(batch["labels"], None, 0).tolist()] == [row[-1] for row in rows]


@pytest.fixture(scope="module")
def small():
    return translation_pairs(40)


@pytest.fixture(scope="module")
def start(small, tmp_path_factory):
    pairs = [(row["source"], row["target"]) for row in small["train"]]
    return new_seq2seq(pairs, tmp_path_factory.mktemp("start"), vocab_size=320, hidden=32, heads=2, max_length=64)


@pytest.fixture(scope="module")
def tuned(small, start, tmp_path_factory):
    tuner = Tuner(small, start, progress=False, options={"max_new_tokens": 10, "num_beams": 2, "min_new_tokens": 4, "prefix": "de: "})
    history = tuner.fit(epochs=1, lr=3e-3)
    assert history["validation_loss"].notna().all() and {"chrf", "bleu"} <= set(history)
    return tuner, tuner.save(tmp_path_factory.mktemp("tuned"))


def test_plain_transformers_writes_the_same(tuned):
    tuner, folder = tuned
    rows = list(tuner.data["test"])[:6]
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(["de: " + row["source"] for row in rows], return_tensors="pt", padding=True)
    texts = tokenizer.batch_decode(model.generate(**batch), skip_special_tokens=True)
    predictions = Predictor(folder).predict(rows)
    assert [p["text"] for p in predictions] == [text.strip() for text in texts]
    assert all(p["score"] <= 0 for p in predictions) and max(len(text) for text in texts) > 0


def test_options_are_kept_with_the_model(tuned):
    task = Predictor(tuned[1]).task
    assert isinstance(task, Translation) and (task.max_new_tokens, task.num_beams, task.prefix) == (10, 2, "de: ")
    assert isinstance(Predictor(tuned[1], task=Summarization(num_beams=3)).task, Summarization)


def test_a_row_alone_and_in_company_is_answered_alike(tuned):
    rows = list(tuned[0].data["test"])[:3] + [{"source": "The dog sees " * 12}]
    together = Predictor(tuned[1]).predict(rows)
    for row, p in zip(rows, together):
        (alone,) = Predictor(tuned[1]).predict([row])
        assert alone["text"] == p["text"] and alone["score"] == pytest.approx(p["score"], abs=1e-4)


def test_the_command_translates(tuned, tmp_path, capsys):
    (tmp_path / "new.jsonl").write_text('{"id": 7, "source": "The dog sees the ball."}\n')
    assert main(["--quiet", "predict", str(tuned[1]), str(tmp_path / "new.jsonl")]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["id"] == 7 and line["text"] == Predictor(tuned[1])("The dog sees the ball.")["text"]


def test_what_is_too_long_is_cut_and_counted(start, caplog):
    task, tokenizer = Translation(max_target=8), load_tokenizer(start)
    task.prepare(tokenizer, load_model(start, task, tokenizer))
    rows = [{"source": "short", "target": "kurz"}, {"source": "the dogs " * 80, "target": "die Hunde " * 40}]
    with caplog.at_level("WARNING", "safetune"):
        features = task.encode(rows, tokenizer, 32)
    assert task.repairs == {"source": 1, "target": 1} and "1 of 2: source is longer than 32 tokens and cut" in caplog.text
    assert [len(f["input_ids"]) <= 32 for f in features] == [True, True]
    assert len(features[1]["labels"]) == 8 and features[1]["labels"][-1] == tokenizer.eos_token_id


def test_t5_brings_its_prefix(small, tmp_path, caplog):
    folder = new_seq2seq(small["train"]["source"], tmp_path / "t5", kind="t5", vocab_size=300, hidden=16, heads=2, layers=1)
    config = json.loads((tmp_path / "t5" / "config.json").read_text())
    config["task_specific_params"] = {"summarization": {"prefix": "summarize: "}, "translation_en_to_de": {"prefix": "German: "},
                                      "translation_en_to_fr": {"prefix": "French: "}}
    (tmp_path / "t5" / "config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(folder)
    for task, prefix in ((Summarization(), "summarize: "), (Translation(), "")):
        with caplog.at_level("WARNING", "safetune"):
            task.prepare(tokenizer, load_model(folder, task, tokenizer))
        assert task.prefix == prefix
    assert "this T5 knows several prefixes ('German: ', 'French: ')" in caplog.text


def test_tasks_are_told_apart(small):
    assert infer_task(small).name == "translation"    # summarisation has the same columns, and is named
    assert infer_task(small, "summarization").name == "summarization"
    hub = load_data([{"translation": {"en": "a dog", "de": "ein Hund"}}] * 3)
    assert infer_task(hub).name == "translation"


def test_errors_are_told_in_one_line(small, monkeypatch):
    for call, what in ((lambda: Translation(beams=4), "translation has no option 'beams'"),
                       (lambda: corpus_scores([], []), "no rows to score"),
                       (lambda: corpus_scores(["a"], ["a"], "klingon"), "cannot split words by 'klingon'"),
                       (lambda: rouge_scores(["a"], ["a"], "klingon"), "no ROUGE for 'klingon'"),
                       (lambda: Summarization().score([], []), "no rows to score")):
        with pytest.raises(InputError, match=what) as error:
            call()
        assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(InputError, match=r"safetune\[generation\]"):
        infer_task(small)
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(InputError, match=r"safetune\[generation\]"):
        infer_task(small, "summarization")


def test_baselines_and_functions_are_judged_like_models(small):
    rows = list(small["test"])
    task = Translation()
    copied, words = task.baseline(list(small["train"]), rows)
    above, below = task.judge(rows, copied).sum(0)
    assert 0 < above / below < 0.3 and words
    assert task.score(rows, [{"text": row["target"]} for row in rows])["chrf"] == pytest.approx(100)
    upper = Predictor(lambda some: [row["source"].upper() for row in some], task=task).predict(rows)
    assert [p["text"] for p in upper] == [row["source"].upper() for row in rows]
    assert np.isfinite(list(task.summary(rows, upper)["intervals"]["chrf"][side] for side in ("low", "high"))).all()
    article = [{"source": "Anna left Rome. It rained.", "target": "Anna left."}]
    assert Summarization().baseline([], article)[0] == [{"text": "Anna left Rome."}]


def test_torch_is_left_as_it_was(tuned):
    tuned[0].model.train()
    tuned[0].predict([{"source": "a dog"}])
    assert tuned[0].model.training and torch.is_grad_enabled()
    tuned[0].model.eval()
