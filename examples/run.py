"""Runs the code of a notebook from top to bottom, without Jupyter: `python -m examples.run examples/mixture.ipynb`."""

import json
import sys
from pathlib import Path
from typing import Any


def run(notebook: Path) -> dict[str, Any]:
    """Runs all code cells in one namespace, which it returns."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(json.loads(notebook.read_text("utf-8"))["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{notebook.name}[{number}]", "exec"), names)
    return names


if __name__ == "__main__":
    for name in sys.argv[1:]:
        run(Path(name))
