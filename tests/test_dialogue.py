"""Dialogue: loss on answers only, against transformers' own masks; packed rows against plain ones; long dialogues; LoRA; the command."""
import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from safetune.cli import main
from safetune.data import IGNORE_INDEX, InputError, load_data
from safetune.dialogue import (PLAIN_TEMPLATE, CausalCollator, Dialogue, answer_labels, check_messages, lay_out, left_padded, pack,
                               packs_cleanly, shifted_logits, special_texts, without_specials)
from safetune.losses import get_loss
from safetune.predict import Predictor
from safetune.small import MARKED_TEMPLATE, new_decoder
from safetune.small_texts import dialogues
from safetune.tasks import infer_task, load_tokenizer, taught_loss
from safetune.tuning import Tuner, add_lora

CHATML = """\
{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
TEXTS = st.lists(st.sampled_from("order 655 Hi! </s> lamp Assistant: <|user|> né 東京".split()), min_size=1, max_size=6).map(" ".join)


@st.composite
def talks(draw, most=4):
    "Dialogues of one to four exchanges, with or without the system."
    messages = [{"role": "system", "content": draw(TEXTS)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, most))):
        messages += [{"role": "user", "content": draw(TEXTS)}, {"role": "assistant", "content": draw(TEXTS)}]
    return messages


@pytest.fixture(scope="module")
def data():
    return dialogues(40)


@pytest.fixture(scope="module")
def start(data, tmp_path_factory):
    return new_decoder(data["train"]["messages"], tmp_path_factory.mktemp("start"), chat=True, vocab_size=330, hidden=32, heads=2,
                       max_length=256)


@pytest.fixture(scope="module")
def model(start):
    return AutoModelForCausalLM.from_pretrained(start).eval()


@settings(max_examples=40, deadline=None)
@given(messages=talks(), template=st.sampled_from([MARKED_TEMPLATE, PLAIN_TEMPLATE]))
def test_the_loss_counts_what_transformers_says_the_assistant_said(start, messages, template):
    tokenizer = _tokenizer(start)
    tokenizer.chat_template = template
    messages = [{**one, "content": without_specials(one["content"], special_texts(tokenizer))} for one in messages]
    theirs = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    ids, labels = answer_labels(messages, tokenizer, {tokenizer.eos_token_id})
    assert ids == theirs["input_ids"]
    assert [label != IGNORE_INDEX for label in labels] == [bool(one) for one in theirs["assistant_masks"]]
    assert all(label in (IGNORE_INDEX, token) for label, token in zip(labels, ids))


@settings(max_examples=25, deadline=None)
@given(messages=talks())
def test_templates_without_marks_of_answers_are_understood(start, messages):
    tokenizer = _tokenizer(start)
    tokenizer.chat_template = CHATML
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids, labels = answer_labels(messages, tokenizer, {end})
    learned = tokenizer.decode([label for label in labels if label != IGNORE_INDEX])
    said = "".join(one["content"] + "<|im_end|>" for one in messages if one["role"] == "assistant")
    assert learned == said and tokenizer.decode(ids) == lay_out(messages, tokenizer)


_TOKENIZERS = {}

def _tokenizer(folder):
    "A copy of the tokenizer that may be changed."
    import copy
    if folder not in _TOKENIZERS:
        _TOKENIZERS[folder] = load_tokenizer(folder)
    return copy.deepcopy(_TOKENIZERS[folder])


ROWS = st.lists(st.lists(st.integers(3, 300), min_size=2, max_size=12), min_size=1, max_size=5)


@settings(max_examples=20, deadline=None)
@given(rows=ROWS, width=st.integers(12, 40))
def test_packed_rows_attend_to_themselves_only(model, rows, width):
    batch = pack([{"input_ids": row, "labels": row} for row in rows], width, 0)
    labels = batch.pop("labels")
    with torch.no_grad():
        together = model(**batch).logits
        alone = [model(torch.tensor([row])).logits[0] for row in rows]
    starts, at, line = [], 0, 0
    for row in rows:    # first fit, in order
        if at + len(row) > width:
            at, line = 0, line + 1
        starts.append((line, at))
        at += len(row)
    assert len(labels) == line + 1
    for (line, at), row, logits in zip(starts, rows, alone):
        assert batch["input_ids"][line, at:at + len(row)].tolist() == row
        assert labels[line, at:at + len(row)].tolist() == [IGNORE_INDEX, *row[1:]]
        assert (together[line, at:at + len(row)] - logits).abs().max() < 1e-4
    counted = labels != IGNORE_INDEX
    assert counted.sum() == sum(len(row) - 1 for row in rows)


@settings(max_examples=10, deadline=None)
@given(rows=ROWS)
def test_packed_and_padded_give_the_same_gradient(model, rows):
    class Tokenizer: pad_token_id = 0
    features = [{"input_ids": row, "attention_mask": [1] * len(row), "labels": [IGNORE_INDEX, *row[1:]]} for row in rows]
    gradients = []
    for width in (0, 64):
        batch = CausalCollator(Tokenizer, 1, width)(features)
        labels = batch.pop("labels")
        model.zero_grad()
        torch.nn.functional.cross_entropy(shifted_logits(model(**batch).logits).flatten(0, 1), labels.flatten()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    model.zero_grad()
    assert (gradients[0] - gradients[1]).abs().max() < 1e-4 * max(1, gradients[0].abs().max())


def test_a_model_that_mixes_rows_is_not_packed(start, caplog):
    class Mixing(torch.nn.Module):    # takes no position_ids
        def __init__(self, inner):
            super().__init__()
            self.inner, self.device, self.config, self.generation_config = inner, inner.device, inner.config, inner.generation_config
        def get_input_embeddings(self): return self.inner.get_input_embeddings()
        def forward(self, input_ids, use_cache=None): return self.inner(input_ids)
    inner = AutoModelForCausalLM.from_pretrained(start)
    assert packs_cleanly(inner) and not packs_cleanly(Mixing(inner))
    task = Dialogue(pack=True)
    with caplog.at_level("WARNING", "safetune"):
        task.prepare(_tokenizer(start), Mixing(inner))
    assert not task.pack and "padded instead" in caplog.text


@settings(max_examples=30, deadline=None)
@given(messages=talks(6), room=st.integers(60, 200))
def test_no_dialogue_is_longer_than_the_model_and_each_cut_is_counted(start, messages, room):
    tokenizer = _tokenizer(start)
    task = Dialogue()
    task.prepare(tokenizer)
    whole = len(answer_labels(check_messages([{**one, "content": without_specials(one["content"], special_texts(tokenizer))}
                                              for one in messages]), tokenizer)[0])
    try:
        (feature,) = task.encode([{"messages": messages}], tokenizer, room)
    except InputError as error:
        assert "the last question takes" in str(error) and whole > room
        return
    assert len(feature["input_ids"]) == len(feature["labels"]) <= room
    assert (task.repairs["oldest turns dropped"] + task.repairs["answer cut"] > 0) == (whole > room)
    text = tokenizer.decode(feature["input_ids"])
    assert text.count("<|system|>") == (messages[0]["role"] == "system")
    assert text.count("<|user|>") >= 1 and any(label != IGNORE_INDEX for label in feature["labels"])


@given(st.lists(st.sampled_from(["</s>", "<", "/s>", "<|user|>", "<|us", "er|>", "x", "<</s>/s>"]), max_size=8).map("".join))
def test_no_message_can_hold_a_special_token(text):
    clean = without_specials(text, ["<|user|>", "</s>"])
    assert "</s>" not in clean and "<|user|>" not in clean
    assert without_specials(clean, ["<|user|>", "</s>"]) == clean


@settings(max_examples=15, deadline=None)
@given(rows=ROWS)
def test_prompts_end_at_the_same_place(model, rows):
    inputs = left_padded(rows, 0, "cpu")
    with torch.no_grad():
        places = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
        last = model(**inputs, position_ids=places).logits[:, -1]
        for row, logits in zip(rows, last):
            assert (model(torch.tensor([row])).logits[0, -1] - logits).abs().max() < 1e-4


@pytest.fixture(scope="module")
def tuned(data, start, tmp_path_factory):
    folder, tuners = tmp_path_factory.mktemp("tuned"), {}
    for name, options in (("plain", {}), ("packed", {"pack": True}), ("lora", {"pack": True})):
        tuner = tuners[name] = Tuner(data, start, progress=False, options={"max_new_tokens": 8, "min_new_tokens": 3, **options})
        tuner.task.validation_rows = 4
        tuner.fit(epochs=1, lr=3e-3, batch_size=8, lora_rank=2 if name == "lora" else None)
        tuner.save(folder / name)
    return folder, tuners


def test_training_packs_and_learns(tuned, model):
    tuner = tuned[1]["plain"]
    before = taught_loss(model, tuner.task, tuner.features("validation"), get_loss("cross_entropy"), tuner.tokenizer)
    losses = {name: tuner.history["validation_loss"].iloc[-1] for name, tuner in tuned[1].items()}
    assert losses["plain"] < before - 0.3 and losses["packed"] < before - 0.3 and losses["lora"] < before
    assert losses["packed"] == pytest.approx(losses["plain"], abs=0.05)    # the same batches, differently laid out
    assert tuned[1]["packed"].task.pack


@pytest.mark.parametrize("name", ["plain", "lora"])
def test_plain_transformers_answers_the_same(tuned, name):
    folder, rows = tuned[0] / name, list(tuned[1][name].data["test"])[:3]
    assert not list(folder.glob("adapter*"))
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    predictions = Predictor(folder).predict(rows)
    for row, p in zip(rows, predictions):
        prompt = tokenizer.apply_chat_template(row["messages"][:-1], add_generation_prompt=True, return_tensors="pt", return_dict=True)
        new = plain.generate(**prompt, do_sample=False)[0, prompt["input_ids"].shape[1]:]
        assert tokenizer.decode(new, skip_special_tokens=True).strip() == p["text"]
        assert p["answers"]["tokens"] > 0 and p["score"] < 0


def test_lora_is_merged_and_the_rest_stays(tuned, start):
    before, after = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (start, tuned[0] / "lora"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed and all("proj" in name for name in changed)    # embeddings and norms stay


def test_merging_changes_no_answer(start):
    tuned = AutoModelForCausalLM.from_pretrained(start).eval()
    lora = add_lora(tuned, 2, new_head=False)
    torch.manual_seed(0)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    tokens = torch.arange(3, 40)[None]
    with torch.no_grad():
        wanted = tuned(tokens).logits
        assert (lora.merge_and_unload()(tokens).logits - wanted).abs().max() < 1e-4
        assert (AutoModelForCausalLM.from_pretrained(start)(tokens).logits - wanted).abs().max() > 1e-2


def test_the_command_answers(tuned, tmp_path, capsys):
    folder, row = tuned[0] / "plain", tuned[1]["plain"].data["test"][0]
    (tmp_path / "asked.jsonl").write_text(json.dumps({"messages": row["messages"][:-1]}) + "\n")
    assert main(["--quiet", "predict", str(folder), str(tmp_path / "asked.jsonl")]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == Predictor(folder).predict([row])[0]["text"]


def test_a_question_without_an_answer_is_answered(tuned):
    predictor = Predictor(tuned[0] / "plain")
    one, same = predictor.predict(["Where is it?", {"messages": [{"role": "user", "content": "Where is it?"}]}])
    assert one == same and "answers" not in one
    with pytest.raises(InputError, match="ends with a question"):
        predictor.task.score([{"messages": [{"role": "user", "content": "Where?"}]}], [one])


def test_a_function_does_not_see_the_reference(data):
    seen = []
    def function(rows):
        seen.extend(rows)
        return [row["messages"][-1]["content"] for row in rows]
    rows = list(data["test"])[:3]
    predictions = Predictor(function, task=Dialogue()).predict(rows)
    assert all(row["messages"][-1]["role"] == "user" for row in seen)
    assert [p["text"] for p in predictions] == [row["messages"][-2]["content"] for row in rows]


def test_a_tokenizer_without_pad_token_and_template_will_do(data, start, tmp_path, caplog):
    folder = Path(shutil.copytree(start, tmp_path / "bare"))
    settings_of = json.loads((folder / "tokenizer_config.json").read_text())
    settings_of.pop("pad_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings_of))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    with caplog.at_level("WARNING", "safetune"):
        tuner = Tuner(data, str(folder), progress=False, options={"max_new_tokens": 4})
        tuner.task.validation_rows = 2
        tuner.fit(epochs=1, batch_size=8)
    assert "has no padding token" in caplog.text and "no chat template" in caplog.text
    saved = tuner.save(tmp_path / "saved")
    tokenizer = AutoTokenizer.from_pretrained(saved)
    assert tokenizer.chat_template == PLAIN_TEMPLATE and tokenizer.pad_token is not None
    assert Predictor(saved)("Hello")["text"] == Predictor(saved)("Hello")["text"]


@pytest.mark.parametrize("messages, what", [
    ([], "no messages"), ([{"role": "user"}], "without a text"), ([{"role": "judge", "content": "x"}], "role 'judge'"),
    ([{"role": "system", "content": "x"}], "the user says nothing"),
    ([{"role": "user", "content": "x"}, {"role": "system", "content": "y"}], "the last message is the system's")])
def test_wrong_messages_are_told_with_their_row(messages, what):
    with pytest.raises(InputError, match=what) as error:
        check_messages(messages, 7)
    assert "row 7" in str(error.value) and "\n" not in str(error.value)


def test_a_template_that_refuses_is_told(start):
    tokenizer = _tokenizer(start)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InputError, match="the chat template refuses these messages .*roles must alternate"):
        lay_out([{"role": "user", "content": "x"}], tokenizer)


def test_the_usual_forms_of_data_are_read():
    for row in ({"instruction": "Add 1 and 2", "input": "", "output": "3"}, {"prompt": "Add 1 and 2", "completion": "3"},
                {"conversations": [{"from": "human", "value": "Add 1 and 2"}, {"from": "gpt", "value": "3"}]}):
        data = load_data([row] * 3)
        assert infer_task(data).name == "dialogue"
        assert data["train"][0]["messages"] == [{"role": "user", "content": "Add 1 and 2"}, {"role": "assistant", "content": "3"}]
