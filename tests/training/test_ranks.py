"""Several processes are one: the same loss, gradients and stops for the same global batch, whatever falls to which rank."""

import contextlib
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from benchmarks.host_reads import reads_of
from safetensors.torch import load_file, save_file
from torch._dynamo.utils import counters
from torch.distributed.tensor import DTensor

from sightline.errors import DistributedError
from sightline.models.connectors.align import AlignConfig
from sightline.models.gradient_checkpointing import checkpoint_activations
from sightline.objectives import CALConfig, NextTokenConfig
from sightline.training import compiled, loop, stages
from sightline.training.checkpoint import Progress
from sightline.training.ranks import Ranks, Replicated, Sharded, StepModule, exchange_errors_named
from sightline.types import Sample
from tests.builders import Exact, batch_of, experts, sample, vlm
from tests.data.pictures import picture, prepared, put
from tests.processes import PATIENCE, Command, Commands
from tests.training.helpers import EVERY, job

OBJECTIVES = {"cal": CALConfig(stored=False), "next_token": NextTokenConfig()}
RULES: dict[str, Any] = {"all": EVERY, "align": {"connector": "train"}, "instruct": {"connector": "train", "language": "train"}}


def rows_of(case: str) -> list[list[Sample]]:
    """Four rows, of which rank 0 of 2 takes the first and the third."""
    one, two, three, four = sample(1, [2]), sample(2, [7], num_images=2), sample(3, [1, 4]), sample(4, [5], num_images=0)
    if case == "rank 1 has text alone":
        return [[one], [four], [two], [sample(5, [3], num_images=0)]]
    if case == "rank 1 has no rows":
        return [[one], [], [two], []]
    return [[one, four], [two], [three], [four]]


@dataclass(frozen=True)
class Case:
    """A step to make, and how the ranks share the model."""

    parts: str = "all"
    objective: str = "next_token"
    rows: str = "packed"
    accumulate: int = 1
    align: bool = False  # as connector, whose gain is a scalar, and which looks at the live word embeddings
    again: bool = False  # gradient checkpointing, in float32: what is computed again is so outside of `Exact`
    compiled: bool = False  # layers, on two ranks alone
    clip: float = 0.0
    experts: bool = False  # in the decoder, whose load-balancing loss is a mean over a micro-batch: each row is one


TEXT_ALONE, NO_ROWS = "rank 1 has text alone", "rank 1 has no rows"
REPLICATED = [
    Case("all", "cal"),
    Case("all", "next_token", accumulate=2),
    Case("align", "cal", TEXT_ALONE, 2),
    Case("align", "next_token", NO_ROWS),
    Case("all", again=True, compiled=True),
    Case("instruct", "next_token", experts=True),
]
SHARDED = [
    Case("all", "cal"),
    Case("all", "next_token", accumulate=2),
    Case("all", "cal", TEXT_ALONE, 2),
    Case("all", "cal", NO_ROWS),
    Case("instruct", "cal", TEXT_ALONE, align=True, clip=0.1),
    Case("all", "cal", again=True, clip=0.1),
    Case("all", "cal", again=True, compiled=True),
    Case("instruct", "next_token", clip=0.1, experts=True),
    Case("instruct", "next_token", NO_ROWS, experts=True),
]


def step(arguments: Sequence[str]) -> None:
    """In a process of its own: one step of plain SGD on this rank's share of the rows, the result in a file."""
    out, kind, *cases = arguments
    vlm("siglip", "llama")  # the folders of its parts; once ranks know of each other, `save_pretrained` writes on the first alone
    handlers: list[Any] = [InitProcessGroupKwargs(timeout=timedelta(seconds=PATIENCE / 2))]
    accelerator = Accelerator(cpu=True, kwargs_handlers=[*handlers, DistributedDataParallelKwargs(find_unused_parameters=True)])
    rank, world = accelerator.process_index, accelerator.num_processes
    for number, text in enumerate(cases):
        case = Case(**json.loads(text))
        model = vlm("siglip", "llama", AlignConfig(shuffle=2) if case.align else None, attention="eager")
        if case.experts:
            model.language = experts("mixtral", router_aux_loss_coef=5.0)
        checkpoint_activations(model) if case.again else model.double()
        own = rows_of(case.rows)[rank::world]
        size = 1 if case.experts else len(own) // case.accumulate
        micro = [batch_of(*own[at : at + size]) for at in range(0, len(own), size)]
        with contextlib.nullcontext() if case.again else Exact():
            stage = stages.apply(model, "test", RULES[case.parts], 1.0, 0.0)
            objective = OBJECTIVES[case.objective].build()
            if kind == "sharded":
                shared: Ranks = Sharded(accelerator, model, objective, model.language)
                stage = stages.with_current_parameters(stage, model)
                held = sum(
                    value.to_local().numel() if isinstance(value, DTensor) else value.numel() for value in model.parameters()
                )
                assert held < 0.52 * sum(value.numel() for value in model.parameters())
            else:
                shared = Replicated(accelerator, StepModule(model, objective))
            with shared.unsharded():  # goes back to how it was
                pass
            given = job(model, [micro], objective, stage=stage, accelerator=accelerator, ranks=shared, clip=case.clip)
            is_compiled = case.compiled and world > 1
            layers = compiled.compiled_layers(model.language, model.vision, "eager") if is_compiled else contextlib.nullcontext()
            with layers:
                loop.fit(given, Progress())
                assert counters["frames"]["ok"] > 0 or not is_compiled
            with shared.unsharded():  # and after a step, each rank has it all
                layer = model.language.model.layers[0].self_attn.q_proj
                alone = [len(row) for row in (model.language.lm_head.weight, layer.weight)]
            ends = dict(model.named_parameters())
            ends = shared.gathered(ends) if kind == "sharded" else ends
        line = {name: value for name, value in given.log[0].items() if isinstance(value, int | float)}
        values = {name: torch.tensor(value, dtype=torch.float64) for name, value in (line | {"rows": sum(alone)}).items()}
        state = {name: value.detach().clone() for name, value in ends.items() if value.numel()}
        save_file({**state, **{f"log {name}": value for name, value in values.items()}}, f"{out}-{number}-{rank}-of-{world}")


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    with Commands() as server:
        yield server


def finished(processes: Sequence[Command]) -> list[int]:
    codes = [process.wait() for process in processes]
    assert all(code == 0 for code in codes), [process.said for process in processes]
    return codes


@pytest.mark.parametrize(("kind", "cases"), [("replicated", REPLICATED), ("sharded", SHARDED)], ids=["replicated", "sharded"])
def test_two_ranks_make_the_step_of_one_process_in_float64(
    tmp_path: Path, commands: Commands, kind: str, cases: list[Case]
) -> None:
    """Loss and every parameter after a step, which plain SGD at rate 1 moves by the gradient; both ranks end alike."""
    texts = [json.dumps(asdict(case)) for case in cases]
    here = f"{__name__}:step"
    finished([commands.start([tmp_path / "end", "replicated", *texts], function=here)])
    finished(commands.ranks(2, [tmp_path / "end", kind, *texts], function=here))
    for number, case in enumerate(cases):
        alone = load_file(f"{tmp_path}/end-{number}-0-of-1")
        first, second = (load_file(f"{tmp_path}/end-{number}-{rank}-of-2") for rank in range(2))
        assert {name for name in alone if name.startswith("log")} >= {"log loss", "log grad_norm", "log weight", "log supervised"}
        for name in (name for name in alone if not name.endswith(("seconds", "_per_s", "_share"))):
            gap = (first[name] - alone[name]).abs().max().item()
            assert gap <= (1e-5 if case.again else 1e-9) * max(1.0, alone[name].abs().max().item()), (case, name)
            if kind == "replicated" or name.startswith("log"):
                assert torch.equal(first[name], second[name]), (case, name)


def sharded_reads(arguments: Sequence[str]) -> None:
    """In a process of its own: where a sharded rank reads in the steps after the first, with 1 and with 8 micro-batches."""
    vlm("siglip", "llama")  # as in `step`
    accelerator = Accelerator(cpu=True, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=PATIENCE / 2))])
    rank, objective, found = accelerator.process_index, OBJECTIVES["cal"].build(), {}
    for micro_batches in (1, 8):
        model = vlm("siglip", "llama", attention="eager").train()
        stage = stages.apply(model, "test", EVERY, 1.0, 0.0)
        shared = Sharded(accelerator, model, objective, model.language)
        stage = stages.with_current_parameters(stage, model)
        given = [[batch_of(*rows_of("packed")[rank::2])] * micro_batches] * 2
        found[micro_batches] = reads_of(
            job(model, given, objective, stage=stage, accelerator=accelerator, ranks=shared, clip=1.0), 1
        )
    Path(f"{arguments[0]}-{rank}").write_text(json.dumps(found))


def test_sharded_ranks_read_the_host_at_most_twice_a_step(tmp_path: Path, commands: Commands) -> None:
    """The number of passes is exchanged between hosts; `reads_of` does not count that."""
    finished(commands.ranks(2, [tmp_path / "reads"], function=f"{__name__}:sharded_reads"))
    for rank in range(2):
        found = json.loads((tmp_path / f"reads-{rank}").read_text())
        assert all(1 <= len(places) <= 2 for places in found.values()), found


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five steps on eight images: stored contrast, then adapters."""
    from tests.builders import decoder_folder, encoder_folder

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


def test_a_sharded_run_is_stopped_goes_on_and_ends_as_on_one_process(tmp_path: Path, commands: Commands, config: Path) -> None:
    """Through validation, checkpoints within the sharded stage and at its end, and a stage that shards nothing after it."""
    stages = [
        {"name": "instruct", "parts": {"connector": "train", "language": "train"}, "train": {"steps": 4, "evaluate_every": 2}},
        {"name": "tune", "parts": {"language": {"lr": 0.001, "lora": {"r": 2}}}, "train": {"steps": 1}},
    ]
    given = json.loads(config.read_text())
    given["model"]["connector"] = {"kind": "align", "shuffle": 2}
    given["train"]["generate_samples"] = 1
    given |= {"stages": stages, "objective": {"kind": "cal", "stored": False}}
    code, said = commands.run(["train", "--config", put(tmp_path / "one.yaml", given), "--out", tmp_path / "one"])
    assert code == 0, said
    given["runtime"]["shard"] = True
    arguments = ["train", "--config", put(tmp_path / "sharded.yaml", given), "--out"]
    both = commands.ranks(2, [*arguments, tmp_path / "two"], {0: "step.end=term@3"})
    assert [process.wait() for process in both] == [75, 75], [process.said for process in both]
    finished(commands.ranks(2, [*arguments, tmp_path / "two"]))
    finished(commands.ranks(2, [*arguments, tmp_path / "whole"]))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert losses(tmp_path / "two") == losses(tmp_path / "whole")
    for step in (3, 4, 5):
        for part in ("connector", "language"):
            path = f"checkpoints/step-{step}/model/{part}.safetensors"
            if (tmp_path / "whole" / path).exists():
                ends = [load_file(tmp_path / name / path) for name in ("one", "two", "whole")]
                assert ends[0].keys() == ends[1].keys() == ends[2].keys()
                for name, value in ends[0].items():
                    assert torch.equal(ends[1][name], ends[2][name]), name
                    torch.testing.assert_close(ends[1][name], value, rtol=1e-3, atol=1e-4)


def test_a_rank_that_dies_ends_the_others_before_the_deadline(tmp_path: Path, commands: Commands, config: Path) -> None:
    """Its peers see the broken connection in their next exchange; nobody waits for ever."""
    arguments = ["train", "--config", config, "--out", tmp_path / "run"]
    first, second = commands.ranks(2, arguments, {1: "step.end=kill@1"})
    assert second.wait() == -signal.SIGKILL
    assert first.wait() == 6, first.said
    assert "error[distributed]: another process of this run died" in first.said


def test_a_rank_that_is_stopped_ends_the_others_after_the_deadline(tmp_path: Path, commands: Commands, config: Path) -> None:
    """It does not die, so nobody sees a broken connection; whatever gloo says of it, the exit code is that of the exchange."""
    given = json.loads(config.read_text())
    given["runtime"]["deadline"] = 6
    given["stages"] = [given["stages"][0] | {"train": {"steps": 100_000}}]
    arguments = ["train", "--config", put(tmp_path / "config.yaml", given), "--out", tmp_path / "run"]
    first, second = commands.ranks(2, arguments)
    first.until(tmp_path / "run/metrics.jsonl")
    second.kill(signal.SIGSTOP)
    assert first.wait() == 6, first.said
    assert "error[distributed]: another process of this run died or missed its deadline" in first.said
    assert "Traceback" not in first.said
    second.kill(signal.SIGCONT)
    assert second.wait() == 6, second.said


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("Application timeout caused pair closure"), True),
        (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:5"), True),
        (RuntimeError("[unbound_buffer.cc:81] Timed out waiting 6000ms for recv operation to complete"), True),
        (RuntimeError("Socket Timeout"), True),
        (RuntimeError("Broken pipe"), True),
        (RuntimeError("NCCL communicator was aborted on rank 1."), True),
        (torch.distributed.DistBackendError("anything"), True),
        (torch.distributed.DistStoreError(""), True),
        (torch.OutOfMemoryError("CUDA out of memory in the collective of a process group"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"), False),
        (RuntimeError("probability tensor contains either `inf`, `nan` or element < 0"), False),
        (RuntimeError(""), False),
    ],
)
def test_errors_of_the_exchange_are_told_from_others(error: RuntimeError, expected: bool) -> None:
    with pytest.raises(RuntimeError if not expected else DistributedError), exchange_errors_named(2):
        raise error
    with pytest.raises(type(error)), exchange_errors_named(1):
        raise error


def test_an_error_out_of_a_collective_is_one_of_the_exchange_whatever_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raised below a function of torch's module of collectives, with words that nobody knows yet."""

    def fail(*arguments: object) -> None:
        raise RuntimeError("a new message")

    monkeypatch.setattr(torch.distributed.distributed_c10d, "_rank_not_in_group", fail)
    with pytest.raises(DistributedError, match="a new message"), exchange_errors_named(2):
        torch.distributed.all_reduce(torch.ones(1))


if __name__ == "__main__":
    step(sys.argv[1:])
