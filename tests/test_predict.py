"""A million lines through a predictor, and answers that do not depend on company."""
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from safetune.data import split_words
from safetune.predict import Predictor
from safetune.sample import sample_ner
from safetune.tasks import SequenceClassification
from safetune.tuning import Tuner, new_encoder

STREAM = """
import resource, sys
from safetune.predict import Predictor
n = int(sys.argv[1])
predictor = Predictor(lambda rows: [{"label": str(len(row["text"]))} for row in rows], cache_size=1000)
last = None
for count, last in enumerate(predictor.stream((f"line {i}" for i in range(n))), 1):
    pass
assert count == n and last["label"] == str(len(f"line {n - 1}"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def peak_mb(n):
    done = subprocess.run([sys.executable, "-c", STREAM, str(n)], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_memory_stays_flat_over_a_million_lines():
    few, many = peak_mb(10_000), peak_mb(1_000_000)
    assert many <= few + 20, f"{few} MB for 10,000 lines, {many} MB for 1,000,000"


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    "A tagger with random weights; what it says does not matter here, only that it always says the same."
    folder = tmp_path_factory.mktemp("tagger")
    data = sample_ner(n=100, seed=0)
    tuner = Tuner(data, new_encoder(data["train"]["tokens"], folder / "encoder", vocab_size=300, hidden=32, heads=2, max_length=32), progress=False)
    tuner.fit(epochs=1, batch_size=64)
    return Predictor(tuner.save(folder / "model"), cache_size=0)


TEXTS = st.lists(st.text(max_size=120), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_any_text_gets_an_answer_in_order_and_in_place(tagger, texts):
    together = tagger.predict(texts)
    assert len(together) == len(texts)
    for text, prediction in zip(texts, together):
        assert prediction["tokens"] == split_words(text)[0]
        assert len(prediction["tags"]) == len(prediction["tokens"]) == len(prediction["probabilities"])
        assert np.isfinite(prediction["probabilities"]).all()
        assert all(text[entity["start"]:entity["end"]] == entity["text"] for entity in prediction["entities"])
    for text, prediction in zip(texts, together):
        np.testing.assert_allclose(tagger(text)["probabilities"], prediction["probabilities"], atol=1e-5)


def test_hostile_lines(tagger):
    for text in ("", " ", "\u200b", "\x00\x01", "a" * 100_000, "\ud83d\ude00" * 50, "[SEP] [CLS] [PAD]", "\u202eabc", "x " * 5000):
        prediction = tagger(text)
        assert len(prediction["tags"]) == len(prediction["tokens"])


def test_probabilities_of_a_function_stand_in_the_order_of_the_labels():
    predictor = Predictor(lambda rows: [{"good": 0.9, "bad": 0.1}] * len(rows), task=SequenceClassification(["bad", "good"]))
    answer = predictor({"text": "Lovely"})
    assert answer["label"] == "good" and answer["probabilities"].tolist() == pytest.approx([0.1, 0.9])
