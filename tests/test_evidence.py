"""Evidence: every change to a report, its model or its data is named, and no manifest makes us read other places."""
import json
import os
import shutil
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safetune.data import InputError
from safetune.evidence import (MANIFEST, SIGNATURE, apart_from_data, hash_rows, model_files, new_key, now, read_manifest, record_schema, source_files,
                               hash_files, total_hash, validate_record, verify, write_manifest)

ROWS = {"train": [{"id": "1", "text": "ä", "label": "a"}], "test": [{"id": "2", "text": "b", "label": "b"}]}


@pytest.fixture
def report(tmp_path):
    "A report with a model and data beside it, and its record."
    for folder, names in {"model": ("model.safetensors", "config.json", "tokenizer.json"), "data": ("train.jsonl", "test.jsonl"),
                          "audit": ("index.html", "audit.json", "figures/a.svg")}.items():
        for name in names:
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{folder}/{name}".encode() * 50)
    hashes = hash_files(tmp_path / "model", model_files(tmp_path / "model"))
    record = {"created": now(), "verdict": "pass", "model": {"path": str(tmp_path / "model"), "sha256": total_hash(hashes)},
              "data": {"path": str(tmp_path / "data"), "sha256": {split: hash_rows(rows) for split, rows in ROWS.items()}}}
    write_manifest(tmp_path / "audit", record, hashes)
    return tmp_path, record, hashes


def test_untouched(report):
    folder, record, _ = report
    found = verify(folder / "audit")
    assert found.ok and found.signature == "none" and len(found.sha256) == 64
    (folder / "audit" / ".checks").mkdir()
    (folder / "audit" / ".checks" / "x.json").write_text("{}")     # working files are no part of the report
    (folder / "model" / "training.png").write_text("")             # nor are curves part of a model
    assert verify(folder / "audit").ok


@pytest.mark.parametrize("name, named", [
    ("audit/index.html", "index.html"), ("audit/figures/a.svg", "figures/a.svg"), ("model/model.safetensors", "model/model.safetensors"),
    ("model/tokenizer.json", "model/tokenizer.json"), ("data/test.jsonl", "data/test.jsonl")])
def test_each_change_is_named(report, name, named):
    path = report[0] / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"!")
    found = verify(report[0] / "audit")
    assert (found.changed, found.missing, found.added) == ([named], [], []) and not found.ok
    path.unlink()
    assert verify(report[0] / "audit").missing == [named]
    path.write_bytes(content)
    assert verify(report[0] / "audit").ok
    extra = path.with_name(("validation" if "data" in name else "extra") + path.suffix)    # a file that would be read
    extra.write_bytes(content)
    assert verify(report[0] / "audit").added == [named.replace(path.name, extra.name)]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_flipped_bit_of_any_file_is_found(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("bits")
    names = ["index.html", "audit.json"]
    for name in names:
        (folder / name).write_bytes(bytes(range(64)))
    record = {"created": now(), "verdict": "pass", "model": {"path": None, "sha256": None}, "data": {"path": None, "sha256": {}}}
    write_manifest(folder, record)
    name = data.draw(st.sampled_from(names))
    content = bytearray((folder / name).read_bytes())
    content[data.draw(st.integers(0, 63))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / name).write_bytes(content)
    assert verify(folder).changed == [name]


def test_rows_and_places_that_are_given(report, tmp_path):
    from datasets import Dataset, DatasetDict
    folder, *_ = report
    data = DatasetDict({split: Dataset.from_list(rows) for split, rows in ROWS.items()})
    assert verify(folder / "audit", data=data).ok
    other = DatasetDict({**data, "test": Dataset.from_list([{"id": "2", "text": "c", "label": "b"}])})
    assert verify(folder / "audit", data=other).changed == ["data/test"]
    assert verify(folder / "audit", data=DatasetDict(train=data["train"])).missing == ["data/test"]
    shutil.move(folder / "model", folder / "moved")
    found = verify(folder / "audit")
    assert found.unchanged and not found.ok and list(found.uncompared) == ["model"]
    assert str(found).endswith("audit: report unchanged; model NOT compared: pass --model, or --report-only")
    assert verify(folder / "audit", report_only=True).ok
    assert verify(folder / "audit", model=folder / "moved").ok
    with pytest.raises(InputError):
        verify(folder / "audit", model=folder / "nowhere")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "a\0b"])
def test_a_manifest_cannot_name_other_places(report, name):
    folder = report[0] / "audit"
    manifest = json.loads((folder / MANIFEST).read_text())
    for table in (manifest["files"], manifest["model"]["files"], manifest["data"]["files"]):
        table[name] = {"sha256": "0" * 64, "bytes": 1}
        (folder / MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(InputError, match="outside"):
            verify(folder)
        del table[name]


@settings(max_examples=150, deadline=None)
@given(st.recursive(st.one_of(st.none(), st.integers(), st.text(max_size=4)), lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["schema", "files", "model", "data", "sha256", "path"]), inner, max_size=5)), max_leaves=12))
def test_any_manifest_is_read_or_refused_in_a_line(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("any")
    if isinstance(content, dict):
        content["schema"] = "safetune-manifest/1"
    (folder / MANIFEST).write_text(json.dumps(content))
    try:
        read_manifest(folder)
    except InputError as error:
        assert "\n" not in str(error)


def test_signature(report):
    folder, record, hashes = report
    public = new_key(folder / "key.pem")
    write_manifest(folder / "audit", record, hashes, key=folder / "key.pem")
    for key in (None, public, public.upper(), folder / "key.pem.pub"):
        assert verify(folder / "audit", key=key).signature == "good"
    other = new_key(folder / "other.pem")
    found = verify(folder / "audit", key=other)
    assert found.signature == "bad" and not found.ok
    write_manifest(folder / "audit", record, hashes)                     # a new manifest takes the old signature away
    assert not (folder / "audit" / SIGNATURE).exists()
    assert not verify(folder / "audit", key=public).ok
    for text in ("", "{}", "[]", '{"public_key": "zz", "signature": ""}', '{"public_key": 3, "signature": 4}'):
        (folder / "audit" / SIGNATURE).write_text(text)
        assert verify(folder / "audit").signature == "bad"


def test_other_programs_can_check_the_signature(report):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder, record, hashes = report
    made = subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", folder / "k.pem"], capture_output=True)
    assert made.returncode == 0, made.stderr
    subprocess.run(["openssl", "pkey", "-in", folder / "k.pem", "-pubout", "-out", folder / "k.pub"], check=True, capture_output=True)
    write_manifest(folder / "audit", record, hashes, key=folder / "k.pem")
    assert verify(folder / "audit", key=folder / "k.pub").signature == "good"
    told = json.loads((folder / "audit" / SIGNATURE).read_text())
    (folder / "sig").write_bytes(bytes.fromhex(told["signature"]))
    done = subprocess.run(["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", folder / "k.pub", "-rawin", "-in",
                           folder / "audit" / MANIFEST, "-sigfile", folder / "sig"], capture_output=True, text=True)
    assert "Verified Successfully" in done.stdout + done.stderr


def test_bad_keys_are_one_line(report, monkeypatch):
    folder, record, hashes = report
    (folder / "rubbish.pem").write_text("rubbish")
    for key in (folder / "rubbish.pem", folder / "none.pem"):
        with pytest.raises(InputError):
            write_manifest(folder / "audit", record, hashes, key=key)
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                                                serialization.NoEncryption())
    (folder / "ec.pem").write_bytes(pem)
    with pytest.raises(InputError, match="Ed25519"):
        write_manifest(folder / "audit", record, hashes, key=folder / "ec.pem")
    assert verify(folder / "audit").ok                                   # nothing was written
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    with pytest.raises(InputError, match=r"pip install safetune\[sign\]"):
        write_manifest(folder / "audit", record, hashes, key=folder / "k.pem")


def test_hashes_of_rows_depend_on_everything_but_the_order_of_columns():
    rows = [{"a": 1, "b": ["x", "y"]}, {"a": 2, "b": []}]
    assert hash_rows(rows) == hash_rows([dict(reversed(row.items())) for row in rows])
    for other in ([{"a": 1, "b": ["x", "z"]}, rows[1]], rows[::-1], rows[:1], [{"a": "1", "b": ["x", "y"]}, rows[1]]):
        assert hash_rows(other) != hash_rows(rows)


def test_schema_refuses_what_is_wrong():
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(record_schema())
    with pytest.raises(InputError, match="audit.json: verdict"):
        validate_record({"schema": "safetune-audit/1", "created": now(), "verdict": "great", "summary": "", "task": "ner", "thorough": False,
                         "seconds": 1, "seed": 0, "confidence": 0.95, "model": {"name": "", "path": None, "base": None, "sha256": None,
                         "parameters": None, "labels": [], "metrics": {}}, "data": {"name": "", "splits": {}, "sha256": {}, "audited": "test",
                         "columns": [], "metadata": []}, "versions": {}, "settings": {}, "checks": []})


def test_source_files_of_one_file_and_of_a_folder(report):
    folder = report[0] / "data"
    assert set(source_files(folder)) == {"train.jsonl", "test.jsonl"} and set(source_files(folder / "test.jsonl")) == {"test.jsonl"}
    (folder / "notes.txt").write_text("no data"), (folder / "deeper").mkdir(), (folder / "deeper" / "test.jsonl").write_text("")
    assert set(source_files(folder)) == {"train.jsonl", "test.jsonl"}    # what `load_data` reads


def test_from_any_folder_and_after_a_common_move(report, monkeypatch):
    "Paths are told as seen from the report: neither another working folder nor a model of the same name in it matters."
    folder, record, hashes = report
    monkeypatch.chdir(folder)
    near = {**record, "model": {**record["model"], "path": "model"}, "data": {**record["data"], "path": "data"}}
    write_manifest(folder / "audit", near, hashes)
    manifest = json.loads((folder / "audit" / MANIFEST).read_text())
    assert (manifest["model"]["path"], manifest["data"]["path"]) == ("../model", "../data") and str(folder) not in json.dumps(manifest)
    (folder / "elsewhere" / "model").mkdir(parents=True), (folder / "elsewhere" / "model" / "config.json").write_text("{}")
    monkeypatch.chdir(folder / "elsewhere")
    for way in ("../audit", folder / "audit"):
        found = verify(way)
        assert found.ok and not found.uncompared and sum("compared" in note for note in found.notes) == 2
    os.symlink(folder / "audit", folder / "elsewhere" / "link")
    assert verify("link").ok
    moved = folder / "far" / "away"
    for name in ("model", "data", "audit"):
        shutil.copytree(folder / name, moved / name)
    assert verify(moved / "audit").ok
    (folder / "model" / "config.json").write_text("other")             # of the first place
    assert verify(moved / "audit").ok and not verify(folder / "audit").ok


def test_a_link_to_the_model_may_be_set_to_another(report):
    folder, record, hashes = report
    os.symlink(folder / "model", folder / "current")
    write_manifest(folder / "audit", {**record, "model": {**record["model"], "path": folder / "current"}}, hashes)
    assert verify(folder / "audit").ok
    shutil.copytree(folder / "model", folder / "newer")
    (folder / "newer" / "config.json").write_text("other")
    (folder / "current").unlink(), os.symlink(folder / "newer", folder / "current")
    assert verify(folder / "audit").changed == ["model/config.json"]


def test_files_that_were_named_one_by_one(report):
    folder, record, hashes = report
    (folder / "data" / "more").mkdir()
    shutil.move(folder / "data" / "test.jsonl", folder / "data" / "more" / "rows.jsonl")
    named = {"train": str(folder / "data" / "train.jsonl"), "test": str(folder / "data" / "more" / "rows.jsonl")}
    write_manifest(folder / "audit", {**record, "data": {**record["data"], "path": None, "files": named}}, hashes)
    assert verify(folder / "audit").ok
    (folder / "data" / "validation.jsonl").write_text("{}")             # was not named
    assert verify(folder / "audit").ok
    shutil.copytree(folder / "data", folder / "copy")
    (folder / "data" / "more" / "rows.jsonl").write_text("other")
    assert verify(folder / "audit").changed == ["data/more/rows.jsonl"] and verify(folder / "audit", data=folder / "copy").ok


def test_an_audit_in_the_folder_of_its_model_or_its_data(report):
    folder, record, hashes = report
    for name in ("model", "data", "data/audit"):
        home = folder / name
        home.mkdir(exist_ok=True)
        for file in ("audit.json", "counts.json", "comparison.json", "index.html"):
            (home / file).write_text("{}")
        write_manifest(home, record, hashes)
        found = verify(home)
        assert found.ok, found
        assert hash_files(folder / "model", model_files(folder / "model")) == hashes
        assert set(source_files(folder / "data")) == {"train.jsonl", "test.jsonl"}


def test_where_every_file_is_data_there_is_no_room_for_an_audit(tmp_path):
    (tmp_path / "data" / "en").mkdir(parents=True), (tmp_path / "data" / "en" / "train.jsonl").write_text("{}")
    apart_from_data(tmp_path / "audit", tmp_path / "data")
    for out in ("data", "data/audit", "data/en/x"):
        with pytest.raises(InputError, match="lies in the folder of the data"):
            apart_from_data(tmp_path / out, str(tmp_path / "data"))
    (tmp_path / "data" / "test.jsonl").write_text("{}")                 # now only the files of splits are read
    for source in (tmp_path / "data", None, {"train": "x"}, "glue"):
        apart_from_data(tmp_path / "data" / "audit", source)


def test_rows_are_read_as_the_audit_read_them(report):
    "Data in another format are compared by their rows, with the options of the audit."
    folder, record, hashes = report
    write_manifest(folder / "audit", {**record, "data": {**record["data"], "reading": {"columns": {"text": "body", "label": "stars"}}}}, hashes)
    (folder / "csv").mkdir()
    for split, rows in ROWS.items():
        (folder / "csv" / f"{split}.csv").write_text("id,body,stars\n" + "".join(f"{r['id']},{r['text']},{r['label']}\n" for r in rows))
    found = verify(folder / "audit", data=folder / "csv")
    assert found.ok and "data: rows of train, test compared" in found.notes, found
    (folder / "csv" / "test.csv").write_text("id,body,stars\n2,c,b\n")
    assert verify(folder / "audit", data=folder / "csv").changed == ["data/test"]
