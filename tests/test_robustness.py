"""Noise on random rows: labels stay aligned whatever the words and tags are; normalisation; hostile input."""
import random
import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safetune.checks import Gate
from safetune.data import InputError
from safetune.metrics import entities, entity_scores
from safetune.predict import Predictor
from safetune.robustness import (
    NOISES, CodeSwitch, Defended, Edit, Noise, NoiseRobustness, Normaliser, Passage, TableNoise,
    Typos, Vocabulary, allowed, apply, deletions, distinct_answers, edit_distance, influences,
    metric_counts, normalise, number_words, ordinal_words, paired_drop, perturb, ratio, read_table,
    variants,
)
from safetune.sample import sample_ner

# words that some noise acts on, words of any kind, and odd ones
LISTED = [
    "do", "not", "don't", "ca", "n't", "I", "'m", "I'm", "colour", "center", "their", "to", "you",
    "please", "going", "New", "York", "London", "Street", "Doctor", "United", "States", "21",
    "1,250", "3rd", "007", "2.5", "!", ",", ".", "…", "U.S.", "https://a.b/c", "@ann", "#tag",
    "İstanbul", "Straße", "北京", "在", "大", "，", "２", "a", "Москва", "cafe\u0301", "\u200b", "ﬁ", "ǅ"
]
WORDS = st.one_of(st.sampled_from(LISTED), st.text(alphabet=string.ascii_letters, min_size=1, max_size=9),
                  st.text(st.characters(exclude_categories=("Cs", "Zs", "Cc", "Zl", "Zp")),
                          min_size=1, max_size=5))
PIECE = st.tuples(st.sampled_from(["O", "PER", "LOC", "x-y"]), st.integers(1, 4))
LAYOUT = st.lists(PIECE, min_size=1, max_size=6)


@st.composite
def token_rows(draw):
    "Rows with random words and well-formed tags; entities of one type may touch."
    tags = []
    for kind, length in draw(LAYOUT):
        tags += ["O"] * length if kind == "O" else [f"B-{kind}"] + [f"I-{kind}"] * (length - 1)
    return {"id": "7", "tokens": draw(st.lists(WORDS, min_size=len(tags), max_size=len(tags))), "tags": tags}


@st.composite
def text_rows(draw):
    "Raw texts with entities at any character, also inside words."
    ending = draw(st.sampled_from(["", ".", "  ", "\n"]))
    text = " ".join(draw(st.lists(WORDS, min_size=1, max_size=12))) + ending
    cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=6)))
    spans = [{"type": "PER", "start": a, "end": b, "text": text[a:b]} for a, b in zip(cuts[::2], cuts[1::2])]
    return {"text": text, "label": "x", "entities": spans}


NAMES = pytest.mark.parametrize("name", NOISES)
STRENGTHS = st.sampled_from([0.0, 0.3, 1.0])


def well_formed(tags):
    before = ["O", *tags]
    return all(tag[0] in "OB" or (last != "O" and last[2:] == tag[2:]) for last, tag in zip(before, tags))


@NAMES
@settings(max_examples=40, deadline=None)
@given(row=token_rows(), strength=STRENGTHS, seed=st.integers(0, 9))
def test_tags_stay_aligned(name, row, strength, seed):
    noisy, edits = perturb(row, name, strength, seed)
    assert len(noisy["tokens"]) == len(noisy["tags"]) > 0 and all(noisy["tokens"])
    assert well_formed(noisy["tags"])
    before, after = entities(row["tags"]), entities(noisy["tags"])
    assert [kind for kind, *_ in before] == [kind for kind, *_ in after]
    assert noisy["id"] == "7"
    if NOISES[name].keeps_words:
        assert noisy["tags"] == row["tags"]
    if strength == 0:
        assert noisy is row and edits == []
    assert perturb(row, name, strength, seed) == (noisy, edits)
    # words outside every edit are the same, and so are the names that no edit reached
    touched = {i for edit in edits for i in range(edit.start, edit.end)}
    for (_, a, b), (_, c, d) in zip(before, after):
        if not touched & set(range(a, b)):
            assert row["tokens"][a:b] == noisy["tokens"][c:d]


@NAMES
@settings(max_examples=30, deadline=None)
@given(row=text_rows(), strength=STRENGTHS, seed=st.integers(0, 9))
def test_offsets_move_along(name, row, strength, seed):
    noisy, edits = perturb(row, name, strength, seed)
    assert noisy["label"] == "x" and len(noisy["entities"]) == len(row["entities"])
    passage = Passage(row)
    spans = [passage.span(edit) for edit in edits]
    for old, new in zip(row["entities"], noisy["entities"]):
        assert 0 <= new["start"] <= new["end"] <= len(noisy["text"])
        assert new["text"] == noisy["text"][new["start"]:new["end"]]
        if not any(low < old["end"] and high > old["start"] for low, high in spans):
            assert new["text"] == old["text"]
    # the text outside of the entities and edits is untouched, so its length adds up
    grown = sum(len(" ".join(edit.words)) - (high - low) for edit, (low, high) in zip(edits, spans))
    assert len(noisy["text"]) == len(row["text"]) + grown


@NAMES
@settings(max_examples=15, deadline=None)
@given(row=token_rows(), seed=st.integers(0, 9))
def test_stronger_noise_holds_the_weaker(name, row, seed):
    steps = [edits for _, edits in variants(row, name, (0.1, 0.4, 0.8, 1.0), seed)]
    for weak, strong in zip(steps, steps[1:]):
        assert set(weak) <= set(strong)


@settings(max_examples=60, deadline=None)
@given(row=token_rows(), seed=st.integers(0, 99))
def test_apply_agrees_with_a_slow_rebuild(row, seed):
    "Random allowed edits, made at once and one by one from the right, give the same row."
    rng, passage, edits, at = random.Random(seed), Passage(row), [], 0
    while at < len(row["tokens"]):
        end = min(len(row["tokens"]), at + rng.randrange(3))
        edit = Edit(at, end, tuple("ab"[:rng.randrange(3)]))
        if allowed(passage, edit) and not (edit.words == () and end - at >= len(row["tokens"])):
            edits.append(edit)
        at = end + 1
    slow = row
    for edit in reversed(edits):
        if edit.words or len(slow["tokens"]) > edit.end - edit.start:
            slow = apply(Passage(slow), [edit])
        else:
            return
    assert apply(passage, edits)["tokens"] == slow["tokens"]
    assert apply(passage, edits)["tags"] == slow["tags"]


@pytest.mark.parametrize("name", ["case", "typos", "homoglyphs", "invisible", "ocr"])
def test_strength_is_the_share_of_eligible_words(name):
    row = {"tokens": ["Monday", "company", "Germany", "nothing"] * 5, "tags": ["O"] * 20}
    changed = [len(perturb(row, name, 0.3, seed)[1]) for seed in range(300)]
    share = np.mean(changed) / 20
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / 6000) ** 0.5


def test_tags_that_are_not_iob2_keep_their_entities():
    row = {"tokens": ["Ann", "Lee", "saw", "Paris", "Texas"],
           "tags": ["I-PER", "I-PER", "O", "I-LOC", "I-ORG"]}
    noisy, _ = perturb(row, "whitespace", 1, 1)
    assert [kind for kind, *_ in entities(noisy["tags"])] == ["PER", "LOC", "ORG"]


def test_a_pair_of_texts_is_changed_on_both_sides():
    noisy, edits = perturb({"text": "the colour", "text_pair": "the center", "label": "a"}, "spelling", 1)
    assert (noisy["text"], noisy["text_pair"], len(edits)) == ("the color", "the centre", 2)


def test_own_lists_and_own_noise(tmp_path):
    (tmp_path / "doctor.tsv").write_text("# mine\nheart attack\tMI|myocardial infarction\n", encoding="utf-8")
    doctor = TableNoise("doctor", str(tmp_path / "doctor.tsv"), "medical short forms")
    row = {"tokens": ["a", "heart", "attack", "."], "tags": ["O", "B-ill", "I-ill", "O"]}
    found = {tuple(perturb(row, doctor, 1, seed)[0]["tokens"]) for seed in range(20)}
    assert found == {("a", "MI", "."), ("a", "myocardial", "infarction", ".")}
    (tmp_path / "bad.tsv").write_text("only one column\n", encoding="utf-8")
    with pytest.raises(InputError, match="row 1: one column"):
        TableNoise("bad", str(tmp_path / "bad.tsv"), "").table

    class Shout(Noise):
        name = "shout"
        def edits(self, passage, rng):
            return [Edit(i + 1, i + 1, ("!",)) for i in range(len(passage.words))]
    assert perturb(row, Shout(), 1)[0]["tokens"] == ["a", "!", "heart", "attack", "!", ".", "!"]


def test_every_list_states_source_and_licence_and_has_two_columns():
    from safetune.robustness import RESOURCES
    for file in sorted(RESOURCES.iterdir(), key=str):
        text = file.read_text(encoding="utf-8")
        assert "Source:" in text and ("Licence: Apache-2.0" in text or "Licence: MIT" in text)
        rows = read_table(file.name)
        assert all(len(row) >= 2 and all(part == part.strip() for part in row[:2]) for row in rows), file.name
        assert len({row[:2] for row in rows}) == len(rows), f"{file.name} has a line twice"
        if file.name in ("spelling.tsv", "speech.tsv", "slang.tsv", "abbreviations.tsv"):
            assert all(row[0] != other for row in rows for other in row[1].split("|")), file.name


def test_numbers_are_read_back():
    "Count back from the words to the number with a table of our own."
    small = {number_words(n): n for n in range(100)}
    def value(text):
        total = 0
        for size, name in ((10**12, "trillion"), (10**9, "billion"), (10**6, "million"), (1000, "thousand"),
                           (100, "hundred")):
            head, found, rest = text.partition(f" {name}")
            if found:
                return value(head) * size + (value(rest.removeprefix(" and").strip()) if rest.strip() else 0)
        return total + small[text]
    rng = random.Random(0)
    for n in [rng.randrange(10 ** rng.randrange(1, 16)) for _ in range(500)] + [10**k for k in range(15)]:
        assert value(number_words(n)) == n
    assert ordinal_words(1_000_000) == "one millionth"
    with pytest.raises(InputError):
        number_words(10**15)


@settings(max_examples=150, deadline=None)
@given(text=st.one_of(st.lists(WORDS, max_size=8).map(" ".join), st.text(max_size=30)))
def test_normalise_keeps_places_and_settles(text):
    new, places = Normaliser().text(text)
    assert len(new) == len(places)
    assert all(0 <= start < end <= len(text) for start, end in places)
    assert places == sorted(places)
    assert normalise(new) == new
    words = text.split(" ")
    assert len(normalise(words)) == len(words)
    assert all(new for new, old in zip(normalise(words), words) if old)


def test_normalise_leaves_plain_text_of_many_languages():
    for text in ["Plain English text, it's 5 o'clock.", "Straße, façade, naïve", "Москва и Петербург",
                 "Αθήνα", "北京市", "日本語テスト", "नमस्ते दुनिया",
                 "می‌خواهم", "שלום עולם", "한국어", "👩‍💻 👍🏽", "x² + ½ = 3™"]:
        assert normalise(text) == text


def test_joiners_go_from_latin_and_stay_where_they_work():
    assert normalise("S\u200d. a\u200c-b \u200d") == "S. a-b"
    for text in ("می\u200cخواهم", "क्\u200dष", "👩\u200d💻"):
        assert normalise(text) == text


@settings(max_examples=100, deadline=None)
@given(a=st.text("abc", max_size=6), b=st.text("abc", max_size=6))
def test_deletions_find_every_word_within_the_distance(a, b):
    distance = edit_distance(a, b, 9)
    assert distance == edit_distance(b, a, 9) and (distance == 0) == (a == b)
    assert edit_distance(a, b, 1) == min(distance, 2)
    if distance <= 2:
        assert deletions(a, 2) & deletions(b, 2)


def test_spelling_is_careful():
    words = ["company"] * 5 + ["Germany"] * 5 + ["minister"] * 5
    spell = Vocabulary([words], min_count=3).correct
    mended = {"compnay": "company", "Gremany": "Germany", "minsiterr": "minister", "gremany": "germany"}
    left = ["Compnay", "company", "companys", "cmp", "ZZZ", "COMPNAY", "compn4y"]
    assert {word: spell(word) for word in [*mended, *left]} == {**mended, **{word: word for word in left}}


def test_metric_counts_give_the_known_scores():
    rows = [dict(row) for row in sample_ner(n=200, seed=4)["train"]]
    rng = np.random.default_rng(0)
    said = [[tag if rng.random() < 0.8 else "O" for tag in row["tags"]] for row in rows]
    counts = metric_counts(rows, said)
    f1 = entity_scores([row["tags"] for row in rows], said)["f1"]
    assert ratio(counts.sum(axis=0)) == pytest.approx(f1) and influences(counts).mean() == pytest.approx(f1)
    interval, unit = paired_drop(counts, counts, rows)
    assert interval.value == 0 and unit == "documents" and interval.low < 0 < interval.high


def test_inputs_that_are_the_same_to_the_model_are_asked_once():
    class Counting(Predictor):
        def predict(self, items, progress="", first_row=1):
            self.items = len(items)
            return super().predict(items, progress, first_row)
    model = Counting(lambda rows: [["O"] * len(row["tokens"]) for row in rows])
    rows = [{"tokens": ["a", "b"], "tags": ["O", "O"]}, {"tokens": ["a", "b"], "tags": ["O", "O"]},
            {"tokens": ["c"], "tags": ["O"]}]
    assert distinct_answers(model, rows) == [["O", "O"], ["O", "O"], ["O"]] and model.items == 2


def test_hostile_rows_do_not_break_the_check():
    rows = [{"tokens": ["<script>", "\u202e", "A" * 5000, "NaN", "", "🤖"],
             "tags": ["B-X", "O", "B-X", "O", "O", "O"]}] * 3
    model = Predictor(lambda asked: [["B-X", "O", "B-X"] + ["O"] * (len(row["tokens"]) - 3) for row in asked])
    result = NoiseRobustness(progress=False)(model, rows)
    assert result.verdict in ("pass", "fail", "not enough evidence")
    assert "<script>" not in result._repr_html_()
    for noise in NOISES:
        perturb({"text": "", "label": "a"}, noise, 1)
        perturb({"tokens": [], "tags": []}, noise, 1)


def test_bad_arguments_are_named():
    row = {"tokens": ["a"], "tags": ["O"]}
    for bad in (-0.1, 1.1, "much", float("nan")):
        with pytest.raises(InputError, match="strength"):
            perturb(row, "case", bad)
    with pytest.raises(InputError, match="unknown noise"):
        perturb(row, "nothing", 0.1)
    with pytest.raises(InputError, match="neither tokens nor a text"):
        perturb({"label": "a"}, "case", 0.1)
    with pytest.raises(InputError, match="layout"):
        Typos("nope").neighbours


def test_code_switch_without_transliteration_knows_only_its_list():
    row = {"tokens": ["Zork", "left", "Paris"], "tags": ["B-PER", "O", "B-LOC"]}
    noisy = perturb(row, CodeSwitch(transliteration=None), 1)[0]["tokens"]
    assert noisy[:2] == ["Zork", "left"] and noisy[2] != "Paris"
    assert perturb(row, "code_switch", 1)[0]["tokens"][0] != "Zork"


def test_a_gate_decides_on_the_interval():
    rows = [dict(row) for row in sample_ner(n=300, seed=5)["train"]]
    perfect = {tuple(row["tokens"]): row["tags"] for row in rows}
    blind = Predictor(lambda asked: [perfect.get(tuple(row["tokens"]), ["O"] * len(row["tokens"]))
                                     for row in asked])
    result = NoiseRobustness(["typos"], (0.5,), progress=False)(blind, rows)
    assert result.verdict == "fail" and result.parts[0].low > 0.05
    lax = NoiseRobustness(["typos"], (0.5,), gate=Gate("max", 1.0), progress=False)
    assert lax(blind, rows).verdict == "pass"


def test_the_defence_is_a_predictor():
    inner = Predictor(lambda rows: [["B-LOC" if word == "Paris" else "O" for word in row["tokens"]]
                                    for row in rows])
    defended = Defended(inner)
    assert defended({"tokens": ["P\u0430ris", "x"]})["tags"] == ["B-LOC", "O"]
    answers = defended.stream([{"tokens": ["Pa\u200bris"]}, {"tokens": ["b"]}])
    assert [answer["tags"] for answer in answers] == [["B-LOC"], ["O"]]


def test_chinese_noise_is_asked_only_where_there_is_chinese():
    def names(row): return {name for name, _ in NoiseRobustness(progress=False).versions([row])}
    only = {noise.name for noise in NOISES.values() if noise.chinese}
    assert only == {"homophones", "shapes", "traditional", "width"}
    assert not only & names({"tokens": ["Ann", "left"], "tags": ["B-PER", "O"]})
    assert only <= names({"tokens": list("张伟走了"), "tags": ["B-PER", "I-PER", "O", "O"]})
    assert only <= names({"text": "好", "label": "x"})
    assert set(NoiseRobustness(["shapes"]).versions([{"text": "plain", "label": "x"}])) == {("shapes", 0.1)}


def test_tables_of_characters_hold_pairs_of_single_different_characters():
    for noise in NOISES.values():
        if noise.chinese and noise.name != "width":
            assert len(noise.table) > 2000
            for old, options in noise.table.items():
                assert len(old) == 1 and options and old not in options and set(map(len, options)) == {1}
