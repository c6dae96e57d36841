"""Gathers the wheels that Sightline needs beside torch on a machine with a GPU and without a package index.

    python tools/gpu_wheels.py build/gpu-wheels

They are those of CPython 3.12 on Linux x86-64, in the versions of constraints/py312.txt. `benchmarks/gpu.sh` installs them.
"""

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 64 * 2**20  # bytes, with the code
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
OF_GPU = ("cut-cross-entropy==25.1.1",)  # the extra "gpu", which no tested environment has
THERE = ("torch", "setuptools", "scipy")  # what brings torch, and what no part imports
TESTS = ("beartype", "pytest")  # what tests of a GPU need


def needed(name: str) -> set[str]:
    """Names of all packages that one needs, itself left out, as the tested environment has them."""
    found: set[str] = set()
    todo = [name]
    while todo:
        try:
            lines = requires(todo.pop()) or []
        except PackageNotFoundError:  # for another platform
            continue
        for line in lines:
            other = re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", line)[0]).lower()
            if "extra ==" not in line and other not in found | set(THERE) and not other.startswith(("nvidia-", "cuda-", "triton")):
                found.add(other)
                todo.append(other)
    return found


def main(folder: str) -> None:
    tested = (ROOT / "constraints" / "py312.txt").read_text("utf-8")
    versions = dict(re.findall(r"^([\w.-]+)==(\S+)$", tested, re.MULTILINE))
    names = needed("sightline").union(TESTS, *map(needed, TESTS))
    wanted = [f"{name}=={versions[name]}" for name in sorted(names) if name in versions] + [*OF_GPU]
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    options = ["--no-deps", "--only-binary=:all:", "--python-version", "3.12", *platforms, "-q", "-d", folder]
    subprocess.run([sys.executable, "-m", "pip", "download", "--disable-pip-version-check", *options, *wanted], check=True)
    size = sum(file.stat().st_size for file in Path(folder).glob("*.whl"))
    print(f"{len(wanted)} wheels, {size / 2**20:.1f} MiB")
    if size > LIMIT:
        sys.exit(f"{folder}: more than {LIMIT // 2**20} MiB")


if __name__ == "__main__":
    main(sys.argv[1])
