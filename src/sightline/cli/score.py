"""`sightline score`: metrics of predictions against references, from files alone; no model and no Java."""

import difflib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sightline.cli.app import app, emit
from sightline.errors import DataError, UsageError

if TYPE_CHECKING:
    from sightline.metrics.files import Pairs
    from sightline.types import Score


@app.command()
def score(
    metrics: Annotated[str, typer.Argument(help="Comma-separated: bleu, rouge, cider; vqa, exact, anls, relaxed.")],
    predictions: Annotated[Path, typer.Option(help="COCO or VQA results (JSON), or JSON lines {id, text}.")],
    references: Annotated[
        Path, typer.Option(help="COCO or VQA annotations (JSON), JSON lines {id, references}, or a records.jsonl.")
    ],
    per_item: Annotated[Path | None, typer.Option(help="Write the values of every item as JSON lines.")] = None,
    resamples: Annotated[int, typer.Option(min=10, help="Bootstrap resamples of the 95 % intervals.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resampling.")] = 0,
    idf: Annotated[
        Path | None, typer.Option(help="References of a larger set, for CIDEr-D's document frequencies in small evaluations.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Score predictions against references: captions (bleu, rouge, cider) and short answers (vqa, exact, anls, relaxed).

    Captions are tokenised as the official Java program does it. METEOR is not offered: its paraphrase tables are Java only.

      sightline score bleu,rouge,cider --predictions results.json --references captions_val.json
    """
    from sightline.metrics.files import pair, read_predictions, read_references

    names = _metric_names(metrics)
    is_caption = "bleu" in names or "rouge" in names or "cider" in names
    if idf is not None and "cider" not in names:
        raise UsageError("--idf is for CIDEr-D, and 'cider' is not among the metrics.")
    pairs = pair(read_predictions(predictions), read_references(references, "captions" if is_caption else "answers"))
    scores = _scores(names, pairs, idf, resamples, seed)
    if per_item is not None:
        _write_items(per_item, pairs, scores)
    if as_json:
        emit({name: score.to_json() for name, score in scores.items()})
    else:
        _print_table(scores, pairs)


def _metric_names(text: str) -> list[str]:
    from sightline.metrics import ANSWER_METRICS, CAPTION_METRICS

    known = [*CAPTION_METRICS, *ANSWER_METRICS]
    names = list(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    if not names:
        raise UsageError("no metric is named.", f"Known are {', '.join(known)}.")
    for name in names:
        if name == "meteor":
            raise UsageError("METEOR is not offered: its paraphrase tables exist for Java only.", f"Known are {', '.join(known)}.")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UsageError(f"no metric {name!r}.", f"Did you mean {near[0]!r}?" if near else f"Known are {', '.join(known)}.")
    return names


def _scores(names: list[str], pairs: "Pairs", idf: Path | None, resamples: int, seed: int) -> dict[str, "Score"]:
    """The scores in the order in which the metrics were named."""
    from sightline.metrics import CAPTION_METRICS, score_answers, score_captions
    from sightline.metrics.files import read_references
    from sightline.metrics.vqa import MIN_VQA_ANSWERS

    if "vqa" in names:
        short = [key for key, answers in zip(pairs.ids, pairs.references, strict=True) if len(answers) < MIN_VQA_ANSWERS]
        if short:
            raise DataError(
                f"{len(short)} items, such as {short[0]!r}, have fewer than {MIN_VQA_ANSWERS} human answers; VQA accuracy "
                "leaves one out and counts three matches.",
                "Use 'exact' where there is one answer.",
            )
    captions = [name for name in names if name in CAPTION_METRICS]
    answers = [name for name in names if name not in CAPTION_METRICS]
    scores: dict[str, Score] = {}
    if captions:
        corpus = None if idf is None else list(read_references(idf).values())
        scores |= score_captions(pairs.predictions, pairs.references, captions, frequencies=corpus, resamples=resamples, seed=seed)
    if answers:
        scores |= score_answers(pairs.predictions, pairs.references, answers, resamples=resamples, seed=seed)
    return scores


def _write_items(path: Path, pairs: "Pairs", scores: dict[str, "Score"]) -> None:
    from sightline.runtime.storage import atomic_file

    with atomic_file(path) as file:
        for index, (key, text) in enumerate(zip(pairs.ids, pairs.predictions, strict=True)):
            line = {"id": key, "text": text} | {name: score.items[index] for name, score in scores.items()}
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")


def _print_table(scores: dict[str, "Score"], pairs: "Pairs") -> None:
    from rich.console import Console
    from rich.table import Table

    left_out = f"; {pairs.unanswered} references without a prediction left out" if pairs.unanswered else ""
    table = Table(title=f"{len(pairs.ids)} predictions{left_out}")
    for column in ("score", "value", "95 % interval", "n"):
        table.add_column(column, justify="left" if column == "score" else "right")
    for name, value in scores.items():
        table.add_row(name, f"{value.value:.4f}", f"{value.low:.4f} .. {value.high:.4f}", str(value.n))
    Console().print(table)
