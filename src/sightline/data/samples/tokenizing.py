"""Tokenises and decodes texts. A tokenizer that came from a folder or the Hub has a time limit for each text.

The regular expressions of a tokenizer and the loops of a chat template belong to whoever wrote its files; for some texts they may
take for ever.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from sightline.errors import ConfigError, RecordError
from sightline.runtime.time_limit import call_within

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXT_SECONDS = 10.0
CHARACTERS_PER_SECOND = 100_000  # by which a long text has longer

_MARK = "sightline_has_time_limit"  # an attribute, so that copies of a tokenizer and worker processes have it too

Value = TypeVar("Value")


def limit_time(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Gives each text of a tokenizer a time limit from now on."""
    setattr(tokenizer, _MARK, True)


def within_limit(tokenizer: "PreTrainedTokenizerBase", function: Callable[[], Value], what: str, size: int) -> Value:
    """Calls a function that works on one text, with the time limit of its tokenizer.

    Args:
        tokenizer: whose files decide how long the function takes.
        function: does the work.
        what: of the work, for messages: `the tokenizer`.
        size: of the text, in characters.

    Raises:
        ConfigError: it took too long.
    """
    if not getattr(tokenizer, _MARK, False):
        return function()
    seconds = TEXT_SECONDS + size / CHARACTERS_PER_SECOND
    try:
        return call_within(seconds, function)
    except TimeoutError:
        raise ConfigError(
            f"{what} of {str(tokenizer.name_or_path)!r} did not finish a text of {size} characters in {seconds:.0f} s.",
            "Use another model or tokenizer.",
        ) from None


def tokenise(tokenizer: "PreTrainedTokenizerBase", text: str, **options: Any) -> Any:
    """Returns what a tokenizer returns for one text.

    Args:
        tokenizer: the tokenizer.
        text: the text.
        options: as in transformers.

    Raises:
        RecordError: `tokenizer_failed`: its compiled code gave up on the text.
        ConfigError: it took too long.
    """
    try:
        return within_limit(tokenizer, lambda: tokenizer(text, **options), "the tokenizer", len(text))
    except RuntimeError as error:
        raise RecordError("tokenizer_failed", f"the tokenizer gives up on a text of {len(text)} characters: {error}") from error


def decode(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int], **options: Any) -> str:
    """Returns the text of some ids.

    Raises:
        ConfigError: it took too long.
    """
    text = within_limit(tokenizer, lambda: tokenizer.decode(list(ids), **options), "the decoder of the tokenizer", len(ids))
    assert isinstance(text, str)
    return text
