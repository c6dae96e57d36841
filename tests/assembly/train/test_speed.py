"""What makes a step fast on a GPU is off on a CPU, changes no number where it is on, and is compared before it is used."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sightline.assembly.config.resolving import stage_plan
from sightline.assembly.config.schema import RunConfig, RuntimeConfig
from sightline.assembly.model.bundle import ModelBundle
from sightline.assembly.train import speed
from sightline.assembly.train.run import train
from sightline.assembly.train.run_folder import METRICS
from sightline.assembly.train.speed import NEAR, Speed, choose_speed, cut_differences, flex_differences
from sightline.data.batches.loader import Loader
from sightline.errors import ConfigError
from sightline.models import language
from sightline.models.flex_attention import FLEX
from sightline.ops import cross_entropy
from sightline.ops.masks import block_mask
from sightline.runtime import storage
from sightline.training import compiled
from sightline.types import Head
from tests.assembly.helpers import run_config
from tests.builders import decoder, vlm
from tests.data.pictures import picture, prepared, put
from tests.ops.helpers import stand_in_for_cut_cross_entropy

pytestmark = [
    pytest.mark.usefixtures("unchecked"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
]
CPU = torch.device("cpu")


def bundle_of(model: Any) -> Any:
    """A bundle of which only the model is used."""

    class Bundle:
        pass

    made: Any = Bundle()
    made.model = model
    return made


def chosen(bundle: ModelBundle, config: RunConfig, device: torch.device = CPU, **keys: Any) -> Speed:
    return choose_speed(RuntimeConfig(**keys), stage_plan(config, 0), bundle, device, nullcontext)


def test_on_a_cpu_nothing_is_on_by_itself() -> None:
    model, config = vlm("siglip", "llama"), run_config(path="data")
    assert chosen(bundle_of(model), config) == Speed()
    assert not Speed().fixes_shapes
    assert chosen(bundle_of(model), config, compile="layers") == Speed(compiled=True)
    with pytest.raises(ConfigError, match="gradients on CUDA alone"):
        chosen(bundle_of(model), config, attention="flex")


def test_on_cuda_each_is_on_where_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "why_not_compiled", lambda: "")
    monkeypatch.setattr(speed, "_against_cut", lambda head, device: "")
    model, config, cuda = vlm("siglip", "llama"), run_config(path="data"), torch.device("cuda")
    found = {}
    for differences in ([0.001, 0.01], [0.001, 0.3]):
        monkeypatch.setattr(speed, "flex_differences", lambda decoder, arithmetic, found=differences: found)
        found[max(differences)] = chosen(bundle_of(model), config, cuda)
    assert found[0.01] == Speed(FLEX, True, "cut")
    assert found[0.3].attention is None
    assert found[0.3].notes == ("flex attention is off: it differs from the dense mask by 0.30 of the norm",)

    def fails(*given: Any) -> None:
        raise RuntimeError("no kernel image\nis available")

    monkeypatch.setattr(speed, "flex_differences", fails)
    monkeypatch.setattr(compiled, "why_not_compiled", lambda: "Triton is not installed")
    assert chosen(bundle_of(model), config, cuda).notes == (
        "flex attention is off: Triton is not installed",
        "layers are not compiled: Triton is not installed",
    )
    monkeypatch.setattr(compiled, "why_not_compiled", lambda: "")
    assert "it failed (RuntimeError: no kernel image)" in chosen(bundle_of(model), config, cuda).notes[0]
    unpacked = run_config(path="data", pack=False)
    assert chosen(bundle_of(model), unpacked, cuda) == Speed(cross_entropy="cut")
    off = {"attention": "sdpa", "compile": "off", "cross_entropy": "chunked"}
    assert chosen(bundle_of(model), config, cuda, **off) == Speed()


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gemma3"])
def test_the_comparison_finds_flex_attention_near_and_a_wrong_mask_far(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    model = decoder(kind)
    assert max(flex_differences(model, nullcontext, gradients=False)) < 1e-5
    monkeypatch.setattr(
        language, "block_mask", lambda tokens, window: block_mask(replace(tokens, branch_BT=tokens.branch_BT * 0), window)
    )
    assert max(flex_differences(model, nullcontext, gradients=False)) > NEAR["attention"]


def test_the_comparison_finds_cut_cross_entropy_near_and_a_wrong_loss_far(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    head, was_exact = Head(torch.randn(500, 32), None, 4.0, 0.5), torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        calls = stand_in_for_cut_cross_entropy(monkeypatch)
        loss, gradient = cut_differences(head, CPU)
        assert len(calls) == 1
        assert 0 < loss < NEAR["loss"]
        assert 0 < gradient < NEAR["gradient"]
        wrong = cross_entropy.cut_cross_entropy.negative_log_likelihood

        def without_cap(states: Tensor, weight: Tensor, target: Tensor, softcap: float, scale: float) -> Tensor:
            return wrong(states, weight, target, 0.0, scale)

        monkeypatch.setattr(cross_entropy.cut_cross_entropy, "negative_log_likelihood", without_cap)
        assert cut_differences(head, CPU)[0] > NEAR["loss"]
    finally:
        torch.use_deterministic_algorithms(was_exact)


def test_a_run_with_compiled_layers_has_the_losses_and_names_of_one_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = []
    for n in range(8):
        put(tmp_path / f"in/{n}.png", picture(n, size=(40, 30 + n)))
        rows.append({"id": f"r{n}", "images": [f"{n}.png"], "captions": [f"A dog {n}."], "split": "val" if n >= 6 else "train"})
    put(tmp_path / "in/records.jsonl", rows)
    prepared("records", tmp_path / "in", tmp_path / "set")
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    widths: list[int] = []
    stream = Loader.stream

    def watched(self: Loader, *given: Any) -> Any:
        for group in stream(self, *given):
            widths.extend(micro.batch.tokens.ids_BT.shape[1] for micro in group)
            yield group

    monkeypatch.setattr(Loader, "stream", watched)
    keys = {"epochs": None, "steps": 3, "evaluate_every": 2, "evaluate_samples": 2, "generate_samples": 1}
    config = run_config((), keys, path=str(tmp_path / "set"))
    lines, names = {}, {}
    with caplog.at_level("INFO"):
        for choice in ("off", "layers"):
            run, wanted = tmp_path / choice, config.runtime.model_copy(update={"compile": choice, "device": "cpu"})
            folder = train(config.model_copy(update={"runtime": wanted}), run).checkpoint / "model"
            lines[choice] = list(storage.read_json_lines(run / METRICS))
            names[choice] = [(file.name, file.stat().st_size) for file in sorted(folder.iterdir())]
    assert names["off"] == names["layers"]
    for one, other in zip(lines["off"], lines["layers"], strict=True):
        assert one.keys() == other.keys()
        for name in {"loss", "value", "grad_norm"} & one.keys():
            assert one[name] == pytest.approx(other[name], rel=1e-5)
    assert widths[3:] == [240] * 3
    assert widths[0] < 240
    assert "layers compiled" in caplog.text
