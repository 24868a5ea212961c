"""Cards: read back by the Hub's own classes, hostile records, and the upload to a stand-in on this machine."""
import base64
import inspect
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import DatasetCard, HfApi, ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from test_report import ATTACKS, check, hostile_record, record, result

from safetune.cards import data_card, eval_results, files_to_push, markdown, model_card, push_to_hub
from safetune.data import InputError


def test_model_card_reads_back():
    known = record()
    card = model_card(known, license="mit", language=["en", "de"])
    back = ModelCard(str(card))
    assert back.data.to_dict() == card.data.to_dict()
    index = back.data.to_dict()["model-index"]
    assert index[0]["name"] == "m" and {"task", "dataset", "metrics"} <= set(index[0]["results"][0])
    figures = {one.metric_type: one for one in back.data.eval_results}
    for line in known["checks"]:
        found = line["result"]
        if found and found["value"] is not None:
            one = figures[line["id"].removeprefix("performance/").replace("/", "_").replace("-", "_")]
            assert (one.metric_value, one.metric_args["low"], one.metric_args["high"], one.metric_args["n"],
                    one.metric_args["verdict"]) == (found["value"], found["low"], found["high"], found["n"], line["verdict"])
    assert figures["precision"].metric_args == {"low": 0.6, "high": 0.8, "n": 9} and figures["f1"].metric_args is None
    for words in ("Not ready to ship: 2 of 6 checks failed", "ab" * 32, "cd" * 32, "ValueError: broken", "Not all.",
                  "0.107 to 0.206", "## Intended use", "## Training data", "## Metrics", "## Limits"):
        assert words in back.text, words


def test_data_card_reads_back():
    card = data_card(record(), license="cc0-1.0")
    back = DatasetCard(str(card))
    assert back.data.to_dict() == card.data.to_dict()
    assert back.data.size_categories == ["n<1K"] and back.data.task_categories == ["token-classification"]
    assert "Check 0" in back.text and "Check 2" not in back.text and "cd" * 32 in back.text
    assert "did not look for personal data" in back.text


def test_names_of_the_hub_are_linked_and_others_only_named():
    data = {**record()["data"], "name": "owner/names"}
    card = model_card(record(data=data, model={"name": "m", "base": "org/base"}))
    assert card.data.datasets == ["owner/names"] and card.data.base_model == "org/base"
    assert card.data.eval_results[0].dataset_type == "owner/names"
    card = model_card(record(data={**data, "name": "/home/me/names"}, model={"base": "../base"}))
    assert card.data.datasets is None and card.data.base_model is None
    assert card.data.eval_results[0].dataset_type == "home_me_names"


def rendered(text):
    "Markdown as a liberal reader makes HTML of it: raw HTML, tables and bare addresses taken."
    from markdown_it import MarkdownIt
    reader = MarkdownIt("commonmark", {"html": True}).enable("table")
    return reader.render(text)


def test_hostile_record_is_only_text():
    for make in (model_card, data_card):
        card = make(hostile_record(), redact=False)
        assert type(card)(str(card)).data.to_dict() == card.data.to_dict()
        page = rendered(card.text)
        tags = set(re.findall(r"<([a-z0-9]+)", page.lower()))
        assert tags <= {"h1", "h2", "h3", "p", "ul", "li", "strong", "a", "table", "thead", "tbody", "tr", "th", "td"}, tags
        assert set(re.findall(r'href="([^"]*)"', page)) <= {"index.html"}
        assert not re.search(r"https?://|\u202e|\x00", card.text)
        headings = re.findall("^#+ .*", card.text, re.M)
        assert len(headings) == len(re.findall("<h[1-6]", page))


@given(st.one_of(st.text(max_size=80), st.sampled_from(ATTACKS)))
@settings(max_examples=40, deadline=None)
def test_any_text_stays_text(text):
    shown = markdown(text)
    assert "\n" not in shown
    for around in ("{}", "- {}", "| {} | b |\n|---|---|\n| {} | d |", "**a.** {}"):
        page = rendered(around.replace("{}", shown))
        assert not re.search(r"<(?!/?(p|ul|li|table|thead|tbody|tr|th|td|strong)\b)", page), page


@given(st.text(max_size=40))
@settings(max_examples=15, deadline=None)
def test_metadata_take_any_name(text):
    card = model_card(record(model={"name": text, "base": text}, data={"name": text, "audited": text},
                             checks=[check(0, "Data", "fail", result(), title=text)]), redact=False)
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()


def test_personal_data_stay_out():
    found = check(0, "Data", "fail", result(sentence="see anna.weber@web.de"), title="of anna.weber@web.de")
    for make in (model_card, data_card):
        assert "anna.weber" not in str(make(record(checks=[found]))) and "EMAIL" in str(make(record(checks=[found])))
        assert "anna.weber" in str(make(record(checks=[found]), redact=False))
    assert len(eval_results(record(checks=[found]))) == 3


def test_sparse_record():
    sparse = {"schema": "safetune-audit/1", "verdict": "pass", "model": {}, "data": {}, "checks": []}
    assert "measured no score" in str(model_card(sparse)) and "no check of the data" in str(data_card(sparse))
    with pytest.raises(InputError, match="record of an audit"):
        model_card({})


@pytest.fixture
def folder(tmp_path):
    "A folder with an audit, a card and weights."
    home = tmp_path / "model"
    home.mkdir()
    (home / "audit.json").write_text(json.dumps(record()))
    model_card(record()).save(home / "README.md")
    (home / "model.safetensors").write_bytes(bytes(range(256)))
    (home / "figures [1]").mkdir()
    (home / "figures [1]" / "a*.svg").write_text("<svg/>")
    return home


class Hub:
    "Takes what HfApi takes and writes it down."
    def __init__(self, private=True, error=None):
        self.private, self.error, self.created, self.pushed = private, error, None, None

    def create_repo(self, repo_id, *, token=None, private=None, repo_type=None, exist_ok=False):
        if self.error:
            raise self.error
        self.created = (repo_id, private, repo_type)
        return f"https://hub.test/{repo_id}"

    def repo_info(self, repo_id, *, repo_type=None, token=None):
        return self

    def upload_folder(self, *, repo_id, folder_path, commit_message=None, token=None, repo_type=None, allow_patterns=None):
        self.pushed = allow_patterns


@pytest.mark.parametrize("name", ["create_repo", "repo_info", "upload_folder"])
def test_stand_in_has_the_signatures_of_the_hub(name):
    real, mine = (inspect.signature(getattr(thing, name)).parameters for thing in (HfApi, Hub))
    assert set(mine) <= set(real)
    required = {key for key, one in real.items() if one.default is one.empty and one.kind not in (2, 4)}
    assert required <= set(mine)


def test_only_files_of_the_folder_go(folder, tmp_path):
    for name in (".env", ".git/config", "checkpoint-10/model.safetensors", "optimizer.pt", "weights.bin", "train.csv",
                 "sub/.secret/x", "deep/key.pem", "__pycache__/a.pyc"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("secret")
    hub = Hub()
    assert push_to_hub(folder, "me/m", api=hub) == "https://hub.test/me/m"
    assert hub.created == ("me/m", True, "model")
    assert hub.pushed == ["README.md", "audit.json", "figures [[]1]/a[*].svg", "model.safetensors"]
    assert "train.csv" in files_to_push(folder, rows=True)
    (tmp_path / "outside.txt").write_text("secret")
    for target in (tmp_path / "outside.txt", tmp_path, "/etc"):
        (folder / "link").symlink_to(target)
        with pytest.raises(InputError, match="leads out of the folder"):
            push_to_hub(folder, "me/m", api=hub)
        (folder / "link").unlink()
    (folder / "inside.json").symlink_to(folder / "audit.json")
    assert "inside.json" in files_to_push(folder)


def refused(match, folder, name="me/m", **options):
    hub = options.pop("api", None) or Hub()
    with pytest.raises(InputError, match=match) as error:
        push_to_hub(folder, name, api=hub, **options)
    assert "\n" not in str(error.value) and hub.pushed is None
    return str(error.value)


def test_refusals_are_one_line(folder, tmp_path):
    refused("no such folder", tmp_path / "nowhere")
    refused("no name of a repository", folder, "a/b/c")
    refused("no name of a repository", folder, "../etc")
    refused("type of repository", folder, repo_type="space")
    refused("everybody can see it", folder, api=Hub(private=False))
    line = refused("was not uploaded", folder, token="hf_abcdefghijkl",
                   api=Hub(error=RuntimeError("401: hf_abcdefghijkl is wrong\nTraceback")))
    assert "hf_abc" not in line and "[TOKEN]" in line and "Traceback" not in line
    (folder / "README.md").write_text("no metadata")
    refused("no usable card", folder)
    (folder / "README.md").write_text("---\na: [\n---\n")
    refused("no usable card", folder)
    model_card(record()).save(folder / "README.md")
    (folder / "audit.json").write_text(json.dumps(record(summary="call anna.weber@web.de")))
    refused("personal data", folder)
    (folder / "audit.json").write_text("{}")
    refused("not the record", folder)
    (folder / "audit.json").unlink()
    refused("holds no audit", folder)
    hub = Hub(private=False)
    (folder / "audit.json").write_text(json.dumps(record()))
    push_to_hub(folder, "me/m", api=hub, private=False)
    assert hub.pushed and hub.created[1] is False


@pytest.fixture
def server():
    "A small Hub on this machine: it creates, answers and takes commits as the real one does for small files."
    seen = {"files": {}, "created": [], "tokens": set()}

    class Handler(BaseHTTPRequestHandler):
        def answer(self, body, status=200):
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self):
            self.answer({"id": "me/m", "private": True, "tags": [], "siblings": [], "sha": "0" * 40})

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            seen["tokens"].add(self.headers.get("authorization"))
            if self.path == "/api/repos/create":
                seen["created"].append(json.loads(body))
                self.answer({"url": f"http://{self.headers['Host']}/me/m", "id": "me/m"})
            elif self.path == "/api/validate-yaml":
                seen["card"] = json.loads(body)["content"]
                self.answer({"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                paths = [one["path"] for one in json.loads(body)["files"]]
                self.answer({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                                       for path in paths]})
            elif "/commit/" in self.path:
                for line in map(json.loads, body.decode().splitlines()):
                    if line["key"] == "file":
                        seen["files"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                self.answer({"commitUrl": "https://huggingface.co/me/m/commit/" + "0" * 40, "commitOid": "0" * 40, "success": True})
            else:
                self.answer({"error": self.path}, 404)

        def log_message(self, *_): pass

    one = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=one.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{one.server_port}", seen
    one.shutdown()
    one.server_close()


def test_upload_to_a_server_with_the_real_client(folder, server, monkeypatch):
    from huggingface_hub import constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)    # its own protocol; the files are small
    address, seen = server
    (folder / ".env").write_text("secret")
    (folder / "optimizer.pt").write_text("secret")
    where = push_to_hub(folder, "me/m", token="hf_test", api=HfApi(endpoint=address))
    assert where == f"{address}/me/m"
    asked = seen["created"][0]    # newer clients say visibility, older ones private
    assert asked.get("visibility", "private" if asked.get("private") else "public") == "private"
    assert seen["tokens"] == {"Bearer hf_test"}
    assert set(seen["files"]) == {"README.md", "audit.json", "figures [1]/a*.svg", "model.safetensors"}
    for name, content in seen["files"].items():
        assert content == (folder / name).read_bytes(), name
    assert seen["card"] == (folder / "README.md").read_text()


def test_no_network_is_one_line(folder, monkeypatch):
    from huggingface_hub import constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="offline mode is enabled") as error:
        push_to_hub(folder, "me/m", token="hf_test", api=HfApi(endpoint="http://127.0.0.1:9"))
    assert "\n" not in str(error.value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(InputError, match="was not uploaded"):
        push_to_hub(folder, "me/m", token="hf_test", api=HfApi(endpoint="http://127.0.0.1:9"))
