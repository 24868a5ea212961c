"Attacks: edits keep words and tags aligned, company changes nothing, hostile input, and the interface of TextAttack."
import sys

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from safetune.attacks import (RECIPES, Ask, Attack, AttackRobustness, Beam, Budget, Characters, Gradients, Greedy, Importance, Misclassify,
                              Neighbours, OtherMentions, SpanGoal, attack_rows, augment, before_and_after, get_attack, handled,
                              mention_pool, padded_predictions, run_together, span_outcome, textattack_model, wording)
from safetune.checks import CannotRun
from safetune.data import InputError
from safetune.metrics import entities
from safetune.predict import Predictor
from safetune.sample import sample_ner, sample_text
from safetune.tasks import SequenceClassification, TokenClassification
from safetune.tuning import Tuner, new_encoder

WORDS = st.lists(st.text(st.characters(exclude_categories=("Zs", "Zl", "Zp", "Cc", "Cs")), min_size=1, max_size=6), min_size=1, max_size=9)


@st.composite
def tagged(draw):
    "A row with random valid IOB2 tags."
    tokens, tags = draw(WORDS), []
    for _ in tokens:
        options = ["O", "B-PER", "B-LOC"] + ([f"I-{tags[-1][2:]}"] if tags and tags[-1] != "O" else [])
        tags.append(draw(st.sampled_from(options)))
    return {"tokens": tokens, "tags": tags}


@settings(max_examples=150, deadline=None)
@given(tagged(), st.data())
def test_any_chain_of_edits_keeps_words_tags_and_spans_together(row, data):
    now = wording(row)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(now.words) - 1))
        end = data.draw(st.integers(start + 1, len(now.words)))
        new = data.draw(st.lists(st.sampled_from(["x", "yy", "z z"]), max_size=3))
        before = now
        try:
            now = now.replace(start, end, new)
        except ValueError:
            torn = [s for s in before.spans if not (end <= s[1] or s[2] <= start) and
                    not (s[1] <= start and end <= s[2] and s[2] - s[1] + len(new) - (end - start) > 0)]
            assert torn
            continue
        if not now.words:
            break
        assert len(now.words) == len(now.origin) == len(now.now["tags"])
        assert entities(now.tags) == list(now.spans)
        assert [s[0] for s in now.spans] == [s[0] for s in before.spans]
        assert now.changed >= set(before.origin[start:end])
        untouched = [w for w, o in zip(now.words, now.origin) if o not in now.changed]
        assert untouched == [row["tokens"][o] for o in now.origin if o not in now.changed]


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=80))
def test_the_text_of_an_untouched_wording_is_the_text(text):
    now = wording({"text": text})
    assert now.text == text
    for i in range(len(now.words)):
        assert now.replace(i, i + 1, [now.words[i]]).text == text


@settings(max_examples=200, deadline=None)
@given(tagged(), st.data())
def test_outcomes_partition_what_can_happen_to_a_span(row, data):
    predicted = entities([data.draw(st.sampled_from(["O", "B-PER", "B-LOC", "I-PER"])) for _ in row["tokens"]])
    for span in entities(row["tags"]):
        touching = [p for p in predicted if p[1] < span[2] and span[1] < p[2]]
        outcome = span_outcome(span, predicted)
        assert (outcome == "found") == (span in predicted)
        assert (outcome == "missed") == (not touching)
        assert (outcome == "type") == (bool(touching) and all(p[0] != span[0] for p in touching))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 300), max_size=12), st.integers(1, 8))
def test_coroutines_end_the_same_in_any_company(starts, width):
    def halve(items): return [item // 2 for item in items]

    async def steps(x):
        count = 0
        while x > 1:
            x, = await Ask(halve, [x])
            count += 1
        return count
    assert run_together(map(steps, starts), width) == [int(np.log2(x)) for x in starts]


def test_a_service_is_called_once_a_round_and_errors_come_through():
    sizes = []
    def service(items):
        sizes.append(len(items))
        return items

    async def twice(x):
        await Ask(service, [x, x])
        return await Ask(service, [])
    assert run_together([twice(i) for i in range(5)], width=5) == [[]] * 5
    assert sizes == [10]

    async def bad():
        raise InputError("broken")
    with pytest.raises(InputError, match="broken"):
        run_together([bad()])


def longest(rows):
    "A classifier that looks at the longest word only."
    return [{"a": 0.9, "b": 0.1} if len(max(row["text"].split(), key=len)) % 2 else {"a": 0.2, "b": 0.8} for row in rows]


LONGEST = Predictor(longest, task=SequenceClassification(["a", "b"]))
SWAPS = Attack("characters", Misclassify(), Characters(("insert", "delete")), Greedy(Importance("random")))


def test_a_weak_classifier_falls_and_the_budget_holds():
    rows = [{"text": f"one two three and {word} too", "label": "a" if len(word) % 2 else "b"} for word in ("elephants", "crocodile", "antelopes", "woodpecker")]
    outcomes = attack_rows(LONGEST, rows, SWAPS)
    assert all(o.reached and o.edits == 1 and o.became != o.case.target for o in outcomes)
    assert all(longest([{"text": o.final.text}])[0] != longest([{"text": o.case.start.text}])[0] for o in outcomes)
    assert all(1 <= o.queries <= 30 for o in outcomes)
    beam = Attack("beam", Misclassify(), Characters(("insert",)), Beam(2), budget=Budget(1.0, most=2))
    assert all(o.reached and o.edits == 1 for o in attack_rows(LONGEST, rows, beam))
    targeted = Attack("into", Misclassify("b"), Characters(("insert", "delete")), Greedy(Importance("unk")))
    assert [o.became for o in attack_rows(LONGEST, rows, targeted)] == ["b"] * 3


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=60))
def test_hostile_texts_do_no_harm(text):
    row = {"text": text, "label": "a"}
    always = Predictor(lambda rows: ["a" for _ in rows])
    try:
        outcome, = attack_rows(always, [row], SWAPS)
    except CannotRun:
        assert not wording(row).words
        return
    assert not outcome.reached and outcome.final.words == outcome.case.start.words
    assert "<script" not in outcome._repr_html_()


def test_html_is_escaped():
    row = {"text": "<script>alert(1)</script> elephants", "label": longest([{"text": "<script>alert(1)</script> elephants"}])[0]}
    row["label"] = max(row["label"], key=row["label"].get)
    outcome, = attack_rows(LONGEST, [row], SWAPS)
    assert "<script" not in outcome._repr_html_()


def test_pairs_and_bad_rows():
    rows = [{"text": "woodpecker one", "text_pair": "two", "label": "b"}]
    outcome, = attack_rows(LONGEST, rows, SWAPS)
    assert outcome.final.now["text_pair"] == "two"
    with pytest.raises(InputError, match="one label a row"):
        attack_rows(Predictor(lambda rows: [["a"] for _ in rows]), [{"text": "a", "label": ["a"]}], SWAPS)
    with pytest.raises(CannotRun):
        attack_rows(LONGEST, [], SWAPS)


def capitals(rows):
    return [["B-PER" if word.istitle() else "O" for word in row["tokens"]] for row in rows]


NAMES = [{"tokens": ["we", "met", name, "in", place], "tags": ["O", "O", "B-PER", "O", "B-PER"]} for name, place in
         (("Ada", "Bern"), ("Ben", "Cork"), ("Cleo", "Dover"), ("Dora", "Essen"))]
TAGGER = Predictor(capitals, task=TokenClassification(["O", "B-PER", "I-PER"]))


def test_entities_are_cases_of_their_own_and_sentences_are_the_units():
    lower = Attack("lower", SpanGoal("missed"), Neighbours(["ada", "ben"], np.eye(2) + 0.5, least=0), Greedy(Importance("random")))
    outcomes = attack_rows(TAGGER, NAMES, lower)
    assert len(outcomes) == 8 and not any(o.reached for o in outcomes)       # case is kept, so the tagger still sees them
    class Lower:
        async def candidates(self, session, now, i): return [now.replace(i, i + 1, (now.words[i].lower(),))]
    attack = Attack("lower", SpanGoal("missed"), Lower(), Greedy(Importance("random")))
    result = AttackRobustness(attack)(TAGGER, NAMES)
    assert result.value == 1 and result.n == 4 and result.unit == "sentences" and result.verdict == "fail"
    other = AttackRobustness(attack, seed=1)(TAGGER, NAMES)    # the seed draws, it does not limit cases of a row
    assert len(other.outcomes) == len(result.outcomes) == 8
    assert attack_rows(TAGGER, NAMES, lower, per_row=1, limit=3, seed=1) and len(attack_rows(TAGGER, NAMES, lower, per_row=1)) == 4


def test_mentions_of_the_same_type():
    pool = mention_pool([*NAMES, {"tokens": ["New", "York"], "tags": ["B-LOC", "I-LOC"]}])
    assert pool["LOC"] == [("New", "York")] and len(pool["PER"]) == 8
    with pytest.raises(InputError, match="no mentions"):
        OtherMentions({})


def test_augmented_rows_keep_columns_and_align():
    data = sample_ner(n={"train": 60, "validation": 10, "test": 10}, seed=3)
    known = {tuple(row["tokens"]): row["tags"] for row in data["train"]}
    oracle = Predictor(lambda rows: [known.get(tuple(row["tokens"]), ["O"] * len(row["tokens"])) for row in rows],
                       task=TokenClassification(["O"]))
    attack = Attack("characters", SpanGoal(), Characters(("split",)), Greedy(Importance("random")))
    longer = augment(data, attack, oracle, share=0.2)
    assert len(longer["train"]) == 72 and longer["test"] is data["test"] and longer["train"].features == data["train"].features
    for copy in list(longer["train"])[60:]:
        original = next(row for row in data["train"] if copy["id"] == row["id"] + "+attack")
        assert len(copy["tokens"]) == len(copy["tags"]) == len(original["tokens"]) + 1
        assert [t for t, *_ in entities(copy["tags"])] == [t for t, *_ in entities(original["tags"])]
        assert "".join(copy["tokens"]) == "".join(original["tokens"])


def test_before_and_after_compares_the_same_cases():
    rows = [{"text": f"one {word}", "label": "b" if len(word) % 2 == 0 else "a"} for word in ("elephants", "crocodile", "woodpecker", "antelopes")]
    outcomes = attack_rows(LONGEST, rows, SWAPS)
    answers = {row["text"]: row["label"] for row in rows} | {o.final.text: o.case.target for o in outcomes}
    perfect = Predictor(lambda asked: [answers[row["text"]] for row in asked])
    table = before_and_after(LONGEST, perfect, outcomes, SWAPS, rows)
    assert table["before"].tolist() == [1, 0] and table["after"].tolist() == [1, 1] and table["difference"].tolist() == [0, 1]
    assert handled(LONGEST, SWAPS.goal, [(o.final, o.case.target) for o in outcomes]).tolist() == [False] * 4


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "A classifier with random weights; what it says does not matter here."
    folder = tmp_path_factory.mktemp("classifier")
    data = sample_text(n={"train": 60, "validation": 10, "test": 20}, seed=0)
    tuner = Tuner(data, new_encoder(data["train"]["text"], folder / "encoder", vocab_size=400, hidden=32, heads=2, max_length=64), progress=False)
    tuner.fit(epochs=1)
    return Predictor(tuner.save(folder / "model")), data


def test_padding_changes_no_answer(model):
    predictor, data = model
    rows = list(data["test"])
    plain = predictor.predict(rows)
    padded = padded_predictions(predictor, length=64, rows_a_batch=3)(rows)
    assert np.allclose([p["probabilities"] for p in plain], [p["probabilities"] for p in padded], atol=1e-5)


def test_gradients_agree_with_finite_differences(model):
    predictor, data = model
    service, words = Gradients(predictor), ("the", "order", "was", "late")
    slopes, = service([(words, None, 1)])
    again = service([(words, None, 1), (words[:2], None, 0)])
    assert np.allclose(again[0][1].first, slopes[1].first, atol=1e-5) and len(again[1]) == 2    # company changes nothing
    feature, word_ids = service._encode(words, None, 1)
    state, gradient = service._backward([feature])
    import torch
    def loss(embedded):
        with torch.no_grad():
            logits = predictor.model(inputs_embeds=torch.tensor(embedded), attention_mask=torch.ones(embedded.shape[:2], dtype=torch.long)).logits
        return float(torch.nn.functional.cross_entropy(logits, torch.tensor([1])))
    direction = np.random.default_rng(0).normal(size=state.shape).astype(np.float32)
    slope = (loss(state + 1e-2 * direction) - loss(state - 1e-2 * direction)) / 2e-2
    assert abs(slope - float((gradient * direction).sum())) < 0.02 * max(1, abs(slope))
    with pytest.raises(InputError, match="function has no gradients"):
        Gradients(LONGEST)


def test_textattack_interface(model, tmp_path, monkeypatch):
    predictor, data = model
    wrapped = textattack_model(predictor)
    texts = data["test"]["text"][:4]
    scores = wrapped(list(texts))
    assert scores.shape == (4, 3) and np.abs(scores.sum(1) - 1).max() < 1e-6          # what its goal functions require
    assert [wrapped.labels[i] for i in scores.argmax(1)] == [p["label"] for p in predictor.predict(list(texts))]
    assert len(wrapped.tokenize(["a late order"])) == 1
    # a stand-in package with the abstract class that TextAttack documents
    package = tmp_path / "textattack" / "models" / "wrappers"
    package.mkdir(parents=True)
    for folder in (package.parent.parent, package.parent):
        (folder / "__init__.py").write_text("")
    (package / "__init__.py").write_text("from abc import ABC, abstractmethod\nclass ModelWrapper(ABC):\n"
                                         "    @abstractmethod\n    def __call__(self, text_list):\n        raise NotImplementedError()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    inside = textattack_model(predictor)
    from textattack.models.wrappers import ModelWrapper
    assert isinstance(inside, ModelWrapper) and np.allclose(inside(list(texts)), scores, atol=1e-6)
    for name in [name for name in sys.modules if name.startswith("textattack")]:
        monkeypatch.delitem(sys.modules, name)


def test_names_and_settings_are_checked():
    for bad in (lambda: get_attack("nothing", LONGEST), lambda: Budget(0), lambda: Characters(("melt",)), lambda: Importance("gradient"),
                lambda: SpanGoal(()), lambda: get_attack("context", LONGEST)):
        with pytest.raises(InputError):
            bad()
    assert {"deepwordbug", "textbugger", "textfooler", "pwws", "bert-attack", "hotflip", "mention", "context"} <= set(RECIPES)
