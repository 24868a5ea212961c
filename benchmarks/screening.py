"""How fast duplicates and personal data are found: WNUT 2017 repeated to a million sentences.

    python benchmarks/screening.py run --data repeated varied distinct --rows 1000000 --workers 1
    python benchmarks/screening.py table

`repeated`: the 5,690 sentences again and again. `varied`: in every copy one word, drawn by chance, is replaced by
another word of the corpus, so that nearly all rows are distinct and most are near duplicates of another. `distinct`:
each word is drawn by chance from the corpus, as many as the sentence has. Rows are made on the fly and handed to `screen` as a stream. Each run is a process of its own: CPU seconds are those of all its
processes, and include the making of the rows (1 to 5 microseconds a row); memory is the peak of the main process and
of the largest worker. Results go to `benchmarks/screening.jsonl`; `table` prints them.

The data is read from ../shared/data/wnut17 or from $SAFETUNE_WNUT17, else from the Hub (`wnut_17`).
"""
import argparse
import json
import logging
import os
import platform
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "screening.jsonl"


class Rows:
    "A stream of rows made from sentences."
    def __init__(self, sentences, kind, number):
        self.sentences, self.kind, self.number = sentences, kind, number

    def __iter__(self):
        rng, n = random.Random(0), len(self.sentences)
        every = [word for words in self.sentences for word in words]
        for i in range(self.number):
            words = self.sentences[i % n]
            if self.kind == "varied":
                words = list(words)
                words[rng.randrange(len(words))] = rng.choice(every)
            elif self.kind == "distinct":
                words = rng.choices(every, k=len(words))
            yield {"tokens": words, "tags": ["O"] * len(words)}


def measure(kind, number, workers, passes):
    "One run in this process."
    from safetune.data import load_data
    from safetune.personal import PersonalData
    from safetune.screening import Duplicates, Scanned, screen
    logging.disable()
    folder = Path(os.environ.get("SAFETUNE_WNUT17", HERE.parent.parent / "shared" / "data" / "wnut17"))
    sentences = [tokens for part in load_data(folder if folder.is_dir() else "wnut_17").values() for tokens in part["tokens"]]
    make = {"duplicates": Duplicates, "personal": lambda: Scanned(PersonalData(), anywhere=True)}
    usage = lambda who: (lambda u: u.ru_utime + u.ru_stime)(resource.getrusage(who))
    before, start = usage(resource.RUSAGE_SELF), time.time()
    found = screen({"train": Rows(sentences, kind, number)}, [make[name]() for name in passes], workers=workers)
    seconds = usage(resource.RUSAGE_SELF) - before + usage(resource.RUSAGE_CHILDREN)
    peak = [resource.getrusage(who).ru_maxrss / 2**20 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {"data": kind, "rows": number, "passes": passes, "workers": workers, "cpu_seconds": round(seconds, 1), "cpu_seconds_workers": round(usage(resource.RUSAGE_CHILDREN), 1), "wall_seconds": round(time.time() - start, 1),
            "rows_per_second_a_core": round(number / seconds), "peak_gib_main": round(peak[0], 2), "peak_gib_worker": round(peak[1], 2) if workers > 1 else None,
            "findings": {k: sum(f.kind == k for f in found) for k in sorted({f.kind for f in found})}, "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
            f"load {os.getloadavg()[0]:.1f}", "python": platform.python_version()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "one", "table"))
    parser.add_argument("--data", nargs="+", default=["repeated", "varied", "distinct"])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--passes", nargs="+", default=["duplicates", "personal"])
    arguments = parser.parse_args()
    if arguments.what == "one":
        print(json.dumps(measure(arguments.data[0], arguments.rows, arguments.workers, arguments.passes)))
    elif arguments.what == "run":
        for kind in arguments.data:    # a fresh process each, so that the peak of memory is its own
            done = subprocess.run([sys.executable, __file__, "one", "--data", kind, "--rows", str(arguments.rows), "--workers", str(arguments.workers),
                                   "--passes", *arguments.passes], stdout=subprocess.PIPE, check=True, text=True)
            with open(RESULTS, "a") as file:
                file.write(done.stdout.strip().splitlines()[-1] + "\n")
            print(done.stdout.strip().splitlines()[-1])
    else:
        print("| data | rows | passes | workers | rows a second and core | CPU s | peak GiB, main | findings | machine |\n|---|---|---|---|---|---|---|---|---|")
        for line in map(json.loads, open(RESULTS)):
            print(f"| {line['data']} | {line['rows']:,} | {', '.join(line['passes'])} | {line['workers']} | {line['rows_per_second_a_core']:,} | {line['cpu_seconds']:,} | "
                  f"{line['peak_gib_main']} | {', '.join(f'{k} {n:,}' for k, n in line['findings'].items())} | {line['machine']} |")


if __name__ == "__main__":
    main()
