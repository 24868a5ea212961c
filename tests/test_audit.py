"""The audit as a whole: nothing is asked twice, nothing is lost when it is killed, nothing is skipped in silence."""
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from xml.etree import ElementTree

import numpy as np
import pytest

import safetune.audit as auditing
from safetune.audit import CHECKS, Audit, audit, compare, junit, overall, plan, summary
from safetune.data import InputError
from safetune.evidence import MANIFEST, validate_record, verify
from safetune.gates import Gates, load_gates
from safetune.predict import Predictor
from safetune.sample import sample_ner, sample_text
from safetune.tuning import Tuner, new_encoder

SMALL = {"wrong labels": (80, None), "counterfactual": (12, 12), "noise": (12, 12), "attack": (3, 3), "faithfulness": (3, 3), "sanity": (0, 3),
         "shortcuts": (40, 40), "membership": (40, 40), "shadows": (0, 2)}
VERDICTS = {"pass", "fail", "not enough evidence", "no gate", "not run"}


@pytest.fixture(autouse=True, scope="module")
def small():
    "Small samples, and no figures but where a test asks for them: each takes a quarter of a second."
    kept = auditing.SIZES, auditing.draw
    auditing.SIZES, auditing.draw = SMALL, lambda entry, result: None
    yield kept[1]
    auditing.SIZES, auditing.draw = kept


@pytest.fixture(scope="module")
def ner():
    return sample_ner({"train": 120, "validation": 50, "test": 70}, seed=2)


@pytest.fixture(scope="module")
def text():
    return sample_text({"train": 150, "validation": 60, "test": 80}, seed=2)


def trained(data, folder, epochs):
    words = data["train"]["tokens"] if "tokens" in data["train"].column_names else data["train"]["text"]
    encoder = new_encoder(words, folder / "encoder", vocab_size=300, hidden=32, layers=1, heads=2, intermediate=32)
    tuner = Tuner(data, encoder, progress=False)
    tuner.fit(epochs=epochs, lr=5e-3)
    return tuner


@pytest.fixture(scope="module")
def tagger(ner, tmp_path_factory):
    "The folder of a small tagger."
    folder = tmp_path_factory.mktemp("tagger")
    trained(ner, folder, 1).save(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def classifier(text, tmp_path_factory):
    return trained(text, tmp_path_factory.mktemp("classifier"), 1)


def counting(answer):
    "A function and the list of what it was asked."
    asked = []

    def function(rows):
        asked.extend((tuple(row["tokens"]), row.get("text")) if "tokens" in row else (row["text"], row.get("text_pair")) for row in rows)
        return answer(rows)
    return function, asked


@pytest.fixture(scope="module")
def whole_text(text, classifier):
    "The whole default audit of a function that classifies texts, and what it was asked."
    inner = Predictor(classifier.model, classifier.tokenizer, classifier.task, cache_size=0)
    labels = classifier.task.labels
    function, asked = counting(lambda rows: [dict(zip(labels, answer["probabilities"].tolist())) for answer in inner.predict(rows)])
    return audit(function, text, progress=False), asked


@pytest.fixture(scope="module")
def whole_ner(ner):
    known = {tuple(row["tokens"]): row["tags"] for row in ner["test"]}
    function, asked = counting(lambda rows: [known.get(tuple(row["tokens"])) or ["B-PER" if w[:1].isupper() else "O" for w in row["tokens"]]
                                             for row in rows])
    return audit(function, ner, progress=False), asked


@pytest.mark.parametrize("kind", ["whole_ner", "whole_text"])
def test_no_text_is_asked_twice(kind, request):
    "All checks of an audit together ask for each text once."
    found, asked = request.getfixturevalue(kind)
    assert len(asked) == len(set(asked)) == found.record["predictions"] > 200
    assert sum(check["predictions"] for check in found.record["checks"]) == len(asked)
    several = [check for check in found.record["checks"] if check["predictions"] == 0 and check["verdict"] in ("pass", "fail")]
    assert several, "some checks must live on what others asked"


@pytest.mark.parametrize("kind", ["whole_ner", "whole_text"])
def test_everything_that_is_not_measured_says_why(kind, request):
    found, _ = request.getfixturevalue(kind)
    validate_record(found.record)
    assert found.record["model"]["sha256"] is None         # a function has none
    for check in found.record["checks"]:
        assert check["verdict"] in VERDICTS and check["question"] and check["limits"] and check["gate_reason"], check
        if check["verdict"] == "not run":
            assert len(check["result"]["reason"]) > 10
        elif check["result"]["value"] is not None:
            assert check["result"]["n"] > 0 and check["result"]["method"]
    assert any("thorough" in line for line in found.record["next"])
    assert {check["measure"] for check in found.record["checks"]} == {
        "Data", "Performance", "Fairness", "Robustness", "Explanation", "Privacy", "Control"}
    sampled = {check["id"]: check["sampled"] for check in found.record["checks"]}
    assert sampled["robustness/noise"].startswith("12 of ") and not sampled["performance/score"]


def test_a_function_may_name_its_labels_in_any_order(text, classifier):
    labels = list(classifier.task.labels)
    inner = Predictor(classifier.model, classifier.tokenizer, classifier.task)

    def answers(order):
        return lambda rows: [{label: float(answer["probabilities"][labels.index(label)]) for label in order} for answer in inner.predict(rows)]
    first, second = (audit(answers(order), text, only=["control"], progress=False) for order in (labels, labels[::-1]))
    assert {id: result.to_dict() for id, result in first.results.items()} == {id: result.to_dict() for id, result in second.results.items()}


KILLED = """
import sys, time
import safetune.audit as auditing
from safetune.data import load_data
auditing.SIZES = {sizes!r}
auditing.draw, keep = lambda entry, result: None, auditing.keep
auditing.keep = lambda *what: (keep(*what), time.sleep(0.1))    # time to be killed in
auditing.audit({model!r}, {data!r}, out={out!r}, progress=False, only={only!r})
"""
SOME = ["data/damage", "performance", "fairness/group-gap", "fairness/counterfactual", "robustness/noise", "control"]


def test_killed_at_any_moment_it_goes_on(tagger, ner, tmp_path):
    "kill -9 after some checks: what was finished is taken over, and the outcome is that of a run that was not stopped."
    for split, part in ner.items():
        (tmp_path / "data").mkdir(exist_ok=True)
        part.to_json(tmp_path / "data" / f"{split}.jsonl")
    out = tmp_path / "out"
    code = KILLED.format(sizes=SMALL, model=str(tagger), data=str(tmp_path / "data"), out=str(out), only=SOME)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.time() + 200
    while len(list((out / ".checks").glob("[!.]*.json"))) < 4 and process.poll() is None and time.time() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = list((out / ".checks").glob("[!.]*.json"))
    assert len(finished) >= 4
    for path in finished:                                   # each is whole
        json.loads(path.read_text(encoding="utf-8"))
    resumed = audit(tagger, str(tmp_path / "data"), out=out, progress=False, only=SOME)
    whole = audit(tagger, str(tmp_path / "data"), progress=False, only=SOME)
    assert sum(check["reused"] for check in resumed.record["checks"]) == len(finished) < len(resumed.record["checks"])
    assert {id: result.to_dict() for id, result in resumed.results.items()} == {id: result.to_dict() for id, result in whole.results.items()}
    assert resumed.verdict == whole.verdict and resumed.summary == whole.summary
    assert {id: np.asarray(c).tolist() for id, c in resumed.counts.items()} == {id: np.asarray(c).tolist() for id, c in whole.counts.items()}
    validate_record(resumed.record)


def test_only_the_same_is_taken_over(tagger, ner, tmp_path, monkeypatch):
    def run(**options):
        found = audit(tagger, options.pop("data", ner), only=["performance/baseline"], out=tmp_path, progress=False, **options)
        return found.record["checks"][0]["reused"]
    assert [run(), run()] == [False, True]
    assert run(resume=False) is False
    assert run(seed=1) is False and run(seed=1) is True
    assert run(gates={"gates": {"performance/baseline": {"min": 0.1}}}) is False
    assert run(data=sample_ner({"train": 120, "validation": 50, "test": 70}, seed=3)) is False
    run()
    monkeypatch.setattr(auditing, "versions", lambda: {"safetune": "0"})
    assert run() is False


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"key": 1}', "null", "[" * 100_000])
def test_a_broken_file_of_a_check_is_as_none(content, tagger, ner, tmp_path):
    audit(tagger, ner, only=["performance/baseline"], out=tmp_path, progress=False)
    path = next((tmp_path / ".checks").glob("*.json"))
    assert path.stat().st_mode & 0o077 == 0                 # rows of evidence are for their owner
    path.write_text(content)
    assert audit(tagger, ner, only=["performance/baseline"], out=tmp_path, progress=False).record["checks"][0]["reused"] is False


def with_check(monkeypatch, run, id="robustness/noise"):
    "Replace what a check runs."
    monkeypatch.setattr(auditing, "CHECKS", [dataclasses.replace(check, run=run) if check.id == id else check for check in CHECKS])


def test_a_crash_is_a_line_and_the_rest_goes_on(monkeypatch, tagger, ner, tmp_path):
    def crash(ground, id):
        raise RuntimeError("first line\nsecond <script>line")
    with_check(monkeypatch, crash)
    found = audit(tagger, ner, only=["robustness", "performance/score"], out=tmp_path, progress=False)
    entry = next(check for check in found.record["checks"] if check["id"] == "robustness/noise")
    assert entry["verdict"] == "error" and entry["result"] is None and "\n" not in entry["error"] and "RuntimeError: first line" in entry["error"]
    assert len(found.record["checks"]) == 3 and found.verdict == "fail" and "1 crashed (Noise)" in found.summary
    assert audit(tagger, ner, only=["robustness"], progress=False, gates={"audit": {"errors": "allow"}}).verdict != "fail"
    root = ElementTree.fromstring(junit(found.record))
    assert root.get("errors") == "1" and "RuntimeError" in root.find(".//error").get("message")
    found.save(tmp_path / "report")
    assert "<script>line" not in (tmp_path / "report" / "index.html").read_text()
    with_check(monkeypatch, lambda ground, id: CHECKS[0].run(ground, "data/leakage"))
    mended = audit(tagger, ner, only=["robustness"], out=tmp_path, progress=False)    # a crash is never taken over
    assert all(check["verdict"] != "error" for check in mended.record["checks"])


def test_a_stop_by_the_user_goes_through(monkeypatch, tagger, ner):
    def stop(ground, id):
        raise KeyboardInterrupt
    with_check(monkeypatch, stop)
    with pytest.raises(KeyboardInterrupt):
        audit(tagger, ner, only=["robustness"], progress=False)


@pytest.mark.parametrize("verdicts, policies, expected", [
    (["pass", "no gate", "not run"], {}, "pass"), (["pass", "not enough evidence"], {}, "not enough evidence"),
    (["pass", "not enough evidence"], {"undecided": "forbid"}, "fail"), (["pass", "error"], {}, "fail"),
    (["pass", "error"], {"errors": "allow"}, "pass"), (["fail", "pass"], {"errors": "allow"}, "fail"),
    (["no gate", "not run"], {}, "not enough evidence")])
def test_overall(verdicts, policies, expected):
    entries = [{"verdict": verdict, "title": f"check {i}"} for i, verdict in enumerate(verdicts)]
    gates = dataclasses.replace(load_gates(), **policies)
    assert overall(entries, gates) == expected
    assert f"Of {len(entries)} checks" in summary(entries, expected)


def test_all_p_values_are_one_family(tagger, ner):
    found = audit(tagger, ner, only=["fairness/group-gap", "performance"], progress=False)
    tested = [line for line in auditing.every(found.results.values()) if line.p_value is not None]
    assert len(tested) > 10 and {line.tests for line in tested} == {len(tested)}
    from safetune.checks import benjamini_hochberg
    assert np.allclose([line.p_adjusted for line in tested], benjamini_hochberg([line.p_value for line in tested]))
    for line in found.results.values():                    # what is said is what is so
        if line.gate and line.interval:
            assert line.decision in line.sentence, line.sentence


@pytest.mark.parametrize("kind, least", [("whole_ner", 6), ("whole_text", 8)])
def test_what_each_row_adds_gives_the_value(kind, least, request):
    "The counts that a comparison pairs have the value of the check as the ratio of their sums."
    found, _ = request.getfixturevalue(kind)
    assert len(found.counts) >= least, list(found.counts)
    for id, counts in found.counts.items():
        above, below = np.asarray(counts).sum(axis=0)
        assert above / below == pytest.approx(found[id].value, abs=1e-9), id


def test_names_of_checks(ner):
    ground = auditing.Ground(Predictor(lambda rows: [["O"] * len(row["tokens"]) for row in rows], task=auditing.infer_task(ner)), ner, "test", load_gates())
    assert len({check.id for check in plan(ground)}) == len(plan(ground))
    assert not any(check.thorough for check in plan(ground))
    for bad in (["nonsense"], ["fairness/group-gap/nothing"], [""]):
        with pytest.raises(InputError):
            plan(ground, bad)


@pytest.mark.parametrize("model, data, words", [
    (3, None, "no model"), ("no/such/folder", None, ""), (None, {"train": [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]}, "needs the columns tokens, tags")])
def test_bad_input_is_one_line(model, data, words, tagger, ner):
    with pytest.raises(InputError) as caught:
        audit(tagger if model is None else model, data or ner, progress=False)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Glyph")
def test_hostile_text_stays_text(tmp_path, small, monkeypatch):
    "Scripts, control characters and lone markup in texts, labels, names and metadata."
    monkeypatch.setattr(auditing, "draw", small)           # with figures
    evil = ["<script>alert(1)</script>", "\x00\x08\x1b]0;x\x07 ok", "]]>&lt;\ufffe", "<img src=x onerror=alert(1)>", "mail me at eve@example.org"]
    rows = [{"text": f"{evil[i % 5]} number {i}", "label": "<b>yes</b>" if i % 2 else "no & no", "gender": evil[i % 2], "id": f"<i>{i}"} for i in range(60)]
    data = {"train": rows[:30], "test": rows[30:]}
    found = audit(lambda rows: ["no & no"] * len(rows), data, only=["data/personal", "performance", "fairness/group-gap"], progress=False,
                  name="<script>alert(2)</script>")
    folder = found.save(tmp_path / "<b>out")
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page and "<img src=x" not in page and "eve@example.org" not in page
    ElementTree.parse(folder / "junit.xml")
    public = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    assert "eve@example.org" not in json.dumps(public)
    assert verify(folder, report_only=True).ok and (folder / MANIFEST).is_file()
    assert not verify(folder).ok and str(verify(folder, data=auditing.load_data(data))).endswith("model NOT compared: pass --report-only")
    assert "<script>" not in found._repr_html_()


def test_junit_counts(tagger, ner):
    record = audit(tagger, ner, only=["data/personal", "performance", "control"], progress=False).record
    root = ElementTree.fromstring(junit(record))
    cases = root.findall(".//testcase")
    assert len(cases) == len(record["checks"]) == int(root.get("tests"))
    for tag, key in (("failure", "failures"), ("skipped", "skipped"), ("error", "errors")):
        assert len(root.findall(f".//{tag}")) == int(root.get(key)) == sum(int(suite.get(key)) for suite in root.findall("testsuite"))


def oracle(rows, share, seed):
    "A tagger that loses a share of the entities."
    known = {tuple(row["tokens"]): row["tags"] for row in rows}

    def function(asked):
        answers = []
        for row in asked:
            rng = np.random.default_rng([seed, sum(map(ord, "".join(row["tokens"])))])
            tags = known.get(tuple(row["tokens"]), ["O"] * len(row["tokens"]))
            answers.append(["O"] * len(tags) if rng.random() < share else list(tags))
        return answers
    return function


def test_a_regression_fails_and_pairs_help(tmp_path):
    data = sample_ner({"train": 30, "validation": 10, "test": 400}, seed=5)
    good, bad = (audit(oracle(data["test"], share, 0), data, only=["performance/score"], progress=False) for share in (0.1, 0.12))
    step = compare(good, bad)
    assert step.exit_code == 1 and step.verdict == "fail" and step.record["checks"][0]["paired"]
    assert compare(bad, good).exit_code == 0 and compare(good, good).exit_code == 0
    other = audit(oracle(data["test"], 0.12, 0), data, only=["performance/score"], progress=False, seed=1)    # another seed: not paired
    alone = compare(good, other)
    assert not alone.record["checks"][0]["paired"] and alone.exit_code == 0    # the same loss, not shown without pairs
    wide, narrow = (one.results["performance/score"].interval for one in (alone, step))
    assert abs(wide.value - narrow.value) < 1e-9 and wide.high - wide.low > 1.3 * (narrow.high - narrow.low)
    good.save(tmp_path / "good"), bad.save(tmp_path / "bad")
    again = compare(tmp_path / "good", tmp_path / "bad")
    assert again.results["performance/score"].to_dict() == step.results["performance/score"].to_dict()
    step.save(tmp_path / "bad")
    assert (tmp_path / "bad" / "comparison.html").stat().st_size > 1000
    assert compare(good, bad, gates={"gates": {"compare/regression": {"max": 0.2}}}).verdict == "pass"
    with pytest.raises(InputError, match="holds no audit"):
        compare(good, tmp_path)


def test_a_comparison_of_an_earlier_run_does_not_stay(tagger, ner, tmp_path):
    def run(before=None):
        found = audit(tagger, ner, only=["performance/baseline"], out=tmp_path / "out", progress=False)
        if before:
            compare(before, found).save(tmp_path / "out")
        found.save(tmp_path / "out")
        return {name for name in ("comparison.html", "comparison.json") if (tmp_path / "out" / name).exists()}
    first = audit(tagger, ner, only=["performance/baseline"], progress=False)
    assert run(first) == {"comparison.html", "comparison.json"} == set(json.loads(
        (tmp_path / "out" / MANIFEST).read_text())["files"]) - {"audit.json", "index.html", "README.md", "junit.xml", "counts.json"}
    time.sleep(1)                                           # times are to the second
    assert run() == set() and verify(tmp_path / "out", data=ner).ok
    (tmp_path / "out" / "comparison.json").write_text('{"of": "somebody else"}')
    assert run() == {"comparison.json"}                     # not written by safetune


def test_a_reason_written_anew_is_shown(tagger, ner, tmp_path):
    def run(reason):
        found = audit(tagger, ner, only=["performance/baseline"], out=tmp_path, progress=False,
                      gates={"gates": {"performance/baseline": {"reason": reason}}})
        return found.record["checks"][0]["reused"], found.record["checks"][0]["gate_reason"]
    assert run("the first") == (False, "the first") and run("the second") == (True, "the second")


@pytest.mark.parametrize("seed", [-1, 2 ** 32, 1.5, "1", None])
def test_a_bad_seed_is_one_line(seed, tagger, ner):
    with pytest.raises(InputError, match="the seed is"):
        audit(tagger, ner, only=["performance"], progress=False, seed=seed)


@pytest.mark.parametrize("task, words", [("multiple-choice", "choices of its own"), ("multi-label-classification", "several"), ("regression", "numbers")])
def test_why_there_are_no_sets(task, words):
    from types import SimpleNamespace
    ground = SimpleNamespace(tagged=False, predictor=SimpleNamespace(task=SimpleNamespace(name=task)))
    with pytest.raises(auditing.CannotRun, match=words):
        auditing._conformal(ground, "control/conformal")


def test_unpaired_intervals_cover():
    "The difference of two independent shares lies in the interval in about 95 of 100 cases."
    from safetune.checks import wilson
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        old, new = (wilson(int(rng.binomial(200, p)), 200).to_dict() for p in (0.3, 0.4))
        found = auditing._unpaired(old, new, 1)
        hits += found.low <= 0.1 <= found.high
        mirrored = auditing._unpaired(old, new, -1)
        assert abs(mirrored.low + found.high) < 1e-12 and abs(mirrored.high + found.low) < 1e-12
    assert 0.92 <= hits / 400 <= 0.98


def test_kept_personal_data_is_masked_in_all_files(tmp_path):
    from safetune.sample import PersonalData
    data = sample_ner({"train": 100, "validation": 20, "test": 60}, seed=0, faults=PersonalData(0.3, splits=("train", "test")))
    from safetune.personal import find_personal
    folder = audit(lambda rows: [["O"] * len(row["tokens"]) for row in rows], data, only=["data/personal", "performance"], progress=False).save(tmp_path / "out")
    for path in folder.iterdir():
        if path.name not in (MANIFEST, "counts.json"):     # hashes look like numbers
            kinds = {span.kind for span in find_personal(path.read_text(encoding="utf-8")) if span.kind in ("email", "iban", "card")}
            assert not kinds, (path.name, kinds)
