"""Relations: markers, windows, scores against other scorers, a model that loads without safetune, and the command."""
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.metrics import precision_recall_fscore_support
from transformers import AutoModelForTokenClassification, AutoTokenizer

from safetune.cli import main
from safetune.data import NO_RELATION, InputError, check_mentions
from safetune.metrics import report
from safetune.predict import Predictor, to_json
from safetune.relations import (RelationExtraction, TripleExtractor, mark_words, nearest_words, relation_judgement, relation_scores,
                                sentence_key, sentences_of, triple_scores)
from safetune.small_data import sample_relations
from safetune.tasks import infer_task
from safetune.tuning import Tuner, new_encoder

WORDS = st.lists(st.sampled_from("Ada Rome left in the a".split()), min_size=2, max_size=12)


@st.composite
def sentences(draw):
    words = draw(WORDS)
    spans = st.tuples(st.integers(0, len(words)), st.integers(0, len(words)))
    head, tail = draw(spans), draw(spans)
    return words, head, tail


@given(sentences())
def test_markers_stand_around_the_mentions(case):
    words, head, tail = case
    if check_mentions(len(words), head, tail):
        return
    marked, places = mark_words(words, head, tail, "PER", "LOC")
    assert [word for word, place in zip(marked, places) if place >= 0] == words
    for side, kind, span in (("HEAD", "PER", head), ("TAIL", "LOC", tail)):
        first, last = marked.index(f"[{side}:{kind}]"), marked.index(f"[/{side}:{kind}]")
        assert [place for place in places[first:last] if place >= 0] == list(range(*span))
    depth = []    # markers close in the order in which they opened: no crossing
    for word, place in zip(marked, places):
        if place < 0 and not word.startswith("[/"):
            depth.append(word)
        elif place < 0:
            assert depth.pop()[1:] == word[2:]


@given(sentences(), st.data())
def test_a_window_keeps_what_is_near(case, data):
    words, head, tail = case
    if check_mentions(len(words), head, tail):
        return
    costs = data.draw(st.lists(st.integers(1, 5), min_size=len(words), max_size=len(words)))
    room = data.draw(st.integers(1, 60))
    kept, lost = nearest_words(costs, head, tail, room)
    assert sum(costs[word] for word in kept) <= room
    assert kept == sorted(set(kept)) and set(kept) <= set(range(len(words)))
    assert (lost == "") == (sum(costs) <= room) == (len(kept) == len(words))
    mentions = set(range(*head)) | set(range(*tail))
    if sum(costs[word] for word in mentions) <= room:
        assert mentions <= set(kept)
    first, last = min(head[0], tail[0]), max(head[1], tail[1])
    if lost == "outside":
        assert set(range(first, last)) <= set(kept) and kept == list(range(kept[0], kept[-1] + 1))


RELATIONS = [NO_RELATION, "founded", "born_in", "owns"]


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(RELATIONS), st.sampled_from(RELATIONS)), min_size=1, max_size=30))
def test_scores_equal_scikit_learn_and_the_rules_of_tacred(pairs):
    gold, pred = map(list, zip(*pairs))
    scores = relation_scores(gold, pred)
    ours = [scores[name] for name in ("precision", "recall", "f1")]
    theirs = precision_recall_fscore_support(gold, pred, labels=RELATIONS[1:], average="micro", zero_division=0)[:3]
    assert np.allclose(ours, theirs)
    # by the definition of TACRED's scorer: guesses and gold that are not no_relation, and the right ones among them
    right = sum(g == p != NO_RELATION for g, p in pairs)
    guessed, there = sum(p != NO_RELATION for p in pred), sum(g != NO_RELATION for g in gold)
    precision, recall = right / guessed if guessed else 1.0, right / there if there else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    assert np.isclose(scores["f1"], f1)
    above, below = relation_judgement([{"label": g} for g in gold], [{"label": p} for p in pred]).sum(0)
    assert np.isclose(above / below if below else 0.0, f1)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    "A small model that has learned something, and its data."
    folder = tmp_path_factory.mktemp("relations")
    data = sample_relations(160, seed=0)
    new_encoder(data["train"]["tokens"], folder / "encoder", vocab_size=300, hidden=32, heads=2)
    tuner = Tuner(data, folder / "encoder", progress=False)
    tuner.fit(epochs=1, lr=3e-3)
    tuner.save(folder / "model")
    return folder, data, tuner


def test_the_task_is_read_off_the_columns_and_kept_in_the_model(tuned):
    folder, data, tuner = tuned
    assert isinstance(infer_task(data), RelationExtraction) and isinstance(tuner.task, RelationExtraction)
    task = Predictor(folder / "model").task
    assert (task.labels, task.types) == (tuner.task.labels, ["LOC", "ORG", "PER"])
    assert task.labels[0] == NO_RELATION and "per_label" in tuner.evaluate() and report(tuner.evaluate())


def test_the_saved_model_answers_in_plain_transformers(tuned):
    folder, data, tuner = tuned
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForTokenClassification.from_pretrained(folder / "model")
    rows = list(data["test"].select(range(5)))
    for row, p in zip(rows, Predictor(folder / "model").predict(rows)):
        words, _ = mark_words(row["tokens"], row["head"], row["tail"], row["head_type"], row["tail_type"])
        inputs = tokenizer(words, is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0]
        tokens = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
        at = [i for i, token in enumerate(tokens) if token.startswith(("[HEAD", "[TAIL"))]
        assert len(at) == 2
        assert np.allclose(logits[at].sum(0).softmax(-1).numpy(), p["probabilities"], atol=1e-4)
        assert model.config.id2label[int(logits[at].sum(0).argmax())] == p["label"]


def test_every_pair_of_a_sentence_gets_its_own_answer(tuned):
    folder, data, _ = tuned
    rows = [row for row in data["test"] if sentence_key(row) == sentence_key(data["test"][0])]
    predictor = Predictor(folder / "model")
    probabilities = [tuple(p["probabilities"].round(6)) for p in predictor.predict(rows)]
    assert predictor.asked == len(rows) == len(set(probabilities))
    line = json.loads(json.dumps(to_json(predictor.predict(rows)[0], predictor.task)))
    assert set(line["probabilities"]) == set(predictor.task.labels) and line["subject"] == " ".join(
        rows[0]["tokens"][slice(*rows[0]["head"])])


def test_long_sentences_keep_both_mentions(tuned, caplog):
    folder, data, tuner = tuned
    row = {**data["test"][0]}
    words = list(row["tokens"])
    far = {**row, "tokens": ["so"] * 300 + words + ["so"] * 300 + ["Rome"], "head": [300, 302], "tail": [600 + len(words), 601 + len(words)],
           "label": NO_RELATION}
    with caplog.at_level("WARNING", "safetune"):
        (feature,) = tuner.task.encode([far], tuner.tokenizer, 64)
    assert len(feature["input_ids"]) <= 64 and sorted(at for at in feature["word_at"] if at >= 0) == [0, 1]
    assert "1 of 1 sentences do not fit into 64 subwords" in caplog.text and "in 1 of them also words between" in caplog.text
    assert "Rome" in tuner.tokenizer.decode(feature["input_ids"]).replace(" ", "")


def test_unknown_types_and_labels_are_no_crash(tuned):
    folder, data, tuner = tuned
    row = {**data["test"][0], "head_type": "PLANET", "label": "orbits"}
    assert tuner.predict([row])[0]["label"] in tuner.task.labels
    assert set(tuner.task.encode([row], tuner.tokenizer, 128)[0]["labels"]) == {-100}


@pytest.mark.parametrize("item, what", [
    ({"tokens": ["a", "b"], "head": [0, 1], "tail": [5, 6]}, r"the tail \[5, 6\) is not inside the 2 words"),
    ({"tokens": ["a", "b"]}, "give tokens, head and tail"), ("no marks at all", "the head is not a pair of word numbers"),
    ({"tokens": ["a", "b"], "head": [0, 1], "tail": [0, 1]}, "the same words")])
def test_bad_input_is_told_in_one_line(tuned, item, what):
    with pytest.raises(InputError, match=what) as error:
        Predictor(tuned[0] / "model").predict([item])
    assert "\n" not in str(error.value)


def test_triples_end_to_end():
    rows = list(sample_relations(60, seed=1)["test"])
    gold = sentences_of(rows)
    answers = {(" ".join(r["tokens"]), tuple(r["head"]), tuple(r["tail"])): r["label"] for r in rows}

    def oracle(pairs):
        return [answers[" ".join(p["tokens"]), tuple(p["head"]), tuple(p["tail"])] for p in pairs]

    perfect = TripleExtractor(Predictor(oracle)).predict(gold)
    assert triple_scores(gold, perfect)["f1"].value == 1.0
    tags = {" ".join(s["tokens"]): s["tags"] for s in gold}
    tagged = TripleExtractor(Predictor(oracle), Predictor(lambda found: [tags[" ".join(r["tokens"])] for r in found]))
    assert triple_scores(gold, tagged.predict([{"tokens": s["tokens"]} for s in gold]))["f1"].value == 1.0
    blind = TripleExtractor(Predictor(oracle), Predictor(lambda found: [["O"] * len(r["tokens"]) for r in found]))
    assert triple_scores(gold, blind.predict([{"tokens": s["tokens"]} for s in gold]))["recall"].value == 0.0
    with pytest.raises(InputError, match="the item has no entities"):
        TripleExtractor(Predictor(oracle)).predict(["a text"])


def test_the_command_scores_and_predicts(tuned, capsys):
    folder, data, tuner = tuned
    for split in ("test", "train"):
        data[split].to_json(folder / f"{split}.jsonl")
    assert main(["evaluate", str(folder / "model"), "--test", str(folder / "test.jsonl"), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["task"] == "relation-extraction" and scores["f1"] == pytest.approx(tuner.evaluate()["f1"])
    assert scores["intervals"]["f1"]["n"] == len(sentences_of(data["test"]))
    assert main(["predict", str(folder / "model"), str(folder / "test.jsonl")]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["id"] for answer in answers] == data["test"]["id"][:]
    assert [answer["label"] for answer in answers] == [p["label"] for p in tuner.predict("test")]
