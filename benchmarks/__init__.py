"""Benchmarks: `python -m benchmarks NAME`. Each compares two ways of one thing in one run and reports ratios, not times.

A benchmark is a module with two functions: `add_options(parser)` adds its own options, and `run(options)` returns the findings
(benchmarks/findings.py). What all share, `--json`, `--repeats` and `--threads`, stands in `benchmarks/__main__.py`. Without
arguments of its own every benchmark makes its own data.
"""
