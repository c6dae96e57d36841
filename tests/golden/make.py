"""Makes the golden run, its data set and feature store, and what is expected of every later version that opens them.

    python -m tests.golden.make OUT

The command line alone is used, in processes of their own, on one thread. The files that are kept here were made by commit 9ff6862;
they are made anew only when results are meant to change.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

HOME = Path(__file__).parent
DATA, FEATURES, RUN, SETTINGS, STORED_SETTINGS, EXPECTED = (
    "data",
    "features",
    "run",
    "settings.yaml",
    "stored.yaml",
    "expected.json",
)
FILES = (DATA, FEATURES, RUN, SETTINGS, STORED_SETTINGS)
SCENES = "- --format scenes --count 56 --size 32 --seed 5 --level 1 --split held=0.25 --workers 0"
EVALUATION = "--task caption --data data --split held --batch-size 4 --max-new-tokens 24 --resamples 50 --threads 1"
# What is evaluated of a run, by name: further options of `eval`.
VIEWS: Mapping[str, Sequence[str]] = {
    "seeing": [],
    "blind": ["--control", "blind"],
    "stored": ["--features", "features"],
}
# Stage `full` trains everything, `align` the connector alone against stored logits of the text without images.
STAGE_STEPS = {"full": 360, "align": 24}
STOPPED_AT = 370
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
COMPARED = ("step", "loss", "grad_norm", "tokens", "supervised")  # keys of metrics.jsonl

_TRAIN = {
    "batch_size": 4,
    "lr": 4e-3,
    "weight_decay": 0.01,
    "warmup": 10,
    "checkpoint_every": 0,
    "evaluate_every": 18,
    "evaluate_samples": 4,
    "generate_samples": 1,
}
RUN_SETTINGS: dict[str, Any] = {
    "model": {
        "vision": {
            "config": {
                "model_type": "convnext",
                "image_size": 32,
                "patch_size": 4,
                "num_stages": 2,
                "hidden_sizes": [12, 24],
                "depths": [1, 1],
                "layer_scale_init_value": 0.0,
            }
        },
        "connector": {"kind": "mlp", "shuffle": 2, "hidden": 48},
        "language": {
            "config": {
                "model_type": "llama",
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "max_position_embeddings": 128,
                "tie_word_embeddings": True,
            },
            "tokenizer": {"vocabulary": 300},
        },
    },
    "data": {
        "path": DATA,
        "max_tokens": 64,
        "row_tokens": 128,
        "captions": "first",
        "validation_split": "held",
        "max_skipped": 0.0,
    },
    "train": _TRAIN,
    "stages": [
        {
            "name": "full",
            "parts": {"vision": "train", "connector": "train", "language": "train"},
            "train": {"steps": STAGE_STEPS["full"], "evaluate_every": 0},
        },
        {
            "name": "align",
            "parts": {"vision": "frozen", "connector": "train", "language": "frozen"},
            "objective": {"kind": "cal"},
            "train": {"steps": STAGE_STEPS["align"], "lr": 1e-3},
        },
    ],
    "runtime": {"device": "cpu", "threads": 1},
}


def stored_settings() -> dict[str, Any]:
    """A short run that begins with the weights of the golden run's first stage and reads the feature store."""
    stage = {"name": "align", "parts": {"vision": "frozen", "connector": "train", "language": 1e-3}, "train": {"steps": 6}}
    return RUN_SETTINGS | {"data": RUN_SETTINGS["data"] | {"features": FEATURES}, "stages": [stage], "init": f"{RUN}@full"}


def make(out: Path) -> dict[str, Any]:
    """Makes all golden files in `out`, which must be empty or missing, and returns what is written to `expected.json`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / SETTINGS).write_text(json.dumps(RUN_SETTINGS, indent=1) + "\n")
    (out / STORED_SETTINGS).write_text(json.dumps(stored_settings(), indent=1) + "\n")
    command(out, ["data", "prepare", *SCENES.split(), "--out", DATA])
    train = ["train", "--config", SETTINGS, "--out"]
    whole = command(out, [*train, "whole"])
    command(out, [*train, RUN], faults=f"step.end=term@{STOPPED_AT}", code=75)
    command(out, ["data", "features", DATA, "--run", RUN, "--out", FEATURES])
    stopped = {view: evaluated(out, RUN, view) for view in VIEWS if view != "stored"}
    stopped["stored"] = evaluated(out, RUN, "stored", "scratch")
    shutil.copytree(out / RUN, out / "again")
    resumed = command(out, [*train, "again"])
    if resumed["weights_sha256"] != whole["weights_sha256"]:
        raise SystemExit("the resumed run ends with other weights than the run that was not stopped")
    from_store = command(out, ["train", "--config", STORED_SETTINGS, "--out", "from_store"])
    expected = {
        "facts": facts(),
        "stopped": stopped,
        "finished": of_run(out, "whole", whole) | {"seeing": evaluated(out, "again", "seeing", "scratch/seeing")},
        "from_store": of_run(out, "from_store", from_store),
    }
    for name in ("whole", "again", "from_store", "scratch"):
        shutil.rmtree(out / name)
    (out / EXPECTED).write_text(json.dumps(expected, indent=1) + "\n")
    return expected


def command(folder: Path, arguments: Sequence[str], faults: str = "", code: int = 0) -> dict[str, Any]:
    """Runs `sightline` in a folder and returns its JSON; ends the program when the exit code is not `code`."""
    environment = os.environ | ENVIRONMENT | {"SIGHTLINE_FAULTS": faults}
    environment["PYTHONPATH"] = os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path if entry)
    words = [sys.executable, "-m", "sightline", *arguments, "--json"]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode != code:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stderr}")
    return {} if code else json.loads(done.stdout)


def run_in(arguments: Sequence[str]) -> None:
    """Runs `sightline` in this process, in the folder that comes first."""
    from sightline.cli import main

    os.chdir(arguments[0])
    main(list(arguments[1:]))


def evaluation(run: str, view: str, out: str | None = None) -> list[str]:
    """Arguments of `sightline` that evaluate a run."""
    return ["eval", run, *EVALUATION.split(), *VIEWS[view], *(["--out", out] if out else [])]


def evaluated(folder: Path, run: str, view: str, out: str | None = None) -> dict[str, Any]:
    """Scores and predictions of a run, from a new process."""
    return of_evaluation(folder, command(folder, evaluation(run, view, out)))


# What is compared -----------------------------------------------------------------------------------------------------------------


def of_evaluation(folder: Path, told: Mapping[str, Any]) -> dict[str, Any]:
    """What is compared of an evaluation, from what `eval --json` printed."""
    lines = read_lines(folder / told["folder"] / "predictions.jsonl")
    return {"scores": told["scores"], "ok": told["ok"], "predictions": {line["id"]: line["text"] for line in lines}}


def of_run(folder: Path, run: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """What is compared of a run, from what `train --json` printed: hash and norms of its weights, and the end of its log."""
    lines = read_lines(folder / run / "metrics.jsonl")
    return {
        "step": told["step"],
        "weights_sha256": told["weights_sha256"],
        "norms": norms(folder / told["checkpoint"] / "model"),
        "last_steps": [[line[key] for key in COMPARED] for line in lines if "loss" in line][-6:],
    }


def norms(model: Path) -> dict[str, float]:
    """The norm of every weight of a model folder, in double precision."""
    from safetensors.torch import load_file

    weights = {name: value for file in sorted(model.glob("*.safetensors")) for name, value in load_file(file).items()}
    return {name: float(value.double().norm()) for name, value in sorted(weights.items())}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def facts() -> dict[str, str]:
    """What the last bits of sums may depend on: versions of packages, and the kind of processor."""
    import torch

    packages = ("numpy", "pillow", "safetensors", "tokenizers", "torch", "transformers")
    known = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    vendor = next((line.split(":")[1].strip() for line in known.splitlines() if line.startswith("vendor_id")), "")
    machine = {"machine": platform.machine(), "vendor": vendor, "instructions": torch.backends.cpu.get_cpu_capability()}
    return {name: version(name) for name in packages} | machine


if __name__ == "__main__":
    make(Path(sys.argv[1]))
