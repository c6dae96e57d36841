"""The command line: one file per verb. Only this floor prints to stdout and turns errors into exit codes."""

from sightline.cli import compare as compare
from sightline.cli import convert as convert
from sightline.cli import data as data
from sightline.cli import data_check as data_check
from sightline.cli import data_export as data_export
from sightline.cli import data_features as data_features
from sightline.cli import data_get as data_get
from sightline.cli import data_preview as data_preview
from sightline.cli import demo as demo
from sightline.cli import doctor as doctor
from sightline.cli import evaluate as evaluate
from sightline.cli import export as export
from sightline.cli import generate as generate
from sightline.cli import probe as probe
from sightline.cli import recipes as recipes
from sightline.cli import report as report
from sightline.cli import score as score
from sightline.cli import sweep as sweep
from sightline.cli import train as train
from sightline.cli.app import app, wrap_help
from sightline.cli.app import main as main

app.add_typer(data.app)
wrap_help(app)
