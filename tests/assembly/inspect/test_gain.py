"""`data check --gain` puts those texts first that do not belong to their images.

The model that looks is made by hand, so the right order is known: an image raises the letter of its own colour (R, G, B) by 1,
lowers the two others by 1, and changes no other token.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sightline.assembly.evaluate import opened
from sightline.assembly.inspect import gain as check_gain
from sightline.assembly.inspect.check import CheckRequest, check_data
from sightline.assembly.inspect.gain import GainRequest
from sightline.assembly.model.build import build_from_config
from sightline.cli import main
from sightline.data.check import CheckOptions
from sightline.data.samples.processing import Processing
from sightline.types import Batch, Head, Hidden
from tests.assembly.helpers import run_config
from tests.composites import stock_folder
from tests.data.check.planted import folder, png, record, stored
from tests.data.pictures import lines

LETTERS = "RGB"
EXCHANGED = {"r2": "G", "r5": "R", "r7": "B"}  # record -> the letter that its caption wrongly has


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = build_from_config(run_config(), Processing(prompt="Look.", max_tokens=200), None)
    bundle.model.eval()
    words = bundle.tokenizer.convert_tokens_to_ids(list(LETTERS))
    vocabulary = len(bundle.tokenizer)

    def hidden(batch: Batch) -> Hidden:
        logits = torch.zeros(len(batch.supervision), vocabulary)
        if batch.visual is not None:
            assert batch.visual.pixels_NHWC is not None
            colour = batch.visual.pixels_NHWC.float().mean((1, 2)).argmax(1)
            value = torch.full((len(colour), 3), -1.0)
            value[torch.arange(len(colour)), colour] = 1.0
            crop = batch.visual.visual_index_M // bundle.tokens_per_crop
            crop_of = dict(zip(batch.tokens.sample_BT.flatten()[batch.visual.slot_M].tolist(), crop.tolist(), strict=True))
            for place, sample in enumerate(batch.supervision.sample_S.tolist()):
                logits[place, words] = value[crop_of[sample]]
        return Hidden(logits, Head(torch.eye(vocabulary)))

    monkeypatch.setattr(bundle.model, "hidden", hidden)
    monkeypatch.setattr(opened, "read_model", lambda path: bundle)


def colour(number: int) -> bytes:
    """A red, green or blue image; each file of its own."""
    shade = [40, 40, 40]
    shade[number % 3] = 200 + number
    return png(Image.new("RGB", (24, 24), tuple(shade)))


def data(path: Path, count: int = 9) -> Path:
    names = [f"r{n}" for n in range(count)]
    rows = [
        record(name, f"{n}.png", "val" if n == 8 else "train", captions=["a bag", EXCHANGED.get(name, LETTERS[n % 3])])
        for n, name in enumerate(names)
    ]
    return folder(path, [*rows, record("text", None)], {f"{n}.png": colour(n) for n in range(count)})


def report(path: Path, **options: Any) -> dict[str, Any]:
    return check_data(
        CheckRequest((path,), CheckOptions(workers=0, near_bits=None), gain=GainRequest("hand-made"), **options)
    ).to_json()


@pytest.mark.usefixtures("looks")
def test_exchanged_texts_are_the_lowest_and_told_of(tmp_path: Path) -> None:
    path = data(tmp_path / "data")
    told = report(path, html=tmp_path / "page.html", listing=tmp_path / "low.jsonl")
    gain = told["gain"]
    lowest = gain["lowest"]
    assert [(line["id"], line["text"]) for line in lowest[:3]] == [(name, 1) for name in EXCHANGED]
    assert (gain["texts"], gain["below_zero"], len(lowest)) == (18, 3, 18)
    # The letter and the end token: -1 and 0.
    assert [line["gain"] for line in lowest[:3]] == [-0.5] * 3
    assert [line["gain"] for line in lowest[3:12]] == [0.0] * 9
    assert [line["gain"] for line in lowest[12:]] == [0.5] * 6
    assert lowest[0]["tokens"] == [("G", -1.0), ("<|im_end|>", 0.0)]
    assert {line["split"] for line in lowest if line["id"] == "r8"} == {"val"}
    low = [line for line in lines(tmp_path / "low.jsonl") if line["reason"] == "low_gain"]  # beside images of one colour
    assert [(line["id"], line["gain"], line["path"]) for line in low] == [(name, -0.5, str(path)) for name in EXCHANGED]
    assert any("17 % of the texts (3) are made less likely by their own images" in text for text in told["warnings"])
    page = (tmp_path / "page.html").read_text()
    section = page[page.index("Texts that their images support least</h2>") :].split("</section>")[0]
    assert section.count("<article") == 18 == section.count("<img")
    assert section.index(">r2<") < section.index(">r5<") < section.index(">r7<") < section.index(">r0<")


@pytest.mark.usefixtures("looks")
def test_only_the_lowest_are_kept_and_broken_images_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_gain, "LISTED", 2)
    path = data(tmp_path / "data")
    stored(path, 2).write_bytes(b"broken")
    gain = report(path)["gain"]
    assert [line["id"] for line in gain["lowest"]] == ["r5", "r7"]
    assert (gain["texts"], gain["below_zero"], gain["skipped"]) == (16, 2, {"image_format": 1})


def test_the_command_asks_a_model_and_refuses_features_without_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = data(tmp_path / "data")
    words = ["data", "check", str(path), "--workers", "0", "--near", "-1"]
    for more, code in ((["--gain", str(stock_folder("llava")), "--json"], 0), (["--features", "store"], 2)):
        with pytest.raises(SystemExit) as caught:
            main([*words, *more])
        assert (caught.value.code or 0) == code
        out, err = capsys.readouterr()
        if code:
            assert "--features belongs to --gain" in err
        else:
            gain = json.loads(out)["gain"]
            values = [line["gain"] for line in gain["lowest"]]
            assert gain["texts"] == 18
            assert values == sorted(values)
            assert gain["percentiles"]["p50"] == pytest.approx((values[8] + values[9]) / 2)


@pytest.mark.usefixtures("looks")
def test_the_lowest_are_printed_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", "check", str(data(tmp_path / "data")), "--workers", "0", "--gain", "hand-made"])
    out = capsys.readouterr().out
    assert "Texts that their images support least, of 18" in out
    assert out.index("r2") < out.index("r5") < out.index("r7")
