"""Label errors: the equations by hand, what must hold for any probabilities, and hostile input."""
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as arrays

from safetune.data import InputError
from safetune.labels import (MOVED, NONE, PRUNINGS, Chart, LabelErrors, OutOfFold, calibrate_joint, class_thresholds,
                             confident_joint, estimate_noise, find_errors, fold_numbers, inconsistent_mentions,
                             mention_table, mentions, normalised_margin, other_readings, out_of_fold, self_confidence,
                             span_candidates, span_finding, text_candidates, unmarked_entities)
from safetune.metrics import entities
from safetune.sample import WrongLabels, sample_ner, sample_text
from safetune.tasks import SequenceClassification, TokenClassification

quick = settings(max_examples=40, deadline=None)    # no deadline: the machine may be busy
LABELS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


@st.composite
def cases(draw):
    "Probabilities and given labels."
    n, k = draw(st.integers(1, 25)), draw(st.integers(2, 5))
    raw = draw(arrays.arrays(float, (n, k), elements=st.floats(0.001, 1)))
    return raw / raw.sum(1, keepdims=True), np.array(draw(st.lists(st.integers(0, k - 1), min_size=n, max_size=n)))


@st.composite
def sentences(draw):
    "Valid IOB2 tags of one sentence, and probabilities."
    n, tags = draw(st.integers(1, 9)), []
    while len(tags) < n:
        type_, length = draw(st.sampled_from(["", "LOC", "PER"])), draw(st.integers(1, 3))
        tags += [f"{'I' if i else 'B'}-{type_}" if type_ else "O" for i in range(length)]
    raw = draw(arrays.arrays(float, (n, 5), elements=st.floats(0.001, 1)))
    return tags[:n], raw / raw.sum(1, keepdims=True)


def by_hand(p, labels):
    "The confident joint as the paper writes it, row by row."
    n, k = p.shape
    t = [np.mean([p[x, j] for x in range(n) if labels[x] == j]) if j in labels else np.inf for j in range(k)]
    counts = np.zeros((k, k), dtype=int)
    for x in range(n):
        reached = [j for j in range(k) if p[x, j] >= t[j] - 1e-12]
        if reached:
            counts[labels[x], max(reached, key=lambda j: (p[x, j], -j))] += 1
    return counts


@quick
@given(cases())
def test_the_joint_is_that_of_the_definition(case):
    p, labels = case
    assert np.array_equal(confident_joint(p, labels), by_hand(p, labels))


@quick
@given(cases())
def test_calibration_keeps_the_counts_of_the_given_labels(case):
    p, labels = case
    joint = estimate_noise(p, labels).joint
    assert np.allclose(joint.sum(1), np.bincount(labels, minlength=p.shape[1]) / len(p))
    assert np.isclose(joint.sum(), 1) and (joint >= 0).all()
    noise = estimate_noise(p, labels)
    assert np.allclose(noise.matrix.sum(0), 1) and np.allclose(noise.inverse.sum(1), 1)
    assert -1e-9 <= noise.rate <= 1 and np.isclose(noise.priors.sum(), 1)


@quick
@given(cases(), st.randoms(use_true_random=False))
def test_names_of_classes_do_not_matter(case, random):
    p, labels = case
    if len(np.unique(p)) < p.size:        # ties are broken by the order of the classes
        return
    order = list(range(p.shape[1]))
    random.shuffle(order)
    order = np.array(order)
    new = np.argsort(order)[labels]
    assert np.array_equal(confident_joint(p[:, order], new), confident_joint(p, labels)[np.ix_(order, order)])
    for by in PRUNINGS:
        assert np.array_equal(find_errors(p[:, order], new, by), find_errors(p, labels, by))


@quick
@given(st.integers(2, 6), st.integers(1, 30), st.floats(0, 0.3))
def test_a_sure_model_that_agrees_accuses_nobody(k, n, doubt):
    labels = np.arange(n) % k
    p = np.full((n, k), doubt / (k - 1))
    p[np.arange(n), labels] = 1 - doubt
    assert not any(find_errors(p, labels, by).any() for by in PRUNINGS)
    assert estimate_noise(p, labels).rate == pytest.approx(0, abs=1e-12)


@quick
@given(st.integers(0, 1000), st.floats(0.02, 0.3))
def test_a_perfect_model_finds_all_and_only_the_wrong_labels(seed, rate):
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 3, 300)
    wrong = rng.random(300) < rate
    labels = np.where(wrong, (true + rng.integers(1, 3, 300)) % 3, true)
    p = np.full((300, 3), 0.01)
    p[np.arange(300), true] = 0.98
    for by in PRUNINGS:
        assert np.array_equal(find_errors(p, labels, by), wrong), by
    assert estimate_noise(p, labels).rate == pytest.approx(wrong.mean())


@quick
@given(cases())
def test_scores_and_flags_keep_their_bounds(case):
    p, labels = case
    assert ((0 <= self_confidence(p, labels)) & (self_confidence(p, labels) <= 1 + 1e-9)).all()
    assert (np.abs(normalised_margin(p, labels)) <= 1 + 1e-9).all()
    both = find_errors(p, labels, "both")
    assert not (both & ~find_errors(p, labels, "class")).any()
    assert not (both & ~find_errors(p, labels, "noise rate")).any()


def test_class_without_examples():
    p = np.array([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1]])
    assert class_thresholds(p, np.array([0, 1]))[2] == np.inf
    assert np.array_equal(calibrate_joint([[0, 0], [0, 3]], [0, 1, 1, 1]), [[0.25, 0], [0, 0.75]])


@quick
@given(sentences())
def test_log_odds_are_those_of_whole_sentences(sentence):
    tags, p = sentence
    chart, column = Chart(tags, p, LABELS), {label: i for i, label in enumerate(LABELS)}
    whole = lambda tags: sum(np.log(p[i, column[tag]]) for i, tag in enumerate(tags))
    row = {"tokens": ["w"] * len(tags), "tags": tags}
    oof = OutOfFold([row], TokenClassification(LABELS), [p], np.zeros(1), "words")
    for line in span_candidates(oof).itertuples():
        fixed = span_finding(line, row, "train").fix
        assert entities(fixed) == sorted((set(entities(tags)) - {line.given}) | ({line.better} - {None}),
                                         key=lambda span: span[1])
        assert chart.log_odds(line.given, line.better)[0] == pytest.approx(whole(fixed) - whole(tags))
        changed = sum(a != b for a, b in zip(fixed, tags))
        assert line.log_odds == pytest.approx((whole(fixed) - whole(tags)) / changed)


@quick
@given(sentences())
def test_other_readings_never_touch_a_neighbour(sentence):
    tags, p = sentence
    free = [tag == "O" for tag in tags]
    for entity in entities(tags):
        readings = other_readings(entity, free, ["LOC", "PER"])
        assert len(set(readings)) == len(readings)
        for kind, new in readings:
            assert new != entity
            if new:
                inside = range(entity[1], entity[2])
                assert 0 <= new[1] < new[2] <= len(tags)
                assert all(free[i] or i in inside for i in range(new[1], new[2]))
                assert any(i in inside for i in range(new[1], new[2]))


@quick
@given(sentences())
def test_unmarked_entities_are_free_and_do_not_overlap(sentence):
    tags, p = sentence
    taken = [i for span, _ in unmarked_entities(Chart(tags, p, LABELS)) for i in range(span[1], span[2])]
    assert len(set(taken)) == len(taken) and all(tags[i] == "O" for i in taken)


def test_a_sure_tagger_that_agrees_accuses_no_entity():
    rows = list(sample_ner(60, seed=3)["train"])
    task = TokenClassification(["O"] + [f"{p}-{t}" for t in ("LOC", "MISC", "ORG", "PER") for p in "BI"])
    p = [np.where(np.eye(9)[[task.label2id[tag] for tag in row["tags"]]] > 0, 0.92, 0.01) for row in rows]
    table = span_candidates(OutOfFold(rows, task, p, np.zeros(len(rows)), "words"))
    assert not table["flagged"].any() and (table["score"] < 0.5).all()
    assert list(table.attrs["joint"].columns) == ["LOC", "MISC", "ORG", "PER", NONE, MOVED]


def test_mentions_skip_what_is_inside_another_entity():
    rows = [{"tokens": ["New", "York", "FC"], "tags": ["B-ORG", "I-ORG", "I-ORG"]},
            {"tokens": ["in", "new", "york"], "tags": ["O", "B-LOC", "I-LOC"]},
            {"tokens": ["york", "York"], "tags": ["O", "B-LOC"]}]
    assert mentions(rows) == {"new york fc": [(0, 0, 3, "ORG")], "new york": [(1, 1, 3, "LOC")],
                              "york": [(2, 1, 2, "LOC"), (2, 0, 1, "O")]}
    assert len(mention_table([])) == 0


@pytest.fixture(scope="module")
def noisy():
    return sample_ner({"train": 300, "validation": 4, "test": 4}, seed=1, faults=WrongLabels(0.1), return_truth=True)


def test_the_detector_repeats_itself_and_repairs(noisy):
    rows, truth = list(noisy[0]["train"]), noisy[1]
    found = LabelErrors(progress=False).scan(iter(rows), "train")
    assert found == LabelErrors(progress=False).scan(rows, "train")
    planted = {line.row: line.original["tags"] for line in truth.itertuples()}
    right = sum(planted.get(f.row) == f.fix for f in found)
    assert right >= 0.4 * len(planted) and right >= 0.5 * len(found)
    assert all(f.kind.startswith("label/") and f.split == "train" and 0.5 <= f.score <= 1 for f in found)


def test_folds_cannot_see_their_own_rows():
    "With random labels nothing can be learned; a leak would show as accuracy far above chance."
    rng = np.random.default_rng(0)
    rows = [{"text": f"word{i} again{i}", "label": "ab"[rng.integers(2)]} for i in range(400)]
    rows += rows          # every text twice
    scores = out_of_fold(rows, progress=False).score()
    assert 0.35 < scores["accuracy"] < 0.65


def test_labels_without_rows_in_a_fold_and_one_row_per_class():
    rows = [{"text": f"t{i} {'x' if i % 2 else 'y'}", "label": "xy"[i % 2]} for i in range(40)]
    rows.append({"text": "alone", "label": "z"})
    oof = out_of_fold(rows, progress=False)
    assert np.isfinite(np.stack(oof.probabilities)).all()
    assert set(text_candidates(oof)["row"]) == set(range(41))


def test_hostile_rows():
    text = [{"text": word, "label": label} for word, label in
            [("", "a"), ("\x00\x00", "b"), ("<script>", "a"), ("😀" * 500, "b"), ("a " * 5000, "a"), ("\u202e", "b")]]
    assert len(out_of_fold(text, folds=2, progress=False).rows) == 6
    words = [{"tokens": tokens, "tags": tags} for tokens, tags in
             [(["", "x"], ["O", "B-A"]), (["\x00"], ["B-B"]), (["😀"] * 300, ["O"] * 300), (["İ"], ["B-A"]),
              (["x", "y"], ["B-A", "I-A"]), (["z"], ["B-B"])]]
    oof = out_of_fold(words, folds=2, progress=False)
    assert [p.shape[0] for p in oof.probabilities] == [len(row["tokens"]) for row in words]
    span_candidates(oof), inconsistent_mentions(oof)


def test_errors_in_one_line():
    data = sample_text(60, seed=0)
    for call in (lambda: out_of_fold(data, folds=1), lambda: out_of_fold(data, split="x"), lambda: out_of_fold([]),
                 lambda: out_of_fold(data, method="tune"), lambda: out_of_fold(data, "no/such/model"),
                 lambda: out_of_fold([{"text": "a"}]), lambda: fold_numbers([], 2), lambda: LabelErrors(least=-1),
                 lambda: find_errors(np.zeros((0, 2)), []), lambda: find_errors([[np.nan, 1]], [0]),
                 lambda: find_errors([[0.5, 0.5]], [0.5]), lambda: find_errors([[0.5, 0.5]], [-1])):
        with pytest.raises(InputError) as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", ["features", "tune"])
def test_encoders_as_judges(method, tmp_path):
    "Frozen features and fine-tunes give probabilities of every word and text, in the order of the labels."
    from safetune.tuning import new_encoder
    settings = {"epochs": 1, "batch_size": 8} if method == "tune" else {}
    for data, size in ((sample_ner(60, seed=0), 9), (sample_text(60, seed=0), 3)):
        rows = list(data["train"])
        encoder = new_encoder((row.get("tokens") or row["text"] for row in rows), tmp_path / str(size), vocab_size=200,
                              hidden=16, layers=1, heads=2)
        oof = out_of_fold(data, encoder, method=method, folds=2, progress=False, **settings)
        assert len(oof.labels) == size and oof.method == method
        for row, p in zip(rows, oof.probabilities):
            assert p.shape == ((len(row["tokens"]), size) if "tokens" in row else (size,))
            assert np.allclose(p.sum(-1), 1, atol=1e-4)


def test_labels_that_are_no_names_are_refused():
    with pytest.raises(InputError, match="train, row 1: the label is True; give names of classes"):
        LabelErrors(progress=False).scan([{"text": f"text {i}", "label": i % 2 == 0} for i in range(40)])
