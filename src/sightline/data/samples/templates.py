"""Renders conversations with chat templates and finds the characters of each turn.

Every template is a Jinja chat template: the tokenizer's own, or a built-in one. A conversation is rendered as a whole; a turn's
start and end are found by rendering the conversation up to it, exactly as prompts for `generate` are rendered. Thinking is
switched off, and the current date that some templates print is fixed, so that records always give the same tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sightline.data.samples.tokenizing import within_limit
from sightline.errors import ConfigError, RecordError
from sightline.types import IMAGE, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_CLOSING_TOKEN = (
    "the chat template ends an answer without a special token, so a model that is trained on it does not learn to stop; "
    "generation then ends at max_new_tokens. Choose another data.template, or a tokenizer whose template ends turns."
)
_DAY = (  # fixed date for templates that print today's (Llama 3.2, SmolLM3): the fallback date of Llama's template
    "{%- macro strftime_now(format) -%}{{ format | replace('%d', '26') | replace('%b', 'Jul') | replace('%B', 'July') "
    "| replace('%m', '07') | replace('%Y', '2024') }}{%- endmacro -%}"
)

_PARTS_BECOME_TEXT = (  # for templates of text-only models, which expect a plain text as content
    "{%- set flat = namespace(messages=[]) -%}{%- for message in messages -%}"
    "{%- set said = namespace(text='') -%}"
    "{%- if message['content'] is string -%}{%- set said.text = message['content'] -%}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- set said.text = said.text + ('<image>' if part['type'] == 'image' else part['text']) -%}{%- endfor -%}{%- endif -%}"
    "{%- set flat.messages = flat.messages + [dict(message, content=said.text)] -%}{%- endfor -%}"
    "{%- set messages = flat.messages -%}"
)
_TEXT_BECOMES_PARTS = (  # for templates that walk over the parts of any content
    "{%- set flat = namespace(messages=[]) -%}{%- for message in messages -%}"
    "{%- if message['content'] is string -%}"
    "{%- set flat.messages = flat.messages + [dict(message, content=[{'type': 'text', 'text': message['content']}])] -%}"
    "{%- else -%}{%- set flat.messages = flat.messages + [message] -%}{%- endif -%}{%- endfor -%}"
    "{%- set messages = flat.messages -%}"
)
_NO_THOUGHTS = "{%- if enable_thinking is not defined -%}{%- set enable_thinking = false -%}{%- endif -%}"

_BOS = "{% if bos_token %}{{ bos_token }}{% endif %}"
_CONTENT = (
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
)

TEMPLATES: dict[str, str] = {
    # ChatML without a default system turn: TinyVLM, SmolLM2, Qwen.
    "chatml": "{% for message in messages %}<|im_start|>{{ message['role'] }}\n" + _CONTENT + "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    # Image, text, end: LLaVA's `plain`, with the end token in place of its newline so that generation stops.
    "plain": _BOS
    + "{% for message in messages %}"
    + _CONTENT
    + "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}",
    # LLaVA-1.5's conversation `v1`.
    "vicuna": _BOS
    + "{% if messages[0]['role'] != 'system' %}A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. {% endif %}"
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    + _CONTENT
    + " {% elif message['role'] == 'user' %}USER: "
    + _CONTENT
    + " {% else %}ASSISTANT: "
    + _CONTENT
    + "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}",
}


@dataclass(frozen=True)
class Turn:
    """Character positions of an assistant turn in a rendered conversation.

    Attributes:
        index: index of the message.
        header: start of the turn's header (such as "<|im_start|>assistant").
        start: start of its content: the length of the prompt for `generate`.
        end: end of the turn, including its closing token and what the template puts after it.
    """

    index: int
    header: int
    start: int
    end: int


@dataclass(frozen=True)
class RenderedConversation:
    """A conversation as text, with `<image>` for each image, and the positions of its assistant turns."""

    text: str
    turns: tuple[Turn, ...]


class Template:
    """Renders conversations for one tokenizer.

    Args:
        tokenizer: gives the special tokens and the default chat template.
        kind: `auto` (the tokenizer's template, else `plain`), or a key of `TEMPLATES`.

    Raises:
        ConfigError: the kind is unknown, or the tokenizer lacks its end token.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", kind: str = "auto") -> None:
        own = tokenizer.chat_template
        if kind == "auto":
            source = own if isinstance(own, str) else TEMPLATES["plain"]
        elif kind in TEMPLATES:
            source = TEMPLATES[kind]
        else:
            raise ConfigError(f"data.template: unknown template {kind!r}; known are auto, {', '.join(sorted(TEMPLATES))}.")
        if "eos_token" in source and tokenizer.eos_token is None:
            raise ConfigError("the chat template needs eos_token, which this tokenizer does not have.")
        self.tokenizer = tokenizer
        self.source = _DAY + source if "strftime_now" in source else source
        self.special_tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        # Templates of text-only models expect a string as content; multimodal ones iterate over parts.
        self.takes_parts = "'image'" in source or '"image"' in source

    def render(self, messages: Sequence[Message], prompt: bool = False, thinks: bool = False) -> str:
        """Renders messages to text.

        Args:
            messages: turns in order.
            prompt: end with the header of an assistant turn (`add_generation_prompt`).
            thinks: value of `enable_thinking`; False makes templates with thinking (Qwen3, SmolLM3) put an empty thinking block
                before the answer.

        Raises:
            RecordError: `template_refused`: the template does not accept the conversation, for example its order of roles.
            ConfigError: the template of a folder took too long.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        def rendered() -> str:
            texts, _ = render_jinja_template(
                conversations=[[self._plain(message) for message in messages]],
                chat_template=self.source,
                add_generation_prompt=prompt,
                enable_thinking=thinks,
                **self.special_tokens,  # pyrefly: ignore
            )
            return str(texts[0])

        try:
            if self.source in TEMPLATES.values():
                return rendered()
            return within_limit(self.tokenizer, rendered, "the chat template", sum(len(message.text) for message in messages))
        except ConfigError:
            raise
        except Exception as error:  # a template may raise anything; the record is skipped and counted
            if not messages:
                return ""  # many templates read the first message
            raise RecordError("template_refused", f"the chat template does not accept the conversation: {error}") from error

    @property
    def processor_source(self) -> str:
        """The template for tools that render chats themselves: content is a text or a list of parts, the model does not think aloud
        unless `enable_thinking` is given; else equal to `render`.
        """
        source = self.source
        if not self.takes_parts:
            source = _PARTS_BECOME_TEXT + source
        elif "is string" not in source:
            source = _TEXT_BECOMES_PARTS + source
        if "enable_thinking" in source and _NO_THOUGHTS not in source:
            source = _NO_THOUGHTS + source
        return source

    def conversation(self, messages: Sequence[Message]) -> RenderedConversation:
        """Renders a conversation and finds its assistant turns.

        Raises:
            RecordError: `template_refused`; `template_moves_text` where the text up to a turn is no prefix of the whole text;
                `placeholder_count` where the number of images and of markers in the text differ.
        """
        text = self.render(messages)
        turns = [self._turn(text, messages, index) for index, message in enumerate(messages) if message.role == "assistant"]
        num_images = sum(message.num_images for message in messages)
        if text.count(IMAGE) != num_images:
            raise RecordError("placeholder_count", f"{num_images} images, but {text.count(IMAGE)} times {IMAGE!r} in the text")
        return RenderedConversation(text, tuple(turns))

    def _turn(self, text: str, messages: Sequence[Message], index: int) -> Turn:
        """Finds an assistant turn in the rendered text."""
        before = self.render(messages[:index])
        prompted = self.render(messages[:index], prompt=True)
        if not text.startswith(prompted):  # Qwen3 puts the empty thinking block before the last answer only
            prompted = self.render(messages[:index], prompt=True, thinks=True)
        upto = self.render(messages[: index + 1])
        end = len(upto) if text.startswith(upto) else _end_of(text, upto, messages[index].text, len(prompted))
        if end is None or end < len(prompted) or not (text.startswith(prompted) and prompted.startswith(before)):
            raise RecordError(
                "template_moves_text", f"the chat template changes the text before turn {index} when later turns follow"
            )
        return Turn(index, len(before), len(prompted), end)

    def _plain(self, message: Message) -> dict[str, Any]:
        if self.takes_parts:
            parts = [{"type": "image"} if part.is_image else {"type": "text", "text": part.text} for part in message.content]
            return {"role": message.role, "content": parts}
        return {
            "role": message.role,
            "content": "".join(IMAGE if part.is_image else part.text or "" for part in message.content),
        }


def _end_of(text: str, upto: str, content: str, start: int) -> int | None:
    """Finds the end of a turn that a template renders differently as the last turn.

    Assumes that the text that closes the turn there also closes it in the whole conversation.

    Args:
        text: the whole conversation.
        upto: the conversation up to and including the turn.
        content: content of the turn.
        start: start of the turn's content in `text`.

    Returns:
        The end of the turn in `text`; None where it is not found.
    """
    content = content.strip()
    place = upto.rfind(content)
    begin = start + len(text[start:]) - len(text[start:].lstrip())
    if not content or place < 0 or not text.startswith(content + upto[place + len(content) :], begin):
        return None
    return begin + len(upto) - place
