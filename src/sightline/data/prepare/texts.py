"""The one rule for characters and words that are no text, applied to every text of every source.

- Control characters (C0 and C1, with NUL) that are no white space, and zero-width characters (U+200B, U+2060, U+FEFF) are removed.
  The joiners U+200C and U+200D stay between two characters that are not ASCII: scripts and emoji need them there.
- A text of which nothing visible is left is empty.
- A caption that is, up to case, one of `NULL_WORDS` is what programs write where there is none.
"""

import re

NULL_WORDS = frozenset({"#n/a", "<na>", "<null>", "n/a", "nan", "none", "null", "undefined"})
_REMOVED = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u200b\u2060\ufeff]|(?<![^\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f])"
)
_VISIBLE = re.compile(
    "[^\\s\u00ad\u034f\u061c\u115f\u1160\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\uffa0]"
)


def clean_text(text: str) -> str:
    """Removes control and zero-width characters; the result is empty when nothing visible is left."""
    if text.isascii() and text.isprintable():
        return text
    cleaned = _REMOVED.sub("", text)
    return cleaned if _VISIBLE.search(cleaned) or not text.strip() else ""


def is_null_word(caption: str) -> bool:
    """Returns whether a caption is a word for a missing one."""
    return caption.strip().casefold() in NULL_WORDS
