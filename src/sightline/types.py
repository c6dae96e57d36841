"""The nouns of Sightline, in reading order: Record, Sample, Batch, Hidden, Loss, Prediction, Score.

Every stage of the way of data takes one of these and returns the next. They are frozen and carry no behaviour beyond their own
form, so that a floor can exchange them without knowing who made them. This module does not import torch: preparing data is
quick to start.

Shape legend, used as suffix on tensors and in annotations of the whole project:

    B rows      T tokens of a row    S supervised tokens    M visual slots
    N images (crops, when an image is tiled)    P patches of an encoder    K visual tokens of a crop
    E width of the vision encoder    D width of the decoder    V vocabulary    H heads    X experts
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, Self

from sightline.errors import RecordError

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Int, UInt8
    from torch import Tensor

IMAGE = "<image>"  # stands for one image in a text, before it becomes visual tokens
PADDING = -1  # sample id of padding slots, branch id of a shared prefix


# Record ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What `data prepare` learned of an image file: its hash, and the size of the picture as shown (EXIF turn applied)."""

    sha256: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a message: a text, or the place of the next image (then `text` is None)."""

    text: str | None = None

    @property
    def is_image(self) -> bool:
        return self.text is None


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation, in the chat schema of transformers: a role and content parts."""

    role: Literal["system", "user", "assistant"]
    content: tuple[Part, ...]

    @property
    def num_images(self) -> int:
        return sum(part.is_image for part in self.content)

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content if part.text is not None)


@dataclass(frozen=True, slots=True)
class Box:
    """A labelled region; `xyxy` are fractions of width and height (left, top, right, bottom)."""

    label: str
    xyxy: tuple[float, float, float, float]
    score: float = 1.0


@dataclass(frozen=True, slots=True)
class Record:
    """One line of `records.jsonl`: images with a conversation or with captions.

    Exactly one of `messages` and `captions` is given. With `captions` the prompt is the recipe's `data.prompt`, and each
    caption is a branch that shares the images. A record without images trains a decoder on text.

    Attributes:
        id: unique in its dataset folder.
        images: paths relative to the dataset folder, in the order of the `{"type": "image"}` parts.
        image_info: hash and size of each image; filled by `data prepare`.
        boxes: labelled regions, as fractions of the first image.
        answers: all accepted answers of the last question (VQA has ten).
        negatives: hard-negative captions, for composition tasks.
        split: name of the split, "train" by default.
        meta: anything else worth keeping; never read by training.
    """

    id: str
    images: tuple[str, ...] = ()
    image_info: tuple[ImageInfo, ...] = ()
    messages: tuple[Message, ...] = ()
    captions: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    answers: tuple[str, ...] = ()
    negatives: tuple[str, ...] = ()
    split: str = "train"
    meta: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The line as a JSON object; empty fields are left out."""
        out: dict[str, Any] = {"id": self.id, "split": self.split}
        if self.images:
            out["images"] = list(self.images)
        if self.image_info:
            out["image_info"] = [[info.sha256, info.width, info.height] for info in self.image_info]
        if self.messages:
            out["messages"] = [
                {
                    "role": message.role,
                    "content": [
                        {"type": "image"} if part.is_image else {"type": "text", "text": part.text} for part in message.content
                    ],
                }
                for message in self.messages
            ]
        for name in ("captions", "answers", "negatives"):
            if getattr(self, name):
                out[name] = list(getattr(self, name))
        if self.boxes:
            out["boxes"] = [{"label": box.label, "xyxy": list(box.xyxy), "score": box.score} for box in self.boxes]
        if self.meta:
            out["meta"] = dict(self.meta)
        return out

    @classmethod
    def from_json(cls, line: Any) -> Self:
        """Reads one JSON object.

        Raises:
            RecordError: a field is missing, unknown, or of the wrong type; `reason` names it.
        """
        if not isinstance(line, dict):
            raise RecordError("not_an_object", f"a record is a JSON object, this is {type(line).__name__}")
        unknown = sorted(set(line) - RECORD_FIELDS)
        if unknown:
            raise RecordError("unknown_field", f"unknown field {unknown[0]!r}; known are {', '.join(sorted(RECORD_FIELDS))}")
        record_id = line.get("id")
        if isinstance(record_id, bool) or not isinstance(record_id, str | int) or record_id == "":
            raise RecordError("bad_id", f"'id' must be a text or a whole number, got {record_id!r}")
        record = cls(
            id=str(record_id),
            images=_texts(line, "images"),
            image_info=tuple(_image_info(item) for item in _items(line, "image_info")),
            messages=tuple(_message(item) for item in _items(line, "messages")),
            captions=_texts(line, "captions"),
            boxes=tuple(_box(item) for item in _items(line, "boxes")),
            answers=_texts(line, "answers"),
            negatives=_texts(line, "negatives"),
            split=_text(line.get("split", "train"), "split"),
            meta=_meta(line.get("meta", {})),
        )
        record.check()
        return record

    def check(self) -> None:
        """Refuses a record that cannot be trained or evaluated on.

        Raises:
            RecordError: reasons `no_text`, `two_texts`, `empty_caption`, `images_without_place`, `places_without_image`,
                `path_outside_root`, `image_info_count`, `no_split`.
        """
        if self.messages and self.captions:
            raise RecordError("two_texts", "a record has 'messages' or 'captions', not both")
        if not self.messages and not self.captions:
            raise RecordError("no_text", "a record needs 'messages' or 'captions'")
        if any(not caption.strip() for caption in self.captions):
            raise RecordError("empty_caption", "a caption is empty")
        if not self.split:
            raise RecordError("no_split", "'split' is empty")
        if self.messages:
            places = sum(message.num_images for message in self.messages)
            if places < len(self.images):
                raise RecordError("images_without_place", f"{len(self.images)} images, {places} image parts in 'messages'")
            if places > len(self.images):
                raise RecordError("places_without_image", f"{places} image parts in 'messages', {len(self.images)} images")
        if self.image_info and len(self.image_info) != len(self.images):
            raise RecordError("image_info_count", f"{len(self.images)} images, {len(self.image_info)} entries in 'image_info'")
        for path in self.images:
            pure = PurePosixPath(path.replace("\\", "/"))
            if not path or "\0" in path or pure.is_absolute() or ".." in pure.parts or ":" in pure.parts[0]:
                raise RecordError("path_outside_root", f"image path {path!r} must be relative and stay inside the dataset folder")


RECORD_FIELDS = frozenset(item.name for item in fields(Record))


def _items(line: dict[str, Any], name: str) -> list[Any]:
    value = line.get(name, [])
    if not isinstance(value, list):
        raise RecordError(f"bad_{name}", f"{name!r} must be a list, got {type(value).__name__}")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise RecordError(f"bad_{name}", f"{name!r} must be text, got {type(value).__name__}")
    return value


def _texts(line: dict[str, Any], name: str) -> tuple[str, ...]:
    return tuple(_text(value, name) for value in _items(line, name))


def _meta(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RecordError("bad_meta", f"'meta' must be an object, got {type(value).__name__}")
    return value


def _image_info(item: Any) -> ImageInfo:
    match item:
        case [str(sha256), int(width), int(height)] if width > 0 and height > 0:
            return ImageInfo(sha256, width, height)
    raise RecordError("bad_image_info", f"an 'image_info' entry is [sha256, width, height], got {item!r}")


def _message(item: Any) -> Message:
    if not isinstance(item, dict) or item.get("role") not in ("system", "user", "assistant"):
        raise RecordError("bad_messages", "a message is {'role': 'system'|'user'|'assistant', 'content': ...}")
    content = item.get("content")
    if isinstance(content, str):
        return Message(item["role"], (Part(content),))
    if not isinstance(content, list):
        raise RecordError("bad_messages", "'content' of a message is a text or a list of parts")
    return Message(item["role"], tuple(_part(part) for part in content))


def _part(item: Any) -> Part:
    match item:
        case {"type": "image"}:
            return Part()
        case {"type": "text", "text": str(text)}:
            return Part(text)
    raise RecordError("bad_messages", "a content part is {'type': 'image'} or {'type': 'text', 'text': ...}")


def _is_finite(value: Any) -> bool:
    """A number that fits a float; JSON allows whole numbers of any length."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf and abs(value) <= 1e300


def _box(item: Any) -> Box:
    if not isinstance(item, dict) or not isinstance(item.get("label"), str):
        raise RecordError("bad_boxes", "a box is {'label': text, 'xyxy': [left, top, right, bottom], 'score': number}")
    values = [*item.get("xyxy", []), item.get("score", 1.0)] if isinstance(item.get("xyxy"), list) else []
    if len(values) != 5 or not all(_is_finite(value) for value in values):
        raise RecordError("bad_boxes", f"'xyxy' of a box is four finite numbers, got {item.get('xyxy')!r}")
    left, top, right, bottom, score = (float(value) for value in values)
    if not (0 <= left <= right <= 1 and 0 <= top <= bottom <= 1):
        raise RecordError("bad_boxes", f"'xyxy' are fractions with left <= right and top <= bottom, got {item['xyxy']!r}")
    return Box(item["label"], (left, top, right, bottom), score)


# Sample ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Span:
    """A run of supervised tokens, `start` inclusive and `end` exclusive, that belongs to one turn of a conversation."""

    start: int
    end: int
    turn: int


@dataclass(frozen=True, slots=True)
class Branch:
    """One continuation of a sample's prefix: a caption, or a question with its answer.

    `ids` are the tokens of the whole row (prefix included), exactly as they would stand alone; `spans` index into them.
    """

    ids: "Int[np.ndarray, ' T']"
    spans: tuple[Span, ...]
    record_id: str


@dataclass(frozen=True, slots=True)
class Sample:
    """What one row, or one part of a packed row, is made of.

    Attributes:
        branches: at least one; all begin with the same `prefix` tokens.
        prefix: number of leading tokens that the branches share; they hold every image. Equal to 0 with a single branch.
        image_slots: position of each visual token in the row.
        image_source: for each visual token its index in the concatenation of all crops' visual tokens (`crop * K + k`); a value
            below 0 names a learned separator instead of a patch (see `sightline.data.images.tilings`).
        images: prepared pixels of each crop; None when features are stored.
        features: stored outputs of a frozen encoder for each crop, instead of pixels.
        tokens_per_crop: visual tokens that the connector gives per crop (`K`).
        contrast: stored image-free logits, one for each supervised token, branch after branch.
        source: index of the data source in a mixture.
    """

    branches: tuple[Branch, ...]
    prefix: int
    image_slots: "Int[np.ndarray, ' M']"
    image_source: "Int[np.ndarray, ' M']"
    images: "UInt8[np.ndarray, 'N h w 3'] | None" = None
    features: "Float[np.ndarray, 'N P E'] | None" = None
    tokens_per_crop: int = 0
    contrast: "Float[np.ndarray, ' S'] | None" = None
    source: int = 0

    @property
    def num_crops(self) -> int:
        stack = self.images if self.images is not None else self.features
        return 0 if stack is None else len(stack)

    @property
    def num_tokens(self) -> int:
        """Tokens that the sample takes in a row: the prefix once, then what each branch adds."""
        return self.prefix + sum(len(branch.ids) - self.prefix for branch in self.branches)


# Batch ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tokens:
    """Packed rows of token ids.

    A query attends to a key of the same sample that lies in the prefix or in its own branch and whose position is not after
    its own.

    Attributes:
        sample_BT: counts samples within the batch; -1 is padding.
        branch_BT: counts branches within the sample; -1 is a prefix that several branches share.
        is_plain: each row is one sample without shared prefix, padded at its end, so that ordinary causal attention is right.
    """

    ids_BT: "Int[Tensor, 'B T']"
    position_BT: "Int[Tensor, 'B T']"
    sample_BT: "Int[Tensor, 'B T']"
    branch_BT: "Int[Tensor, 'B T']"
    is_plain: bool


@dataclass(frozen=True, slots=True)
class Visual:
    """What fills the visual slots of a batch: the pixels of its crops, or their stored features.

    Attributes:
        pixels_NHWC: crops as prepared for the encoder, before rescaling and normalisation.
        features_NPE: outputs of a frozen encoder, instead of pixels.
        slot_M: index of each visual token in the flattened rows (`row * T + position in row`).
        source_M: for each slot the index of its visual token in the flattened `[N * K]` outputs of the connector; values
            below 0 count from the end of the model's table of learned separators.
    """

    pixels_NHWC: "UInt8[Tensor, 'N h w 3'] | None"
    features_NPE: "Float[Tensor, 'N P E'] | None"
    slot_M: "Int[Tensor, ' M']"
    source_M: "Int[Tensor, ' M']"

    @property
    def num_crops(self) -> int:
        for stack in (self.pixels_NHWC, self.features_NPE):
            if stack is not None:
                return stack.shape[0]
        return 0


@dataclass(frozen=True, slots=True)
class Supervision:
    """A flat list of what is to be predicted from where.

    It is a list and not one label per slot because the last slot of a shared prefix predicts the first token of every branch.

    Attributes:
        slot_S: index into the flattened rows whose hidden state predicts `target_S`; -1 where nothing precedes the target.
        span_S: counts contiguous runs of supervised tokens within the batch; smoothing never crosses a span.
        turn_S: turn of the conversation that the token belongs to.
        source_S: index of the data source in a mixture.
    """

    slot_S: "Int[Tensor, ' S']"
    target_S: "Int[Tensor, ' S']"
    sample_S: "Int[Tensor, ' S']"
    branch_S: "Int[Tensor, ' S']"
    turn_S: "Int[Tensor, ' S']"
    span_S: "Int[Tensor, ' S']"
    source_S: "Int[Tensor, ' S']"

    def __len__(self) -> int:
        return self.slot_S.shape[0]


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed rows, what fills their visual slots, and what they are to predict.

    Attributes:
        tokens: the rows.
        visual: crops and their slots; None in a batch of text.
        supervision: the targets.
        contrast_S: stored logits of the targets without the image, where a frozen decoder makes them constant.
        record_ids: for each sample the ids of the records in its branches, for error messages and logs.
    """

    tokens: Tokens
    visual: Visual | None
    supervision: Supervision
    blind_logits_S: "Float[Tensor, ' S'] | None" = None
    record_ids: tuple[tuple[str, ...], ...] = ()

    def to(self, device: Any) -> Self:
        """The same batch on another device."""
        visual = None if self.visual is None else _moved(self.visual, device)
        batch = replace(self, tokens=_moved(self.tokens, device), visual=visual, supervision=_moved(self.supervision, device))
        return _moved(batch, device)

    def text_only(self) -> Self:
        """The same batch without its visual tokens: rows get shorter, positions stay.

        A target that a visual token used to predict is now predicted from the last text before it in its sample (prefix or own
        branch); where there is none its slot is -1.
        """
        if self.visual is None:
            return self
        import torch

        tokens, supervision = self.tokens, self.supervision
        num_rows, width = tokens.ids_BT.shape
        keep = (tokens.sample_BT != PADDING).flatten()
        keep[self.visual.slot_M] = False
        keep_BT = keep.view(num_rows, width)
        counts_B = keep_BT.sum(1)
        new_width = max(int(counts_B.max()), 1)
        column_BT = keep_BT.cumsum(1) - 1
        row_BT = torch.arange(num_rows, device=keep.device)[:, None].expand(num_rows, width)
        new_slot = torch.where(keep, (row_BT * new_width + column_BT).flatten(), -1)

        def compact(values_BT: "Tensor", fill: int) -> "Tensor":
            out = values_BT.new_full((num_rows * new_width,), fill)
            out[new_slot[keep]] = values_BT.flatten()[keep]
            return out.view(num_rows, new_width)

        short = Tokens(
            ids_BT=compact(tokens.ids_BT, 0),
            position_BT=compact(tokens.position_BT, 0),
            sample_BT=compact(tokens.sample_BT, PADDING),
            branch_BT=compact(tokens.branch_BT, PADDING),
            is_plain=False,  # positions jump where an image stood; only an explicit mask is right
        )
        return replace(
            self,
            tokens=short,
            visual=None,
            supervision=replace(supervision, slot_S=_last_text_slot(tokens, keep, new_slot, supervision.slot_S)),
            blind_logits_S=None,
        )


def _last_text_slot(tokens: Tokens, keep: "Tensor", new_slot: "Tensor", slot_S: "Tensor") -> "Tensor":
    """Moves each slot back to the nearest kept slot of the same sample, in the same branch or in the prefix before it."""
    sample, branch = tokens.sample_BT.flatten(), tokens.branch_BT.flatten()
    out = new_slot[slot_S].clone()
    for index in (~keep[slot_S]).nonzero().flatten().tolist():
        slot = int(slot_S[index])
        visible = keep[:slot] & (sample[:slot] == sample[slot]) & ((branch[:slot] == branch[slot]) | (branch[:slot] == PADDING))
        before = visible.nonzero().flatten()
        out[index] = new_slot[before[-1]] if len(before) else -1
    return out


def _moved(noun: Any, device: Any) -> Any:
    """A noun whose tensors (fields with an axis suffix) are on `device`."""
    tensors = {item.name: getattr(noun, item.name) for item in fields(noun) if item.name.rpartition("_")[2].isupper()}
    return replace(noun, **{name: value.to(device, non_blocking=True) for name, value in tensors.items() if value is not None})


# Hidden ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Head:
    """A language model head: `logits = softcap * tanh(scale * (h W^T + b) / softcap)`, without the tanh when `softcap` is 0."""

    weight_VD: "Float[Tensor, 'V D']"
    bias_V: "Float[Tensor, ' V'] | None" = None
    softcap: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Hidden:
    """Hidden states at the supervised slots, and the head that turns them into logits.

    Attributes:
        states_SD: one row per entry of `Supervision`; entries whose slot is -1 hold zeros.
        auxiliary: losses that the model itself adds, by name: scalars, coefficients included, means over the micro-batch.
    """

    states_SD: "Float[Tensor, 'S D']"
    head: Head
    auxiliary: "Mapping[str, Float[Tensor, '']]" = field(default_factory=dict)


# Loss -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Loss:
    """A sum and its weight; the gradient of a step is that of `sum(total) / sum(weight)` over micro-batches and ranks.

    Attributes:
        total: a scalar to back-propagate.
        weight: a scalar without gradient.
        parts: named `(sum, weight)` pairs for the log, without gradient.
    """

    total: "Float[Tensor, '']"
    weight: "Float[Tensor, '']"
    parts: "Mapping[str, tuple[Tensor, Tensor]]" = field(default_factory=dict)


# Prediction, Score ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prediction:
    """One generated text, with the record that it answers."""

    record_id: str
    text: str
    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Score:
    """A metric with its bootstrap interval and the values per item that it is made of."""

    name: str
    value: float
    low: float
    high: float
    items: tuple[float, ...] = ()

    @property
    def n(self) -> int:
        return len(self.items)

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}
