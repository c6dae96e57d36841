"""Reads predictions and references of the formats that `sightline score` takes, and pairs them by id.

COCO results (`[{"image_id", "caption"}]`) with COCO annotations, VQA results (`[{"question_id", "answer"}]`) with VQA
annotations, and JSON lines: predictions `{"id" | "record_id", "text"}`, references `{"id", "references": [...]}` or the lines of
`records.jsonl`. Every entry is used or named in an error; no entry is ignored silently.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sightline.data.records import record_from_json
from sightline.errors import DataError, RecordError
from sightline.runtime.inputs import parse_json, read_input
from sightline.runtime.logs import logger
from sightline.runtime.storage import checksum_fits

Kind = Literal["captions", "answers"]

_PREDICTION_FIELDS = (("record_id", "text"), ("id", "text"), ("image_id", "caption"), ("question_id", "answer"))
MAX_BYTES = 2_000_000_000  # of a file, which is held in memory
_SHOWN = 3  # number of ids in a message


@dataclass(frozen=True, slots=True)
class Pairs:
    """Predictions with their references, in the order of the references.

    Attributes:
        unanswered: number of references without a prediction; they are left out.
    """

    ids: tuple[str, ...]
    predictions: tuple[str, ...]
    references: tuple[tuple[str, ...], ...]
    unanswered: int


def read_predictions(path: Path) -> dict[str, str]:
    """Reads one text per id.

    Raises:
        DataError: the file cannot be read, is empty or invalid, or an entry lacks a field or repeats an id.
    """
    predictions: dict[str, str] = {}
    first: dict[str, str] = {}
    for where, entry in _entries(path):
        fields = next((pair for pair in _PREDICTION_FIELDS if set(pair) <= set(entry)), None)
        if fields is None:
            raise DataError(
                f"{path}, {where}: a prediction needs 'id' (or 'record_id') and 'text', or 'image_id' and 'caption', or "
                f"'question_id' and 'answer'; this entry has {_list(sorted(entry))}."
            )
        key = _id(entry[fields[0]], fields[0], path, where)
        text = _text(entry[fields[1]], fields[1], path, where)
        if key in predictions:
            raise DataError(
                f"{path}, {where}: a second prediction for {key!r} (first: {first[key]}).", "Keep one prediction per id."
            )
        predictions[key], first[key] = text, where
    if not predictions:
        raise DataError(f"{path} holds no predictions.")
    return predictions


def read_references(path: Path, kind: Kind = "captions") -> dict[str, tuple[str, ...]]:
    """Reads the references of each id.

    Args:
        path: COCO or VQA annotations, or JSON lines.
        kind: which references to take from a record with both captions and answers.

    Raises:
        DataError: the file cannot be read, is empty or invalid, or an entry lacks references or repeats an id.
    """
    document = _document(path)
    grouped = _lines(path, kind) if document is None else _coco(path, document)
    if not grouped:
        raise DataError(f"{path} holds no references.")
    bare = [key for key, references in grouped.items() if not references]
    if bare:
        raise DataError(f"{path}: {len(bare)} ids have no reference, such as {_list(bare)}.")
    blank = sum(not text.strip() for references in grouped.values() for text in references)
    if blank:
        logger.warning("%s: %d references are empty; they are scored unchanged.", path, blank)
    return {key: tuple(references) for key, references in grouped.items()}


def pair(predictions: Mapping[str, str], references: Mapping[str, tuple[str, ...]]) -> Pairs:
    """Matches predictions with references by id; references without a prediction are left out, counted and logged.

    Raises:
        DataError: a prediction has no reference.
    """
    lost = [key for key in predictions if key not in references]
    if lost:
        raise DataError(
            f"{len(lost)} of {len(predictions)} predictions have no reference, such as {_list(lost)}.",
            "Give the references of the same split, under the same ids.",
        )
    ids = tuple(key for key in references if key in predictions)
    unanswered = len(references) - len(ids)
    if unanswered:
        missing = [key for key in references if key not in predictions]
        logger.warning(
            "%d of %d references have no prediction and are left out, such as %s.", unanswered, len(references), _list(missing)
        )
    return Pairs(ids, tuple(predictions[key] for key in ids), tuple(references[key] for key in ids), unanswered)


# Formats --------------------------------------------------------------------------------------------------------------------


def _coco(path: Path, document: dict[str, Any]) -> dict[str, list[str]]:
    """Groups annotations by image (captions) or question (all human answers), in the order of `images` if it is given."""
    annotations, images = document["annotations"], document.get("images", [])
    if not isinstance(annotations, list) or not isinstance(images, list):
        raise DataError(f"{path}: 'annotations' and 'images' must be lists.")
    grouped: dict[str, list[str]] = {str(image["id"]): [] for image in images if isinstance(image, dict) and "id" in image}
    questions: set[str] = set()
    for number, entry in enumerate(annotations):
        where = f"annotation {number}"
        match entry:
            case {"question_id": key, "answers": list(answers)}:
                key = _id(key, "question_id", path, where)
                if key in questions:
                    raise DataError(f"{path}, {where}: a second annotation for question {key!r}.")
                questions.add(key)
                grouped[key] = [
                    _text(item.get("answer") if isinstance(item, dict) else item, "answer", path, where) for item in answers
                ]
            case {"image_id": key, "caption": caption}:
                grouped.setdefault(_id(key, "image_id", path, where), []).append(_text(caption, "caption", path, where))
            case _:
                raise DataError(f"{path}, {where}: needs 'image_id' and 'caption', or 'question_id' and 'answers'.")
    if questions:
        return {key: grouped[key] for key in grouped if key in questions}
    without = sum(not captions for captions in grouped.values())
    if without:
        logger.warning("%s: %d images have no caption and are left out.", path, without)
    return {key: captions for key, captions in grouped.items() if captions}


def _lines(path: Path, kind: Kind) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    first: dict[str, str] = {}
    for where, entry in _entries(path):
        field = next((name for name in ("id", "record_id") if name in entry), None)
        if field is None:
            raise DataError(f"{path}, {where}: a line of references needs 'id'; this one has {_list(sorted(entry))}.")
        key = _id(entry[field], field, path, where)
        if key in grouped:
            raise DataError(f"{path}, {where}: a second line for {key!r} (first: {first[key]}).", "Put its references on one line.")
        grouped[key], first[key] = _references(entry, kind, path, where), where
    return grouped


def _references(entry: dict[str, Any], kind: Kind, path: Path, where: str) -> list[str]:
    other = "answers" if kind == "captions" else "captions"
    for name in ("references", kind, other):
        if entry.get(name):
            if not isinstance(entry[name], list):
                raise DataError(f"{path}, {where}: {name!r} must be a list of texts, not {type(entry[name]).__name__}.")
            return [_text(text, name, path, where) for text in entry[name]]
    if "messages" not in entry:
        raise DataError(f"{path}, {where}: 'references', 'captions', 'answers' and 'messages' are all missing or empty.")
    try:
        messages = record_from_json(entry).messages
    except RecordError as error:
        raise DataError(f"{path}, {where}: {error}.") from error
    return [message.text for message in messages if message.role == "assistant"][-1:]


# JSON -----------------------------------------------------------------------------------------------------------------------


def _document(path: Path) -> dict[str, Any] | None:
    """Reads a complete file of annotations; returns None for a JSON list or JSON lines of references."""
    text = _read(path)
    if text.lstrip()[:1] == "[":
        return None
    try:
        document = _parse(text, path, 1)
    except DataError:
        if _starts_with_object(text):
            return None  # several JSON lines
        raise
    if not isinstance(document, dict):
        raise DataError(f"{path}: expected annotations or JSON lines, not {type(document).__name__}.")
    if "annotations" in document:
        return document
    if _starts_with_object(text):
        return None
    raise DataError(f"{path}: expected annotations (an object with 'annotations') or JSON lines.")


def _starts_with_object(text: str) -> bool:
    """Returns whether the first non-empty line is a complete JSON object."""
    try:
        return isinstance(parse_json(text.lstrip().partition("\n")[0]), dict)
    except ValueError:
        return False


def _entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the objects of a JSON list or of JSON lines, each with its position for messages."""
    text = _read(path)
    found: Iterable[tuple[str, Any]]
    if text.lstrip()[:1] == "[":
        found = ((f"entry {number}", value) for number, value in enumerate(_parse(text, path, 1)))
    else:
        lines = text.split("\n")  # splitlines would also split at line separators inside texts
        found = (
            (f"line {number}", _unchanged(line, _parse(line, path, number), path, number))
            for number, line in enumerate(lines, start=1)
            if line.strip()
        )
    for where, value in found:
        if not isinstance(value, dict):
            raise DataError(f"{path}, {where}: expected an object, not {type(value).__name__}.")
        yield where, value


def _unchanged(line: str, value: Any, path: Path, number: int) -> Any:
    """Returns the value of a line, if the checksum that `eval` writes into `predictions.jsonl` is not there or fits."""
    if isinstance(value, dict) and not checksum_fits(line.encode(), value):
        raise DataError(
            f"{path}, line {number}: its checksum 'crc32' does not fit, so it was changed after it was written.",
            "Give the same `sightline eval` again, which makes it anew; or leave 'crc32' out of lines that you change yourself.",
        )
    return value


def _parse(text: str, path: Path, number: int) -> Any:
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        line = number + error.lineno - 1
        raise DataError(f"{path}, line {line}, column {error.colno}: invalid JSON ({error.msg}).") from error
    except ValueError as error:  # nested too deeply, or a number with thousands of digits
        raise DataError(f"{path}, from line {number}: the JSON cannot be read ({error}).") from error


def _read(path: Path) -> str:
    try:
        text = read_input(path, MAX_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8.", "Save the file as UTF-8.") from error
    if not text.strip():
        raise DataError(f"{path} is empty.")
    return text


def _id(value: Any, field: str, path: Path, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(f"{path}, {where}: {field!r} must be a text or an integer, not {value!r}.")
    return _text(str(value), field, path, where)


def _text(value: Any, field: str, path: Path, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{path}, {where}: {field!r} must be a text, not {type(value).__name__}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{path}, {where}: {field!r} holds an invalid character (a lone surrogate).") from error
    return value


def _list(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
