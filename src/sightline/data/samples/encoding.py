"""Encodes conversations: token ids, label mask (supervised spans) and visual slots.

A conversation is rendered as a whole and tokenised once; character offsets map tokens to turns. A policy decides which tokens are
supervised. Each image marker becomes as many visual slots as the tiling needs, captions of one image become branches with a
shared prefix, and a conversation that cannot be trained on raises a RecordError with a reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Int

from sightline.data.images.tilings import Layout, TilingConfig
from sightline.data.records import prompt_messages
from sightline.data.samples.templates import RenderedConversation, Template, Turn
from sightline.data.samples.tokenizing import tokenise
from sightline.errors import RecordError
from sightline.types import IMAGE, EncodedConversation, Message, Part, Record, Sample, Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

METASPACE = "\u2581"  # SentencePiece's sign for a space
Policy = Literal["all_text", "assistant", "with_header", "with_padding"]


@dataclass(frozen=True)
class TextRules:
    """Settings of a `ConversationEncoder`.

    Attributes:
        prompt: user text that follows the images of a caption record.
        supervise: `assistant`: content and end token of assistant turns. `with_header`: their header too (TinyVLM's reported
            run). `all_text`: everything but images and padding (the SmolVLM port of AlignVLM). `with_padding`: `assistant`, and
            the padding up to `max_tokens` (seemore).
        max_tokens: maximum length of a conversation in tokens.
        too_long: what to do with a longer one: `skip` it, or `truncate` its text.
        grid: rows and columns of visual tokens of a crop.
        tiling: how images become crops; None for a decoder alone.
        captions: train on `all` captions of a record, or on the `first` only.
        drop_images: remove the images and keep the text.
    """

    prompt: str = ""
    supervise: Policy = "assistant"
    max_tokens: int = 2048
    too_long: Literal["skip", "truncate"] = "skip"
    grid: tuple[int, int] = (1, 1)
    tiling: TilingConfig | None = None
    captions: Literal["all", "first"] = "all"
    drop_images: bool = False


@dataclass(frozen=True)
class TextEncoding:
    """A tokenised conversation before image tokens are repeated: the expensive half of encoding, which is cached.

    Attributes:
        ids: token ids, with one image token per run of visual slots.
        turn_of: for each token the index of the turn that supervises it; -1 for unsupervised tokens.
    """

    ids: Int[np.ndarray, " T"]
    turn_of: Int[np.ndarray, " T"]


def pad_id_of(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Returns the token id that fills rows: the padding token, else the end token, else 0."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return 0 if pad is None else int(pad)


class ConversationEncoder:
    """Encodes conversations for one tokenizer and chat template.

    Args:
        tokenizer: a fast tokenizer with `<image>` as one token.
        template: the chat template.
        rules: supervision policy and limits.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", template: Template, rules: TextRules) -> None:
        self.tokenizer, self.template, self.rules = tokenizer, template, rules
        image_id = tokenizer.convert_tokens_to_ids(IMAGE)
        known = isinstance(image_id, int) and image_id != tokenizer.unk_token_id
        self.image_id = image_id if known and isinstance(image_id, int) else -1  # a text model's tokenizer has none
        # Tokens of headers and ends of turns are often not listed as special (Llama 3, Qwen); added special tokens count as well.
        added = {index: str(token.content) for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.special_ids = frozenset([*tokenizer.all_special_ids, *added])
        # The unknown token is excluded, unless it is also the begin, end or padding token (GPT-2, which never emits it as unknown).
        ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
        self._control_ids = np.array(sorted(self.special_ids - ({tokenizer.unk_token_id} - ends)), dtype=np.int64)
        self.pad_id = pad_id_of(tokenizer)
        self._special = added | dict(zip(tokenizer.all_special_ids, map(str, tokenizer.all_special_tokens), strict=True))
        self._prompt_ids = lru_cache(maxsize=4096)(self._tokenise)

    # Conversations ------------------------------------------------------------------------------------------------------

    def conversations(self, record: Record) -> list[tuple[Message, ...]]:
        """Returns the conversations of a record: its own, or one per caption."""
        if record.messages:
            return [self._without_dropped_images(record.messages)]
        captions = record.captions if self.rules.captions == "all" else record.captions[:1]
        return [(*self.prompt_messages(record), Message("assistant", (Part(caption),))) for caption in captions]

    def prompt_messages(self, record: Record) -> tuple[Message, ...]:
        """Returns the prompt of a record: its turns up to the last assistant turn, or its images and the configured prompt."""
        shown = replace(record, images=()) if self.rules.drop_images else record
        return self._without_dropped_images(prompt_messages(shown, self.rules.prompt))

    def _without_dropped_images(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        if not self.rules.drop_images:
            return messages
        return tuple(Message(turn.role, tuple(part for part in turn.content if not part.is_image)) for turn in messages)

    def layouts(self, record: Record) -> list[Layout]:
        """Returns the layout of each image of a record.

        Raises:
            RecordError: reasons `image_in_text_model`, `image_info_missing`.
        """
        tiling = self.rules.tiling
        if not record.images or self.rules.drop_images:
            return []
        if tiling is None:
            raise RecordError("image_in_text_model", "the record has images, the model takes text only")
        if len(record.image_info) != len(record.images):
            raise RecordError("image_info_missing", "the record has no sizes of its images; prepare the data set again")
        return [tiling.layout(info.width, info.height, self.rules.grid) for info in record.image_info]

    # Encoding -----------------------------------------------------------------------------------------------------------

    def encode_prompt(self, messages: Sequence[Message], layouts: Sequence[Layout]) -> EncodedConversation:
        """Encodes the conversation so far and the header of an assistant turn, as input of `generate`.

        A prompt without any token (no text, no image, a template without markup) becomes the start token, as in transformers.
        """
        self._check_text(messages)
        row = self.encode_rendered(self.template.render(messages, prompt=True), layouts)
        return row if len(row.ids) else self.with_start(row)

    def with_start(self, encoded: EncodedConversation) -> EncodedConversation:
        """Returns a conversation with the start token (else the end token, else the padding token) before it."""
        ids = [self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.pad_id]
        start = next(int(index) for index in ids if index is not None)
        spans = tuple(Span(span.start + 1, span.end + 1, span.turn) for span in encoded.spans)
        return replace(encoded, ids=np.concatenate([[start], encoded.ids]).astype(np.int64), spans=spans, slots=encoded.slots + 1)

    def encode_rendered(self, text: str, layouts: Sequence[Layout]) -> EncodedConversation:
        """Encodes a conversation that a chat template has rendered.

        Args:
            text: holds `<image>` at the place of each image.
            layouts: one for each image.

        Raises:
            RecordError: `placeholder_count`, places and images differ in number.
        """
        if text.count(IMAGE) != len(layouts):
            raise RecordError("placeholder_count", f"{len(layouts)} images, {text.count(IMAGE)} places in the prompt")
        ids, _ = self._encode(_insert_layouts(text, layouts))
        ids, _, slots = self._expand(ids, np.zeros(len(ids), bool), layouts)
        return EncodedConversation(ids, (), slots)

    def encode_conversation(
        self, messages: Sequence[Message], layouts: Sequence[Layout], verify: bool = False
    ) -> EncodedConversation:
        """Encodes a whole conversation with its supervised spans and visual slots.

        Args:
            messages: turns in order.
            layouts: layout of each image.
            verify: also check that the ids before each assistant turn equal those of the prompt for `generate`.

        Raises:
            RecordError: reasons `no_supervised_token`, `too_long`, `placeholder_count`, `placeholder_in_text`,
                `special_token_in_text`, `merged_boundary`, `template_refused`, `template_moves_text`.
        """
        return self.with_layouts(self.encode(messages, layouts, verify), layouts)

    def encode(self, messages: Sequence[Message], layouts: Sequence[Layout], verify: bool = False) -> TextEncoding:
        """Renders and tokenises a conversation and finds the supervised turns: the first half of `encode_conversation`."""
        self._check_text(messages)
        rendered = self.template.conversation(messages)
        if len(layouts) != rendered.text.count(IMAGE):
            raise RecordError("placeholder_count", f"{len(layouts)} images, {rendered.text.count(IMAGE)} places for them")
        text, turns = _with_layout_texts(rendered, layouts)
        ids, offsets = self._encode(text)
        turn_of = self._turn_of_token(ids, offsets, turns)
        if verify:
            self._verify(text, ids, offsets, turns)
        if self.rules.supervise == "all_text":
            is_label = ids != self.image_id
            is_label[:1] = False  # nothing precedes the first token
            turn_of = np.where(is_label, np.maximum(turn_of, 0), -1)
        return TextEncoding(ids, turn_of)

    def with_layouts(self, encoded: TextEncoding, layouts: Sequence[Layout]) -> EncodedConversation:
        """Expands visual slots, limits the length and finds spans: the second half of `encode_conversation`."""
        ids, turn_of, slots = self._expand(encoded.ids, encoded.turn_of, layouts)
        ids, turn_of = self._limit(ids, turn_of, slots)
        spans = _runs(turn_of)
        if not spans:
            raise RecordError("no_supervised_token", "no token of the conversation is supervised")
        return EncodedConversation(ids, spans, slots)

    def pieces(self, messages: Sequence[Message], layouts: Sequence[Layout]) -> list[str]:
        """Returns the text of each token of `encode_conversation`; joined, they are the rendered conversation.

        Where several tokens share a character, the first token has it and the others are empty. Visual slots and padding are empty.
        """
        text, _ = _with_layout_texts(self.template.conversation(messages), layouts)
        encoded = tokenise(self.tokenizer, text, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        names = self.tokenizer.convert_ids_to_tokens(ids)
        starts = [start for start, _ in offsets[1:]] + [len(text)]
        counts = iter([count for layout in layouts for count in layout.slots])
        out: list[str] = []
        done = 0  # characters already assigned to a token
        for token, name, (_, end), following in zip(ids, names, offsets, starts, strict=True):
            # The offsets of a lone metaspace may include the next letter, which belongs to the next token.
            end = min(end, following) if name == METASPACE else end
            piece = text[done : max(end, done)]  # characters of no token (a stripped space) go with the next token
            done += len(piece)
            out += [""] * next(counts) if token == self.image_id else [piece]
        if out and done < len(text):
            out[-1] += text[done:]
        return out

    # Steps -------------------------------------------------------------------------------------------------------------

    def _tokenise(self, text: str) -> list[int]:
        return list(tokenise(self.tokenizer, text, add_special_tokens=False, return_attention_mask=False)["input_ids"])

    def _encode(self, text: str) -> tuple[Int[np.ndarray, " T"], Int[np.ndarray, "T 2"]]:
        """Returns the ids and character offsets of a text.

        Raises:
            RecordError: `special_token_in_text`, where the tokenizer's normaliser turns plain text into a special token.
        """
        encoded = tokenise(self.tokenizer, text, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False)
        ids = np.asarray(encoded["input_ids"], dtype=np.int64)
        offsets = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        for index in np.flatnonzero(np.isin(ids, self._control_ids)).tolist():
            begin, end = offsets[index].tolist()
            if self._special[int(ids[index])] not in text[begin:end]:
                raise RecordError(
                    "special_token_in_text", f"{text[begin:end]!r} becomes a special token when the tokenizer normalises it"
                )
        return ids, offsets

    def _check_text(self, messages: Sequence[Message]) -> None:
        for message in messages:
            for part in message.content:
                if part.text and IMAGE in part.text:
                    raise RecordError("placeholder_in_text", f"the text contains {IMAGE!r}, the placeholder of an image")
                found = [token for token in self._special.values() if token in part.text] if part.text else []
                if found:
                    raise RecordError("special_token_in_text", f"the text contains {max(found)!r}, a special token")

    def _turn_of_token(
        self, ids: Int[np.ndarray, " T"], offsets: Int[np.ndarray, "T 2"], turns: Sequence[Turn]
    ) -> Int[np.ndarray, " T"]:
        """Returns for each token the index of the assistant turn that supervises it; -1 for none."""
        turn_of = np.full(len(ids), -1, dtype=np.int64)
        special = np.isin(ids, self._control_ids)
        for turn in turns:
            begin = turn.header if self.rules.supervise == "with_header" else turn.start
            inside = np.flatnonzero((offsets[:, 0] >= begin) & (offsets[:, 1] <= turn.end) & (offsets[:, 1] > offsets[:, 0]))
            ends = inside[special[inside] & (offsets[inside, 0] >= turn.start)]
            if len(ends):
                inside = inside[inside <= ends[-1]]  # text that the template puts after the end token is not supervised
            if len(inside):  # byte pieces of a character may have empty offsets, so the whole range is taken
                turn_of[inside[0] : inside[-1] + 1] = turn.index
        turn_of[:1] = -1
        return turn_of

    def _verify(self, text: str, ids: Int[np.ndarray, " T"], offsets: Int[np.ndarray, "T 2"], turns: Sequence[Turn]) -> None:
        for turn in turns:
            fed = self._prompt_ids(text[: turn.start])
            first = int(np.searchsorted(offsets[:, 1], turn.start, side="right"))
            if list(ids[: len(fed)]) != fed or first != len(fed):
                raise RecordError("merged_boundary", f"prompt and answer of turn {turn.index} share a token")

    def _expand(
        self, ids: Int[np.ndarray, " T"], turn_of: np.ndarray, layouts: Sequence[Layout]
    ) -> tuple[Int[np.ndarray, " T"], np.ndarray, Int[np.ndarray, " M"]]:
        """Repeats each image token as often as its crop has visual slots."""
        (markers,) = (ids == self.image_id).nonzero()
        counts = [count for layout in layouts for count in layout.slots]
        if len(markers) != len(counts):
            raise RecordError("placeholder_count", f"{len(counts)} crops, but {len(markers)} image tokens in the conversation")
        if not counts:
            return ids, turn_of, markers
        repeats = np.ones(len(ids), dtype=np.int64)
        repeats[markers] = counts
        expanded = ids.repeat(repeats)
        return expanded, turn_of.repeat(repeats), (expanded == self.image_id).nonzero()[0]

    def _limit(
        self, ids: Int[np.ndarray, " T"], turn_of: Int[np.ndarray, " T"], slots: Int[np.ndarray, " M"]
    ) -> tuple[Int[np.ndarray, " T"], Int[np.ndarray, " T"]]:
        limit = self.rules.max_tokens
        if len(ids) > limit:
            if self.rules.too_long == "skip" or (len(slots) and slots[-1] >= limit):
                raise RecordError("too_long", f"{len(ids)} tokens, the limit is {limit}")
            ids, turn_of = ids[:limit], turn_of[:limit]
        if self.rules.supervise == "with_padding" and len(ids) < limit:
            padding = limit - len(ids)
            turn_of = np.concatenate([turn_of, np.full(padding, max(int(turn_of.max(initial=0)), 0))])
            ids = np.concatenate([ids, np.full(padding, self.pad_id)])
        return ids, turn_of


def _insert_layouts(text: str, layouts: Sequence[Layout]) -> str:
    """Replaces each image marker of a text by the text of its layout."""
    pieces = text.split(IMAGE)
    return pieces[0] + "".join(layout.text + piece for layout, piece in zip(layouts, pieces[1:], strict=True))


def _with_layout_texts(rendered: RenderedConversation, layouts: Sequence[Layout]) -> tuple[str, list[Turn]]:
    """Returns the text with the layouts' texts inserted, and the turns at their new positions."""

    def moved(position: int) -> int:
        before = rendered.text.count(IMAGE, 0, position)
        return position + sum(len(layout.text) - len(IMAGE) for layout in layouts[:before])

    turns = [Turn(turn.index, moved(turn.header), moved(turn.start), moved(turn.end)) for turn in rendered.turns]
    return _insert_layouts(rendered.text, layouts), turns


def _runs(turn_of: Int[np.ndarray, " T"]) -> tuple[Span, ...]:
    """Returns the contiguous runs of tokens that one turn supervises."""
    borders = [0, *((turn_of[1:] != turn_of[:-1]).nonzero()[0] + 1).tolist(), len(turn_of)]
    return tuple(Span(start, end, turn) for start, end in pairwise(borders) if end > start and (turn := int(turn_of[start])) >= 0)


def shared_prefix(conversations: Sequence[EncodedConversation]) -> int:
    """Returns the number of leading unsupervised tokens that conversations about the same images have in common.

    Returns 0 where the common prefix does not hold every visual slot: then the conversations cannot share their images.
    """
    limit = min(min(len(encoded.ids), encoded.spans[0].start) for encoded in conversations)
    stack = np.array([encoded.ids[:limit] for encoded in conversations])
    same = (stack == stack[0]).all(0)
    prefix = limit if same.all() else int(same.argmin())
    holds_images = all(len(encoded.slots) == 0 or encoded.slots[-1] < prefix for encoded in conversations)
    return prefix if holds_images else 0


def text_sample(
    conversations: Sequence[EncodedConversation],
    record_ids: Sequence[str],
    layouts: Sequence[Layout],
    tokens_per_crop: int,
    source: int = 0,
) -> Sample:
    """Joins conversations about the same images into one sample, without pixels or features."""
    return Sample(
        branches=tuple(replace(encoded, record_id=record_id) for encoded, record_id in zip(conversations, record_ids, strict=True)),
        prefix=shared_prefix(conversations) if len(conversations) > 1 else 0,
        visual_index=join_visual_indices(layouts, tokens_per_crop),
        tokens_per_crop=tokens_per_crop,
        source=source,
    )


def join_visual_indices(layouts: Sequence[Layout], tokens_per_crop: int) -> Int[np.ndarray, " M"]:
    """Returns for each visual slot the index of its visual token over all images of a record."""
    if len(layouts) == 1:
        return layouts[0].visual_index.copy()  # layouts are cached and read-only
    parts, crops = [], 0
    for layout in layouts:
        parts.append(np.where(layout.visual_index >= 0, layout.visual_index + crops * tokens_per_crop, layout.visual_index))
        crops += layout.num_crops
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
