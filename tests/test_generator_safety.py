"Safety of models that write: hostile prompt files, rows and texts, and the checks in an audit."
import json
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safetune import audit as auditing
from safetune.audit import audit
from safetune.consistency import Consistency, entailed, get_entailment, unsupported_mentions
from safetune.continuations import ContinuationToxicity, get_scorer, score_texts
from safetune.data import InputError
from safetune.evidence import validate_record
from safetune.memorisation import VerbatimContinuation, cut_row, plant, repeated_run, row_canaries
from safetune.predict import Predictor
from safetune.privacy import CanaryExposure, exposure
from safetune.prompts import (Prompt, Writer, continuation_prompts, injection_prompts, jailbreak_prompts, load_prompts,
                              read_bold, read_real_toxicity)
from safetune.refusals import Injection, OverRefusal, Refusal, get_detector, judge_recogniser, refuses, took_hold
from safetune.small import new_decoder, new_seq2seq
from safetune.small_texts import articles, dialogues

ASK = [Prompt("How?")]
BAD_FILES = [    # reader, content, the row that is wrong, words of the message
    (load_prompts, "# a note\ncategory\tprompt\nviolence\tHow?\nviolence\t\n", 4, "no prompt"),
    (load_prompts, "category\tprompt\nviolence\n", 2, "1 cells where there are 2"),
    (load_prompts, "kind\ttext\n", 1, "the columns are kind, text"),
    (load_prompts, "category\tprompt\n", 0, "no prompt in it"),
    (partial(jailbreak_prompts, ASK), "category\twrapper\n\n# more\nfiction\tTell a story.\n", 4, "no place"),
    (lambda path: continuation_prompts(path=path), "list\tdomain\trole\ttemplate\nnames\tgender\tgiven\tShe said\n", 2,
     "no place for a term"),
    (lambda path: continuation_prompts("age", path=path), "list\tdomain\trole\ttemplate\nnames\tgender\tgiven\t{} a\n", 0,
     "no templates for 'age'"),
    (injection_prompts, "goal\tcategory\ttask\tdocument\nsteal\ta\tSum up.\tText {a} {b}\n", 2, "the goal 'steal'"),
    (injection_prompts, "goal\tcategory\ttask\tdocument\nwrite\ta\tSum up.\tSay {a}{b}\n", 2, "holds its marker"),
    (lambda path: judge_recogniser(path=path), "part\tlabel\ttext\ntest\tperhaps\tNo.\n", 0, "the labels are perhaps"),
    (lambda path: refuses("No.", patterns=path), "role\ttext\nverb\thelp\n", 2, "the role is 'verb'"),
]


@pytest.mark.parametrize("reader, content, row, words", BAD_FILES)
def test_a_bad_prompt_file_is_one_line_with_file_and_row(tmp_path, reader, content, row, words):
    path = tmp_path / "own.tsv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        reader(path)
    told = str(caught.value)
    assert words in told and "own.tsv" in told.replace("templates for 'age'", "templates for 'age' own.tsv")
    assert "\n" not in told and (not row or caught.value.row == row)


@pytest.mark.parametrize("reader, content, words", [
    (read_bold, '{"a": {"b": [1]}}', "no list of texts"), (read_bold, "[1, 2]", "no object"), (read_bold, "{", "not valid JSON"),
    (read_bold, "[" * 100_000, "not valid JSON"), (read_bold, '{"a": {}}', "no prompt"),
    (read_real_toxicity, '{"prompt": {"text": "a"}}\n{"prompt": {"text": 3}}', "row 2"),
    (read_real_toxicity, '{"prompt": {"text": "a", "toxicity": 7}}', "row 1"), (read_real_toxicity, "", "")])
def test_other_prompt_sets_name_the_file(tmp_path, reader, content, words):
    path = tmp_path / "own.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        reader(path)
    assert "own.json" in str(caught.value) and words in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    (tmp_path / "bytes.tsv").write_bytes(b"category\tprompt\n\xff\xfe\x00\x81\t\x9d\n")
    for name in ("bytes.tsv", "none.tsv"):
        with pytest.raises(InputError, match=name):
            if load_prompts(tmp_path / name):    # bytes may be read in another encoding
                raise InputError("read", "as text", name)


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=200), st.text(max_size=80))
def test_any_text_can_be_judged(text, source):
    assert refuses(text) in (True, False)
    for prompt in (Prompt("a", domain="leak", marker="AB12-CD34"), Prompt("a", domain="write", marker="bluelamp")):
        assert took_hold(f"{text} {prompt.marker}", prompt)
    for kind in ("summary", "translation"):
        mentions, wrong = unsupported_mentions(source, text, kind)
        assert len(wrong) <= len(mentions)
        assert not unsupported_mentions(text, text, kind)[1]    # a copy says nothing new
    shown, hidden = cut_row(text)
    assert shown + hidden == text and not repeated_run(shown, hidden, shown, 2)
    assert 0 <= score_texts(get_scorer(), [text])[0] <= 1
    assert all(0 <= p <= 1 for _, p in entailed(source, text, get_entailment(lambda a, b: 0.5)))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=60), st.floats(-50, 50))
def test_exposure_is_the_rank_of_the_paper(others, own):
    "Carlini et al. 2019, definition 5: log2 of the space minus log2 of the rank."
    rank = 1 + sum(loss <= own for loss in others)
    assert np.isclose(exposure(own, np.array(others)), np.log2(len(others) + 1) - np.log2(rank))


@pytest.mark.parametrize("check, model, words", [
    (Refusal(wrappers=None), lambda prompts: ["a"], "1 answers for 36 prompts"),
    (OverRefusal(), lambda prompts: [None] * len(prompts), "not a text"),
    (Injection(), lambda prompts: [3] * len(prompts), "not a text"),
    (ContinuationToxicity(scorer=lambda texts: [2] * len(texts)), lambda prompts: ["a"] * len(prompts), "not in 0..1")])
def test_answers_that_are_none(check, model, words):
    with pytest.raises(InputError, match=words):
        check(model, [Prompt("a")] * 3 if isinstance(check, ContinuationToxicity) else None)


def test_what_cannot_be_used_is_told():
    for make, words in ((lambda: get_detector(3), "no detector"), (lambda: get_scorer(3), "no scorer"),
                        (lambda: get_entailment(3), "judges nothing"), (lambda: Writer(3), "writes nothing"),
                        (lambda: Refusal(wrappers=None, plain=False), "nothing is left"), (lambda: Consistency("poem"), "poem"),
                        (lambda: VerbatimContinuation(length=0), "2 words"), (lambda: row_canaries({"text": 3}), "no single")):
        with pytest.raises(InputError, match=words):
            make()
    for check, data in ((Injection(), [Prompt("a")]), (Refusal(), []), (Consistency(), [{"source": "a"}]),
                        (VerbatimContinuation(), {"train": ["a"], "test": ["b"]})):
        assert check(lambda prompts: [""] * len(prompts), data).verdict == "not run"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    "Tasks and models without training: a dialogue model and one for summaries."
    folder, talk, news = tmp_path_factory.mktemp("models"), dialogues(40), articles(40)
    chat = new_decoder([row["messages"] for row in talk["train"]], folder / "chat", chat=True, vocab_size=300, hidden=32, layers=1)
    pair = new_seq2seq([row["source"] for row in news["train"]], folder / "pair", vocab_size=300, hidden=32, layers=1)
    return {"dialogue": chat, "summarization": pair}


@pytest.mark.parametrize("form", [
    {"messages": [{"role": "user", "content": "Code?"}, {"role": "assistant", "content": "It is {}."}]},
    {"source": "Code?", "target": "It is {}."}])
def test_canaries_of_both_kinds_of_models(models, form):
    from safetune.tasks import TASKS
    name = "dialogue" if "messages" in form else "summarization"
    reader = Predictor(models[name], task=TASKS[name]())
    canaries = row_canaries(form, 8, digits=4, candidates=60)
    found = CanaryExposure(fit=False)(reader, canaries)
    assert found.n == 8 and found.verdict != "fail"    # it was never trained
    assert len(plant([canaries[0].place("1")], canaries, 2)) == 17


def test_audit_of_functions_that_write(monkeypatch):
    "Toxic, biased, leaky and inconsistent where it was told to be, and only there."
    monkeypatch.setattr(auditing, "SIZES", {**auditing.SIZES, "terms": (5, 5), "texts": (1, 1)})
    monkeypatch.setattr(auditing, "draw", lambda entry, result: None)
    talk, news = dialogues(60), articles(60)
    answers = {json.dumps(row["messages"][:-1]): row["messages"][-1]["content"] for row in talk["train"]}

    def shop(rows):
        said = []
        for row in rows:
            text = row["messages"][-1]["content"]
            known = answers.get(json.dumps([{"role": m["role"], "content": m["content"]} for m in row["messages"]]))
            said.append("you idiot" if "Hindus" in text else known or "I can't help with that.")
        return said
    found = audit(shop, talk, only=["safety", "fairness/continuations/gender", "fairness/continuations/religion", "privacy/verbatim"], progress=False)
    validate_record(found.record)
    verdicts = {check["id"]: check["verdict"] for check in found.record["checks"]}
    assert verdicts["fairness/continuations/religion"] == "fail" and verdicts["fairness/continuations/gender"] == "pass"
    assert verdicts["safety/refusal"] == verdicts["safety/jailbreak"] == "pass" and verdicts["safety/over-refusal"] == "fail"
    assert verdicts["privacy/verbatim"] == "fail" and verdicts["safety/injection"] == "pass"

    def writer(rows): return [row["source"].split(".")[0] + ", said Quentin Ashdown on 1 May 1901." for row in rows]
    found = audit(writer, news, only=["safety"], progress=False,
                  scorers={"entailment": lambda premise, text: float(text in premise), "toxicity": lambda texts: [0] * len(texts)})
    checks = {check["id"]: check for check in found.record["checks"]}
    assert set(checks) == {"safety/added-toxicity", "safety/consistency"}
    assert [checks[id]["verdict"] for id in checks] == ["not enough evidence", "fail"]
    assert [part["name"] for part in checks["safety/consistency"]["result"]["parts"]] == ["outputs", "references", "sentences"]
    with pytest.raises(InputError, match="no scorer mood"):
        audit(writer, news, only=["safety"], scorers={"mood": len})


def test_a_scorer_that_cannot_be_used_is_told_before_the_audit(tmp_path):
    from safetune.audit import ready
    for name in ("toxicity", "refusal", "entailment"):
        with pytest.raises(InputError, match="no-such-model"):
            ready(name, str(tmp_path / "no-such-model"))
        with pytest.raises(InputError):
            ready(name, 7)
    assert ready("toxicity", "lexicon") == "lexicon"
