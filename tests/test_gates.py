"""Gates: whatever stands in a file, the answer is a gate or one line that names the file."""
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safetune.checks import Gate
from safetune.data import InputError
from safetune.gates import default_path, load_gates
from safetune.metrics import Interval

NAMES = list(load_gates().rules)
values = st.one_of(st.none(), st.booleans(), st.integers(), st.integers(10 ** 300, 10 ** 400), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=2))
tables = st.dictionaries(st.sampled_from(["max", "min", "reason", "range", "limit"]), values, max_size=4)
contents = st.fixed_dictionaries({}, optional={
    "gates": st.one_of(values, st.dictionaries(st.sampled_from([*NAMES, "fairness/group-gap/x", "nothing"]), st.one_of(values, tables), max_size=3)),
    "audit": st.one_of(values, st.dictionaries(st.sampled_from(["confidence", "undecided", "errors", "correction", "x"]), values, max_size=3)),
    "schema": values, "other": values})


@settings(max_examples=120, deadline=None)
@given(contents)
def test_any_content_is_gates_or_one_line(content):
    try:
        gates = load_gates(content)
    except InputError as error:
        assert "\n" not in str(error) and str(error).startswith("gates: ")
        return
    for rule in gates.rules.values():
        assert rule.gate is None or (rule.gate.kind == rule.kind and rule.range[0] <= rule.gate.limit <= rule.range[1])
        assert isinstance(rule.reason, str)
    assert 0.5 <= gates.confidence < 1 and gates.correction in ("bh", "holm")


@pytest.mark.parametrize("name", NAMES)
def test_each_limit_can_be_passed_and_failed(name):
    rule = load_gates().rules[name]
    if rule.gate is None:
        return
    low, high = rule.range
    at_low, at_high = (rule.gate.verdict(Interval(x, x, x, 100)) for x in (low, high))
    assert {at_low, at_high} == {"pass", "fail"}


@pytest.mark.parametrize("name", NAMES)
def test_a_limit_outside_of_the_range_is_refused(name):
    rule = load_gates().rules[name]
    low, high = rule.range
    for limit in (low - 1, low, high, high + 1, 95):
        with pytest.raises(InputError) as caught:
            load_gates({"gates": {name: {rule.kind: limit}}})
        assert name in str(caught.value) and ("reached" in str(caught.value) or "never fail" in str(caught.value))
    inside = low + 0.3 * (high - low)
    assert load_gates({"gates": {name: {rule.kind: inside}}}).rule(name).gate == Gate(rule.kind, inside)


def test_the_longest_beginning_decides():
    gates = load_gates({"gates": {"fairness/group-gap/gender": {"max": 0.2}, "fairness/group-gap/gender/f": {"max": 0.3}}})
    assert [gates.rule(name).gate.limit for name in ("fairness/group-gap/origin", "fairness/group-gap/gender", "fairness/group-gap/gender/f",
                                                     "fairness/group-gap/gender/f/x")] == [0.05, 0.2, 0.3, 0.3]
    with pytest.raises(InputError):
        gates.rule("fairness")


@pytest.mark.parametrize("content, words", [
    (b"\xff\xfe", "not UTF-8"), (b"[gates", "not valid TOML"), (b"a = 1", "a is not known"), (b'[gates."data/leakage"]\nmax = inf', "finite"),
    (b'[gates."data/leakage"]\nmax = nan', "finite"), (b'[gates."data/leakage"]\nmax = true', "finite"), (b"gates = 3", "gates is 3"),
    (b'schema = "other"', "schema"), (b'[gates."data/leakage"]\nmax = 0.1\nmin = 0.1', "max and min"), (b"x = " + b"[" * 5000, "not valid TOML"),
    (b'[gates."data/leakage"]\nmax = 1' + 400 * b"0", "finite"), (b'[gates."data/leakage"]\nmax = 1' + 5000 * b"0", "not valid TOML"),
    (b'[gates."data/leakage"]\nmax = 0x' + 5000 * b"f", "too many digits"), (b"[audit]\nconfidence = 1" + 400 * b"0", "audit.confidence is 1000")])
def test_files(tmp_path, content, words):
    path = tmp_path / "g.toml"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_gates(path)
    assert str(path) in str(caught.value) and words in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 400


def test_a_byte_order_mark_is_no_content(tmp_path):
    (tmp_path / "g.toml").write_bytes(b'\xef\xbb\xbf[gates."data/leakage"]\nmax = 0.3\n')
    assert load_gates(tmp_path / "g.toml").rule("data/leakage").gate == Gate("max", 0.3)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        load_gates(tmp_path / "none.toml")


def test_defaults_are_documented():
    text = default_path().read_text(encoding="utf-8")
    for name, rule in load_gates().rules.items():
        assert f'[gates."{name}"]' in text and len(rule.reason) > 60, name
        assert math.isfinite(rule.range[0]) and rule.range[0] < rule.range[1]
