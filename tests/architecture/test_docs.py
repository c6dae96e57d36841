"""Pages of the documentation: tables that render, links that lead to files, and code that exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SEPARATOR = re.compile(r"\|(?: *:?-+:? *\|)+ *")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
CODE_PATH = re.compile(r"(?<![\w/.])((?:src|benchmarks|studies|tools|examples)/[\w./-]*[\w/])")
MODULE = re.compile(r"(?<![\w./-])sightline(?:\.[A-Za-z_]\w*)+")
ENTRY_POINTS = {f"sightline.{group}" for group in ("connectors", "objectives", "tasks", "tilings")}  # docs/plugins.md


def lines_of(text: str) -> list[str]:
    """The lines of a page, those of fenced code blocks blanked."""
    out, fenced = [], False
    for line in text.split("\n"):
        fence = line.startswith("```")
        out.append("" if fenced or fence else line)
        fenced ^= fence
    return out


def broken_tables(text: str) -> list[str]:
    """The header lines of tables that do not start on their own line after an empty one."""
    lines = ["", *lines_of(text)]
    return [
        lines[number - 1]
        for number, line in enumerate(lines)
        if SEPARATOR.fullmatch(line) and (not lines[number - 1].startswith("|") or lines[number - 2].strip())
    ]


def missing_code(text: str) -> list[str]:
    """Code paths and modules that a text names and that do not exist; the last names of a module may be its attributes."""
    paths = {path for path in CODE_PATH.findall(text) if not (ROOT / path).exists()}
    return sorted(paths | {name for name in set(MODULE.findall(text)) - ENTRY_POINTS if not exists(name)})


def exists(name: str) -> bool:
    """Whether a dotted name is a module of the package, or an attribute that its module's source mentions."""
    folder, rest = ROOT / "src", name.split(".")
    while rest and (folder / rest[0]).is_dir():
        folder, rest = folder / rest[0], rest[1:]
    if rest and (folder / f"{rest[0]}.py").is_file():
        source, rest = (folder / f"{rest[0]}.py").read_text("utf-8"), rest[1:]
    else:
        source = (folder / "__init__.py").read_text("utf-8")
    return all(re.search(rf"\b{part}\b", source) for part in rest)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_has_whole_tables_links_to_files_and_names_code_that_exists(page: Path) -> None:
    text = page.read_text("utf-8")
    assert broken_tables(text) == []
    links = [link for link in LINK.findall("\n".join(lines_of(text))) if not re.match(r"\w+:", link)]
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert missing_code(text) == []


def test_the_checks_find_what_they_are_for() -> None:
    assert broken_tables("8 runs, and N| a | b |\n|---|---:|\n| 1 | 2 |") == ["8 runs, and N| a | b |"]
    assert broken_tables("text\n| a |\n|---|") == ["| a |"]
    assert broken_tables("text\n\n| a | b |\n|:---|---|\n| 1 | 2 |\n\n```\nx\n|---|\n```") == []
    assert missing_code("see `src/sightline/nothing.py` and `sightline.ops.nothing.f`, `sightline.metrics.tokenize_all`") == [
        "sightline.ops.nothing.f",
        "src/sightline/nothing.py",
    ]
