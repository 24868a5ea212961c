"""The service desk as a customer meets it: in the browser, with hostile messages, and with what fails."""
import os
from importlib.util import find_spec

import numpy as np
import pytest
from browser import chromium, chromium_path
from hypothesis import given, settings, strategies as st

from safetune.control import Call, MaxLength, Personal
from safetune.guard import GuardedPredictor
from safetune.personal import find_personal, redact
from safetune.predict import Predictor
from safetune.retrieval import BM25
from safetune.service import (FIXED, AnswerSearch, Grounded, ServiceDesk, Trust, open_page, service_messages,
                              service_page, trust_features)
from safetune.tasks import Task


@pytest.fixture(scope="module")
def shop():
    return service_messages(variants=2, seed=1, clean=redact)


@pytest.fixture(scope="module")
def desk(shop):
    "A desk without a network: intents from BM25, in the guard; the probability fitted on validation."
    known = list(shop.data["train"])
    search = AnswerSearch(BM25([row["text"] for row in known]), [row["answer"] for row in known])

    def intents(rows):
        found = search.find([row["text"] for row in rows])
        return [{"label": shop.intents.get(name, "invoice"), "score": float(near / (1 + near))}
                for name, near in zip(found.answers, found.near)]

    guard = GuardedPredictor(Predictor(intents, task=Task(sorted(set(shop.intents.values())))),
                             [MaxLength(2000), Personal("input")])
    rows = [*shop.data["validation"], *shop.outside["validation"]]
    answers = intents(rows)
    found = search.find([row["text"] for row in rows])
    features = trust_features([a["score"] for a in answers], [a["label"] for a in answers], found, shop.intents)
    right = [name == row.get("answer") for name, row in zip(found.answers, rows)]
    return ServiceDesk(guard, search, shop, Trust().fit(features, right), threshold=0.3)


def test_personal_data_never_passes_the_guard(desk):
    reply = desk.reply("I lost my password, write to anna.berg@example.com or call +1 202-555-0143")
    assert reply.message == "I lost my password, write to [EMAIL] or call [PHONE]"
    assert reply.answer == "account_password" and not find_personal(reply.message + reply.why + reply.text)


def test_training_messages_hold_no_personal_data(shop):
    assert not any(find_personal(text) for part in shop.data.values() for text in part["text"])
    raw = service_messages(variants=2, seed=1)
    assert any(find_personal(text) for text in raw.data["train"]["text"])


@settings(max_examples=12, deadline=None)
@given(message=st.one_of(st.text(max_size=60), st.just("x " * 5000), st.just("\ud800"), st.just("\u202e" * 9)))
def test_any_message_gets_a_reply(desk, message):
    reply = desk.reply(message)
    assert reply.by in ("stored answer", "person") and reply.text
    assert reply.by == "person" or reply.text in desk.shop.answers.values()


def test_what_fails_ends_with_the_person(shop, desk):
    def broken(rows):
        raise RuntimeError("out of memory")
    down = ServiceDesk(GuardedPredictor(Predictor(broken), [Personal("input")]), desk.search, shop, desk.trust, 0)
    reply = down.reply("I lost my password")
    assert (reply.by, reply.text) == ("person", FIXED) and "closes" in reply.why


def test_the_writer_is_held_to_the_message(shop, desk):
    def writes(rows):
        return [{"text": "Thank you for your message about the sofa. A colleague will write to you."} for _ in rows]
    writer = GuardedPredictor(Predictor(writes), [Call(Grounded([FIXED, "about the"]), on="output")])
    never = ServiceDesk(desk.guard, desk.search, shop, desk.trust, threshold=2, writer=writer)
    true, false = never.replies(["My sofa has a stain", "My chair has a stain"])
    assert true.written and "sofa" in true.text
    assert not false.written and false.text == FIXED


def test_threshold_trades_answers_for_errors(shop, desk):
    "A higher threshold answers fewer messages, and of those more are right."
    rows = [*shop.data["test"], *shop.outside["test"]]
    replies = desk.replies([row["text"] for row in rows])
    trust = np.array([reply.trust for reply in replies])
    right = np.array([reply.answer == row.get("answer") for reply, row in zip(replies, rows)])
    order = np.argsort(-trust)
    half = len(order) // 2
    assert right[order[:half]].mean() > right[order[half:]].mean()
    inside = len(shop.data["test"])
    assert trust[:inside].mean() > trust[inside:].mean()


@pytest.fixture(scope="module")
def address(desk):
    if find_spec("gradio") is None:
        pytest.skip("gradio is not installed: pip install 'safetune[app]'")
    if find_spec("playwright") is None or chromium_path() is None:
        pytest.skip("playwright or Chromium is missing")
    page = service_page(desk, "Help desk")
    assert page.analytics_enabled is False
    yield open_page(page)
    page.close(verbose=False)


def test_page_in_chromium(address, desk, tmp_path):
    "A question is typed, its answer read; markup stays text; nothing is asked of another machine."
    with chromium() as browser:
        page, asked = browser.new_page(), []
        page.on("request", lambda request: asked.append(request.url))
        page.on("dialog", lambda dialog: (asked.append("dialog"), dialog.dismiss()))

        def until(text, first=0):
            page.wait_for_function("([text, first]) => [...document.querySelectorAll('textarea')].slice(first)"
                                   ".some(box => box.value.includes(text))", arg=[text, first])

        page.goto(address)
        click = page.get_by_role("button", name="Send").click
        page.get_by_label("Your question").wait_for()
        assert page.title() == "Help desk"
        click()
        until("write a question")
        page.get_by_label("Your question").fill("I lost my password, I am anna.berg@example.com")
        click()
        until("[EMAIL]")
        answer, who, read = (page.get_by_label(name, exact=True).input_value()
                             for name in ("Answer", "Answered by", "Read as"))
        assert answer == desk.shop.answers["account_password"] and who == "stored answer account_password"
        assert read == "I lost my password, I am [EMAIL]"
        page.screenshot(path=os.environ.get("SAFETUNE_SCREENSHOT", tmp_path / "page.png"), full_page=True)
        page.get_by_label("Your question").fill("<img src=x onerror=alert(1)>qqq")
        click()
        until("qqq", 1)
        assert page.get_by_label("Answered by").input_value() == "a person takes over"
        assert page.locator("img[src=x]").count() == 0
        foreign = {url for url in asked if not url.startswith((address, "data:", "blob:"))}
        assert not foreign, foreign
