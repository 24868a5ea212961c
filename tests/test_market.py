"""The corpus and the stream of the tutorial on market sentiment: what its figures stand on."""
import json
import random
from pathlib import Path

import numpy as np
import pytest

BOOK = Path(__file__).parent.parent / "nbs" / "tutorials" / "market_sentiment.ipynb"
NEEDED = ("# market news: words", "# market news: sentences", "START = seconds_of", "CONFUSED =", "def median_interval",
          "def poisson_interval")


@pytest.fixture(scope="module")
def book():
    "What the cells of the tutorial define, without its models."
    import itertools
    import pandas as pd
    from datasets import Dataset, DatasetDict
    from scipy import stats
    from safetune.checks import wilson
    from safetune.drift import Monitor, Plan, seconds_of, show_time
    from safetune.surges import SurgePlan, Surges
    names = {**locals(), "random": random, "np": np, "FULL": False, "display": lambda _: None,
             "matrices": {"topic": pd.DataFrame(np.eye(6) * 0.8 + 0.2 / 6), "mood": pd.DataFrame(np.eye(3) * 0.7 + 0.1)}}
    cells = ["".join(cell["source"]) for cell in json.loads(BOOK.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    for start in NEEDED:
        source = next(cell for cell in cells if cell.startswith(start))
        exec(compile(source.split("\nif not FULL:")[0], start, "exec"), names)
    return names


def split_words(book, column, new):
    "Phrases or things of a part, as they stand in a headline."
    found = []
    for text in book[column].values():
        items = text.split(", ")
        found += items[2 * len(items) // 3:] if new else items[:2 * len(items) // 3]
    return found


def test_training_holds_nothing_new(book):
    news = book["market_news"]({"train": 1500, "test": 500})
    for word in split_words(book, "THINGS", True):
        assert not any(f" {word}" in text for text in news["train"]["text"]), word
    starts = [phrase.split("{}")[0].strip() for phrase in split_words(book, "PHRASES", True)]
    old = " ".join(split_words(book, "PHRASES", False))
    for start in starts:
        if start not in old:    # such as "lists"
            assert not any(f" {start} " in text for text in news["train"]["text"]), start
    companies = set(book["NAMES"][1::2])
    assert not any(word.strip(":,") in companies for text in news["train"]["text"] for word in text.split())
    assert any(word in companies for text in news["test"]["text"] for word in text.split())


def test_corpus_is_repeatable_and_without_doubles(book):
    sizes = {"train": 400, "validation": 50, "test": 200}
    one, two, other = (book["market_news"](sizes, seed) for seed in (0, 0, 1))
    assert {s: rows["text"][:] for s, rows in one.items()} == {s: rows["text"][:] for s, rows in two.items()}
    assert one["test"]["text"][:] != other["test"]["text"][:]
    texts = [text for rows in one.values() for text in rows["text"]]
    assert len(set(texts)) == len(texts) == 650


def test_no_word_belongs_to_two_moods(book):
    "A label can be told from the phrase."
    phrases = [phrase for text in book["PHRASES"].values() for phrase in text.split(", ")]
    assert len(set(phrases)) == len(phrases) == 45 and all(phrase.count("{}") == 1 for phrase in phrases)
    things = [thing for text in book["THINGS"].values() for thing in text.split(", ")]
    assert len(set(things)) == len(things)


def test_stream_has_the_planted_rates(book):
    counts = sum(book["stream_counts"](2, seed) for seed in range(30)) / 30
    share = counts.sum(axis=(0, 1)) / counts.sum()
    assert np.allclose(share, book["MIX"], atol=0.01)
    wave = (200, 0, 0, 5.0, 6)
    with_wave = sum(book["stream_counts"](2, seed, [wave]) for seed in range(30)) / 30
    assert 4 < with_wave[200:206, 0, 0].sum() / counts[200:206, 0, 0].sum() < 6
    turned = sum(book["stream_counts"](2, seed, turn=168) for seed in range(30)) / 30
    assert np.allclose(turned[168:].sum(axis=(0, 1)) / turned[168:].sum(), book["TURNED"], atol=0.01)
    assert abs(turned[168:].sum() / counts[168:].sum() - 1) < 0.02    # no more headlines than before


def test_events_are_the_counts(book):
    counts = book["stream_counts"](1, 3)
    times, cells = book["in_time"](counts, 3)
    hours = ((times - book["START"]) // 3600).astype(int)
    assert (np.diff(times) >= 0).all()
    again = np.zeros((168, 18), dtype=int)
    np.add.at(again, (hours, cells), 1)
    assert (again == counts.reshape(168, 18)).all()


def test_what_is_heard_follows_the_matrix(book):
    rng, errors = np.random.default_rng(0), book["CONFUSED"]
    assert np.allclose(errors.sum(axis=1), 1)
    for cell in (0, 7, 17):
        heard = np.bincount(book["hear"](np.full(20_000, cell), errors, rng), minlength=18) / 20_000
        assert np.abs(heard - errors[cell]).max() < 0.015
    cells = np.arange(18)
    assert (book["hear"](cells, None, rng) == cells).all()


def test_poisson_interval_covers(book):
    rng = np.random.default_rng(0)
    for rate, weeks in ((0.1, 80), (1.0, 10)):
        inside = [low <= rate <= high for low, high in (book["poisson_interval"](n, weeks) for n in rng.poisson(rate * weeks, 1000))]
        assert np.mean(inside) >= 0.94
    assert book["poisson_interval"](0, 80)[0] == 0 and 0.04 < book["poisson_interval"](0, 80)[1] < 0.05    # 3.69 / 80


def test_a_large_wave_is_found_and_counted_once(book):
    planted, alarms, delays, wrong = book["surge_run"](0, 8.0, None)
    assert planted == 4 == len(delays) and alarms == 4 + len(wrong) and all(0 <= delay <= 13 for delay in delays)


def test_with_real_tweets_the_rest_is_left_out(book):
    "On Colab Run all runs the slow cells too: with FULL those on the generated headlines do nothing."
    cells = json.loads(BOOK.read_text("utf-8"))["cells"]
    titles = ["".join(cell["source"]) if cell["cell_type"] == "markdown" else "" for cell in cells]
    first = next(i for i, text in enumerate(titles) if text.startswith("## 5"))
    last = next(i for i, text in enumerate(titles) if "## Through the audit" in text)
    names = {"np": np, "FULL": True}
    between = ["".join(cell["source"]) for cell in cells[first:last] if cell["cell_type"] == "code"]
    assert len(between) > 5
    for source in between:
        exec(compile(source, "a cell", "exec"), names)
    assert "lines" not in names and "clean" not in names and names["CONFUSED"] is None
