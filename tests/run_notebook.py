"""Run one notebook as a test with nbdev's own machinery: `python tests/run_notebook.py nbs/01_losses.ipynb`.

Cells with a flag of `tst_flags` (settings.ini) are left out, unless named: `... --flags "slow hub"`.
Prints the seconds it took and exits 0, or prints the source of the cell that failed with its traceback and exits 1.
"""
import argparse
import contextlib
import io
import multiprocessing
import os
import re
import sys
import traceback
from pathlib import Path

# What most notebooks import; imported once by the process from which a process for each notebook is forked.
SHARED_IMPORTS = ["torch", "transformers", "transformers.trainer", "datasets", "pandas", "matplotlib.pyplot", "scipy.stats",
                  "sklearn.linear_model", "nbdev.test", "nbdev.showdoc", "IPython", "fastcore.test", "tqdm.auto"]


def failed_cell(report: str,      # what nbdev wrote about the failure
                notebook: Path,   # the notebook it ran
               ) -> str:          # the source of the cell that failed, or a note that it is not known
    "nbdev names the failing cell by its number only; this finds its text."
    number = re.search(r"While Executing Cell #(\d+):", report)
    if number is None:
        return "(nbdev did not say which cell)"
    from nbdev.frontmatter import FrontmatterProc
    from nbdev.process import NBProcessor
    cells = NBProcessor(notebook, procs=FrontmatterProc, process=True).nb.cells  # numbered as nbdev numbers them
    return cells[int(number.group(1)) - 1].source


def run(notebook: Path,     # an absolute path
        flags: list[str],   # whose cells run as well
       ) -> tuple:          # (did it pass, what there is to say)
    "Run a notebook in this process; changes the working folder."
    os.chdir(notebook.parent)  # nbdev looks for settings.ini from the working folder upwards
    from nbdev.config import get_config
    from nbdev.test import test_nb

    config = get_config()
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        passed, seconds = test_nb(notebook, skip_flags=config.tst_flags.split(),
                                  force_flags=flags, basepath=config.config_path)
    if passed:
        return True, f"{notebook.name}: passed in {seconds:.1f} s"
    report = errors.getvalue()
    return False, f"{notebook.name}: failed in the cell\n\n{failed_cell(report, notebook)}\n\n{report}"


def run_in_child(notebook: Path, log: Path, sender) -> None:
    "Run a notebook in a process of its own, in a group of its own; all that it prints goes to `log`."
    os.setsid()
    # A notebook is nobody's worker: transformers' collators, for one, ask for the number of a worker in any other process.
    multiprocessing.current_process().name = "MainProcess"
    with open(log, "wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    try:
        sender.send(run(notebook, []))
    except BaseException:    # a cell may raise anything
        sender.send((False, traceback.format_exc()))


def main() -> int:  # exit code: 0 passed, 1 failed
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", type=lambda name: Path(name).resolve())
    parser.add_argument("--flags", default="", help="flags whose cells run as well, separated by spaces")
    args = parser.parse_args()
    passed, told = run(args.notebook, args.flags.split())
    print(told)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
