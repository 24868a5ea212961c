"Retrieval: agreement with bm25s and sentence-transformers where they are installed, exactness, whole files, hostile input."
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from safetune.data import InputError, example_encoder
from safetune.predict import Predictor
from safetune.retrieval import (BM25, Embedder, GraphIndex, Index, Retriever, index_recall, load_index, make_index,
                                save_index, search_words)
from safetune.tasks import SequenceClassification
from safetune.tuning import new_encoder

quick = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
any_text = st.text(alphabet=st.characters(codec="utf-8"), max_size=40)
words = st.lists(st.sampled_from("card bank app fee lost pin code the a".split()), max_size=8).map(" ".join)

try:
    import faiss  # noqa: F401
    KINDS = ("exact", "graph")
except ImportError:
    KINDS = ("exact",)
each_kind = pytest.mark.parametrize("kind", KINDS)
needs_graph = pytest.mark.skipif("graph" not in KINDS, reason="faiss is not installed (pip install faiss-cpu)")
TEXTS = ["my card is lost", "the transfer is late", "a new code for the app", "close the account", ""]


def vectors(n, width=16, seed=0):
    rows = np.random.default_rng(seed).normal(size=(n, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    return Embedder(new_encoder(TEXTS * 5, tmp_path_factory.mktemp("encoder"), vocab_size=120, hidden=32, layers=2, heads=2,
                                max_length=16))


@quick
@given(st.lists(any_text, max_size=6), st.lists(any_text, max_size=3), st.integers(1, 8))
def test_bm25_takes_any_text(texts, queries, k):
    scores, places = BM25(texts).search(queries, k)
    assert scores.shape == places.shape == (len(queries), k)
    assert (np.diff(np.nan_to_num(scores, neginf=-1.0)) <= 0).all() and (places < len(texts)).all()
    assert (places >= 0).sum(1).tolist() == [min(k, len(texts))] * len(queries)


@quick
@given(st.lists(words, min_size=1, max_size=8), words)
def test_bm25_agrees_with_bm25s(texts, query):
    bm25s = pytest.importorskip("bm25s", reason="bm25s is not installed")
    tokens = [search_words(text) for text in texts]
    asked = [word for word in search_words(query) if any(word in one for one in tokens)]
    if not asked:
        return
    other = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    other.index(tokens, show_progress=False)
    assert BM25(texts).scores([query])[0] == pytest.approx(other.get_scores(asked), abs=1e-5)


@each_kind
def test_search_is_exact_or_nearly_so(kind):
    index, asked = make_index(vectors(500), kind), vectors(40, seed=1)
    right = np.argsort(-(asked @ vectors(500).T), axis=1, kind="stable")[:, :10]
    found = index.search(asked, 10)
    assert np.mean([len({*a} & {*b}) for a, b in zip(found.places, right)]) > 9.9
    assert found.scores == pytest.approx(np.take_along_axis(asked @ vectors(500).T, found.places, 1), abs=1e-5)
    recall = index_recall(index, asked)
    assert recall.n == 40 and (recall.value == 1 if kind == "exact" else recall.value > 0.99)


@each_kind
@pytest.mark.parametrize("k", (1, 3, 9))
def test_ties_and_too_few(kind, k):
    index = make_index(np.repeat(vectors(1), 5, axis=0), kind)
    found = index.search(vectors(2, seed=3), k)
    assert found.places.shape == (2, k)
    assert found.places[0].tolist() == [*range(5), *[-1] * 9][:k] if kind == "exact" else set(found.places[0]) <= {*range(5), -1}
    assert np.isneginf(found.scores[found.places < 0]).all()


@needs_graph
def test_the_graph_misses_and_recall_says_so():
    index = GraphIndex(vectors(2000, 48), links=4, build=8, breadth=10)
    assert 0.05 < index_recall(index, vectors(100, 48, seed=1)).high < 0.9


@each_kind
def test_saved_whole_or_not_at_all(kind, tmp_path, monkeypatch):
    index, path, asked = make_index(vectors(200), kind), tmp_path / "index", vectors(5, seed=2)
    save_index(index, path)
    assert (load_index(path).search(asked, 5).places == index.search(asked, 5).places).all()
    assert load_index(path, rebuild=True).kind == kind
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError):
        save_index(make_index(vectors(20), kind), path)
    assert path.read_bytes() == before and [one.name for one in tmp_path.iterdir()] == ["index"]


@each_kind
@pytest.mark.parametrize("place", (0, 0.1, 0.5, 0.9, 0.999))
def test_damage_is_found(kind, place, tmp_path):
    path = save_index(make_index(vectors(50), kind), tmp_path / "index")
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 0x41
    path.write_bytes(content)
    with pytest.raises(InputError, match="is damaged"):
        load_index(path)


def test_foreign_files(tmp_path):
    from safetensors.numpy import save_file
    other = tmp_path / "weights.safetensors"
    save_file({"vectors": vectors(3)}, other)
    (tmp_path / "text").write_text(json.dumps({"vectors": [1]}))
    for path in (other, tmp_path / "text", tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError) as caught:
            load_index(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_vectors_do_not_depend_on_the_batch(embedder):
    many = [text for text in TEXTS for _ in range(7)] + ["word " * 100, "🙂", "\ud83d\ude00", "a\x00b"]
    many = [text.encode("utf-8", "replace").decode() for text in many]
    together = embedder.encode(many)
    one = np.concatenate([embedder.encode([text]) for text in many])
    assert together == pytest.approx(one, abs=1e-5)
    assert np.linalg.norm(together, axis=1) == pytest.approx(1, abs=1e-5)


def test_encoders_of_all_kinds_of_models(embedder):
    import transformers
    task, tokenizer = SequenceClassification(["a", "b"]), embedder.tokenizer
    size = {"vocab_size": len(tokenizer), "d_model": 16}
    bert = transformers.BertForSequenceClassification(transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16))
    bart = transformers.BartForConditionalGeneration(transformers.BartConfig(
        **size, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=64))
    gpt = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64))
    predictor = Predictor(bert, tokenizer=tokenizer, task=task)
    for model, given_tokenizer in ((predictor, None), (bert, tokenizer), (bart, tokenizer), (gpt, tokenizer)):
        made = Embedder(model, given_tokenizer)
        if model is gpt:
            made.tokenizer.model_input_names = ["input_ids", "attention_mask"]
        assert made.encode(TEXTS).shape == (5, 16) and np.isfinite(made.encode(TEXTS)).all()
    assert Embedder(predictor).encode(TEXTS) == pytest.approx(Embedder(bert, tokenizer).encode(TEXTS), abs=1e-6)


def test_training_mode_is_left_as_it_was(embedder):
    embedder.model.train()
    first = embedder.encode(TEXTS)
    assert embedder.model.training and embedder.encode(TEXTS) == pytest.approx(first)
    embedder.model.eval()


def test_sentence_transformers_agrees():
    if not Path(example_encoder()).is_dir():
        pytest.skip("the development encoder is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    made = Embedder(example_encoder())
    model = transformers.AutoModel.from_pretrained(example_encoder())
    batch = made.tokenizer(TEXTS, padding=True, return_tensors="pt")     # as the model card of all-MiniLM-L6-v2 has it
    with torch.no_grad():
        states, mask = model(**batch)[0], batch["attention_mask"].unsqueeze(-1).float()
    expected = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1).clamp(min=1e-9), p=2, dim=1)
    assert made.encode(TEXTS) == pytest.approx(expected.numpy(), abs=1e-5)


@each_kind
def test_retriever_finds_itself_and_is_kept(kind, embedder, tmp_path):
    retriever = Retriever(embedder, TEXTS, kind)
    assert retriever.search(TEXTS, 1).places[:, 0].tolist() == [0, 1, 2, 3, 4] and len(retriever) == 5
    path = retriever.save(tmp_path / "kept")
    again = Retriever.load(path, embedder)
    assert again.texts == TEXTS and (again.search(TEXTS, 3).places == retriever.search(TEXTS, 3).places).all()
    other = Embedder(new_encoder(TEXTS * 5, tmp_path / "other", vocab_size=120, hidden=32, layers=2, heads=2, max_length=16,
                                 seed=9))
    with pytest.raises(InputError, match="another encoder"):
        Retriever.load(path, other)


@pytest.mark.parametrize("call, told", [
    (lambda: Index(vectors(3)).search(vectors(1, 8)), "width 16"), (lambda: Index([["a"]]), "no vectors"),
    (lambda: Index(vectors(3)).search(vectors(1), 0), "at least one"), (lambda: index_recall(Index(), vectors(1)), "no vectors"),
    (lambda: Index(vectors(2)).add(np.full((2, 16), np.inf)), "row 1"), (lambda: BM25("text"), "into a list"),
    (lambda: BM25(["a", 3]), "row 2"), (lambda: BM25(["a"], k1=float("nan")), "at least 0")])
def test_bad_input_is_told_in_one_line(call, told):
    with pytest.raises(InputError) as caught:
        call()
    assert told in str(caught.value) and "\n" not in str(caught.value)
