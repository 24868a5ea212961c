"Control: no input, however hostile, gets past a rule or crashes the guard; decoding, bounds and sets agree with references."
import functools
import math
import string
import unicodedata

import numpy as np
import pytest
import regex
from hypothesis import HealthCheck, example, given, settings, strategies as st

from safetune.control import (Allow, AllowedTypes, Call, Deny, MaxLength, Pattern, Personal, Reason, Rule, Terms, Toxic, ValidTags,
                              apply_rules, fold, transitions, viterbi)
from safetune.data import InputError
from safetune.metrics import entities

quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
any_text = st.one_of(st.text(max_size=80), st.text(alphabet=st.characters(codec=None, categories=("Cc", "Cf", "Cs", "Co", "Mn", "Zs")), max_size=40),
                     st.text(alphabet="aеoоpр\u200b\u202e\u0301\x00 世界שלו", max_size=60))
BIG = "a" * 1_000_000
LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def no_mail(text):
    "A stand-in for the recognisers, so that these tests do not depend on them."
    import re
    from types import SimpleNamespace
    return [SimpleNamespace(start=m.start(), end=m.end(), kind="email") for m in re.finditer(r"[\w.]+@[\w.]+", text)]


def all_rules():
    return [MaxLength(characters=5000), Deny(["secret", "free money"]), Pattern("(a|aa)+b$", seconds=0.02), Personal(find=no_mail),
            Toxic(lambda texts: [0.0] * len(texts)), Call(lambda row: True, on="input")]


@quick
@given(any_text)
@example("")
@example(BIG)
@example("\x00" * 1000)
@example("\ud800")
def test_no_text_crashes_the_rules(text):
    for row in ({"text": text}, {"tokens": [text, "x"]}, {"tokens": [text], "text": text}):
        left, reasons = apply_rules(all_rules(), row)
        assert left is None or isinstance(left, dict)
        assert left is not None or reasons


@quick
@given(st.one_of(st.none(), st.integers(), st.floats(), st.lists(st.integers(), max_size=3), st.binary(max_size=5), st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2)))
def test_what_is_no_text_is_refused(thing):
    assert apply_rules([Deny(["secret"])], {"text": thing})[0] is None
    assert apply_rules([Deny(["secret"])], {"tokens": thing})[0] is None or thing == []


# letters by a rule of their own, not by `fold`: what decomposes to the letter, and what is called by it
SHOWN = regex.compile(r"(?!TAG |MODIFIER|COMBINING)(?:.* )?(?:LATIN .*|SYMBOL )LETTER (?:SMALL CAPITAL )?([A-Z])(?: WITH [A-Z ]+)?")
HANDMADE = {"a": "аΑᎪ⍺", "e": "еΕᎬεԐ", "o": "оΟοօ〇Ⲟ", "c": "сϲᏟⅽ", "s": "ѕՏᏚꓢ", "t": "тΤᎢτ", "r": "гᏒᴦꮁ"}
UNSEEN = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000 and unicodedata.category(chr(i)) in ("Cf", "Mn", "Me")
                 and not 0xE0020 <= i < 0xE0080) + "\u2800\u115f\u1160\u3164\uffa0\x00\x07"
BLANKS = "".join(chr(i) for i in range(128, 0x3001) if unicodedata.category(chr(i)) == "Zs" and chr(i) != "\u1680")


@functools.lru_cache(maxsize=1)
def disguises():
    "Letter -> characters that show it."
    found = {letter: set(twins) | {letter, letter.upper()} for letter, twins in HANDMADE.items()}
    for i in range(128, 0x110000):
        c = chr(i)
        bare = "".join(x for x in unicodedata.normalize("NFKD", c) if unicodedata.category(x) != "Mn").casefold()
        named = SHOWN.fullmatch(unicodedata.name(c, ""))
        letter = bare if bare.isascii() else named[1].lower() if named else ""
        if letter in found:
            found[letter].add(c)
    return {letter: "".join(sorted(twins)) for letter, twins in found.items()}


@st.composite
def disguised(draw, word="secret", between=UNSEEN):
    "A word in letters that look like its own, with characters between that are not seen."
    gaps = st.text(alphabet=between, max_size=2)
    return "".join(draw(st.sampled_from(disguises().get(c, c))) + (draw(gaps) if i < len(word) - 1 else "") for i, c in enumerate(word))


def test_there_are_many_disguises():
    assert min(len(twins) for twins in disguises().values()) > 60 and len(UNSEEN) > 1500 and len(BLANKS) > 10


def test_every_character_folds_to_what_folds_no_further():
    letters = [c for i in range(0x20000) if unicodedata.category(c := chr(i)) not in ("Cn", "Co", "Cs")
               and not unicodedata.name(c, "").startswith(("CJK", "HANGUL SYLLABLE", "EGYPTIAN", "CUNEIFORM", "TANGUT"))]
    assert all(fold(once) == once for once in map(fold, letters))
    assert all(fold(once, case=True) == once for c in letters[::7] for once in [fold(c, case=True)])


def test_unicode_names_its_confusables():
    "The package that carries Unicode's list, where it is at hand: whatever it says looks like a letter is folded to it."
    data = pytest.importorskip("confusable_homoglyphs.confusables").confusables_data
    missed = [(c, letter) for letter in string.ascii_letters for one in data[letter] if len(c := one["c"]) == 1 and not c.isascii()
              if fold(c) != letter.lower() and unicodedata.category(c) not in ("Nd", "Sc", "Sm") and c not in "©®℗ſ" and letter not in "Ilio"]
    assert not missed, missed


@quick
@given(st.one_of(disguised(between=BLANKS), disguised(between=UNSEEN + BLANKS)))
@example("se\u2800cret")
@example("ꜱᴇᴄʀᴇᴛ")
@example("🆂🅴🅲🆁🅴🆃")
@example("🅢🅔🅒🅡🅔🅣")
@example("secɍet")
@example("ՏᎬᏟᏒᎬᎢ")
@example("".join(chr(0xE0000 + ord(c)) for c in "secret"))
def test_blank_letters_and_odd_spaces_hide_nothing(word):
    for rule in (Deny(["secret"]), Deny(["secret"], inside=True)):
        assert apply_rules([rule], {"text": f"a {word} plan"})[0] is None
    assert apply_rules([Deny(["secret"], on="output")], {"text": "?"}, {"text": f"a {word} plan"})[0] is None


@quick
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_a_denied_word_in_pieces_is_found(cuts):
    edges = sorted({0, 6, *cuts})
    pieces = ["secret"[a:b] for a, b in zip(edges, edges[1:])]
    assert apply_rules([Deny(["secret"])], {"tokens": ["my", *pieces, "plan"]})[0] is None
    assert apply_rules([Deny(["top secret"])], {"tokens": ["to", "p", *pieces]})[0] is None


@quick
@given(any_text, disguised(), any_text)
def test_a_pattern_sees_through_disguises_and_says_where(before, word, after):
    text = f"{before} {word} {after}"
    start, end = Pattern("(?i)secret").find(text)
    assert fold(text[start:end]).replace(" ", "") == "secret"
    if not (before + after).isascii() or "secret" not in (before + after):
        assert apply_rules([Pattern("(?i)secret")], {"text": text})[0] is None
    assert apply_rules([Pattern("(?i)secret", on="output")], {"text": "?"}, {"text": text})[0] is None


@quick
@given(disguised("example"))
def test_the_real_recognisers_see_through_disguises(name):
    for where in (f"ada@{name}.org", f"ada@{name}.org now"):
        left, _ = apply_rules([Personal()], {"text": "to " + where})
        assert left is None or fold(left["text"]).startswith("to [email]")
        left, _ = apply_rules([Personal(on="output")], {"text": "?"}, {"text": "to " + where, "label": where})
        assert left is None or fold(left["text"]).startswith("to [email]")


@pytest.mark.parametrize("words", [["ada", "@", "example", ".", "org"], ["ada@example", ".", "org"], ["ada", "@", "exаmple.org"],
                                   ["ada", "-", "b", "@", "example.org"]])
def test_addresses_in_word_rows_are_replaced_word_by_word(words):
    left, reasons = apply_rules([Personal()], {"tokens": ["to", *words, "now"]})
    assert left["tokens"] == ["to", *["[EMAIL]"] * len(words), "now"] and reasons
    assert apply_rules([Personal()], left) == (left, [])
    entity = {"tags": ["B-X", *["I-X"] * (len(words) - 1)], "entities": [{"type": "X", "words": [0, len(words)], "text": " ".join(words)}]}
    assert apply_rules([Personal(on="output")], {"tokens": words}, entity)[0]["entities"] == []


@quick
@given(any_text, disguised(), any_text)
def test_a_denied_word_never_gets_through(before, word, after):
    "Surrounded by anything, as long as white space or a mark separates it."
    for gap in (" ", "\n", "!", "-"):
        assert apply_rules([Deny(["secret"])], {"text": before + gap + word + gap + after})[0] is None
        assert apply_rules([Deny(["secret"])], {"tokens": [before, word, after]})[0] is None


@quick
@given(any_text)
def test_fold_is_stable_and_blind_to_case(text):
    once = fold(text)
    assert fold(once) == once
    assert not any(c in once for c in "\u200b\x00\u202e\u0301")


@quick
@given(st.text(max_size=30), st.lists(st.text(max_size=8), min_size=1, max_size=4))
def test_an_allow_list_lets_only_its_members_through(text, allowed):
    left = apply_rules([Allow(allowed)], {"text": "?"}, {"label": text})[0]
    assert (left is not None) == (text in allowed)


@quick
@given(any_text)
def test_a_pattern_that_must_match_lets_only_matches_through(text):
    left = apply_rules([Pattern(r"[a-z]{1,5}", must=True)], {"text": text})[0]
    assert (left is not None) == (1 <= len(text) <= 5 and all(c in string.ascii_lowercase for c in text))


@quick
@given(any_text)
def test_redaction_leaves_nothing_that_is_recognised(text):
    left, _ = apply_rules([Personal(find=no_mail)], {"text": text + " ada@example.org " + text})
    assert left is None or not no_mail(left["text"])
    left, _ = apply_rules([Personal(find=no_mail)], {"tokens": [text, "ada@example.org", text]})
    assert left is None or (len(left["tokens"]) == 3 and not no_mail(" ".join(left["tokens"])))


@quick
@given(any_text)
def test_the_real_recognisers_leave_nothing(text):
    from safetune.personal import find_personal
    for row in ({"text": text + " ada@example.org " + text}, {"tokens": [text, "ada@example.org", text]}):
        left, _ = apply_rules([Personal()], row)
        assert left is None or "ada@" not in str(left) and not find_personal(left.get("text") or " ".join(left["tokens"]))


@pytest.mark.parametrize("error", [ValueError, MemoryError, RecursionError, KeyError, UnicodeError, AssertionError, StopIteration])
def test_every_error_closes(error):
    def fail(*_):
        raise error("secret text")
    for rule, prediction in ((Call(fail, on="input"), None), (Call(fail), {"label": "a"}), (Toxic(fail), None), (Personal(find=fail), None)):
        left, reasons = apply_rules([rule], {"text": "x"}, prediction)
        assert left is None and reasons[-1].action == "refuse" and "secret" not in reasons[-1].message


@quick
@given(st.one_of(st.none(), st.integers(), st.text(max_size=3), st.tuples(), st.tuples(st.none(), st.none()), st.tuples(st.just({}), st.just(["x"]))))
def test_a_rule_that_answers_nonsense_closes(answer):
    class Odd(Rule):
        on = "input"
        def apply(self, row, prediction): return answer
    assert apply_rules([Odd()], {"text": "x"})[0] is None


@quick
@given(st.lists(st.sampled_from(LABELS), max_size=12), st.integers(0, 1000), st.sampled_from([None, ["PER"], []]))
def test_tags_that_come_out_are_valid_and_of_allowed_types(tags, seed, types):
    rng = np.random.default_rng(seed)
    words = [f"w{i}" for i in range(len(tags))]
    p = rng.dirichlet(np.ones(5), len(tags)) if tags else np.zeros((0, 5))
    for probabilities in (p, None):
        given_tags = [LABELS[i] for i in p.argmax(1)] if probabilities is not None else tags
        answer = {"tags": given_tags, "entities": [], "probabilities": probabilities}
        left = apply_rules([ValidTags(LABELS, types)], {"tokens": words}, answer)[0]
        step, start, end = transitions(LABELS)
        path = [LABELS.index(tag) for tag in left["tags"]]
        assert len(path) == len(tags) and all(start[i] for i in path[:1]) and all(step[a, b] for a, b in zip(path, path[1:]))
        assert types is None or {tag[2:] for tag in left["tags"] if tag != "O"} <= set(types)


@quick
@given(st.lists(st.sampled_from(LABELS), min_size=1, max_size=10), st.sets(st.sampled_from(["PER", "LOC"])))
def test_only_allowed_types_come_out(tags, types):
    found = [{"type": t, "words": [s, e], "text": "x"} for t, s, e in entities(tags)]
    left = apply_rules([AllowedTypes(types)], {"tokens": ["x"] * len(tags)}, {"tags": tags, "entities": found})[0]
    assert {entity["type"] for entity in left["entities"]} <= types
    assert all(set(left["tags"][e["words"][0]:e["words"][1]]) != {"O"} for e in left["entities"])


def test_viterbi_of_an_hmm_agrees_with_brute_force_on_long_rows():
    "A row of 3,000 words: the path is valid and no single change improves it."
    rng = np.random.default_rng(0)
    scores, (step, start, end) = np.log(rng.dirichlet(np.ones(5), 3000)), transitions(LABELS)
    path = viterbi(scores, step, start, end)
    total = scores[np.arange(3000), path].sum()
    for i in range(0, 3000, 10):
        for other in range(5):
            new = path.copy()
            new[i] = other
            if start[new[0]] and step[new[:-1], new[1:]].all():
                assert scores[np.arange(3000), new].sum() <= total + 1e-9


def test_a_million_characters_take_a_bounded_time():
    import time
    for text in (BIG, "é" * 1_000_000, "\u200b" * 1_000_000, "a b " * 250_000):
        start = time.process_time()
        apply_rules([Deny(["secret"]), Pattern("(a|aa)+b$", seconds=0.05)], {"text": text})
        assert time.process_time() - start < 15
    start = time.process_time()
    assert apply_rules(all_rules(), {"text": BIG})[0] is None
    assert time.process_time() - start < 1


def test_terms_from_a_file(tmp_path):
    (tmp_path / "terms.txt").write_text("# comment\nbad\n\nfree money\n", encoding="utf-8")
    assert Terms(tmp_path / "terms.txt").find("FREE  money") == "free money"
    with pytest.raises(InputError, match="cannot be read"):
        Terms(tmp_path / "none.txt")


def test_reasons_hold_no_text_of_the_input():
    _, reasons = apply_rules([Personal(find=no_mail)], {"text": "I am ada@example.org"})
    assert "ada" not in str(reasons) and isinstance(reasons[0], Reason) and math.isfinite(reasons[0].start)


@pytest.mark.parametrize("row", [{"question": "Who?", "context": "secret a@b.c"}, {"source": "secret a@b.c"},
                                 {"messages": [{"role": "user", "content": "secret a@b.c"}]},
                                 {"question": "Which?", "choices": ["x", "secret a@b.c"]}])
def test_rules_read_the_rows_of_every_task(row):
    assert apply_rules([Deny(["secret"])], row)[0] is None
    cleaned, reasons = apply_rules([Personal(find=no_mail)], row)
    assert set(cleaned) == set(row) and "a@b.c" not in str(cleaned) and len(reasons) == 1


@pytest.mark.parametrize("row", [{"messages": [{"role": "user"}]}, {"messages": 3}, {"choices": [3]}, {"source": 3}, {}])
def test_a_row_that_cannot_be_read_is_closed(row):
    assert apply_rules([Deny(["secret"])], row)[0] is None
