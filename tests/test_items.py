"""What a user may hand to `predict`: any JSON value gives an answer or an `InputError` that names the row."""
import json

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from safetune import cli
from safetune.data import InputError, Report, check_question_row, load_data
from safetune.predict import Predictor
from safetune.relations import RelationExtraction, TripleExtractor, without_marks
from safetune.small import new_decoder, new_seq2seq
from safetune.tuning import Tuner, new_encoder

TEXTS = ["Ada left Rome .", "Bob saw Rome and Kyiv .", "who left ?", "good day to you ."] * 3
MESSAGES = [{"role": "user", "content": "who left ?"}, {"role": "assistant", "content": "Ada"}]
DATA = {
    "relation-extraction": [{"tokens": t.split(), "head": [0, 1], "tail": [2, 3], "head_type": "PER", "tail_type": "LOC",
                             "label": r} for t, r in zip(TEXTS, ["left", "no_relation"] * 6)],
    "question-answering": [{"question": "who left ?", "context": "Ada left Rome .",
                            "answers": {"text": ["Ada"], "answer_start": [0]}}] * 12,
    "multiple-choice": [{"question": "who ?", "choices": ["Ada", "Rome"], "label": i % 2} for i in range(12)],
    "token-classification": [{"tokens": t.split(), "tags": ["B-PER"] + ["O"] * (len(t.split()) - 1)} for t in TEXTS],
    "text-classification": [{"text": t, "label": "ab"[i % 2]} for i, t in enumerate(TEXTS)],
    "masked-language-modelling": [{"text": t} for t in TEXTS],
    "translation": [{"source": t, "target": t} for t in TEXTS],
    "summarization": [{"source": t, "target": t} for t in TEXTS],
    "dialogue": [{"messages": MESSAGES}] * 12,
    "causal-language-modelling": [{"text": t} for t in TEXTS],
}


@pytest.fixture(scope="module")
def predictors(tmp_path_factory):
    "A model with random weights for each task; what it says does not matter here."
    folder = tmp_path_factory.mktemp("models")
    encoder = new_encoder(TEXTS, folder / "encoder", layers=1, hidden=16, heads=2, vocab_size=300)
    decoder = new_decoder(TEXTS, folder / "decoder", hidden=16, layers=1, heads=2, vocab_size=300, max_length=64)
    seq2seq = new_seq2seq(TEXTS, folder / "seq2seq", hidden=16, layers=1, heads=2, vocab_size=300, max_length=64)
    made = {}
    for task, rows in DATA.items():
        model = (decoder if task in ("dialogue", "causal-language-modelling")
                 else seq2seq if task in ("translation", "summarization") else encoder)
        data = load_data({"train": rows, "validation": rows, "test": rows}, task=task)
        tuner = Tuner(data, str(model), task, progress=False)
        from safetune.tuning import make_settings
        made[task] = Predictor(tuner.new_model(make_settings()), tuner.tokenizer, tuner.task)
        if hasattr(tuner.task, "max_new_tokens"):
            tuner.task.max_new_tokens = 4
    return made


VALUES = st.recursive(st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.text(max_size=8)
                      | st.sampled_from(["Ada left Rome .", "[HEAD:PER]", "user", "assistant", "<e1>Ada</e1> saw <e2>Rome</e2>"]),
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                          st.sampled_from(["text", "role", "content", "start", "end"]), inner, max_size=3), max_leaves=6)
GOOD = {"tokens": st.lists(st.text(max_size=4), max_size=5), "head": st.just([0, 1]), "tail": st.just([1, 2]),
        "choices": st.lists(st.text(max_size=4), max_size=3),
        "messages": st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]),
                                                    "content": st.text(max_size=9) | VALUES}), max_size=3)}
COLUMNS = ("tokens", "text", "text_pair", "head", "tail", "head_type", "tail_type", "question", "context", "choices",
           "source", "messages", "label", "answers", "offsets", "entities", "tags", "id")
ROWS = st.fixed_dictionaries({}, optional={name: GOOD.get(name, st.text(max_size=9)) | VALUES for name in COLUMNS})


@pytest.mark.parametrize("task", DATA)
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(items=st.lists(ROWS | VALUES, min_size=1, max_size=3))
def test_any_item_is_answered_or_refused(predictors, task, items):
    try:
        assert len(predictors[task].predict(items)) == len(items)
    except InputError as error:
        assert str(error).startswith("input, row"), error


@pytest.mark.parametrize("task, item, column", [
    ("translation", {"source": 7}, "source"), ("translation", {"source": None}, "source"),
    ("translation", {"source": ["a"]}, "source"), ("translation", {"messages": 3}, "source"),
    ("dialogue", {"text": 3}, "messages"), ("masked-language-modelling", {"text": 9, "tokens": ["a"]}, "text"),
    ("question-answering", {"question": "who ?"}, "context"), ("multiple-choice", {"question": 3, "choices": ["a", "b"]}, "question"),
    ("relation-extraction", {"tokens": ["a", "b"]}, "head"), ("text-classification", {"text": 4}, "text")])
def test_the_error_names_row_and_column(predictors, task, item, column):
    good = {name: value for name, value in DATA[task][0].items() if name not in ("label", "answers", "target")}
    with pytest.raises(InputError, match=f"input, row 6: .*{column}"):
        predictors[task].predict([good] * 5 + [item])


def test_language_models_take_tokens(predictors):
    for task in ("masked-language-modelling", "causal-language-modelling"):
        words, text = predictors[task].predict([{"tokens": ["Ada", "left"]}, "Ada left"])
        assert words["nll"] == text["nll"]


def test_a_question_too_long_is_told_with_its_number(predictors):
    long = {"messages": [{"role": "user", "content": "who left ? " * 300}]}
    with pytest.raises(InputError, match="input, row 6: the last question takes"):
        predictors["dialogue"].predict([DATA["dialogue"][0]] * 5 + [long])
    system = {"messages": [{"role": "system", "content": "who left ? " * 300}, *MESSAGES[:1]]}
    with pytest.raises(InputError, match=r"row 1: the system message \(\d+ tokens\) and the last question take"):
        predictors["dialogue"].predict([system])


def test_repair_drops_and_counts_questions_too_long(predictors, tmp_path, caplog):
    model = new_decoder(TEXTS, tmp_path / "m", hidden=16, layers=1, heads=2, vocab_size=300, max_length=64)
    long = {"messages": [{"role": "user", "content": "who left ? " * 300}, MESSAGES[1]]}
    tables = {"train": [long] + DATA["dialogue"], "validation": DATA["dialogue"], "test": DATA["dialogue"][:3] + [long]}
    with pytest.raises(InputError, match="test split, row 4"):
        Tuner(load_data(tables), str(model), progress=False).features("test")
    with caplog.at_level("WARNING", "safetune"):
        tuner = Tuner(load_data(tables, on_error="repair"), str(model), progress=False)
    assert {split: len(tuner.features(split)) for split in tuner.data} == {"train": 12, "validation": 12, "test": 3}
    assert "1 of 13 rows of the train split are dropped" in caplog.text
    assert "1 of 4 rows of the test split are dropped" in caplog.text


def test_missing_answers_are_not_no_answer():
    row, report = {"question": "who ?", "context": "Ada left."}, Report("repair")
    for empty in ({"answers": {"text": [], "answer_start": []}}, {"answers": []}, {"answers": None, "is_impossible": True}):
        assert check_question_row({**row, **empty}, Report(), "f", 1)[0]["answers"]["text"] == []
    for missing in ({"answers": None}, {}, {"answers": {"text": None, "answer_start": None}}, {"answer": float("nan")}):
        with pytest.raises(InputError, match="f, row 1: the answers are missing"):
            check_question_row({**row, **missing}, Report(), "f", 1)
        assert check_question_row({**row, **missing}, report, "f", 1) == []
    assert report.counts == {"missing answers": 4}


def test_markers_in_the_words_of_a_user_are_words(predictors):
    predictor, row = predictors["relation-extraction"], {name: value for name, value in DATA["relation-extraction"][0].items() if name != "label"}
    task, tokenizer = predictor.task, predictor.tokenizer
    assert isinstance(task, RelationExtraction)
    hostile = {**row, "tokens": [*row["tokens"], "[HEAD:PER]", "x[TAIL:LOC]y", "[[HEAD]HEAD:PER]", "[SEP]", "[/HEAD]"]}
    for feature in task.encode([row, hostile], tokenizer):
        assert sum(at >= 0 for at in feature["word_at"]) == 2
        special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()} - {tokenizer.unk_token_id}
        assert sum(i in special for i in feature["input_ids"]) == 6    # [CLS], [SEP], four markers
    assert without_marks(["[[SEP]]", "plain", "[SEP"], ["[SEP]"]) == ["SEP", "plain", "[SEP"]


def test_triples_on_the_command_line(predictors, tmp_path, capsys):
    from safetune.tuning import save_model
    for name, task in (("rel", "relation-extraction"), ("ner", "token-classification")):
        p = predictors[task]
        save_model(p.model, p.tokenizer, tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config.get("safetune_task") in (task, None)
    rows = [{"id": "a", "tokens": ["Ada", "left", "Rome"], "entities": [[0, 1, "PER"], {"start": 2, "end": 3, "type": "LOC"}]},
            {"id": "b", "tokens": ["Ada", "left", "Rome"], "head": [0, 1], "tail": [2, 3]}]
    (tmp_path / "in.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    def run(*arguments):
        code = cli.main(["--quiet", "predict", str(tmp_path / "rel"), *map(str, arguments)])
        out = capsys.readouterr()
        return code, [json.loads(line) for line in out.out.splitlines()], out.err
    code, answers, _ = run(tmp_path / "in.jsonl")
    assert code == 0 and answers[0]["id"] == "a" and {"entities", "triples"} <= set(answers[0]) and "label" in answers[1]
    expected = TripleExtractor(predictors["relation-extraction"]).predict(rows[:1])[0]["triples"]
    assert [(t["subject"], t["relation"]) for t in answers[0]["triples"]] == [(t["subject"], t["relation"]) for t in expected]
    (tmp_path / "in.txt").write_text("Ada left Rome .\n")
    code, answers, _ = run(tmp_path / "in.txt", "--tagger", tmp_path / "ner")
    assert code == 0 and set(answers[0]) == {"tokens", "entities", "triples"}
    rows[0]["entities"].append([2, 9, "LOC"])
    (tmp_path / "bad.jsonl").write_text("\n".join([json.dumps(rows[1]), "", json.dumps(rows[0])]))
    code, answers, err = run(tmp_path / "bad.jsonl")
    assert code == 2 and not answers and "bad.jsonl, row 3: entity 2 is not inside the 3 words" in err


def test_predict_reads_what_train_reads(predictors, tmp_path, capsys):
    from safetune.tuning import save_model
    p = predictors["translation"]
    save_model(p.model, p.tokenizer, tmp_path / "tr")
    (tmp_path / "in.csv").write_text("english\ngood day\nAda left\n")
    assert cli.main(["--quiet", "predict", str(tmp_path / "tr"), str(tmp_path / "in.csv"), "--columns", "source=english"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert cli.main(["--quiet", "predict", str(tmp_path / "tr"), str(tmp_path / "in.csv")]) == 2
    assert "row 2" in capsys.readouterr().err
    p = predictors["question-answering"]
    save_model(p.model, p.tokenizer, tmp_path / "qa")
    squad = {"version": "v2", "data": [{"title": "x", "paragraphs": [{"context": "Ada left Rome .", "qas": [
        {"id": "q0", "question": "who left ?"}, {"id": "q1", "question": "who ?", "answers": []}]}]}]}
    (tmp_path / "squad.json").write_text(json.dumps(squad))
    assert cli.main(["--quiet", "predict", str(tmp_path / "qa"), str(tmp_path / "squad.json")]) == 0
    assert [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()] == ["q0", "q1"]
