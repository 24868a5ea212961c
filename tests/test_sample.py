"""The sample corpus: clean when asked to be, the same from the same seed, honest about what was planted."""
import dataclasses
import functools
import re
from collections import Counter

import pytest

from safetune.data import InputError
from safetune.sample import (ENTITY_TYPES, FAULTS, ORIGINS, Canaries, ExactDuplicates, GroupLabelLean,
                             NearDuplicates, PersonalData, Shift, WrongLabels, iban, luhn_digit, make_canary,
                             make_fault, name_pools, plant, sample_ner, sample_text, to_spans, undo_faults)

SPLITS = ("train", "validation", "test")
TASKS = ("ner", "single", "multi", "regression")
DETECTORS = {  # what personal data look like; digits of cards and IBANs are checked further below
    "email": re.compile(r"\S+@\S+\.\w+"),
    "phone": re.compile(r"(\+\d{1,2}|\(?\d{3}\)?)[ -]\d{2,4}[ -]\d{2,4}"),
    "card": re.compile(r"\b(?:\d{4} ?){4}\b"),
    "iban": re.compile(r"\b[A-Z]{2}\d{2} ?[A-Z]{4}"),
}


def sample(task, n=600, **options):
    "A corpus for any task."
    return sample_ner(n, **options) if task == "ner" else sample_text(n, task=task, **options)


@functools.cache
def clean_rows(task, n=600, seed=0):
    "The rows of a clean corpus; not to be changed."
    return rows_of(sample(task, n, seed=seed))


def rows_of(data):
    "The rows of all splits, as plain lists: what two corpora are compared by."
    return {split: list(data[split]) for split in data}


def text_of(row):
    "The text of a row of either kind."
    return " ".join(row["tokens"]) if "tokens" in row else row["text"]


def faults_for(task):
    "One or two of each kind that applies to the task."
    every = [Shift(), WrongLabels(rate=0.1), GroupLabelLean(strength=0.3), PersonalData(rate=0.05),
             Canaries(n=3, repeats=2), NearDuplicates(rate=0.05), ExactDuplicates(rate=0.05),
             ExactDuplicates(rate=0.1, where="across")]
    return [fault for fault in every if task in fault.tasks]


@pytest.mark.parametrize("task", TASKS)
def test_schema(task):
    data = sample(task)
    assert list(data) == list(SPLITS) and [len(data[split]) for split in SPLITS] == [420, 60, 120]
    ids = [row["id"] for split in SPLITS for row in data[split]]
    assert len(set(ids)) == len(ids)
    for split in SPLITS:
        assert data[split]["time"] == sorted(data[split]["time"])
        for row in data[split]:
            assert row["gender"] in ("female", "male", "mixed", "none")
            assert row["origin"] in (*ORIGINS, "mixed", "none")
            assert (row["gender"] == "none") == (row["origin"] == "none")
            if task == "ner":
                assert len(row["tokens"]) == len(row["tags"])
                assert not any(re.search(r"\s", word) or not word for word in row["tokens"])
                for before, tag in zip(["O", *row["tags"]], row["tags"]):    # IOB2: I- follows its own kind
                    assert tag[0] != "I" or before[2:] == tag[2:]
    documents = {split: set(data[split]["document"]) for split in SPLITS}
    assert not documents["train"] & documents["test"] and not documents["train"] & documents["validation"]
    labels = {"single": str, "multi": list, "regression": float}
    assert task == "ner" or all(isinstance(row["label"], labels[task]) for row in data["train"])
    assert task != "multi" or "topic" not in data["train"].column_names


@pytest.mark.parametrize("seed", (0, 1, 2))
def test_names_are_held_out(seed):
    data = sample_ner(3000, seed=seed)
    strings = {split: {" ".join(row["tokens"][start:end]).lower() for row in data[split]
                       for _, start, end in to_spans(row["tags"])} for split in SPLITS}
    assert not strings["train"] & strings["test"]
    assert not strings["train"] & strings["validation"]
    assert not strings["validation"] & strings["test"]
    people = {split: {word.lower() for row in data[split]
                      for kind, start, end in to_spans(row["tags"]) if kind == "PER"
                      for word in row["tokens"][start:end] if len(word) > 2} for split in SPLITS}
    assert not people["train"] & people["test"], "a given name or surname crosses"


def test_every_group_has_names_in_every_split():
    for seed in range(20):
        for split, pools in name_pools(seed).items():
            assert min(len(pool) for pool in pools.values()) >= 2, (seed, split)


@pytest.mark.parametrize("task", TASKS)
def test_clean_corpus_has_no_faults(task):
    data = sample(task, 3000, seed=4)
    texts = [text_of(row).lower() for split in SPLITS for row in data[split]]
    assert len(set(texts)) == len(texts)
    for pattern in DETECTORS.values():
        assert not any(pattern.search(text) for text in texts), pattern
    assert not any("door code" in text or text.startswith("entry :") for text in texts)


def test_clean_labels_do_not_lean():
    rows = list(sample_text({"train": 5000, "validation": 1, "test": 1}, seed=11)["train"])
    for column, groups in (("gender", ("female", "male")), ("origin", ORIGINS)):
        shares = {group: [row["label"] == "negative" for row in rows if row[column] == group]
                  for group in groups}
        means = [sum(share) / len(share) for share in shares.values()]
        size = min(map(len, shares.values()))
        assert max(means) - min(means) < 5 * (0.25 / size) ** 0.5, (column, means)


@pytest.mark.parametrize("task", TASKS)
def test_same_seed_same_corpus(task):
    one, truth_one = sample(task, seed=7, faults=faults_for(task), return_truth=True)
    two, truth_two = sample(task, seed=7, faults=faults_for(task), return_truth=True)
    assert rows_of(one) == rows_of(two) and truth_one.to_dict("records") == truth_two.to_dict("records")
    assert rows_of(sample(task, seed=8)) != rows_of(sample(task, seed=7))


def test_corpus_is_the_same_on_every_machine():
    "Pins that the methods of `random.Random` repeat for a seed from one Python to the next."
    words = " ".join(sample_ner(10, seed=0)["train"][0]["tokens"])
    assert words == FIRST_SENTENCE


FIRST_SENTENCE = "Rosbury held Dhaka 6 - 4 ."


@pytest.mark.parametrize("task", TASKS)
def test_truth_undoes_everything(task):
    clean = clean_rows(task, seed=3)
    data, truth = sample(task, seed=3, faults=faults_for(task), return_truth=True)
    assert set(truth.kind) == {fault.kind for fault in faults_for(task)}
    assert rows_of(data) != clean
    assert rows_of(undo_faults(data, truth)) == clean


@pytest.mark.parametrize("task", TASKS)
def test_truth_is_complete_and_right(task):
    clean = {row["id"]: row for part in clean_rows(task, seed=3).values() for row in part}
    data, truth = sample(task, seed=3, faults=faults_for(task), return_truth=True)
    for record in truth.to_dict("records"):
        assert data[record["split"]][record["row"]]["id"] == record["id"]
    touched = set(truth.id)
    for part in rows_of(data).values():
        for row in part:
            assert row["id"] in touched or row == clean[row["id"]]
    for record in truth[truth.kind == "wrong_labels"].to_dict("records"):
        row = data[record["split"]][record["row"]]
        if task == "ner":
            spans = to_spans(row["tags"])
            assert record["after"] is None or record["after"] in spans
            assert record["before"] is None or record["before"] not in spans
        else:
            assert row["label"] == record["after"] != record["before"]


@pytest.mark.parametrize("task", TASKS)
def test_nothing_gives_a_fault_away(task):
    clean = sample(task, seed=3)
    data, truth = sample(task, seed=3, faults=faults_for(task), return_truth=True)
    for split in SPLITS:
        assert data[split].features == clean[split].features
        assert data[split]["time"] == sorted(data[split]["time"])
        assert len({len(row["id"]) for row in data[split]}) == 1
        sizes = Counter(data[split]["document"])
        assert max(sizes.values()) <= 5
    new = truth[truth.kind.isin(["exact_duplicates", "near_duplicates", "canaries"])]
    train = new[new.split == "train"].row
    assert 0.35 < train.mean() / len(data["train"]) < 0.65, "new rows are spread over the split"


# Not a shift, which replaces rows that others would touch, nor wrong labels, which a lean leaves alone.
PAIRS = [(task, extra) for task in TASKS for extra in faults_for(task)
         if extra.kind not in ("shift", "wrong_labels")]


@pytest.mark.parametrize("task, extra", PAIRS, ids=lambda value: getattr(value, "kind", str(value)))
def test_faults_are_independent(task, extra):
    "Adding a fault leaves what the others do as it was."
    base = [fault for fault in faults_for(task) if fault != extra]
    _, alone = sample(task, 300, seed=5, faults=base, return_truth=True)
    _, more = sample(task, 300, seed=5, faults=[*base, extra], return_truth=True)
    columns = ["split", "id", "kind", "detail", "before", "after"]
    keep = lambda truth: {str(record) for record in truth[truth.source.isna()][columns].to_dict("records")
                          if record["kind"] != extra.kind}
    assert keep(alone) == keep(more)
    copies = lambda truth: set(truth[truth.kind.isin(["exact_duplicates", "near_duplicates"])
                                     & (truth.kind != extra.kind)].id)
    assert copies(alone) == copies(more)


@pytest.mark.parametrize("fault", (WrongLabels, PersonalData, NearDuplicates, ExactDuplicates))
def test_more_of_a_fault_includes_the_less(fault):
    _, few = sample_ner(600, faults=fault(rate=0.05), return_truth=True)
    _, many = sample_ner(600, faults=fault(rate=0.15), return_truth=True)
    assert len(few) == 21 and len(many) == 63 and set(few.id) < set(many.id)


@pytest.mark.parametrize("kind", ("missed", "spurious", "boundary", "type"))
def test_each_kind_of_wrong_entity(kind):
    clean = {row["id"]: row for row in sample_ner(600)["train"]}
    data, truth = sample_ner(600, faults=WrongLabels(rate=0.2, kinds=kind), return_truth=True)
    assert len(truth) == 84 and truth.id.is_unique
    for record in truth.to_dict("records"):
        right, wrong = to_spans(clean[record["id"]]["tags"]), to_spans(data["train"][record["row"]]["tags"])
        lost, gained = set(right) - set(wrong), set(wrong) - set(right)
        assert (len(lost), len(gained)) == {"missed": (1, 0), "spurious": (0, 1)}.get(kind, (1, 1))
        if kind == "type":
            assert [span[1:] for span in lost] == [span[1:] for span in gained]
        if kind == "boundary":
            (name, start, end), (other, left, right) = *lost, *gained
            assert name == other and abs(start - left) + abs(end - right) == 1 and left < right


def test_personal_data_are_found_and_checked():
    data, truth = sample_ner(2000, faults=PersonalData(rate=0.2), return_truth=True)
    assert Counter(truth.detail) == dict.fromkeys(DETECTORS, 70)
    for record in truth.to_dict("records"):
        text = text_of(data["train"][record["row"]])
        assert record["after"] in text
        assert DETECTORS[record["detail"]].search(record["after"]), record["after"]
        compact = record["after"].replace(" ", "")
        if record["detail"] == "card":
            assert luhn_digit(compact[:-1]) == compact[-1] and compact.startswith("400000")
        if record["detail"] == "iban":
            assert iban(compact[:2], compact[4:]) == compact and compact[4:8] == "TEST" and len(compact) == 22
            assert int("".join(str(int(letter, 36)) for letter in compact[4:] + compact[:4])) % 97 == 1
        if record["detail"] == "email":
            assert re.fullmatch(r"[a-z._]+\d*@example\.(com|org|net)", record["after"])
        if record["detail"] == "phone":
            assert re.search(r"555[- ]01\d\d$|^\+44 20 7946 0\d{3}$", record["after"])


def test_duplicates():
    faults = [ExactDuplicates(rate=0.1),
              ExactDuplicates(rate=0.2, where="across", splits=("validation", "test"))]
    data, truth = sample_text(1000, faults=faults, return_truth=True)
    assert truth.groupby(["split", "detail"]).size().to_dict() == {
        ("train", "within"): 70, ("validation", "across"): 20, ("test", "across"): 40}
    texts = {row["id"]: (row["text"], row["label"]) for split in SPLITS for row in data[split]}
    train = set(data["train"]["id"])
    for record in truth.to_dict("records"):
        assert texts[record["id"]] == texts[record["source"]] and record["source"] in train
    leaked = {row["text"] for row in data["test"]} & {row["text"] for row in data["train"]}
    assert len(leaked) == 40


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("edits", (1, 3))
def test_near_duplicates_are_near_and_not_exact(task, edits):
    data, truth = sample(task, faults=NearDuplicates(rate=0.1, edits=edits), return_truth=True)
    rows = {row["id"]: row for row in data["train"]}
    for record in truth.to_dict("records"):
        copy, source = rows[record["id"]], rows[record["source"]]
        assert text_of(copy) != text_of(source)
        one, two = Counter(text_of(copy).split()), Counter(text_of(source).split())
        assert sum(((one - two) + (two - one)).values()) <= 2 * edits
        if task == "ner":
            names = [[(kind, row["tokens"][start:end]) for kind, start, end in to_spans(row["tags"])]
                     for row in (copy, source)]
            assert names[0] == names[1] and len(copy["tokens"]) == len(copy["tags"])
        else:
            assert copy["label"] == source["label"]


def test_copies_carry_the_faults_of_their_source():
    faults = [WrongLabels(rate=0.5), ExactDuplicates(rate=0.5)]
    data, truth = sample_text(600, faults=faults, return_truth=True)
    wrong = truth[truth.kind == "wrong_labels"]
    copied = wrong[wrong.source.notna()]
    assert len(copied) > 0.15 * 420 and set(copied.source) <= set(wrong[wrong.source.isna()].id)
    assert len(copied) == truth[(truth.kind == "exact_duplicates") & truth.source.isin(wrong.id)].shape[0]


@pytest.mark.parametrize("column, group", (("gender", "male"), ("origin", "slavic"), ("dialect", "variant")))
def test_lean_hits_its_group_only(column, group):
    clean = clean_rows("single", 2000)
    lean = GroupLabelLean(group, strength=0.5, column=column, splits=("train", "test"))
    data, truth = sample_text(2000, faults=lean, return_truth=True)
    assert set(truth.split) == {"train", "test"}
    for split in ("train", "test"):
        moved = Counter((one[column] == group, one["label"], two["label"])
                        for one, two in zip(clean[split], data[split]))
        assert all(before == after for hit, before, after in moved if not hit)
        could = sum(count for (hit, before, _), count in moved.items() if hit and before != "negative")
        did = sum(count for (hit, before, after), count in moved.items() if hit and before != after)
        assert abs(did / could - 0.5) < 4 * (0.25 / could) ** 0.5


def test_lean_on_entities_hides_people_of_a_group():
    data, truth = sample_ner(3000, faults=GroupLabelLean("female", strength=0.4), return_truth=True)
    clean = sample_ner(3000)["train"]
    women = [span for row in clean if row["gender"] == "female"
             for span in to_spans(row["tags"]) if span[0] == "PER"]
    assert abs(len(truth) / len(women) - 0.4) < 4 * (0.24 / len(women)) ** 0.5
    assert {data["train"][row]["gender"] for row in truth.row} == {"female"}
    assert {span[0] for span in truth.before} == {"PER"}


def test_lean_lowers_scores():
    lean = GroupLabelLean("female", strength=0.5)
    data, truth = sample_text(2000, task="regression", faults=lean, return_truth=True)
    assert len(truth) > 100
    for before, after in zip(truth.before, truth.after):
        assert max(1.0, before - 1.5) == pytest.approx(after)


@pytest.mark.parametrize("task", TASKS)
def test_canaries(task):
    data, truth = sample(task, faults=Canaries(n=4, repeats=3), return_truth=True)
    texts = Counter(map(text_of, data["train"]))
    for number in range(4):
        secret, fields = make_canary(number, task)
        assert texts[text_of(fields)] == 3 and (truth.after == secret).sum() == 3
        rows = [row for row in data["train"] if text_of(row) == text_of(fields)]
        target = "tags" if task == "ner" else "label"
        assert all(row[target] == fields[target] for row in rows)
    controls = {make_canary(number, task)[0] for number in range(4, 500)}
    assert len(controls) > 480 and not controls & set(truth.after)
    if task == "ner":
        kinds = {to_spans(make_canary(number, task)[1]["tags"])[0][0] for number in range(50)}
        assert kinds == set(ENTITY_TYPES)


@pytest.mark.parametrize("task", TASKS)
def test_shift_starts_on_its_day(task):
    clean, fault = clean_rows(task, 2000), Shift(strength=0.6, start="2025-09-01")
    data, truth = sample(task, 2000, faults=fault, return_truth=True)
    changed = [row["time"] for row, old in zip(data["test"], clean["test"]) if row != old]
    late = sum(row["time"] >= "2025-09-01" for row in clean["test"])
    assert set(truth.split) == {"test"} and min(changed) >= "2025-09-01"
    assert len(truth) == len(changed) and abs(len(truth) / late - 0.6) < 4 * (0.24 / late) ** 0.5
    texts = [text_of(row).lower() for split in SPLITS for row in data[split]]
    assert len(set(texts)) == len(texts)
    assert rows_of(data)["train"] == clean["train"]


def test_dicts_strings_and_objects_say_the_same():
    assert make_fault({"kind": "wrong_labels", "rate": 0.1}) == WrongLabels(rate=0.1)
    assert make_fault("shift") == Shift() and make_fault(Shift(start="2025-03-01")).start == "2025-03-01"
    assert make_fault({"kind": "exact_duplicates", "where": "across"}).splits == ("test",)
    for kind, fault in FAULTS.items():
        assert make_fault(kind) == fault()
        assert make_fault(dataclasses.asdict(fault()) | {"kind": kind}) == fault()
    one = sample_ner(100, faults="wrong_labels")
    assert rows_of(one) == rows_of(sample_ner(100, faults=[WrongLabels()]))
    assert rows_of(sample_ner(100, faults=[])) == rows_of(sample_ner(100))


@pytest.mark.parametrize("call, says", (
    (lambda: sample_ner(9), "validation"), (lambda: sample_ner(-5), "row"),
    (lambda: sample_ner("many"), "total"),
    (lambda: sample_ner(True), "total"), (lambda: sample_ner({"train": 5, "test": 5}), "validation"),
    (lambda: sample_ner({"train": 5, "validation": 0, "test": 5}), "validation"),
    (lambda: sample_ner(100, seed=1.5), "seed"), (lambda: sample_ner(100, dialect_share=2), "dialect_share"),
    (lambda: sample_text(100, task="ner"), "single, multi, regression"),
    (lambda: sample_ner(100, faults="fire"), "fire"), (lambda: sample_ner(100, faults=[3]), "unknown fault"),
    (lambda: sample_ner(100, faults={"rate": 0.1}), "unknown"),
    (lambda: sample_ner(100, faults=7), "unknown"),
    (lambda: make_fault({"kind": "shift", "rate": 1}), "strength"), (lambda: WrongLabels(rate=-0.1), "rate"),
    (lambda: WrongLabels(rate="all"), "rate"), (lambda: WrongLabels(kinds=("missed", "lost")), "boundary"),
    (lambda: WrongLabels(splits="dev"), "validation"), (lambda: PersonalData(kinds=()), "email"),
    (lambda: Canaries(n=0), "n=0"), (lambda: Canaries(repeats=1.5), "repeats"),
    (lambda: NearDuplicates(edits=0), "edits"),
    (lambda: ExactDuplicates(where="between"), "within or across"),
    (lambda: ExactDuplicates(where="across", splits=("train",)), "other splits"),
    (lambda: Shift(start="July"), "YYYY-MM-DD"), (lambda: Shift(start=7), "YYYY-MM-DD"),
    (lambda: GroupLabelLean("nobody"), "female, male"),
    (lambda: GroupLabelLean(column="age"), "gender"), (lambda: GroupLabelLean(toward="bad"), "neutral"),
    (lambda: sample_text(100, task="multi", faults=GroupLabelLean()), "multi"),
    (lambda: sample_ner(100, faults=WrongLabels(rate=1.0)), "lower the rate"),
), ids=lambda value: value if isinstance(value, str) else None)
def test_bad_arguments(call, says):
    with pytest.raises(InputError) as caught:
        call()
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_fault_that_plants_nothing_leaves_the_corpus_clean():
    data, truth = sample_ner(100, faults=WrongLabels(rate=0.0), return_truth=True)
    assert len(truth) == 0 and rows_of(data) == rows_of(sample_ner(100))
    assert rows_of(undo_faults(data, truth)) == rows_of(data)
    rows = {split: list(part) for split, part in rows_of(data).items()}
    assert plant(rows, None, "ner", 0)[0] == rows
