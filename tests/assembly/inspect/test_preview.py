"""A preview shows exactly what training makes: the same ids, the same supervised tokens, the same images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.assembly.config.resolving import stage_plan
from sightline.assembly.inspect.preview import PreviewRequest, _blocks, _Viewer, preview
from sightline.assembly.model.blueprint import config_blueprint
from sightline.assembly.model.build import ModelBundle, Processing, build_from_config
from sightline.assembly.train.corpus import build_corpus
from sightline.data.dataset import Dataset
from sightline.data.images.pixels import PixelLoader
from sightline.data.images.tilings import WholeConfig
from sightline.data.samples.encoding import ConversationEncoder, TextRules
from sightline.data.samples.length_table import LengthTableRules
from sightline.data.samples.templates import Template
from sightline.errors import DataError, UsageError
from sightline.reporting.html import Token
from sightline.reporting.preview_page import PreviewedSample
from sightline.types import IMAGE, Message, Part
from tests.assembly.helpers import run_config
from tests.builders import load_tokenizer
from tests.data.check.planted import folder, png, question, record, scene, stored
from tests.reporting.helpers import read

CAPTIONS = ["A brown dog.", "کلب بني (dog) يجري", "一只狗在水里跑。", "<script>alert(1)</script>", "👩\u200d👩\u200d👧 tab\there"]


def data(path: Path) -> Path:
    rows = [
        record("five", "a.png", captions=CAPTIONS),
        question("q1", "b.png", "What is it?", ["a dog"]),
        question("q2", "b.png", "What colour?", ["brown"]),
        record("text", None, captions=["only text"]),
        record("long", "c.png", captions=["word " * 200]),
        record("v", "c.png", "val"),
    ]
    return folder(path, rows, {name: png(scene(index)) for index, name in enumerate(("a.png", "b.png", "c.png"))})


def viewer(path: Path, **section: Any) -> tuple[_Viewer, ModelBundle, Any]:
    config = run_config(path=str(path), max_skipped=1.0, row_tokens=400, **section)
    described = config_blueprint(config)
    plan = stage_plan(config, 0).data
    conversation_encoder = described.conversation_encoder(
        plan.prompt, plan.max_tokens, plan.too_long, plan.supervise, plan.captions
    )
    bundle = build_from_config(config, Processing(prompt=plan.prompt, max_tokens=plan.max_tokens), None)
    return _Viewer(Dataset(path), conversation_encoder, LengthTableRules(plan.share_prefix, plan.width), described), bundle, plan


def spelled(row: list[Token] | tuple[Token, ...]) -> list[tuple[str, int]]:
    """Kind and number of each run of tokens."""
    return [(token.kind, token.count) for token in row]


def labels(shown: PreviewedSample) -> list[int]:
    return [sum(token.count for token in branch.own if token.kind == "supervised") for branch in shown.branches]


def test_samples_are_those_of_training(tmp_path: Path) -> None:
    path = data(tmp_path / "data")
    view, bundle, plan = viewer(path, prompt="Look.")
    corpus = build_corpus(bundle, plan, None)
    shown = view.samples([0, 1, 3], "train")
    assert [sample.title for sample in shown] == ["five", "q1, q2", "text"]
    for unit, sample in enumerate(shown):
        trained = corpus.text(unit)
        assert sample.num_tokens == trained.num_tokens
        assert sum(token.count for token in sample.prefix) == trained.prefix
        assert [branch.num_tokens for branch in sample.branches] == [len(branch.ids) for branch in trained.branches]
        assert [sum(token.count for token in branch.own) for branch in sample.branches] == [
            len(branch.ids) - trained.prefix for branch in trained.branches
        ]
        expected = [sum(span.end - span.start for span in branch.spans) for branch in trained.branches]
        assert labels(sample) == expected == [branch.num_supervised for branch in sample.branches]
        slots = sum(token.count for token in (*sample.prefix, *(sample.branches[0].own)) if token.kind == "visual")
        assert slots == len(trained.image_slots)


def test_images_are_those_that_the_encoder_gets(tmp_path: Path) -> None:
    path = data(tmp_path / "data")
    view, bundle, _ = viewer(path)
    (sample,) = view.samples([0], "train")
    preparation = bundle.processing.preparation
    assert preparation is not None
    expected = PixelLoader(preparation, bundle.processing.tiling).load(Dataset(path), Dataset(path).record(0)).pixels
    assert sample.crops is not None
    assert (sample.crops == expected).all()


def test_records_about_one_image_are_one_sample_wherever_the_draw_falls(tmp_path: Path) -> None:
    view, _, _ = viewer(data(tmp_path / "data"))
    assert [sample.title for sample in view.samples([2], "train")] == ["q1, q2"]
    assert [sample.title for sample in view.samples([1, 2], "train")] == ["q1, q2"]
    apart, _, _ = viewer(tmp_path / "data", share_prefix=False)
    assert [sample.title for sample in apart.samples([1, 2], "train")] == ["q1", "q2"]


def test_what_is_left_out_is_shown_with_its_reason(tmp_path: Path) -> None:
    path = data(tmp_path / "data")
    stored(path, 5).write_bytes(b"broken")
    view, _, _ = viewer(path)
    (long,) = view.samples([4], "train")
    assert long.branches == ()
    assert long.faults[0].startswith("conversation 1 is left out: too_long:")
    assert long.faults[1].startswith("its image cannot be shown: image_format")
    (val,) = view.samples([5], "val")
    assert len(val.branches) == 1
    assert val.crops is None


TEXTS = [*CAPTIONS, "  two  spaces \n\n and lines ", "zero\u200bwidth\u202e", "Ünïcödé naïve café — 3.14", "नमस्ते दुनिया", "a"]


@pytest.mark.parametrize("kind", ["chatml", "plain", "sentencepiece"])
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_text_that_was_tokenised(kind: str, text: str) -> None:
    tokenizer = load_tokenizer(kind)
    tokenizer.add_special_tokens({"extra_special_tokens": [IMAGE]})
    conversation_encoder = ConversationEncoder(
        tokenizer, Template(tokenizer), TextRules(max_tokens=500, grid=(2, 2), tiling=WholeConfig())
    )
    messages = (Message("user", (Part(), Part("Say it."))), Message("assistant", (Part(text),)))
    layout = WholeConfig().layout(10, 10, (2, 2))
    pieces = conversation_encoder.pieces(messages, [layout])
    row = conversation_encoder.encode_conversation(messages, [layout])
    assert len(pieces) == len(row.ids)
    assert "".join(pieces) == conversation_encoder.template.render(messages).replace(IMAGE, "")
    assert all(pieces[slot] == "" for slot in row.slots)


def test_pieces_of_one_character_and_visual_slots_are_told_together() -> None:
    row = [
        Token("<s>", "special", is_markup=True),
        *[Token(IMAGE, "visual")] * 4,
        Token("", "plain", "1"),
        Token("狗", "plain", "2"),
        Token("", "plain", "3"),
        Token("", "supervised", "4"),
        Token("x", "supervised", "5"),
        Token("y", "supervised", "6"),
        Token("</s>", "supervised", "7", is_markup=True),
    ]
    bundle = _blocks(row)
    assert [(token.text, token.kind, token.count) for token in bundle] == [
        ("<s>", "special", 1),
        (IMAGE, "visual", 4),
        ("狗", "plain", 3),
        ("x", "supervised", 2),
        ("y", "supervised", 1),
        ("</s>", "supervised", 1),
    ]
    assert bundle[2].title == "1\n2\n3"


def request(path: Path, out: Path, **changes: Any) -> PreviewRequest:
    return PreviewRequest(**{"folder": path, "out": out, "split": "train", "count": 3, "seed": 0, **changes})


def test_the_draw_depends_on_the_seed_alone(tmp_path: Path) -> None:
    path = data(tmp_path / "data")
    described = config_blueprint(run_config(path=str(path)))
    pages = []
    for seed in (0, 0, 1):
        told = preview(request(path, tmp_path / "p.html", seed=seed, count=2), described)
        assert json.dumps(told)
        pages.append((tmp_path / "p.html").read_bytes())
    assert pages[0] == pages[1] != pages[2]


def test_records_are_found_by_their_ids(tmp_path: Path) -> None:
    path = data(tmp_path / "data")
    described = config_blueprint(run_config(path=str(path)))
    told = preview(request(path, tmp_path / "p.html", ids=("text", "five")), described)
    assert (told["samples"], told["left_out"]) == (2, 0)
    page = (tmp_path / "p.html").read_text("utf-8")
    assert page.index("1. text") < page.index("2. five")
    with pytest.raises(UsageError, match="has no record 'nobody'"):
        preview(request(path, tmp_path / "p.html", ids=("nobody",)), described)


def test_a_split_or_stage_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = data(tmp_path / "data")
    described = config_blueprint(run_config(path=str(path)))
    with pytest.raises(DataError, match="no split 'test'"):
        preview(request(path, tmp_path / "p.html", split="test"), described)
    with pytest.raises(UsageError, match=r"no stage 'other'\. Stages are align"):
        preview(request(path, tmp_path / "p.html", stage="other"), described)
    assert not (tmp_path / "p.html").exists()


def test_ids_and_pixels_are_in_the_page(tmp_path: Path) -> None:
    path = data(tmp_path / "data")
    described = config_blueprint(run_config(path=str(path)))
    preview(request(path, tmp_path / "p.html", ids=("five",)), described)
    page = (tmp_path / "p.html").read_text("utf-8")
    conversation_encoder = described.conversation_encoder("", 120)
    row = conversation_encoder.encode_conversation(
        conversation_encoder.conversations(Dataset(path).record(0))[0], conversation_encoder.layouts(Dataset(path).record(0))
    )
    for place in np.flatnonzero(row.ids != conversation_encoder.image_id)[-4:]:
        assert f"{place}: id {row.ids[place]} " in page
    reader = read(page.removeprefix("<!doctype html>"))
    assert [name for name, _ in reader.elements].count("img") == 1
    assert "script" not in [name for name, _ in reader.elements]
    for caption in CAPTIONS:
        assert caption.replace("\t", "\u2409") in reader.text
