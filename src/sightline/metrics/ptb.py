"""Penn Treebank tokens as the official caption scorers produce them, in pure Python without Java.

The result is the lower-cased tokens without punctuation, equal to those of PTBTokenizer of Stanford CoreNLP 3.4.1 (with
`-preserveLines -lowerCase`) followed by the removal of punctuation in pycocoevalcap. Brackets stay as the words "-lrb-" and
"-rrb-", because the list of punctuation there has only their upper-case form.

Differs: a caption with a line separator other than a line feed is one caption here (there it shifts all later ones); the second
full stop that ends a sentence after an abbreviation ("etc. The") is not produced (it is removed anyway).
"""

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

from sightline.metrics.ptb_characters import DIGITS, LETTERS, MARKS, character_class
from sightline.metrics.ptb_rules import ABBREVIATIONS, LINE_ENDS, RULES, SOFT_HYPHEN, SPACES, Rule

PUNCTUATION = frozenset(["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

_LETTER = re.compile(f"[{character_class(LETTERS)}{character_class(MARKS)}{SOFT_HYPHEN}]")
_DIGIT = re.compile(f"[{character_class(DIGITS)}]")
_LINE_END = re.compile(f"[{LINE_ENDS}]")
# Most of a caption is words between spaces, with a comma or full stop at most; they match no other rule.
_PLAIN = re.compile("[ \t]*([A-Za-z]+(?=[ \n])|[A-Za-z]{2,}(?=[.,][ \n]))")
_BLANK = re.compile(f"[ \t](?:[{SPACES}]|(?i:&nbsp;))*")
_NOT_PLAIN = ABBREVIATIONS | {"cannot", "gonna", "gotta", "lemme", "gimme", "wanna"}


def tokenize(text: str) -> list[str]:
    """Tokenises one text, as if it were alone in its file."""
    return tokenize_all([text])[0]


def tokenize_all(texts: Iterable[str]) -> list[list[str]]:
    """Tokenises each text, as the official program does for a file with one text per line.

    The beginning of the next line can matter: the full stop of a single letter at the end of a text ("plan B.") stays part of the
    token unless the next text begins with a word such as "The". So all texts of an evaluation must be passed in one call.

    Returns:
        One list per text. A token may contain a no-break space ("3 1/2" is one token).
    """
    lines: list[list[str]] = []
    text = "\n".join(_LINE_END.sub(" ", text) for text in texts)
    for line in _lines(_surrogates(text)):
        # pycocoevalcap strips the line before it removes punctuation; a web address may end in a thin space (U+2009).
        lowered = [*(token.lower() for token in line[:-1]), *(token.lower().rstrip() for token in line[-1:])]
        words = [token for token in lowered if token and token not in PUNCTUATION]
        lines.append([token if token.isascii() else _characters(token) for token in words])
    return lines


def _lines(text: str) -> Iterator[list[str]]:
    """Yields the tokens of each line."""
    line: list[str] = []
    for token in _lex(text):
        if token == "\n":
            yield line
            line = []
        else:
            line.append(token)
    yield line


def _lex(text: str) -> Iterator[str]:
    at, end = 0, len(text)
    while at < end:
        plain = _PLAIN.match(text, at)
        if plain and plain[1].lower() not in _NOT_PLAIN:
            yield plain[1]
            at = plain.end()
            continue
        character = text[at]
        if character == "\n":
            yield character
            at += 1
            continue
        if blank := _BLANK.match(text, at):
            at = blank.end()
            continue
        longest = at
        best = None
        for rule in _rules_for(character):
            match = rule.pattern.match(text, at)
            if match and match.end() > longest:
                longest, best = match.end(), (rule, match)
        if best is None:
            at += 1  # a character that the official program reports as untokenizable and skips
            continue
        rule, match = best
        if token := rule.write(match[1]):
            yield token
        at += rule.taken or len(match[1])


@lru_cache(maxsize=4096)
def _rules_for(character: str) -> tuple[Rule, ...]:
    """Returns the rules whose tokens can begin with a character."""
    kind = "a" if _LETTER.match(character) else "0" if _DIGIT.match(character) else character
    return tuple(rule for rule in RULES if kind in rule.starts or "*" in rule.starts)


def _surrogates(text: str) -> str:
    """Replaces each character beyond the basic plane by its two surrogates, which is how the official program sees it."""
    if text.isascii():
        return text
    return re.sub("[\U00010000-\U0010ffff]", lambda match: _halves(match[0]), text)


def _halves(character: str) -> str:
    code = ord(character) - 0x10000
    return chr(0xD800 + (code >> 10)) + chr(0xDC00 + (code & 0x3FF))


def _characters(token: str) -> str:
    """Joins surrogates to characters again."""
    return token.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
