"""Integrated gradients over WNUT 2017: batched over sentences, steps and targets, against captum one target at a time.

    python benchmarks/explain.py MODEL [--sentences 1000] [--captum 1000] [--steps 32] [--against each] [--precision full|mixed]

Every entity that the model finds is explained as one thing (the joint log-probability of its tags), with `--against each`
once against every other type and against no entity; without it, once by itself. Sentences without an entity are passed
over. Captum's `IntegratedGradients` is called for one target of one sentence, all steps in one batch, without padding.
`--captum N` measures captum on the first N of the sentences after a shuffle (seed 0), and safetune on the same N, for
the ratio. Both sides run in this process, taking turns in three rounds, in one precision; the seconds are process time
on a CPU (other programs do not count) and wall time on a GPU. Captum runs in the same precision. One line is appended to `benchmarks/results.jsonl`.

MODEL is a model fine-tuned on WNUT17. The data is read from $SAFETUNE_WNUT17 or ../shared/data/wnut17.
"""
import argparse
import json
import os
import platform
import random
import time
from pathlib import Path

import captum
import numpy as np
import torch
import transformers
from captum.attr import IntegratedGradients

from safetune.data import load_data
from safetune.explain import Explainer, targets_of
from safetune.predict import Predictor

HERE = Path(__file__).parent


def seconds(function):
    "What a call gives, and how long it took."
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    start = clock()
    answer = function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return answer, clock() - start


def by_captum(explainer, rows, targets, steps):
    "Scores of the pieces, one array a target, by captum, example by example."
    found = []
    for subject in explainer.subjects(rows, targets):
        for target, places in zip(subject.targets, subject.places):
            one = type(subject)(subject.number, subject.row, subject.words, subject.word_at, subject.feature, [target], [places])
            embeds, baseline, rest, weights, _ = explainer.inputs([one])
            names = list(rest)
            forward = lambda point, w, *others: explainer.outputs(point, dict(zip(names, others)), w)[:, 0]
            slope = IntegratedGradients(forward).attribute(embeds, baseline, n_steps=steps,
                                                           additional_forward_args=(weights, *rest.values()))
            found.append(slope.sum(-1)[0].detach().cpu().numpy())
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--sentences", type=int, default=1000)
    parser.add_argument("--captum", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--against", default=None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=("full", "mixed"), default="full")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    options = parser.parse_args()
    folder = os.environ.get("SAFETUNE_WNUT17", HERE.parent.parent / "shared" / "data" / "wnut17")
    data = load_data(folder, on_error="repair")
    rows = [row for split in ("test", "validation", "train") for row in data[split]]
    random.Random(0).shuffle(rows)
    predictor = Predictor(options.model)
    explainer = Explainer(predictor, precision=options.precision, batch_tokens=options.batch_tokens)
    kept, targets = [], []
    for start in range(0, len(rows), 200):      # no more sentences are read than are needed
        found = targets_of(predictor, rows[start:start + 200], options.against)
        kept += [row for row, own in zip(rows[start:start + 200], found) if own]
        targets += [own for own in found if own]
        if len(kept) >= options.sentences:
            break
    kept, targets = kept[:options.sentences], targets[:options.sentences]
    ours = lambda n: explainer.explain(kept[:n], "integrated gradients", targets[:n], steps=options.steps)
    few = min(options.captum, len(kept))
    explainer.explain(kept[:2], targets=targets[:2], steps=2)       # warm up
    rounds = []
    for _ in range(options.rounds):
        mine, own = seconds(lambda: ours(few))
        theirs, other = seconds(lambda: by_captum(explainer, kept[:few], targets[:few], options.steps))
        rounds.append((own, other))
    by_target = {(e.row, e.target): e.piece_scores for e in mine}
    order = [(subject.number, target) for subject in explainer.subjects(kept[:few], targets[:few]) for target in subject.targets]
    gap = max(float(np.abs(by_target[key] - scores).max()) for key, scores in zip(order, theirs))
    whole = seconds(lambda: ours(len(kept)))[1] if len(kept) > few else None
    entry = {"kind": "explain", "model": predictor.model.config.name_or_path and Path(predictor.model.config.name_or_path).name,
             "parameters": sum(p.numel() for p in predictor.model.parameters()), "against": options.against, "steps": options.steps,
             "precision": options.precision,
             "sentences": few, "targets": len(order), "safetune_seconds": [round(a, 2) for a, _ in rounds],
             "captum_seconds": [round(b, 2) for _, b in rounds], "ratio": round(float(np.median([b / a for a, b in rounds])), 2),
             "largest_difference": gap, "all_sentences": len(kept), "all_seconds": whole and round(whole, 2),
             "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
             "threads": torch.get_num_threads(), "torch": torch.__version__, "transformers": transformers.__version__,
             "captum": captum.__version__}
    with (HERE / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
    print(json.dumps(entry))


if __name__ == "__main__":
    main()
