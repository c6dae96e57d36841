"""Probes and evaluations of an ALIGN model from the command line: words per patch, noise, and fewer words."""

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from sightline.assembly.evaluate.evaluate import evaluate
from sightline.assembly.evaluate.opened import OpenedModel
from sightline.assembly.model.build import build_from_config, read_model, write_model
from sightline.assembly.model.bundle import ModelBundle
from sightline.cli import main
from sightline.data.dataset import Dataset
from sightline.data.images.pixels import PixelLoader
from sightline.data.samples.processing import Processing
from sightline.errors import ConfigError
from sightline.evaluation.spec import EvalSpec
from sightline.models.connectors.align import Align, AlignConfig
from sightline.models.vlm import SightlineForConditionalGeneration
from sightline.runtime.device import choose_runtime
from tests.assembly.helpers import run_config
from tests.builders import decoder_folder
from tests.data.check.planted import folder, png, record, scene, stored

COUNT = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits = ["train"] * 3 + ["val"] * 3
    rows = [record(f"r{n}", f"{n}.png", split) for n, split in enumerate(splits)] + [record("text", None, "val")]
    return folder(tmp_path_factory.mktemp("probe") / "data", rows, {f"{n}.png": png(scene(n, 64)) for n in range(COUNT)})


def built(**fields: Any) -> ModelBundle:
    config = run_config()
    section = config.model.model_copy(update={"connector": AlignConfig(shuffle=2, **fields)})
    bundle = build_from_config(config.model_copy(update={"model": section}), Processing(prompt="Look.", max_tokens=200), None)
    bundle.model.eval()
    return bundle


def opened(bundle: ModelBundle) -> OpenedModel:
    return OpenedModel(Path(), bundle, choose_runtime("cpu", "fp32", 1))


@pytest.fixture(scope="module")
def align(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model whose connector is `align`, with 4 visual tokens an image."""
    path = tmp_path_factory.mktemp("align") / "model"
    write_model(built(), path)
    return path


def command(*words: object) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    assert not caught.value.code


def test_words_of_the_command_are_the_softmax_of_the_model(
    align: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "words.html"
    command("probe", align, "--data", data, "--what", "words", "--shown", 2, "--out", page, "--json")
    told = json.loads(capsys.readouterr().out)
    assert (told["what"], told["records"], told["tokens"], told["split"]) == ("words", 3, 12, "val")
    assert len(told["images"]) == 2

    bundle = read_model(align)
    model = bundle.model
    assert isinstance(model, SightlineForConditionalGeneration)
    mixer = model.connector.project
    assert isinstance(mixer, Align)
    dataset = Dataset(data)
    pictures = PixelLoader(bundle.processing.preparation, bundle.processing.tiling)  # pyrefly: ignore
    p = []
    with torch.no_grad():
        for each in dataset.records("val"):
            if each.images:
                pixels = pictures.load(dataset, each).pixels
                features = model.encode_pixels(model.normalise(torch.as_tensor(pixels)))
                states = mixer.inner(mixer.w1(model.connector.merged(features)))[0].double()
                scores = states @ mixer.w2.weight.double().T
                scores = (scores - scores.mean(1, keepdim=True)) / (scores.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
                p.append(torch.softmax(scores * mixer.gain.double(), 1))
    everything = torch.cat(p)
    assert told["vocabulary"] == everything.shape[1] == model.config.num_words
    entropy = float(-torch.special.xlogy(everything, everything).sum(1).mean())
    assert told["entropy"] == pytest.approx(entropy, rel=1e-4)
    assert told["perplexity"] == pytest.approx(math.exp(entropy), rel=1e-3)
    assert told["words_above_threshold"] == pytest.approx(float((everything > 1e-6).sum(1).double().mean()), abs=0.5)
    assert told["mean_largest_probability"] == pytest.approx(float(everything.amax(1).mean()), rel=1e-4)
    assert told["gain"] == pytest.approx(2.7)
    top = bundle.tokenizer.decode([int(p[0][0].argmax())])
    assert told["images"][0]["crops"][0]["words"][0][0][0] == top or "\ufffd" in top
    assert page.read_text().count("data:image/png;base64,") == 2


def test_noise_of_the_command_grows_with_sigma(align: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "noise.html"
    command("probe", align, "--data", data, "--what", "noise", "--sigma", 0.1, "--sigma", 2, "--out", page, "--json")
    told = json.loads(capsys.readouterr().out)
    small, large = told["noise"]
    assert (small["sigma"], large["sigma"]) == (0.1, 2.0)
    assert 0 < small["relative"] < large["relative"]
    assert large["distance"] / told["distance_between_patches"] == pytest.approx(large["relative"])
    assert "<svg" in page.read_text()


def test_people_get_a_table(align: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command("probe", align, "--data", data, "--what", "words")
    shown = capsys.readouterr().out
    assert "perplexity" in shown
    assert "12 of 3 records" in shown


def test_images_that_cannot_be_opened_are_counted(align: Path, data: Path, tmp_path: Path) -> None:
    path = folder(
        tmp_path / "broken", [record(f"r{n}", f"{n}.png") for n in range(3)], {f"{n}.png": png(scene(n, 64)) for n in range(3)}
    )
    stored(path, 1).write_bytes(b"broken")
    bundle, dataset, skipped = read_model(align), Dataset(path), Counter[str]()
    pictures = PixelLoader(bundle.processing.preparation, bundle.processing.tiling)  # pyrefly: ignore
    seen = list(opened(bundle).probed_records(dataset, list(dataset.records("train")), pictures, skipped))
    assert [each.record_id for each in seen] == ["r0", "r2"]
    assert skipped == {"image_format": 1}


@pytest.mark.parametrize("what", ["words", "noise"])
def test_a_decoder_alone_is_refused(what: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["probe", str(decoder_folder("llama")), "--data", str(data), "--what", what])
    assert caught.value.code == 2
    assert "error[" in capsys.readouterr().err


def test_an_unknown_probe_and_a_split_without_images_are_refused(
    align: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, words in ((["--what", "wrods"], "no probe 'wrods'"), (["--what", "words", "--split", "test"], "split 'test'")):
        with pytest.raises(SystemExit) as caught:
            main(["probe", str(align), "--data", str(data), *more])
        assert caught.value.code in (2, 3)
        assert words in capsys.readouterr().err


# Evaluation with fewer words ----------------------------------------------------------------------------------------------------


def answers(model: Path, data: Path, out: Path, **more: Any) -> tuple[list[str], dict[str, Any]]:
    done = evaluate(EvalSpec(data=str(data), max_new_tokens=6, resamples=10, **more), str(model), out=out)
    return [text.text for text in done.predicted.predictions], json.loads((out / "scores.json").read_text())["settings"]


def test_all_words_are_no_restriction_and_few_words_change_the_answer(align: Path, data: Path, tmp_path: Path) -> None:
    num_words = read_model(align).model.config.num_words
    free, settings = answers(align, data, tmp_path / "free")
    full, told = answers(align, data, tmp_path / "full", words=num_words)
    assert full == free
    assert "words" not in settings
    assert told["words"] == [num_words, "train"]


def test_one_word_turns_every_visual_token_into_the_word_that_is_used_most(
    align: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[torch.Tensor] = []
    forward = Align.forward

    def noted(self: Align, features: torch.Tensor, words: Any) -> torch.Tensor:
        out = forward(self, features, words)
        found.append(out.detach())
        return out

    monkeypatch.setattr(Align, "forward", noted)
    answers(align, data, tmp_path / "one", words=1)
    bundle = read_model(align)
    model = bundle.model
    assert isinstance(model, SightlineForConditionalGeneration)
    dataset = Dataset(data)
    pictures = PixelLoader(bundle.processing.preparation, bundle.processing.tiling)  # pyrefly: ignore
    total = torch.zeros(model.config.num_words, dtype=torch.float64)
    with torch.no_grad():
        for each in opened(bundle).probed_records(dataset, list(dataset.records("train")), pictures, Counter()):
            total += model.connector.vocabulary_mixer.distribution(model.connector.merged(each.features_NPE), 1, 1e-6).mean_V
        word = model.words()[int(total.argmax())]
    assert found
    assert all(torch.equal(out, word.expand_as(out)) for out in found)


def test_words_are_counted_on_the_split_that_is_named(align: Path, data: Path, tmp_path: Path) -> None:
    _, told = answers(align, data, tmp_path / "named", words=3, words_from="val")
    assert told["words"] == [3, "val"]


def test_the_command_restricts_words_and_adds_noise(
    align: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--max-new-tokens", 3, "--resamples", 10, "--json"]
    command("eval", align, "--task", "caption", "--data", data, "--words", 2, "--noise", 1.0, *options)
    told = json.loads(capsys.readouterr().out)
    assert re.search(r"-noise1-words2-[0-9a-f]{8}$", told["folder"])
    settings = json.loads((Path(told["folder"]) / "scores.json").read_text())["settings"]
    assert settings["noise"] == 1.0
    assert settings["words"] == [2, "train"]


def test_another_connector_has_no_words_to_leave_out(data: Path, tmp_path: Path) -> None:
    bundle = build_from_config(run_config(), Processing(prompt="Look.", max_tokens=200), None)
    write_model(bundle, tmp_path / "mlp")
    with pytest.raises(ConfigError, match="only for the `align` connector; this run uses 'mlp'"):
        answers(tmp_path / "mlp", data, tmp_path / "out", words=3)
