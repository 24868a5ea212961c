"""Run one notebook as a test with nbdev's own machinery: `python tests/run_notebook.py nbs/01_losses.ipynb`.

Cells with a flag of `tst_flags` (settings.ini) are left out, unless named: `... --flags "slow hub"`.
Prints the seconds it took and exits 0, or prints the source of the cell that failed with its traceback and exits 1.
"""
import argparse
import contextlib
import io
import os
import re
import sys
from pathlib import Path


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


def main() -> int:  # exit code: 0 passed, 1 failed
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", type=lambda name: Path(name).resolve())
    parser.add_argument("--flags", default="", help="flags whose cells run as well, separated by spaces")
    args = parser.parse_args()

    os.chdir(args.notebook.parent)  # nbdev looks for settings.ini from the working folder upwards
    from nbdev.config import get_config
    from nbdev.test import test_nb

    config = get_config()
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        passed, seconds = test_nb(args.notebook, skip_flags=config.tst_flags.split(),
                                  force_flags=args.flags.split(), basepath=config.config_path)
    if passed:
        print(f"{args.notebook.name}: passed in {seconds:.1f} s")
        return 0
    report = errors.getvalue()
    print(f"{args.notebook.name}: failed in the cell\n\n{failed_cell(report, args.notebook)}\n\n{report}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
