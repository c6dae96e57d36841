"""What a training shows on stderr while it runs: a live bar on a terminal, plain lines in a file."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sightline.runtime import logs
from sightline.runtime.logs import Bar, logger, readable_clock

if TYPE_CHECKING:
    from rich.progress import Progress

TEXT_CHARACTERS = 120  # of a generated text on the console


@dataclass(frozen=True)
class PlannedStage:
    """Length of a stage before it begins.

    Attributes:
        name: of the stage.
        steps: optimiser steps; None where they are not known yet.
        step_tokens: tokens of a step, by which the time of a stage that has not begun is estimated.
    """

    name: str
    steps: int | None
    step_tokens: float = 1.0


@dataclass(frozen=True)
class SampleText:
    """A text that the model generated in validation.

    Attributes:
        id: of the record.
        text: what the model generated.
        truth: a reference text of the record; "" where it has none.
    """

    id: str
    text: str
    truth: str = ""


class RunConsole:
    """Tells the story of a run: its stages, the time that is left, validation losses and sample texts.

    Args:
        stages: all stages of the run.
        show: False shows nothing, as on ranks other than the first.
        clock: returns seconds.
    """

    def __init__(self, stages: Sequence[PlannedStage], show: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        self.stages, self.show, self.clock = stages, show, clock

    def title(self, number: int) -> str:
        """Returns a stage's place in the run and its name."""
        return f"stage {number + 1} of {len(self.stages)} ({self.stages[number].name})"

    @contextmanager
    def bar(self, number: int, steps: int, done: int) -> Iterator[Bar]:
        """Shows the progress of a stage and the time left for it and for the run.

        Args:
            number: of the stage.
            steps: optimiser steps of the stage.
            done: steps that were done before.
        """
        left = _TimeLeft(self.stages, number, steps, done, self.clock)
        title = self.title(number)
        if not self.show or not logs.is_shown():
            yield Bar(lambda count, figures: None)
            return
        last = [""]

        def remember(update: Callable[[int, str], None]) -> Bar:
            def step(count: int, figures: str) -> None:
                left.done += count
                last[0] = figures
                update(count, figures)

            return Bar(step)

        if sys.stderr.isatty():
            with _live_bar() as bars:
                task = bars.add_task(title, total=steps, completed=done, left="", figures="")
                yield remember(lambda count, figures: bars.update(task, advance=count, left=left.text(), figures=figures))
        else:
            yield remember(_LogLines(title, left, self.clock))
        if left.done > done:
            passed = readable_clock(self.clock() - left.begin)
            logger.info("%s: %s steps done in %s, %s", title, f"{left.done - done:,}", passed, last[0])

    def validated(self, number: int, step: int, values: Mapping[str, Any], is_best: bool, samples: Sequence[SampleText]) -> None:
        """Shows the values of an in-loop validation and some generated texts.

        Args:
            number: of the stage.
            step: of the run.
            values: for the log; `validation_loss`, scores and shares.
            is_best: whether this is the best checkpoint so far.
            samples: generated texts.
        """
        if not self.show or "validation_loss" not in values:
            return
        logger.info("validation at step %s: %s%s", f"{step:,}", described_values(values), " (best so far)" if is_best else "")
        for sample in samples:
            truth = f" (true: {_one_line(sample.truth)})" if sample.truth else ""
            logger.info("  %s: %s%s", _one_line(sample.id), _one_line(sample.text) or "(nothing)", truth)


def described_values(values: Mapping[str, Any]) -> str:
    """Returns loss and scores of a validation as text."""
    scores = dict(values.get("validation_score") or {})
    scores |= {name: values[name] for name in ("i2t_r1", "t2i_r1") if name in values}
    return ", ".join([f"loss {values['validation_loss']:.4f}", *(f"{name} {value:.4f}" for name, value in scores.items())])


def _one_line(text: str) -> str:
    """Returns a text without line breaks and control characters, shortened."""
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return text if len(text) <= TEXT_CHARACTERS else text[: TEXT_CHARACTERS - 3] + "..."


class _TimeLeft:
    """Estimates the time left from the mean time of the steps so far, validations and checkpoints included."""

    def __init__(self, stages: Sequence[PlannedStage], number: int, steps: int, done: int, clock: Callable[[], float]) -> None:
        self.steps, self.first, self.done, self.clock, self.begin = steps, done, done, clock, clock()
        own, later = stages[number], stages[number + 1 :]
        unknown = any(stage.steps is None for stage in later)
        # A step of another stage is taken to cost as much per token as one of this stage.
        self.later = None if unknown else sum((stage.steps or 0) * stage.step_tokens / own.step_tokens for stage in later)
        self.has_later = bool(later)

    def text(self) -> str:
        """Returns the time left, `h:mm:ss` for the stage and for the run; "" before the first step."""
        if self.done <= self.first:
            return ""
        per_step = (self.clock() - self.begin) / (self.done - self.first)
        stage = (self.steps - self.done) * per_step
        if not self.has_later:
            return f"left {readable_clock(stage)}"
        run = "?" if self.later is None else readable_clock(stage + self.later * per_step)
        return f"left {readable_clock(stage)}, run {run}"


class _LogLines:
    """One line every 15 seconds, for a file."""

    def __init__(self, title: str, left: _TimeLeft, clock: Callable[[], float]) -> None:
        self.title, self.left, self.clock = title, left, clock
        self.next = clock() + logs.SECONDS_BETWEEN_LINES

    def __call__(self, count: int, figures: str) -> None:
        now = self.clock()
        if now >= self.next:
            self.next = now + logs.SECONDS_BETWEEN_LINES
            steps = f"step {self.left.done:,} of {self.left.steps:,}"
            logger.info("%s: %s, %s, %s", self.title, steps, self.left.text(), figures)


def _live_bar() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[figures]}"),
        console=Console(stderr=True),
    )
