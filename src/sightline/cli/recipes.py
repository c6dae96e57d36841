"""`sightline recipes`: lists the recipes, or prints one as YAML."""

from typing import TYPE_CHECKING, Annotated

import typer

from sightline.cli.app import Plugins, app, emit, load_plugins

if TYPE_CHECKING:
    from sightline.assembly.config.schema import RunConfig

recipes_app = typer.Typer(no_args_is_help=False, invoke_without_command=True)
app.add_typer(recipes_app, name="recipes")


@recipes_app.callback()
def list_recipes(
    context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False
) -> None:
    """List the recipes with one line each; `show NAME` prints one as YAML.

    Examples:

      sightline recipes

      sightline recipes show flickr8k_mobilenet_v2
    """
    if context.invoked_subcommand is not None:
        return
    from sightline.recipes import RECIPES

    lines = {name: (build.__doc__ or "").strip().splitlines()[0] for name, build in RECIPES.items()}
    if as_json:
        emit({"recipes": lines})
        return
    width = max(map(len, lines))
    for name, line in lines.items():
        typer.echo(f"{name:<{width}}  {line}")


@recipes_app.command()
def show(
    name: Annotated[str, typer.Argument(help="A recipe.")],
    settings: Annotated[list[str] | None, typer.Argument(help="key=value, laid over the recipe.", metavar="[KEY=VALUE]...")] = None,
    plugin: Plugins = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Print a recipe as YAML with a comment on every key; the output is itself a valid --config.

    Comments at its end say what trains in each stage and what an image costs: parameters, operations, visual tokens. For that
    the configurations of encoder and decoder are read from their folders or from the Hub's cache; nothing is downloaded, unless
    HF_HUB_OFFLINE=0 allows it.

      sightline recipes show tinyvlm model.vision.path=models/siglip model.language.path=models/smollm2
    """
    import json
    import os

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    load_plugins(plugin)
    from sightline.assembly.config.resolving import resolve_config
    from sightline.assembly.model.summary import summarise
    from sightline.config import to_commented_yaml
    from sightline.recipes import recipe_by_name

    recipe = resolve_config(recipe_by_name(name), None, settings or [])
    summary = summarise(recipe)
    cost, reason = summary.cost, summary.unknown
    if as_json:
        known = {} if cost is None else cost.to_json()
        stages = [stage.to_json() for stage in summary.stages]
        values = json.loads(recipe.model_dump_json())
        emit(values | {"cost": known | ({"unknown": reason} if reason else {}), "outline": stages})
        return
    typer.echo(to_commented_yaml(recipe), nl=False)
    lines = [line for stage in summary.stages for line in ("", *stage.lines())]
    lines += ["", *cost.lines()] if cost is not None else []
    lines += ["", *_not_known(recipe, reason)] if reason else []
    for line in lines:
        typer.echo(f"# {line}".rstrip())


def _not_known(recipe: "RunConfig", reason: str) -> list[str]:
    """What could not be computed, why, and what to do about it."""
    sources = {
        "from": recipe.model.from_,
        "vision": recipe.model.vision,
        "language": recipe.model.language,
        "dual": recipe.model.dual,
    }
    named = " ".join(f"model.{part}.path=FOLDER" for part, source in sources.items() if source is not None and source.path)
    return [
        "Not known here: the sizes of the parts, the operations and visual tokens of an image. They follow from configurations",
        *(f"that could not be read: {line}" if number == 0 else line for number, line in enumerate(reason.splitlines())),
        f"Read them from the Hub (a few kB): HF_HUB_OFFLINE=0 sightline recipes show {recipe.recipe}",
        f"Or name local folders: sightline recipes show {recipe.recipe} {named}",
    ]
