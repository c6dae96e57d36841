"""Tries tokenizers and chat templates of others on a few texts; runs in a guarded child process, which is killed when it is late.

The module imports little (0.2 s): neither torch nor transformers. Templates are rendered here as transformers renders them, but
the result only has to end: errors are left to the real renderer.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_RENDERED = 1 << 20  # characters that a template may make of a few short turns

_WORDS = "A photo of two dogs on a beach at 12:30, isn't it? "
TEXTS = (
    "",
    _WORDS * 8,
    *(piece * 1000 for piece in ("a", " ", "\n", "0", "!", "é", "漢", "ab", "a ", "a!", "\t\r\n")),
    *(piece * 40 + "\0!" for piece in ("a", "A", "1", " ", "ab", "x.")),
    *(piece * 200 + last for piece in ("a", " ") for last in ("b", "!", "1", "\n")),
    "".join(map(chr, range(32, 0x600))),
)
_IMAGE, _TEXT = {"type": "image"}, {"type": "text", "text": "What is this?"}
_ANSWER = {"role": "assistant", "content": [{"type": "text", "text": "Two dogs."}]}
CONVERSATIONS = (
    [{"role": "user", "content": [_IMAGE, _TEXT]}],
    [{"role": "user", "content": [_IMAGE, _TEXT]}, _ANSWER],
    [{"role": "system", "content": [_TEXT]}, {"role": "user", "content": [_TEXT, _IMAGE]}, _ANSWER],
    [{"role": "user", "content": [_IMAGE, _TEXT]}, _ANSWER] * 4,
)


@dataclass(frozen=True)
class TokenizerTrial:
    """A `tokenizer.json` to load and to use on `TEXTS`."""

    file: str


@dataclass(frozen=True)
class TemplateTrial:
    """A chat template to render on `CONVERSATIONS`.

    Attributes:
        source: the template.
        special_tokens: its variables, such as `bos_token`.
        takes_parts: whether it takes the parts of a message, or one text.
    """

    source: str
    special_tokens: Mapping[str, str]
    takes_parts: bool


def run_trial(trial: TokenizerTrial | TemplateTrial) -> str:
    """Runs a trial; returns what is wrong, empty where nothing is.

    Raises:
        MemoryError: it takes too much memory.
    """
    return _try_tokenizer(trial) if isinstance(trial, TokenizerTrial) else _try_template(trial)


def _try_tokenizer(trial: TokenizerTrial) -> str:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(trial.file)
    except MemoryError:
        raise
    except Exception:  # whoever loads it says what is wrong with it
        return ""
    except BaseException as error:  # a panic of compiled code is no Exception
        return f"it cannot be loaded ({_first_line(error)})"
    for text in TEXTS:
        try:
            # A batch, as transformers does: it is that function which must end.
            tokenizer.decode(tokenizer.encode_batch([text])[0].ids)
        except MemoryError:
            raise
        except Exception:  # a tokenizer without an unknown token refuses some characters
            continue
        except BaseException as error:
            return f"it gives up on a text of {len(text)} characters ({_first_line(error)})"
    return ""


def _try_template(trial: TemplateTrial) -> str:
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 (jinja's own form)

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise ValueError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, indent=options.get("indent"))
    functions: dict[str, Any] = {"raise_exception": raise_exception, "strftime_now": str}
    environment.globals.update(functions)
    try:
        template = environment.from_string(trial.source)
    except MemoryError:
        raise
    except Exception:
        return ""
    for messages in CONVERSATIONS:
        shown = messages if trial.takes_parts else [{**message, "content": _as_text(message["content"])} for message in messages]
        for prompt in (False, True):
            length = 0
            try:
                variables = {**trial.special_tokens, "messages": shown, "add_generation_prompt": prompt, "enable_thinking": False}
                for piece in template.generate(variables):
                    length += len(piece)
                    if length > MAX_RENDERED:
                        return f"it makes more than {MAX_RENDERED} characters of {len(messages)} short turns"
            except MemoryError:
                raise
            except Exception:  # many templates refuse an order of roles
                continue
    return ""


def _as_text(parts: object) -> str:
    assert isinstance(parts, list)
    return "".join("<image>" if part["type"] == "image" else part["text"] for part in parts)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]
