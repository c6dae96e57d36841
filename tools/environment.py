"""Makes the environments in which the Makefile's commands run. Standard library alone, since nothing else is installed yet.

    python tools/environment.py tested .venv --torch "torch==2.13.0"
    python tools/environment.py latest .venv-latest --like .venv
    python tools/environment.py oldest .venv-oldest --like .venv
    python tools/environment.py freeze .venv-latest

`tested` installs the versions of `constraints/pyXY.txt`, `latest` the newest that `pyproject.toml` allows, `oldest` its lower
bounds. The last two share the files of torch and its CUDA packages with the environment after `--like`, which chose that build.
`freeze` writes `constraints/pyXY.txt` from an environment whose tests have passed. Packages are installed with uv
where it is on the path, else with pip.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from datetime import date
from importlib.metadata import Distribution, distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CUDA = ("nvidia-", "cuda-", "triton")
APART = ("gpu", "mlflow", "trackio", "wandb")  # extras that need CUDA, or change versions that constraints/ holds; never in `dev`
OURS = ("sightline", "torch", "torchvision", "pip", "wheel")  # what no constraints file names
HEADER = """\
# Versions with which all tests and the demo passed on {date}: CPython {python}, Linux x86-64, torch {torch}.
# Every version that set-up installs, also of what dependencies depend on. torch and its CUDA packages are left out: set-up keeps
# the build that is there. `make test-latest` tests newer versions; `make constraints` then writes them here.
"""
# Without torchvision, transformers 5.17 has no image processors for some of the encoders.
OLDEST_WITHOUT_TORCHVISION = {"transformers": "5.18"}


def lower_bounds() -> dict[str, str]:
    """Lower bound of every dependency in `pyproject.toml`; without torch, which set-up chooses, and the extras `APART`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    lines = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    lines += [line for name, extra in project["project"]["optional-dependencies"].items() if name not in APART for line in extra]
    bounds = dict(re.findall(r"^([\w-]+)>=([\w.]+)", "\n".join(lines), re.MULTILINE))
    del bounds["torch"]
    return bounds


class Environment:
    """A virtual environment and the program that installs into it."""

    def __init__(self, path: Path, python: Path | str = sys.executable) -> None:
        self.path = path
        self.python = path / "bin" / "python"
        self.uv = shutil.which("uv")
        if not self.python.exists():
            make = [self.uv, "venv", "-q", "--seed", "--python", python] if self.uv else [python, "-m", "venv"]
            subprocess.run([*make, path], check=True)
        self.python_version = self._ask("'%d.%d' % sys.version_info[:2]")
        self.site = Path(self._ask("sysconfig.get_path('purelib')"))
        self.tested = ROOT / "constraints" / f"py{self.python_version.replace('.', '')}.txt"

    def _ask(self, expression: str) -> str:
        code = f"import sys, sysconfig; print({expression})"
        return subprocess.run([self.python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()

    def installed(self, name: str) -> Distribution | None:
        """A distribution of this environment, by its name."""
        found = distributions(name=name, path=[str(self.site)])
        return next(iter(found), None)

    def versions(self) -> dict[str, str]:
        """Versions by name of what is installed; without torch, its CUDA packages and Sightline."""
        found = {re.sub(r"[-_.]+", "-", each.name).lower(): each.version for each in distributions(path=[str(self.site)])}
        return {name: found[name] for name in sorted(found) if name not in OURS and not name.startswith(CUDA)}

    def install(self, *arguments: str, upgrade: bool = False) -> None:
        """Installs packages; what is there already stays unless `upgrade` is set or a constraint says otherwise."""
        if self.uv:
            command = [self.uv, "pip", "install", "-q", "--python", self.python, *(["--upgrade"] if upgrade else [])]
        else:
            newer = ["--upgrade", "--upgrade-strategy", "eager"] if upgrade else []
            command = [self.python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *newer]
        subprocess.run([*command, *arguments], check=True, cwd=ROOT)

    def share_torch(self, other: "Environment") -> None:
        """Links torch, torchvision where there is one, and their CUDA packages from another environment."""
        wanted, done = ["torch", "torchvision"], set()
        while wanted:
            name = wanted.pop()
            found = other.installed(name)
            if name in done or found is None:
                continue
            done.add(name)
            needed = {re.split(r"[^\w.-]", line)[0] for line in found.requires or [] if "extra ==" not in line}
            wanted += [line for line in needed if line.startswith(CUDA)]
            for file in found.files or []:
                if ".." not in file.parts and (other.site / file).exists():
                    link(other.site / file, self.site / file)


def link(source: Path, target: Path) -> None:
    """A second name of the same file; a copy where the file system has no hard links between the two."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def constraints_of(kind: str, environment: Environment) -> list[str]:
    """Versions that an environment of this kind may have, in the form of a constraints file."""
    if kind == "latest":
        return []
    if kind == "oldest":
        bounds = lower_bounds()
        if environment.installed("torchvision") is None:
            bounds.update(OLDEST_WITHOUT_TORCHVISION)
        return [f"{name}=={version}" for name, version in bounds.items()]
    path = environment.tested
    if not path.exists():
        print(f"{path.relative_to(ROOT)} does not exist: no versions were tested on this Python, the newest are installed")
        return []
    return [line for line in path.read_text("utf-8").splitlines() if not line.startswith("#")]


def freeze(environment: Environment) -> None:
    """Writes the constraints file of the environment's Python."""
    torch = environment.installed("torch")
    assert torch is not None
    header = HEADER.format(date=date.today(), python=environment.python_version, torch=torch.version.partition("+")[0])
    lines = [f"{name}=={version}\n" for name, version in environment.versions().items()]
    environment.tested.write_text(header + "".join(lines), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["tested", "latest", "oldest", "freeze"])
    parser.add_argument("path", type=Path)
    parser.add_argument("--torch", default="torch", help="what to install as torch where none is there")
    parser.add_argument("--like", type=Path, help="environment whose torch is shared")
    parser.add_argument("--extra", action="append", default=[], help="further packages")
    parser.add_argument("--extras", default="dev", help="extras of pyproject.toml, joined by commas")
    parser.add_argument("--free", action="append", default=[], help="a package whose version is not that of constraints/")
    asked = parser.parse_args()
    if asked.kind == "freeze":
        return freeze(Environment(asked.path))
    if asked.like is None:
        environment = Environment(asked.path)
        if environment.installed("torch") is None:
            tested = ["-c", str(environment.tested)] if environment.tested.exists() else []
            environment.install(*tested, asked.torch)
    else:
        other = Environment(asked.like)
        environment = Environment(asked.path, other.python)
        environment.share_torch(other)
    torch = environment.installed("torch")
    assert torch is not None
    constrained_by = [line for line in constraints_of(asked.kind, environment) if line.partition("==")[0] not in asked.free]
    lines = [*constrained_by, f"torch=={torch.version}"]  # no later package replaces this build
    versions = asked.path / "constraints.txt"
    versions.write_text("\n".join(lines) + "\n", "utf-8")
    constrained, upgrade = ("-c", str(versions.resolve())), asked.kind == "latest"
    # The build backend is one of the tested versions too, hence no isolated build with the newest.
    environment.install(*constrained, "setuptools", "torch", upgrade=upgrade)
    environment.install(*constrained, "--no-build-isolation", "-e", f".[{asked.extras}]", *asked.extra, upgrade=upgrade)
    if asked.kind == "tested" and len(lines) > 1:
        untested = [f"{name} {version}" for name, version in environment.versions().items() if f"{name}=={version}" not in lines]
        if untested:
            print(f"not in {environment.tested.relative_to(ROOT)}: {', '.join(untested)}")


if __name__ == "__main__":
    main()
