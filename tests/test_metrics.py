"""Entity scores agree with seqeval on random tag sequences; hostile input is refused with a line that helps."""
import warnings
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from seqeval import scheme as seqeval_scheme
from seqeval.metrics import accuracy_score
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.metrics.sequence_labeling import precision_recall_fscore_support as default_scores
from seqeval.metrics.v1 import precision_recall_fscore_support as strict_scores
from seqeval.scheme import Entities

from safetune.metrics import entities, entity_counts, entity_scores

TYPES = ["PER", "LOC", "creative-work", "a-b-c", "_", "人名"]
STRICT = {"IOB1": "IB", "IOB2": "IB", "IOE1": "IE", "IOE2": "IE", "IOBES": "IBES", "BILOU": "IBLU"}


@st.composite
def corpora(draw, letters, bare=False):
    "Gold and predicted tags of up to six short sentences; the prediction is often near the gold."
    types = draw(st.lists(st.sampled_from(TYPES), min_size=1, max_size=4, unique=True))
    tags = ["O"] + [f"{letter}-{kind}" for letter in letters for kind in types] + list(letters if bare else "")
    tag = st.sampled_from(tags)
    sentence = st.lists(st.tuples(tag, tag, st.booleans()), max_size=9)
    rows = draw(st.lists(sentence, min_size=1, max_size=6))
    gold = [[g for g, _, _ in row] for row in rows]
    pred = [[g if same else p for g, p, same in row] for row in rows]
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
    for average in ("micro", "macro", "weighted") if types else ("micro", "weighted"):   # macro of nothing is nan there
        expected = [float(value) for value in theirs[average]]
        assert list(ours[average].values()) == pytest.approx(expected, abs=1e-12), average
    for kind, expected in zip(types, zip(*theirs[None])):
        assert list(ours["per_type"][kind].values()) == pytest.approx(list(map(float, expected)), abs=1e-12), kind
    if any(gold):
        assert ours["accuracy"] == pytest.approx(accuracy_score(gold, pred))
    assert per_sentence.gold.sum(axis=0).tolist() == [scores["support"] for scores in ours["per_type"].values()]


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
