"""`sightline recipes`: lists the recipes, or prints one as YAML."""

import difflib
from typing import TYPE_CHECKING, Annotated

import typer

from sightline.cli.app import app, emit
from sightline.errors import SightlineError, UsageError

if TYPE_CHECKING:
    from sightline.assembly.schema import RunConfig


def recipe_by_name(name: str) -> "RunConfig":
    """A recipe's configuration.

    Raises:
        UsageError: there is none of this name.
    """
    from sightline.recipes import RECIPES

    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(RECIPES)}."
        raise UsageError(f"no recipe {name!r}.", hint)
    return RECIPES[name]()


recipes_app = typer.Typer(no_args_is_help=False, invoke_without_command=True, help="List recipes; `show NAME` prints one as YAML.")
app.add_typer(recipes_app, name="recipes")


@recipes_app.callback()
def list_recipes(
    context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False
) -> None:
    """List the recipes with one line each."""
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
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Print a recipe as YAML; the output is itself a valid --config.

    Comments at its end say what the connector costs: parameters, operations, visual tokens. For that the configurations of
    encoder and decoder are read from their folders or from the Hub's cache; nothing is downloaded.
    """
    import json
    import os

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    recipe = recipe_by_name(name)

    from sightline.assembly.costs import recipe_cost
    from sightline.config import to_yaml

    cost, reason = None, ""
    try:
        cost = recipe_cost(recipe)
    except SightlineError as error:
        reason = f"the cost of connector {recipe.model.connector.kind} is not known here: {error}"
    if as_json:
        known = {} if cost is None else cost.to_json()
        emit(json.loads(recipe.model_dump_json()) | {"cost": known | ({"unknown": reason} if reason else {})})
        return
    typer.echo(to_yaml(recipe), nl=False)
    for line in [] if cost is None else cost.lines():
        typer.echo(f"# {line}")
    for line in reason.splitlines():
        typer.echo(f"# {line}")
