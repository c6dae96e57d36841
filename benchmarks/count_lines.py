"""Counts lines of code without docstrings, comments and blank lines.

python benchmarks/count_lines.py [FOLDER ...]      # src/sightline by default; one line per package and the total
"""

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

_NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def count_lines(text: str) -> int:
    """Counts the lines of a Python file that hold code. A string that is a statement of its own is a docstring, not code."""
    prose: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            prose.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - prose)


def main(folders: list[str]) -> None:
    """Prints the count of each package below the folders, and the total."""
    counts: Counter[str] = Counter()
    for folder in map(Path, folders or ["src/sightline"]):
        for path in sorted(folder.rglob("*.py")):
            counts[str(folder / path.relative_to(folder).parts[0])] += count_lines(path.read_text("utf-8"))
    for name, lines in counts.items():
        print(f"{lines:7,}  {name}")
    print(f"{counts.total():7,}  in all")


if __name__ == "__main__":
    main(sys.argv[1:])
