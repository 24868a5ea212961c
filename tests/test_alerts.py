"""Alerts: rules, sinks against local stand-ins, the outbox under kill -9, the watch and its command on hostile input."""
import io
import json
import os
import random
import re
import signal
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request
from itertools import product

import numpy as np
import pytest
from browser import SCHEMES, WIDTHS, axe, axe_path, chromium, chromium_path, opened, overflow
from hypothesis import given, settings
from hypothesis import strategies as st

from safetune.alerts import (RULE_SETTINGS, SILENCE_SETTINGS, SINK_SETTINGS, AlertRule, Courier, EmailSink, FileSink, NotDelivered,
                             Receiver, Rules, Store, WebhookSink, dashboard, metrics_of, read_rules, read_settings, serve_metrics, sign, verify_signature)
from safetune.data import InputError
from safetune.drift import PLAN_SETTINGS, Monitor, Plan
from safetune.monitoring import Alarm
from safetune.surges import SURGE_SETTINGS, SurgePlan
from safetune.watch import Screen, Source, Watch, _planned, line_svg, manage_alerts, monitor_stream, page_of, parse_line, run_watch


class Mailbox(socketserver.ThreadingTCPServer):
    "A small SMTP server on the loopback interface: as much of RFC 5321 as smtplib needs."
    allow_reuse_address, daemon_threads = True, True

    def __init__(self, refuse=""):
        self.mails, self.refuse = [], refuse
        super().__init__(("127.0.0.1", 0), Session)
        self.port = self.server_address[1]
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Session(socketserver.StreamRequestHandler):
    def say(self, line): self.wfile.write(line.encode() + b"\r\n")

    def handle(self):
        self.say("220 here")
        while line := self.rfile.readline():
            command = line[:4].upper()
            if command == b"DATA":
                self.say("354 go on")
                data = b""
                while (part := self.rfile.readline()) != b".\r\n":
                    data += part
                self.server.mails.append(data)
                self.say("250 taken")
            elif command == b"QUIT":
                self.say("221 bye")
                return
            else:
                self.say(self.server.refuse if command == b"RCPT" and self.server.refuse else "250 yes")


def message(text="texts have become longer", key="abcd"):
    return {"key": key, "alerts": [{"key": key, "kind": "drift", "severity": "high", "time": 1.7e9, "message": text}]}


def test_mail_is_delivered_and_cannot_be_broken_out_of():
    box = Mailbox()
    sink = EmailSink("mail", "127.0.0.1", "a@example.org", ["b@example.org"], port=box.port, tls="none", timeout=5)
    sink.deliver(message("evil\r\nBcc: c@example.org\r\n\r\nbody"))
    head = box.mails[0].split(b"\r\n\r\n")[0].decode()
    assert "\nBcc:" not in head and "Message-ID: <abcd@safetune.invalid>" in head and "high" in head
    box.shutdown()


def test_mail_that_is_refused_for_good_is_final():
    for answer, final in (("550 nobody here", True), ("450 later", False)):
        box = Mailbox(answer)
        sink = EmailSink("mail", "127.0.0.1", "a@example.org", ["b@example.org"], port=box.port, tls="none", timeout=5)
        with pytest.raises(NotDelivered):
            sink.deliver(message())
        box.shutdown()
    with pytest.raises(NotDelivered) as failure:    # the server does not offer TLS: nothing is sent in the clear
        EmailSink("mail", "127.0.0.1", "a@b.c", ["a@b.c"], port=box.port, timeout=1).deliver(message())
    assert box.mails == [] and not failure.value.final


def test_webhook_retries_signs_and_gives_up(tmp_path, monkeypatch):
    monkeypatch.setenv("HOOK_SECRET", "s3")
    receiver = Receiver([500, 429, 200])
    rules = Rules([AlertRule(sinks=["hook"])], [], {"hook": {"type": "webhook", "url": receiver.url, "secret": "HOOK_SECRET"}})
    store = Store(tmp_path / "s.sqlite", rules)
    with store.transaction():
        store.post([Alarm("drift", "length", 1, "x")], now=0)
    courier = Courier(store, tmp_path)
    for now in range(0, 10):
        courier.deliver_due(now)
    assert (courier.sent, courier.failed) == (1, 2)
    for headers, body in receiver.got:
        assert verify_signature(body, headers["X-Safetune-Signature"], "s3")
        assert headers["Idempotency-Key"] == json.loads(body)["key"]
    receiver.close()
    with store.transaction():
        store.post([Alarm("drift", "length", 2, "x")], now=0)
    courier = Courier(store, tmp_path, {"hook": WebhookSink("hook", receiver.url, timeout=0.5)})
    for turn in range(20):
        courier.deliver_due(turn * 1000)
    assert courier.given_up == 1 and store.base.execute("SELECT tries FROM outbox WHERE state = 'given up'").fetchone() == (12,)


def test_a_sink_may_fail_in_any_way_and_hang(tmp_path):
    "The courier outlives a sink with a fault, and a sink that hangs is not used by two threads at once."
    class Faulty:
        def deliver(self, message): raise RuntimeError("a fault of its own")

    free, begun, taken = threading.Event(), threading.Event(), []

    class Slow:
        def deliver(self, message):
            taken.append(message["key"])
            begun.set()
            free.wait(30)

    store = Store(tmp_path / "a.sqlite", Rules([AlertRule(sinks=["faulty", "slow"])], [], {}))
    with store.transaction():
        store.post([Alarm("drift", "length", 1, "x")], now=0)
    courier = Courier(store, tmp_path, {"faulty": Faulty(), "slow": Slow()})
    courier.start(every=0.01)
    assert begun.wait(10)
    courier.finish(0.05)    # it still hangs
    assert len(taken) == 1
    free.set()
    courier.thread.join(10)
    assert not courier.thread.is_alive()
    states = dict(store.base.execute("SELECT sink, state FROM outbox").fetchall())
    assert states == {"faulty": "frozen", "slow": "sent"} and courier.failed == 1
    courier.finish(1)
    store.close()


def test_signature_needs_secret_body_and_time():
    header = sign(b"body", "k", 1000)
    assert verify_signature(b"body", header, "k", now=1100)
    assert not any([verify_signature(b"body!", header, "k", now=1100), verify_signature(b"body", header, "q", now=1100),
                    verify_signature(b"body", header, "k", now=2000), verify_signature(b"body", "", "k", now=1100)])


def test_groups_go_out_together_and_silences_hold(tmp_path):
    rules = Rules([AlertRule(sinks=["file"], group=["kind"], wait=5)], [{"kind": "*", "series": "quiet*", "topic": "*",
                                                                       "until": 100.0, "reason": ""}])
    store = Store(tmp_path / "s.sqlite", rules)
    with store.transaction():
        store.post([Alarm("drift", "a", 1, "a"), Alarm("drift", "quiet one", 1, "q")], now=10)
    with store.transaction():
        store.post([Alarm("drift", "b", 2, "b")], now=12)
    courier = Courier(store, tmp_path)
    assert courier.deliver_due(14) == 0 and courier.deliver_due(15) == 1
    lines = [json.loads(line) for line in (tmp_path / "alerts.jsonl").read_text().splitlines()]
    assert [line["series"] for line in lines] == ["a", "b"] and len({line["key"].split("/")[0] for line in lines}) == 1
    with store.transaction():
        store.post([Alarm("drift", "quiet one", 3, "q")], now=101)    # the silence is over
    assert courier.deliver_due(200) == 1


def test_a_file_of_rules(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text("[monitor]\nrate = 0.01\n[surges]\nratio = 3\n[[rule]]\nkind = 'surge*'\nseverity='high'\nsinks=['f']\n"
                    "[sink.f]\ntype='file'\npath='x.jsonl'\n")
    rules = read_rules(path)
    assert rules.rule_for(Alarm("drift", "a", 1, "")) is None
    assert rules.rule_for(Alarm("surge", "a", 1, "")).severity == "high"
    assert read_settings(path, "monitor", PLAN_SETTINGS) == {"rate": 0.01}


def toml(value):
    "A value as TOML."
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, (bool, str)):
        return json.dumps(value).replace("\x7f", "\\u007f")
    return repr(value)


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"], max_codepoint=0xffff), max_size=12) | st.sampled_from(
    ["file", "webhook", "email", "log", "http://x/", "http://[x/", "http://x:99999/", "a@b", "a\nb", "*", "surge", "high", "betting", "tls"])
VALUES = st.recursive(TEXTS | st.booleans() | st.integers(-10, 10 ** 6) | st.integers() | st.floats(), lambda inner: st.lists(inner, max_size=3)
                      | st.dictionaries(TEXTS, inner, max_size=2), max_leaves=4)
SINK_KEYS = sorted({key for keys in SINK_SETTINGS.values() for key in keys} | {"type"})
KEYS = ([("monitor", key) for key in PLAN_SETTINGS] + [("surges", key) for key in SURGE_SETTINGS] + [("rule", key) for key in RULE_SETTINGS]
        + [("silence", key) for key in [*SILENCE_SETTINGS, "until"]] + [(kind, key) for kind in SINK_SETTINGS for key in SINK_KEYS]
        + [("", key) for key in ("monitor", "surges", "rule", "silence", "sink")])
BASE = {"webhook": "[sink.s]\ntype = 'webhook'\nurl = 'http://x/'\n", "log": "[sink.s]\ntype = 'log'\n", "file": "[sink.s]\ntype = 'file'\n",
        "email": "[sink.s]\ntype = 'email'\nhost = 'h'\nfrom = 'a@b'\nto = ['c@d']\n", "": "", "rule": "[[rule]]\n",
        "silence": "[[silence]]\n", "monitor": "[monitor]\n", "surges": "[surges]\n"}


@given(st.sampled_from(KEYS), VALUES)
@settings(max_examples=400, deadline=None)
def test_any_value_in_a_file_of_rules_is_taken_or_refused_in_one_line(tmp_path_factory, key, value):
    "No value of any key ends in a traceback, and each refusal names the file."
    table, name = key
    lines = [line for line in BASE[table].splitlines() if line.split(" = ")[0] != name]
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text("\n".join([*lines, f"{name} = {toml(value)}"]) + "\n", encoding="utf-8")
    try:
        rules = read_rules(path)
        assert isinstance(_planned(path, "monitor", PLAN_SETTINGS, Plan), Plan)
        assert isinstance(_planned(path, "surges", SURGE_SETTINGS, SurgePlan), SurgePlan)
        for alarm in (Alarm("drift", "a", 1, "m"), Alarm("surge", "b", 1, "m", topic="t")):
            assert all(sink in rules.sinks for rule in [rules.rule_for(alarm)] if rule for sink in rule.sinks)
        json.dumps([rule.__dict__ for rule in rules.rules])
    except InputError as error:
        assert "any.toml" in str(error) and "\n" not in str(error) and len(str(error)) < 700


def test_numbers_of_thousands_of_digits_are_refused(tmp_path):
    for number in ("1" * 5000, "0x" + "f" * 5000):
        (tmp_path / "r.toml").write_text(f"[monitor]\nblock = {number}\n")
        with pytest.raises(InputError, match="r.toml"):
            read_rules(tmp_path / "r.toml")
            read_settings(tmp_path / "r.toml", "monitor", PLAN_SETTINGS)


def test_what_is_silenced_is_not_repeated_and_told_when_the_silence_is_over(tmp_path):
    store = Store(tmp_path / "s.sqlite", Rules([AlertRule(sinks=["file"], again=10)]))
    courier, said = Courier(store, tmp_path), lambda: [
        json.loads(line)["series"] for line in (tmp_path / "alerts.jsonl").read_text().splitlines()]
    with store.transaction():
        store.post([Alarm("surge", "surge/a", 1, "x"), Alarm("drift", "b", 2, "x")], now=time.time() - 1000)
    courier.deliver_due()
    assert sorted(said()) == ["b", "surge/a"]
    store.silence("surge/*", 100)
    store.acknowledge(next(alert["key"] for alert in store.alerts() if alert["series"] == "b"), "me")
    with store.transaction():
        store.post([Alarm("surge", "surge/c", 3, "x")])    # found during the silence
        store.remind(time.time() + 50)
    courier.deliver_due(time.time() + 50)
    assert sorted(said()) == ["b", "surge/a"]    # the one is silenced, the other acknowledged
    for _ in range(2):
        with store.transaction():
            store.remind(time.time() + 101)
        courier.deliver_due(time.time() + 101)
    assert sorted(said()) == ["b", "surge/a", "surge/a", "surge/c"]
    assert {alert["series"]: alert["state"] for alert in store.alerts()} == {"surge/a": "open", "surge/c": "open", "b": "acknowledged"}


def test_reminders_go_where_the_rule_of_the_alert_says(tmp_path):
    rules = Rules([AlertRule(kind="drift", sinks=["quiet"]), AlertRule(kind="surge", sinks=["pager"], again=10)], [],
                  {name: {"type": "file", "path": f"{name}.jsonl"} for name in ("quiet", "pager")})
    assert [rule.name for rule in rules.rules] == ["drift 1", "surge 2"]
    store = Store(tmp_path / "s.sqlite", rules)
    courier = Courier(store, tmp_path)
    with store.transaction():
        store.post([Alarm("drift", "label/a", 1, "x")], now=1000)
        store.remind(now=2000)
    courier.deliver_due(2001)
    assert len((tmp_path / "quiet.jsonl").read_text().splitlines()) == 1 and not (tmp_path / "pager.jsonl").exists()
    with pytest.raises(InputError, match="two rules"):
        Rules([AlertRule("a"), AlertRule("a")])


def test_two_couriers_deliver_a_message_once(tmp_path):
    taken = []

    class Slow:
        def deliver(self, message):
            taken.append(message["key"])
            time.sleep(0.3)

    rules = Rules([AlertRule(sinks=["slow"], group=["kind", "series"])], [], {})
    stores = [Store(tmp_path / "s.sqlite", rules) for _ in range(2)]
    with stores[0].transaction():
        stores[0].post([Alarm("drift", f"s{i}", i, "x") for i in range(4)], now=0)
    threads = [threading.Thread(target=Courier(store, tmp_path, {"slow": Slow()}).deliver_due) for store in stores]
    [thread.start() for thread in threads]
    [thread.join(20) for thread in threads]
    assert len(taken) == len(set(taken)) == 4
    # what a courier had claimed when it was killed is due again for whoever has the folder to itself
    stores[0].base.execute("UPDATE outbox SET state = 'frozen', due = ? WHERE key = ?", (time.time() + 300, taken[0]))
    courier = Courier(stores[0], tmp_path, {"slow": Slow()})
    assert courier.deliver_due() == 0
    courier.reclaim()
    assert courier.deliver_due() == 1


def test_a_folder_belongs_to_one_monitor_until_it_ends_or_is_killed(tmp_path):
    code = ("import time, filelock\n"    # as lock_folder does it, without its imports
            f"lock = filelock.FileLock({str(tmp_path / '.lock')!r}); lock.acquire(); print('locked', flush=True); time.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match="another monitor runs on this folder"):
            Watch(tmp_path, make_monitor)
        other.kill()
    watch = Watch(tmp_path, make_monitor)
    with pytest.raises(InputError, match="another monitor"):
        Watch(tmp_path, make_monitor)
    watch.finish(0)
    Watch(tmp_path, make_monitor).finish(0)


def test_what_was_not_delivered_is_in_the_last_line_and_the_exit_code(tmp_path, capsys, monkeypatch):
    write_stream(tmp_path / "s.jsonl", 3600)
    rng = np.random.default_rng(9)
    (tmp_path / "ref.jsonl").write_text("".join(json.dumps(make_event(rng, i)) + "\n" for i in range(2000)))
    monkeypatch.setattr(Courier.finish, "__defaults__", (0.5,))
    for name, port, code in (("a", 9, 1), ("b", None, 0)):
        sink = f"type = 'webhook'\nurl = 'http://127.0.0.1:{port}/'" if port else "type = 'file'"
        (tmp_path / "r.toml").write_text(f"[sink.desk]\n{sink}\n[[rule]]\nwait = 600\n")
        assert monitor_stream(str(tmp_path / "s.jsonl"), str(tmp_path / "ref.jsonl"), str(tmp_path / name),
                              rules=str(tmp_path / "r.toml"), quiet=True) == code
        line = capsys.readouterr().out.strip()
        assert ("not delivered to desk (URLError" in line) == bool(port), line
        assert ("messages are not delivered" in (tmp_path / name / "index.html").read_text()) == bool(port)
    assert (tmp_path / "b" / "alerts.jsonl").exists()    # by the rule they would wait for ten minutes


def test_wrong_clocks_are_told(tmp_path, caplog):
    watch = Watch(tmp_path, make_monitor, SurgePlan(learn=24))
    rng = np.random.default_rng(2)
    events = [{**make_event(rng, i), "time": 1_767_225_600 + 60 * i} for i in range(2000)]
    wrong = [{**event, "time": event["time"] + 365 * 86_400} for event in events[1000:1012]]
    for part in (events[:1000], wrong, events[1000:1500], events[1500:]):
        watch.see(part)
    assert (watch.surges.seen, watch.surges.late, watch.surges.aside) == (2000, 0, 12)
    assert sum("time does not fit" in record.message for record in caplog.records) == 1
    assert "12 were set aside" in page_of(watch)
    assert watch.view()["aside_events"] == 12
    watch.finish(0)


def test_torn_file_is_mended(tmp_path):
    path = tmp_path / "a.jsonl"
    sink = FileSink("f", path)
    sink.deliver(message(key="a"))
    path.write_bytes(path.read_bytes() + b'{"key": "b/0", "kind"')
    again = FileSink("f", path)
    again.deliver(message(key="a"))
    again.deliver(message(key="b"))
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a/0", "b/0"]


def test_metrics_on_loopback():
    pytest.importorskip("prometheus_client")
    view = {"events": 5, "series": [{"series": 'a"\n{}', "value": 1.0, "reference": 2.0, "evidence": 0.0, "open": 1}],
            "surges": [("t", "c")], "alerts": {("open", "high"): 2}}
    for port in range(9500, 9600):
        try:
            server = serve_metrics(lambda: view, port)
            break
        except InputError:
            pass
    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    assert server.server_address[0] == "127.0.0.1" and "safetune_events_total 5.0" in page
    with pytest.raises(InputError, match="cannot be opened"):
        serve_metrics(lambda: view, port)
    server.shutdown()
    offered = {sample.name for family in metrics_of(lambda: view) for sample in family.samples}
    board = json.loads(dashboard().read_text(encoding="utf-8"))
    assert set(re.findall(r"safetune_\w+", json.dumps(board["panels"]))) <= offered


# the watch

def make_event(rng, i, shifted=False):
    return {"id": f"e{i}", "text": " ".join(["odd"] * (8 * shifted) + ["word"] * int(rng.integers(3, 9))),
            "label": "bad" if rng.random() < (0.8 if shifted else 0.3) else "good", "score": float(rng.uniform(0.5, 1)),
            "topic": "t", "time": 1_767_225_600 + 600 * i}


def write_stream(path, n=12_000):
    rng = np.random.default_rng(0)
    with open(path, "w") as file:
        for i in range(n):
            file.write(json.dumps(make_event(rng, i, 3000 < i % 6000 < 4000)) + "\n")
            if i % 5000 == 4500:
                file.write("".join(json.dumps({**make_event(rng, i), "label": "bad"}) + "\n" for _ in range(80)))


def make_monitor():
    rng = np.random.default_rng(7)
    return Monitor([make_event(rng, i) for i in range(800)], plan=Plan(window=1000, sample=40))


def alerts_of(out):
    return [json.loads(line)["alert"] for line in (out / "alerts.jsonl").read_text().splitlines()]


def watch_it(out, path, rules, pause):
    watch = Watch(out, make_monitor, rules=rules)
    run_watch(watch, Source(path, position=watch.position, chunk=1 << 15), refresh=0.1, stop=lambda: time.sleep(pause))


def test_killed_at_random_moments_nothing_is_lost_or_doubled(tmp_path):
    "Five kills here; the notebook does fifty."
    write_stream(tmp_path / "s.jsonl")
    run_watch(Watch(tmp_path / "calm", make_monitor), Source(tmp_path / "s.jsonl"))
    receiver, chance, killed = Receiver([503]), random.Random(0), 0
    rules = Rules([AlertRule(sinks=["file", "hook"], group=["series"])], [],
                  {"file": {"type": "file"}, "hook": {"type": "webhook", "url": receiver.url}})
    out = tmp_path / "killed"
    for attempt in range(30):
        child = os.fork()
        if child == 0:
            try:
                watch_it(out, tmp_path / "s.jsonl", rules, 0.005 if killed < 5 else 0)
                os._exit(0)
            except BaseException:
                os._exit(1)
        if killed < 5:
            time.sleep(chance.uniform(0.05, 0.25))
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL)
        killed += status == signal.SIGKILL
        if status == 0:
            break
    receiver.close()
    keys = alerts_of(out)
    assert killed >= 1 and len(keys) > 4
    assert sorted(keys) == sorted(alerts_of(tmp_path / "calm")) and len(set(keys)) == len(keys)
    sent = {}
    for headers, body in receiver.got:
        assert sent.setdefault(headers["Idempotency-Key"], body) == body
    assert sorted(alert["key"] for body in sent.values() for alert in json.loads(body)["alerts"]) == sorted(keys)


def test_page_and_terminal_show_data_as_text(tmp_path):
    evil = "<script>document.title='x'</script><img src=x onerror=alert(1)>\x1b]0;x\x07[bold]\u202e"
    events = [{"text": "some words", "label": evil if i % 2 else "b", "topic": evil} for i in range(120)]
    watch = Watch(tmp_path, lambda: Monitor(events, plan=Plan(block=8)))
    watch.see([{**event, "label": evil, "time": 1.7e9 + i} for i, event in enumerate(events * 3)])
    page = page_of(watch)
    assert watch.alarms and "<script" not in page and "<img" not in page and "\x1b" not in page and "\u202e" not in page
    stream = io.StringIO()
    Screen(live=False, stream=stream).show(watch, watch.alarms)
    assert "\x1b" not in stream.getvalue() and len(stream.getvalue().splitlines()) == len(watch.alarms)


def test_page_in_the_browser(tmp_path):
    "At desktop and phone width, light and dark: nothing is loaded, nothing runs over the edge, axe has no complaint."
    pytest.importorskip("playwright.sync_api")
    if chromium_path() is None:
        pytest.skip("no Chromium")
    rng = np.random.default_rng(0)
    watch = Watch(tmp_path, make_monitor, SurgePlan(learn=24))
    events = [make_event(rng, i, i > 500) for i in range(1500)]
    watch.see([{**event, "topic": "app", "time": 1.7e9 + 600 * i} for i, event in enumerate(events)])
    page_file = tmp_path / "p.html"
    page_file.write_text(page_of(watch))
    with chromium() as browser:
        for width, scheme in product(WIDTHS, SCHEMES):
            with opened(browser, page_file, width, scheme) as tab:
                assert overflow(tab) <= 0 and not tab.alarms
                assert tab.locator("figure").count() > len(watch.monitor.series)
                assert tab.get_by_role("heading", name="Counts by topic and class").count() == 1
                if axe_path():
                    assert axe(tab, axe_path().read_text(encoding="utf-8")) == []


def test_bad_lines_in_one_line_each():
    for line in (b"{", b"[]", b"\xff\xfe", b'{"a":1} {"b":2}', b"[" * 50_000, b"NaN", b'"text"'):
        with pytest.raises(InputError) as error:
            parse_line(line)
        assert "\n" not in str(error.value)
    assert parse_line(b"") is None and parse_line(b'  {"a": 1} ') == {"a": 1}


def test_svg_of_nothing_and_of_gaps():
    assert "<path" in line_svg(np.array([]), 0.0) and "nan" not in line_svg(np.array([np.nan, 1.0, np.nan]), 0.5)


def test_a_rotated_file_is_followed(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"text": "a"}\n')
    source = Source(path, follow=True)
    assert source.read()[1] == [b'{"text": "a"}']
    os.rename(path, tmp_path / "log.1")
    path.write_bytes(b'{"text": "b"}\n')
    source.read()
    assert source.read() == (0, [b'{"text": "b"}'])


# the command

def safetune(*arguments):
    return subprocess.run([sys.executable, "-m", "safetune.cli", "monitor", *map(str, arguments)], capture_output=True,
                          timeout=100)


def test_command_ends_with_2_and_one_line_for_bad_input(tmp_path):
    rng = np.random.default_rng(0)
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    lines = [json.dumps(make_event(rng, i)) for i in range(300)]
    good.write_text("\n".join(lines) + "\n")
    bad.write_text("\n".join([*lines[:4], '{"text": ', *lines[4:]]) + "\n")
    answer = safetune(bad, "--reference", good, "--out", tmp_path / "o")
    assert answer.returncode == 2 and answer.stderr.decode().splitlines() == [
        f"safetune: {bad}, row 5: not valid JSON (Expecting value); write one JSON object a line"]
    with pytest.raises(InputError, match="no such file"):
        monitor_stream(str(tmp_path / "none.jsonl"), str(good), str(tmp_path / "o2"))
    with pytest.raises(InputError, match="no state"):
        manage_alerts(str(tmp_path))


def test_command_counts_bad_lines_of_a_stream(tmp_path, capsys, monkeypatch):
    rng = np.random.default_rng(0)
    good = tmp_path / "good.jsonl"
    good.write_text("\n".join(json.dumps(make_event(rng, i)) for i in range(300)) + "\n")
    (tmp_path / "in").write_text(good.read_text() + '{"text": \n{"text": 5}\n')
    with open(tmp_path / "in") as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        assert monitor_stream("-", str(good), str(tmp_path / "o"), quiet=True) == 0
    assert "300 events, 2 bad lines" in capsys.readouterr().out and (tmp_path / "o" / "index.html").exists()
    assert manage_alerts(str(tmp_path / "o"), show=True, silence="x*") == 0
