"The guard: no input crashes it or gets past a rule, whatever fails inside; generation under constraints."
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from safetune.data import InputError
from safetune.control import AllowedTypes, Call, Deny, MaxLength, Pattern, Personal, Rule, ValidTags
from safetune.generation import Grounded, is_refusal, sentences, support
from safetune.guard import STATUSES, GuardedPredictor
from safetune.predict import Predictor
from safetune.tasks import TokenClassification

quick = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
any_text = st.one_of(st.text(max_size=60), st.text(alphabet=st.characters(codec=None, categories=("Cc", "Cf", "Cs", "Mn", "Zs")), max_size=30))
anything = st.one_of(any_text, st.none(), st.integers(), st.lists(any_text, max_size=4), st.dictionaries(st.sampled_from(["text", "tokens", "x"]),
                     st.one_of(any_text, st.none(), st.integers(), st.lists(any_text, max_size=3)), max_size=3), st.binary(max_size=4))


def find(text):
    import re
    from types import SimpleNamespace
    return [SimpleNamespace(start=m.start(), end=m.end(), kind="email") for m in re.finditer(r"[\w.]+@[\w.]+", text)]


def random_tagger(rows):
    "A tagger that says anything, with probabilities, also invalid tags."
    answers = []
    for row in rows:
        words = row["tokens"]
        rng = np.random.default_rng(sum(map(ord, "".join(words))) % 2 ** 32)
        p = rng.dirichlet(np.ones(5) / 2, len(words)) if len(words) else np.zeros((0, 5))
        answers.append({"tags": [LABELS[i] for i in p.argmax(1)], "probabilities": p})
    return answers


def tagger():
    return Predictor(random_tagger, task=TokenClassification(LABELS))


def guard(**options):
    rules = [MaxLength(characters=3000), Deny(["secret"]), Pattern("(a|aa)+b$", seconds=0.02), Personal(find=find),
             ValidTags(LABELS, ["PER"]), AllowedTypes(["PER"]), MaxLength(words=3, on="output")]
    return GuardedPredictor(tagger(), rules, **options)


@quick
@given(st.lists(anything, max_size=5))
@example(["a" * 1_000_000, "", None, "\x00" * 50, "\ud800", {"tokens": []}, {"text": ""}, [[]]])
def test_nothing_crashes_the_guard(items):
    decisions = guard(abstain=0.5).decide(items)
    assert len(decisions) == len(items)
    for item, decision in zip(items, decisions):
        assert decision.status in STATUSES
        assert (decision.prediction is None) == (decision.status in ("refused", "abstained"))
        assert decision.status == "answered" or decision.reasons
        for entity in (decision.prediction or {}).get("entities", ()):
            assert entity["type"] == "PER" and len(entity["text"].split()) <= 3 and entity["score"] >= 0.5
    assert len(guard().predict(items)) == len(items)


@quick
@given(any_text, st.sampled_from(["secret", "SECRET", "s\u200becret", "ѕесret", "ｓｅｃｒｅｔ", "s\x00e\u0301cret"]), any_text)
def test_a_denied_word_reaches_no_model(before, word, after):
    seen = []
    def spy(rows):
        seen.extend(rows)
        return random_tagger(rows)
    watched = GuardedPredictor(Predictor(spy, task=TokenClassification(LABELS)), [Deny(["secret"]), Personal(find=find)])
    assert watched.decide([f"{before} {word} {after}", [before, word, after]])[0].status == "refused"
    watched.decide([f"{before} ada@example.org {after}", [before, "ada@example.org", after]])
    assert not any(find(" ".join(row["tokens"])) or "ada" in str(row.get("text", "")) for row in seen)


class Breaks(Rule):
    "Fails on some rows, in one of many ways."
    def __init__(self, on, how): self.on, self.how, self.name = on, how, "breaks"
    def apply(self, row, prediction):
        if "boom" in str(row):
            if self.how == "none":
                return None
            raise {"value": ValueError, "memory": MemoryError, "recursion": RecursionError, "stop": StopIteration}[self.how]("boom")
        return (row if prediction is None else prediction), []


@pytest.mark.parametrize("on", ["input", "output"])
@pytest.mark.parametrize("how", ["value", "memory", "recursion", "stop", "none"])
def test_a_rule_that_breaks_closes_its_row_only(on, how):
    decisions = GuardedPredictor(tagger(), [Breaks(on, how)]).decide(["fine words", "boom goes", "more words"])
    assert [d.status == "refused" for d in decisions] == [False, True, False]


@pytest.mark.parametrize("broken", ["detector", "predictor", "scaling", "labels"])
def test_a_stage_that_breaks_closes_its_row_only(broken):
    class Detector:
        def score(self, rows):
            if broken == "detector" and any("boom" in row["tokens"] for row in rows):
                raise RuntimeError
            return np.zeros(len(rows))
    def predict(rows):
        if broken == "predictor" and any("boom" in row["tokens"] for row in rows):
            raise RuntimeError
        return random_tagger(rows)
    def scaling(p):
        if broken == "scaling" and len(p) != 2:
            raise RuntimeError
        return p
    made = GuardedPredictor(Predictor(predict, task=TokenClassification(LABELS)), detector=Detector(), limit=1.0, scaling=scaling,
                            rules=[ValidTags(LABELS[:3] if broken == "labels" else LABELS)])
    statuses = [d.status for d in made.decide(["two words", "boom", "two more"])]
    if broken != "labels":
        assert [s == "refused" for s in statuses] == [False, True, False]
    assert len(statuses) == 3


@quick
@given(st.one_of(st.floats(), st.floats(-0.5, 1.5), st.none(), st.text(max_size=3), st.booleans(), st.integers(-2, 6)), st.sampled_from([-2.0, 0.0, 0.5, 1.0]))
@example(5.0, 0.5)
@example(-1.0, -2.0)
@example(math.nan, -2.0)
@example(math.inf, 0.5)
@example(True, 0.5)
def test_an_impossible_confidence_closes(score, threshold):
    decision = GuardedPredictor(Predictor(lambda rows: [{"label": "a", "score": score}] * len(rows)), abstain=threshold).decide(["x"])[0]
    possible = isinstance(score, (int, float)) and not isinstance(score, bool) and -1e-6 <= score <= 1 + 1e-6
    assert decision.status == ("answered" if possible and score >= threshold else "abstained" if possible or score is None else "refused")
    assert decision.status != "refused" or "impossible" in decision.why


@pytest.mark.parametrize("score", [5.0, -1.0, math.nan, "0.9", True])
def test_an_impossible_confidence_of_an_entity_closes_its_row_only(score):
    class Tagger:
        def predict(self, rows, **_):
            return [{"tags": ["B-PER", "O"], "entities": [{"type": "PER", "words": [0, 1], "text": row["text"], "score": score if row["text"] == "bad" else 0.9}]}
                    for row in rows]
    assert [d.status for d in GuardedPredictor(Tagger(), abstain=-2.0).decide(["fine", "bad", "fine"])] == ["answered", "refused", "answered"]


def test_the_log_probability_of_a_written_text_is_a_confidence():
    class Writer:
        task = type("T", (), {"generates": True, "name": "summarization", "read": staticmethod(lambda item: {"text": item})})()
        def __init__(self, score): self.score = score
        def predict(self, rows, **_): return [{"text": "a", "score": self.score}] * len(rows)
    assert [GuardedPredictor(Writer(s), abstain=-1.5).decide(["x"])[0].status for s in (-1.0, -2.0, 0.5, math.nan)] == ["answered", "abstained", "refused", "refused"]


@pytest.mark.parametrize("single", ["hello", b"hello", {"text": "hello"}, None, 5])
def test_a_single_item_is_not_read_letter_by_letter(single):
    for ask in (guard().decide, guard().predict, lambda items: list(guard().stream(items))):
        with pytest.raises(InputError, match="give a list of items"):
            ask(single)


@quick
@given(st.sampled_from(["se\u2800cret", "ꜱᴇᴄʀᴇᴛ", "🆂🅴🅲🆁🅴🆃", "secɍet", "sec ret", "ada@exаmple.org", "ada@example.org", "ada\u200b@exampl\u00ade.org"]), any_text)
def test_a_guarded_generator_says_no_denied_word_in_disguise(word, around):
    said = f"{around} {word} {around}"
    watched = GuardedPredictor(Predictor(lambda rows: [{"text": said, "label": said} for _ in rows]),
                               [Deny(["secret"], on="output"), Personal(on="output")])
    decision = watched.decide(["x"])[0]
    assert decision.status == "refused" or "ada" in word and "ada" not in str(decision.prediction)


def test_the_guarded_predictor_is_a_predictor_for_checks():
    from safetune.calibration import CalibrationError, Temperature
    rows = [{"tokens": ["Ada", "met", f"Bob{i}"], "tags": ["B-PER", "O", "B-PER"]} for i in range(60)]
    assert CalibrationError("entities")(guard(scaling=Temperature()), rows).verdict in ("pass", "fail", "not enough evidence")
    assert all(len(p["tags"]) == 3 for p in guard().predict(rows))
    assert "Ada" not in str(GuardedPredictor(tagger(), [Call(lambda row: False, on="input")]).predict(rows[:1])[0])


@quick
@given(any_text, any_text)
def test_the_check_of_sources_takes_any_text(answer, source):
    for one in support(answer, [source]):
        assert 0 <= one.score <= 1 and answer[one.start:one.end] == one.text
    assert isinstance(is_refusal(answer), bool)


@quick
@given(st.text(max_size=60))
def test_sentences_do_not_overlap_and_leave_out_no_word(text):
    places = sentences(text)
    assert all(a < b for a, b in places) and all(x[1] <= y[0] for x, y in zip(places, places[1:]))
    outside, at = "", 0
    for a, b in places:
        outside, at = outside + text[at:a], b
    assert not any(c.isalnum() for c in outside + text[at:])


def test_a_text_supports_itself_and_no_changed_number():
    source = "Acme was founded in Lyon in 1987. It sold 1,234 lamps for 3.5 million euros to Marie Duval."
    assert all(one.supported for one in support(source, [source]))
    for old, new in (("1987", "1988"), ("1,234", "1,235"), ("3.5", "3.6"), ("Marie", "Maria"), ("Lyon", "Turin")):
        assert not all(one.supported for one in support(source.replace(old, new), [source]))
    guarded = GuardedPredictor(Predictor(lambda rows: [{"label": "x", "text": "It sold 9 lamps."} for _ in rows]), [Grounded()])
    assert guarded.decide([{"text": "?", "sources": [source]}, {"text": "?"}])[0].status == "refused"


STORY = ["Acme was founded in Lyon in 1987 by Marie Duval. It employs forty people. The company makes lamps for ships.",
         "In 2019 Acme sold its Turin branch to Nordlicht. The price was 3.5 million euros."]


@pytest.mark.parametrize("text", ["Nordlicht was founded in Lyon in 1987.", "nordlicht was founded in Lyon in 1987.", "Acme was never founded in Lyon.",
                                  "Acme wasn't founded in Lyon.", "It employs ninety people.", "It employs 90 people.", "It employs forty-one people.",
                                  "The price was 3.6 million euros.", "The price was three million euros.", "The price was not 3.5 million euros."])
def test_what_the_sources_do_not_say_has_no_support(text):
    assert not support(text, STORY)[0].supported


@pytest.mark.parametrize("text", ["It employs 40 people.", "It employs forty people.", "The price was 3,500,000 euros.", "ACME was founded in lyon in 1987.",
                                  "Founded in Lyon, the company makes lamps."])
def test_what_the_sources_say_in_other_figures_has_support(text):
    assert support(text, STORY)[0].supported


@quick
@given(st.integers(0, 999_999_999))
def test_numbers_in_words_are_their_digits(n):
    def words(k):
        small = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
        tens = "twenty thirty forty fifty sixty seventy eighty ninety".split()
        for size, name in ((10**6, "million"), (1000, "thousand"), (100, "hundred")):
            if k >= size:
                return f"{words(k // size)} {name}" + (f" {words(k % size)}" if k % size else "")
        return small[k] if k < 20 else tens[k // 10 - 2] + (f"-{small[k % 10]}" if k % 10 else "")
    from safetune.generation import _numbers
    assert _numbers(f"there are {words(n)} lamps") == (set() if n == 1 else {str(n)})
    assert _numbers(f"there are {n:,} lamps") == {str(n)}
