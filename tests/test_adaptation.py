"""Adaptation: masks, perplexities against transformers' own loss, windows, models that load without safetune and go on to other tasks."""
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from safetune.adaptation import CausalLanguageModelling, MaskedLanguageModelling, MaskingCollator, draw_masks, perplexities
from safetune.cli import main
from safetune.data import IGNORE_INDEX, InputError
from safetune.predict import Predictor
from safetune.small import new_decoder
from safetune.small_texts import repair_reports
from safetune.tasks import infer_task, load_tokenizer
from safetune.tuning import Tuner, new_encoder

PLACES = st.lists(st.integers(-1, 6), min_size=1, max_size=30)


@given(PLACES, st.integers(0, 1000), st.floats(0.01, 0.9), st.booleans())
def test_masks_keep_their_word(places, seed, share, whole_word):
    ids = list(range(100, 100 + len(places)))
    hidden, labels = draw_masks(ids, places, np.random.default_rng(seed), 4, 50, share, whole_word)
    chosen = labels != IGNORE_INDEX
    assert chosen.any() == any(place >= 0 for place in places)
    for i, place in enumerate(places):
        assert labels[i] in (IGNORE_INDEX, ids[i])                       # a label is the token that stood there
        assert chosen[i] or hidden[i] == ids[i]                          # what was not chosen stays
        assert not chosen[i] or (place >= 0 and (hidden[i] in (4, ids[i]) or hidden[i] < 50))
    if whole_word:
        assert not {p for p, c in zip(places, chosen) if c} & {p for p, c in zip(places, chosen) if not c}


def test_the_shares_are_those_of_bert():
    ids, labels = draw_masks(range(1000, 41000), range(40000), np.random.default_rng(0), 4, 900)
    chosen = labels != IGNORE_INDEX
    shares = [chosen.mean(), (ids[chosen] == 4).mean(), (ids[chosen] == labels[chosen]).mean()]
    assert shares == pytest.approx([0.15, 0.8, 0.1], abs=0.015)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9), st.floats(0, 50), st.integers(1, 9)), min_size=1, max_size=5))
def test_perplexity_is_a_mean_over_tokens_not_over_texts(counts):
    tokens, right, loss, words = map(sum, zip(*counts))
    found = perplexities(np.array(counts, dtype=float).sum(0))
    assert found["perplexity"] == pytest.approx(np.exp(loss / tokens)) and found["word_perplexity"] == pytest.approx(np.exp(loss / words))
    assert found["token_accuracy"] == pytest.approx(right / tokens)


@pytest.fixture(scope="module")
def texts():
    return repair_reports(120, labels=False)


@pytest.fixture(scope="module")
def tuned(texts, tmp_path_factory):
    folder, tuners = tmp_path_factory.mktemp("tuned"), {}
    new_encoder(texts["train"]["text"], folder / "encoder", vocab_size=300, hidden=32, max_length=64)
    new_decoder(texts["train"]["text"], folder / "decoder", vocab_size=330, hidden=32, max_length=128)
    small = type(texts)({**texts, "test": texts["test"].select(range(20))})
    for name, start, options in (("masked-language-modelling", "encoder", {"share": 0.3, "whole_word": True}),
                                 ("causal-language-modelling", "decoder", {"pack": True})):
        tuners[name] = Tuner(small, folder / start, name, progress=False, options=options)
        tuners[name].fit(epochs=2, lr=5e-3)
        tuners[name].save(folder / name)
    return folder, tuners


def test_adaptation_lowers_perplexity(tuned):
    folder, tuners = tuned
    for name, start in (("masked-language-modelling", "encoder"), ("causal-language-modelling", "decoder")):
        tuner = tuners[name]
        rows = list(tuner.data["test"])
        scores = tuner.evaluate("test")
        unigram, words = tuner.task.baseline(list(tuner.data["train"]), rows)
        size = len(tuner.tokenizer)
        assert scores["perplexity"] < 0.7 * size and tuner.task.score(rows, unigram)["perplexity"] < size and words
        assert tuner.history["perplexity"].iloc[-1] < tuner.history["perplexity"].iloc[0]
        assert np.log(tuner.history["perplexity"]).to_numpy() == pytest.approx(tuner.history["validation_loss"].to_numpy(), abs=1e-3)


def test_perplexity_of_a_decoder_is_that_of_transformers(tuned):
    folder = tuned[0] / "causal-language-modelling"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    rows = list(tuned[1][folder.name].data["test"])[:4]
    for row, p in zip(rows, Predictor(folder, task=CausalLanguageModelling()).predict(rows)):
        ids = tokenizer(row["text"] + tokenizer.eos_token, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            assert p["nll"] / p["tokens"] == pytest.approx(model(ids, labels=ids).loss.item(), rel=1e-4)
        assert p["tokens"] == ids.shape[1] - 1 and p["words"] > 0


def test_perplexity_of_an_encoder_is_that_of_transformers(tuned):
    folder = tuned[0] / "masked-language-modelling"
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    rows, predictor = list(tuned[1][folder.name].data["test"])[:4], Predictor(folder)
    assert isinstance(predictor.task, MaskedLanguageModelling)
    features = predictor.task.encode(rows, tokenizer, 64)
    collate = predictor.task.collator(tokenizer)
    with torch.inference_mode():
        batch = collate(features)
        loss = model(**batch).loss.item()
    found = predictor.predict(rows)
    assert sum(p["nll"] for p in found) / sum(p["tokens"] for p in found) == pytest.approx(loss, rel=1e-4)
    assert found == Predictor(folder).predict(rows)    # the same masks each time


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 150), st.integers(8, 64), st.integers(0, 70))
def test_windows_count_each_token_once(tuned, words, longest, stride):
    tokenizer = load_tokenizer(tuned[0] / "decoder")
    task = CausalLanguageModelling()
    task.prepare(tokenizer)
    text = " ".join(f"w{i}" for i in range(words))
    features = task.encode([{"text": text}], tokenizer, longest, stride)
    labels = [label for feature in features for label in feature["labels"] if label != IGNORE_INDEX]
    assert labels == tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    assert all(len(feature["input_ids"]) <= longest for feature in features) and sum(f["words"] for f in features) == words
    tokenizer = load_tokenizer(tuned[0] / "encoder")
    task = MaskedLanguageModelling()
    task.prepare(tokenizer)
    features = task.encode([{"text": text}], tokenizer, longest)
    assert sum(place >= 0 for f in features for place in f["places"]) <= len(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_masks_are_fresh_in_training_and_repeat_from_a_seed(tuned, texts):
    tokenizer = load_tokenizer(tuned[0] / "encoder")
    task = MaskedLanguageModelling()
    features, collate = task.encode(list(texts["test"])[:6], tokenizer), MaskingCollator(tokenizer, 8)
    torch.manual_seed(1)
    first, second = collate(features)["labels"], collate(features)["labels"]
    torch.manual_seed(1)
    assert first.equal(collate(features)["labels"]) and not first.equal(second) and first.shape[1] % 8 == 0


@pytest.mark.parametrize("name, head", [("masked-language-modelling", "encoder"), ("causal-language-modelling", "decoder")])
def test_an_adapted_model_goes_on_to_a_task(tuned, name, head):
    few = repair_reports(16)
    few["test"] = few["test"].select(range(12))
    tuner = Tuner(few, tuned[0] / name, progress=False)
    tuner.fit(epochs=1, lr=1e-3)
    assert tuner.task.name == "text-classification" and {p["label"] for p in tuner.predict("test")} <= set(tuner.task.labels)
    start = dict(tuner.new_model(tuner.settings).base_model.named_parameters())
    adapted = dict(tuned[1][name].model.base_model.named_parameters())
    same = [parameter.equal(adapted[key]) for key, parameter in start.items() if key in adapted]
    assert len(same) > 10 and all(same)    # what was learned is taken over


def test_the_command_fills_a_blank(tuned, tmp_path, capsys):
    folder = tuned[0] / "masked-language-modelling"
    (tmp_path / "asked.jsonl").write_text('{"text": "The [MASK] failed again."}\n{"text": "The pump failed again."}\n')
    assert main(["--quiet", "predict", str(folder), str(tmp_path / "asked.jsonl")]) == 0
    filled, counted = map(json.loads, capsys.readouterr().out.splitlines())
    assert "[MASK]" not in filled["text"] and filled["text"].endswith(" failed again.") and filled["tokens"] == 0
    assert counted["tokens"] > 0 and counted["nll"] > 0


def test_the_tasks_must_be_named(texts):
    with pytest.raises(InputError, match="name the task, causal-language-modelling or masked-language-modelling"):
        infer_task(texts)
    assert infer_task(texts, "masked-language-modelling").name == "masked-language-modelling"


def test_a_decoder_cannot_guess_masks(tuned, texts):
    with pytest.raises(InputError, match="no mask token") as error:
        Tuner(texts, tuned[0] / "decoder", "masked-language-modelling", progress=False)
    assert "\n" not in str(error.value)


def test_answers_of_another_kind_have_no_perplexity(tuned):
    with pytest.raises(InputError, match="only the predictions of a language model have a perplexity"):
        tuned[1]["causal-language-modelling"].task.score([{"text": "a"}], [{"label": "a"}])


def write_texts(texts, folder, n=24):
    folder.mkdir()
    for split, part in texts.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in part.select(range(n))))
    return str(folder)


def test_a_class_with_another_ending_is_known_by_what_safetune_wrote(texts, tmp_path, capsys):
    "GPT2LMHeadModel does not end in ForCausalLM."
    data = write_texts(texts, tmp_path / "data")
    new_decoder(texts["train"]["text"], tmp_path / "gpt2", kind="gpt2", vocab_size=330, hidden=32, max_length=64)
    name = "causal-language-modelling"
    assert main(["--quiet", "train", data, "--model", str(tmp_path / "gpt2"), "--task", name, "--epochs", "1", "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["GPT2LMHeadModel"]
    assert "%|" not in capsys.readouterr().err    # quiet: no bars
    assert isinstance(Predictor(tmp_path / "out").task, CausalLanguageModelling)
    assert main(["--quiet", "evaluate", str(tmp_path / "out"), data, "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["task"] == name and "%|" not in shown.err
    assert main(["--quiet", "audit", str(tmp_path / "out"), data, "--only", "performance", "--out", str(tmp_path / "audit")]) in (0, 1)
    assert json.loads((tmp_path / "audit" / "audit.json").read_text())["task"] == name


def test_a_masked_model_is_audited_from_the_command_line(tuned, texts, tmp_path):
    data = write_texts(texts, tmp_path / "data")
    folder = str(tuned[0] / "masked-language-modelling")
    assert main(["--quiet", "audit", folder, data, "--only", "performance/score", "--out", str(tmp_path / "audit")]) in (0, 1)


def test_options_that_cannot_be_are_told_before_training(tuned, texts, capsys):
    from safetune.sequences import Summarization, Translation
    from safetune.tasks import choose
    for task, options, what in ((MaskedLanguageModelling(), {"share": 5}, "share is 5"), (MaskedLanguageModelling(), {"share": "x"}, "share is 'x'"),
                                (MaskedLanguageModelling(), {"whole_word": 1}, "true or false"), (CausalLanguageModelling(), {"pack": "yes"}, "pack"),
                                (Translation(), {"max_new_tokens": 0}, "whole number from 1"), (Translation(), {"max_new_tokens": "abc"}, "'abc'"),
                                (Translation(), {"num_beams": 0}, "num_beams"), (Translation(), {"num_beams": True}, "num_beams"),
                                (Translation(), {"bleu_tokenizer": "xx"}, "13a"), (Summarization(), {"rouge": "xx"}, "unicode"),
                                (Translation(), {"repetition_penalty": float("nan")}, "repetition_penalty")):
        with pytest.raises(InputError, match=what):
            choose(task, **options)
    assert choose(Translation(), num_beams=None, max_new_tokens=5, bleu_tokenizer="zh").max_new_tokens == 5


def test_a_tokenizer_without_any_token_for_padding_is_told(tuned, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tuned[0] / "decoder")
    tokenizer.pad_token = tokenizer.eos_token = tokenizer.unk_token = None
    tokenizer.save_pretrained(tmp_path / "bare")
    with pytest.raises(InputError, match="no token for padding"):
        load_tokenizer(tmp_path / "bare")
