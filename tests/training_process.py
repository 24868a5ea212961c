"""A training run in a process of its own, which can kill itself. Arguments: out folder, encoder, step to die at (0: never),
where to die ("step", or "save": while the checkpoint of that step is being written), and "fresh" or "resume"."""
import os
import signal
import sys

import torch
from transformers import TrainerCallback

import safetune.tuning as tuning
from safetune.sample import sample_ner

torch.set_num_threads(1)
out, encoder, kill_at, where, mode = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5]


class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if where == "step" and state.global_step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def die_while_saving(self, output_dir):
    "Weights and optimizer are written, random state and trainer state are not."
    if self.state.global_step >= kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return save_rng_state(self, output_dir)


save_rng_state = tuning.TaskTrainer._save_rng_state
if where == "save" and kill_at:
    tuning.TaskTrainer._save_rng_state = die_while_saving

tuner = tuning.Tuner(sample_ner(n=200, seed=0), encoder, out=f"{out}/checkpoints", progress=False)
make_trainer = tuner._trainer


def with_kill(*arguments):
    trainer = make_trainer(*arguments)
    trainer.add_callback(Kill())
    return trainer


tuner._trainer = with_kill
tuner.fit(resume=mode == "resume", epochs=2, lr=1e-3, batch_size=16, checkpoint_steps=4)
tuner.save(f"{out}/model")
