"""Make the pages of the documentation in _proc/ and check them: `python .ci/build_docs.py [--html FOLDER]`.

`nbdev_docs` makes the pages and then calls Quarto, which it tries to install where it is missing. This takes nbdev's
own steps up to that point, so that pages can be made on a machine without Quarto. It also fails where nbdev only
prints: every notebook must become a page, and every public name of a module must be on the page of its notebook,
a function or class with its signature.

`--html` adds plain pages by nbconvert, to look at. The published site is made by Quarto (.github/workflows/docs.yml).
"""
import argparse
import ast
import json
import os
import re
import subprocess
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MADE_FROM = re.compile(r"File to edit: (?:\.\./)+nbs/(\S+\.ipynb)")


def make_pages(workers: int = 2,  # processes; each takes one notebook
              ) -> None:
    "nbdev's steps before Quarto."
    import nbdev.doclinks
    from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml
    from nbdev.serve import proc_nbs

    refresh_quarto_yml()
    nbdev.doclinks._build_modidx()
    nbdev_sidebar.__wrapped__()
    proc_nbs(force=True, n_workers=workers)


def public_names(module: ast.Module,                 # a parsed module
                ) -> tuple[list[str], set[str]]:     # names in __all__, and which of them are functions or classes
    "What a module offers."
    names = next((ast.literal_eval(node.value) for node in module.body
                  if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"), [])
    defined = {node.name for node in module.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))}
    return names, defined & set(names)


def page_text(page: Path,           # a processed notebook
             ) -> tuple[str, str]:  # all its text, and the part that show_doc wrote
    "The text of a page."
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    entries = "\n".join("".join(output.get("data", {}).get("text/markdown", "")) for output in outputs)
    return "\n".join("".join(cell["source"]) for cell in cells) + entries, entries


def problems() -> list[str]:  # one line each
    "Notebooks without a page and public names without an entry."
    found = []
    for notebook in sorted((ROOT / "nbs").rglob("*.ipynb")):
        name = notebook.relative_to(ROOT / "nbs")
        if not any(part.startswith((".", "_")) for part in name.parts) and not (ROOT / "_proc" / name).is_file():
            found.append(f"{name}: nbdev made no page of it; its error stands above")
    for path in sorted((ROOT / "safetune").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        made_from = MADE_FROM.search(text)
        if made_from is None or not (ROOT / "_proc" / made_from.group(1)).is_file():
            continue
        everything, entries = page_text(ROOT / "_proc" / made_from.group(1))
        names, defined = public_names(ast.parse(text))
        for name in names:
            if name in defined and not re.search(rf"^#+ {name}$", entries, re.MULTILINE):
                found.append(f"{made_from.group(1)}: {name} has no entry")
            elif not re.search(rf"\b{name}\b", everything):
                found.append(f"{made_from.group(1)}: {name} is public and nowhere on the page")
    return found


def main() -> int:  # exit code: 0 all pages are made and complete, 1 they are not
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--html", type=Path, help="also write plain HTML pages to this folder")
    args = parser.parse_args()

    html = args.html and args.html.resolve()
    os.chdir(ROOT)
    try:
        make_pages()
    except Exception:  # one notebook's failure; the report below names every page that is missing
        traceback.print_exc(limit=0)
    if html:
        pages = [str(page) for page in sorted((ROOT / "_proc").glob("*.ipynb"))]
        subprocess.run([sys.executable, "-m", "nbconvert", "--to", "html", "--output-dir", str(html), *pages], check=True)
    found = problems()
    print("\n".join(found) or "every public name is described")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
