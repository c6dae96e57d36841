"""`python -m benchmarks NAME [--json] [options]`: runs one benchmark, or `all` of them, and prints ratios.

With `--json`, stdout is one object: `{name: {"low", "median", "high"}, ..., "machine": {...}}`. The exit code is 0 even if an aim
is missed. Runs on one thread unless `--threads` is given. `fuzz` is not
among `all` and has options of its own.
"""

import argparse
import importlib
import json
import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch loads

# Imported on use: each benchmark needs other packages.
BENCHMARKS = {
    "cal": "benchmarks.cal",
    "connectors": "benchmarks.connectors",
    "data": "benchmarks.data",
    "downloads": "benchmarks.downloads",
    "features": "benchmarks.features",
    "kill": "benchmarks.kill",
    "late_interaction": "benchmarks.late_interaction",
    "memory": "benchmarks.memory",
    "moe": "benchmarks.moe",
    "packing": "benchmarks.packing",
    "ranks": "benchmarks.ranks",
    "statistics": "benchmarks.statistics",
    "step": "benchmarks.step",
}


def main(arguments: list[str] | None = None) -> int:
    """Runs the chosen benchmarks; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["fuzz"]:
        from benchmarks import fuzz

        return fuzz.main(arguments[1:])
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=[*BENCHMARKS, "all", "fuzz"], help="benchmark to run; NAME --help shows its own options")
    name = parser.parse_args(arguments[:1]).name
    if name == "all":
        _common().parse_args(arguments[1:])  # accepts only the common options
        return _run(list(BENCHMARKS), arguments[1:])
    return _run([name], arguments[1:])


def _common() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks all")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of every comparison (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    return parser


def _run(chosen: list[str], arguments: list[str]) -> int:
    import torch

    from benchmarks.findings import Finding, print_table, say
    from benchmarks.measure import machine

    common = _common()
    found: list[Finding] = []
    for name in chosen:
        module = importlib.import_module(BENCHMARKS[name])
        about = (module.__doc__ or "").split("\n")[0]
        parser = argparse.ArgumentParser(prog=f"python -m benchmarks {name}", description=about, parents=[common], add_help=False)
        module.add_options(parser)
        options = parser.parse_args(arguments)
        torch.set_num_threads(options.threads)
        say(f"benchmark {name} ...")
        found += module.run(options)
    names = [finding.name for finding in found]
    if len(names) != len(set(names)):
        raise ValueError(f"two findings share a name: {sorted(names)}")
    if common.parse_known_args(arguments)[0].json:
        print(json.dumps({finding.name: finding.ratio.to_json() for finding in found} | {"machine": machine()}, indent=1))
    else:
        print_table(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
