"""Scores equal those of seqeval and sklearn; bad input is named; `evaluate` modules load offline."""
import os
import subprocess
import sys
import warnings
from collections import defaultdict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from seqeval import scheme as seqeval_scheme
from seqeval.metrics import accuracy_score
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.metrics.sequence_labeling import precision_recall_fscore_support as default_scores
from seqeval.metrics.v1 import precision_recall_fscore_support as strict_scores
from seqeval.scheme import Entities

from safetune.metrics import classification_scores, entities, entity_counts, entity_scores

TYPES = ["PER", "LOC", "creative-work", "a-b-c", "_", "人名"]
STRICT = {"IOB1": "IB", "IOB2": "IB", "IOE1": "IE", "IOE2": "IE", "IOBES": "IBES", "BILOU": "IBLU"}
SHAPES = ["BI", "BII", "II", "IE", "BE", "BIE", "BIIE", "S", "BL", "BIL", "BIIL", "U"]


@st.composite
def corpora(draw, letters, bare=False):
    "Up to four short sentences of names and single tags; the prediction keeps gold tags or replaces them."
    types = draw(st.lists(st.sampled_from(TYPES), min_size=1, max_size=4, unique=True))
    tags = ["O"] + [f"{letter}-{kind}" for letter in letters for kind in types]
    tags += list(letters if bare else "")
    names = [[f"{letter}-{kind}" for letter in shape] for shape in SHAPES if set(shape) <= set(letters)
             for kind in types]
    pieces = st.lists(st.sampled_from([[tag] for tag in tags] + names), max_size=4)
    gold = [sum(row, []) for row in draw(st.lists(pieces, min_size=1, max_size=4))]
    kept_or_new = st.sampled_from([None] * len(tags) + tags)
    changes = [draw(st.lists(kept_or_new, min_size=len(row), max_size=len(row))) for row in gold]
    pred = [[new or tag for tag, new in zip(row, change)] for row, change in zip(gold, changes)]
    return gold, pred


def seqeval_says(gold, pred, mode, scheme):
    "Types in seqeval's order and its scores for every average."
    if mode == "strict":
        found = [Entities(column, getattr(seqeval_scheme, scheme)) for column in (gold, pred)]
        types = sorted(found[0].unique_tags | found[1].unique_tags)
        scores, options = strict_scores, {"scheme": getattr(seqeval_scheme, scheme)}
    else:
        types = sorted({kind for column in (gold, pred) for kind, _, _ in get_entities(column)})
        scores, options = default_scores, {}
    return types, {average: scores(gold, pred, average=average, zero_division=0, **options)
                   for average in (None, "micro", "macro", "weighted")}


def check_against_seqeval(gold, pred, mode="default", scheme="IOB2"):
    "Compare every number with seqeval's."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = entity_scores(gold, pred, mode=mode, scheme=scheme)
        types, theirs = seqeval_says(gold, pred, mode, scheme)
        per_sentence = entity_counts(gold, pred, mode=mode, scheme=scheme)
    assert list(ours["per_type"]) == types == per_sentence.types
    for average in ("micro", "macro", "weighted") if types else ("micro", "weighted"):   # macro of none: nan
        expected = [float(value) for value in theirs[average]]
        assert list(ours[average].values()) == pytest.approx(expected, abs=1e-12), average
    for kind, expected in zip(types, zip(*theirs[None])):
        expected = list(map(float, expected))
        assert list(ours["per_type"][kind].values()) == pytest.approx(expected, abs=1e-12), kind
    if any(gold):
        assert ours["accuracy"] == pytest.approx(accuracy_score(gold, pred))
    supports = [scores["support"] for scores in ours["per_type"].values()]
    assert per_sentence.gold.sum(axis=0).tolist() == supports


THOROUGH = settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
BRIEF = settings(THOROUGH, max_examples=300)


@THOROUGH
@given(corpora("BI"))
def test_default_mode_equals_seqeval(corpus):
    check_against_seqeval(*corpus)


@BRIEF
@given(corpora("BIESULX.", bare=True))
def test_default_mode_equals_seqeval_on_odd_tags(corpus):
    check_against_seqeval(*corpus)


@THOROUGH
@given(st.sampled_from(sorted(STRICT)).flatmap(
    lambda scheme: st.tuples(st.just(scheme), corpora(STRICT[scheme], bare=True))))
def test_strict_mode_equals_seqeval(case):
    scheme, corpus = case
    check_against_seqeval(*corpus, mode="strict", scheme=scheme)


@BRIEF
@given(corpora("BIES", bare=True))
def test_entities_of_one_sentence(corpus):
    for sentence in corpus[0]:
        assert entities(sentence) == [(kind, start, end + 1) for kind, start, end in get_entities(sentence)]
        for scheme, letters in STRICT.items():
            if {tag[0] for tag in sentence} <= set(letters) | {"O"}:
                found = Entities([sentence], getattr(seqeval_scheme, scheme)).entities[0]
                assert entities(sentence, "strict", scheme) == [(e.tag, e.start, e.end) for e in found]


@BRIEF
@given(corpora("BI"))
def test_counts_are_per_sentence(corpus):
    gold, pred = corpus
    whole = entity_counts(gold, pred)
    for number, (g, p) in enumerate(zip(gold, pred)):
        alone = entity_counts([g], [p])
        expected = defaultdict(int, zip(alone.types, alone.true_positive[0]))
        assert whole.true_positive[number].tolist() == [expected[kind] for kind in whole.types]


@pytest.mark.parametrize("gold, pred, message", [
    ([["O"], ["O", "O"]], [["O"], ["O"]], "sentence 1"),
    ([["O"]], [["O"], ["O"]], "1 gold sentences but 2"),
    (["O", "O"], ["O", "O"], "flat list"),
    ([["O"], ["O", ""]], [["O"], ["O", "O"]], "sentence 1.*''"),
    ([["O"], [None]], [["O"], ["O"]], "sentence 1.*None"),
])
def test_bad_input_is_named(gold, pred, message):
    with pytest.raises(ValueError, match=message):
        entity_scores(gold, pred)


def test_bad_options_and_tags_are_named():
    with pytest.raises(ValueError, match="mode 'lenient'"):
        entity_scores([["O"]], [["O"]], mode="lenient")
    with pytest.raises(ValueError, match="scheme 'IOB3'"):
        entity_scores([["O"]], [["O"]], mode="strict", scheme="IOB3")
    with pytest.raises(ValueError, match="sentence 1.*E-PER"):
        entity_scores([["O"], ["B-PER", "E-PER"]], [["O"], ["O", "O"]], mode="strict")
    with pytest.warns(UserWarning, match="U-PER"):
        entity_scores([["U-PER"]], [["O"]])


@settings(BRIEF, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_classification_scores_equal_sklearn(rows):
    from sklearn.metrics import classification_report
    gold, pred = map(list, zip(*rows))
    ours = classification_scores(gold, pred)
    theirs = classification_report(gold, pred, output_dict=True, zero_division=0)
    assert ours["accuracy"] == pytest.approx(theirs["accuracy"])
    for average in ("macro", "weighted"):
        assert list(ours[average].values()) == pytest.approx(list(theirs[f"{average} avg"].values()))


# A process without a network and with an empty cache. Two of them start at once, on the same cache.
EVALUATE_SCRIPT = """
import socket
def refuse(*args, **kwargs):
    raise AssertionError("touched the network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import evaluate
from safetune.metrics import entity_scores, load_metric, token_scores
gold, pred = [["B-A", "I-A", "O"], [], ["I-B"]], [["B-A", "O", "O"], [], ["I-B"]]
both = evaluate.combine([load_metric("entity_scores"), load_metric("token_scores")])
for g, p in zip(gold, pred):
    both.add_batch(references=[g], predictions=[p])
found = both.compute()
assert found["entity_scores_f1"] == entity_scores(gold, pred)["f1"] == 0.5
assert found["token_scores_f1"] == token_scores(gold, pred)["f1"] == 0.75
on_disk = load_metric("entity_scores", "strict", keep_in_memory=False)
assert on_disk.compute(references=gold, predictions=pred) == entity_scores(gold, pred, mode="strict")
labels = load_metric("classification_scores", "multilabel")
assert labels.compute(references=[["a"], []], predictions=[["a"], ["b"]])["accuracy"] == 0.5
try:
    load_metric("entity_scores").compute(references=[[1]], predictions=[[1]])
except (TypeError, ValueError):
    print("done")
"""


def test_evaluate_modules_load_without_network_in_two_processes(tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment["HF_HOME"] = str(tmp_path)
    runs = [subprocess.Popen([sys.executable, "-c", EVALUATE_SCRIPT], env=environment, cwd=tmp_path,
                             text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    for run in runs:
        output, errors = run.communicate(timeout=180)
        assert run.returncode == 0 and output.strip() == "done", errors[-2000:]


def test_import_is_light():
    code = "import sys, safetune.metrics; print({'torch', 'sklearn', 'scipy', 'pandas'} & {*sys.modules})"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert output.strip() == "set()"
