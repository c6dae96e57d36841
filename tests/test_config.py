"""Configurations: every fault at once with its place and the nearest name; any text gives a configuration or a ConfigError."""

import contextlib
import json
import math
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import Field, SerializeAsAny

from sightline.assembly.config.resolving import resolve_config, stage_plan
from sightline.assembly.config.schema import RunConfig, StagePlan
from sightline.config import (
    MAX_BYTES,
    MAX_DEPTH,
    Config,
    Tree,
    _parse,
    apply_overrides,
    merge_sections,
    read_yaml,
    to_yaml,
    validate_tree,
)
from sightline.errors import ConfigError
from sightline.recipes import RECIPES
from sightline.registry import HasKind, KindRegistry


class Shape(HasKind, Config):
    pass


class Square(Shape):
    kind: Literal["square"] = "square"
    side: float = Field(default=1.0, gt=0)


class Circle(Shape):
    kind: Literal["circle"] = "circle"
    radius: float = Field(default=1.0, gt=0)


class Pen(Config):
    colour: Literal["red", "blue"] = "red"
    width: int = Field(default=1, ge=1, le=9)
    dashed: bool = False
    name: str = ""


class Drawing(Config):
    pen: Pen = Pen()
    shape: Annotated[SerializeAsAny[Shape], KindRegistry(Shape, "tests.shapes", (Circle, Square))] = Square()
    sizes: tuple[float, ...] = ()
    pens: tuple[Pen, ...] = ()
    free: dict[str, Any] = Field(default_factory=dict)


def parsed(tmp_path: Path, text: str | bytes) -> Tree:
    file = tmp_path / "c.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return read_yaml(file)


def drawing(tmp_path: Path, text: str, *arguments: str) -> Drawing:
    return validate_tree(Drawing, apply_overrides(parsed(tmp_path, text), arguments))


def fault(tmp_path: Path, text: str | bytes, *arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        validate_tree(Drawing, apply_overrides(parsed(tmp_path, text), arguments))
    return str(caught.value).replace(str(tmp_path) + "/", "")


# Faults and their places ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pen:\n  colur: red", "c.yaml:2: pen.colur: unknown key; did you mean 'colour'?"),
        ("pens: [{}, {widht: 2}]", "c.yaml:1: pens.1.widht: unknown key; did you mean 'width'?"),
        ("pne: {}", "c.yaml:1: pne: unknown key; did you mean 'pen'?"),
        ("zzz: 1", "c.yaml:1: zzz: unknown key; known are free, pen, pens, shape, sizes"),
        ("pen:\n  colour: rde", "c.yaml:2: pen.colour: unknown value \"rde\"; did you mean 'red'?"),
        ("shape: {kind: squares}", "c.yaml:1: shape.kind: unknown kind 'squares'; did you mean 'square'?"),
        ("shape: {side: 2}", "c.yaml:1: shape: needs a 'kind'"),
        ("shape:\n  kind: circle\n  side: 2", "c.yaml:3: shape.side: unknown key"),
        ("pen:\n  width: two", 'c.yaml:2: pen.width: input should be a valid integer, got "two"'),
        ("pen:\n  width: 1.0", "c.yaml:2: pen.width: input should be a valid integer, got 1.0"),
        ("pen:\n  width: true", "c.yaml:2: pen.width: input should be a valid integer, got true"),
        ("pen:\n  dashed: 1", "c.yaml:2: pen.dashed: input should be a valid boolean, got 1"),
        ('pen:\n  dashed: "true"', 'c.yaml:2: pen.dashed: input should be a valid boolean, got "true"'),
        ("pen:\n  name: 5", "c.yaml:2: pen.name: input should be a valid string, got 5"),
        ("pen:\n  width:", "c.yaml:2: pen.width: input should be a valid integer, got null"),
        ("pen:\n  width: 10", "c.yaml:2: pen.width: input should be less than or equal to 9, got 10"),
        ("pen:\n  width: 0", "c.yaml:2: pen.width: input should be greater than or equal to 1, got 0"),
        ("shape: {kind: square, side: 0}", "c.yaml:1: shape.side: input should be greater than 0, got 0"),
        ("shape: {kind: square, side: 1e999}", "c.yaml:1: shape.side: input should be a finite number"),
        ("sizes:\n- 1\n- .nan", 'c.yaml:3: sizes.1: input should be a valid number, got ".nan"'),
        ("pen: [1]", "c.yaml:1: pen: input should be an object, got [1]"),
        ("sizes: 1", "c.yaml:1: sizes: input should be a valid array, got 1"),
    ],
)
def test_a_fault_names_its_line_its_key_what_was_given_and_the_nearest_name(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in fault(tmp_path, text)


def test_all_faults_are_reported_at_once_each_with_its_own_line(tmp_path: Path) -> None:
    found = fault(tmp_path, "pen:\n  colur: red\n  width: 99\nsizes:\n- x\nshape:\n  kind: square\n  side: -1").splitlines()
    assert [line.split(": ")[:2] for line in found] == [
        ["c.yaml:3", "pen.width"],
        ["c.yaml:2", "pen.colur"],
        ["c.yaml:8", "shape.side"],
        ["c.yaml:5", "sizes.0"],
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pen: {}\nsizes: []\npen: {}", "c.yaml:3: duplicate key 'pen', first given at c.yaml:1"),
        ("pen:\n  width: 1\n  width: 1", "c.yaml:3: duplicate key 'width', first given at c.yaml:2"),
        ("pen: {width: 010}", "c.yaml:1: number '010' begins with 0"),
        (f"pen: {{width: {'9' * 40}}}", "has 40 digits"),
        ("pen: !!python/object:os.system {}", "tags are not allowed"),
        ("pen: !x 1", "tags are not allowed"),
        ("[1, 2]", "c.yaml: a configuration is a mapping of keys, this is a list"),
        ("word", "c.yaml: a configuration is a mapping of keys, this is a text"),
        ("? [a]\n: 1", "c.yaml:1: a key must be a string"),
        ("a: {", "c.yaml:1: not valid YAML"),
        ("a: *b", "c.yaml:1: not valid YAML: found undefined alias 'b'"),
        ("a: 1\n---\na: 2", "not valid YAML"),
        ('a: "\\U00110000"', "c.yaml: not valid YAML"),
        ("a: \x00", "not valid YAML"),
        (b"a: \xff\xfe", "c.yaml: byte 3 is not UTF-8"),
        ("a: " + "[" * 400, f"c.yaml:1: nested deeper than {MAX_DEPTH} levels"),
        ("a: &a [*a]", f"nested deeper than {MAX_DEPTH} levels"),
        ("a: &a {b: *a}", f"nested deeper than {MAX_DEPTH} levels"),
        ("".join(f"k{n}: &k{n} [{f'*k{n - 1}' if n else 0}]\n" for n in range(300)), f"nested deeper than {MAX_DEPTH} levels"),
        ("a: " + "x" * MAX_BYTES, f"a configuration has at most {MAX_BYTES}"),
    ],
)
def test_what_is_not_a_plain_mapping_is_refused_with_its_place(tmp_path: Path, text: str | bytes, expected: str) -> None:
    assert expected in fault(tmp_path, text)


def test_a_bomb_of_aliases_is_refused_before_it_fills_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sightline.config.MAX_NODES", 1000)
    text = "".join(f"k{n}: &k{n} [{', '.join([f'*k{n - 1}' if n else 'x'] * 10)}]\n" for n in range(9))
    assert "more than 1000 values once aliases are expanded" in fault(tmp_path, text)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file or directory"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="Is a directory"):
        read_yaml(tmp_path)


# YAML 1.2 ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[(word, word) for word in ("no", "yes", "on", "off", "y", "n", "No", "ON", "tRue", "1:30", "0x1F", "0o17", "1_000", "<<")],
        *[(word, word) for word in (".inf", "-.inf", ".nan", "nan", "inf", "2026-11-21", "=", "1e", "e5", "1.2.3", "--1")],
        *[('"1"', "1"), ("'true'", "true"), ("|\n   5\n", "5\n"), (">-\n   null\n", "null")],
        *[("true", True), ("False", False), ("null", None), ("~", None), ("", None)],
        *[("1e-4", 1e-4), ("1E5", 1e5), (".5", 0.5), ("5.", 5.0), ("-0.0", -0.0), ("+7", 7), ("-7", -7), ("0", 0), ("1.", 1.0)],
    ],
)
def test_plain_values_are_read_by_the_rules_of_yaml_1_2(tmp_path: Path, text: str, value: Any) -> None:
    found = parsed(tmp_path, f"free:\n  a: {text}").data["free"]["a"]
    assert found == value
    assert type(found) is type(value)


def test_keys_are_texts_whatever_they_look_like(tmp_path: Path) -> None:
    data = parsed(tmp_path, "free: {on: 1, 5: 2, null: 3, true: 4, 1e3: 5, <<: {a: 1}}").data["free"]
    assert list(data) == ["on", "5", "null", "true", "1e3", "<<"]


def test_an_alias_within_bounds_is_the_value_that_it_names(tmp_path: Path) -> None:
    data = parsed(tmp_path, "pen: &p {width: 3}\npens: [*p, *p]").data
    assert validate_tree(Drawing, Tree(data)).pens == (Pen(width=3), Pen(width=3))


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert drawing(tmp_path, "# nothing\n") == Drawing()
    assert drawing(tmp_path, "\ufeffpen: {width: 3}").pen.width == 3  # with the byte order mark of some editors


# Overrides --------------------------------------------------------------------------------------------------------------------


def test_arguments_are_laid_over_the_file_and_the_last_wins(tmp_path: Path) -> None:
    made = drawing(tmp_path, "pen: {width: 2, name: x}", "pen.width=3", "pen.width=4", "sizes=[1, 2e0]", "pen.name='5'")
    assert (made.pen.width, made.pen.name, made.sizes) == (4, "5", (1.0, 2.0))


def test_a_fault_of_an_argument_names_the_argument(tmp_path: Path) -> None:
    assert "argument pen.widht=3: pen.widht: unknown key; did you mean 'width'?" in fault(tmp_path, "", "pen.widht=3")
    assert "argument pen.width=x: pen.width: input should be a valid integer" in fault(tmp_path, "pen: {width: 2}", "pen.width=x")


def test_a_list_is_entered_by_index_or_by_name(tmp_path: Path) -> None:
    text = "pens: [{name: a}, {name: b}]"
    assert drawing(tmp_path, text, "pens.b.width=5", "pens.0.width=6").pens == (Pen(name="a", width=6), Pen(name="b", width=5))
    assert "pens has no item 'c'; it has a, b" in fault(tmp_path, text, "pens.c.width=5")
    assert "pens has no item '2'; it has a, b" in fault(tmp_path, text, "pens.2.width=5")
    assert "pens has no item 'x'; it has 5, None" in fault(tmp_path, "pens: [{name: 5}, {name: null}]", "pens.x.width=5")
    assert "pen.width is a whole number, it has no key 'x'" in fault(tmp_path, "pen: {width: 2}", "pen.width.x=5")


def test_another_kind_drops_the_keys_of_the_former(tmp_path: Path) -> None:
    text = "shape: {kind: square, side: 2}"
    assert drawing(tmp_path, text, "shape.kind=circle").shape == Circle()
    assert drawing(tmp_path, text, "shape.kind=square").shape == Square(side=2)
    over = {"shape": {"kind": "circle", "radius": 3}}
    assert merge_sections({"shape": {"kind": "square", "side": 2}}, over) == over


@pytest.mark.parametrize("argument", ["pen", "=3", ".width=3", "pen.=3", "pen..width=3", "pen.width={", "pen.width=!x 1", "a=010"])
def test_an_argument_that_is_none_is_refused(tmp_path: Path, argument: str) -> None:
    assert "argument" in fault(tmp_path, "", argument)


def test_an_argument_of_endless_keys_is_refused(tmp_path: Path) -> None:
    assert f"deeper than {MAX_DEPTH} levels" in fault(tmp_path, "", "a." * 5000 + "b=1")


# Round trip -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_written_as_yaml_is_read_back_equal(tmp_path: Path, recipe: str) -> None:
    made = RECIPES[recipe]()
    (tmp_path / "c.yaml").write_text(to_yaml(made), "utf-8")
    assert resolve_config(None, tmp_path / "c.yaml", []) == made


@settings(max_examples=40, deadline=None)
@given(st.text(), st.dictionaries(st.text(), st.text() | st.integers(-(2**63), 2**63) | st.booleans() | st.none()))
@example("1e5", {"1e5": "08"})
@example("08", {"": "1E-4"})
@example("5.", {"~": "no"})
@example("a\n  b\n\tc \n", {"\x85": "\u2028 "})
def test_any_text_in_a_configuration_is_read_back_equal(name: str, free: dict[str, Any]) -> None:
    made = Drawing(pen=Pen(name=name), free=free)
    data = read_text(to_yaml(made))
    assert Drawing.model_validate_json(json.dumps(data)) == made


def read_text(text: str) -> Any:
    return _parse(text, "text", {})


# Any text ---------------------------------------------------------------------------------------------------------------------

GAPS = ["", " ", "\n", "\n  ", "\n- ", ": ", ", "]
WORDS = (
    "pen colour width dashed shape kind square side circle sizes pens free name model data train stages objective parts language "
    "steps path mixture connector mlp cal lr 1 2.5 1e-4 -3 true null ~ no 010 'x' \"\\x41\" .nan 1e999 [] {} &a *a !t ? | > - : , "
    "[ ] { } # % @ `"
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def given_up_or_made(text: str, model: type[Config]) -> None:
    with contextlib.suppress(ConfigError):
        data = read_text(text)
        validate_tree(model, Tree(data if isinstance(data, dict) else {}))


@settings(max_examples=60, deadline=None)
@given(st.text())
def test_any_text_gives_a_configuration_or_a_config_error(text: str) -> None:
    given_up_or_made(text, Drawing)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["", " ", "\n", "\n  ", "\n- ", ": ", ", "]), st.sampled_from(WORDS.split())), max_size=12)
)
def test_any_row_of_yaml_words_gives_a_configuration_or_a_config_error(words: list[tuple[str, str]]) -> None:
    given_up_or_made("".join(gap + word for gap, word in words), Drawing)


SECTIONS = ["recipe", "model", "data", "objective", "train", "stages", "init", "runtime", "tracking"]


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(SECTIONS), VALUES, max_size=4), st.lists(st.sampled_from(SECTIONS), max_size=2))
@example({"stages": 5}, [])
@example({"stages": True}, [])
@example({"stages": [{"name": "a", "parts": {}, "train": 5, "data": 1, "objective": "x"}]}, ["stages"])
@example({"stages": [{"name": 5}], "train": [1]}, ["train"])
def test_a_run_of_any_values_in_any_section_is_a_config_error(values: dict[str, Any], overridden: list[str]) -> None:
    """A whole run from arbitrary sections: never valid, for a model or a stage is missing, and never another exception."""
    arguments = [f"{section}.{key}={value}" for section in overridden for key, value in [("0.name", "x"), ("lr", "1e-3")]]
    with pytest.raises(ConfigError):
        resolved(values, arguments)


def resolved(values: dict[str, Any], arguments: list[str]) -> RunConfig:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "c.yaml"
        file.write_text(json.dumps(values), "utf-8")  # JSON is YAML
        return resolve_config(None, file, arguments)


def paths_of(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if isinstance(value, dict):
        return [path, *(inner for key, item in value.items() for inner in paths_of(item, (*path, key)))]
    if isinstance(value, list):
        return [path, *(inner for index, item in enumerate(value) for inner in paths_of(item, (*path, str(index))))]
    return [path]


EVERY_KEY = paths_of(json.loads(RECIPES["scenes_tiny"]().model_dump_json()))[1:]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(EVERY_KEY), VALUES)
def test_any_value_at_any_key_of_a_recipe_gives_a_run_or_a_config_error(path: tuple[str, ...], value: Any) -> None:
    argument = f"{'.'.join(path)}={json.dumps(value)}"
    try:
        made = resolve_config(RECIPES["scenes_tiny"](), None, [argument])
    except ConfigError:
        return
    assert all(isinstance(stage_plan(made, number), StagePlan) for number in range(len(made.stages)))
    assert not any(isinstance(item, float) and not math.isfinite(item) for item in leaves(made.model_dump()))


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


# Runs and their stages --------------------------------------------------------------------------------------------------------


def test_a_fault_of_a_stage_points_to_the_stages_own_key(tmp_path: Path) -> None:
    run = json.loads(RECIPES["flickr8k_mobilenet_v2"]().model_dump_json())
    run["stages"][1]["train"] = {"epochs": 1.0, "learning_rate": 1}
    run["stages"][1]["parts"] = {"connector": -1.0}
    (tmp_path / "c.yaml").write_text(json.dumps(run, indent=1))
    lines = (tmp_path / "c.yaml").read_text().splitlines()
    number = next(index for index, line in enumerate(lines, 1) if "learning_rate" in line)
    run["stages"][1]["parts"] = {"connector": 1e-3}
    (tmp_path / "d.yaml").write_text(json.dumps(run, indent=1))
    with pytest.raises(ConfigError, match=rf"d\.yaml:{number}: train\.learning_rate: unknown key"):
        resolve_config(None, tmp_path / "d.yaml", [])


def test_naming_one_of_a_pair_drops_the_other_that_a_lower_layer_gave() -> None:
    base = RECIPES["scenes_tiny"]()
    made = resolve_config(base, None, ["train.epochs=2", "train.batch_tokens=1024"])
    assert (made.train.steps, made.train.epochs, made.train.batch_size, made.train.batch_tokens) == (None, 2.0, None, 1024)
    with pytest.raises(ConfigError, match="give either 'steps' or 'epochs'"):
        resolve_config(base, None, ["train={steps: 1, epochs: 2, batch_size: 1}"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["data.row_tokens=512", "train.batch_tokens=1000"], "train.batch_tokens=1000 is not a multiple of the row length 512"),
        (["data.pack=false", "train.batch_tokens=1024"], "counts packed rows"),
        (["data.row_tokens=64"], "data.row_tokens=64 is less than data.max_tokens=128"),
        (["data.supervise=with_padding"], "needs data.pack=false"),
        (["objective.kind=cal", "objective.mode=published"], "needs rows of one sample"),
        (["objective.kind=cal", "objective.low=6"], "low=6.0 is above high=5.0"),
        (["objective.kind=cal", "objective.window=2"], "window=2 must be odd"),
        (["train.lr=nan"], "train.lr"),
        (["train.lr=1e400"], "train.lr: input should be a finite number"),
        (["train.lr=11"], "less than or equal to 10"),
        (["train.seed=-1"], "greater than or equal to 0"),
        (["stages.full.parts.vision=on"], "stages.0.parts.vision"),
        (["stages.full.parts.eye=train"], "stage 'full': the model has no part 'eye'"),
        (["data.path=a", "data.mixture=[{path: b}]"], "give either 'path' or 'mixture'"),
    ],
)
def test_settings_at_odds_with_each_other_are_refused_before_any_work(arguments: list[str], expected: str) -> None:
    if "mixture" in arguments[-1]:
        arguments = ["data={path: a, mixture: [{path: b}]}"]
    with pytest.raises(ConfigError) as caught:
        resolve_config(RECIPES["scenes_tiny"](), None, arguments)
    assert expected in str(caught.value)
