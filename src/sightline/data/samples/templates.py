"""From messages to one text, and back from characters to turns.

Every template is a chat template in Jinja: the model's own where its tokenizer has one, else one of ours. A conversation is
rendered whole; where a turn begins and ends is found by rendering the conversation up to it, exactly as `generate` renders a
prompt. Nothing is tokenised in pieces. Templates that can think are told not to, and the day that some write down stands still,
so that the same records are the same tokens tomorrow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sightline.errors import ConfigError, RecordError
from sightline.types import IMAGE, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_CLOSING_TOKEN = (
    "the chat template ends an answer without a special token, so a model that is trained on it does not learn to stop; "
    "generation then ends at max_new_tokens. Choose another data.template, or a tokenizer whose template ends turns."
)
_DAY = (  # for templates that write down today's date (Llama 3.2, SmolLM3): the one that Llama's falls back to, always
    "{%- macro strftime_now(format) -%}{{ format | replace('%d', '26') | replace('%b', 'Jul') | replace('%B', 'July') "
    "| replace('%m', '07') | replace('%Y', '2024') }}{%- endmacro -%}"
)

_BOS = "{% if bos_token %}{{ bos_token }}{% endif %}"
_CONTENT = (
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
)

TEMPLATES: dict[str, str] = {
    # ChatML without a system turn of its own: TinyVLM, SmolLM2 and Qwen types.
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
    """Characters of an assistant turn in a rendered conversation.

    Attributes:
        index: of the message.
        header: where the turn's own header begins ("<|im_start|>assistant" and the like).
        start: where its content begins: the end of what `generate` is fed.
        end: where it ends, its closing token and what the template puts after that included.
    """

    index: int
    header: int
    start: int
    end: int


@dataclass(frozen=True)
class Rendered:
    """A conversation as text with its assistant turns; `<image>` stands at each image's place."""

    text: str
    turns: tuple[Turn, ...]


class Template:
    """Renders conversations for one tokenizer.

    Args:
        tokenizer: names the special tokens; its own chat template is the default.
        kind: `auto` (the tokenizer's own, else `plain`), or a key of `TEMPLATES`.

    Raises:
        ConfigError: the kind is unknown, or its tokens are not in the tokenizer.
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
            raise ConfigError("the template ends turns with the end-of-text token, which this tokenizer does not have.")
        self.tokenizer = tokenizer
        self.source = _DAY + source if "strftime_now" in source else source
        self.special_tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        # Templates of text-only models expect a plain text as content; multimodal ones walk over the parts.
        self.takes_parts = "'image'" in source or '"image"' in source

    def render(self, messages: Sequence[Message], prompt: bool = False, thinks: bool = False) -> str:
        """The conversation as text.

        Args:
            messages: turns in order.
            prompt: end with the header of an assistant turn, for generation.
            thinks: leave it to the model whether it thinks aloud; else a template that knows of thoughts (Qwen3, SmolLM3) puts
                empty ones before the answer, in a prompt as in a conversation.

        Raises:
            RecordError: `template_refused`, the template does not take this conversation (roles out of order, say).
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, _ = render_jinja_template(
                conversations=[[self._plain(message) for message in messages]],
                chat_template=self.source,
                add_generation_prompt=prompt,
                enable_thinking=thinks,
                **self.special_tokens,  # pyrefly: ignore
            )
        except Exception as error:  # a template may raise anything; it is one record's fault and is counted
            if not messages:
                return ""  # many templates look at the first message
            raise RecordError("template_refused", f"the chat template refuses the conversation: {error}") from error
        return str(texts[0])

    def conversation(self, messages: Sequence[Message]) -> Rendered:
        """The whole conversation with the characters of each assistant turn.

        Raises:
            RecordError: `template_refused`; `template_moves_text` when the text up to a turn is not the beginning of the whole;
                `placeholder_count` when the images' places and the markers in the text differ.
        """
        text = self.render(messages)
        turns = [self._turn(text, messages, index) for index, message in enumerate(messages) if message.role == "assistant"]
        places = sum(message.num_images for message in messages)
        if text.count(IMAGE) != places:
            raise RecordError("placeholder_count", f"{places} images, but {text.count(IMAGE)} times {IMAGE!r} in the text")
        return Rendered(text, tuple(turns))

    def _turn(self, text: str, messages: Sequence[Message], index: int) -> Turn:
        """Where an assistant turn stands in the whole text."""
        before = self.render(messages[:index])
        fed = self.render(messages[:index], prompt=True)
        if not text.startswith(fed):  # Qwen3 puts empty thoughts before the last answer alone
            fed = self.render(messages[:index], prompt=True, thinks=True)
        upto = self.render(messages[: index + 1])
        end = len(upto) if text.startswith(upto) else _end_of(text, upto, messages[index].text, len(fed))
        if end is None or end < len(fed) or not (text.startswith(fed) and fed.startswith(before)):
            raise RecordError("template_moves_text", f"the chat template does not keep the text before turn {index} as it was")
        return Turn(index, len(before), len(fed), end)

    def _plain(self, message: Message) -> dict[str, Any]:
        if self.takes_parts:
            parts = [{"type": "image"} if part.is_image else {"type": "text", "text": part.text} for part in message.content]
            return {"role": message.role, "content": parts}
        return {
            "role": message.role,
            "content": "".join(IMAGE if part.is_image else part.text or "" for part in message.content),
        }


def _end_of(text: str, upto: str, said: str, start: int) -> int | None:
    """Where a turn ends that a template writes otherwise when it is the last: what closes it there closes it here too."""
    said = said.strip()
    place = upto.rfind(said)
    begin = start + len(text[start:]) - len(text[start:].lstrip())
    if not said or place < 0 or not text.startswith(said + upto[place + len(said) :], begin):
        return None
    return begin + len(upto) - place
