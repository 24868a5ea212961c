"""The documentation and README.md, made from the notebooks without Quarto."""
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parents[1]
INDEX = ROOT / "nbs" / "index.ipynb"

needs_index = pytest.mark.skipif(not INDEX.exists(), reason="nbs/index.ipynb is not written yet")


@pytest.fixture(scope="module")
def readme():
    "The script that makes README.md, as a module."
    spec = importlib.util.spec_from_file_location("readme", ROOT / ".ci" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_complete(tmp_path):
    "Each notebook becomes a page and each public name stands on it (in a copy: the work tree stays as it is)."
    copy = tmp_path / "safetune"
    ignored = shutil.ignore_patterns(".git", ".venv", "_proc", "_docs", "__pycache__", "*.egg-info", "outputs")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=ignored)
    made = subprocess.run([sys.executable, "-W", "ignore", ".ci/build_docs.py"], cwd=copy, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, check=False)
    assert made.returncode == 0, made.stdout[-6000:]
    assert (copy / "_proc" / "_quarto.yml").read_bytes() == (ROOT / "_quarto.yml").read_bytes()
    notebooks = [path for path in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts]
    sidebar = (copy / "_proc" / "sidebar.yml").read_text()
    assert notebooks and all(path.name in sidebar for path in notebooks)


def test_one_quarto_file():
    link = ROOT / "nbs" / "_quarto.yml"
    assert link.is_symlink() and link.resolve() == ROOT / "_quarto.yml"
    site = yaml.safe_load(link.read_text())
    assert site["metadata-files"] == ["nbdev.yml", "sidebar.yml"], "nbdev writes the pages of the site to these"


def test_workflows_are_valid_yaml():
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        workflow = yaml.safe_load(path.read_text())
        assert workflow["permissions"], f"{path.name} asks for more rights than it needs"
        steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
        used = [step["uses"] for step in steps if "uses" in step]
        assert used and all(re.fullmatch(r"[\w.-]+/[\w./-]+@v\d+", name) for name in used), used


@needs_index
def test_readme_is_up_to_date(readme):
    text, figures = readme.make_readme(INDEX)
    assert (ROOT / "README.md").read_text(encoding="utf-8") == text, "run python .ci/readme.py"
    assert all((ROOT / path).read_bytes() == content for path, content in figures.items()), "run python .ci/readme.py"


@needs_index
def test_readme_leads_somewhere():
    "Every relative link is a file of the repository, and the two commands that CI takes from it are there."
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?![a-z]+:|#)([^)\s#]+)", text):
        assert (ROOT / target).exists(), f"README.md links to {target}, which does not exist"
    commands = re.findall(r"^(?:python3? -m )?pip install .*$", text, re.MULTILINE)
    assert any("pytest" in command for command in commands), "no line installs and runs the tests"
    assert any("safetune demo" in command for command in commands), "no line installs and runs the demo"


def test_readme_of_a_small_notebook(readme, tmp_path):
    "What the script leaves out, keeps and turns."
    figure = new_output("display_data", {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"})
    table = new_output("execute_result", {"text/html": "<style>x</style><table>", "text/plain": "   a\n0  1"})
    cells = [
        new_markdown_cell("# safetune\n\n> One line."),
        new_code_cell("#| hide\nimport sys"),
        new_markdown_cell("See ![plot](images/a.png), [losses](01_losses.ipynb), [web](https://x.y), [here](#top)."),
        new_markdown_cell("```bash\ncat [a](b)\n```"),
        new_code_cell("#| echo: false\nplot()", outputs=[figure]),
        new_code_cell("table()", outputs=[table]),
    ]
    (tmp_path / "nbs").mkdir()
    nbformat.write(new_notebook(cells=cells), tmp_path / "nbs" / "index.ipynb")
    text, figures = readme.make_readme(tmp_path / "nbs" / "index.ipynb", root=tmp_path)
    assert "import sys" not in text and "plot()" not in text and "#|" not in text and "<style>" not in text
    assert "![plot](nbs/images/a.png), [losses](nbs/01_losses.ipynb), [web](https://x.y), [here](#top)" in text
    assert "```bash\ncat [a](b)\n```" in text
    assert "```python\ntable()\n```" in text and "    0  1" in text
    assert list(figures) == ["nbs/images/index-1.png"] and "(nbs/images/index-1.png)" in text
