"""Several processes are one: the same loss, gradients and stops for the same global batch, whatever falls to which rank."""

import json
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from safetensors.torch import load_file, save_file

from sightline.objectives import CALConfig, NextTokenConfig
from sightline.training import loop, stages
from sightline.training.checkpoint import Progress
from sightline.types import Sample
from tests.builders import Exact, batch_of, sample, vlm
from tests.processes import PATIENCE, Command, Commands
from tests.training.test_loop import EVERY, job

OBJECTIVES = {"cal": CALConfig(stored=False), "next_token": NextTokenConfig(), "published": CALConfig(mode="published")}
TEXT = {"num_images": 0}


def rows_of(case: str) -> list[list[Sample]]:
    """Four rows, of which rank 0 of 2 takes the first and the third."""
    one, two, three, four = sample(1, [2]), sample(2, [7], num_images=2), sample(3, [1, 4]), sample(4, [5], num_images=0)
    if case == "rank 1 has text alone":
        return [[one], [four], [two], [sample(5, [3], num_images=0)]]
    if case == "rank 1 has no rows":
        return [[one], [], [two], []]
    if case == "plain":
        return [[one], [two], [sample(3, [4])], [four]]
    return [[one, four], [two], [three], [four]]


CASES = [
    ("all", "cal", "packed", 1),
    ("all", "next_token", "packed", 2),
    ("align", "cal", "rank 1 has text alone", 2),
    ("align", "next_token", "rank 1 has no rows", 1),
]


def step(arguments: Sequence[str]) -> None:
    """In a process of its own: one step of plain SGD on this rank's share of the rows, the result in a file."""
    out, *cases = arguments
    vlm("siglip", "llama")  # the folders of its parts; once ranks know of each other, `save_pretrained` writes on the first alone
    handlers: list[Any] = [InitProcessGroupKwargs(timeout=timedelta(seconds=PATIENCE / 2))]
    accelerator = Accelerator(cpu=True, kwargs_handlers=[*handlers, DistributedDataParallelKwargs(find_unused_parameters=True)])
    rank, world = accelerator.process_index, accelerator.num_processes
    for number, case in enumerate(json.loads(text) for text in cases):
        parts, objective, rows, accumulate = case
        model = vlm("siglip", "llama", attention="eager").double()
        own = rows_of(rows)[rank::world]
        size = len(own) // accumulate
        micro = [batch_of(*own[at : at + size]) for at in range(0, len(own), size)]
        rules: Any = EVERY if parts == "all" else {"connector": "train"}
        with Exact():
            stage = stages.apply(model, "test", rules, 1.0, 0.0)
            made = loop.StepModule(model, OBJECTIVES[objective].build())
            given = job(model, [micro], OBJECTIVES[objective].build(), stage=stage, accelerator=accelerator)
            given = replace(given, step_module=accelerator.prepare_model(made))
            loop.fit(given, Progress())
        line = {name: value for name, value in given.log[0].items() if isinstance(value, int | float)}
        values = {name: torch.tensor(value, dtype=torch.float64) for name, value in line.items()}
        state = {name: value.detach().clone() for name, value in model.named_parameters() if value.numel()}
        save_file({**state, **{f"log {name}": value for name, value in values.items()}}, f"{out}-{number}-{rank}-of-{world}")


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    with Commands() as server:
        yield server


def finished(processes: Sequence[Command]) -> list[int]:
    codes = [process.wait() for process in processes]
    assert all(code == 0 for code in codes), [process.said for process in processes]
    return codes


def test_two_ranks_make_the_step_of_one_process_in_float64(tmp_path: Path, commands: Commands) -> None:
    """Loss and every parameter after a step, which plain SGD at rate 1 moves by the gradient; both ranks end alike."""
    arguments = [tmp_path / "end", *(json.dumps(case) for case in CASES)]
    here = f"{__name__}:step"
    finished([commands.start(arguments, function=here)])
    finished(commands.ranks(2, arguments, function=here))
    for number, case in enumerate(CASES):
        alone = load_file(f"{tmp_path}/end-{number}-0-of-1")
        first, second = (load_file(f"{tmp_path}/end-{number}-{rank}-of-2") for rank in range(2))
        assert {name for name in alone if name.startswith("log")} >= {"log loss", "log grad_norm", "log weight", "log supervised"}
        for name in (name for name in alone if not name.endswith(("seconds", "_per_s", "_share"))):
            gap = (first[name] - alone[name]).abs().max().item()
            assert gap <= 1e-9 * max(1.0, alone[name].abs().max().item()), (case, name)
            assert torch.equal(first[name], second[name]), (case, name)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five steps on eight pictures: stored contrast, then adapters."""
    from tests.builders import decoder_folder, encoder_folder
    from tests.data.pictures import picture, prepared, put

    folder = tmp_path_factory.mktemp("ranks")
    rows = []
    for n in range(8):
        put(folder / f"in/{n}.png", picture(n, size=(40, 30 + n)))
        captions = [f"A brown dog number {n} runs." * (1 + n % 3), "Two children play."]
        rows.append({"id": f"r{n}", "images": [f"{n}.png"], "captions": captions, "split": "val" if n > 5 else "train"})
    put(folder / "in/records.jsonl", rows)
    prepared("records", folder / "in", folder / "set")
    run = {
        "model": {"vision": {"path": str(encoder_folder("siglip"))}, "language": {"path": str(decoder_folder("llama"))}},
        "data": {"path": str(folder / "set"), "max_tokens": 160, "pack": False},
        "objective": {"kind": "cal"},
        "train": {"batch_size": 4, "accumulate": 2, "lr": 0.001, "checkpoint_every": 2, "generate_samples": 0},
        "runtime": {"device": "cpu", "threads": 1, "deadline": PATIENCE / 2},
        "stages": [
            {"name": "align", "parts": {"connector": "train"}, "train": {"steps": 3}},
            {"name": "tune", "parts": {"language": {"lr": 0.001, "lora": {"r": 2}}}, "train": {"steps": 2}},
        ],
    }
    return put(folder / "config.yaml", run)


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line.get("loss", line.get("validation_loss")) for line in lines]


def test_a_run_on_two_ranks_is_stopped_on_both_by_a_signal_to_one_and_ends_as_on_one(
    tmp_path: Path, commands: Commands, config: Path
) -> None:
    arguments = ["train", "--config", config, "--out"]
    code, said = commands.run([*arguments, tmp_path / "one"])
    assert code == 0, said
    both = commands.ranks(2, [*arguments, tmp_path / "two"], {1: "step.end=term@1"})
    assert [process.wait() for process in both] == [75, 75], [process.said for process in both]
    assert "SIGTERM at step 2; the state is saved" in both[0].said  # the others learn of it with the next step's sums
    finished(commands.ranks(2, [*arguments, tmp_path / "two"]))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    ends = [load_file(tmp_path / name / "checkpoints/step-5/model/language.safetensors") for name in ("one", "two")]
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-3, atol=1e-4)
    finished(commands.ranks(2, [*arguments, tmp_path / "again"]))
    assert losses(tmp_path / "again") == losses(tmp_path / "two")


def test_a_rank_that_dies_ends_the_others_before_the_deadline(tmp_path: Path, commands: Commands, config: Path) -> None:
    """Its peers see the broken connection in their next exchange; nobody waits for ever."""
    arguments = ["train", "--config", config, "--out", tmp_path / "run"]
    first, second = commands.ranks(2, arguments, {1: "step.end=kill@1"})
    assert second.wait() == -signal.SIGKILL
    assert first.wait() == 6, first.said
    assert "error[distributed]: another process of this run died" in first.said


if __name__ == "__main__":
    step(sys.argv[1:])
