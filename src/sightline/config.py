"""Strict configuration: reads YAML (or JSON) files and `key=value` arguments into a frozen pydantic model.

All errors of a configuration are reported at once, each with file and line (or argument), key, value, and the nearest valid name.
YAML is parsed by version 1.2: `no` is a string, `1e-4` a number; duplicate keys, tags, deep nesting and alias bombs are refused.
"""

import json
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from sightline.errors import ConfigError
from sightline.registry import KindRegistry, suggestion
from sightline.runtime.inputs import read_input

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_NODES = 100_000

Path_ = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)


class Config(BaseModel):
    """Base of every configuration section: frozen, no unknown keys, no silent conversion, no NaN or infinity."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
        serialize_by_alias=True,
    )


@dataclass
class Tree:
    """A configuration as plain data, with the origin (`file:line` or the argument) of every key in it."""

    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[Path_, str] = field(default_factory=dict)

    def origin(self, path: Path_) -> str:
        """Returns where `path` was set, or, where it was not set itself, its nearest parent."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        return ""


# YAML 1.2 core schema -------------------------------------------------------------------------------------------------------

_NULL = re.compile(r"(~|null|Null|NULL|)\Z")
_BOOL = re.compile(r"(true|True|TRUE|false|False|FALSE)\Z")
_INT = re.compile(r"[-+]?[0-9]+\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")


def read_yaml(path: str | Path) -> Tree:
    """Reads a configuration file.

    Raises:
        ConfigError: the file is missing, larger than 1 MB, not UTF-8, or not a mapping of plain YAML 1.2 values.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ConfigError(f"{path}: {size} bytes; a configuration has at most {MAX_BYTES}.")
        text = read_input(path, MAX_BYTES).decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}.", "Give the path of a YAML file.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8.") from error
    tree = Tree()
    value = _parse(text, str(path), tree.origins)
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of keys, this is a {_kind(value)}.")
    tree.data = value
    return tree


def _parse(text: str, name: str, origins: dict[Path_, str], line_numbers: bool = True) -> Any:
    """Parses one YAML document to plain data; fills `origins` with the location of each key."""

    def place(mark: yaml.Mark | None) -> str:
        return f"{name}:{mark.line + 1}" if line_numbers and mark is not None else name

    try:
        _check_events(text, place)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigError(f"{place(mark)}: not valid YAML: {error.problem or error.context}.") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # PyYAML does not catch the error of `chr` for "\\U00110000"
        raise ConfigError(f"{name}: not valid YAML: {error}.") from error

    budget = [MAX_NODES]

    def build(node: yaml.Node, path: Path_) -> Any:
        budget[0] -= 1
        if len(path) > MAX_DEPTH:  # aliases can nest deeper than the text, and endlessly where one contains itself
            raise ConfigError(f"{place(node.start_mark)}: nested deeper than {MAX_DEPTH} levels once aliases are expanded.")
        if budget[0] < 0:
            raise ConfigError(f"{place(node.start_mark)}: more than {MAX_NODES} values once aliases are expanded.")
        origins.setdefault(path, place(node.start_mark))
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node.value, plain=node.style is None, place=place(node.start_mark))
        if isinstance(node, yaml.SequenceNode):
            return [build(item, (*path, index)) for index, item in enumerate(node.value)]
        out: dict[str, Any] = {}
        assert isinstance(node, yaml.MappingNode)
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                raise ConfigError(f"{place(key_node.start_mark)}: a key must be a string.")
            if key in out:
                first = origins[(*path, key)]
                raise ConfigError(f"{place(key_node.start_mark)}: duplicate key {key!r}, first given at {first}.", "Keep one.")
            origins[(*path, key)] = place(key_node.start_mark)
            out[key] = build(value_node, (*path, key))
        return out

    return None if root is None else build(root, ())


def _check_events(text: str, place: Callable[[Any], str]) -> None:
    """Refuses deep nesting and tags before the document is parsed recursively.

    Raises:
        ConfigError: the document has tags or is nested too deeply.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise ConfigError(f"{place(event.start_mark)}: nested deeper than {MAX_DEPTH} levels.")
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            raise ConfigError(f"{place(event.start_mark)}: tag {event.tag!r}; tags are not allowed in a configuration.")


def _scalar(text: str, plain: bool, place: str) -> Any:
    if not plain:
        return text
    if _NULL.match(text):
        return None
    if _BOOL.match(text):
        return text.lower() == "true"
    if _INT.match(text):
        digits = text.lstrip("+-")
        if len(digits) > 1 and digits[0] == "0":
            raise ConfigError(f"{place}: number {text!r} begins with 0.", "Write it without, or in quotes if it is a text.")
        if len(digits) > 30:
            raise ConfigError(f"{place}: number {text[:20]}... has {len(digits)} digits.")
        return int(text)
    return float(text) if _FLOAT.match(text) else text


def _kind(value: Any) -> str:
    names = {dict: "mapping", list: "list", str: "text", bool: "true/false", int: "whole number", float: "number"}
    return names.get(type(value), "empty value" if value is None else type(value).__name__)


# Overrides ------------------------------------------------------------------------------------------------------------------


def parse_override(argument: str) -> tuple[tuple[str, ...], Any]:
    """Parses `a.b=value` to a path and a YAML value.

    Raises:
        ConfigError: there is no `=`, the key is empty, or the value is not YAML.
    """
    key, equals, text = argument.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        raise ConfigError(f"argument {argument!r} is not of the form key=value.", "For example: train.steps=200")
    if len(path) > MAX_DEPTH:
        raise ConfigError(f"argument {argument[:40]}... is nested deeper than {MAX_DEPTH} levels.")
    return path, _parse(text, f"argument {argument}", {}, line_numbers=False)


def apply_overrides(tree: Tree, arguments: Sequence[str], locked: Mapping[tuple[str, ...], str] | None = None) -> Tree:
    """Sets `key=value` arguments on a tree; later ones win.

    A list is entered by index or by the `name` of an item (`stages.align.train.steps=100`); `stages.align=null` takes the item out.
    Setting a `kind` or a `model_type` to another value drops the other keys of that section, which belonged to the former kind.

    Args:
        locked: paths that an argument must not set, with the remedy to print.
    """
    for argument in arguments:
        path, value = parse_override(argument)
        if locked and path in locked:
            raise ConfigError(f"argument {argument!r} would have no effect.", locked[path])
        at: Path_ = ()
        node: Any = tree.data
        for key in path[:-1]:
            node, at = _enter(node, key, at, argument)
        _set(node, path[-1], value, at, argument, tree)
    return tree


def _enter(node: Any, key: str, at: Path_, argument: str) -> tuple[Any, Path_]:
    if isinstance(node, list):
        index = _item_index(node, key, at, argument)
        return node[index], (*at, index)
    if not isinstance(node, dict):
        raise ConfigError(f"argument {argument!r}: {'.'.join(map(str, at))} is a {_kind(node)}, it has no key {key!r}.")
    if node.get(key) is None:
        node[key] = {}
    return node[key], (*at, key)


def _item_index(items: list[Any], key: str, at: Path_, argument: str) -> int:
    names = [str(item.get("name", index)) if isinstance(item, dict) else str(index) for index, item in enumerate(items)]
    if key in names:
        return names.index(key)
    if key.isdecimal() and int(key) < len(items):
        return int(key)
    raise ConfigError(f"argument {argument!r}: {'.'.join(map(str, at))} has no item {key!r}; it has {', '.join(names)}.")


def _set(node: Any, key: str, value: Any, at: Path_, argument: str, tree: Tree) -> None:
    place: Path_
    if isinstance(node, list):
        index = _item_index(node, key, at, argument)
        if value is None:
            _take_out(node, index, at, tree)
            return
        node[index], place = value, (*at, index)
    elif isinstance(node, dict):
        if key in KINDS and node.get(key) not in (None, value):
            node.clear()
        node[key], place = value, (*at, key)
    else:
        raise ConfigError(f"argument {argument!r}: {'.'.join(map(str, at))} is a {_kind(node)}, it has no key {key!r}.")
    for known in [known for known in tree.origins if known[: len(place)] == place]:
        del tree.origins[known]
    tree.origins[place] = f"argument {argument}"


def _take_out(items: list[Any], index: int, at: Path_, tree: Tree) -> None:
    """Removes an item from a list; the origins of later items move to their new indices."""
    del items[index]
    depth = len(at)
    kept: dict[Path_, str] = {}
    for path, origin in tree.origins.items():
        step = path[depth] if path[:depth] == at and len(path) > depth else -1
        if isinstance(step, int) and step > index:
            kept[(*at, step - 1, *path[depth + 1 :])] = origin
        elif step != index:
            kept[path] = origin
    tree.origins = kept


KINDS = ("kind", "model_type")  # keys that decide which other keys a section has


def _same_kind(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return all(old.get(key) == new.get(key, old.get(key)) for key in KINDS)


def merge_sections(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `base` updated with `over`, section by section; a section of another `kind` replaces the old one entirely."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and _same_kind(old, value):
            out[key] = merge_sections(old, value)
        else:
            out[key] = value
    return out


# Validation -----------------------------------------------------------------------------------------------------------------


def validate_tree(model: type[Model], tree: Tree) -> Model:
    """Validates a tree as an instance of `model`.

    Raises:
        ConfigError: lists every error with its origin, key, value and the nearest valid name.
    """
    try:
        # JSON mode lets lists stand for tuples while scalars stay strict.
        return model.model_validate_json(json.dumps(tree.data))
    except ValidationError as error:
        faults = [_describe_error(model, item, tree) for item in error.errors(include_url=False)]
        raise ConfigError("\n".join(dict.fromkeys(faults))) from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the configuration holds a value that is not plain data: {error}.") from error


def _describe_error(model: type[BaseModel], item: Mapping[str, Any], tree: Tree) -> str:
    path, choices = _locate(model, item["loc"], tree.data)
    origin = tree.origin(path)
    key = ".".join(map(str, path)) or "configuration"
    given = _short_json(item.get("input"))
    context = item.get("ctx", {})
    match item["type"]:
        case "extra_forbidden":
            elsewhere = full_keys(model, tree.data).get(str(path[-1]), [])
            what = "unknown key" + (_key_elsewhere(elsewhere) or suggestion(str(path[-1]), choices))
        case "missing":
            what = "must be given"
        case "literal_error":
            expected = re.findall(r"'([^']*)'", str(context["expected"]))
            what = f"unknown value {given}" + suggestion(str(item.get("input")), expected)
        case "value_error":
            what = str(context["error"]).removesuffix(".")
        case _:
            what = f"{item['msg'][0].lower()}{item['msg'][1:]}, got {given}"
    return f"{origin + ': ' if origin else ''}{key}: {what}{'' if what.endswith('?') else '.'}"


def full_keys(model: type[BaseModel], data: Any) -> dict[str, list[str]]:
    """Returns the full keys of a configuration by their last part; of sections with a `kind`, those of the kind that `data` names.

    Items of lists have no fixed key and are left out.
    """
    out: dict[str, list[str]] = {}
    for name, info in model.model_fields.items():
        last = info.alias or name
        out.setdefault(last, []).append(last)
        annotation = _annotation(info, _at(data, last))
        for section in _flatten(annotation, unwrap=False):
            if isinstance(section, type) and issubclass(section, BaseModel):
                for key, paths in full_keys(section, _at(data, last)).items():
                    out.setdefault(key, []).extend(f"{last}.{path}" for path in paths)
    return out


def _key_elsewhere(keys: Sequence[str], most: int = 4) -> str:
    """Returns the end of a message about a key that is one of other sections; "" where it is of none."""
    shown = " or ".join(repr(key) for key in sorted(dict.fromkeys(keys), key=lambda key: key.count("."))[:most])
    return f"; did you mean {shown}?" if shown else ""


def _short_json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _locate(model: type[BaseModel], loc: tuple[str | int, ...], data: Any) -> tuple[Path_, list[str]]:
    """Returns the path of a pydantic location, and the valid names at its last step."""
    path: list[str | int] = []
    choices: list[str] = []
    kinds: tuple[Any, ...] = (model,)
    for step in loc:
        models = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not models and not any(typing.get_origin(kind) in (list, tuple, dict) for kind in kinds):
            break  # pydantic names the members of a union of scalars; the key ends before them
        named = [{field.alias or name: field for name, field in kind.model_fields.items()} for kind in models]
        choices = sorted({name for fields in named for name in fields})
        path.append(step)
        data = _at(data, step)
        found = [_annotation(fields[step], data) for fields in named if isinstance(step, str) and step in fields]
        kinds = tuple(part for annotation in (found or kinds) for part in _flatten(annotation, unwrap=not found))
    return tuple(path), choices


def _at(data: Any, step: str | int) -> Any:
    try:
        return data[step]
    except (LookupError, TypeError):
        return None


def _annotation(field: FieldInfo, value: Any) -> Any:
    """Returns the type of a field; where a registry chooses it, the class that the value names."""
    chosen = [item.class_of(value) for item in field.metadata if isinstance(item, KindRegistry)]
    return chosen[0] if chosen and chosen[0] is not None else field.annotation


def _flatten(annotation: Any, unwrap: bool) -> Iterator[Any]:
    """Yields the members of unions and aliases; with `unwrap` also the item types of lists and mappings."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        yield from _flatten(typing.get_args(annotation)[0], unwrap)
    elif origin in (Union, types.UnionType):
        for member in typing.get_args(annotation):
            yield from _flatten(member, unwrap)
    elif origin in (list, tuple, dict) and unwrap:
        for member in typing.get_args(annotation):
            yield from _flatten(member, False)
    else:
        yield annotation


class _Dumper(yaml.SafeDumper):
    """Writes a string without quotes only where it cannot be parsed as another type."""


_BARE = re.compile(r"[A-Za-z_][A-Za-z0-9_./@-]*( [A-Za-z0-9_./@-]+)*\Z")


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    bare = _BARE.match(text) and _scalar(text, plain=True, place="") == text
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if bare else '"')


_Dumper.add_representer(str, _write_text)


def to_yaml(config: BaseModel) -> str:
    """Converts a configuration to YAML that `read_yaml` reads back to an equal one."""
    data = json.loads(config.model_dump_json())
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1 << 20)


def to_commented_yaml(config: BaseModel) -> str:
    """Converts a configuration to the YAML of `to_yaml`, with the first sentence about each key as a comment behind it.

    A key that occurs several times, such as those of all stages, is explained where it stands first.
    """
    text = to_yaml(config)
    comments = dict(_comments(config, yaml.compose(text, Loader=yaml.SafeLoader), set()))
    lines = text.splitlines()
    return "".join(f"{line}  # {comments[n]}\n" if n in comments else f"{line}\n" for n, line in enumerate(lines))


def _comments(value: Any, node: yaml.Node | None, seen: set[tuple[type, str]]) -> Iterator[tuple[int, str]]:
    """Yields the line of each key of a section in its YAML, and the first sentence about it."""
    if isinstance(value, BaseModel) and isinstance(node, yaml.MappingNode):
        fields = {info.alias or name: (name, info) for name, info in type(value).model_fields.items()}
        for key, below in node.value:
            name, info = fields.get(key.value, (key.value, None))
            inside = getattr(value, name, None)
            about = (info and info.description) or (isinstance(inside, BaseModel) and type(inside).__doc__) or ""
            if about and (type(value), name) not in seen:
                seen.add((type(value), name))
                yield key.start_mark.line, re.split(r"(?<=\.)\s", " ".join(about.split("\n\n")[0].split()))[0]
            yield from _comments(inside, below, seen)
    elif isinstance(value, Mapping) and isinstance(node, yaml.MappingNode):
        for key, below in node.value:
            yield from _comments(value.get(key.value), below, seen)
    elif isinstance(value, list | tuple) and isinstance(node, yaml.SequenceNode):
        for item, below in zip(value, node.value, strict=True):
            yield from _comments(item, below, seen)
