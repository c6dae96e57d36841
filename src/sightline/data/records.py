"""Converts records to JSON and back, and checks them; errors name the field that is wrong."""

import math
import string
from collections.abc import Sequence
from dataclasses import fields
from pathlib import PurePosixPath
from typing import Any

from sightline.errors import RecordError
from sightline.types import Box, Components, Entity, ImageInfo, Message, Part, Record, Relation

LETTERS = string.ascii_uppercase  # of choices
RECORD_FIELDS = frozenset(item.name for item in fields(Record))


def record_to_json(record: Record) -> dict[str, Any]:
    """Converts a record to a JSON object; empty fields are left out."""
    out: dict[str, Any] = {"id": record.id, "split": record.split}
    if record.images:
        out["images"] = list(record.images)
    if record.image_info:
        out["image_info"] = [[info.sha256, info.width, info.height] for info in record.image_info]
    if record.messages:
        out["messages"] = [
            {
                "role": message.role,
                "content": [
                    {"type": "image"} if part.is_image else {"type": "text", "text": part.text} for part in message.content
                ],
            }
            for message in record.messages
        ]
    for name in ("captions", "answers", "negatives"):
        if getattr(record, name):
            out[name] = list(getattr(record, name))
    if record.boxes:
        out["boxes"] = [{"label": box.label, "xyxy": list(box.xyxy), "score": box.score} for box in record.boxes]
    if record.components:
        out["components"] = [_components_to_json(item) for item in record.components]
    if record.meta:
        out["meta"] = dict(record.meta)
    return out


def _components_to_json(components: Components) -> dict[str, Any]:
    return {
        "text": components.text,
        "entities": [{"text": item.text} | ({} if item.box is None else {"box": item.box}) for item in components.entities],
        "relations": [
            {"subject": item.subject, "relation": item.relation, "object": item.object}
            | ({} if item.boxes is None else {"boxes": list(item.boxes)})
            for item in components.relations
        ],
    }


def prompt_messages(record: Record, prompt: str) -> tuple[Message, ...]:
    """Gives the turns of a record up to its last assistant turn; for a record of captions one turn with its images and a prompt."""
    if record.messages:
        return record.messages[:-1] if record.messages[-1].role == "assistant" else record.messages
    parts = tuple(Part() for _ in record.images)
    if prompt:
        parts = (*parts, Part(prompt))
    return (Message("user", parts),) if parts else ()


def listed_choices(choices: Sequence[str]) -> str:
    """Lists choices with letters, one a line: `A. cat`."""
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))


def record_from_json(line: Any, may_lead_outside: bool = False) -> Record:
    """Converts a JSON object to a record and checks it.

    Raises:
        RecordError: a field is missing, unknown, or of the wrong type; `reason` names it. Also what `check_record` raises.
    """
    if not isinstance(line, dict):
        raise RecordError("not_an_object", f"a record is a JSON object, this is {type(line).__name__}")
    unknown = sorted(set(line) - RECORD_FIELDS)
    if unknown:
        raise RecordError("unknown_field", f"unknown field {unknown[0]!r}; known are {', '.join(sorted(RECORD_FIELDS))}")
    record_id = line.get("id")
    if isinstance(record_id, bool) or not isinstance(record_id, str | int) or record_id == "":
        raise RecordError("bad_id", f"'id' must be a text or a whole number, got {record_id!r}")
    record = Record(
        id=str(record_id),
        images=_texts(line, "images"),
        image_info=tuple(_image_info(item) for item in _items(line, "image_info")),
        messages=tuple(_message(item) for item in _items(line, "messages")),
        captions=_texts(line, "captions"),
        boxes=tuple(_box(item) for item in _items(line, "boxes")),
        answers=_texts(line, "answers"),
        negatives=_texts(line, "negatives"),
        components=tuple(_components(item) for item in _items(line, "components")),
        split=_text(line.get("split", "train"), "split"),
        meta=_meta(line.get("meta", {})),
    )
    check_record(record, may_lead_outside)
    return record


def check_record(record: Record, may_lead_outside: bool = False) -> None:
    """Checks that a record can be trained or evaluated on.

    Args:
        record: to be checked.
        may_lead_outside: leaves the paths of images to whoever opens them, for sources with folders that the user trusts.

    Raises:
        RecordError: reasons `no_text`, `two_texts`, `empty_caption`, `images_without_place`, `places_without_image`,
            `path_outside_root`, `image_info_count`, `no_split`, `bad_components`.
    """
    if record.messages and record.captions:
        raise RecordError("two_texts", "a record has 'messages' or 'captions', not both")
    if not record.messages and not record.captions:
        raise RecordError("no_text", "a record needs 'messages' or 'captions'")
    if any(not caption.strip() for caption in record.captions):
        raise RecordError("empty_caption", "a caption is empty")
    if not record.split:
        raise RecordError("no_split", "'split' is empty")
    if record.messages:
        places = sum(message.num_images for message in record.messages)
        if places < len(record.images):
            raise RecordError("images_without_place", f"{len(record.images)} images, {places} image parts in 'messages'")
        if places > len(record.images):
            raise RecordError("places_without_image", f"{places} image parts in 'messages', {len(record.images)} images")
    if record.image_info and len(record.image_info) != len(record.images):
        raise RecordError("image_info_count", f"{len(record.images)} images, {len(record.image_info)} entries in 'image_info'")
    _check_components(record)
    for path in () if may_lead_outside else record.images:
        pure = PurePosixPath(path.replace("\\", "/"))
        if not path or "\0" in path or pure.is_absolute() or ".." in pure.parts or ":" in pure.parts[0]:
            raise RecordError("path_outside_root", f"image path {path!r} must be relative and stay inside the dataset folder")


def _check_components(record: Record) -> None:
    texts = {*record.captions, *record.negatives}
    for components in record.components:
        if components.text not in texts:
            raise RecordError(
                "bad_components", f"'components' of {components.text!r}, which is no caption or negative of the record"
            )
        texts.remove(components.text)
        phrases = [item.text for item in components.entities]
        phrases += [phrase for item in components.relations for phrase in (item.subject, item.relation, item.object)]
        if not all(phrase.strip() for phrase in phrases):
            raise RecordError("bad_components", f"'components' of {components.text!r} have an empty phrase")
        numbers = [item.box for item in components.entities if item.box is not None]
        numbers += [number for item in components.relations for number in item.boxes or ()]
        if not all(0 <= number < len(record.boxes) for number in numbers):
            raise RecordError(
                "bad_components",
                f"'components' of {components.text!r} name boxes {sorted(set(numbers))}; the record has {len(record.boxes)}",
            )


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
    """Tells whether a value is a number that fits a float; JSON allows integers of any length."""
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


def _components(item: Any) -> Components:
    match item:
        case {"text": str(text)}:
            entities, relations = _items(item, "entities"), _items(item, "relations")
            return Components(text, tuple(map(_entity, entities)), tuple(map(_relation, relations)))
    raise RecordError(
        "bad_components", "an entry of 'components' is {'text': a caption or negative, 'entities': [...], 'relations': [...]}"
    )


def _entity(item: Any) -> Entity:
    match item:
        case {"text": str(text)} if _is_index(box := item.get("box")) or box is None:
            return Entity(text, box)
    raise RecordError("bad_components", f"an entity is {{'text': text, 'box': index of a box or left out}}, got {item!r}")


def _relation(item: Any) -> Relation:
    match item:
        case {"subject": str(subject), "relation": str(relation), "object": str(target)}:
            boxes = item.get("boxes")
            if boxes is None:
                return Relation(subject, relation, target)
            if isinstance(boxes, list) and len(boxes) == 2 and all(map(_is_index, boxes)):
                return Relation(subject, relation, target, (boxes[0], boxes[1]))
    raise RecordError(
        "bad_components",
        f"a relation is {{'subject', 'relation', 'object': texts, 'boxes': two indices of boxes or left out}}, got {item!r}",
    )


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
