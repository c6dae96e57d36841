"""Benchmarks: `python -m benchmarks NAME`. Each compares two implementations in one run and reports ratios, not times.

A benchmark is a module with two functions: `add_options(parser)` adds its own options, and `run(options)` returns the findings
(benchmarks/findings.py). The common options `--json`, `--repeats` and `--threads` are in `benchmarks/__main__.py`. Without options
every benchmark creates its own data.
"""
