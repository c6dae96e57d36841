"""The nouns of Sightline, in reading order: Record, Sample, Batch, Hidden, Loss, Prediction, Score.

Each step of the data path takes one of these and returns the next. They are frozen dataclasses without further behaviour: records
are read and checked in `data.records`, batches are transformed in `ops`. This module does not import torch, so that preparing
data starts quickly.

Shape legend for tensor suffixes and annotations throughout the package:

    B rows      T tokens of a row    S supervised tokens    M visual slots
    N crops    P patches of an encoder    K visual tokens of a crop
    E width of the vision encoder    D width of the decoder    V vocabulary    H heads    X experts
    C texts of a batch of pairs    U width of the text encoder    W width of the space in which images and texts are compared
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Bool, Float, Int, UInt8
    from torch import Tensor

IMAGE = "<image>"  # placeholder of one image in a text, before it becomes visual tokens
BoxChoice = Literal["cells", "record", "random"]  # where the boxes of an image's components come from
RegionChoice = Literal["crop", "grey"]  # what an encoder sees of a box
PhraseChoice = Literal["record", "random"]  # where the phrases of a caption's components come from
PADDING = -1  # sample id of padding slots, branch id of a shared prefix


# Record ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Facts about an image file that `data prepare` records: sha256, and width and height in pixels after EXIF rotation."""

    sha256: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a message: a text, or, where `text` is None, the next image."""

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
class Entity:
    """A thing that a text names, with its attributes: `small red circle`.

    Attributes:
        text: the phrase, without article.
        box: index in `Record.boxes` of the region that it names; None where that is unknown.
    """

    text: str
    box: int | None = None


@dataclass(frozen=True, slots=True)
class Relation:
    """Two things and how they are related, as a text states it.

    Attributes:
        subject, relation, object: `small red circle`, `to the left of`, `blue star`.
        boxes: indices in `Record.boxes` of subject and object; None where they are unknown.
    """

    subject: str
    relation: str
    object: str
    boxes: tuple[int, int] | None = None

    @property
    def text(self) -> str:
        """The three phrases in a row."""
        return f"{self.subject} {self.relation} {self.object}"


@dataclass(frozen=True, slots=True)
class Components:
    """The entities and relations of one text of a record.

    Attributes:
        text: the caption or negative that they were taken from, character by character.
        entities, relations: in the order of the text; both may be empty.
    """

    text: str
    entities: tuple[Entity, ...] = ()
    relations: tuple[Relation, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """One line of `records.jsonl`: images with a conversation or with captions.

    Exactly one of `messages` and `captions` is given. With `captions` the prompt is the recipe's `data.prompt`, and each
    caption is a branch that shares the images. A record without images trains a decoder on text.

    Attributes:
        id: unique in its dataset folder.
        images: paths relative to the dataset folder, in the order of the `{"type": "image"}` parts.
        image_info: sha256 and size of each image, written by `data prepare`.
        messages: the conversation.
        captions: captions of the images.
        boxes: labelled regions, as fractions of the first image's width and height.
        answers: all accepted answers of the last question (VQA has ten).
        negatives: hard-negative captions, for composition tasks.
        components: entities and relations of captions and negatives, at most one entry for each text (ComAlign).
        split: name of the split, "train" by default.
        meta: further values; never read by training.
    """

    id: str
    images: tuple[str, ...] = ()
    image_info: tuple[ImageInfo, ...] = ()
    messages: tuple[Message, ...] = ()
    captions: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    answers: tuple[str, ...] = ()
    negatives: tuple[str, ...] = ()
    components: tuple[Components, ...] = ()
    split: str = "train"
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def image_keys(self) -> tuple[str, ...]:
        """Equal for records with the same images: their sha256 (in shards each record has its own paths), else their paths."""
        return tuple(info.sha256 for info in self.image_info) or self.images

    def components_of(self, text: str) -> Components:
        """Returns the entities and relations of a caption or negative; without any where the record lists none for it."""
        return next((found for found in self.components if found.text == text), Components(text))


# Sample ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Span:
    """A contiguous range of supervised tokens, `start` inclusive and `end` exclusive, of one turn of a conversation."""

    start: int
    end: int
    turn: int


@dataclass(frozen=True, slots=True)
class EncodedConversation:
    """A rendered and tokenised conversation. In a sample it is one branch: a caption, or a question with its answer.

    Attributes:
        ids: token ids of the whole conversation, shared prefix included; an image token at each visual slot.
        spans: the supervised tokens.
        slots: position of each visual slot in `ids`.
        record_id: id of the record that it was made from; empty where that is unknown.
    """

    ids: "Int[np.ndarray, ' T']"
    spans: tuple[Span, ...]
    slots: "Int[np.ndarray, ' M']"
    record_id: str = ""

    @property
    def num_supervised(self) -> int:
        return sum(span.end - span.start for span in self.spans)


@dataclass(frozen=True, slots=True)
class Sample:
    """One training example: a row, or a part of a packed row.

    Attributes:
        branches: one or more conversations that begin with the same `prefix` tokens.
        prefix: number of leading tokens that the branches share; they include every visual slot. 0 for a single branch.
        visual_index: for each visual slot the index of its visual token among those of all crops (`crop * K + k`); an index
            below 0 names a learned separator (see `sightline.data.images.tilings`).
        images: prepared pixels of each crop; None where features are used.
        features: stored outputs of a frozen encoder for each crop, instead of pixels.
        tokens_per_crop: visual tokens of a crop after the connector (`K`).
        blind_logits: stored image-free logits, one per supervised token, branch after branch.
        source: index of the data set in a mixture.
    """

    branches: tuple[EncodedConversation, ...]
    prefix: int
    visual_index: "Int[np.ndarray, ' M']"
    images: "UInt8[np.ndarray, 'N h w 3'] | None" = None
    features: "Float[np.ndarray, 'N P E'] | None" = None
    tokens_per_crop: int = 0
    blind_logits: "Float[np.ndarray, ' S'] | None" = None
    source: int = 0

    @property
    def image_slots(self) -> "Int[np.ndarray, ' M']":
        """Position of each visual slot, the same in every branch."""
        return self.branches[0].slots

    @property
    def num_crops(self) -> int:
        stack = self.images if self.images is not None else self.features
        return 0 if stack is None else len(stack)

    @property
    def num_tokens(self) -> int:
        """Number of tokens in a row: the prefix once, then the rest of each branch."""
        return self.prefix + sum(len(branch.ids) - self.prefix for branch in self.branches)


# Batch ----------------------------------------------------------------------------------------------------------------------


class TrainingBatch(Protocol):
    """Interface of batches that the training loop needs, independent of the objective."""

    @property
    def record_ids(self) -> Sequence[Sequence[str]]:
        """Ids of the records of each sample, for error messages."""
        ...

    def to(self, device: Any) -> Self:
        """Returns the batch on another device."""
        ...

    def counts(self) -> Mapping[str, int]:
        """Returns counts that the log sums over micro-batches and ranks: "samples", and "tokens" where the batch has tokens."""
        ...


@dataclass(frozen=True, slots=True)
class Tokens:
    """Packed rows of token ids.

    A query attends to a key of the same sample that lies in the prefix or in its own branch and whose position is not after
    its own.

    Attributes:
        ids_BT: token ids.
        position_BT: position ids.
        sample_BT: index of the token's sample in the batch; -1 for padding.
        branch_BT: index of the token's branch in the sample; -1 for a shared prefix.
        is_plain: each row holds one sample without shared prefix, right-padded, so that causal attention suffices.
    """

    ids_BT: "Int[Tensor, 'B T']"
    position_BT: "Int[Tensor, 'B T']"
    sample_BT: "Int[Tensor, 'B T']"
    branch_BT: "Int[Tensor, 'B T']"
    is_plain: bool


@dataclass(frozen=True, slots=True)
class Visual:
    """Visual inputs of a batch, pixels or stored features, and the visual slots that they fill.

    Attributes:
        pixels_NHWC: prepared crops, before rescaling and normalisation.
        features_NPE: stored outputs of a frozen encoder, instead of pixels.
        slot_M: index of each visual slot in the flattened rows (`row * T + position`).
        visual_index_M: for each slot the index of its visual token in the flattened `[N * K]` outputs of the connector; an index
            below 0 counts from the end of the model's table of learned separators.
        text_width: largest number of tokens of a row outside visual slots, at least 1; 0 where it is unknown.
    """

    pixels_NHWC: "UInt8[Tensor, 'N h w 3'] | None"
    features_NPE: "Float[Tensor, 'N P E'] | None"
    slot_M: "Int[Tensor, ' M']"
    visual_index_M: "Int[Tensor, ' M']"
    text_width: int = 0

    @property
    def num_crops(self) -> int:
        for stack in (self.pixels_NHWC, self.features_NPE):
            if stack is not None:
                return stack.shape[0]
        return 0


@dataclass(frozen=True, slots=True)
class Supervision:
    """The training targets as a flat list.

    Labels per position do not suffice: the last token of a shared prefix predicts the first token of every branch.

    Attributes:
        slot_S: index in the flattened rows of the hidden state that predicts `target_S`; -1 where nothing precedes the target.
        target_S: token id to predict.
        sample_S, branch_S: index of the sample in the batch, and of the branch in the sample.
        turn_S: index of the turn in the conversation.
        span_S: index of the contiguous span of supervised tokens in the batch; smoothing never crosses a span.
        source_S: index of the data set in a mixture.
        num_sources: largest index of a data set plus 1; 0 where it is unknown.
    """

    slot_S: "Int[Tensor, ' S']"
    target_S: "Int[Tensor, ' S']"
    sample_S: "Int[Tensor, ' S']"
    branch_S: "Int[Tensor, ' S']"
    turn_S: "Int[Tensor, ' S']"
    span_S: "Int[Tensor, ' S']"
    source_S: "Int[Tensor, ' S']"
    num_sources: int = 0

    def __len__(self) -> int:
        return self.slot_S.shape[0]


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed rows with their visual inputs and targets.

    Attributes:
        tokens: the rows.
        visual: visual inputs and their slots; None in a batch without images.
        supervision: the targets.
        blind_logits_S: stored image-free logits of the targets (CAL with a frozen decoder), or None.
        record_ids: ids of the records of each sample, for error messages and logs.
    """

    tokens: Tokens
    visual: Visual | None
    supervision: Supervision
    blind_logits_S: "Float[Tensor, ' S'] | None" = None
    record_ids: tuple[tuple[str, ...], ...] = ()

    def to(self, device: Any) -> Self:
        """Returns the batch on another device."""
        return _on_device(self, device)

    def counts(self) -> dict[str, int]:
        """Returns counts for the log, without padding."""
        return {
            "tokens": int((self.tokens.sample_BT != PADDING).sum()),
            "supervised": len(self.supervision),
            "samples": len(self.record_ids),
            "crops": 0 if self.visual is None else self.visual.num_crops,
        }


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts for a text encoder, one per row, or the stored outputs of a frozen one.

    Attributes:
        ids_CT: token ids, padded on the right; None where outputs are stored.
        mask_CT: 1 at tokens, 0 at padding.
        states_CU: pooled outputs of a frozen text encoder, instead of tokens.
    """

    ids_CT: "Int[Tensor, 'C T'] | None" = None
    mask_CT: "Int[Tensor, 'C T'] | None" = None
    states_CU: "Float[Tensor, 'C U'] | None" = None


@dataclass(frozen=True, slots=True)
class ComponentInputs:
    """The components of a `PairBatch`: entities first, then relations.

    Attributes:
        boxes_NK4: boxes of each image in fractions of it (left, top, right, bottom); no area is padding.
        phrases: the phrases of all texts, each once.
        phrase_CJ: index of each text's phrases; -1 is padding.
    """

    boxes_NK4: "Float[Tensor, 'N K 4']"
    phrases: Texts
    phrase_CJ: "Int[Tensor, 'C J']"


@dataclass(frozen=True, slots=True)
class PairBatch:
    """Pairs of an image and a caption. Text `i` below N is the caption of image `i`; the rest are hard negatives.

    Attributes:
        pixels_NHWC: one prepared image per pair, before rescaling and normalisation; with a crop for each box the whole image of
            each pair is followed by its boxes.
        features_NPE: stored outputs of a frozen encoder, instead of pixels.
        texts: C texts.
        image_N: identity of each image; equal for pairs of the same image.
        owner_C: identity of the image that each text describes; -1 for hard negatives.
        text_C: identity of each text; equal for equal texts.
        record_ids: ids of the records of each pair, for error messages and logs.
        components: boxes and phrases, for a model that compares them.
    """

    pixels_NHWC: "UInt8[Tensor, 'N h w 3'] | None"
    features_NPE: "Float[Tensor, 'N P E'] | None"
    texts: Texts
    image_N: "Int[Tensor, ' N']"
    owner_C: "Int[Tensor, ' C']"
    text_C: "Int[Tensor, ' C']"
    record_ids: tuple[tuple[str, ...], ...] = ()
    components: ComponentInputs | None = None

    def to(self, device: Any) -> Self:
        """Returns the batch on another device."""
        return _on_device(self, device)

    def counts(self) -> dict[str, int]:
        """Returns counts for the log."""
        return {"samples": len(self.image_N), "texts": len(self.text_C)}


def tensors_of(value: Any) -> "list[Tensor]":
    """Returns every tensor of a dataclass, of nested ones too."""
    if is_dataclass(value):
        return [tensor for item in fields(value) for tensor in tensors_of(getattr(value, item.name))]
    return [value] if hasattr(value, "to") else []


def _on_device(value: Any, device: Any) -> Any:
    """Moves every tensor of a dataclass to `device`, recursively; other values stay unchanged."""
    if hasattr(value, "to") and not is_dataclass(value):
        # Only a copy from pinned memory does not stop the host.
        return (value.pin_memory() if _is_copy_to_cuda(value, device) else value).to(device, non_blocking=True)
    if is_dataclass(value):
        return replace(value, **{item.name: _on_device(getattr(value, item.name), device) for item in fields(value)})  # type: ignore
    return value


def _is_copy_to_cuda(value: Any, device: Any) -> bool:
    return str(device).startswith("cuda") and value.device.type == "cpu"


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
    """Hidden states at the supervised positions, and the head that maps them to logits.

    Attributes:
        states_SD: hidden state of each entry of `Supervision`; zeros where its slot is -1.
        head: the language model head.
        auxiliary: auxiliary losses of the model by name: scalars, coefficients included, means over the micro-batch.
        values: further values of the model for the log by name: scalars without gradient, means over the micro-batch.
    """

    states_SD: "Float[Tensor, 'S D']"
    head: Head
    auxiliary: "Mapping[str, Float[Tensor, '']]" = field(default_factory=dict)
    values: "Mapping[str, Float[Tensor, '']]" = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Unit vectors of the images and texts of a `PairBatch`, and what turns their cosine into a logit.

    Attributes:
        image_NW, text_CW: vectors of length 1, in float32 or wider.
        scale: inverse temperature, a scalar.
        bias: added to every logit of a sigmoid loss, a scalar; None for a model without one.
    """

    image_NW: "Float[Tensor, 'N W']"
    text_CW: "Float[Tensor, 'C W']"
    scale: "Float[Tensor, '']"
    bias: "Float[Tensor, ''] | None" = None


@dataclass(frozen=True, slots=True)
class ComponentVectors:
    """Vectors of images or texts and of their components; of length 1, or 0 for padding that counts.

    Attributes:
        plain_NW: of the whole by the dual encoder alone.
        whole_NW: of the whole, refined.
        entity_NKW, relation_NKW: of the components; K may differ between images and texts, and may be 0.
        entity_NK, relation_NK: which of them are compared; at least one of each row where K is not 0.
    """

    plain_NW: "Float[Tensor, 'N W']"
    whole_NW: "Float[Tensor, 'N W']"
    entity_NKW: "Float[Tensor, 'N K W']"
    entity_NK: "Bool[Tensor, 'N K']"
    relation_NKW: "Float[Tensor, 'N K W']"
    relation_NK: "Bool[Tensor, 'N K']"


@dataclass(frozen=True, slots=True)
class ComponentEmbeddings(Embeddings):
    """`Embeddings` whose vectors are those of the refined wholes, with the vectors of all components."""

    images: ComponentVectors = field(kw_only=True)
    texts: ComponentVectors = field(kw_only=True)


# Loss -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Loss:
    """A summed loss and its weight. A step minimises `sum(total) / sum(weight)` over micro-batches and ranks.

    Attributes:
        total: scalar to back-propagate.
        weight: scalar without gradient.
        parts: `(sum, weight)` pairs by name for the log, without gradient.
    """

    total: "Float[Tensor, '']"
    weight: "Float[Tensor, '']"
    parts: "Mapping[str, tuple[Tensor, Tensor]]" = field(default_factory=dict)


# Prediction, Score ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to a query, or the reason why there is none; a line of `predictions.jsonl`.

    Attributes:
        id: of the query.
        text: generated, with its number of tokens, end token included.
        scores: log-probability of each candidate, where these were asked for.
        embedding: where that was asked for.
        skipped: reason why there is no answer; empty where there is one.
    """

    id: str
    text: str = ""
    num_tokens: int = 0
    scores: tuple[float, ...] | None = None
    embedding: tuple[float, ...] | None = None
    skipped: str = ""

    def to_json(self) -> dict[str, Any]:
        if self.skipped:
            return {"id": self.id, "skipped": self.skipped}
        if self.scores is not None:
            return {"id": self.id, "scores": list(self.scores)}
        if self.embedding is not None:
            return {"id": self.id, "embedding": list(self.embedding)}
        return {"id": self.id, "text": self.text, "tokens": self.num_tokens}

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> "Prediction":
        """Reads a line; raises ValueError where it is none of those that `to_json` makes."""
        match line:
            case {"id": str(name), "skipped": str(reason)}:
                return cls(name, skipped=reason)
            case {"id": str(name), "scores": [*scores]} if all(isinstance(value, int | float) for value in scores):
                return cls(name, scores=tuple(scores))
            case {"id": str(name), "embedding": [*embedding]} if all(isinstance(value, int | float) for value in embedding):
                return cls(name, embedding=tuple(embedding))
            case {"id": str(name), "text": str(text), "tokens": int(tokens)}:
                return cls(name, text, tokens)
        raise ValueError("this is not the line of a prediction")


@dataclass(frozen=True, slots=True)
class Score:
    """A metric with its bootstrap interval and the values per item that it is made of.

    Attributes:
        scorer: name and version of the scorer; the version changes when the same answers would get another value.
        unparsed: share of the answers that the scorer could not read, which count as wrong; None where a score reads no answers.
        num_items: number of items of a score that has no value per item, such as a ratio of counts.
    """

    name: str
    value: float
    low: float
    high: float
    items: tuple[float, ...] = ()
    scorer: str = ""
    unparsed: float | None = None
    num_items: int | None = None

    @property
    def n(self) -> int:
        return len(self.items) if self.num_items is None else self.num_items

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}
