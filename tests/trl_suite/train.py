"""Trains a model folder with TRL's SFTTrainer and its own collator: `train.py FOLDER OUT messages|completion`.

Imports nothing of Sightline, so that it also runs where that is not installed.
"""

import math
import sys
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig, SFTTrainer

STEPS = 2


def records(form: str) -> list[dict[str, Any]]:
    """Conversations about an image each: all turns in `messages`, or the answer apart from the question."""
    found = []
    for number in range(4):
        image = Image.fromarray(np.random.default_rng(number).integers(0, 256, (30, 40, 3), np.uint8))
        ask, answer = [{"role": "user", "content": "What is this?"}], [{"role": "assistant", "content": f"Number {number}."}]
        turns = {"messages": ask + answer} if form == "messages" else {"prompt": ask, "completion": answer}
        found.append({"images": [image], **turns})
    return found


def train(folder: str, out: str, form: str) -> None:
    """Trains a few steps and saves."""
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
    options = SFTConfig(
        out,
        max_steps=STEPS,
        save_steps=STEPS,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        use_cpu=True,
        bf16=False,
        report_to=[],
        max_length=None,
    )
    trainer = SFTTrainer(model, options, train_dataset=Dataset.from_list(records(form)), processing_class=processor)
    result = trainer.train()
    assert math.isfinite(result.training_loss), result
    assert type(trainer.data_collator).__module__.startswith("trl."), trainer.data_collator
    sys.stdout.write(f"{type(model).__module__}\n")


if __name__ == "__main__":
    train(*sys.argv[1:])
