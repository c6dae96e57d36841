"""The card of a run: what was trained, on what, for how long."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sightline.runtime.storage import write_text


@dataclass(frozen=True)
class Card:
    """Facts of a run after its last finished stage.

    Attributes:
        parts: name, parameters, learning rate (0: frozen) of each part.
        tokens_per_image: visual tokens per crop.
        connector: its facts by name (kind, FLOPs per image, ...).
        sources: name, records and licence of each data set.
        hours: device hours.
        facts: versions, device, threads.
    """

    recipe: str
    stage: str
    step: int
    parts: Sequence[tuple[str, int, float]]
    tokens_per_image: int
    sources: Sequence[tuple[str, int, str | None]]
    seen_tokens: int
    seen_samples: int
    hours: float
    facts: Mapping[str, Any]
    connector: Mapping[str, str] = field(default_factory=dict)


def write_card(path: Path, card: Card) -> None:
    """Writes the card as Markdown."""
    total = sum(size for _, size, _ in card.parts)
    lines = [
        f"# {card.recipe}",
        "",
        f"After stage `{card.stage}`, step {card.step}.",
        "",
        "| part | parameters | in this stage |",
        "|---|---:|---|",
        *(f"| {name} | {size:,} | {f'trained at {lr:g}' if lr else 'frozen'} |" for name, size, lr in card.parts),
        f"| all | {total:,} | |",
        "",
        f"Visual tokens per image (per crop): {card.tokens_per_image}.",
        *(f"Connector {name}: {value}." for name, value in card.connector.items()),
        "",
        "| data set | records | licence |",
        "|---|---:|---|",
        *(f"| {name} | {records:,} | {licence or 'not stated'} |" for name, records, licence in card.sources),
        "",
        f"Seen: {card.seen_samples:,} samples, {card.seen_tokens:,} tokens, in {card.hours:.2f} device hours.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in card.facts.items() if value not in ("", None)),
        "",
    ]
    write_text(path, "\n".join(lines))
