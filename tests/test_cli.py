"""The command as other programs use it: processes, pipes, exit codes, and files that are whole."""
import json
import os
import shutil
import subprocess
import sys

import pytest

from safetune.sample import sample_ner
from safetune.tuning import new_encoder


def run(*command, stdin=None, **options):
    return subprocess.run([sys.executable, "-m", "safetune.cli", *map(str, command)], input=stdin, capture_output=True, timeout=300, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A folder with data, an encoder and a model that the command has trained."
    folder = tmp_path_factory.mktemp("cli")
    data = sample_ner(n=200, seed=0)
    (folder / "data").mkdir()
    for split, part in data.items():
        part.to_json(folder / "data" / f"{split}.jsonl")
    new_encoder(data["train"]["tokens"], folder / "encoder", vocab_size=300, hidden=32, heads=2)
    done = run("train", folder / "data", "--model", folder / "encoder", "--out", folder / "model", "--epochs", 1, "--lr", "1e-3")
    assert done.returncode == 0, done.stderr.decode()
    return folder


def test_train_leaves_a_plain_model_and_scores(trained):
    names = {path.name for path in (trained / "model").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "metrics.json", "training.png"} <= names
    assert not any(name.startswith(".") or name == "checkpoints" or name.endswith(".bin") for name in names)
    metrics = json.loads((trained / "model" / "metrics.json").read_text())
    assert metrics["privacy"] is None     # an ordinary run gives no guarantee
    for split in ("validation", "test"):
        assert {"f1", "precision", "recall"} <= set(metrics[split])
        assert metrics[split]["intervals"]["f1"]["n"] == metrics["rows"][split]


def test_evaluate_json_is_the_only_thing_on_stdout(trained):
    done = run("evaluate", trained / "model", trained / "data", "--json")
    assert done.returncode == 0
    scores = json.loads(done.stdout)
    assert scores["f1"] == json.loads((trained / "model" / "metrics.json").read_text())["test"]["f1"]


def test_predict_keeps_order_and_ids_and_survives_a_closed_pipe(trained):
    lines = [{"id": i, "text": "Ada met Ben in Rome. " * (1 + i % 7)} for i in range(300)]
    payload = "\n".join(map(json.dumps, lines)).encode()
    done = run("predict", trained / "model", "-", stdin=payload)
    assert done.returncode == 0, done.stderr.decode()
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == list(range(300))
    (trained / "in.jsonl").write_bytes(payload)
    command = f"{sys.executable} -m safetune.cli predict {trained}/model {trained}/in.jsonl --window 10 | head -n 3"
    piped = subprocess.run(command, shell=True, capture_output=True, timeout=300)
    assert len(piped.stdout.splitlines()) == 3
    assert b"Traceback" not in piped.stderr and b"Error" not in piped.stderr


def test_a_bad_row_stops_with_one_line_and_keeps_what_was_written(trained):
    payload = b'{"text": "one"}\n{"text": "two"}\n{"text": 3}\n'
    done = run("predict", trained / "model", "-", "--window", "1", stdin=payload)
    assert done.returncode == 2
    assert len(done.stdout.splitlines()) == 2
    assert done.stderr.decode().strip() == 'safetune: stdin, row 3: there are no tokens, and the text is missing or none; give one of them'


def test_a_model_is_not_written_over(trained):
    before = (trained / "model" / "model.safetensors").read_bytes()
    done = run("train", trained / "data", "--model", trained / "encoder", "--out", trained / "model")
    assert done.returncode == 2 and b"holds a model already; choose another --out, or pass --overwrite" in done.stderr
    assert (trained / "model" / "model.safetensors").read_bytes() == before


def test_a_diverged_run_ends_with_one_line(trained, tmp_path):
    done = run("train", trained / "data", "--model", trained / "encoder", "--out", tmp_path / "m", "--lr", "9", "--set", "optimizer=sgd", "clip=0", "warmup=0")
    assert done.returncode == 2
    assert b"lower the learning rate (now 9)" in done.stderr and b"Traceback" not in done.stderr


def test_two_processes_train_together(trained, tmp_path):
    "Data-parallel training through accelerate; one process writes."
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
               "--dynamo_backend", "no", "--main_process_port", "0", "-m", "safetune.cli", "train", f"{trained}/data", "--model", f"{trained}/encoder",
               "--out", f"{tmp_path}/m", "--epochs", "1", "--lr", "1e-3"]
    done = subprocess.run(command, capture_output=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    assert {"config.json", "model.safetensors", "metrics.json"} <= {path.name for path in (tmp_path / "m").iterdir()}
    assert done.stdout.count(b"model, metrics.json and training.png are in") == 1


def test_screen_finds_cleans_and_tells(tmp_path):
    rows = [{"tokens": ["Rain", "in", "Rome", "."], "tags": ["O", "O", "B-LOC", "O"]},
            {"tokens": ["Mail", "amina@example.org", "<b>", "now"], "tags": ["O", "O", "O", "O"]}]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    (tmp_path / "data" / "test.jsonl").write_text(json.dumps({"tokens": ["Snow", "in", "Oslo"], "tags": ["O", "O", "B-LOC"]}) + "\n")
    done = run("screen", tmp_path / "data", "--out", tmp_path / "out", "--clean", "--removed", tmp_path / "removed.jsonl")
    assert done.returncode == 0, done.stderr.decode()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"findings.json", "findings.csv", "findings.html", "cleaned", "audit-log.jsonl"}
    kinds = [finding["kind"] for finding in json.loads((tmp_path / "out" / "findings.json").read_text())["findings"]]
    assert kinds.count("duplicate/exact") == 1 and kinds.count("personal/email") == 1
    written = {path: path.read_text() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert not any("amina" in text for text in written.values()) and "<b>" not in written[tmp_path / "out" / "findings.html"].split("<table", 1)[1]
    cleaned = [json.loads(line)["tokens"] for line in (tmp_path / "out" / "cleaned" / "train.jsonl").read_text().splitlines()]
    assert cleaned == [rows[0]["tokens"], ["Mail", "[EMAIL]", "<b>", "now"]]
    assert "amina" in (tmp_path / "removed.jsonl").read_text()
    strict = run("screen", tmp_path / "data", "--out", tmp_path / "again", "--strict", "--actions", "personal=keep")
    assert strict.returncode == int(b"high" in strict.stdout), strict.stderr.decode()


def test_screen_leakage_fails_a_strict_run(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text('{"text": "the same text", "label": "a"}\n')
    done = run("screen", "--train", tmp_path / "train.jsonl", "--test", tmp_path / "test.jsonl", "--out", tmp_path / "out", "--strict")
    assert done.returncode == 1 and b"leakage/exact" in done.stdout
    assert run("screen", tmp_path, "--out", tmp_path / "out").returncode == 0


def test_screen_reads_questions(tmp_path, capsys):
    from safetune.cli import main
    rows = [{"question": "Who left?", "context": "Ada left, says a@x.org", "answers": {"text": ["Ada"], "answer_start": [0]}}] * 2
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["screen", str(tmp_path / "qa.jsonl"), "--out", str(tmp_path / "out"), "--clean"]) == 0
    assert "duplicate/exact" in capsys.readouterr().out
    row, = map(json.loads, (tmp_path / "out" / "cleaned" / "train.jsonl").read_text().splitlines())
    assert row["context"] == "Ada left, says [EMAIL]" and row["answers"]["answer_start"] == [0]
    (tmp_path / "qa.jsonl").write_text(json.dumps(rows[0] | {"answers": {"text": ["Bo"], "answer_start": [0]}}) + "\n")
    assert main(["screen", str(tmp_path / "qa.jsonl"), "--out", str(tmp_path / "out")]) == 2
    assert "qa.jsonl, row 1: " in (said := capsys.readouterr().err) and len(said.strip().splitlines()) == 1


def test_screen_asks_models_and_a_reference(trained, tmp_path, capsys):
    "The models for names, toxicity and overlap, and the shares of groups, by their flags; in this process."
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer
    from safetune.cli import main
    for kind, labels, folder in ((AutoModelForSequenceClassification, ["fine", "hate"], "hate"), (AutoModelForTokenClassification, ["O", "B-PER"], "people")):
        model = kind.from_pretrained(trained / "encoder", id2label=dict(enumerate(labels)), label2id={name: i for i, name in enumerate(labels)})
        model.classifier.bias.data = model.classifier.bias.data.new_tensor([-50.0, 50.0])    # it calls all hateful, every word a person
        model.save_pretrained(tmp_path / folder)
        AutoTokenizer.from_pretrained(trained / "encoder").save_pretrained(tmp_path / folder)
    (tmp_path / "shares.tsv").write_text("column\tgroup\tshare\ngender\tother\t0.5\n")
    command = ["screen", str(trained / "data"), "--out", str(tmp_path / "out"), "--names", str(tmp_path / "people"), "--model", str(trained / "model"),
               "--toxicity", str(tmp_path / "hate"), "--representation", str(tmp_path / "shares.tsv")]
    assert main(command) == 2 and "the model has no label 'toxic'; say which mean harm; it has fine, hate" in capsys.readouterr().err
    assert main([*command, "--toxic-labels", "hate"]) == 0
    said = capsys.readouterr().out
    saved = json.loads((tmp_path / "out" / "findings.json").read_text())
    kinds = [finding["kind"] for finding in saved["findings"]]
    assert kinds.count("toxicity/model") == sum(saved["rows"].values()) and kinds.count("representation/gender") == 1
    assert kinds.count("personal/name") >= sum(saved["rows"].values())
    assert [result["name"].split(":")[0] for result in saved["results"]] == ["entities of validation", "entities of test"]
    assert "entities of test" in said and "share of test entities" in said


@pytest.mark.parametrize("arguments, message", [
    (["missing.jsonl", "--out", "o"], "is neither a file"),
    (["bad.jsonl", "--out", "o"], "bad.jsonl, row 2: the line is not a JSON object"),
    (["fine.jsonl", "--out", "o", "--actions", "personal=burn"], "the action for 'personal' is 'burn'"),
    (["fine.jsonl", "--out", "fine.jsonl/o"], "cannot be written"),
    (["fine.jsonl"], "required: --out"),
    (["empty.csv", "--out", "o", "--strict"], "empty.csv: there are no rows"),
])
def test_screen_tells_bad_input_in_one_line(tmp_path, arguments, message):
    (tmp_path / "bad.jsonl").write_text('{"text": "x", "label": "a"}\nnothing\n')
    (tmp_path / "fine.jsonl").write_text('{"text": "x", "label": "a"}\n')
    (tmp_path / "empty.csv").write_text("")
    done = run("screen", *arguments, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr.decode() and b"Traceback" not in done.stderr
    assert len(done.stderr.decode().strip().splitlines()) == 1


def test_audit_and_verify(trained, capsys):
    "Exit codes 0, 1 and 2, what is left in the folder, and a comparison; in this process, which has the libraries loaded."
    from safetune.cli import main

    def call(*command):
        code = main(["--quiet", *map(str, command)])
        return code, *capsys.readouterr()

    out, gates = trained / "audit", trained / "gates.toml"
    wanted = ("audit", trained / "model", trained / "data", "--gates", gates, "--only", "performance", "data/damage", "--out")
    code, _, err = call(*wanted, out)
    assert code == 2 and len(err.strip().splitlines()) == 1 and not out.exists()
    gates.write_text('[gates."performance/baseline"]\nmin = false\n[gates."data/damage"]\nmax = 0.9\n')
    code, _, err = call(*wanted, out)
    assert code == 0, err
    assert {path.name for path in out.iterdir() if path.name != ".checks"} == {
        "index.html", "audit.json", "README.md", "junit.xml", "counts.json", "manifest.json"}
    assert json.loads((out / "audit.json").read_text())["data"]["path"] == "../data"
    assert call("verify", out)[0] == 0
    gates.write_text('[gates."performance/score"]\nmin = 0.99\n')
    code, told, _ = call(*wanted, trained / "second", "--compare", out)
    assert code == 1 and "fail" in told and (trained / "second" / "comparison.html").exists()
    assert call("verify", trained / "second")[0] == 0
    (out / "index.html").write_text("all good")
    code, told, _ = call("verify", out)
    assert code == 1 and "changed: index.html" in told
    assert call("verify", trained / "data")[0] == 2
    code, _, err = call(*wanted, trained / "third", "--scorers", "beauty=lexicon")
    assert code == 2 and "there is no scorer beauty; use toxicity" in err and len(err.strip().splitlines()) == 1


def test_verify_says_what_it_did_not_compare(trained, capsys, monkeypatch):
    "Relative paths, files named one by one, another working folder, a report that went away by itself."
    from safetune.cli import main
    monkeypatch.chdir(trained)
    files = [part for split in ("train", "validation", "test") for part in (f"--{split}", f"data/{split}.jsonl")]
    assert main(["--quiet", "audit", "model", *files, "--out", "named", "--only", "data/damage"]) == 0
    (trained / "away" / "model").mkdir(parents=True)
    monkeypatch.chdir(trained / "away")
    capsys.readouterr()
    assert main(["verify", "../named"]) == 0
    assert "4 files" in (told := capsys.readouterr().out) and "data: 3 files" in told
    (trained / "away" / "far").mkdir()
    shutil.move(trained / "named", trained / "away" / "far" / "named")
    monkeypatch.chdir(trained / "away" / "far")
    assert main(["verify", "named"]) == 1 and "report unchanged; model and data NOT compared: pass --model and --data" in capsys.readouterr().out
    assert main(["verify", "named", "--report-only"]) == 0
    assert main(["verify", "named", "--model", "../../model", "--data", "../../data"]) == 0


@pytest.mark.parametrize("command", [["audit", "m", "d", "--out", "o"], ["train", "d", "--model", "m", "--out", "o"], ["evaluate", "m", "d"], ["demo"]])
def test_a_bad_seed_is_told_before_anything_is_done(command, capsys):
    from safetune.cli import main
    for seed in ("-1", "1.5", "x", str(2 ** 32), "9" * 5000):
        assert main([*command, "--seed", seed]) == 2
        told = capsys.readouterr().err
        assert "is no seed, give a whole number" in told and len(told.splitlines()) == 1 and len(told) < 300


def test_a_bad_key_is_told_before_the_audit(trained, capsys, monkeypatch):
    import safetune.audit
    from safetune.cli import main
    monkeypatch.setattr(safetune.audit, "audit", lambda *a, **k: pytest.fail("it ran"))
    (trained / "rubbish.pem").write_text("rubbish")
    code = main(["audit", str(trained / "model"), str(trained / "data"), "--out", str(trained / "unsigned"), "--sign", str(trained / "rubbish.pem")])
    assert code == 2 and "is no private key" in capsys.readouterr().err and not (trained / "unsigned").exists()


def test_a_stop_while_the_libraries_are_loaded_is_one_line(capsys, monkeypatch):
    import safetune.cli

    def stop(quiet):
        raise KeyboardInterrupt
    monkeypatch.setattr(safetune.cli, "set_up_logging", stop)
    assert safetune.cli.main(["evaluate", "m", "d"]) == 130
    assert capsys.readouterr().err == "safetune: stopped; train goes on with --resume, audit when called again\n"
