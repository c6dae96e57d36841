"""Python that pages under docs/ show, as files."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def python_of(page: str) -> str:
    """The one block of Python of a page."""
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text("utf-8"), re.DOTALL)
    return code


def write_python(page: str, file: Path) -> Path:
    """Writes the page's block of Python to a file."""
    file.write_text(python_of(page), "utf-8")
    return file
