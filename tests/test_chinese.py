"""Chinese: spans and offsets of any text, hostile input, published check characters, names that are exchanged."""
import json
import random
import re
import time
import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from safetune.chinese import (Alignment, Dictionary, lost_spans, normalise_row, normalise_text, pieces_of, row_of,
                              spans_of, to_cluener)
from safetune.chinese_sample import given_names, part_of, sample_chinese_ner, sample_chinese_text, surnames
from safetune.checks import CannotRun
from safetune.data import InputError, Report, encode_words, load_data, mentions_of, split_words
from safetune.metrics import entities
from safetune.personal import find_personal, is_cn_plate, is_cn_resident, is_cn_uscc, is_luhn
from safetune.swaps import Swap

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
CHARACTERS = st.one_of(st.sampled_from("王伟在北京大学读书ＡＢ１２a1𠮷龘㎏½。，… \t\u3000\u200be\u0301"), st.characters(exclude_categories=["Cs"]))
TEXTS = st.text(CHARACTERS, min_size=1, max_size=30)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    "A WordPiece tokenizer that splits Chinese characters, one that does not, and a byte-level one."
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "vocab.txt").write_text("\n".join(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"王伟在北京大学读书a1", "北京大学", "##京", "##大学", "##1", "##a"]), "utf-8")
    bpe = ByteLevelBPETokenizer(add_prefix_space=False)
    bpe.train_from_iterator(["王伟在北京大学读书"] * 9, vocab_size=300, show_progress=False)
    return [BertTokenizerFast(str(folder / "vocab.txt"), tokenize_chinese_chars=True),
            BertTokenizerFast(str(folder / "vocab.txt"), tokenize_chinese_chars=False),
            PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, unk_token="<unk>", pad_token="<pad>")]


def drawn_spans(data, text):
    "Spans that do not overlap and neither begin nor end with white space, as an annotator would draw them."
    places = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    pairs = [(a, b) for a, b in zip(places[::2], places[1::2]) if text[a:b] and not text[a].isspace() and not text[b - 1].isspace()]
    return [(a, b, data.draw(st.sampled_from(["PER", "LOC"]))) for a, b in pairs]


@given(TEXTS, st.data())
@QUICK
def test_spans_of_any_text_come_back(text, data):
    spans = drawn_spans(data, text)
    row = row_of(text, spans)
    assert spans_of(row) == spans
    assert all(text[a:b] == token for token, (a, b) in zip(row["tokens"], row["offsets"]))
    assert len(entities(row["tags"])) == len(spans)
    if not row["tokens"]:    # nothing but space
        return
    again = load_data([json.loads(json.dumps(to_cluener(row)))] + [{"text": "王", "label": {"X": {"王": [[0, 0]]}}}])["train"][0]
    assert spans_of(again) == spans


@given(st.text(st.sampled_from("王伟在北京大学读书a1"), min_size=1, max_size=16), st.data())
@QUICK
def test_spans_survive_every_tokenizer(tokenizers, text, data):
    spans = drawn_spans(data, text)
    row = row_of(text, spans)
    for tokenizer in tokenizers:
        features = encode_words(tokenizer, [row["tokens"]], [list(range(len(row["tags"])))], max_length=16, stride=4)
        back = {word: label for at, labels in zip(features["word_at"], features["labels"])
                for word, label in zip(at, labels) if word >= 0}
        assert sorted(back) == list(range(len(row["tags"])))
        assert spans_of(row, [row["tags"][back[word]] for word in sorted(back)]) == spans
        assert Alignment(tokenizer, text, spans).lost == []


def test_raw_text_loses_spans_where_characters_are_not_split(tokenizers):
    text, spans = "北京大学", [(0, 2, "LOC")]
    assert lost_spans(tokenizers[0], text, spans) == []
    assert lost_spans(tokenizers[1], text, spans) == spans
    assert "".join(text[a:b] for _, a, b in pieces_of(tokenizers[0], text)) == text


@given(TEXTS)
@QUICK
def test_normal_form_is_nfkc_and_knows_its_way_back(text):
    new = normalise_text(text, keep="")
    assert new.text == unicodedata.normalize("NFKC", text) and len(new.pieces) == len(new.text)
    assert new.back(0, len(new.text)) == (0, len(text))
    for i in range(len(new.text)):
        a, b = new.back(i, i + 1)
        assert 0 <= a < b <= len(text)
        start, end = new.forth(a, b)
        assert start <= i < end


@given(TEXTS, st.data())
@QUICK
def test_normal_rows_keep_their_spans(text, data):
    row = row_of(text, drawn_spans(data, text))
    new = normalise_row(row)
    assert (len(new["tokens"]), new["text"], new["offsets"]) == (len(row["tokens"]), text, row["offsets"])
    assert spans_of(new) == spans_of(row) and all(new["tokens"])


@pytest.mark.parametrize("hostile", ["ㅤ" * 50_000, "\u0301" * 20_000, "王" * 100_000, "Ａ" * 50_000, "ﷺ" * 5_000, "각" * 20_000,
                                     "e\u0301\u0323" * 10_000])
def test_hostile_text_is_quick(hostile):
    start = time.process_time()
    normalise_text(hostile)
    split_words(hostile, range(0, len(hostile), 7))
    assert time.process_time() - start < 3


@pytest.mark.parametrize("label, problem", [
    ({"PER": {"王伟": [[1, 2]]}}, "does not match|holds"), ({"PER": {"李": [[7, 7]]}}, "not inside"),
    ({"PER": {"王": [[0, 0]], "王伟": [[0, 1]]}}, "overlaps"), ([[0, 1]], "unreadable|label is|no columns|mentions")])
def test_bad_mentions_are_told_in_one_line_or_repaired(label, problem):
    rows = [{"text": "王伟去北京", "label": {"LOC": {"北京": [[3, 4]]}}}, {"text": "王伟去", "label": label}]
    with pytest.raises(InputError, match=problem) as caught:
        load_data(rows)
    assert "\n" not in str(caught.value) and "row 2" in str(caught.value)
    report = Report()
    data = load_data(rows, on_error="repair", report=report)
    assert len(report) >= 1 and spans_of(data["train"][0]) == [(3, 5, "LOC")]


def test_a_wrong_span_moves_to_the_only_place_of_its_mention():
    report = Report()
    row = load_data([{"text": "王伟去北京", "label": {"LOC": {"北京": [[0, 1]]}}}], on_error="repair", report=report)["train"][0]
    assert spans_of(row) == [(3, 5, "LOC")] and report.counts == {"span that does not match its mention": 1}


@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=4)
                    | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=8))
@QUICK
def test_any_label_gives_mentions_or_an_error_that_is_told(label):
    try:
        assert all(len(mention) == 4 for mention in mentions_of(label))
    except (ValueError, TypeError, AttributeError):
        pass
    try:
        load_data([{"text": "王伟去北京", "label": {"LOC": {"北京": [[3, 4]]}}}, {"text": "王伟去北京", "label": label}])
    except InputError as error:
        assert "\n" not in str(error)


def test_clue_files_are_read(tmp_path):
    def write(name, *rows):
        (tmp_path / name).write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    write("train.json", {"text": "王伟去北京", "label": {"LOC": {"北京": [[3, 4]]}}}, {"text": "好", "label": {}})
    write("test.json", {"id": 0, "text": "李秀英"})
    with pytest.raises(InputError, match="test.json.*leave the split out"):
        load_data(tmp_path)
    report = Report()
    data = load_data(tmp_path, on_error="repair", report=report)
    assert list(data) == ["train"] and report.counts == {"split without labels": 1}
    assert data["train"][1]["tags"] == ["O"]
    tnews = load_data([{"label": "102", "label_desc": "news_entertainment", "sentence": "甜甜圈", "keywords": ""}])["train"][0]
    assert (tnews["text"], tnews["label"], tnews["other_label"]) == ("甜甜圈", "news_entertainment", "102")
    afqmc = load_data([{"sentence1": "借呗", "sentence2": "花呗", "label": "0"}])["train"][0]
    assert (afqmc["text"], afqmc["text_pair"], afqmc["label"]) == ("借呗", "花呗", "0")


def test_tags_that_are_numbers_need_names(tmp_path):
    rows = [{"tokens": ["北", "京"], "ner_tags": [1, 2]}]
    with pytest.raises(InputError, match="numbers without names"):
        load_data(rows)
    with pytest.raises(InputError, match="has no name among the 2"):
        load_data(rows, tag_names=["O", "B-LOC"])
    assert load_data(rows, tag_names=["O", "B-LOC", "I-LOC"])["train"][0]["tags"] == ["B-LOC", "I-LOC"]


# check characters by the published rules, written here anew: GB 11643-1999, GB 32100-2015, ISO/IEC 7812-1

def resident(rng):
    "A resident id of nobody: place 110100 or 440300, serial drawn."
    body = f"{rng.choice(('110100', '440300'))}{rng.randrange(1930, 2010)}{rng.randrange(1, 13):02d}{rng.randrange(1, 29):02d}{rng.randrange(1000):03d}"
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return body + "10X98765432"[sum(w * int(d) for w, d in zip(weights, body)) % 11]


def credit_code(rng):
    alphabet, weights = "0123456789ABCDEFGHJKLMNPQRTUWXY", (1, 3, 9, 27, 19, 26, 16, 17, 20, 29, 25, 13, 8, 24, 10, 30, 28)
    body = f"{rng.choice(('91', '92', '12', '51'))}{rng.choice(('110100', '440300'))}" + "".join(rng.choices(alphabet, k=9))
    total = sum(w * alphabet.index(c) for w, c in zip(weights, body))
    return body + alphabet[(31 - total % 31) % 31]


@pytest.mark.parametrize("make, rule, alphabet", [(resident, is_cn_resident, "0123456789"),
                                                  (credit_code, is_cn_uscc, "0123456789ABCDEFGHJKLMNPQRTUWXY")])
def test_published_check_characters(make, rule, alphabet):
    rng = random.Random(0)
    for _ in range(100):
        number = make(rng)
        assert rule(number), number
        place = rng.randrange(8, 17) if rule is is_cn_uscc else rng.randrange(14, 17)
        wrong = rng.choice([c for c in alphabet if c != number[place]])
        assert not rule(number[:place] + wrong + number[place + 1:])
    assert not rule("1" * 18) and not rule("") and not rule("王" * 18)


WIDE = {i: i + 0xfee0 for i in range(0x21, 0x7f)}


@pytest.mark.parametrize("wide", [False, True])
def test_numbers_are_found_in_chinese_text(wide):
    rng, found, planted = random.Random(1), 0, 0
    for _ in range(40):
        body = "9558" + "".join(rng.choices("0123456789", k=14))
        card = next(body + digit for digit in "0123456789" if is_luhn(body + digit))
        for kind, number, text in (
                ("id/cn_resident", resident(rng), "身份证号{}，已核对"), ("id/cn_uscc", credit_code(rng), "信用代码：{}。"),
                ("phone", f"13800{rng.randrange(10**6):06d}", "请打{}找我"), ("card", card, "工资卡号{}"),
                ("id/cn_passport", f"E{rng.randrange(10**8):08d}", "护照{}丢失"), ("plate", f"京A{rng.randrange(10**5):05d}", "车牌{}的车"),
                ("id/cn_permit", f"C{rng.randrange(10**8):08d}", "持港澳通行证{}")):
            shown = number.translate(WIDE) if wide else number
            matches = find_personal(text.format(shown))
            planted += 1
            found += [(m.kind, text.format(shown)[m.start:m.end]) for m in matches] == [(kind, shown)]
    assert found >= 0.99 * planted, (found, planted)


@pytest.mark.parametrize("text", ["2025年1月1日至2025年12月31日", "新A级赛事2025", "订单号20250101123456789", "第91350100条", "温度零下13度",
                                  "G1234次列车", "卡在了第12345678901234567关"])
def test_ordinary_numbers_are_left_alone(text):
    assert find_personal(text) == []


def test_plates():
    assert all(map(is_cn_plate, ("京A12345", "粤BD12345", "沪C12345F", "苏E1234挂")))
    assert not any(map(is_cn_plate, ("京I12345", "北A12345", "京A1234", "京AABCDE")))


@pytest.mark.parametrize("name, changed", [("names by gender", "PER"), ("gendered words", None)])
def test_swapped_sentences_stay_aligned(name, changed):
    swap, touched = Swap(name, "zh"), 0
    rows = list(sample_chinese_ner({"train": 200}, seed=4)["train"])
    rows += [row_of("王伟的父亲是北京的男演员，他们说女士也来", [(0, 2, "PER"), (6, 8, "LOC")])] * 60
    for row in rows:
        versions = swap.versions(row)
        for new in (versions.rows.values() if versions else ()):
            touched += 1
            assert len(new["tokens"]) == len(new["tags"]) == len(new["offsets"])
            assert all(new["text"][a:b] == token for token, (a, b) in zip(new["tokens"], new["offsets"]))
            old_spans, new_spans = spans_of(row), spans_of(new)
            assert [kind for _, _, kind in old_spans] == [kind for _, _, kind in new_spans]
            assert all(row["text"][a:b] == new["text"][c:d] for (a, b, kind), (c, d, _) in zip(old_spans, new_spans)
                       if kind != changed)
    assert touched >= 100


def test_given_names_have_the_gender_of_their_group():
    gender, known = Swap("names by gender", "zh"), dict(given_names())
    row = row_of("王志强去北京", [(0, 3, "PER"), (4, 6, "LOC")])
    for group, new in gender.versions(row).rows.items():
        name = new["text"][: new["text"].index("去")]
        assert name[0] == "王" and known[name[1:]] == group


@pytest.mark.parametrize("text", ["他们和其他人在吉他店", "新中国建国以来", "对于海洋的保护"])
def test_words_that_only_look_like_names_stay(text):
    for name in ("names by gender", "gendered words", "pronouns"):
        assert Swap(name, "zh").versions({"text": text}) is None


def test_corpora_hold_names_out():
    data = sample_chinese_ner(400, seed=1)
    train = {row["text"][a:b] for row in data["train"] for a, b, _ in spans_of(row)}
    test = {row["text"][a:b] for row in data["test"] if row["names"] == "others" for a, b, _ in spans_of(row)}
    assert test and not train & test
    assert len(set(data["test"]["text"])) == 80 and set(data["test"]["pattern"]) == {"seen", "held out"}
    assert sample_chinese_text(50, seed=2)["train"].to_list() == sample_chinese_text(50, seed=2)["train"].to_list()
    assert {part_of(name) for name, _ in given_names()} == {"train", "validation", "test"} and len(surnames()) > 100
    assert all(re.fullmatch("[\u4e00-\u9fff]{1,2}", name) for name, _ in given_names())


def test_the_dictionary_takes_the_longest_and_leaves_ordinary_words():
    rows = [row_of("文静去北京", [(0, 2, "PER"), (3, 5, "LOC")]), *[row_of("这里很文静", [])] * 3,
            row_of("在北京大学", [(1, 5, "ORG")])]
    known = Dictionary(rows)
    assert spans_of(row_of("文静在北京大学和北京", []), known.tag("文静在北京大学和北京")) == [(3, 7, "ORG"), (8, 10, "LOC")]


def test_checks_read_the_language_off_the_rows():
    "Swaps of names are those of the language of the rows, unless one is named."
    from safetune.fairness import Counterfactual, fairness_checks, name_groups
    rows = [dict(row) for row in sample_chinese_ner({"train": 5, "validation": 5, "test": 60}, seed=1)["test"]]
    check = Counterfactual("names by gender")
    swapped, made = check.versions(rows)
    assert check.swap.language == "zh" and len(swapped) >= 20
    assert any(version.rows["male"]["tokens"] != version.rows["female"]["tokens"] for version in made)
    assert {c.swap.language for c in fairness_checks(rows, columns=())} == {"zh"}
    assert {"female", "male"} <= {row["name_gender"] for row in name_groups(rows, "gender")}
    english = [{"tokens": ["Mary", "Smith", "lives", "here"], "tags": ["B-PER", "I-PER", "O", "O"]}] * 3
    check.versions(english)
    assert check.swap.language == "en"
    named = Counterfactual("names by gender", language="en")
    with pytest.raises(CannotRun):
        named.versions(rows)
