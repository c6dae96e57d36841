"""`python -m benchmarks fuzz`: reads changed files with every reader and reports whatever is not an error of Sightline.

    python -m benchmarks fuzz --inputs 20000 --reader coco
    python -m benchmarks fuzz --hours 8 --save escapes --json

Inputs are numbered: input N of a reader is the same in every run (`--first N --inputs 1` repeats it). Each reader runs in a
child, so that a crash of the process is an escape like any other. With `--hours` all readers take turns.
"""

import argparse
import json
import multiprocessing
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PART = 5000  # inputs of one child
ROUND = 500  # inputs of a reader before it is the next one's turn, with --hours
NO_ANSWER = 60.0  # seconds after which a child is ended: something other than Python code runs without end


def main(arguments: list[str]) -> int:
    """Runs the fuzzer; returns 1 where something escaped."""
    from benchmarks.fuzz.readers import READERS

    parser = argparse.ArgumentParser(prog="python -m benchmarks fuzz", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--reader", action="append", choices=sorted(READERS), help="only this reader; may be given again")
    parser.add_argument("--inputs", type=int, help="changed files per reader (default 20000 for text, 5000 for others)")
    parser.add_argument("--hours", type=float, help="let the readers take turns for so long")
    parser.add_argument("--first", type=int, default=0, help="number of the first input (default 0)")
    parser.add_argument("--save", type=Path, help="folder for the smallest input of each kind of escape")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    options = parser.parse_args(arguments)
    chosen = options.reader or list(READERS)
    until = None if options.hours is None else time.monotonic() + options.hours * 3600
    found: dict[str, dict[str, Any]] = {}
    first = options.first
    while True:
        for name in chosen:
            asked = options.inputs or (20_000 if READERS[name].is_text else 5_000)
            for begin in range(first, first + (ROUND if until else asked), PART):
                part = _in_child(name, begin, min(PART, first + asked - begin), options.save)
                found[name] = part if name not in found else _joined(found[name], part)
            print(_line(found[name]), file=sys.stderr, flush=True)
        first += ROUND
        if until is None or time.monotonic() > until:
            break
    escapes = sum(len(outcome["escapes"]) for outcome in found.values())
    if options.json:
        print(json.dumps({"readers": list(found.values()), "kinds_of_escapes": escapes}, indent=1))
    return 1 if escapes else 0


def _child(name: str, first: int, inputs: int, save: Path | None, pipe: Connection, at: Any) -> None:
    from benchmarks.fuzz.run import fuzz

    pipe.send(fuzz(name, first, inputs, save, at).to_json())


def _in_child(name: str, first: int, inputs: int, save: Path | None) -> dict[str, Any]:
    """Runs inputs in a child; one that ends or stops answering is an escape, and the inputs after it run in another child."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    at = multiprocessing.RawValue("q", first - 1)
    process = multiprocessing.get_context("fork").Process(target=_child, args=(name, first, inputs, save, theirs, at))
    begin = time.monotonic()
    process.start()
    theirs.close()
    seen, since = at.value, time.monotonic()
    while not ours.poll(1.0):
        if at.value != seen:
            seen, since = at.value, time.monotonic()
        elif time.monotonic() - since > NO_ANSWER:
            process.kill()
            break
    try:
        found = ours.recv()
    except EOFError:
        process.join()
        if at.value < first:
            raise SystemExit(f"{name}: the child ended before its first input ({process.exitcode})") from None
        found = {"reader": name, "inputs": at.value - first + 1, "seconds": time.monotonic() - begin, "refused": 0}
        kind = "no answer" if process.exitcode == -signal.SIGKILL else f"the process ended ({process.exitcode})"
        found |= {"per_second": 0.0, "escapes": [{"kind": kind, "count": 1, "seed": at.value, "bytes": -1, "saved": ""}]}
        if (rest := first + inputs - 1 - at.value) > 0:
            found = _joined(found, _in_child(name, at.value + 1, rest, save))
    process.join()
    return found


def _joined(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Adds up two outcomes of one reader; of each kind of escape the smaller input is kept."""
    kinds = {escape["kind"]: dict(escape) for escape in one["escapes"]}
    for escape in other["escapes"]:
        known = kinds.setdefault(escape["kind"], {**escape, "count": 0})
        count = known["count"] + escape["count"]
        kinds[escape["kind"]] = {**min(known, escape, key=lambda item: item["bytes"]), "count": count}
    joined = {key: one[key] + other[key] for key in ("inputs", "seconds", "refused")}
    rate = round(joined["inputs"] / joined["seconds"], 1) if joined["seconds"] else 0.0
    return {
        "reader": one["reader"],
        **joined,
        "seconds": round(joined["seconds"], 1),
        "per_second": rate,
        "escapes": list(kinds.values()),
    }


def _line(outcome: dict[str, Any]) -> str:
    kinds = "".join(f"\n    {escape['count']} x {escape['kind']} (input {escape['seed']})" for escape in outcome["escapes"])
    count = sum(escape["count"] for escape in outcome["escapes"])
    return (
        f"{outcome['reader']:20} {outcome['inputs']:7} inputs {outcome['per_second']:8.1f} /s {outcome['refused']:7} refused "
        f"{count:5} escapes{kinds}"
    )
