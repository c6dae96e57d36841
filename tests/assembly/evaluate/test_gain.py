"""The gain of a token is the difference of its raw logit between two forward passes, whatever shares a row with it."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.assembly.evaluate.gain import gains, probe_gain
from sightline.assembly.model.build import build_from_config
from sightline.assembly.model.bundle import ModelBundle
from sightline.cli import main
from sightline.data.dataset import Dataset
from sightline.data.images.pixels import PixelLoader
from sightline.data.samples.processing import Processing
from sightline.errors import UsageError
from sightline.evaluation.controls import exchange_images
from sightline.evaluation.probes.gain import TextGain, separation
from sightline.models.text import TextModel
from sightline.models.vlm import SightlineForConditionalGeneration
from sightline.types import Record
from tests.assembly.evaluate.helpers import two_pictures
from tests.assembly.helpers import run_config
from tests.builders import decoder
from tests.composites import stock_folder
from tests.data.check.planted import folder, png, question, record, scene, stored

CLOSE = 1e-4  # worst seen 2.4e-6, of gains around 3: the same products in rows of another width


@pytest.fixture(scope="module")
def bundle() -> ModelBundle:
    built = build_from_config(run_config(), Processing(prompt="Look.", max_tokens=200), None)
    built.model.eval()
    return built


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        record("five", "0.png", captions=["a dog", "a red ball on the beach", "people", "a", "Two children play"]),
        question("asked", "1.png", "What is it?", ["a bicycle"]),
        record("one", "2.png", captions=["the woman reads"]),
        *(record(f"more{n}", f"{n}.png", captions=[f"caption {n}"]) for n in range(3, 8)),
    ]
    return folder(tmp_path_factory.mktemp("gain") / "data", rows, {f"{n}.png": png(scene(n, 64)) for n in range(8)})


def pictures(bundle: ModelBundle) -> PixelLoader:
    assert bundle.processing.preparation is not None
    return PixelLoader(bundle.processing.preparation, bundle.processing.tiling)


def found(bundle: ModelBundle, dataset: Dataset, records: list[Record], skipped: Counter[str] | None = None) -> list[TextGain]:
    return list(gains(bundle, dataset, records, pictures(bundle), Counter() if skipped is None else skipped))


def by_hand(bundle: ModelBundle, dataset: Dataset, record: Record, text: int) -> list[float]:
    """Two calls of the model's own forward: ids with pixels, and the same ids without the image tokens at their positions."""
    model, conversation_encoder = bundle.model, bundle.conversation_encoder()
    assert isinstance(model, SightlineForConditionalGeneration)
    row = conversation_encoder.encode_conversation(
        conversation_encoder.conversations(record)[text], conversation_encoder.layouts(record)
    )
    pixels = pictures(bundle).load(dataset, record).pixels
    ids, position = torch.from_numpy(row.ids), torch.arange(len(row.ids))
    is_text = torch.ones(len(ids), dtype=torch.bool)
    is_text[torch.from_numpy(row.slots)] = False
    with torch.no_grad():
        seen = model(input_ids=ids[None], pixel_values=model.normalise(torch.as_tensor(pixels))).logits[0]
        blind = model.language(input_ids=ids[is_text][None], position_ids=position[is_text][None]).logits[0]
    place_of = dict(zip(position[is_text].tolist(), range(len(blind)), strict=True))
    out = []
    for span in row.spans:
        for place in range(span.start, span.end):
            target = ids[place]
            before = max((at for at in place_of if at < place), default=None)
            alone = float("nan") if before is None else float(blind[place_of[before], target])
            out.append(float(seen[place - 1, target]) - alone)
    return out


def test_gain_is_the_difference_of_two_forward_passes_for_every_text(bundle: ModelBundle, data: Path) -> None:
    dataset = Dataset(data)
    records = list(dataset.records())
    texts = found(bundle, dataset, records)
    assert [(text.record_id, text.text) for text in texts[:7]] == [*(("five", n) for n in range(5)), ("asked", 0), ("one", 0)]
    by_id = {record.id: record for record in records}
    largest = 0.0
    for text in texts:
        expected = by_hand(bundle, dataset, by_id[text.record_id], text.text)
        np.testing.assert_allclose(text.gains, expected, atol=CLOSE)
        largest = max(largest, *map(abs, expected))
    assert largest > 1  # the images do change the logits
    assert texts[1].said == "a red ball on the beach<|im_end|>"


def test_foreign_gain_is_that_of_the_other_image(bundle: ModelBundle, data: Path) -> None:
    dataset = Dataset(data)
    records = list(dataset.records())
    told = probe_gain(bundle, dataset, records, pictures(bundle), shown=3)
    exchanged = {record.id: record for record in exchange_images(records)}
    assert [text.record_id for text in told.foreign] == [text.record_id for text in told.own]
    for text in told.foreign[4:7]:
        other = exchanged[text.record_id]
        assert other.images != next(record.images for record in records if record.id == text.record_id)
        np.testing.assert_allclose(text.gains, by_hand(bundle, dataset, other, text.text), atol=CLOSE)
    shown = told.shown[0]
    assert (shown.record_id, len(shown.own)) == ("five", 5)
    assert shown.image is not None
    assert shown.image.startswith(b"\x89PNG")
    asked = next(record for record in exchanged.values() if record.images == records[0].images)
    assert [text.record_id for text in shown.foreign] == [asked.id]
    assert told.to_json()["separation"] == separation(told.own, told.foreign)


def test_a_record_that_cannot_exchange_its_images_is_left_out_of_both_sides(bundle: ModelBundle, tmp_path: Path) -> None:
    rows = [record(name, f"{n}.png") for n, name in enumerate("abc")] + [two_pictures("pair") | {"split": "train"}]
    path = folder(tmp_path / "data", rows, {f"{n}.png": png(scene(n, 64)) for n in range(3)})
    dataset = Dataset(path)
    told = probe_gain(bundle, dataset, list(dataset.records()), pictures(bundle))
    assert [text.record_id for text in told.own] == [text.record_id for text in told.foreign] == ["a", "b", "c"]
    assert told.to_json()["skipped"] == {"not_exchangeable": 1}
    assert told.figures()["skipped records"] == "not_exchangeable 1"


def test_a_token_with_nothing_but_the_image_before_it_has_no_gain(data: Path) -> None:
    built = build_from_config(run_config(), Processing(prompt="", template="plain", max_tokens=200), None)
    built.model.eval()
    built.tokenizer.bos_token = None
    dataset = Dataset(data)
    text = found(built, dataset, [next(dataset.records())])[1]
    assert np.isnan(text.gains[0])
    assert np.isfinite(text.gains[1:]).all()
    assert text.mean == pytest.approx(np.mean(text.gains[1:]))


def test_texts_that_cannot_share_a_prefix_are_asked_one_by_one(bundle: ModelBundle, data: Path) -> None:
    everything = replace(bundle, processing=bundle.processing.model_copy(update={"supervise": "all_text"}))
    dataset = Dataset(data)
    first = next(dataset.records())
    texts = found(everything, dataset, [first])
    assert len(texts) == 5
    for text in texts:
        np.testing.assert_allclose(text.gains, by_hand(everything, dataset, first, text.text), atol=CLOSE)


def test_records_that_cannot_be_used_are_counted(bundle: ModelBundle, tmp_path: Path) -> None:
    rows = [record("a", "0.png"), record("b", "1.png"), record("c", "2.png"), record("text", None)]
    path = folder(tmp_path / "data", rows, {f"{n}.png": png(scene(n, 64)) for n in range(3)})
    stored(path, 1).write_bytes(b"broken")
    dataset, skipped = Dataset(path), Counter[str]()
    texts = found(bundle, dataset, list(dataset.records()), skipped)
    assert [text.record_id for text in texts] == ["a", "c"]
    assert skipped == {"image_format": 1, "no_image": 1}


def test_a_decoder_alone_is_refused(bundle: ModelBundle, data: Path) -> None:
    alone = replace(bundle, model=TextModel(decoder("llama")))
    with pytest.raises(UsageError, match="decoder alone"):
        list(gains(alone, Dataset(data), [], None, Counter()))


def test_the_command_measures_a_stock_model_and_writes_a_page(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "gain.html"
    words = ["probe", stock_folder("llava"), "--data", data, "--what", "gain", "--split", "train", "--shown", 2, "--out", page]
    with pytest.raises(SystemExit) as caught:
        main([*map(str, words), "--json"])
    assert not caught.value.code
    told = json.loads(capsys.readouterr().out)
    assert (told["what"], told["split"], told["records"], told["texts"]) == ("gain", "train", 8, 12)
    tokens = [gain for picture in told["images"] for text in picture["own"] for _, gain in text["tokens"] if gain is not None]
    assert len(tokens) > 10
    assert np.ptp(tokens) > 0.1
    assert 0 <= told["separation"] <= 1
    assert told["own"]["percentiles"]["p50"] <= told["own"]["percentiles"]["p90"] <= told["own"]["percentiles"]["p99"]
    assert "own text" in page.read_text()
