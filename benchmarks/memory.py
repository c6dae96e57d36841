"""Memory: the peak of preparing a dataset and of training on it, against that of four times as many records.

Each job runs in its own process, which reports its largest resident memory (including mapped files that were read). Images are
small, go into tar shards, and are not cached between steps; both sizes train for the same number of steps. Growth is reported in
bytes per record.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import material
from benchmarks.findings import Finding, fixed, say
from benchmarks.measure import Ratio

TIMES = 4
SIZE = (64, 48)
SHARD_BYTES = 4_000_000
STEPS = 8
MEANINGS = {
    "prepare": "`data prepare` into tar shards",
    "train_first": "training that creates the length table",
    "train": "training that finds the length table on disk",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the sizes of the datasets."""
    parser.add_argument(
        "--records",
        type=int,
        default=2000,
        help=f"records of the smaller dataset, five captions each (default 2000; {TIMES} times as many)",
    )


def run(options: argparse.Namespace) -> list[Finding]:
    """Measures a ratio and the bytes per record for each job."""
    peaks: dict[str, list[tuple[int, int]]] = {job: [] for job in MEANINGS}
    counts = options.records, TIMES * options.records
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as name:
        sources = [_source(Path(name) / f"source-{count}", count) for count in counts]
        for number in range(options.repeats):
            pairs = [_peaks(source, Path(name) / f"{source.name}-{number}") for source in sources]
            for job, found in peaks.items():
                found.append((pairs[0][job], pairs[1][job]))
                say(f"  {job}: {pairs[0][job] / 1e6:.1f} MB, {pairs[1][job] / 1e6:.1f} MB")
        out = _files_per_record(Path(name) / f"{sources[1].name}-0/set", counts[1])
    for job, found in peaks.items():
        growth = Ratio.of((large - small) / (counts[1] - counts[0]) for small, large in found)
        ratio = Ratio.of(large / small for small, large in found)
        out.append(
            Finding(f"{job}_memory_{TIMES}x", ratio, f"peak of {MEANINGS[job]}, {TIMES} times the records over one", at_most=1.1)
        )
        out.append(Finding(f"{job}_bytes_per_record", growth, "what the peak grows by, bytes a record"))
    return out


def _source(folder: Path, count: int) -> Path:
    material.write_records(folder, material.make_photos(folder, count, SIZE))
    return folder


def _peaks(source: Path, folder: Path) -> dict[str, int]:
    """Returns the peak of each job, in bytes; the second training uses the files that the first has written."""
    say(f"memory, {source.name}")
    folder.mkdir()
    jobs = {"prepare": ("prepare", source, folder / "set")}
    jobs |= {job: ("train", folder / "set", folder / job) for job in ("train_first", "train")}
    return {job: _peak_of(*words) for job, words in jobs.items()}


def _peak_of(*words: str | Path) -> int:
    command = [sys.executable, "-m", "benchmarks.memory", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return int(done.stdout.splitlines()[-1])


def _files_per_record(dataset: Path, count: int) -> list[Finding]:
    """Returns the sizes of the files with an entry per record: index and tokens are mapped, the length table is read completely."""
    files = {
        "index": ("`index.npy` and `images.npy`, mapped", [dataset / "index.npy", dataset / "images.npy"]),
        "lengths": ("the length table, in memory", sorted((dataset / ".cache").glob("lengths-*"))),
        "tokens": ("the tokens, mapped", sorted((dataset / ".cache").glob("tokens-*"))),
    }
    return [
        fixed(f"{name}_bytes_per_record", sum(file.stat().st_size for file in paths) / count, f"{meaning}, bytes a record")
        for name, (meaning, paths) in files.items()
    ]


# In its own process ---------------------------------------------------------------------------------------------------------------


def prepare_set(source: Path, out: Path) -> None:
    """Creates a dataset folder in tar shards; images are decoded in this process."""
    from sightline.data.prepare.run import PrepareOptions, prepare

    prepare(source, "records", PrepareOptions(out=out, workers=0, shards=SHARD_BYTES))


def train_some(dataset: Path, out: Path) -> None:
    """Trains for some steps of one row each, so that the model is small beside the data."""
    from sightline.assembly.train.run import train

    config = material.run_config(dataset, None, data={"keep_pixels": 0, "row_tokens": 512, "validation_split": None})
    few = config.train.model_copy(update={"steps": STEPS, "batch_size": 1, "checkpoint_every": 0, "evaluate_samples": 0})
    train(config.model_copy(update={"train": few}), out)


def peak() -> int:
    """Returns the largest resident memory of this process in bytes.

    Does not use `ru_maxrss` if the kernel gives a better value: it starts with the memory of the parent process.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    {"prepare": prepare_set, "train": train_some}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
    print(peak())
