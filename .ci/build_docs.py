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
import multiprocessing
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
MADE_FROM = re.compile(r"File to edit: (?:\.\./)+nbs/(\S+\.ipynb)")


def make_page(notebook: Path,  # what is processed
              page: Path,      # where the page goes
             ) -> None:
    """One page. To write the entries, nbdev runs the cells that are exported and every other cell with an import in it.
    Examples import things too, and need what earlier examples made, so here only pure imports are run."""
    from nbdev import processors, serve_drv

    warnings.filterwarnings("ignore", message="Found cells containing imports and other code")
    asked = processors._do_eval

    def needed(cell) -> bool:
        if not asked(cell):
            return False
        pure = all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(cell.source).body)
        return bool(pure or cell.directives_.keys() & {"export", "exports", "exporti", "exec_doc"}
                    or re.search(r"^show_doc\(", cell.source, re.MULTILINE))

    with mock.patch.object(processors, "_do_eval", needed):
        serve_drv.main((notebook, page, processors.FilterDefaults))


def page_in_child(notebook: Path, page: Path, sender) -> None:
    "Make a page and send what went wrong, or nothing."
    try:
        make_page(notebook, page)
        sender.send("")
    except BaseException:    # a cell may raise anything
        sender.send(traceback.format_exc())


def each_by_itself(function: Callable,  # nbdev's worker, which `make_page` calls
                   jobs: list[tuple],   # its arguments: notebook, page, processors
                   n_workers: int,      # processes at a time
                   **_,
                  ) -> None:
    "Takes the place of fastcore's `parallel`, which ends at the first failure: here the other pages are still made."
    def work(job: tuple) -> None:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=page_in_child, args=(job[0], job[1], sender))
        process.start()
        sender.close()
        try:
            trouble = receiver.recv()
        except EOFError:
            trouble = "its process ended without a word"
        process.join()
        if trouble:
            causes = re.findall(r"^\w*(?:Error|Exception|Interrupt)\b.*(?:\n\S.*)*", trouble, re.MULTILINE)
            print(f"{job[0].name}: " + "\n".join(causes or [trouble]) + "\n", file=sys.stderr)

    context = multiprocessing.get_context("forkserver")    # what all pages import is imported once
    context.set_forkserver_preload(["torch", "transformers", "datasets", "pandas", "matplotlib.pyplot", "scipy.stats",
                                    "sklearn.linear_model", "nbdev.serve_drv", "IPython"])
    with ThreadPool(n_workers) as pool:
        pool.map(work, jobs, chunksize=1)


def make_pages(workers: int = 2,  # processes; each takes one notebook
              ) -> None:
    "nbdev's steps before Quarto, and Quarto's spelling of Mermaid blocks, which Jupyter and GitHub do not know."
    import nbdev.doclinks
    from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml
    from nbdev.serve import proc_nbs

    refresh_quarto_yml()
    nbdev.doclinks._build_modidx()
    nbdev_sidebar.__wrapped__()
    with mock.patch("nbdev.serve.parallel", each_by_itself):
        proc_nbs(force=True, n_workers=workers)
    for page in (ROOT / "_proc").rglob("*.ipynb"):
        text = page.read_text(encoding="utf-8")
        page.write_text(text.replace('"```mermaid\\n', '"```{mermaid}\\n'), encoding="utf-8")


def write_html(folder: Path,  # where the pages go
              ) -> None:
    "Plain pages by nbconvert."
    import nbformat
    from nbconvert import HTMLExporter

    folder.mkdir(parents=True, exist_ok=True)
    for page in sorted((ROOT / "_proc").rglob("*.ipynb")):
        book = json.loads(page.read_text(encoding="utf-8"))
        for cell in book["cells"]:
            cell.pop("has_sd", None)  # nbdev's mark, which the format does not know
        html, _ = HTMLExporter().from_notebook_node(nbformat.reads(json.dumps(book), as_version=4))
        (folder / page.with_suffix(".html").name).write_text(html, encoding="utf-8")


def public_names(module: ast.Module,  # a parsed module
                ) -> set[str]:        # the functions and classes in its __all__
    "What a module defines for others; a constant has no signature to show."
    names = next((ast.literal_eval(node.value) for node in module.body
                  if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"), [])
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return set(names) & {node.name for node in module.body if isinstance(node, kinds)}


def page_entries(page: Path,  # a processed notebook
                ) -> str:     # Markdown
    "What show_doc wrote on a page."
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return "\n".join("".join(output.get("data", {}).get("text/markdown", "")) for output in outputs)


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
        entries = page_entries(ROOT / "_proc" / made_from.group(1))
        for name in sorted(public_names(ast.parse(text))):
            if not re.search(rf"^#+ {name}$", entries, re.MULTILINE):
                found.append(f"{made_from.group(1)}: {name} has no entry")
    return found


def main() -> int:  # exit code: 0 all pages are made and complete, 1 they are not
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--html", type=Path, help="also write plain HTML pages to this folder")
    args = parser.parse_args()

    html = args.html and args.html.resolve()
    os.chdir(ROOT)
    make_pages()
    if html:
        write_html(html)
    found = problems()
    print("\n".join(found) or "every public name is described")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
