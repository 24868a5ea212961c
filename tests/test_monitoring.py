"""Streams watched for drift: the tests against simulation and reference libraries, the monitor against every way to cut a stream."""
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from safetune.data import InputError
from safetune.drift import (Answers, Monitor, Plan, Reader, Watched, answer_of, correctness, hashed_words, joined, pack, restore,
                            safe, seconds_of, unpack, words_of)
from safetune.monitoring import Alarm, Betting, Changes, gaussian_kernel, mean_band, mmd_test
from safetune.surges import Season, SurgePlan, Surges, restore_surges


def make_event(rng, i, shifted=False):
    words = rng.choice(["late", "fine", "lost", "good", "broken", "parcel"], 4 + int(rng.integers(8)))
    text = " ".join(["strange"] * (6 * shifted) + list(words))
    label = str(rng.choice(["bad", "good"], p=[0.8, 0.2] if shifted else [0.3, 0.7]))
    return {"id": i, "text": text, "label": label, "score": float(rng.uniform(0.5, 1)), "group": str(rng.choice(["a", "b"])),
            "time": 1_767_225_600.0 + 60 * i}


@pytest.fixture(scope="module")
def reference():
    rng = np.random.default_rng(0)
    return [make_event(rng, i) for i in range(800)]


@pytest.fixture(scope="module")
def stream():
    rng = np.random.default_rng(1)
    return [make_event(rng, i, i >= 1500) for i in range(2600)]


# the statistics

@given(st.lists(st.integers(0, 50), min_size=3, max_size=9), st.floats(1e-6, 0.3))
@settings(max_examples=60, deadline=None)
def test_band_holds_the_mean_and_grows_with_confidence(counts, alpha):
    if not sum(counts):
        return
    values = np.linspace(0, 1, len(counts))
    low, high = mean_band(counts, values, alpha)
    mean = np.dot(counts, values) / sum(counts)
    assert 0 <= low <= mean + 1e-9 and mean - 1e-9 <= high <= 1
    wider = mean_band(counts, values, alpha / 10)
    assert wider[0] <= low + 1e-9 and wider[1] >= high - 1e-9


def test_band_of_shares_is_clopper_pearson():
    low, high = mean_band([70, 30], [0.0, 1.0], 0.05)
    assert low == pytest.approx(stats.beta.ppf(0.025, 30, 71), abs=1e-9)
    assert high == pytest.approx(stats.beta.ppf(0.975, 31, 70), abs=1e-9)


def test_e_detector_is_the_recursion_of_its_definition():
    rng, values = np.random.default_rng(0), np.array([[0.0, 0.5, 1.0]])
    test = Betting(values, [0.4], [0.6], 1e9)
    counts = rng.integers(0, 5, (20, 1, 3))
    capital = np.zeros(test.log.shape[1])
    for block, factors in enumerate(test.factors(counts.astype(float))):
        found = test.step(factors, block)
        capital = (capital + 1) * np.exp((counts[block, 0][:, None] * test.table[0]).sum(0))
        assert found[0] == pytest.approx(np.log(capital.mean()))


def test_factors_are_fair_bets():
    "At the end of the band no stake gains in expectation, whatever the distribution on the levels."
    rng = np.random.default_rng(0)
    for _ in range(200):
        values, p = np.sort(rng.random(5)), rng.dirichlet(np.ones(5))
        mean = float(values @ p)
        test = Betting([values], [mean], [mean], 10)
        assert (p @ np.exp(test.table[0])).max() <= 1 + 1e-9


def test_adwin_agrees_with_river():
    drift = pytest.importorskip("river.drift")
    rng, own = np.random.default_rng(0), Changes([0.5], [0.25], 0.002)
    plain, found = drift.ADWIN(delta=0.002, clock=1), []
    for i, x in enumerate(np.clip(rng.normal(np.where(np.arange(1500) < 700, 0.4, 0.7), 0.1), 0, 1)):
        plain.update(float(np.float32(x)))
        assert bool(own.step([x])) == plain.drift_detected
        found += [i] if plain.drift_detected else []
    assert found and 700 < found[0] < 900


def test_mmd_p_values_are_uniform_at_most():
    rng = np.random.default_rng(0)
    p = np.array([mmd_test(rng.normal(size=(15, 2)), rng.normal(size=(20, 2)), 0.02, seed=i)[1] for i in range(600)])
    for level in (0.05, 0.1, 0.3):
        assert stats.binomtest(int((p <= level).sum()), len(p), level, alternative="greater").pvalue > 1e-3
    assert mmd_test(rng.normal(size=(50, 2)), rng.normal(size=(50, 2)) + 2, 0.001)[1] <= 0.001


def test_kernel_is_symmetric_with_ones():
    kernel = gaussian_kernel(np.random.default_rng(0).normal(size=(30, 4)))
    assert np.allclose(kernel, kernel.T) and np.allclose(np.diag(kernel), 1, atol=1e-5) and (kernel > 0).all()


# events

@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
                    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.sampled_from(
                        ["text", "tokens", "label", "tags", "entities", "score", "status", "time", "id", "gold", "type", "words"]),
                        part, max_size=4), max_leaves=12))
@settings(max_examples=80, deadline=None)
def test_any_event_is_read_or_refused_in_one_line(event):
    reader = Reader(["bad"], {"g": ["a"]}, ["word"])
    for events in ([event], [{"text": "a word", "label": "bad", "score": 0.5, "id": 1}, event]):
        try:
            arrays = reader.read(events, Answers(5))
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert all(len(array) == len(events) for array in arrays.values())


@given(st.lists(st.fixed_dictionaries({"text": st.text(max_size=20)}, optional={
    "label": st.sampled_from(["bad", "good", "new"]), "score": st.floats(0, 1), "id": st.integers(0, 5),
    "time": st.integers(0, 10 ** 9), "status": st.sampled_from(["answered", "refused", "odd"]),
    "g": st.sampled_from(["a", "b", "c", 1])}), min_size=1, max_size=8))
@settings(max_examples=150, deadline=None)
def test_plain_events_are_read_as_by_the_loop(events):
    reader = Reader(["bad", "good"], {"g": ["a", "b"]}, ["a", "0"])
    first, second = Answers(3), Answers(3)
    fast = reader._plain(events, first)
    rows = [reader._take(event, second) for event in events]
    if fast is None:
        return
    assert np.array_equal(fast["length"], [row[0] for row in rows])
    assert np.array_equal(fast["new words"], [row[1] for row in rows], equal_nan=True)
    assert np.array_equal(fast["confidence"], [row[3] for row in rows], equal_nan=True)
    assert np.array_equal(fast["time"], [row[5] for row in rows], equal_nan=True)
    slow = reader.read([*events, {"tokens": []}], Answers(0))
    for name in ("outputs", "status", "group g"):
        assert np.array_equal(fast[name], slow[name][:-1], equal_nan=True)
    assert first.fresh == second.fresh


def test_late_labels_find_their_answers(reference):
    monitor = Monitor(reference, plan=Plan(block=8, late=500))
    rng = np.random.default_rng(2)
    asked = [{**make_event(rng, i), "id": f"q{i}"} for i in range(1000)]
    monitor.update(asked)
    labels = [{"id": f"q{i}", "gold": asked[i]["label"] if i % 4 else "never"} for i in range(999, -1, -1)]
    arrays, _ = monitor.reader.read_good(labels, monitor.answers)
    right = arrays["performance"]
    assert np.isfinite(right).sum() == 500 and right[:500].mean() == pytest.approx(0.75)
    assert (monitor.answers.late, monitor.answers.unmatched) == (1000, 500)


def test_performance_that_falls_is_an_alarm(reference):
    rng = np.random.default_rng(3)
    known = [{**event, "gold": event["label"] if rng.random() < 0.9 else "other"} for event in reference]
    monitor = Monitor(known, plan=Plan(block=16))
    alarms = monitor.update([{**make_event(rng, i), "gold": "bad"} for i in range(600)])
    assert [alarm.kind for alarm in alarms if alarm.series == "performance"] == ["performance"]


def test_entities_are_counted_by_type():
    said = joined({"tokens": ["Ada", "met", "Bob"], "tags": ["B-PER", "O", "B-PER"]},
                  {"tags": ["B-PER", "O", "B-LOC"], "entities": [{"type": "PER", "words": [0, 1], "score": 0.9},
                                                                 {"type": "LOC", "words": [2, 3], "score": 0.5}]})
    monitor = Monitor([said] * 100, plan=Plan(block=8))
    assert {"entity/PER", "entity/LOC", "performance", "confidence"} <= {series.name for series in monitor.series}
    assert correctness(answer_of(said), said["gold"]) == 0.5


# the monitor

@given(st.lists(st.integers(1, 2599), max_size=4), st.sampled_from([("betting",), ("betting", "mmd"), ("adwin", "mmd")]))
@settings(max_examples=4, deadline=None)
def test_findings_do_not_depend_on_cuts_and_restarts(reference, stream, cuts, tests):
    if "adwin" in tests:
        pytest.importorskip("river")
    plan = Plan(tests=tests, window=700, sample=40, warmup=640)
    whole = Monitor(reference, ["group"], plan)
    expected = whole.update(stream)
    monitor, found = Monitor(reference, ["group"], plan), []
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), len(stream)]):
        found += monitor.update(stream[start:stop])
        monitor = restore(monitor.setup(), monitor.state())
    assert found == expected and len({alarm.key for alarm in found}) == len(found)
    if "betting" in tests:
        assert {"length", "label/bad", "label/good"} <= {alarm.series for alarm in found}
        assert all(alarm.event > 1500 for alarm in found)


def test_a_series_that_the_reference_lacks_is_warmed_up(reference):
    bare = [{"text": event["text"], "gold": event["label"]} for event in reference]
    monitor = Monitor(bare, plan=Plan(block=16, warmup=640))
    before = {series.name for series in monitor.series}
    rng = np.random.default_rng(4)
    monitor.update([make_event(rng, i) for i in range(1000)])
    assert "label/bad" not in before and not monitor.warming
    assert {"label/bad", "confidence"} <= {series.name for series in monitor.series}
    alarms = monitor.update([make_event(rng, i, True) for i in range(600)])
    assert "label/bad" in {alarm.series for alarm in alarms}


def test_clean_streams_are_quiet(reference):
    rng, loud = np.random.default_rng(5), 0
    for _ in range(3):
        loud += bool(Monitor(reference, ["group"], Plan(horizon=3000)).update([make_event(rng, i) for i in range(3000)]))
    assert loud == 0


def test_bad_events_are_left_out_one_by_one(reference):
    monitor, told = Monitor(reference), []
    monitor.update([reference[0], {"text": 1}, reference[1], 7, {"time": "x"}], lambda place, error: told.append(place))
    assert told == [1, 3, 4] and monitor.seen == 2
    with pytest.raises(InputError, match="row 2"):
        monitor.update([reference[0], {"text": 1}])


def test_watched_predictor_answers_as_before(reference):
    class Model:
        task = "any"

        def predict(self, items): return [{"label": "bad", "score": 0.9, "status": "answered"} for _ in items]

    watched = Watched(Model(), Monitor(reference, plan=Plan(block=8)))
    assert watched.predict(["a text"] * 400) == Model().predict(["a text"] * 400)
    assert watched.task == "any" and "label/bad" in {alarm.series for alarm in watched.alarms}


def test_state_holds_no_pickles_and_no_texts(reference):
    monitor = Monitor([{**event, "text": event["text"] + " secretword"} for event in reference[:200]], vocabulary=["late"])
    monitor.update([{**event, "text": event["text"] + " secretword"} for event in reference])
    assert b"secretword" not in monitor.state() + monitor.setup()
    with pytest.raises(InputError):
        unpack(pack({}, {"a": np.array([1])})[:-30])
    with pytest.raises(InputError):
        restore(monitor.setup(), pack({}, {}))


@given(st.text(max_size=200))
@settings(max_examples=100, deadline=None)
def test_names_from_data_are_one_printable_line(text):
    name = safe(text)
    assert len(name) <= 80 and name.isprintable() and len(name.encode("utf-8")) >= len(name)


def test_alarm_keys_tell_findings_apart():
    keys = {Alarm(kind, series, event, "", topic=topic).key for kind in ("drift", "surge") for series in ("a", "a\nb")
            for event in (1, 2) for topic in ("", "t")}
    assert len(keys) == 16
    json.dumps(Alarm("drift", "a", 1, "", evidence=math.inf).to_dict(), allow_nan=False)


# surges

def hours(counts, surges, start=1_767_225_600):    # counts of one key an hour
    alarms = []
    for hour, count in enumerate(counts):
        alarms += surges.update(start + hour * 3600 + np.linspace(0, 3599, count), ["t"] * count, ["x"] * count)
    return alarms


def test_a_surge_is_told_once_and_ended_once():
    rng = np.random.default_rng(0)
    counts = rng.poisson(10, 300)
    counts[250:256] = 60
    alarms = hours(counts, Surges())
    assert [alarm.kind for alarm in alarms] == ["surge", "surge ended"]
    assert 250 <= (alarms[0].time - 1_767_225_600) / 3600 < 251


def test_daily_swing_is_no_surge():
    counts = np.tile([1] * 12 + [30] * 12, 20)
    assert hours(counts, Surges()) == []
    assert hours(np.concatenate([counts[:312], [30] * 12]), Surges()) != []    # 30 at night is one


@given(st.lists(st.tuples(st.floats(0, 2e6), st.sampled_from("abc"), st.sampled_from("xy")), max_size=60),
       st.lists(st.integers(0, 60), max_size=3))
@settings(max_examples=30, deadline=None)
def test_surges_do_not_depend_on_cuts_and_restarts(events, cuts):
    plan = SurgePlan(learn=3, memory=5, least=2, rate=100)

    def run(edges):
        surges, found, stop = Surges(plan), [], 0
        for start, stop in zip([0, *edges], [*edges, len(events)]):
            part = events[start:stop]
            if part:
                found += surges.update(*map(list, zip(*part)))
            surges = restore_surges(plan, surges.state())
        held = sum(entry[1] for entry in surges.odd)
        assert surges.arrived == stop == surges.seen + surges.late + surges.aside + held
        return found, surges.seen, surges.late, surges.aside, surges.back

    assert run([]) == run(sorted(min(cut, len(events)) for cut in cuts))


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(-70, 70)), max_size=12), st.lists(st.integers(0, 700), max_size=3))
@settings(max_examples=12, deadline=None)
def test_runs_of_wrong_times_do_not_depend_on_cuts_and_restarts(runs, cuts):
    test_surges_do_not_depend_on_cuts_and_restarts.hypothesis.inner_test(
        [((1000 + hours) * 3600.0 + i, "a", "x") for number, hours in runs for i in range(number)], cuts)


@pytest.mark.parametrize("number", [1, 12, 40, 900])
@pytest.mark.parametrize("ahead", [1, 47, 49, 24 * 365, -24 * 365])
def test_a_wrong_clock_does_not_hide_a_surge(number, ahead):
    start = 1_767_225_600
    events = [start + hour * 3600 + i * 3600 / n for hour in range(300)
              for n in [120 if 250 <= hour < 254 else 20] for i in range(n)]
    place = 20 * 200
    wrong = [start + (200 + ahead) * 3600 + i for i in range(number)]
    surges = Surges()
    times = events[:place] + wrong + events[place:]
    found = [a for a in surges.update(times, ["t"] * len(times), ["x"] * len(times)) if a.event > place + number + 17]
    assert [a.kind for a in found] == ["surge", "surge ended"] and (found[0].time - start) // 3600 == 250
    assert surges.seen >= len(events) - (0 if ahead > 1 else 20)


def test_a_clock_that_was_wrong_for_long_is_put_right():
    "After more events than can be taken back the clock follows, and the levels stay."
    start, year = 1_767_225_600, 365 * 24 * 3600
    events = [start + hour * 3600 + i * 180 for hour in range(400) for i in range(20)]
    times = [when + year * (200 <= i // 20 < 260) for i, when in enumerate(events)]
    surges = Surges()
    surges.update(times, ["t"] * len(times), ["x"] * len(times))
    assert (surges.late, surges.back) == (1000, 1)
    wave = [start + 400 * 3600 + i * 20 for i in range(180)]
    assert [a.kind for a in surges.update(wave, ["t"] * 180, ["x"] * 180)] == ["surge"]


def test_times_and_words():
    assert seconds_of("2026-03-01T12:00:00Z") == 1772366400
    assert words_of({"text": "A b-c"}) == ["a", "b", "c"]
    assert hashed_words([{"text": "a"}]).shape == (1, 256)
    assert Season(86_400).slots == 1
