"""The console of a run: stages, time left, losses and sample texts, on a terminal and in a file."""

import io
import re
import sys
from collections.abc import Sequence

import pytest

from sightline.runtime import logs
from sightline.training.console import PlannedStage, RunConsole, SampleText, described_values

STAGES = (PlannedStage("align", 10, 100.0), PlannedStage("instruct", 20, 200.0), PlannedStage("last", 5, 100.0))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """A clock of which each reading is `step` seconds after the one before."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def shown(
    monkeypatch: pytest.MonkeyPatch,
    stream: io.StringIO,
    stages: Sequence[PlannedStage] = STAGES,
    number: int = 0,
    step: float = 20.0,
) -> str:
    """What a run writes whose first stage takes some seconds a step, with a validation in its middle."""
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    logs.configure()
    clock = Clock()
    console = RunConsole(stages, clock=clock)
    length = stages[number].steps or 0
    with console.bar(number, length, 0) as bar:
        for done in range(1, length + 1):
            clock.now += step
            bar.step(1, f"loss {1 / done:.2f}")
            if done == length // 2:
                texts = [SampleText("a.jpg", "a dog\x1b[31m runs\n", "a dog"), SampleText("b.jpg", "", "")]
                console.validated(number, done, {"validation_loss": 0.5, "validation_score": {"cider": 0.25}}, True, texts)
    return stream.getvalue()


def test_a_file_gets_plain_lines_with_the_time_left_for_stage_and_run(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, io.StringIO())
    assert [char for char in text if not char.isprintable() and char != "\n"] == []
    lines = text.splitlines()
    # 9 more steps of 20 s; then 20 steps of twice the tokens and 5 of as many: 180 s, and 180 + 20 * 40 + 5 * 20 s.
    assert lines[0] == "stage 1 of 3 (align): step 1 of 10, left 0:03:00, run 0:18:00, loss 1.00"
    assert "stage 1 of 3 (align): step 9 of 10, left 0:00:20, run 0:15:20, loss 0.11" in lines
    place = lines.index("validation at step 5: loss 0.5000, cider 0.2500 (best so far)")
    assert lines[place + 1 : place + 3] == ["  a.jpg: a dog [31m runs (true: a dog)", "  b.jpg: (nothing)"]
    assert lines[-1] == "stage 1 of 3 (align): 10 steps done in 0:03:20, loss 0.10"


def test_a_terminal_gets_a_live_bar_and_the_same_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, Terminal())
    assert "\x1b[" in text
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert "stage 1 of 3 (align)" in plain
    assert "10/10" in plain
    assert "left 0:00:00, run 0:15:00" in plain
    assert "validation at step 5: loss 0.5000, cider 0.2500 (best so far)" in plain
    assert "  a.jpg: a dog [31m runs (true: a dog)" in plain


def test_only_a_later_stage_of_unknown_length_hides_the_time_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = (STAGES[0], PlannedStage("instruct", None), STAGES[2])
    assert "left 0:03:00, run ?, loss" in shown(monkeypatch, io.StringIO(), unknown)
    assert "stage 3 of 3 (last): step 1 of 5, left 0:01:20, loss 1.00" in shown(monkeypatch, io.StringIO(), unknown, number=2)


def test_other_ranks_and_programs_see_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    logs.configure()
    console = RunConsole(STAGES, show=False)
    with console.bar(0, 10, 0) as bar:
        bar.step(10, "loss 1")
    console.validated(0, 1, {"validation_loss": 1.0}, True, [SampleText("a", "b")])
    assert stream.getvalue() == ""


def test_scores_of_pairs_are_shown_with_their_loss() -> None:
    assert (
        described_values({"validation_loss": 1.0, "i2t_r1": 0.5, "t2i_r1": 0.25, "value": 3})
        == "loss 1.0000, i2t_r1 0.5000, t2i_r1 0.2500"
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3725, "1:02:05"), (360000, "100:00:00"), (-1, "0:00:00")]
)
def test_durations_have_hours_minutes_and_seconds(seconds: float, text: str) -> None:
    assert logs.readable_clock(seconds) == text
