"""Explanations against captum, on hostile input, and properties that must hold whatever the model."""
import html.parser
import math
import random

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from safetune.checks import Gate
from safetune.data import InputError
from safetune.errors import (WorseSlices, counterfactuals, entity_errors, error_matrix, f1_counts, hardest, losses, slice_tests,
                             slices_of)
from safetune.explain import (METHODS, Explainer, Target, as_probability, gauss_legendre, layers_of, targets_of, text_html, to_words,
                              without_words)
from safetune.faithfulness import Faithfulness, Sanity, agreement, eraser_masks, erasure, randomised, ranks, read_rationale
from safetune.metrics import entities
from safetune.predict import Predictor
from safetune.sample import sample_ner, sample_text
from safetune.shortcuts import Shortcuts, drivers, word_effects
from safetune.tasks import (MultiLabelClassification, Regression, SequenceClassification, TokenClassification, load_model,
                            load_tokenizer)
from safetune.tuning import new_encoder

TYPES = TokenClassification(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])
CLASSES = SequenceClassification(["no", "perhaps", "yes"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A tiny encoder with random weights; its embeddings are large enough for its answers to differ."
    texts = list(sample_ner(120, seed=0)["train"]["tokens"]) + list(sample_text(120, seed=0)["train"]["text"])
    return new_encoder(texts, tmp_path_factory.mktemp("tiny"), vocab_size=400, hidden=16, layers=2, heads=2, max_length=48)


def tiny(folder, task, **options):
    "A predictor of a random model that is not flat."
    tokenizer = load_tokenizer(folder)
    torch.manual_seed(0)
    model = load_model(folder, task, tokenizer, new_head=True, hidden_dropout_prob=0.0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    return Predictor(model, tokenizer, task, **options)


SENTENCES = [{"tokens": ["She", "left", "Velistan", "yesterday", ",", "unbelievably", "."]},
             {"tokens": ["Ann"]}, {"tokens": ["The", "", "Oslo-Bergen", "\u200b", "line", "🚂", "<b>", "&amp;"]}]
SPANS = [[Target("LOC", (2, 3)), Target("PER", (0, 2), "LOC")], [Target("PER", (0, 1))], [Target("LOC", (2, 3), "O")]]


@pytest.fixture(scope="module")
def tagger(folder): return Explainer(tiny(folder, TYPES), batch_tokens=256)


def one_by_one(explainer, rows, targets):
    "Each target of each row as a subject by itself."
    for row, own in zip(rows, targets):
        for target in own:
            yield explainer.subjects([row], [[target]])[0]


def captum_pieces(explainer, subject, method, **options):
    "Captum's scores of the pieces of one subject with one target."
    import captum.attr
    embeds, baseline, rest, weights, _ = explainer.inputs([subject])
    names = list(rest)
    forward = lambda point, w, *others: explainer.outputs(point, dict(zip(names, others)), w)[:, 0]
    if method == "IntegratedGradients":
        options["baselines"] = baseline
    slope = getattr(captum.attr, method)(forward).attribute(embeds, additional_forward_args=(weights, *rest.values()), **options)
    return slope.sum(-1)[0].detach().numpy()


@pytest.mark.parametrize("method, other, ours, theirs", [
    ("integrated gradients", "IntegratedGradients", {"steps": 7}, {"n_steps": 7}),
    ("gradient x input", "InputXGradient", {}, {})])
def test_gradients_equal_captum(tagger, method, other, ours, theirs):
    found = tagger.explain(SENTENCES, method, SPANS, **ours)
    expected = [captum_pieces(tagger, subject, other, **theirs) for subject in one_by_one(tagger, SENTENCES, SPANS)]
    assert len(found) == len(expected) == 4
    for e, pieces in zip(found, expected):
        np.testing.assert_allclose(e.piece_scores, pieces, atol=1e-4, rtol=1e-4)


def test_layer_integrated_gradients_equal_captum_one_by_one(tagger):
    from captum.attr import LayerIntegratedGradients
    found = tagger.explain(SENTENCES, "layer integrated gradients", SPANS, layer=1, steps=6)
    for e, subject in zip(found, one_by_one(tagger, SENTENCES, SPANS)):
        embeds, baseline, rest, weights, _ = tagger.inputs([subject])
        forward = lambda point, w, *others: tagger.outputs(point, dict(zip(rest, others)), w)[:, 0]
        slope = LayerIntegratedGradients(forward, layers_of(tagger.model)[1]).attribute(
            embeds, baseline, additional_forward_args=(weights, *rest.values()), n_steps=6)
        np.testing.assert_allclose(e.piece_scores, slope.sum(-1)[0].detach().numpy(), atol=1e-4, rtol=1e-3)


def test_occlusion_equals_captum(tagger):
    from captum.attr import FeatureAblation
    for e, subject in zip(tagger.explain(SENTENCES, "occlusion", SPANS), one_by_one(tagger, SENTENCES, SPANS)):
        embeds, baseline, rest, weights, word = tagger.inputs([subject])
        forward = lambda point, w, *others: tagger.outputs(point, dict(zip(rest, others)), w)[:, 0]
        mask = (word + 1)[..., None].expand_as(embeds)      # special tokens are feature 0: their baseline is themselves
        lost = FeatureAblation(forward).attribute(embeds, baseline, additional_forward_args=(weights, *rest.values()), feature_mask=mask)
        for i in np.flatnonzero(subject.inside):
            at = int(np.flatnonzero(subject.word_at == i)[0])
            assert abs(float(lost[0, at, 0]) - e.scores[i]) < 1e-4


def test_every_method_is_the_same_in_batches_and_alone(tagger):
    for method in METHODS:
        options = {"samples": 6} if method in ("shap", "lime") else {"steps": 5} if "integrated" in method else {}
        together = tagger.explain(SENTENCES, method, SPANS, **options)
        alone = Explainer(tagger.predictor, batch_tokens=1).explain(SENTENCES, method, SPANS, **options)
        assert [e.target for e in together] == [t for own in SPANS for t in own]
        for a, b in zip(together, alone):
            np.testing.assert_allclose(a.scores, b.scores, atol=1e-4, rtol=1e-3, err_msg=method)


def test_complete_methods_add_up(tagger):
    for method, options in (("integrated gradients", {"steps": 300}), ("shap", {"samples": 4})):
        for e in tagger.explain(SENTENCES, method, SPANS, **options):
            assert e.gap < 1e-3 + 0.01 * abs(e.value - e.base), (method, e.gap)
            assert math.isclose(np.nansum(e.scores) + e.rest, e.value - e.base, abs_tol=1e-3 + 0.01 * abs(e.value - e.base))


def test_long_sentences_are_explained_in_a_window(folder):
    explainer = Explainer(tiny(folder, TYPES, max_length=24, stride=8))
    row = {"tokens": [f"word{i}" for i in range(40)]}
    for start in (0, 17, 39):
        e, = explainer.explain([row], "occlusion", [[Target("PER", (start, start + 1))]])
        seen = np.isfinite(e.scores)
        assert seen[start] and not seen.all() and len(e.scores) == 40
        assert abs(e.value - math.log(explainer.predictor(row)["probabilities"][start][1])) < 1e-3
    with pytest.raises(InputError, match="fits into no window"):
        explainer.explain([row], targets=[[Target("PER", (0, 39))]])


def test_pairs_of_texts(folder):
    explainer = Explainer(tiny(folder, CLASSES))
    row = {"text": "The clerk was kind.", "text_pair": "Was she?"}
    e, = explainer.explain([row], "occlusion")
    assert e.words == ["The", "clerk", "was", "kind", ".", "Was", "she", "?"] and np.isfinite(e.scores).all()
    prediction = explainer.predictor(row)
    assert e.target.label == prediction["label"] and abs(math.exp(e.value) - prediction["score"]) < 1e-4
    odds, = explainer.explain([row], targets=[[Target("yes", against="no")]])
    p = prediction["probabilities"]
    assert abs(odds.value - math.log(p[2] / p[0])) < 1e-3


def test_other_tasks(folder):
    several = Explainer(tiny(folder, MultiLabelClassification(["a", "b", "c"])))
    for e in several.explain([{"text": "The clerk was kind."}], "occlusion", [[Target("a"), Target("c")]]):
        p = several.predictor({"text": "The clerk was kind."})["probabilities"]
        assert abs(math.exp(e.value) - p["abc".index(e.target.label)]) < 1e-4
    number = Explainer(tiny(folder, Regression(["value"])))
    e, = number.explain([{"text": "The clerk was kind."}], steps=64)
    assert abs(e.value - number.predictor({"text": "The clerk was kind."})["label"]) < 1e-4
    assert as_probability(e.target, e.value, number.task) == e.value


@pytest.mark.parametrize("text", ["", " ", "\x00\x01\x1b[31m", "a" * 20_000, "<img src=x onerror=alert(1)>", "مرحبا 世界 \u202etxt", "$x_1^2$ \\frac"])
def test_hostile_texts(folder, text):
    explainer = Explainer(tiny(folder, CLASSES))
    for method in METHODS:
        options = {"samples": 3} if method in ("shap", "lime") else {"steps": 2} if "integrated" in method else {}
        if len(text) > 1000 and method in ("shap",):
            options["samples"] = 2
        found = explainer.explain([{"text": text}], method, **options)
        assert len(found) == 1 and len(found[0].scores) == len(found[0].words)
        page = text_html(found)
        assert "<img" not in page and "<script" not in page


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=20), min_size=1, max_size=6))
def test_html_is_safe_and_well_formed(words):
    from safetune.explain import Explanation
    e = Explanation("m<", Target("l<i>", against='"x"'), 0, words, np.linspace(-1, 1, len(words)), 0.0, 0.0)

    class Reader(html.parser.HTMLParser):
        text, open_, tags = "", [], set()
        def handle_starttag(self, tag, attrs): self.tags.add(tag)
        def handle_data(self, data): self.text += data
    reader = Reader()
    reader.tags, reader.text = set(), ""
    reader.feed(text_html([e]))
    assert reader.tags <= {"div", "p", "small", "b", "br", "span"}


def linear(weights):
    "A function whose log-odds are a sum of weights."
    def answer(rows):
        z = [sum(weights.get(word, 0) for word in row["text"].split()) for row in rows]
        return [{"no": 1 / (1 + math.exp(v)), "yes": 1 / (1 + math.exp(-v))} for v in z]
    return Explainer(Predictor(answer, task=SequenceClassification(["no", "yes"])))


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.sampled_from("abcdefgh"), st.floats(-3, 3), max_size=8), st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=7, unique=True))
def test_linear_models_are_recovered(weights, words):
    explainer, row = linear(weights), {"text": " ".join(words)}
    for method, tolerance in (("occlusion", 1e-5), ("shap", 1e-5), ("lime", 0.1)):
        e, = explainer.explain([row], method, [[Target("yes", against="no")]])
        np.testing.assert_allclose(e.scores, [weights.get(word, 0) for word in words], atol=tolerance * 4)


def test_functions_are_refused_what_they_cannot_do():
    explainer = linear({"a": 1})
    for method in ("integrated gradients", "gradient x input", "layer integrated gradients", "attention rollout"):
        with pytest.raises(InputError):
            explainer.explain([{"text": "a b"}], method)
    with pytest.raises(InputError, match="no probabilities"):
        Explainer(Predictor(lambda rows: ["yes"] * len(rows), task=SequenceClassification(["no", "yes"]))).explain([{"text": "a"}], "occlusion")
    assert without_words({"text": "a  b, c"}, np.array([True, False, True, False]))["text"] == "a,"
    assert without_words({"tokens": ["a", "b"], "text": "a b"}, np.array([False, True])) == {"tokens": ["[MASK]", "b"]}


@pytest.mark.parametrize("rows", ["hello", b"hello", {"text": "hello"}, None, 5])
def test_a_single_row_is_not_read_letter_by_letter(tagger, rows):
    with pytest.raises(InputError, match="give a list"):
        tagger.explain(rows)


@pytest.mark.parametrize("row", [None, 5, {"text": None}, {"tokens": None}, {"x": "y"}, {"text": 3}])
def test_what_is_no_row_is_refused_with_its_number(tagger, row):
    with pytest.raises(InputError, match="row 2"):
        tagger.explain([["Ada", "sang"], row])


def test_a_lone_surrogate_is_explained_as_a_sign(tagger):
    rows = [{"tokens": ["A\ud800", "sang"]}]
    assert len(tagger.explain(rows, targets=[[Target("PER", (0, 1))]])) == 1
    tagger.explain(["A\ud800 sang"])


@pytest.mark.parametrize("steps", [0, -3, 2.5, "8", True])
def test_steps_are_counted_from_one(tagger, steps):
    for method in ("integrated gradients", "layer integrated gradients"):
        with pytest.raises(InputError, match="whole number"):
            tagger.explain([["Ada", "sang"]], method, targets=[[Target("PER", (0, 1))]], steps=steps)


@pytest.mark.parametrize("target", [Target("PER", (1, 1)), Target("PER", (2, 1)), Target("PER", (0, 1), "PER"), Target("PER", (0, 9)), Target("PER", (-1, 1))])
def test_targets_without_a_question_are_refused(tagger, target):
    with pytest.raises(InputError):
        tagger.explain([["Ada", "sang"]], targets=[[target]])


def test_errors_need_one_prediction_a_row():
    rows = [{"tokens": ["Ada", "sang"], "tags": ["B-PER", "O"]}] * 2
    for predictions in ([], [{"tags": ["O", "O"]}], [{"tags": ["O", "O"]}] * 3):
        with pytest.raises(InputError, match="one prediction a row"):
            entity_errors(rows, predictions)
    assert list(entity_errors(iter(rows), iter([{"tags": ["B-PER", "O"]}] * 2))["kind"]) == ["right"] * 2


def test_raw_and_adjusted_p_values_are_kept_apart():
    from safetune.checks import Result, benjamini_hochberg, correct
    rng = np.random.default_rng(0)
    rows = [{"tokens": ["Ada" if k % 3 else "UPPER", "sang"], "tags": ["B-PER", "O"], "group": "ab"[k % 2], "document": str(k)} for k in range(300)]
    answers = [{"tags": ["B-PER" if rng.random() < (0.6 if row["group"] == "a" else 0.9) else "O", "O"]} for row in rows]
    found = WorseSlices(shown=100)(Predictor(lambda asked: [a["tags"] for a in answers[:len(asked)]], task=TokenClassification(["O", "B-PER", "I-PER"])), rows)
    table = found.table.set_index("slice")
    for part in found.parts:
        assert part.p_value == table["p"][part.name] and part.p_adjusted == table["adjusted"][part.name]
    raw = [part.p_value for part in found.parts]
    assert found.to_dict()["parts"][0]["p_value"] == raw[0] and np.allclose(table["adjusted"], benjamini_hochberg(table["p"]))
    assert isinstance(found, Result) and [part.p_value for part in correct(found).parts] == raw


def test_attention_is_put_back(tagger):
    before = tagger.model.config._attn_implementation
    for e in tagger.explain(SENTENCES, "attention rollout", SPANS):
        assert abs(np.nansum(e.scores) + e.rest - 1) < 1e-3 and np.nanmin(e.scores) >= 0
    assert tagger.model.config._attn_implementation == before


@pytest.mark.parametrize("kind, options", [
    ("DistilBert", {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}),
    ("Roberta", {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}),
    ("Electra", {"hidden_size": 16, "embedding_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32})])
def test_layers_of_other_architectures(kind, options):
    config = getattr(transformers, f"{kind}Config")(vocab_size=50, **options)
    model = getattr(transformers, f"{kind}ForTokenClassification")(config)
    stack = layers_of(model)
    assert len(stack) == 3 and stack[0] is model.get_input_embeddings()


@given(st.integers(1, 40), st.integers(0, 12))
def test_gauss_legendre_is_exact_for_polynomials(steps, degree):
    nodes, weights = gauss_legendre(steps)
    if degree <= 2 * steps - 1:
        assert abs((weights * nodes ** degree).sum() - 1 / (degree + 1)) < 1e-10


@given(st.lists(st.floats(-5, 5) | st.just(float("nan")), min_size=1, max_size=30))
def test_ranks_and_masks(scores):
    place = ranks(np.array(scores))
    assert sorted(place) == list(range(len(scores)))
    clean = np.nan_to_num(np.array(scores), nan=-np.inf)
    assert all(clean[a] >= clean[b] for a, b in zip(np.argsort(place), np.argsort(place)[1:]))
    masks = eraser_masks(np.array(scores))
    assert (masks[:5] == ~masks[5:]).all() and (masks[5:].sum(1) >= 1).all()


def test_pieces_to_words():
    found = to_words(np.array([[1., 2., 4., 8.]]), np.array([-1, 0, 0, 2]), 3)
    np.testing.assert_array_equal(found, [[6., np.nan, 8.]])


def test_randomised_models_differ_from_the_top_down(tagger):
    model, state = tagger.model, {k: v.clone() for k, v in tagger.model.state_dict().items()}
    changed = [sum(not torch.equal(v, state[k]) for k, v in randomised(model, top).state_dict().items()) for top in (0, 1, 2, None)]
    assert changed == sorted(changed) and 0 < changed[0] < changed[1] < changed[2] < changed[3]
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(randomised(model, seed=1).state_dict()["classifier.weight"], randomised(model, seed=1).state_dict()["classifier.weight"])


def test_random_scores_are_not_faithful_and_checks_report(folder):
    explainer = linear({"good": 3, "bad": -3})
    rng = random.Random(0)
    rows = [{"text": " ".join([rng.choice(["good", "bad"]), *rng.choices("abcdefgh", k=9)])} for _ in range(40)]
    assert Faithfulness("occlusion")(explainer.predictor, rows).verdict == "pass"
    assert Faithfulness("random")(explainer.predictor, rows).verdict != "pass"
    assert Faithfulness("occlusion")(explainer.predictor, []).verdict == "not run"
    assert Sanity("occlusion")(explainer.predictor, rows).verdict == "not run"


def test_agreement_and_rationales():
    assert agreement(np.array([3., 2., 1.]), np.array([True, False, False]))["AUPRC"] == 1
    np.testing.assert_array_equal(read_rationale([(1, 3)], 4), [False, True, True, False])
    for bad in ([(3, 9)], [True]):
        with pytest.raises(InputError):
            read_rationale(bad, 4)


TAGS = st.lists(st.sampled_from(["O", "B-X", "I-X", "B-Y", "I-Y"]), min_size=1, max_size=12)


@given(TAGS.flatmap(lambda gold: st.tuples(st.just(gold), st.lists(st.sampled_from(["O", "B-X", "I-X", "B-Y"]), min_size=len(gold), max_size=len(gold)))))
def test_every_entity_has_one_kind_of_error(pair):
    gold, predicted = pair
    row = {"tokens": list("abcdefghijkl")[:len(gold)], "tags": gold}
    errors = entity_errors([row], [{"tags": predicted}])
    assert (errors["kind"] != "made up").sum() == len(entities(gold))
    assert (errors["kind"] == "right").sum() == len(set(entities(gold)) & set(entities(predicted)))
    assert error_matrix(errors).to_numpy().sum() == len(errors)


def test_slices_are_named_once_and_tests_are_corrected():
    rows = [{"tokens": ["a", "B1"][: 1 + i % 2] + ["word"] * (i % 7), "tags": ["B-X"] + ["O"] * (i % 2 + i % 7), "topic": "pq"[i % 2]} for i in range(300)]
    found = slices_of(rows)
    assert len({member.tobytes() for member in found.values()}) == len(found)
    right = [{"tags": row["tags"]} for row in rows]
    assert WorseSlices().judge(rows, right).verdict == "pass"
    broken = [{"tags": ["O"] * len(row["tags"])} if row["topic"] == "q" and i % 5 else {"tags": row["tags"]} for i, row in enumerate(rows)]
    result = WorseSlices().judge(rows, broken)
    assert result.verdict == "fail" and result.parts[0].p_value <= 0.05
    table = slice_tests(f1_counts(rows, broken), np.array([[row["topic"] == "q" for row in rows]]), range(300))
    assert table["gap"].iloc[0] > 0.5


def test_losses_and_hardest():
    explainer = linear({"good": 2})
    rows = [{"text": "good", "label": "yes"}, {"text": "good", "label": "no"}, {"text": "x", "label": "unheard of"}]
    loss = losses(rows, explainer.predictor.predict(rows), ["no", "yes"])
    assert loss[1] > loss[0] and np.isnan(loss[2])
    assert hardest(explainer.predictor, rows)["row"].tolist() == [1, 0]


def test_counterfactuals_flip():
    explainer = linear({"good": 2, "fine": 2, "bad": -1})
    one, two = counterfactuals(explainer.predictor, [{"text": "good bad thing"}, {"text": "good fine thing bad"}])
    assert one.reached and one.edits == 1 and two.reached and two.edits == 2
    never, = counterfactuals(linear({}).predictor, [{"text": "nothing here"}])
    assert not never.reached


def test_shortcuts_see_what_was_planted():
    rng = random.Random(1)
    def make(n, faithful):
        rows = []
        for _ in range(n):
            label = rng.choice(["no", "yes"])
            words = [{"no": "bad", "yes": "good"}[label]] + (["tick"] if rng.random() < (0.5 if faithful else 0.9 if label == "yes" else 0.05) else [])
            rows.append({"text": " ".join(words + ["thing"]), "label": label})
        return rows
    rows = make(300, True)
    leaning, sound = linear({"good": 1, "bad": -1, "tick": 3}), linear({"good": 4, "bad": -4})
    result = Shortcuts()(leaning.predictor, rows)
    assert [(w.word, w.label) for w in result.words if w.verdict == "fail"] == [("tick", "yes")]
    assert Shortcuts()(sound.predictor, rows).verdict != "fail"
    assert Shortcuts(gate=None)(leaning.predictor, rows).verdict == "no gate"
    table = word_effects(leaning, rows)
    assert set(table.columns) == {"row", "word", "label", "p", "without", "gold"}
    assert drivers(leaning.explain(rows[:40], "occlusion"))["score"].notna().all()
