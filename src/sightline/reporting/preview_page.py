"""The page of `data preview`: records as a model sees them, token by token."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from sightline.reporting import html
from sightline.reporting.html import Html, Section, Token

CROP_WIDTH, LEAST_WIDTH = 224, 112


@dataclass(frozen=True)
class Continuation:
    """One branch of a sample: a caption, or a question with its answer.

    Attributes:
        title: which one it is.
        own: its own tokens, after the prefix.
        num_tokens: of the whole row, as if it stood alone.
        num_supervised: tokens that are predicted.
    """

    title: str
    own: Sequence[Token]
    num_tokens: int
    num_supervised: int


@dataclass(frozen=True)
class PreviewedSample:
    """A sample, or a record that gives none.

    Attributes:
        title: ids of the records.
        crops: images as the encoder sees them, `[N, h, w, 3]`; None without images.
        prefix: tokens that the branches share; empty where there is one branch.
        branches: the continuations.
        num_tokens: tokens that the sample takes in a packed row.
        faults: what is left out of these records and why.
    """

    title: str
    crops: UInt8[np.ndarray, "N h w 3"] | None
    prefix: Sequence[Token]
    branches: Sequence[Continuation]
    num_tokens: int
    faults: Sequence[str] = ()


def preview_page(title: str, facts: dict[str, html.Node], shown: Sequence[PreviewedSample], version: str) -> str:
    """Returns the HTML page.

    Args:
        title: of the page.
        facts: about data and model.
        shown: samples in order.
        version: of this package.
    """
    lead = html.join([html.facts(facts), _legend()])
    cards = html.join([_card(number, sample) for number, sample in enumerate(shown, 1)])
    return html.page(title, [Section("Samples", cards)], lead, footer=f"Made by sightline {version}, data preview.")


def _legend() -> Html:
    return html.legend(
        {
            "supervised: the model learns to say it": "supervised",
            "read, not learned": "plain",
            "special token": "special",
            "visual tokens": "visual",
        }
    )


def _card(number: int, sample: PreviewedSample) -> Html:
    notes = [html.note(fault, "bad") for fault in sample.faults]
    texts: list[html.Node] = [_counts(sample)] if sample.branches else []
    if sample.prefix:
        texts.append(_line("shared", f"{sum(token.count for token in sample.prefix):,} tokens", sample.prefix))
    for branch in sample.branches:
        texts.append(_line(branch.title, f"{branch.num_supervised:,} of {branch.num_tokens:,}", branch.own))
    body = html.element("div", _crops(sample), html.element("div", *texts), attributes={"class": "beside"})
    return html.element("article", html.element("h3", f"{number}. {sample.title}"), *notes, body, attributes={"class": "card"})


def _crops(sample: PreviewedSample) -> Html | None:
    if sample.crops is None:
        return None
    height, width = sample.crops.shape[1:3]
    wide = min(CROP_WIDTH, max(width, LEAST_WIDTH)) if len(sample.crops) == 1 else LEAST_WIDTH
    caption = f"{len(sample.crops)} crops" if len(sample.crops) > 1 else "as the encoder sees it"
    crops = (html.image(crop, f"crop {place}", wide) for place, crop in enumerate(sample.crops, 1))
    return html.figure(html.element("div", *crops, attributes={"class": "pair"}), f"{caption}, {width} x {height} pixels")


def _counts(sample: PreviewedSample) -> Html:
    alone = sum(branch.num_tokens for branch in sample.branches)
    caption = f"{sample.num_tokens:,} tokens in a row"
    if len(sample.branches) > 1:
        caption += f"; {alone:,} if each of the {len(sample.branches)} continuations had its own"
    return html.paragraph(caption, ". Beside each continuation: supervised tokens of all its tokens.")


def _line(name: str, caption: str, row: Sequence[Token]) -> Html:
    label = html.element("span", name, html.element("br"), caption, attributes={"class": "faint"})
    return html.element("div", label, html.tokens(row), attributes={"class": "line"})
