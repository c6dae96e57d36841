"""Merges recipe, file and arguments into one checked configuration; errors name the origin of every wrong key."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline.assembly.config.locate import CONFIG
from sightline.assembly.config.schema import RunConfig, StagePlan
from sightline.config import Tree, apply_overrides, merge_sections, parse_override, read_yaml, validate_tree
from sightline.errors import ConfigError
from sightline.runtime.storage import check_links

SECTIONS = ("data", "objective", "train")
# Mutually exclusive keys of a section: setting one removes the other from the layers below.
EITHER = {
    "batch_size": "batch_tokens",
    "batch_tokens": "batch_size",
    "epochs": "steps",
    "mixture": "path",
    "path": "mixture",
    "steps": "epochs",
}
# Keys that `model.compat` sets, by section; those of a configuration only where it is one of `models/scratch`.
COMPAT: dict[str, dict[str, Any]] = {
    "seemore": {
        "vision": {"attention_scale": "model"},
        "language": {"attention_scale": "model", "noise_in_evaluation": True, "skip_norm_in_generation": True},
        "data": {"supervise": "with_padding", "pack": False, "share_prefix": False},
    }
}
ORIGINS = ("config", "external", "path")  # mutually exclusive origins of a part of the model


def resolve_config(base: RunConfig | None, file: str | Path | None, arguments: Sequence[str]) -> RunConfig:
    """Resolves the configuration of a run.

    Args:
        base: a recipe, or None.
        file: a YAML file that overrides the recipe, or None.
        arguments: `key=value` arguments that override both.

    Raises:
        ConfigError: lists every wrong key with its origin.
    """
    tree = Tree()
    if base is not None:
        tree.data = json.loads(base.model_dump_json())
        tree.origins[()] = f"recipe {base.recipe}"
    read = Tree() if file is None else read_yaml(file)
    _set_compat(tree, [read.data, *(_nested(*parse_override(argument)) for argument in arguments)])
    if file is not None:
        for path in [path for path in read.origins if path]:
            drop_alternative(tree.data, path)
        tree.data = merge_sections(tree.data, read.data)
        tree.origins.update(read.origins)
    for argument in arguments:
        drop_alternative(tree.data, parse_override(argument)[0])
    tree = apply_overrides(tree, arguments, locked_paths(tree.data))
    config = validate_tree(RunConfig, tree)
    check_stages(config, tree)
    return config


def stored_config(run: Path, arguments: Sequence[str] = ()) -> RunConfig:
    """Resolves the configuration that a run wrote into its folder.

    Args:
        run: the run folder.
        arguments: `key=value` arguments that override it.

    Raises:
        ConfigError: lists every wrong key with its origin.
        DataError: the file is a link out of the folder.
    """
    check_links(run, (CONFIG,))
    return resolve_config(None, run / CONFIG, arguments)


def _nested(path: Sequence[str], value: Any) -> dict[str, Any]:
    """Returns an argument as a tree."""
    for key in reversed(path):
        value = {key: value}
    return value


def _set_compat(tree: Tree, changes: Sequence[Mapping[str, Any]]) -> None:
    """Sets the keys that the last `model.compat` of a file or argument asks for, below all other changes.

    A base that has the key already also has what it set, some of which may have been changed since.

    Raises:
        ConfigError: there is no model from scratch.
    """
    found = [section["compat"] for change in changes if isinstance(section := change.get("model"), dict) and "compat" in section]
    if not found or not isinstance(found[-1], str) or found[-1] not in COMPAT:
        return  # the schema refuses other values
    keys = COMPAT[found[-1]]
    whole = tree.data
    for change in changes:
        whole = merge_sections(whole, {"model": change["model"]} if isinstance(change.get("model"), dict) else {})
    model: dict[str, Any] = {}
    for part in ("vision", "language"):
        config = (whole.get("model", {}).get(part) or {}).get("config")
        if isinstance(config, dict) and str(config.get("model_type")).startswith("sightline_"):
            model[part] = {"config": keys[part]}
    if not model:
        raise ConfigError(
            f"model.compat={found[-1]}: neither encoder nor decoder is one of `sightline_vit` and `sightline_decoder`.",
            "Use the recipe seemore or seemoe, or leave the key out.",
        )
    tree.data = merge_sections(tree.data, {"model": model, "data": keys["data"]})
    tree.origins[("data", "supervise")] = f"model.compat={found[-1]}"


def drop_alternative(data: dict[str, Any], path: Sequence[str | int]) -> None:
    """Removes from `data` the keys that a key at `path` excludes; a list is entered by index or by an item's `name`."""
    _drop_other_dual(data, tuple(path))
    node: Any = data
    for key in path[:-1]:
        if isinstance(node, list):
            named = (item for at, item in enumerate(node) if isinstance(item, dict) and key in (at, str(at), item.get("name")))
            node = next(named, None)
        else:
            node = node.get(key) if isinstance(node, dict) else None
    if isinstance(node, dict) and isinstance(path[-1], str):
        others: Sequence[str] = (EITHER.get(path[-1], ""),)
        if path[-1] in ORIGINS and path[0] == "model":
            others = [key for key in ORIGINS if key != path[-1]]
            if path[-1] == "path":
                others.append("tokenizer")  # a decoder from a folder has a tokenizer of its own
        for other in others:
            node.pop(other, None)


def _drop_other_dual(data: dict[str, Any], path: tuple[str | int, ...]) -> None:
    """Removes a whole dual encoder where its encoders are given one by one, and the encoders where a whole one is given."""
    model = data.get("model")
    dual = model.get("dual") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(dual, dict):
        return
    if path[:3] == ("model", "dual", "text") or (path[:2] == ("model", "vision") and len(path) > 2):
        dual.pop("path", None)
    elif path == ("model", "dual", "path"):
        dual.pop("text", None)
        model.pop("vision", None)


def locked_paths(data: Mapping[str, Any]) -> dict[tuple[str, ...], str]:
    """Returns keys of the run's sections that every stage overrides, so that an argument for them would have no effect."""
    listed = data.get("stages")
    stages = [stage for stage in listed if isinstance(stage, dict)] if isinstance(listed, list) else []
    if not stages:
        return {}
    out: dict[tuple[str, ...], str] = {}
    for section in SECTIONS:
        own = [set(values) for stage in stages if isinstance(values := stage.get(section), dict)]
        for key in set.intersection(*own) if len(own) == len(stages) else ():
            names = ", ".join(f"stages.{stage.get('name')}.{section}.{key}=..." for stage in stages)
            out[(section, key)] = f"Every stage sets this key. Set it for a stage: {names}"
    return out


def check_stages(config: RunConfig, tree: Tree) -> None:
    """Validates every stage with its merged sections; errors name the keys of the stage."""
    faults = []
    for number in range(len(config.stages)):
        try:
            _stage_plan(config, number, tree)
        except ConfigError as error:
            faults.append(error.message)
    if faults:
        raise ConfigError("\n".join(dict.fromkeys("\n".join(faults).splitlines())))


def stage_plan(config: RunConfig, number: int) -> StagePlan:
    """Returns a stage with its merged sections."""
    return _stage_plan(config, number, Tree(origins={(): f"stage {config.stages[number].name}"}))


def _stage_plan(config: RunConfig, number: int, tree: Tree) -> StagePlan:
    stage = config.stages[number]
    whole = json.loads(config.model_dump_json())
    merged = Tree({"name": stage.name, "parts": whole["stages"][number]["parts"]})
    merged.origins[()] = tree.origin(("stages", number))
    for section in SECTIONS:
        own = getattr(stage, section)
        base = dict(whole[section])
        for key in own:
            base.pop(EITHER.get(key, ""), None)
        merged.data[section] = merge_sections(base, own)
        for path, origin in tree.origins.items():
            if path[:1] == (section,):
                merged.origins[path] = origin
        for path, origin in tree.origins.items():
            if path[:3] == ("stages", number, section):
                merged.origins[path[2:]] = origin
    for path, origin in tree.origins.items():
        if path[:3] == ("stages", number, "parts"):
            merged.origins[path[2:]] = origin
    table = (whole["model"]["vision"] or {}).get("external")
    if table is not None and merged.data["data"].get("features") is None:
        merged.data["data"]["features"] = table  # a model of an external table has no other visual input
    return validate_tree(StagePlan, merged)
