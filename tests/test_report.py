"""The report: hostile records, the browser, axe-core, paper, and what a reader must find in it."""
import copy
import functools
import json
import re
from html.parser import HTMLParser

import pytest
from browser import SCHEMES, WIDTHS, axe, axe_path, chromium, chromium_path, opened, overflow
from hypothesis import given, settings
from hypothesis import strategies as st

from safetune.checks import Gate, Result, wilson
from safetune.data import InputError
from safetune.report import (MEASURES, WORDS, clean_svg, dark_colour, figure_svg, read_record, redacted, render,
                             render_comparison, save_report, visible)

try:
    import playwright  # noqa: F401
    WHY_NOT = None if chromium_path() else "Chromium is not installed"
except ImportError:
    WHY_NOT = "playwright is not installed (pip install playwright)"
needs_browser = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
needs_axe = pytest.mark.skipif(axe_path() is None, reason="no axe-core: npm install axe-core, or set SAFETUNE_AXE")

ATTACKS = ["<script>alert('script')</script>", "<img src=x onerror=alert('img')>", "</style><script>alert(1)</script>",
           "\"><svg onload=alert('svg')>", "' onmouseover='alert(2)", "</title><script>alert(3)</script>",
           "javascript:alert('link')", "<a href=\"javascript:alert('a')\">x</a>", "{{ 7 * 7 }}{% raw %}", "${alert(4)}",
           "<iframe srcdoc=\"<script>parent.alert(5)</script>\"></iframe>", "]]><script>alert(6)</script>",
           "<!--><script>alert(7)</script>-->", "<base href=//evil.example/>", "&lt;script&gt;alert(8)&lt;/script&gt;",
           "<meta http-equiv=refresh content='0;url=javascript:alert(9)'>", "<math><mi xlink:href=javascript:alert(10)>",
           "<style>*{display:none}</style>", "abc\u202egpj.exe\u2066x\u2069", "zero\u200bwidth\ufeff", "\x00\x07\x1b[31m",
           "$\\frac{1}{$ <b>", "\ud800 lone", "=cmd|' /C calc'!A0", "<details open ontoggle=alert(11)>"]
HOSTILE_SVG = """<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 9 9"
 onload="alert('onload')"><script>alert('svg script')</script><style>@import "https://evil.example/x.css";</style>
<a xlink:href="javascript:alert(1)"><text onclick="alert(2)">&lt;script&gt;alert(3)&lt;/script&gt;</text></a>
<foreignObject><iframe xmlns="http://www.w3.org/1999/xhtml" src="javascript:alert(4)"/></foreignObject>
<animate onbegin="alert(5)" attributeName="x" dur="1s"/><image href="https://evil.example/p.png"/>
<use href="data:image/svg+xml,&lt;svg onload='alert(6)'/&gt;#x"/><rect style="fill:url(https://evil.example)"/></svg>"""


def result(name="part", gate=Gate("max", 0.05), right=30, n=200, **more):
    return Result(name, "error rate", wilson(right, n), "rows", gate, **more)


def check(number, measure, verdict, found, **more):
    return {"id": f"{measure.lower()}/check-{number}", "measure": measure, "title": f"Check {number}",
            "question": "Is it so?", "verdict": verdict, "seconds": 1.5, "sampled": "", "predictions": 10,
            "gate_reason": "Because.", "next": ["Do this."], "limits": "Not all.", "error": None, "figure": None,
            "result": found and found.to_dict(), **more}


def whole_result():
    parts = [result(f"group {i}", right=5 * i) for i in range(4)]
    return result("gap", parts=parts, rows=[{"id": 1, "text": "a row", "tokens": ["some", "words"]}], p_value=0.01)


@functools.cache
def drawn():
    return figure_svg(lambda: forest(whole_result()))


def record(**more):
    whole = whole_result()
    checks = [check(0, "Data", "pass", result(right=0)), check(1, "Performance", "no gate", result(gate=None)),
              check(2, "Fairness", "fail", whole, svg=drawn()),
              check(3, "Robustness", "not enough evidence", result(right=10)),
              check(4, "Privacy", "not run", Result("x", "y", reason="there are no canaries")),
              check(5, "Control", "error", None, error="ValueError: broken")]
    return {"schema": "safetune-audit/1", "created": "2026-11-25T02:00:00Z", "verdict": "fail", "summary": "In short.",
            "task": "ner", "thorough": False, "seconds": 61.0, "seed": 0, "confidence": 0.95,
            "model": {"name": "m", "path": "runs/m", "base": "b", "sha256": "ab" * 32, "parameters": 12, "labels": ["A"],
                      "metrics": {"test": {"f1": 0.8, "precision": {"value": 0.7, "low": 0.6, "high": 0.8, "n": 9}}}},
            "data": {"name": "d", "splits": {"test": 200}, "sha256": {"test": "cd" * 32}, "audited": "test",
                     "columns": ["text"], "metadata": []},
            "versions": {"safetune": "0.1.0"}, "settings": {"epochs": 3}, "checks": checks, **more}


def forest(found):
    from safetune.checks import plot_parts
    return plot_parts(found)


def planted(value, texts):
    "The same record with an attack in place of, or behind, every text that may come from data."
    if isinstance(value, str):
        return f"{value} {next(texts)}"
    if isinstance(value, list):
        return [planted(part, texts) for part in value]
    if isinstance(value, dict):
        kept = ("schema", "verdict", "svg", "measure", "created", "kind")
        return {key if key in KEYS else f"{key}{next(texts)}": part if key in kept else planted(part, texts)
                for key, part in value.items()}
    return value


KEYS = {"schema", "created", "verdict", "summary", "task", "thorough", "seconds", "seed", "confidence", "model", "data",
        "versions", "settings", "checks", "name", "path", "base", "sha256", "parameters", "labels", "metrics", "splits",
        "audited", "columns", "metadata", "id", "measure", "title", "question", "sampled", "predictions", "gate_reason",
        "next", "limits", "error", "figure", "result", "svg", "sentence", "decision", "value", "low", "high", "n",
        "confidence", "method", "unit", "gate", "kind", "limit", "p_value", "p_adjusted", "tests", "detectable", "reason",
        "rows", "parts", "f1", "precision"}


def hostile_record():
    import itertools
    wrong = planted(record(), itertools.cycle(ATTACKS))
    wrong["checks"][3]["svg"] = HOSTILE_SVG
    wrong["checks"][1]["measure"] = ATTACKS[0]    # not a measure at all
    wrong["created"] = ATTACKS[1]
    wrong["checks"][0]["result"]["value"] = ATTACKS[2]
    wrong["checks"][0]["verdict"] = ATTACKS[3]
    return wrong


class Tags(HTMLParser):
    "Tags and attributes of a page, and headings in order."
    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.ids, self.links, self.headings = set(), set(), [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        given = dict(attributes)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [value for name, value in attributes if name in ("href", "src", "action", "srcdoc")]
        self.headings += [int(tag[1])] if re.fullmatch("h[1-6]", tag) else []


def safe(page):
    "Nothing that runs, nothing that loads, by the look of the markup."
    seen = Tags(page)
    assert not seen.tags & {"script", "iframe", "object", "embed", "link", "img", "base", "form", "a:href", "image",
                            "foreignobject", "animate", "set", "template", "input"}, seen.tags
    assert not {name for name in seen.attributes if name.startswith("on")} | seen.attributes & {"style", "srcdoc"}
    assert all(link.startswith("#") for link in seen.links), seen.links
    assert page.count("<style>") == page.count("</style>") == 1
    return seen


@pytest.fixture(scope="module")
def browser():
    with chromium() as one:
        yield one


def test_every_verdict_measure_and_figure_is_there():
    page = render(record())
    text = re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", page[page.index("<body"):]))
    assert "Not ready to ship: 2 of 6 checks failed" in text
    for verdict in ("pass", "fail", "not enough evidence", "no gate", "not run", "error"):
        assert WORDS[verdict][1] in text
    for words in ("Because.", "Do this.", "Not all.", "0.150", "0.107 to 0.206", "200 rows", "at most 0.050",
                  "ab" * 32, "cd" * 32, "there are no canaries", "ValueError: broken", "some words", "epochs"):
        assert words in text, words
    asked = {check["measure"] for check in record()["checks"]}
    names = [name for name in MEASURES if name in asked]
    places = [page.index(f'-title">{name}</h2>') for name in names]
    assert places == sorted(places) and "Explanation" not in text


def test_markup_is_sound():
    seen = safe(render(record()))
    assert len(seen.ids) == len(set(seen.ids)), "identifiers are used twice"
    assert {link[1:] for link in seen.links} <= set(seen.ids), "a link leads nowhere"
    assert seen.headings[0] == 1 and seen.headings.count(1) == 1
    assert all(new - old <= 1 for old, new in zip(seen.headings, seen.headings[1:])), seen.headings


def test_same_record_same_bytes():
    assert render(record()) == render(record())


def test_hostile_record_is_only_text():
    page = render(hostile_record())
    seen = safe(page)
    assert {link[1:] for link in seen.links} <= set(seen.ids)
    assert "&lt;script&gt;alert(&#39;script&#39;)&lt;/script&gt;" in page
    assert "\u202e" not in page and "⟨U+202E⟩" in page and "\x00" not in page
    page.encode("utf-8")
    both = [{**line, "before": 1.0, "after": None, "difference": None} for line in hostile_record()["checks"]]
    safe(render_comparison({"checks": both, "before": {"name": ATTACKS[0]}, "summary": ATTACKS[2]}))


@needs_browser
def test_nothing_runs_in_the_browser(browser, tmp_path):
    "With the policy, and without it: the escaping holds by itself."
    path = tmp_path / "a<b>'\"&#;.html"
    page = render(hostile_record())
    for number, text in enumerate((page, re.sub("<meta http-equiv.*", "", page))):
        path = tmp_path / f"page{number}.html"
        path.write_text(text, encoding="utf-8")
        with opened(browser, path, part="all") as tab:
            tab.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
            tab.evaluate("document.querySelectorAll('a').forEach(one => one.click())")
            tab.mouse.move(300, 300)
            tab.wait_for_timeout(200)
            assert tab.alarms == []
            assert overflow(tab) == 0
    control = tmp_path / "control.html"    # the alarm works: the same browser runs a script that stands in a page
    control.write_text(f"<p>{ATTACKS[0]}</p>")
    with opened(browser, control) as tab:
        assert tab.alarms == ["dialog script"]
    control.write_text(page.replace("<h1", ATTACKS[0] + "<h1", 1))    # and the policy stops one that got through
    with opened(browser, control) as tab:
        assert not any(alarm.startswith("dialog") for alarm in tab.alarms) and tab.alarms


@needs_browser
@pytest.mark.parametrize("width", [*WIDTHS, 320])
def test_reads_on_every_screen(browser, tmp_path, width):
    path = save_report(record(), tmp_path / "index.html")
    with opened(browser, path, width, part="all") as tab:
        tab.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert overflow(tab) == 0 and tab.alarms == []
    with opened(browser, path, width) as tab:    # one page at a time
        def shown():
            return tab.evaluate("[...document.querySelectorAll('.page')].filter(p => p.offsetHeight).map(p => p.id)")
        assert shown() == ["overview"]
        tab.click("nav a:has-text('Fairness')")
        assert shown() == ["page-2-fairness"]
        tab.click("nav a:has-text('All pages')")
        assert len(shown()) == 8


@needs_browser
def test_paper_shows_all(browser, tmp_path):
    "In print every page, and what is folded on the screen, is there; the navigation is not."
    path = save_report(record(), tmp_path / "index.html")
    with opened(browser, path) as tab:
        tab.emulate_media(media="print", color_scheme="dark")
        assert tab.evaluate("document.querySelector('nav').offsetHeight") == 0
        heights = tab.evaluate("[...document.querySelectorAll('.page, .evidence')].map(one => one.offsetHeight)")
        assert len(heights) == 9 and all(heights)
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert tab.pdf(format="A4")[:5] == b"%PDF-"


@needs_browser
@needs_axe
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_nothing(browser, tmp_path, width, scheme):
    source = axe_path().read_text(encoding="utf-8")
    path = save_report(record(), tmp_path / "index.html")
    (tmp_path / "two.html").write_text(render_comparison(two_audits()), encoding="utf-8")
    with opened(browser, tmp_path / "two.html", width, scheme) as tab:
        assert axe(tab, source) == [] and overflow(tab) == 0 and tab.alarms == []
        assert tab.evaluate("document.querySelector('table').offsetWidth") > 0.75 * width
    with opened(browser, path, width, scheme, "all") as tab:
        tab.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert axe(tab, source) == []
        if width == WIDTHS[0]:
            grey = 150 if scheme == "light" else 90
            tab.evaluate(f"document.querySelector('.question').style.color = 'rgb({grey}, {grey}, {grey})'")
            assert any(line.startswith("color-contrast") for line in axe(tab, source)), "axe would not have seen it"


@given(st.text(max_size=60))
@settings(max_examples=15, deadline=None)
def test_any_text_is_shown_as_text(text):
    found = result(text or "x", rows=[{text: text, "n": [text, 1], "d": {text: None}}], parts=[result(text or "x")])
    safe(render(record(checks=[check(0, "Data", "fail", found, title=text, next=[text], limits=text)],
                       summary=text, model={"name": text}), redact=False))


@given(st.text())
def test_visible_leaves_no_control(text):
    shown = visible(text)
    assert visible(shown) == shown
    shown.encode("utf-8")
    assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200b\u200e\u200f\x00\x1b\u2028")


@given(st.from_regex("#[0-9a-f]{6}", fullmatch=True))
def test_dark_colours_are_colours(colour):
    assert re.fullmatch("#[0-9a-f]{6}", dark_colour(colour))


def test_hostile_drawing_keeps_only_shapes():
    clean = clean_svg(HOSTILE_SVG)
    assert not re.search(r"alert\((?!3)|on\w+=|evil|javascript|<script|<style|foreign|<image|<use|<animate", clean)
    assert clean_svg(clean) == clean
    png = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"><image href="data:image/png;base64,AAAA"/></svg>'
    assert "data:image/png;base64,AAAA" in clean_svg(png)
    assert 'class="onwhite"' in render(record(checks=[check(0, "Data", "fail", result(), svg=png)]))


def test_references_do_not_multiply():
    "A nest of references would draw 10^8 shapes; only references to a single shape are kept."
    nest = "".join(f'<g id="a{i + 1}">' + f'<use href="#a{i}"/>' * 10 + "</g>" for i in range(8))
    clean = clean_svg(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"><path id="a0" d="M0 0"/>{nest}</svg>')
    assert clean.count("<use") == 10


def test_a_wrong_drawing_costs_only_the_drawing():
    page = render(record(checks=[check(0, "Data", "fail", result(), svg="<svg><bad")]))
    assert "this is not a drawing in SVG" in page
    page = render(record(), {"data/check-0": result(figure=lambda: 1 / 0)})
    assert "the figure cannot be drawn (ZeroDivisionError" in page


def test_personal_data_stay_out():
    secret, card = "anna.weber@web.de", "4539578763621486"
    rows = [{"kind": "personal/phone", "text": "ext. 7-7-7"}, {"text": f"Write to {secret} or EXT. 7-7-7"},
            {"tokens": ["call", "+49", "30", "901820", "now"]}, {secret: {"deep": [f"card {card}"]}}]
    rows += [{"kind": "personal/id", "text": "77"}, {"text": "77 of 177"}]    # too short to be masked elsewhere
    found = result(f"part {secret}", rows=rows, sentence=f"{secret} was found")
    drawn = figure_svg(lambda: forest(result(f"of {secret}")))
    assert secret in drawn
    wrong = record(checks=[check(0, "Data", "fail", found, svg=drawn)], summary=f"see {secret}")
    before = copy.deepcopy(wrong)
    for shown in (render(wrong), json.dumps(redacted(wrong))):
        for text in (secret, card, "901820", "7-7-7"):
            assert text not in shown, text
        assert "[EMAIL]" in shown and "[PHONE]" in shown
    assert wrong == before
    assert [row["text"] for row in redacted(wrong)["checks"][0]["result"]["rows"][-2:]] == ["[ID]", "77 of 177"]
    assert secret in render(wrong, redact=False)
    assert redacted(redacted(wrong)) == redacted(wrong)
    live = render(record(checks=[check(0, "Data", "fail", result())]), {"data/check-0": result(
        figure=lambda: forest(result(f"of {secret}")))})
    assert "[EMAIL]" in live and secret not in live


def test_figures_are_not_taken_for_personal_data():
    plain = record()
    assert redacted(plain) == plain


@pytest.mark.parametrize("wrong", [{}, [], 3, {"schema": "other/1"}, {"schema": "safetune-audit/1", "checks": []}])
def test_what_is_no_record_is_refused(wrong, tmp_path):
    path = tmp_path / "audit.json"
    path.write_text(json.dumps(wrong))
    with pytest.raises(InputError, match="record of an audit"):
        read_record(path)
    if isinstance(wrong, dict):
        with pytest.raises(InputError, match="record of an audit"):
            render(wrong)


def test_unreadable_files_are_refused(tmp_path):
    for text in ("{", "[" * 100_000, '{"a": "\ud800"}'.encode("utf-8", "surrogatepass")):
        path = tmp_path / "audit.json"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(InputError) as error:
            read_record(path)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="cannot be read"):
        read_record(tmp_path / "nowhere")
    with pytest.raises(InputError, match="not a comparison"):
        render_comparison({"checks": 3})


def test_a_sparse_record_still_makes_a_page():
    "Only what `read_record` asks for."
    safe(render({"schema": "safetune-audit/1", "verdict": "pass", "model": {}, "data": {}, "checks": []}))
    safe(render({"schema": "safetune-audit/1", "verdict": "?", "model": {}, "data": {}, "versions": None, "settings": 3,
                 "checks": [{"id": "x", "measure": "Data"}, {"id": "x", "measure": "", "result": {"parts": [3, {}]}}]}))


def two_audits():
    return [{"id": "a", "title": "F1", "before": wilson(80, 100).to_dict(), "after": 0.7, "verdict": "worse",
              "difference": {"value": -0.1, "low": -0.15, "high": -0.05, "n": 100}, "sentence": "It fell.", "paired": True},
             {"id": "b", "title": "Gap", "before": None, "after": None, "difference": None, "verdict": "not run",
              "reason": "no groups"}]


def test_comparison():
    lines = two_audits()
    page = render_comparison(lines)
    safe(page)
    text = re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", page[page.index("<body"):]))
    for words in ("1 of 2 checks got worse", "0.800 (0.711 to 0.867, n = 100)", "-0.100 (-0.150 to -0.050, n = 100)",
                  "It fell.", "no groups", "not measured", "Worse", "of pairs of rows"):
        assert words in text, words
    assert "Nothing was shown to be worse" in render_comparison(lines[1:])
