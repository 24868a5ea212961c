"""Swaps and fairness: properties, agreement with fairlearn and hand counts, hostile input."""
import json
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from safetune.checks import Gate, Result
from safetune.data import InputError, split_words
from safetune.fairness import (Counterfactual, GroupGap, GroupThresholds, PairPreference, WordAssociation, augment,
                               calibration_by_group, compare, confusion_counts, demographic_parity, equalised_odds,
                               fairness_checks, load_pairs, load_weat, metric_frame, name_groups, resample, reweigh,
                               run_fairness)
from safetune.metrics import entities
from safetune.predict import Predictor
from safetune.sample import sample_ner, sample_text
from safetune.swaps import SWAPS, Edit, Swap, edit_text, edit_words, find_terms, list_terms, load_terms, read_spans
from safetune.tasks import MultiLabelClassification

NEWS = list(sample_ner({"train": 1, "validation": 1, "test": 400}, seed=5)["test"])
TEXTS = list(sample_text({"train": 1, "validation": 1, "test": 400}, seed=5)["test"])
GENDER = Swap("names by gender")

tags_strategy = st.lists(st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]), max_size=12)


@given(tags_strategy)
def test_read_spans_reads_as_metrics_do(tags):
    assert read_spans(tags) == (entities(tags) if tags else [])


@settings(max_examples=200)
@given(st.integers(0, 10**9))
def test_edits_keep_other_words_entities_and_offsets(seed):
    rng = random.Random(seed)
    words = [rng.choice(["Ana", "Rome", "flew", "to", ",", "é", "王"]) for _ in range(rng.randint(1, 10))]
    text, offsets = "", []
    for word in words:
        text += rng.choice(["", " ", "  ", "\n"])
        offsets.append((len(text), len(text) + len(word)))
        text += word
    tags = ["O"] * len(words)
    place = 0
    while place < len(words):
        size = rng.randint(1, 3)
        if rng.random() < 0.5 and place + size <= len(words):
            tags[place:place + size] = ["B-PER"] + ["I-PER"] * (size - 1)
        place += size
    spans = read_spans(tags)
    edits = [Edit(start, end, tuple(rng.choice(["Li", "Bo", "Zoë"]) for _ in range(rng.randint(1, 4))))
             for _, start, end in spans if rng.random() < 0.6]
    new_words, new_tags = edit_words(words, tags, edits)
    new_text, new_offsets = edit_text(text, offsets, edits)
    assert len(new_words) == len(new_tags) == len(new_offsets)
    assert [new_text[a:b] for a, b in new_offsets] == new_words
    assert [kind for kind, _, _ in read_spans(new_tags)] == [kind for kind, _, _ in spans]
    changed = {(e.start, e.end): list(e.words) for e in edits}
    for (_, start, end), (_, new_start, new_end) in zip(spans, read_spans(new_tags)):
        assert new_words[new_start:new_end] == changed.get((start, end), words[start:end])
    untouched = [w for i, w in enumerate(words) if not any(e.start <= i < e.end for e in edits)]
    rest = [w for i, w in enumerate(new_words)]
    for word in untouched:                                      # in order
        rest = rest[rest.index(word) + 1:]


@pytest.mark.parametrize("name", SWAPS)
def test_swaps_keep_labels_and_offsets(name):
    swap, seen = Swap(name), 0
    for row in NEWS[:200]:
        text, offsets = "", []
        for word in row["tokens"]:
            offsets.append((len(text), len(text) + len(word)))
            text += word + " "
        made = swap.versions(row | {"text": text, "offsets": offsets})
        for new in made.rows.values() if made else ():
            seen += 1
            assert [new["text"][a:b] for a, b in new["offsets"]] == new["tokens"]
            assert [k for k, _, _ in read_spans(new["tags"])] == [k for k, _, _ in read_spans(row["tags"])]
            assert new["document"] == row["document"]
        if made:
            assert all(i < len(read_spans(row["tags"])) for i in made.touched)
            again = swap.versions(row)
            assert again.rows[swap.groups[0]]["tokens"] == made.rows[swap.groups[0]]["tokens"]     # repeatable
    assert seen or name in ("religion", "gendered words", "spelling")


def test_one_to_one_swap_is_its_own_inverse():
    swap, text = Swap("pronouns"), "She gave her book to him and hurt herself ."
    male = swap.versions({"text": text}).rows["male"]["text"]
    assert male == "He gave his book to him and hurt himself ."
    assert swap.versions({"text": male}).rows["female"]["text"] == "She gave her book to her and hurt herself ."


def test_names_that_are_words_stay_in_untagged_text():
    assert GENDER.versions({"text": "Will the price in May rise?"}) is None
    tagged = {"tokens": ["Will", "May", "left"], "tags": ["B-PER", "I-PER", "O"]}
    assert GENDER.versions(tagged).rows["female"]["tokens"][0] != "Will"


def test_case_and_articles_follow():
    rows = Swap("age").versions({"text": "A manager met an engineer. THE NURSE left."}).rows
    assert rows["old"]["text"] == "An elderly manager met an elderly engineer. THE ELDERLY NURSE left."
    assert rows["young"]["text"] == "A young manager met a young engineer. THE YOUNG NURSE left."


def test_text_pair_is_swapped_with_the_same_names():
    row = {"text": "Emily called.", "text_pair": "Did Emily call?", "label": "x"}
    male = GENDER.versions(row).rows["male"]
    assert male["text"].split()[0] == male["text_pair"].split()[1]


def test_chinese_names_change_length():
    row = {"tokens": list("买买提去北京"), "tags": ["B-PER", "I-PER", "I-PER", "O", "B-LOC", "I-LOC"]}
    new = Swap("names by gender", "zh").versions(row).rows["female"]
    assert len(new["tokens"]) == len(new["tags"]) and [k for k, _, _ in read_spans(new["tags"])] == ["PER", "LOC"]


def test_user_lists_replace_ours(tmp_path):
    path = tmp_path / "teams.tsv"
    path.write_text("# source: me\n# licence: CC0-1.0\nterm\tteam\nreds\tred\nblues\tblue\n", encoding="utf-8")
    swap = Swap("teams", lists=path, by="team")
    assert swap.versions({"text": "The reds won."}).rows["blue"]["text"] == "The blues won."


@pytest.mark.parametrize("content, message", [
    ("term\nreds\n", "group attribute"), ("term\tteam\nreds\n", "row 2"), ("term\tteam\n", "no terms"),
    ("term\tteam\twhen\nreds\tred\tsoon\n", "when is 'soon'"), ("", "empty"), ("term\tterm\nx\ty\n", "columns are")])
def test_bad_lists_name_the_file(tmp_path, content, message):
    path = tmp_path / "bad.tsv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message) as error:
        load_terms(path)
    assert "bad.tsv" in str(error.value)


def test_every_list_states_source_and_licence():
    for name, languages in list_terms().items():
        for language in languages:
            head = load_terms(name, language).head
            assert head["source"] and head["licence"] and head["language"] == language


def tagger(miss=lambda row: False):
    gold = {tuple(r["tokens"]): r for r in NEWS}
    return Predictor(lambda rows: [["O"] * len(r["tokens"]) if miss(gold[tuple(r["tokens"])]) else gold[tuple(r["tokens"])]["tags"]
                                   for r in rows])


def classifier(seed=0, wrong=0.3):
    gold, names, rng = {r["text"]: r["label"] for r in TEXTS}, ["negative", "neutral", "positive"], np.random.default_rng(seed)
    answers = {text: label if rng.random() > wrong else names[rng.integers(3)] for text, label in gold.items()}
    return Predictor(lambda rows: [{n: 0.8 if n == answers.get(r["text"], "neutral") else 0.1 for n in names} for r in rows])


@pytest.mark.parametrize("column", ["gender", "origin", "dialect"])
@pytest.mark.parametrize("seed", range(3))
def test_parity_equals_fairlearn(column, seed):
    fair = pytest.importorskip("fairlearn.metrics")
    predictions = classifier(seed).predict(TEXTS)
    used = [i for i, row in enumerate(TEXTS) if row[column] not in ("none", "mixed")]
    for label in ("negative", "positive"):
        binary = {"y_true": [TEXTS[i]["label"] == label for i in used], "y_pred": [predictions[i]["label"] == label for i in used],
                  "sensitive_features": [TEXTS[i][column] for i in used]}
        for ours, theirs in ((demographic_parity, "demographic_parity"), (equalised_odds, "equalized_odds")):
            for form in ("difference", "ratio"):
                value = ours(column, form, label=label, resamples=200).judge(TEXTS, predictions).value
                assert value == pytest.approx(getattr(fair, f"{theirs}_{form}")(**binary), abs=1e-9)


def test_metric_frame_equals_entity_scores():
    pytest.importorskip("fairlearn.metrics")
    from sklearn.metrics import f1_score

    from safetune.metrics import entity_scores
    predictions = tagger(lambda row: len(row["tokens"]) % 3 == 0).predict(NEWS)
    frame = metric_frame(NEWS, predictions, "gender", f1_score)
    for group in ("female", "male"):
        inside = [i for i, row in enumerate(NEWS) if row["gender"] == group]
        assert frame.by_group[group] == pytest.approx(
            entity_scores([NEWS[i]["tags"] for i in inside], [predictions[i]["tags"] for i in inside])["f1"])


def test_confusion_counts_by_hand():
    rows = [{"tokens": list("abcde"), "tags": ["B-PER", "I-PER", "O", "B-LOC", "O"]}]
    predictions = [{"tags": ["B-PER", "O", "O", "B-LOC", "B-LOC"], "entities": []}]
    assert confusion_counts(rows, predictions).tolist() == [[1, 2, 1, 0]]
    assert confusion_counts(rows, predictions, label="LOC").tolist() == [[1, 1, 0, 0]]
    assert confusion_counts(rows, predictions, words=True).tolist() == [[2, 1, 1, 1]]
    texts, answers = [{"text": "a", "label": ["x", "y"]}, {"text": "b", "label": []}], [{"label": ["x"]}, {"label": ["y"]}]
    assert confusion_counts(texts, answers, label="y").tolist() == [[0, 0, 1, 0], [0, 1, 0, 0]]


def test_small_groups_are_not_accused():
    rows = [row for row in NEWS if row["gender"] == "male"] + [row for row in NEWS if row["gender"] == "female"][:5]
    result = GroupGap("gender", resamples=500)(tagger(lambda row: row["gender"] == "female"), rows)
    assert result.value > 0.9 and result.low == 0 and result.verdict == "not enough evidence"


def test_a_perfect_model_on_few_rows_does_not_pass():
    result = Counterfactual(GENDER, resamples=200)(Predictor(lambda rows: ["x"] * len(rows)),
                                                   [row | {"label": "x"} for row in TEXTS if GENDER.versions(row)][:8])
    assert result.verdict == "not enough evidence"


@pytest.mark.parametrize("rows", [[], NEWS[:1], [row | {"gender": None} for row in NEWS[:50]]])
def test_what_cannot_run_says_why(rows):
    result = GroupGap("gender")(tagger(), rows)
    assert result.verdict == "not run" and result.reason and json.loads(result.to_json())


def test_results_are_plain_json_and_escaped():
    rows = [row | {"gender": f"<script>{row['gender']}"} for row in NEWS if row["gender"] in ("female", "male")]
    result = GroupGap("gender", resamples=200)(tagger(lambda row: row["gender"] == "female"), rows)
    assert Result.from_dict(json.loads(result.to_json())).verdict == result.verdict == "fail"
    assert "<script>" not in result._repr_html_()
    assert result.rows and all(row["predicted"] == "" for row in result.rows if "female" in row["group"])


def test_bad_arguments():
    for make, message in ((lambda: GroupGap("gender", against="all"), "rest or pairs"), (lambda: Swap("x"), "no swap"),
                          (lambda: GroupGap("gender", "kindness")(tagger(), NEWS), "unknown group metric"),
                          (lambda: GroupGap("planet")(tagger(), NEWS), "no column"),
                          (lambda: GroupThresholds(classifier(), "gender", "negative", "luck"), "use recall"),
                          (lambda: compare({"a": classifier()}, TEXTS, "origin"), "name the two")):
        with pytest.raises(InputError, match=message):
            make()


def test_reweighing_makes_group_and_label_independent():
    weights = reweigh(TEXTS, "gender")
    for label in ("negative", "positive"):
        rates = [sum(w for w, r in zip(weights, TEXTS) if r["gender"] == g and r["label"] == label)
                 / sum(w for w, r in zip(weights, TEXTS) if r["gender"] == g) for g in ("female", "male")]
        assert rates[0] == pytest.approx(rates[1])
    drawn = resample(TEXTS, weights, seed=2)
    assert len(drawn) == len(TEXTS)
    assert abs(sum(r["label"] == "negative" and r["gender"] == "female" for r in drawn)
               - sum(w for w, r in zip(weights, TEXTS) if r["gender"] == "female" and r["label"] == "negative")) < 25


def test_augmented_rows_keep_document_and_label():
    more = augment(TEXTS[:60], GENDER)
    assert len({row["id"] for row in more}) == len(more) > 60
    label, document = ({row["id"]: row[name] for row in TEXTS[:60]} for name in ("label", "document"))
    assert all(row["label"] == label[row["id"].split("+")[0]] and row["document"] == document[row["id"].split("+")[0]] for row in more)


def test_thresholds_by_group_equal_the_rates_they_were_fitted_on():
    rng = np.random.default_rng(0)
    score = {r["text"]: float(np.clip(rng.normal(0.4 + 0.25 * (r["gender"] == "female"), 0.15), 0.01, 0.99)) for r in TEXTS}
    leaning = Predictor(lambda rows: [{"other": 1 - score[r["text"]], "negative": score[r["text"]]} for r in rows])
    fitted = GroupThresholds(leaning, "gender", "negative", "selection_rate").fit(TEXTS)
    def rates(model):
        answers = model.predict(TEXTS)
        return [np.mean([a["label"] == "negative" for a, r in zip(answers, TEXTS) if r["gender"] == g]) for g in ("female", "male")]
    assert abs(rates(leaning)[0] - rates(leaning)[1]) > 0.3
    assert abs(rates(fitted)[0] - rates(fitted)[1]) < 0.01


def test_comparing_a_model_with_itself_changes_nothing():
    model = classifier()
    table = compare({"before": model, "same": model}, TEXTS, "gender", label="negative", resamples=200)
    assert table.loc["same", "change of gap"] == table.loc["same", "change of F1"] == 0


def test_pairs_in_the_original_form(tmp_path):
    path = tmp_path / "crows_pairs_anonymized.csv"
    path.write_text(",sent_more,sent_less,stereo_antistereo,bias_type,annotations,anon_writer,anon_annotators\n"
                    '0,"She is a nurse, again.","He is a nurse, again.",stereo,gender,"[[\'gender\']]",a0,"[\'a1\']"\n', encoding="utf-8")
    assert load_pairs(path) == [{"sent_more": "She is a nurse, again.", "sent_less": "He is a nurse, again.", "bias_type": "gender"}]
    path.write_text("sent_more,sent_less\na,b\n", encoding="utf-8")
    with pytest.raises(InputError, match="row 2: a pair lacks bias_type"):
        load_pairs(path)
    assert len(load_pairs()) >= 24


def test_weat_by_hand_and_bad_files(tmp_path):
    check = WordAssociation(gate=None, resamples=200)
    words = {"X": ["x1", "x2"], "Y": ["y1", "y2"], "A": ["a1", "a2"], "B": ["b1", "b2"]}
    vector = {"x1": (1, 0), "x2": (.8, .6), "y1": (0, 1), "y2": (.6, .8), "a1": (1, 0), "a2": (1, 0), "b1": (0, 1), "b2": (0, 1)}
    s = np.array([1, .2, -1, -.2])
    assert check(lambda w: [vector[one] for one in w], words).value == pytest.approx(1.2 / s.std(ddof=1))
    assert check(lambda w: np.ones((len(w), 2)), words).verdict == "not run"
    assert {"X", "Y", "A", "B"} == set(next(iter(load_weat().values())))
    bad = tmp_path / "weat.json"
    bad.write_text('{"tests": {"t": {"X": []}}}')
    with pytest.raises(InputError, match="not a file of WEAT tests"):
        load_weat(bad)


def test_groups_read_off_names_and_calibration():
    marked = name_groups(NEWS)
    agree = [(r["gender"], r["name_gender"]) for r in marked if r["gender"] in ("female", "male") and r["name_gender"] != "none"]
    assert np.mean([a == b for a, b in agree]) > 0.95
    table = calibration_by_group(TEXTS, classifier(wrong=0.0).predict(TEXTS), "gender")
    assert table.loc["female", "overconfidence"] == pytest.approx(-0.2)


def test_planted_faults_are_found_and_clean_models_are_not_accused():
    found, accused = 0, 0
    for seed in range(5):
        rng = random.Random(seed)
        lean = {tuple(r["tokens"]): rng.random() < 0.1 + 0.4 * (r["gender"] == "female") for r in NEWS}
        same = {tuple(r["tokens"]): rng.random() < 0.2 for r in NEWS}
        found += GroupGap("gender", resamples=500)(tagger(lambda r: lean[tuple(r["tokens"])]), NEWS).verdict == "fail"
        accused += GroupGap("gender", resamples=500)(tagger(lambda r: same[tuple(r["tokens"])]), NEWS).verdict == "fail"
    assert found == 5 and accused == 0


def test_the_suite_runs_for_both_tasks():
    for model, rows in ((tagger(), NEWS[:80]), (classifier(), TEXTS[:80])):
        known = {tuple(r["tokens"]) if "tokens" in r else r["text"] for r in rows}
        safe = Predictor(lambda batch, model=model: [
            model.predict([r])[0] if (tuple(r["tokens"]) if "tokens" in r else r["text"]) in known
            else (["O"] * len(r["tokens"]) if "tokens" in r else "neutral") for r in batch])
        checks = fairness_checks(rows, columns=("gender",), swaps=("names by gender", "pronouns"), resamples=200)
        assert len(checks) >= 4
        results = run_fairness(safe, rows, columns=("gender",), swaps=("names by gender",), resamples=200)
        assert all(r.verdict in ("pass", "fail", "not enough evidence", "not run") for r in results)
        assert all(part.p_adjusted is not None for r in results for part in r.parts if part.p_value is not None)


def test_missing_fairlearn_is_one_line(monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, "fairlearn", None)
    monkeypatch.setitem(sys.modules, "fairlearn.metrics", None)
    with pytest.raises(InputError, match=r"pip install 'safetune\[fairness\]'"):
        metric_frame(NEWS, tagger().predict(NEWS), "gender", len)


def test_labels_that_are_never_given_cannot_be_compared():
    "A model of several labels that gives none to any text: nothing to judge, and no crash."
    rows = [{**row, "label": [row["label"]]} for row in TEXTS]
    task = MultiLabelClassification(["negative", "neutral", "positive"])
    silent = Predictor(lambda asked: [{"label": [], "probabilities": [0.1, 0.1, 0.1]} for _ in asked], task=task)
    result = Counterfactual(GENDER)(silent, rows)
    assert result.verdict == "not run" and "no answer holds a label" in result.reason
