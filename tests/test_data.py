"""Reading real and hostile files, Hub names and folders, and splits at size."""
import json
import random

import datasets
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import HealthCheck, given, settings, strategies as st

from safetune.data import (LAYOUTS, ROW_CHECKS, ROW_FORMS, InputError, Report, TokenBudgetSampler, describe, detect_scheme,
                           example_encoder, form_of, full_text, group_rows, load_data, read_conll, row_labels, text_key, to_iob2,
                           split_data, with_splits)


def test_wnut17_is_read_as_its_readme_says(wnut17):
    data = load_data(wnut17)
    assert {split: len(part) for split, part in data.items()} == {"train": 3394, "validation": 1009, "test": 1287}
    types = {tag[2:] for part in data.values() for tags in part["tags"] for tag in tags if tag != "O"}
    assert types == {"person", "location", "corporation", "product", "creative-work", "group"}
    words = [token for tokens in data["validation"]["tokens"] for token in tokens]
    assert "watched\u200bwas" in words and "Dubbz\ufeff" in words  # stray characters stay inside their words


def test_files_by_split_give_the_same_as_the_folder(wnut17):
    by_name = load_data(train=wnut17 / "wnut17train.conll", validation=wnut17 / "emerging.dev.conll", test=wnut17 / "emerging.test.annotated")
    folder = load_data(wnut17)
    assert all(by_name[split].to_list() == folder[split].to_list() for split in folder)


ENTITIES = st.lists(st.tuples(st.sampled_from(["PER", "LOC", "creative-work"]), st.integers(1, 4), st.integers(0, 2)), max_size=6)


def write_tags(spans, scheme):
    "Tags of (type, length, words of O before) in a scheme."
    tags, last = [], None
    for kind, length, gap in spans:
        tags += ["O"] * gap
        touching = last == kind and gap == 0
        inner = {"IOB2": ["B"] + ["I"] * (length - 1), "IOB1": (["B"] if touching else ["I"]) + ["I"] * (length - 1),
                 "BIOES": ["S"] if length == 1 else ["B"] + ["I"] * (length - 2) + ["E"],
                 "BILOU": ["U"] if length == 1 else ["B"] + ["I"] * (length - 2) + ["L"]}[scheme]
        tags += [f"{letter}-{kind}" for letter in inner]
        last = kind
    return tags + ["O"]


@settings(max_examples=200, deadline=None)
@given(ENTITIES, st.sampled_from(["IOB1", "IOB2", "BIOES", "BILOU"]))
def test_every_scheme_converts_to_the_same_spans(spans, scheme):
    assert to_iob2(write_tags(spans, scheme), scheme) == (write_tags(spans, "IOB2"), [], [])


@pytest.mark.parametrize("scheme", ["IOB1", "IOB2", "BIOES", "BILOU"])
def test_the_scheme_of_a_corpus_is_detected(scheme):
    rng = random.Random(0)
    corpus = [write_tags([(rng.choice(["PER", "LOC"]), rng.randint(1, 3), rng.choice([0, 0, 1])) for _ in range(4)], scheme) for _ in range(50)]
    assert detect_scheme(corpus) == ("BIOES" if scheme == "BILOU" else scheme)


WORDS = st.text(st.characters(blacklist_characters="\t\n\r", blacklist_categories=("Cs", "Zs", "Zl", "Zp", "Cc")), min_size=1, max_size=8)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(WORDS.filter(lambda w: not w.startswith("-DOCSTART-")), min_size=1, max_size=6), min_size=1, max_size=5))
def test_any_words_survive_a_column_file(tmp_path_factory, sentences):
    path = tmp_path_factory.mktemp("conll") / "x.conll"
    path.write_bytes("\n\n".join("\n".join(f"{w}\tO" for w in words) for words in sentences).encode() + b"\n")
    assert [row["tokens"] for _, row in read_conll(path, Report())] == [[w.strip() for w in words] for words in sentences]


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400), st.sampled_from(["train.conll", "train.csv", "train.tsv", "train.jsonl", "train.json", "train.parquet"]),
       st.sampled_from(["raise", "repair"]))
def test_garbage_gives_data_or_one_line(tmp_path_factory, content, name, on_error):
    path = tmp_path_factory.mktemp("garbage") / name
    path.write_bytes(content)
    try:
        data = load_data(path, on_error=on_error)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert len(data["train"]) > 0


def test_big_and_odd_values_in_csv_and_json(tmp_path):
    big = "x" * 200_000
    (tmp_path / "train.csv").write_text(f'text,label\n"{big}",a\n"two\nlines",b\n')
    assert load_data(tmp_path)["train"]["text"][:] == [big, "two\nlines"]
    (tmp_path / "test.jsonl").write_text(json.dumps({"text": "a\u2028b", "label": 1, "extra": {"deep": [1]}}) + "\n")
    assert load_data(test=tmp_path / "test.jsonl")["test"][0]["text"] == "a\u2028b"


def test_two_files_of_one_split_are_refused(tmp_path):
    for name in ("train.csv", "old-train.csv"):
        (tmp_path / name).write_text("text,label\na,b\n")
    with pytest.raises(InputError, match="two files for the split 'train'"):
        load_data(tmp_path)


def test_a_hub_name_that_was_a_script_reads_its_converted_copy(monkeypatch):
    calls = []

    def stand_in(name, config, revision=None):
        calls.append(revision)
        if revision is None:
            raise RuntimeError("Dataset scripts are no longer supported, but found wnut_17.py")
        return DatasetDict({"train": Dataset.from_dict({"tokens": [["Rome"]], "ner_tags": [["B-LOC"]]})})

    monkeypatch.setattr(datasets, "load_dataset", stand_in)
    assert load_data("wnut_17")["train"][0]["tags"] == ["B-LOC"]
    assert calls == [None, "refs/convert/parquet"]


def test_a_folder_in_hub_layout_never_runs_its_code(tmp_path):
    folder, proof = tmp_path / "evil", tmp_path / "ran"
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(proof)!r}, 'w').write('ran')\n")
    with pytest.raises(InputError):
        load_data(folder)
    assert not proof.exists()


def test_splits_at_size_keep_groups_and_labels_together():
    rng = random.Random(1)
    rows = [{"text": f"text {rng.randrange(15_000)}", "label": rng.choices("abc", (8, 3, 1))[0], "user": f"u{rng.randrange(9_000)}"} for _ in range(20_000)]
    data = load_data(rows)["train"]
    splits = split_data(data, groups=())
    texts = [set(part["text"]) for part in splits.values()]
    assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])
    assert [round(len(part) / len(data), 2) for part in splits.values()] == [0.8, 0.1, 0.1]
    for part in splits.values():
        assert abs(part["label"][:].count("c") / len(part) - 1 / 12) < 0.01
    groups = group_rows(rows[:3000])
    for column in ("user", "text"):
        owner = {}
        assert all(owner.setdefault(row[column], group) == group for row, group in zip(rows[:3000], groups))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=300), st.integers(1, 2000), st.integers(0, 3), st.integers(1, 4))
def test_token_batches_hold_every_row_once_within_budget(lengths, budget, epoch, multiple):
    sampler = TokenBudgetSampler(lengths, budget, seed=5, multiple_of=multiple)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler) and len(batches) % multiple == 0
    assert set(i for batch in batches for i in batch) == set(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget for batch in batches)
    if multiple == 1:
        assert sum(map(len, batches)) == len(lengths)


def test_the_example_encoder_is_the_development_package(minilm):
    assert example_encoder() == minilm


def write(folder, name, content):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_every_form_comes_back_from_a_file_as_its_example(tmp_path):
    for task, form in ROW_FORMS.items():
        row = json.loads(form.example)
        data = load_data(write(tmp_path, f"{task}.jsonl", row), task=task)["train"]
        assert {name: data[0][name] for name in form.needs} == {name: row[name] for name in form.needs}, task
        assert form_of(data.column_names) in (task, *(other for other in ROW_FORMS if ROW_FORMS[other].needs == form.needs))
        assert describe(DatasetDict({"train": data})).loc["train", "rows"] == 1
        assert len(load_data(DatasetDict({"train": data}), task=task)["train"]) == 1    # the schema reads itself


def test_every_form_says_what_it_needs(tmp_path):
    path = write(tmp_path, "x.jsonl", {"a": 1, "b": 2})
    for task in ROW_FORMS:
        if "classification" not in task and task != "regression":
            with pytest.raises(InputError, match=f"{task} needs {', '.join(ROW_FORMS[task].needs)}"):
                load_data(path, task=task)


def test_a_squad_file_and_a_csv_of_answers(tmp_path):
    questions = [{"id": "a", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}], "is_impossible": False},
                 {"id": "b", "question": "When?", "answers": [], "is_impossible": True}]
    squad = {"version": "v2.0", "data": [{"title": "Rome", "paragraphs": [{"context": "Ada left.", "qas": questions}]}]}
    for content in (squad, json.dumps(squad, indent=1)):
        part = load_data(write(tmp_path, "dev-v2.0.json", content))["validation"]
        assert part["id"][:] == ["a", "b"] and part["title"][:] == ["Rome"] * 2
        assert part["answers"][:] == [{"text": ["Ada"], "answer_start": [0]}, {"text": [], "answer_start": []}]
    flat = load_data(write(tmp_path, "train.csv", "question,context,answer,answer_start\nWho?,Ada left.,Ada,0\nWhen?,Ada left.,,\n"))
    assert [len(a["text"]) for a in flat["train"]["answers"]] == [1, 0]


def test_semeval_marks_become_words():
    row = {"sentence": 'The <e1>child</e1>, said Ada, was in the <e2>wooden cradle</e2>.', "relation": "Content-Container(e1,e2)"}
    data = load_data([row, {**row, "relation": "Other"}])["train"]
    assert data[0]["tokens"][data[0]["head"][0]:data[0]["head"][1]] == ["child"]
    assert data[0]["tokens"][data[0]["tail"][0]:data[0]["tail"][1]] == ["wooden", "cradle"]
    assert data["label"][:] == ["Content-Container(e1,e2)", "no_relation"]


def test_bad_rows_are_named_or_counted(tmp_path):
    good = {"question": "Who?", "context": "Ada left.", "answers": {"text": ["Ada"], "answer_start": [0]}}
    bad = {**good, "answers": {"text": ["Ada"], "answer_start": [40]}}
    path = write(tmp_path, "q.jsonl", "\n".join(map(json.dumps, [good, bad, {**bad, "context": "Ada and Ada."}])))
    with pytest.raises(InputError, match=r"q.jsonl, row 2: the answer 'Ada' does not stand in the context at 40") as error:
        load_data(path)
    assert "\n" not in str(error.value)
    report = Report()
    data = load_data(path, on_error="repair", report=report)["train"]
    assert report.counts == {"answer out of place": 2} and len(data) == 2 and data[1]["answers"]["answer_start"] == [0]


def test_pairs_of_a_sentence_and_questions_of_a_context_stay_together():
    pairs = load_data([{"tokens": "a b c d".split(), "entities": [[0, 1, "X"], [1, 2, "X"], [2, 4, "Y"]], "relations": [[0, 2, "r"]]}
                       for _ in range(1)])["train"]
    assert len(pairs) == 6 and len(set(group_rows(pairs))) == 1
    assert pairs["label"][:].count("r") == 1 and pairs[0]["tags"] == ["B-X", "B-X", "B-Y", "I-Y"]
    contexts = [{"question": f"q{i}", "context": f"the context number {i // 5} has words", "answers": {"text": [], "answer_start": []}}
                for i in range(100)]
    splits = with_splits(load_data(contexts))
    sides = [set(part["context"]) for part in splits.values()]
    assert len(splits) == 3 and not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])


json_values = st.recursive(st.none() | st.booleans() | st.integers(-3, 40) | st.floats(allow_nan=False) | st.text(max_size=8),
                           lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                               st.sampled_from(["text", "answer_start", "role", "content", "from", "value", "start", "end", "type", "pos",
                                                "head", "tail", "label", "indices", "words"]), inner, max_size=3), max_leaves=8)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_hostile_rows_give_rows_or_one_line(data):
    task = data.draw(st.sampled_from(list(ROW_CHECKS)))
    names = sorted({name for layout in LAYOUTS[task] for theirs in layout.values() for name in theirs.replace("?", "").split()})
    row = json.loads(ROW_FORMS[task].example)
    row.update(data.draw(st.dictionaries(st.sampled_from(names), json_values, max_size=4)))
    on_error = data.draw(st.sampled_from(["raise", "repair"]))
    try:
        table = load_data([row], task=task, on_error=on_error)["train"]
        for new in table:
            assert row_labels(new) is not None and full_text(new).strip() and text_key(new)
    except InputError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("labels, rows", [(3, 50), (25, 50), (50, 50), (1, 30)])
def test_small_files_with_few_rows_of_each_label_are_split(labels, rows):
    made = Dataset.from_list([{"text": f"text number {i}", "label": f"l{i % labels}"} for i in range(rows)])
    splits = split_data(made)
    assert sum(map(len, splits.values())) == rows and set(splits) == {"train", "validation", "test"}
    assert rows * 0.05 <= len(splits["test"]) <= rows * 0.2 and len(splits["train"]) >= rows * 0.6
