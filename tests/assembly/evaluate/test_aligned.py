"""`probe --what aligned` on a trained run, on the same with an untrained connector, and on one whose connector is broken."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from sightline.assembly.evaluate.aligned import probe_aligned
from sightline.assembly.evaluate.opened import OpenedModel, has_images, open_model, open_records
from sightline.assembly.evaluate.probe import ProbeRequest, probe, write_page
from sightline.errors import UsageError
from sightline.evaluation.probes.aligned import AlignedFindings
from tests.assembly.evaluate.helpers import data
from tests.composites import stock_folder

GOLDEN = Path(__file__).parents[2] / "golden"


def untrained(connector: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in connector.parameters():
        drawn = torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
        parameter.copy_(drawn if parameter.ndim > 1 else torch.zeros_like(parameter))


def broken(connector: nn.Module) -> None:
    for parameter in connector.parameters():
        parameter.fill_(0.0 if parameter.ndim > 1 else 0.1)


def found(model: OpenedModel, changed: Callable[[nn.Module], None] | None, folder: Path) -> AlignedFindings:
    dataset, records = open_records(str(folder), "train", has_images, None, "with an image")
    connector = model.bundle.model.connector
    assert connector is not None
    if changed is not None:
        with torch.no_grad():
            changed(connector)
    return probe_aligned(model, dataset, records, model.visual_loader())


def test_a_trained_an_untrained_and_a_broken_connector_are_told_apart(tmp_path: Path) -> None:
    run, folder = tmp_path / "run", tmp_path / "data"
    shutil.copytree(GOLDEN / "run", run)
    shutil.copytree(GOLDEN / "data", folder)
    good, fresh, deaf = (found(open_model(str(run), device="cpu"), kind, folder) for kind in (None, untrained, broken))
    assert good.verdict == "aligned"
    assert fresh.verdict == "not enough items to say"  # 35 records; its interval holds 50 %
    assert deaf.verdict == "not aligned"
    assert deaf.own_image is not None
    assert (deaf.own_image.low, deaf.own_image.high) == (0.5, 0.5)  # the same for every image
    assert deaf.rank.high < 2 < good.rank.low < good.rank.high < fresh.rank.low
    assert deaf.kept.high < good.kept.low
    assert good.gap.high < deaf.gap.low


def test_a_stock_model_is_measured_and_written_to_a_page(tmp_path: Path) -> None:
    request = ProbeRequest(str(stock_folder("llava")), str(data(tmp_path / "set")), "aligned", count=8, device="cpu")
    told = probe(request)
    write_page(told, request, tmp_path / "page.html")
    assert told.to_json()["verdict"] == "not enough items to say"
    assert told.to_json()["records"] == 8
    assert "modality gap" in (tmp_path / "page.html").read_text()


def test_too_few_records_are_an_error(tmp_path: Path) -> None:
    request = ProbeRequest(str(stock_folder("llava")), str(data(tmp_path / "set")), "aligned", count=2, device="cpu")
    with pytest.raises(UsageError, match="2 records have an image"):
        probe(request)
