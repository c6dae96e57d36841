"""From records to samples: the one label-mask builder.

A conversation is rendered whole and tokenised once; offsets map tokens to turns. Which tokens are supervised is a policy, the
rest follows: image markers become as many slots as the tiling states, captions of one picture become branches that share what
they have in common, and whatever cannot be trained on has a reason.
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
from sightline.data.samples.templates import Rendered, Template, Turn
from sightline.errors import RecordError
from sightline.types import IMAGE, EncodedConversation, Message, Part, Record, Sample, Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

METASPACE = "\u2581"  # SentencePiece's sign for a space
Policy = Literal["all_text", "assistant", "with_header", "with_padding"]


@dataclass(frozen=True)
class TextRules:
    """What the builder must know beside the tokenizer.

    Attributes:
        prompt: user text that stands beside the picture of a caption record.
        supervise: `assistant`: content and end token of assistant turns. `with_header`: their header too (TinyVLM's reported
            run). `all_text`: everything but images and padding (the SmolVLM port of AlignVLM). `with_padding`: `assistant`, and
            the padding up to `max_tokens` (seemore).
        max_tokens: longest row.
        too_long: what to do with a longer one: `skip` it, or `truncate` its text.
        grid: visual tokens of a crop as rows and columns.
        tiling: how pictures become crops.
        captions: train on `all` captions of a record, or on its `first` alone.
        drop_images: leave the pictures out and keep the text.
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
    """A conversation as it was tokenised: what is the same wherever its row will stand, and all that is costly to find out.

    Attributes:
        ids: tokens, one image token for each run of visual slots.
        turn_of: for each token the turn that it is supervised as part of, -1 for none.
    """

    ids: Int[np.ndarray, " T"]
    turn_of: Int[np.ndarray, " T"]


def pad_id_of(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Returns the token id that fills rows: the padding token, else the end token, else 0."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return 0 if pad is None else int(pad)


class ConversationEncoder:
    """Builds the row of one conversation.

    Args:
        tokenizer: a fast tokenizer that knows `<image>` as one token.
        template: renders conversations.
        rules: policy and limits.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", template: Template, rules: TextRules) -> None:
        self.tokenizer, self.template, self.rules = tokenizer, template, rules
        image_id = tokenizer.convert_tokens_to_ids(IMAGE)
        known = isinstance(image_id, int) and image_id != tokenizer.unk_token_id
        self.image_id = image_id if known and isinstance(image_id, int) else -1  # a text model's tokenizer has none
        # Headers and ends of turns often stand in no named list (Llama 3, Qwen): what was added as special counts as well.
        added = {index: str(token.content) for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.special_ids = frozenset([*tokenizer.all_special_ids, *added])
        # An unknown word is none of them, unless (GPT-2) the tokenizer knows every word and the name is there in name only.
        ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
        self._control_ids = np.array(sorted(self.special_ids - ({tokenizer.unk_token_id} - ends)), dtype=np.int64)
        self.pad_id = pad_id_of(tokenizer)
        self._special = added | dict(zip(tokenizer.all_special_ids, map(str, tokenizer.all_special_tokens), strict=True))
        self._prompt_ids = lru_cache(maxsize=4096)(self._tokenise)

    # Conversations ------------------------------------------------------------------------------------------------------

    def conversations(self, record: Record) -> list[tuple[Message, ...]]:
        """The conversations of a record: its own one, or one for each caption."""
        if record.messages:
            return [self._seen(record.messages)]
        captions = record.captions if self.rules.captions == "all" else record.captions[:1]
        return [(*self.prompt_messages(record), Message("assistant", (Part(caption),))) for caption in captions]

    def prompt_messages(self, record: Record) -> tuple[Message, ...]:
        """What `generate` is fed for a record: its turns up to the last assistant turn, or images and the recipe's prompt."""
        shown = replace(record, images=()) if self.rules.drop_images else record
        return self._seen(prompt_messages(shown, self.rules.prompt))

    def _seen(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        if not self.rules.drop_images:
            return messages
        return tuple(Message(turn.role, tuple(part for part in turn.content if not part.is_image)) for turn in messages)

    def layouts(self, record: Record) -> list[Layout]:
        """The layout of each picture of a record."""
        tiling = self.rules.tiling
        if not record.images or self.rules.drop_images:
            return []
        if tiling is None:
            raise RecordError("image_in_text_model", "the record has images, the model takes text only")
        if len(record.image_info) != len(record.images):
            raise RecordError("image_info_missing", "the sizes of the record's images are not known; prepare the data set again")
        return [tiling.layout(info.width, info.height, self.rules.grid) for info in record.image_info]

    # Rows ---------------------------------------------------------------------------------------------------------------

    def prompt_row(self, messages: Sequence[Message], layouts: Sequence[Layout]) -> EncodedConversation:
        """What `generate` is fed: the conversation so far and the header of an assistant turn."""
        self._check_text(messages)
        text = self.template.render(messages, prompt=True)
        if text.count(IMAGE) != len(layouts):
            raise RecordError("placeholder_count", f"{len(layouts)} images, {text.count(IMAGE)} places in the prompt")
        ids, _ = self._encode(_fill(text, layouts))
        ids, _, slots = self._expand(ids, np.zeros(len(ids), bool), layouts)
        return EncodedConversation(ids, (), slots)

    def row(self, messages: Sequence[Message], layouts: Sequence[Layout], verify: bool = False) -> EncodedConversation:
        """The row of a whole conversation with its supervised spans.

        Args:
            messages: turns in order.
            layouts: one for each picture.
            verify: also check that the ids before each turn are those that `generate` would be fed.

        Raises:
            RecordError: reasons `no_supervised_token`, `too_long`, `placeholder_count`, `placeholder_in_text`,
                `special_token_in_text`, `merged_boundary`, `template_refused`, `template_moves_text`.
        """
        return self.laid_out(self.encode(messages, layouts, verify), layouts)

    def encode(self, messages: Sequence[Message], layouts: Sequence[Layout], verify: bool = False) -> TextEncoding:
        """The first half of `row`: renders, tokenises and finds the supervised turns."""
        self._check_text(messages)
        rendered = self.template.conversation(messages)
        if len(layouts) != rendered.text.count(IMAGE):
            raise RecordError("placeholder_count", f"{len(layouts)} images, {rendered.text.count(IMAGE)} places for them")
        text, turns = _filled(rendered, layouts)
        ids, offsets = self._encode(text)
        turn_of = self._turn_of_token(ids, offsets, turns)
        if verify:
            self._verify(text, ids, offsets, turns)
        if self.rules.supervise == "all_text":
            is_label = ids != self.image_id
            is_label[:1] = False  # nothing precedes the first token
            turn_of = np.where(is_label, np.maximum(turn_of, 0), -1)
        return TextEncoding(ids, turn_of)

    def laid_out(self, encoded: TextEncoding, layouts: Sequence[Layout]) -> EncodedConversation:
        """The second half of `row`: visual slots, length, spans."""
        ids, turn_of, slots = self._expand(encoded.ids, encoded.turn_of, layouts)
        ids, turn_of = self._limit(ids, turn_of, slots)
        spans = _runs(turn_of)
        if not spans:
            raise RecordError("no_supervised_token", "no token of the conversation is supervised")
        return EncodedConversation(ids, spans, slots)

    def pieces(self, messages: Sequence[Message], layouts: Sequence[Layout]) -> list[str]:
        """The text of each token of `row`, visual slots aside: joined they are the conversation as it was tokenised.

        Where several tokens share a character the first has it and the others are empty; a visual slot and padding are empty.
        """
        text, _ = _filled(self.template.conversation(messages), layouts)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        names = self.tokenizer.convert_ids_to_tokens(ids)
        starts = [start for start, _ in offsets[1:]] + [len(text)]
        counts = iter([count for layout in layouts for count in layout.slots])
        out: list[str] = []
        done = 0  # characters that are told
        for token, name, (_, end), following in zip(ids, names, offsets, starts, strict=True):
            # A lone metaspace may claim the letter after it, which the next token is made of.
            end = min(end, following) if name == METASPACE else end
            piece = text[done : max(end, done)]  # what no token claims (a space that was cut off) goes with the next one
            done += len(piece)
            out += [""] * next(counts) if token == self.image_id else [piece]
        if out and done < len(text):
            out[-1] += text[done:]
        return out

    # Steps of a row -----------------------------------------------------------------------------------------------------

    def _tokenise(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, return_attention_mask=False)["input_ids"])

    def _encode(self, text: str) -> tuple[Int[np.ndarray, " T"], Int[np.ndarray, "T 2"]]:
        """Ids and offsets of a whole text.

        Raises:
            RecordError: `special_token_in_text`, where a tokenizer's normal form makes a special token of what looks like one.
        """
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False)
        ids = np.asarray(encoded["input_ids"], dtype=np.int64)
        offsets = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        for place in np.flatnonzero(np.isin(ids, self._control_ids)).tolist():
            begin, end = offsets[place].tolist()
            if self._special[int(ids[place])] not in text[begin:end]:
                raise RecordError("special_token_in_text", f"{text[begin:end]!r} is a special token in its normal form")
        return ids, offsets

    def _check_text(self, messages: Sequence[Message]) -> None:
        for message in messages:
            for part in message.content:
                if part.text and IMAGE in part.text:
                    raise RecordError("placeholder_in_text", f"a text holds {IMAGE!r}, which stands for a picture")
                found = [token for token in self._special.values() if token in part.text] if part.text else []
                if found:
                    raise RecordError("special_token_in_text", f"a text holds {max(found)!r}, which is a special token")

    def _turn_of_token(
        self, ids: Int[np.ndarray, " T"], offsets: Int[np.ndarray, "T 2"], turns: Sequence[Turn]
    ) -> Int[np.ndarray, " T"]:
        """For each token the index of the assistant turn that supervises it, -1 for none."""
        turn_of = np.full(len(ids), -1, dtype=np.int64)
        special = np.isin(ids, self._control_ids)
        for turn in turns:
            begin = turn.header if self.rules.supervise == "with_header" else turn.start
            inside = np.flatnonzero((offsets[:, 0] >= begin) & (offsets[:, 1] <= turn.end) & (offsets[:, 1] > offsets[:, 0]))
            ends = inside[special[inside] & (offsets[inside, 0] >= turn.start)]
            if len(ends):
                inside = inside[inside <= ends[-1]]  # what the template puts after the end token is no speech
            if len(inside):  # pieces of a character may have empty offsets, so the range counts and not each token
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
        """Repeats each image marker as often as its crop has slots."""
        (markers,) = (ids == self.image_id).nonzero()
        counts = [count for layout in layouts for count in layout.slots]
        if len(markers) != len(counts):
            raise RecordError("placeholder_count", f"{len(counts)} crops, but {len(markers)} image tokens in the row")
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


def _fill(text: str, layouts: Sequence[Layout]) -> str:
    """Replaces the first markers of a text by what their layouts put there."""
    pieces = text.split(IMAGE)
    return pieces[0] + "".join(layout.text + piece for layout, piece in zip(layouts, pieces[1:], strict=True))


def _filled(rendered: Rendered, layouts: Sequence[Layout]) -> tuple[str, list[Turn]]:
    """The conversation with its layouts filled in, and its turns moved accordingly."""

    def moved(position: int) -> int:
        before = rendered.text.count(IMAGE, 0, position)
        return position + sum(len(layout.text) - len(IMAGE) for layout in layouts[:before])

    turns = [Turn(turn.index, moved(turn.header), moved(turn.start), moved(turn.end)) for turn in rendered.turns]
    return _fill(rendered.text, layouts), turns


def _runs(turn_of: Int[np.ndarray, " T"]) -> tuple[Span, ...]:
    """Contiguous runs of one supervised turn."""
    borders = [0, *((turn_of[1:] != turn_of[:-1]).nonzero()[0] + 1).tolist(), len(turn_of)]
    return tuple(Span(start, end, turn) for start, end in pairwise(borders) if end > start and (turn := int(turn_of[start])) >= 0)


def shared_prefix(rows: Sequence[EncodedConversation]) -> int:
    """Number of leading tokens that rows with the same pictures have in common and none of them supervises.

    It holds every visual slot, else it is 0 and the rows cannot share a row.
    """
    limit = min(min(len(row.ids), row.spans[0].start) for row in rows)
    stack = np.array([row.ids[:limit] for row in rows])
    same = (stack == stack[0]).all(0)
    prefix = limit if same.all() else int(same.argmin())
    holds_images = all(len(row.slots) == 0 or row.slots[-1] < prefix for row in rows)
    return prefix if holds_images else 0


def text_sample(
    rows: Sequence[EncodedConversation], record_ids: Sequence[str], layouts: Sequence[Layout], tokens_per_crop: int, source: int = 0
) -> Sample:
    """Rows with the same pictures as one sample whose pictures are not filled in."""
    return Sample(
        branches=tuple(replace(row, record_id=record_id) for row, record_id in zip(rows, record_ids, strict=True)),
        prefix=shared_prefix(rows) if len(rows) > 1 else 0,
        visual_index=join_visual_indices(layouts, tokens_per_crop),
        tokens_per_crop=tokens_per_crop,
        source=source,
    )


def join_visual_indices(layouts: Sequence[Layout], tokens_per_crop: int) -> Int[np.ndarray, " M"]:
    """Visual-token index of each slot over all pictures of a record."""
    if len(layouts) == 1:
        return layouts[0].visual_index.copy()  # what a layout holds may not be written
    parts, crops = [], 0
    for layout in layouts:
        parts.append(np.where(layout.visual_index >= 0, layout.visual_index + crops * tokens_per_crop, layout.visual_index))
        crops += layout.num_crops
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
