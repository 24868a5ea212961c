"""Screening: agreement with datasketch, scipy and plain definitions, any data, any number of processes, hostile input."""
import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset, Sequence, Value
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from safetune.checks import CannotRun, wilson
from safetune.data import InputError, load_data, text_key
from safetune.findings import Finding, Findings, clean, fold_text, replay, text_of, undo
from safetune.sample import sample_ner, sample_text
from safetune.screening import (Balance, Duplicates, Encoding, Languages, Lengths, Lexicon, Representation, RowFile, Scanned, Shortcuts, ToxicityModel,
                                UnknownTokens, band_values, columns_of, entity_overlap, find_leaders, jaccard_pairs, key_text, may_be_near, minima_bits, open_splits, read_table, screen,
                                signatures, standard_detectors, trigram_hashes, unpacked)
from safetune.small_data import sample_choices, sample_questions, sample_relations

ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
TEXTS = st.lists(st.text(alphabet="abc é漢", min_size=1, max_size=40).map(lambda t: " ".join(t.split())).filter(bool), min_size=2, max_size=8)


def shingles(text):
    padded = f" {text} "
    return {padded[i:i + 3] for i in range(len(text))}


def jaccard(a, b):
    return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))


def rows_of(*texts, label="a"):
    return [{"id": str(i), "text": text, "label": label} for i, text in enumerate(texts)]


def found_by(detector, *splits):
    "Findings of a detector over splits named train, test, validation."
    found = Findings()
    for name, rows in zip(("train", "test", "validation"), splits):
        found.extend(detector.scan(rows, name))
    found.extend(detector.finish())
    return found


@given(ANY)
def test_key_text_is_text_key_without_what_nobody_sees(text):
    assume(fold_text(text) == text_key({"text": text}))
    assert key_text({"text": text}) == text_key({"text": text})
    assert key_text({"tokens": text.split()}) == text_key({"tokens": text.split()})


@settings(deadline=None)
@given(TEXTS)
def test_jaccard_of_pairs_is_that_of_sets(texts):
    left, right = np.triu_indices(len(texts), 1)
    assert np.allclose(jaccard_pairs(texts, left, right), [jaccard(texts[i], texts[j]) for i, j in zip(left, right)])


@settings(deadline=None, max_examples=30)
@given(TEXTS)
def test_signatures_are_those_of_datasketch(texts):
    from datasketch import MinHash
    ours, (hashes, starts, sizes) = signatures(texts, 24), trigram_hashes(texts)
    for i in range(len(texts)):
        theirs = MinHash(num_perm=24, hashfunc=int)
        theirs.update_batch(hashes[starts[i]:starts[i] + sizes[i]].tolist())
        assert (ours[i] == theirs.hashvalues).all()


def test_candidates_are_those_of_datasketch():
    "Two texts share a band here if and only if its index puts them in one bucket."
    from datasketch import MinHash, MinHashLSH
    texts = [key_text(row) for row in sample_ner(400, seed=5)["train"]]
    signed = signatures(texts, 20)
    bands = band_values(signed, 10)
    index = MinHashLSH(num_perm=20, params=(10, 2))
    sketches = [MinHash(hashvalues=s, scheme="affine32") for s in signed]
    for i, sketch in enumerate(sketches):
        index.insert(i, sketch)
    for i, sketch in enumerate(sketches):
        assert set(index.query(sketch)) == set(np.flatnonzero((bands == bands[i]).any(axis=1)))


def test_one_bit_of_each_minimum_passes_over_few_near_pairs():
    "At the threshold at most the 0.13% of a normal tail and a little; far pairs are mostly passed over."
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**32, (2000, 120), dtype=np.uint32)
    for j, low, high in ((0.7, 0.99, 1.0), (0.8, 0.9999, 1.0), (0.2, 0.0, 0.01)):
        other = np.where(rng.random(base.shape) < j, base, rng.integers(0, 2**32, base.shape, dtype=np.uint32))
        bits = minima_bits(np.vstack([base, other]))
        assert low <= may_be_near(bits, np.arange(2000), np.arange(2000, 4000), 0.7, 120).mean() <= high


def test_the_estimate_of_the_signature_is_unbiased():
    a, b = "the mayor of rome said on monday that the plan will pass", "the mayor of rome said on friday that a plan may fail"
    estimates = [(lambda s: (s[0] == s[1]).mean())(signatures([a, b], 120, seed)) for seed in range(100)]
    assert abs(np.mean(estimates) - jaccard(a, b)) < 4 * np.std(estimates) / 10


@settings(deadline=None, max_examples=60)
@given(TEXTS)
def test_whoever_follows_is_near_to_one_who_stays(texts):
    texts = list(dict.fromkeys(texts))
    leader, score = find_leaders(texts, band_values(signatures(texts), 24), 0.5)
    for i, j in enumerate(leader):
        assert leader[j] == j and (i == j or (jaccard(texts[i], texts[j]) >= 0.5 and math.isclose(score[i], jaccard(texts[i], texts[j]), rel_tol=1e-6)))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(["a", "A ", "b", "ｂ", "c d", "c  D"]), min_size=1, max_size=12), st.lists(st.sampled_from(["a", "b", "x"]), max_size=5))
def test_exact_copies_are_those_that_a_dict_finds(train, test):
    found = found_by(Duplicates(), rows_of(*train), rows_of(*test))
    first, copies, leaks = {}, set(), set()
    for i, text in enumerate(train):
        if first.setdefault(text_key({"text": text}), i) != i:
            copies.add(i)
        if text_key({"text": text}) in {text_key({"text": t}) for t in test}:
            leaks.add(i)
    assert {f.row for f in found.of("duplicate") if f.split == "train"} == copies
    assert {f.row for f in found.of("leakage")} == leaks
    assert all(first[text_key({"text": train[f.row]})] == int(f.group.split(":")[1]) for f in found.of("duplicate") if f.split == "train")


def test_a_copy_with_another_label_is_a_conflict():
    found = found_by(Duplicates(), rows_of("it is fine") + rows_of("It is  fine", label="b"))
    assert [(f.kind, f.severity, f.row) for f in found] == [("duplicate/conflict", "high", 1)]


def test_batches_and_processes_do_not_change_what_is_found():
    data = sample_ner({"train": 300, "validation": 30, "test": 100}, seed=2, faults=["exact_duplicates", "near_duplicates", "personal_data"])
    one = screen(data, batch=1000, workers=1, progress="")
    assert len(one) > 20
    for options in ({"batch": 7}, {"batch": 50, "workers": 2}):
        assert screen(data, progress="", **options) == one
    lists = {split: list(part) for split, part in data.items()}
    assert screen(lists, progress="") == one
    stream = {split: IterableDataset.from_generator(lambda part=part: iter(part)) for split, part in lists.items()}
    streamed = screen(stream, workers=1, progress="")
    place = lambda findings: [(f.kind, f.split, f.row, f.message, f.group) for f in findings]
    assert place(streamed) == place(one) and streamed.rows == one.rows


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet", "conll"])
def test_a_file_is_read_row_by_row(tmp_path, ending):
    if ending == "conll":
        rows = [{"tokens": ["Ada", "slept", "."], "tags": ["B-PER", "O", "O"]}, {"tokens": ["no"], "tags": ["O"]}]
        (tmp_path / "a.conll").write_text("\n\n".join("\n".join(f"{w}\t{t}" for w, t in zip(r["tokens"], r["tags"])) for r in rows))
    else:
        rows = [{"text": "é, \"quoted\"\nand broken", "label": "x"}, {"text": "two", "label": "y"}]
        data = Dataset.from_list([{"sentence": r["text"], "label": r["label"]} for r in rows])
        {"jsonl": data.to_json, "csv": data.to_csv, "parquet": data.to_parquet}[ending](tmp_path / f"a.{ending}")
    file = RowFile(tmp_path / f"a.{ending}")
    assert list(file) == rows and list(file) == rows
    assert screen({"train": file}, [Lengths()], progress="").rows == {"train": 2}


def test_text_without_labels_can_be_screened(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "same text"}\n{"text": "Same  text"}\n')
    found = screen(tmp_path / "a.jsonl", progress="")
    assert [(f.kind, f.row, f.text) for f in found] == [("duplicate/exact", 1, "Same  text")]
    (tmp_path / "b.jsonl").write_text('{"text": "fine"}\nnot json\n')
    with pytest.raises(InputError, match="b.jsonl, row 2: the line is not a JSON object"):
        screen(tmp_path / "b.jsonl", progress="")


def test_class_numbers_become_names():
    features = Features({"tokens": Sequence(Value("string")), "ner_tags": Sequence(ClassLabel(names=["O", "B-PER"]))})
    data = DatasetDict(train=Dataset.from_dict({"tokens": [["Ada", "slept"]], "ner_tags": [[1, 0]]}, features=features))
    assert open_splits(data)["train"][0]["tags"] == ["B-PER", "O"]
    assert list(open_splits(pd.DataFrame({"text": ["x"], "label": ["y"]}))) == ["train"]
    with pytest.raises(InputError, match="a int is no data"):
        open_splits(3)


def test_an_error_in_a_process_is_told_in_one_line():
    class Broken(Encoding):
        def find(self, row, split, number):
            raise InputError("no such thing", "try another")
    with pytest.raises(InputError, match="no such thing; try another"):
        screen(rows_of("a", "b"), [Broken()], workers=2, progress="")


def test_a_foreign_detector_runs_too():
    def shouting(rows, split):
        return (Finding("style/loud", split, i, "all capitals", "low", "lower it") for i, row in enumerate(rows) if row["text"].isupper())
    rows = rows_of(*["quiet"] * 5, "LOUD", *["quiet"] * 5, "LOUD")
    assert [f.row for f in screen(rows, [shouting], batch=4, progress="")] == [5, 11]
    assert [f.row for f in screen(rows, [Scanned(shouting)], batch=100, progress="")] == [5, 11]


@settings(deadline=None, max_examples=60)
@given(st.lists(ANY.filter(str.strip), min_size=1, max_size=6), st.integers(1, 5))
def test_columns_in_columns_out(texts, size):
    "The contract for datasets.map, datatrove and Ray: one entry a row, whatever the size of the batches."
    for make in (Duplicates, Encoding, Lengths, Languages, Lexicon, Balance, Shortcuts, Representation):
        table = {"text": texts, "label": ["a"] * len(texts)}
        one, other, found = make(), make(), []
        look = columns_of(one)
        for at in range(0, len(texts), size):
            columns = json_safe = look({k: v[at:at + size] for k, v in table.items()}, range(at, min(at + size, len(texts))))
            assert all(len(values) == len(texts[at:at + size]) for values in json_safe.values())
            found += list(one.collect(unpacked(columns), "train", at))
        found += list(one.finish())
        assert found == list(found_by(other, rows_of(*texts)))
    assert table == {"text": texts, "label": ["a"] * len(texts)}


@given(ANY)
def test_every_span_lies_in_its_text(text):
    row = {"text": text or "x", "label": "a"}
    for detector in (Encoding(), Lexicon()):
        for f in detector.scan([row]):
            assert 0 <= f.start < f.end <= len(text_of(row))


@pytest.mark.parametrize("make", [Duplicates, Encoding, Lengths, Languages, Lexicon, Shortcuts])
def test_hostile_text_takes_no_time(make):
    import time
    for text in ("a" * 10**6, "Ã©" * 200_000, "\u202e\ufffd " * 100_000, "shut " * 200_000, "é " * 300_000, "\U0001f469\u200d" * 200_000):
        start = time.process_time()
        found_by(make(), rows_of(text))
        assert time.process_time() - start < 10, (make, text[:10])


def test_broken_halves_of_characters_are_survived():
    found_by(Duplicates(), rows_of("half \ud800 of a character and a long text after it"))


def test_balance():
    train = [{"text": "x", "label": label} for label in ["a"] * 700 + ["b"] * 298 + ["c"] + ["d"]]
    test = [{"text": "x", "label": label} for label in ["a"] * 100 + ["b"] * 200 + ["e"] + ["c"]]
    kinds = {(f.kind, f.message.split("'")[1]) for f in found_by(Balance(), train, test)}
    assert kinds == {("balance/rare", "c"), ("balance/rare", "d"), ("balance/unseen", "e"), ("balance/untested", "d"), ("balance/shift", "b"), ("balance/shift", "a")}
    numbers = [{"text": "x", "label": float(i)} for i in range(50)]
    assert not found_by(Balance(), numbers, numbers)


def test_pmi_is_what_the_table_of_counts_says():
    rows = [{"text": f"{'courier ' if i < 40 else ''}plain{i}", "label": "bad" if i < 36 or i >= 120 else "good"} for i in range(200)]
    detector = Shortcuts()
    list(detector.scan(rows))
    line = detector.tested().set_index(["word", "label"]).loc[("courier", "bad")]
    share, base, m = 36 / 40, 116 / 200, 1 * 2
    assert line["pmi"] == pytest.approx(math.log2(share / base))
    assert line["low"] == pytest.approx(math.log2(wilson(36, 40, 1 - 0.05 / m).low / base))
    assert not found_by(Shortcuts(), rows) and found_by(Shortcuts(ratio=1.2), rows)[0].text == "courier"


def test_shortcuts_are_quiet_on_random_labels():
    texts = [row["text"] for row in sample_text(1000, seed=1)["train"]]
    rng = np.random.default_rng(0)
    wrong = sum(bool(found_by(Shortcuts(), [{"text": t, "label": str(rng.integers(3))} for t in texts])) for _ in range(20))
    assert wrong <= stats.binom.ppf(0.999, 20, 0.05)


def test_unknown_tokens():
    class Words:
        unk_token_id = 0
        def __call__(self, texts, add_special_tokens): return {"input_ids": [[1 if w.isascii() else 0 for w in t.split()] for t in texts]}
    detector = UnknownTokens(Words())
    found = found_by(detector, rows_of("all known words", "你好 world", ""))
    assert [(f.row, f.message) for f in found] == [(1, "1 of 2 tokens are unknown")]
    assert detector.rates["train"].value == pytest.approx(1 / 5)


def test_toxicity_by_any_predictor():
    answers = {"bad": {"label": "toxic", "score": 0.8}, "good": {"label": "fine", "score": 0.9}}
    model = SimpleNamespace(predict=lambda rows: [answers[row["text"]] for row in rows], task=SimpleNamespace(labels=[]))
    assert [(f.row, f.score, f.severity) for f in ToxicityModel(model).scan(rows_of("good", "bad"))] == [(1, 0.8, "medium")]


def test_a_lexicon_of_ones_own(tmp_path):
    path = tmp_path / "mine.tsv"
    path.write_text("# licence: mine\nterm\tcategory\tseverity\nred herring\tfish\tlow\nred\tcolour\thigh\n")
    found = Findings(Lexicon(path).scan(rows_of("A RED herring, and red paint; reddish")))
    assert [(f.kind, f.start, f.end) for f in found] == [("toxicity/fish", 2, 13), ("toxicity/colour", 19, 22)]
    for text, problem in (("term\tcategory\nx\ty\n", "mine.tsv, row 1: the columns are"), ("term\tcategory\tseverity\nx\n", "row 2: 1 cells"),
                          ("term\tcategory\tseverity\nx\ty\tawful\n", "is 'awful'")):
        path.write_text(text)
        with pytest.raises(InputError, match=problem):
            Lexicon(path)


def test_own_lists_say_where_they_come_from():
    from importlib.resources import files
    for path in (files("safetune") / "resources" / "screening").iterdir():
        head = path.read_text(encoding="utf-8").split("\n")
        assert head[0].startswith("# source:") and head[1].startswith("# licence:"), path
    assert len(read_table(files("safetune") / "resources" / "screening" / "toxic.en.tsv", ("term", "category", "severity"))) > 50


def test_entity_overlap_counts_by_hand():
    train = [{"tokens": ["Ada", "Lee"], "tags": ["B-PER", "I-PER"]}]
    test = [{"tokens": ["ada", "lee", "met", "Bo"], "tags": ["B-PER", "I-PER", "O", "B-PER"]}, {"tokens": ["Bo", "Oslo"], "tags": ["B-PER", "O"]}]
    says = [["B-PER", "I-PER", "O", "O"], ["B-PER", "B-LOC"]]
    model = SimpleNamespace(predict=lambda rows: [{"tags": tags} for tags in says])
    result = entity_overlap({"train": train, "test": test}, model)
    seen, unseen, share = (part.value for part in result.parts)
    assert (seen, unseen, share) == (1.0, pytest.approx(2 / 4), pytest.approx(1 / 3))
    assert result.value == pytest.approx(0.5)
    with pytest.raises(CannotRun):
        entity_overlap({"train": train, "test": test[1:]}, model)


def test_encoding_fixes_only_what_is_broken():
    fine = "naïve façade “quotes” — 東京 Ελλάδα שלום 👩‍🚀 نص"
    assert not list(Encoding().scan([{"text": fine}]))
    broken = "seÃ±or and â€œquotesâ€œ"
    fixes = {f.text: f.fix for f in Encoding().scan([{"text": broken}])}
    assert fixes["seÃ±or"] == "señor"


def test_standard_detectors_take_a_tokenizer_and_a_lexicon(tmp_path):
    assert not any(isinstance(d, UnknownTokens) for d in standard_detectors())
    with pytest.raises(InputError, match="none.tsv"):
        standard_detectors(lexicon=tmp_path / "none.tsv")


def test_wrong_labels_are_looked_for_on_request():
    from safetune.labels import LabelErrors
    data, truth = sample_ner({"train": 400, "validation": 20, "test": 20}, seed=3, faults="wrong_labels", return_truth=True)
    found = screen(data, [Lengths()], LabelErrors(progress=False), progress="").of("label")
    wrong = set(truth["row"])
    assert {f.split for f in found} == {"train"} and len(wrong & {f.row for f in found}) >= len(wrong) / 2


# ---- all tasks

def mail(name): return f"write to {name}@example.org before noon"


MAIL_ROWS = {    # one row of each task, and the fields in which an address stands
    "text": ({"text": mail("ada"), "text_pair": mail("bo"), "label": "x"}, ["text", "text_pair"]),
    "words": ({"tokens": mail("ada").split(), "tags": ["O"] * 5}, ["tokens"]),
    "relation": ({"tokens": mail("ada").split(), "head": [2, 3], "tail": [4, 5], "label": "x"}, ["tokens"]),
    "question": ({"question": mail("ada"), "context": mail("bo"), "answers": {"text": ["noon"], "answer_start": [32]}}, ["question", "context"]),
    "choice": ({"question": mail("ada"), "choices": ["no", mail("bo")], "label": 1, "context": "so"}, ["question", "choices[1]"]),
    "translation": ({"source": mail("ada"), "target": mail("bo")}, ["source", "target"]),
    "dialogue": ({"messages": [{"role": "user", "content": mail("ada")}, {"role": "assistant", "content": mail("bo")}]}, ["messages[0]", "messages[1]"]),
    "plain text": ({"text": mail("ada")}, ["text"]),
}


def field_of(row, name):
    "The text of a field as a finding names it."
    if name == "tokens":
        return " ".join(row["tokens"])
    name, _, number = name.rstrip("]").partition("[")
    part = row[name][int(number)] if number else row[name]
    return part["content"] if isinstance(part, dict) else part


@pytest.mark.parametrize("task", MAIL_ROWS)
def test_every_task_is_screened_and_cleaned(task):
    "Copies, personal data in every field, damage and insults; the spans lie in the field that they name."
    row, fields = MAIL_ROWS[task]
    rows = [row, json.loads(json.dumps(row).replace("before", "you idiot, naÃ¯ve")) if "answers" not in row and "tokens" not in row else row, row]
    found = screen(rows, progress="")
    assert 2 in {f.row for f in found.of("duplicate/exact")}
    assert [f.field for f in found.of("personal/email") if f.row == 0] == fields
    assert task in ("words", "relation", "question") or (found.of("encoding/mojibake") and found.of("toxicity"))
    for f in found.of("personal"):
        whole = field_of(rows[f.row], f.field)
        assert (" ".join(whole.split()[f.start:f.end]) if f.unit == "words" else whole[f.start:f.end]) == f.text
    cleaned, log = clean(rows, found)
    assert "example.org" not in json.dumps(cleaned) and len(cleaned) in (1, 2)
    assert replay(rows, log) == cleaned and undo(cleaned, log) == rows
    if len(row) > 1:
        load_data(cleaned)
    elif "messages" in row:
        load_data(cleaned, task="dialogue")


@pytest.mark.parametrize("make", [sample_relations, sample_questions, sample_choices])
def test_sample_data_of_other_tasks_lose_nothing(make):
    data = make({"train": 120, "validation": 20, "test": 20}, seed=0)
    cleaned, log = clean(data, screen(data, progress=""))
    assert {s: len(p) for s, p in cleaned.items()} == {s: len(p) for s, p in data.items()} and len(log) == 0
    copied = {split: [*part, part[3]] for split, part in data.items()}
    assert {f.row for f in screen(copied, [Duplicates()], progress="").of("duplicate/exact") if f.split == "train"} == {len(data["train"])}


def test_redacted_relations_and_questions_can_be_loaded_again():
    relation = {"id": "1", "tokens": "Call Ada Lee on +44 20 7946 0958 or in Rome .".split(), "head": [1, 3], "tail": [10, 11], "label": "in"}
    cleaned, log = clean([relation], screen([relation], progress=""))
    row, = load_data(cleaned)["train"]
    assert [row["tokens"][slice(*row[end])] for end in ("head", "tail")] == [["Ada", "Lee"], ["Rome"]] and "[PHONE]" in row["tokens"]
    context = "Write to amina@example.org, and Bo waits in Rome"
    question = {"id": "1", "question": "Where?", "context": context, "answers": {"text": ["Rome"], "answer_start": [context.index("Rome")]}}
    row, = load_data(clean([question], screen([question], progress=""))[0])["train"]
    assert row["context"][row["answers"]["answer_start"][0]:] == "Rome" and "[EMAIL]" in row["context"]


def kinds_of(data): return [(f.kind, f.split, f.row) for f in screen(data, [Duplicates()], progress="")]


def test_what_a_copy_is_depends_on_the_task():
    context = "Ada met Bo in Rome on a Monday in spring."
    who = {"question": "Who?", "context": context, "answers": {"text": ["Ada"], "answer_start": [0]}}
    where, wrong = who | {"question": "Where?"}, who | {"answers": {"text": ["Bo"], "answer_start": [8]}}
    assert kinds_of([who, where, who | {"question": "who?"}, wrong]) == [("duplicate/exact", "train", 2), ("duplicate/conflict", "train", 3)]
    assert kinds_of({"train": [who], "test": [where]}) == [("overlap/text", "train", 0)]
    near = {"context": context.replace("spring", "springs")}
    assert kinds_of({"train": [who | near, where | near], "test": [where]}) == [("leakage/near", "train", 1)]
    pair = {"tokens": context.split(), "head": [0, 1], "tail": [2, 3], "label": "met"}
    assert kinds_of([pair, pair | {"tail": [4, 5]}, pair, pair | {"label": "in"}]) == [("duplicate/exact", "train", 2), ("duplicate/conflict", "train", 3)]
    source = {"source": "guten Tag", "target": "hello"}
    found = screen([source, source, source | {"target": "good day"}], [Duplicates()], progress="")
    assert [(f.kind, f.action) for f in found] == [("duplicate/exact", "drop"), ("duplicate/conflict", "keep")]
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    assert kinds_of({"train": [{"messages": turns}], "test": [{"messages": [turns[0], {"role": "assistant", "content": "yes?"}]}]}) == [("leakage/exact", "train", 0)]


@pytest.mark.parametrize("split", ["dev", "val", "valid", "eval", "test_b", "heldout"])
def test_a_leak_is_dropped_where_it_is_learned(split):
    rows = rows_of("the first text", "the second text")
    for data in ({"train": rows, split: rows[1:]}, {split: rows[1:], "train": rows}):
        assert kinds_of(data) == [("leakage/exact", "train", 1)]
        assert len(clean(data, screen(data, [Duplicates()], progress=""))[0][split]) == 1


def test_characters_that_nobody_sees_make_no_other_text():
    assert kinds_of(rows_of("the rain", "the r\u200bain", "th\u00ade ra\u2060in", "the\x07 rain")) == [("duplicate/exact", "train", i) for i in (1, 2, 3)]


@pytest.mark.parametrize("data, problem", [
    (["a", "b"], "a row is a str; give dicts"), ([{"text": "x"}, 3], "row 2: a row is a int"),
    ([{"tokens": ["a", None], "tags": ["O", "O"]}], "row 1: the tokens of a row are not all words"),
    ([{"tokens": ["a"]}, {"tokens": ["a", None]}], "row 2: the tokens of a row are not all words"),
    ([{"tokens": ["a"], "tags": ["O"]}, {"tokens": ["a"], "tags": ["O", "O"]}], "row 2: 1 tokens but 2 tags"),
    ([], "there are no rows to screen"), ({"train": [], "test": []}, "there are no rows to screen"),
    ([{"text": "x"}, {"text": None}], "row 2: a row has neither"),
])
def test_what_cannot_be_screened_is_told_in_one_line(data, problem):
    with pytest.raises(InputError, match=problem) as caught:
        screen(data, progress="")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "text,label\n"])
def test_an_empty_file_is_no_pass(tmp_path, text):
    (tmp_path / "d.csv").write_text(text)
    with pytest.raises(InputError, match="d.csv: there are no rows"):
        screen(tmp_path / "d.csv", progress="")


def test_a_large_file_of_questions_is_a_stream(tmp_path, monkeypatch):
    rows = [{"question": f"Who is {i}?", "context": mail("ada"), "answers": {"text": ["noon"], "answer_start": [32]}} for i in range(1500)]
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("safetune.screening.STREAM_FROM", 1)
    part = open_splits(tmp_path / "qa.jsonl")["train"]
    assert isinstance(part, RowFile) and list(part) == rows
    found = screen(tmp_path / "qa.jsonl", progress="")
    assert found.rows == {"train": 1500} and len(found.of("personal/email")) == 1500 and not found.of("duplicate")


def test_overlap_and_models_by_name(tmp_path):
    "The overlap of entities is in what `screen` returns, is saved and loaded; models are taken as objects too."
    train = [{"tokens": ["Ada", "Lee", "slept"], "tags": ["B-PER", "I-PER", "O"]}]
    test = [{"tokens": ["ada", "lee", "met", "Bo"], "tags": ["B-PER", "I-PER", "O", "B-PER"]}, {"tokens": ["Bo", "Oslo"], "tags": ["B-PER", "O"]}]
    data = {"train": train, "test": test}
    found = screen(data, progress="")
    assert "1 of 3 entities (33%) stand in train" in found.of("overlap/entities")[0].message
    assert found.results[0].value == pytest.approx(1 / 3)
    says = {"ada": ["B-PER", "I-PER", "O", "O"], "Bo": ["B-PER", "B-LOC"]}
    model = SimpleNamespace(predict=lambda rows: [{"tags": says[row["tokens"][0]]} for row in rows])
    found = screen(data, standard_detectors(model=model), progress="")
    assert found.results[0].value == pytest.approx(entity_overlap(data, model).value) == pytest.approx(0.5)
    found.save(tmp_path / "f.json")
    again = Findings.load(tmp_path / "f.json")
    assert again == found and again.results[0].parts[0].value == 1.0 and "F1 on seen" in found._repr_html_()
    people = SimpleNamespace(predict=lambda rows: [{"entities": [{"type": "PER", "words": (0, 1), "score": 0.9}]} for _ in rows])
    assert [(f.row, f.text, f.field) for f in screen([{"question": "Bo left?", "context": "No."}], standard_detectors(names=people), progress="").of("personal/name")] == [(0, "Bo", "question")]
    loud = SimpleNamespace(predict=lambda rows: [{"label": "bad", "score": 0.9} for _ in rows], task=SimpleNamespace(labels=["good", "bad"]))
    assert screen(rows_of("x"), standard_detectors(toxicity=loud, toxic=["bad"]), progress="").of("toxicity/model")
    with pytest.raises(InputError, match="no label 'toxic'; say which mean harm; it has good, bad"):
        standard_detectors(toxicity=loud)


def test_a_reference_for_groups(tmp_path):
    path = tmp_path / "shares.tsv"
    path.write_text("column\tgroup\tshare\nage\told\t0.5\nage\tyoung\t0.5\n")
    rows = [{"text": f"t{i}", "age": "old" if i < 10 else "young"} for i in range(200)]
    found = screen(rows, standard_detectors(representation=Representation.read(path)), progress="").of("representation")
    assert [f.message for f in found] == ["age 'old' is 5.0% of the rows that name one"]
    path.write_text("column\tgroup\tshare\nage\told\tmany\n")
    with pytest.raises(InputError, match="the share of 'old' is 'many'"):
        Representation.read(path)
