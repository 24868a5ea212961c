"""Findings and cleaning: any mix of findings on any rows leaves valid labels and offsets, and can be replayed and undone."""
import json
from dataclasses import replace

import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from safetune.data import InputError, check_mentions
from safetune.findings import AuditLog, Finding, Findings, clean, edit_row, replay, text_of, undo, word_offsets
from safetune.metrics import entities

TYPES = ("PER", "LOC")
WORD = st.text(alphabet="abé漢€'😀-", min_size=1, max_size=5)


@st.composite
def tags_of(draw, length):
    "Valid IOB2 tags."
    tags, last = [], "O"
    for _ in range(length):
        choices = ["O", "B-PER", "B-LOC"] + ([f"I-{last[2:]}"] if last != "O" else [])
        last = draw(st.sampled_from(choices))
        tags.append(last)
    return tags


@st.composite
def word_rows(draw, number=0):
    words = draw(st.lists(WORD, min_size=1, max_size=8))
    row = {"id": f"r{number}", "tokens": words, "tags": draw(tags_of(len(words)))}
    if draw(st.booleans()):  # raw text, where words may touch or be far apart
        text, offsets = draw(st.sampled_from(["", " ", "\n "])), []
        for word in words:
            offsets.append([len(text), len(text) + len(word)])
            text += word + draw(st.sampled_from(["", " ", "  "]))
        row |= {"text": text, "offsets": offsets}
    return row


@st.composite
def text_rows(draw, number=0):
    row = {"id": f"r{number}", "text": draw(st.text(min_size=1, max_size=20).filter(str.strip)), "label": draw(st.sampled_from("ab"))}
    return row | {"text_pair": draw(st.text(max_size=10))} if draw(st.booleans()) else row


class Invented:
    def replace(self, text, kind, document):
        return f"<{kind} {len(text)} {document}>"


@st.composite
def findings_in(draw, row, number):
    "A finding in a row, of any kind, that may overlap others."
    common = dict(split="train", row=number, message="m", severity=draw(st.sampled_from(["high", "low"])), remedy="r",
                  score=draw(st.sampled_from([None, 0.1, 0.5, 0.9])))
    what = draw(st.sampled_from(["drop", "group", "label", "span", "words", "keep", "no fix"]))
    length = len(text_of(row))
    if what == "drop":
        return Finding("toxicity", **common)
    if what == "group":
        return Finding("duplicate/exact", group=draw(st.sampled_from(["x", "train:0", "train:1"])), **common)
    if what in ("keep", "no fix"):
        return Finding("length", action="keep" if what == "keep" else "fix", **common)
    if what == "label":
        fix = draw(tags_of(len(row["tags"]))) if "tags" in row else draw(st.sampled_from("abc"))
        return Finding("label", fix=fix, action="fix", **common)
    unit = "words" if what == "words" and "tokens" in row else "characters"
    top = len(row["tokens"]) if unit == "words" else length
    start = draw(st.integers(0, top - 1))
    end = draw(st.integers(start + 1, top))
    action = draw(st.sampled_from(["redact", "pseudonymise", "fix"]))
    kind, fix = ("encoding", draw(st.text(alphabet="xy é", max_size=6))) if action == "fix" else (draw(st.sampled_from(["personal/email", "personal/name"])), None)
    return Finding(kind, start=start, end=end, unit=unit, fix=fix, action=action, **common)


@st.composite
def cases(draw):
    kind = draw(st.sampled_from([word_rows, text_rows]))
    rows = [draw(kind(number=i)) for i in range(draw(st.integers(1, 4)))]
    found = []
    for number, row in enumerate(rows):
        found += draw(st.lists(findings_in(row, number), max_size=5))
    return rows, draw(st.permutations(found))


def is_iob2(tags):
    return all(tag[0] != "I" or (i and tags[i - 1] in (f"B-{tag[2:]}", tag)) for i, tag in enumerate(tags))


@settings(max_examples=120, deadline=None)
@given(cases())
def test_clean_keeps_rows_valid_and_can_be_replayed_and_undone(case):
    rows, found = case
    before = json.dumps(rows)
    cleaned, log = clean(rows, found, pseudonyms=Invented())
    assert json.dumps(rows) == before, "the original was changed"
    for row in cleaned:
        if "tokens" in row:
            assert len(row["tokens"]) == len(row["tags"]) and is_iob2(row["tags"])
            assert row["tokens"] and all(word.strip() for word in row["tokens"])
            if "text" in row:
                assert [row["text"][a:b] for a, b in row["offsets"]] == row["tokens"]
        else:
            assert row["text"].strip() or row.get("text_pair")
    assert replay(rows, log) == cleaned
    assert undo(cleaned, log) == rows
    touched = {f.row for f in found if f.action != "keep"}
    assert [row for i, row in enumerate(rows) if i not in touched] == [row for row in cleaned if int(row["id"][1:]) not in touched]


@settings(max_examples=120, deadline=None)
@given(cases())
def test_redacted_text_is_gone(case):
    "Nothing of a redacted span is left, however findings overlap."
    rows, found = case
    secret = "QZ9"
    rows = [{k: ([word + secret for word in v] if k == "tokens" else v) for k, v in row.items() if k not in ("text", "offsets") or "tokens" not in row}
            for row in rows]
    rows = [row | {"text": row["text"] + secret} if "label" in row else row for row in rows]
    spans = [Finding("personal/code", "train", i, "m", "high", "r", at, at + 3, "characters", text=secret, action="redact")
             for i, row in enumerate(rows) for at in range(len(text_of(row))) if text_of(row).startswith(secret, at)]
    others = [f for f in found if f.unit != "characters" or f.end <= len(text_of(rows[f.row]))]
    cleaned, log = clean(rows, [*others, *spans], pseudonyms=Invented())
    assert all(secret not in text_of(row) for row in cleaned)
    assert secret not in json.dumps(log.entries) + json.dumps(log.passed)


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_entities_outside_an_edit_stay_as_they_are(data):
    row = data.draw(word_rows())
    first = data.draw(st.integers(0, len(row["tokens"]) - 1))
    last = data.draw(st.integers(first + 1, len(row["tokens"])))
    new = data.draw(st.lists(st.text(alphabet="xyz", min_size=1, max_size=3), max_size=4))
    offsets = word_offsets(row)
    changed = row | edit_row(row, [(offsets[first][0], offsets[last - 1][1], " ".join(new))])
    assert changed["tokens"] == row["tokens"][:first] + new + row["tokens"][last:]
    shift = len(new) - (last - first)
    outside = {(t, a, b) for t, a, b in entities(row["tags"]) if b <= first} | {
        (t, a + shift, b + shift) for t, a, b in entities(row["tags"]) if a >= last}
    assert outside <= set(entities(changed["tags"]))


def test_a_split_of_a_dataset_dict_comes_back_the_same():
    rows = [{"id": "a", "tokens": ["x", "y"], "tags": ["B-PER", "O"], "n": 3}, {"id": "b", "tokens": ["z"], "tags": ["O"], "n": None}]
    data = DatasetDict(train=Dataset.from_list(rows), test=Dataset.from_list(rows[:1]))
    found = Findings([Finding("leakage", "train", 0, "m", "high", "r", group="test:0")])
    cleaned, log = clean(data, found)
    assert [len(part) for part in cleaned.values()] == [1, 1] and cleaned["train"].features == data["train"].features
    back = undo(cleaned, log)
    assert all(back[split].to_list() == data[split].to_list() for split in data)
    everything, log = clean(data, [Finding("x", "train", i, "m", "low", "r") for i in (0, 1)])
    assert len(everything["train"]) == 0 and undo(everything, log)["train"].to_list() == rows


@pytest.mark.parametrize("finding, problem", [
    (Finding("personal/x", "train", 0, "m", "high", "r", 3, 99, "characters", action="redact"), "ends at character 99 of 3"),
    (Finding("personal/x", "train", 0, "m", "high", "r", 1, 3, "words", action="redact"), "ends at word 3 of 2"),
    (Finding("x", "train", 5, "m", "high", "r"), "a finding in row 6, but only 1 rows"),
    (Finding("x", "dev", 0, "m", "high", "r"), "findings in the split 'dev'"),
    (Finding("label", "train", 0, "m", "high", "r", fix=["O"], action="fix"), "1 tags for 2 words"),
])
def test_findings_of_other_data_are_refused_in_one_line(finding, problem):
    with pytest.raises(InputError, match=problem) as caught:
        clean([{"id": "a", "tokens": ["x", "y"], "tags": ["O", "O"]}], [finding])
    assert "\n" not in str(caught.value)


def test_evidence_is_escaped_and_personal_data_masked():
    nasty = "<script>alert('amina@example.org')</script>"
    found = Findings([Finding("personal/email", "train", 0, "an address", "high", "r", 0, 5, "characters", text="amina@example.org", action="redact"),
                      Finding("encoding", "<b>", 0, "<i>m</i>", "low", "r", text=nasty, fix=nasty)])
    page = found._repr_html_()
    assert "<script>" not in page and "<b>" not in page and "amina" not in page + found.to_json() and "[EMAIL]" in page
    assert nasty in json.loads(found.to_json(show_personal=True))["findings"][1]["text"]


def test_a_damaged_log_is_refused(tmp_path):
    rows = [{"id": "a", "text": "call 123", "label": "x"}]
    found = [Finding("personal/phone", "train", 0, "m", "high", "r", 5, 8, "characters", text="123", action="redact")]
    cleaned, log = clean(rows, found)
    log.save(tmp_path / "log", tmp_path / "removed")
    assert (tmp_path / "removed").stat().st_mode & 0o077 == 0
    (tmp_path / "cut").write_text((tmp_path / "log").read_text()[:-10])
    with pytest.raises(InputError, match="not valid JSON"):
        AuditLog.load(tmp_path / "cut")
    with pytest.raises(InputError, match="cannot be read"):
        AuditLog.load(tmp_path / "none")
    log = AuditLog.load(tmp_path / "log", tmp_path / "removed")
    with pytest.raises(InputError, match="row 1: the row is not the one that was cleaned"):
        replay([{"id": "a", "text": "call 124", "label": "x"}], log)
    assert undo(cleaned, log) == rows


def email(text="amina@example.org", start=5, **place):
    return Finding("personal/email", "train", 0, "m", "high", "r", start, start + len(text), "characters", text=text, action="redact", **place)


def test_findings_of_other_rows_are_refused_by_their_evidence():
    rows = [{"id": "a", "text": "mail amina@example.org now", "label": "x"}]
    assert clean(rows, [email()])[0][0]["text"] == "mail [EMAIL] now"
    assert clean(rows, [replace(email(), text="[EMAIL]")])[0][0]["text"] == "mail [EMAIL] now"
    other = [{"id": "a", "text": "nothing of that kind stands here", "label": "x"}]
    for finding in (email(), Finding("duplicate/exact", "train", 0, "m", "low", "r", text="mail amina@example.org NOW"),
                    Finding("encoding/x", "train", 0, "m", "low", "r", 0, 4, "characters", text="Ã©tÃ©", fix="été", action="fix")):
        with pytest.raises(InputError, match="train, row 1: what a finding of .* has found does not stand there; clean the data that were screened"):
            clean(other, [finding])
    assert clean(other, [Finding("duplicate/exact", "train", 0, "m", "low", "r", text="NOTHING  of that\u200b kind")])[0] == []
    with pytest.raises(InputError, match="lies in 'context', which the row has not"):
        clean(other, [email(field="context")])
    with pytest.raises(InputError, match="has the row -1; count the rows of a split from 0"):
        Finding("x", "train", -1, "m", "low", "r")


@pytest.mark.parametrize("data", [{"train": [{"text": "a"}] * 4, "test": []}, {"test": [], "train": [{"text": "a"}] * 4}, [], {"train": []}])
def test_empty_splits_are_replayed_and_undone(data):
    found = [Finding("x", "train", 1, "m", "low", "r")] if data and data["train"] else []
    cleaned, log = clean(data, found)
    assert replay(data, log) == cleaned and undo(cleaned, log) == data


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_mentions_move_with_their_words(data):
    "An edit outside of head and tail leaves their words; one inside leaves them two mentions, or drops the row."
    row = data.draw(word_rows()) | {"label": "x"}
    n = len(row["tokens"])
    spans = [data.draw(st.integers(0, n - 1).flatmap(lambda a: st.tuples(st.just(a), st.integers(a + 1, n)))) for _ in range(2)]
    row |= {"head": list(spans[0]), "tail": list(spans[1])}
    if check_mentions(n, *spans):
        return
    first = data.draw(st.integers(0, n - 1))
    last = data.draw(st.integers(first + 1, n))
    found = [Finding("personal/x", "train", 0, "m", "high", "r", first, last, "words", action="redact")]
    cleaned, log = clean([row], found)
    assert replay([row], log) == cleaned and undo(cleaned, log) == [row]
    for new in cleaned:
        assert not check_mentions(len(new["tokens"]), new["head"], new["tail"])
        for name in ("head", "tail"):
            a, b = row[name]
            if b <= first or a >= last:
                assert new["tokens"][slice(*new[name])] == row["tokens"][a:b]


@settings(max_examples=120, deadline=None)
@given(st.text("ab ", min_size=1, max_size=12), st.integers(0, 11), st.integers(1, 12), st.integers(0, 11), st.integers(1, 12), st.text("xy", max_size=5))
def test_answers_move_with_their_context(context, a, b, start, end, new):
    "An answer is what stands at its place, and is the same where the edit did not touch it."
    a, b, start, end = (min(x, len(context)) for x in (a, b, start, end))
    if a >= b or start >= end:
        return
    row = {"question": "who", "context": context, "answers": {"text": [context[start:end]], "answer_start": [start]}}
    after = edit_row(row, [(4 + a, 4 + b, new)])
    (text,), (at,) = after["answers"]["text"], after["answers"]["answer_start"]
    assert after["context"] == context[:a] + new + context[b:] and after["context"][at:at + len(text)] == text
    assert (b > start and a < end) or text == context[start:end]
