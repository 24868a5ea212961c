"""Make README.md from nbs/index.ipynb: `python .ci/readme.py` (`--check` compares and writes nothing).

nbdev does this with Quarto; this does it with nbconvert, so that it runs everywhere. Hidden cells and nbdev's
directives are left out, and links are turned from the notebook's folder to that of README.md:

- A picture is a PNG under nbs/images/, in the notebook `![what it shows](images/name.png)`. Jupyter and the
  documentation find it there; README.md says `nbs/images/name.png`, which GitHub shows on every branch and fork.
  For PyPI, setup.py makes the addresses absolute.
- A figure which a cell draws is written to nbs/images/index-N.png, N counting from 1.
- A link to a notebook, such as `01_losses.ipynb`, becomes `nbs/01_losses.ipynb`.
"""
import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).resolve().parents[1]
NOTE = "<!-- Made from nbs/index.ipynb by .ci/readme.py: edit the notebook. -->"
DIRECTIVE = re.compile(r"^#\|\s*([\w-]+):?\s*(.*)$\n?", re.MULTILINE)
RELATIVE_LINK = re.compile(r"""(\]\(|<img\b[^>]*?\bsrc=["'])(?![a-z][a-z0-9+.-]*:|[#/])([^)"'\s]+)""")
FENCED_CODE = re.compile(r"(^```.*?^```\s*?$)", re.MULTILINE | re.DOTALL)


def outside_code(text: str,                     # Markdown
                 change: Callable[[str], str],  # what to do with the text around code
                ) -> str:                       # the text, changed everywhere but in fenced code
    "Code is shown as it is."
    return "".join(part if part.startswith("```") else change(part) for part in FENCED_CODE.split(text))


def to_root(text: str,       # Markdown as it stands in the notebook
            folder: str,     # the notebook's folder, seen from the root
           ) -> str:         # Markdown as it stands in README.md
    "Relative links count from the root; Mermaid blocks are named as GitHub names them."
    text = text.replace("```{mermaid}", "```mermaid")
    return outside_code(text, lambda part: RELATIVE_LINK.sub(
        lambda link: link.group(1) + os.path.normpath(os.path.join(folder, link.group(2))), part))


def shown(cell: nbformat.NotebookNode,              # a cell of the notebook
         ) -> nbformat.NotebookNode | None:         # the cell as README.md shows it
    "What nbdev's directives leave of a cell."
    directives = dict(DIRECTIVE.findall(cell.source)) if cell.cell_type == "code" else {}
    if cell.cell_type == "raw" or "hide" in directives or directives.get("include") == "false":
        return None
    if cell.cell_type == "code":
        cell.source = DIRECTIVE.sub("", cell.source)
        if directives.get("echo") == "false":
            cell.metadata["transient"] = {"remove_source": True}
        if directives.get("output") == "false":
            cell.outputs = []
    return cell


def make_readme(notebook: Path,                    # the notebook that is the front page
                root: Path = ROOT,                 # where README.md stands
               ) -> tuple[str, dict[str, bytes]]:  # the text, and the figures by their path from the root
    "README.md and the pictures that go with it."
    folder = notebook.parent.relative_to(root).as_posix()
    book = nbformat.read(notebook, as_version=4)
    book.cells = [cell for cell in map(shown, book.cells) if cell is not None]
    book.metadata["language_info"] = {"name": "python"}
    for cell in book.cells:
        if cell.cell_type == "markdown":
            cell.source = to_root(cell.source, folder)
    # GitHub shows the style sheet of a data frame's HTML as text, so a table is shown as it prints.
    kinds = ["text/markdown", "image/png", "image/svg+xml", "text/plain"]
    exporter = MarkdownExporter(config=Config(NbConvertBase={"display_data_priority": kinds}))
    text, resources = exporter.from_notebook_node(book)
    figures = {}
    for number, (name, content) in enumerate(resources["outputs"].items(), start=1):
        path = f"{folder}/images/{notebook.stem}-{number}{Path(name).suffix}"
        text = text.replace(f"![png]({name})", f"![figure]({path})").replace(f"({name})", f"({path})")
        figures[path] = content
    text = outside_code(text, lambda part: re.sub(r"\n([ \t]*\n){2,}", "\n\n", part))
    return f"{NOTE}\n\n{text.strip()}\n", figures


def main() -> int:  # exit code: 0 up to date or written, 1 out of date
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if anything is out of date")
    args = parser.parse_args()

    text, figures = make_readme(ROOT / "nbs" / "index.ipynb")
    wanted = {"README.md": text.encode("utf-8"), **figures}
    stale = [name for name, content in wanted.items()
             if not (ROOT / name).is_file() or (ROOT / name).read_bytes() != content]
    if args.check:
        print(f"out of date: {', '.join(stale)}; run python .ci/readme.py" if stale else "README.md is up to date")
        return 1 if stale else 0
    for name in stale:
        (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / name).write_bytes(wanted[name])
    return 0


if __name__ == "__main__":
    sys.exit(main())
