"""The counter of lines of code against a file that was counted by hand."""

from benchmarks.count_lines import count_lines

FILE = '''"""A module.

Of two paragraphs.
"""

import os  # 1

# A comment, and a blank line above.

LIMIT = 3  # 2
"""Says what a limit is."""


def greet(  # 3
    name: str,  # 4
) -> str:  # 5
    """Greets."""
    text = """not
    a docstring"""  # 6 and 7

    return text + f"{name}"  # 8
'''


def test_docstrings_comments_and_blank_lines_are_no_code() -> None:
    assert count_lines(FILE) == 8
    assert count_lines("") == 0
