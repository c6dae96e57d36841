"""What studies change in training and evaluation: label noise, noise on features, few words."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.assembly.config.resolving import stage_plan
from sightline.assembly.config.schema import DataConfig, ModelConfig, RunConfig, RuntimeConfig, StageConfig, TrainConfig
from sightline.assembly.evaluate.evaluate import evaluate, restrict_words
from sightline.assembly.evaluate.opened import OpenedModel
from sightline.assembly.model.build import ModelBundle, build_from_config, read_model
from sightline.assembly.train.corpus import build_corpus, validation_corpus
from sightline.assembly.train.run import train
from sightline.data.dataset import open_dataset
from sightline.data.samples.processing import Processing
from sightline.errors import ConfigError
from sightline.evaluation.probes import add_noise, most_used_words
from sightline.evaluation.spec import EvalSpec
from sightline.models.connectors.align import AlignConfig
from sightline.models.connectors.linear import LinearConfig
from sightline.models.language import LanguageConfig
from sightline.models.vision import VisionConfig
from sightline.runtime.device import choose_runtime
from tests.builders import decoder_folder, encoder_folder
from tests.data.pictures import picture, prepared, put

VISION = VisionConfig(path=str(encoder_folder("siglip")))
LANGUAGE = LanguageConfig(path=str(decoder_folder("llama")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen images with two captions each, six of them for validation."""
    place = tmp_path_factory.mktemp("studied")
    rows = []
    for n in range(16):
        put(place / f"in/{n}.png", picture(n, size=(40, 30 + n)))
        captions = [f"A dog number {n}.", f"{n} children play."]
        rows.append({"id": f"r{n}", "images": [f"{n}.png"], "captions": captions, "split": "val" if n >= 10 else "train"})
    put(place / "in/records.jsonl", rows)
    prepared("records", place / "in", place / "set")
    return place / "set"


@pytest.fixture(scope="module")
def align_run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "align"
    train(config(folder), run)
    return run


def config(folder: Path, **data: float) -> RunConfig:
    return RunConfig(
        model=ModelConfig(vision=VISION, language=LANGUAGE, connector=AlignConfig()),
        data=DataConfig(path=str(folder), max_tokens=64, **data),  # type: ignore[arg-type]
        train=TrainConfig(steps=1, batch_size=2, evaluate_samples=0),
        runtime=RuntimeConfig(device="cpu", threads=1),
        stages=(StageConfig(name="align", parts={"connector": "train"}),),
    )


def texts(bundle: ModelBundle, folder: Path, validation: bool, **data: float) -> dict[str, list[str]]:
    """The supervised text of each training or validation sample, by record, through the whole way of data."""
    section = stage_plan(config(folder, **data), 0).data
    corpus = validation_corpus(bundle, section, None, 100) if validation else build_corpus(bundle, section, None)
    assert corpus is not None
    out: dict[str, list[str]] = {}
    for unit in range(len(corpus.tokens)):
        for branch in corpus.text(unit).branches:
            spans = [branch.ids[span.start : span.end] for span in branch.spans]
            out.setdefault(branch.record_id, []).append(
                bundle.tokenizer.decode(np.concatenate(spans), skip_special_tokens=True).strip()
            )
    return out


def test_label_noise_reaches_training_and_never_validation(folder: Path) -> None:
    bundle = build_from_config(config(folder), Processing(max_tokens=64), None)
    own = {record.id: list(record.captions) for record in open_dataset(folder).records("train")}
    assert texts(bundle, folder, False) == own
    noisy = texts(bundle, folder, False, noise=0.5, noise_seed=3)
    assert sum(noisy[name] != own[name] for name in own) == 5
    assert sorted(map(tuple, noisy.values())) == sorted(map(tuple, own.values()))
    assert texts(bundle, folder, False) == own  # the cached lengths of one are not taken for the other's
    held = {record.id: list(record.captions) for record in open_dataset(folder).records("val")}
    assert texts(bundle, folder, True, noise=1.0) == held


def test_a_run_records_its_noise_and_another_share_is_another_run(folder: Path, tmp_path: Path) -> None:
    train(config(folder, noise=0.5, noise_seed=3), tmp_path)
    assert "noise: 0.5\n  noise_seed: 3\n" in (tmp_path / "config.yaml").read_text("utf-8")
    with pytest.raises(ConfigError, match=r"data.noise: 0.5 -> 0.0"):
        train(config(folder), tmp_path)


def opened(run: Path) -> OpenedModel:
    folder = run / "checkpoints/step-1/model"
    return OpenedModel(folder, read_model(folder), choose_runtime("cpu", "fp32", 1))


def test_an_evaluation_under_noise_sees_the_noise_of_the_probe(folder: Path, align_run: Path) -> None:
    model, dataset = opened(align_run), open_dataset(folder)
    noisy = model.visual_loader(noise=0.7)
    assert noisy is not None
    for seen in model.probed_records(dataset, list(dataset.records("val"))[:3], model.visual_loader(), Counter()):
        record = next(record for record in dataset.records("val") if record.id == seen.record_id)
        features = noisy.load(dataset, record).features
        assert features is not None
        wanted = add_noise(seen.features_NPE, 0.7, record.id)
        torch.testing.assert_close(torch.from_numpy(features), wanted, rtol=1e-4, atol=1e-4)
        spread = float((torch.from_numpy(features) - seen.features_NPE).std() / seen.features_NPE.std())
        assert spread == pytest.approx(0.7, rel=0.1)


def test_few_words_are_those_that_training_images_use_most(folder: Path, align_run: Path, tmp_path: Path) -> None:
    model, dataset = opened(align_run), open_dataset(folder)
    connector, pictures = model.connector, model.visual_loader()
    records = list(dataset.records("train"))
    seen = model.probed_records(dataset, records, pictures, Counter())
    wanted = set(most_used_words(connector, seen, 7))
    restrict_words(model, dataset, "train", 7)
    again = model.probed_records(dataset, records, pictures, Counter())
    assert set(most_used_words(connector, again, 7)) == wanted
    for one in model.probed_records(dataset, records[:2], pictures, Counter()):
        found = connector.vocabulary_mixer.distribution(one.features_NPE, 20, 1e-6)
        assert int((found.mean_V > 0).sum()) == 7


def test_each_change_is_an_evaluation_of_its_own(folder: Path, align_run: Path) -> None:
    spec = EvalSpec(data=str(folder), max_new_tokens=3, batch_size=4)
    changes = ({}, {"noise": 2.0}, {"words": 5})
    folders = {evaluate(spec.model_copy(update=change), str(align_run)).folder.name for change in changes}
    rest = spec.name_of_rest()  # the hash of max_new_tokens
    assert folders == {f"set-val-{rest}-step-1", f"set-val-noise2-{rest}-step-1", f"set-val-words5-{rest}-step-1"}


def test_few_words_need_a_connector_that_mixes_words(folder: Path) -> None:
    settings = config(folder)
    linear = settings.model_copy(update={"model": settings.model.model_copy(update={"connector": LinearConfig()})})
    bundle = build_from_config(linear, Processing(max_tokens=64), None)
    model = OpenedModel(folder, bundle, choose_runtime("cpu", "fp32", 1))
    with pytest.raises(ConfigError, match="only for the `align` connector; this run uses 'linear'"):
        restrict_words(model, open_dataset(folder), "train", 7)
