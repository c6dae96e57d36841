"""Stored features stand for the encoder: the same losses, the same texts, and never those of another encoder."""

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sightline.assembly.config.resolving import resolve_config, stage_plan
from sightline.assembly.config.schema import DataConfig, ModelConfig, RunConfig, RuntimeConfig, StageConfig, TrainConfig
from sightline.assembly.encode.features import (
    EncodingRequest,
    FeatureEncoder,
    check_covered,
    encode_dataset,
    feature_encoder_of_config,
    feature_encoder_of_run,
    open_features,
)
from sightline.assembly.evaluate.evaluate import evaluate
from sightline.assembly.evaluate.opened import OpenedModel
from sightline.assembly.model.build import ModelBundle, build_from_config, read_model, write_model
from sightline.assembly.train.corpus import build_corpus, visual_input_loader
from sightline.assembly.train.run import train
from sightline.data.batches.collate import collate
from sightline.data.batches.corpus import Corpus
from sightline.data.dataset import open_dataset
from sightline.data.features.store import FeatureDtype, FeatureLoader, FeatureStore
from sightline.data.readers import SourceOptions
from sightline.data.samples.processing import Processing
from sightline.errors import ConfigError, DataError, UsageError
from sightline.evaluation.spec import EvalSpec
from sightline.models.language import LanguageConfig
from sightline.models.vision import VisionConfig
from sightline.objectives.next_token import NextToken
from sightline.runtime.device import Runtime, choose_runtime
from sightline.studies.compare import ComparisonOptions, compare
from tests.builders import decoder_folder, encoder_folder
from tests.data.pictures import lines, picture, prepared, put

COUNT = 12
MODEL = ModelConfig(
    vision=VisionConfig(path=str(encoder_folder("siglip"))), language=LanguageConfig(path=str(decoder_folder("llama")))
)
STAGE = StageConfig(name="align", parts={"connector": "train"})


@pytest.fixture(scope="module")
def made_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images with two captions each, four of them for validation."""
    folder = tmp_path_factory.mktemp("set")
    rows = []
    for n in range(COUNT):
        put(folder / f"in/{n}.png", picture(n, size=(40, 30 + n)))
        captions = [f"A brown dog number {n} runs.", "Two children play."]
        rows.append({"id": f"r{n}", "images": [f"{n}.png"], "captions": captions, "split": "val" if n >= 8 else "train"})
    put(folder / "in/records.jsonl", rows)
    prepared("records", folder / "in", folder / "out")
    return folder / "out"


def config(path: Path, features: Path | None = None, model: ModelConfig = MODEL, **changes: Any) -> RunConfig:
    return RunConfig(
        model=model,
        data=DataConfig(path=str(path), features=None if features is None else str(features), max_tokens=64),
        train=TrainConfig(steps=4, batch_size=2, lr=1e-2, evaluate_samples=4, generate_samples=1),
        runtime=RuntimeConfig(device="cpu", threads=1),
        **{"stages": (STAGE,), **changes},
    )


def machine() -> Runtime:
    return choose_runtime("cpu", "fp32", 1)


def stored(encoder: FeatureEncoder, dataset: Path, out: Path, dtype: FeatureDtype = "fp32", **options: Any) -> Path:
    encode_dataset(encoder, EncodingRequest((open_dataset(dataset),), out, dtype=dtype, **options), machine())
    return out


@functools.cache
def siglip() -> FeatureEncoder:
    return feature_encoder_of_config(config(Path("none")))


def built(settings: RunConfig) -> ModelBundle:
    return build_from_config(settings, Processing(max_tokens=64), None)


def metrics(run: Path) -> list[dict[str, Any]]:
    return [line for line in lines(run / "metrics.jsonl") if "loss" in line]


# The same numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["siglip", "clip", "mobilenet_v2", "dinov2_registers"])
@pytest.mark.parametrize("layer", ["last", -2])
def test_stored_numbers_are_those_of_the_encoder(tmp_path: Path, made_set: Path, kind: str, layer: Any) -> None:
    """fp32 rows equal the encoder's outputs but for the batch they were computed in: sums of another order, 1e-6 of the scale."""
    model = MODEL.model_copy(update={"vision": VisionConfig(path=str(encoder_folder(kind)), layer=layer)})
    settings = config(made_set, model=model)
    store = FeatureStore(stored(feature_encoder_of_config(settings), made_set, tmp_path / "s", batch_size=5))
    assembled = built(settings)
    dataset = open_dataset(made_set)
    pixels = visual_input_loader(assembled, settings.data)
    assert pixels is not None
    for record in dataset.records():
        crops = pixels.load(dataset, record).pixels
        with torch.no_grad():
            expected = assembled.model.encode_pixels(assembled.model.normalise(torch.from_numpy(crops))).numpy()
        found = store.features(record.image_info[0].sha256)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_loss_with_stored_fp32_features_equals_loss_without(tmp_path: Path, made_set: Path) -> None:
    """Bit for bit where both encode batches of one shape, here one image each."""
    store = stored(siglip(), made_set, tmp_path / "s", batch_size=1)
    settings = config(made_set)
    assembled = built(settings)

    def losses(data: DataConfig) -> list[float]:
        corpus = build_corpus(assembled, data, visual_input_loader(assembled, data))
        out = []
        for unit in range(len(corpus.tokens)):
            batch = collate([[corpus.sample(unit)]], assembled.pad_id).to_batch()
            assert (batch.visual.features_NPE is None) == (data.features is None)  # type: ignore[union-attr]
            with torch.no_grad():
                out.append(float(NextToken()(assembled.model, batch).total))
        return out

    without = losses(settings.data)
    assert losses(settings.data.model_copy(update={"features": str(store)})) == without
    assert len(set(without)) == len(without)


def test_training_with_a_store_is_the_training_without(tmp_path: Path, made_set: Path) -> None:
    store = stored(siglip(), made_set, tmp_path / "s")
    train(config(made_set), tmp_path / "pixels")
    train(config(made_set, store), tmp_path / "features")
    for pixels, features in zip(metrics(tmp_path / "pixels"), metrics(tmp_path / "features"), strict=True):
        for name in ("loss", "grad_norm"):
            assert features[name] == pytest.approx(pixels[name], rel=1e-5)  # rounding of one step goes into the next
        assert {name: features[name] for name in ("samples", "crops", "tokens", "supervised")} == {
            name: pixels[name] for name in ("samples", "crops", "tokens", "supervised")
        }
    checks = [
        [line for line in lines(tmp_path / name / "metrics.jsonl") if "validation_loss" in line] for name in ("pixels", "features")
    ]
    assert checks[0]
    for pixels, features in zip(*checks, strict=True):
        assert features["validation_loss"] == pytest.approx(pixels["validation_loss"], rel=1e-5)
        assert features["generated"] == pixels["generated"]


def test_evaluation_reads_the_store_under_every_control(tmp_path: Path, made_set: Path) -> None:
    store = stored(siglip(), made_set, tmp_path / "s")
    train(config(made_set, store), tmp_path / "run")
    shutil.copytree(made_set, tmp_path / "set")
    run, spec = str(tmp_path / "run"), {"data": str(tmp_path / "set"), "batch_size": 4, "max_new_tokens": 6, "resamples": 5}
    for control in (None, "blind", "grey", "shuffled", "text", "blur:8"):
        texts = []
        for features in (None, str(store)):
            asked = EvalSpec.model_validate(spec | {"control": control, "features": features})
            done = evaluate(asked, run, out=tmp_path / f"{control}-{features is None}")
            assert done.predicted.skipped == {}
            texts.append([prediction.text for prediction in done.predicted.predictions])
        assert texts[0] == texts[1]
    settings = json.loads((tmp_path / "None-False/scores.json").read_text())["settings"]
    assert settings["features"] == FeatureStore(store).key


def test_the_blind_control_encodes_the_uniform_image_once_and_rounds_as_the_store(tmp_path: Path, made_set: Path) -> None:
    store = stored(siglip(), made_set, tmp_path / "s", "int8")
    assembled = built(config(made_set))
    dataset = open_dataset(made_set)
    calls = []
    forward = type(assembled.model.vision).forward

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return forward(self, *arguments, **options)

    blind = OpenedModel(tmp_path, assembled, machine(), str(store)).visual_loader(control="blind")
    plain = OpenedModel(tmp_path, assembled, machine()).visual_loader(control="blind")
    assert blind is not None
    assert plain is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(assembled.model.vision), "forward", counted)
        found = [blind.load(dataset, record).features for record in dataset.records()]
    assert len(calls) == 1
    crops = plain.load(dataset, dataset.record(0)).pixels
    expected = FeatureStore(store).row_format.rounded(siglip().encode(crops, machine()))  # type: ignore[arg-type]
    for features in found:
        np.testing.assert_array_equal(features, expected)


def test_batch_size_and_workers_do_not_change_what_is_stored(tmp_path: Path, made_set: Path) -> None:
    reference = FeatureStore(stored(siglip(), made_set, tmp_path / "a", batch_size=4))
    again = FeatureStore(stored(siglip(), made_set, tmp_path / "b", batch_size=4, workers=2))
    assert [shard["sha256"] for shard in reference.summary["shards"]] == [shard["sha256"] for shard in again.summary["shards"]]
    assert reference.key == again.key


def test_a_image_that_was_damaged_later_costs_itself_and_leaves_the_others_as_they_are(tmp_path: Path, made_set: Path) -> None:
    shutil.copytree(made_set, tmp_path / "set")
    names = [record.images[0] for record in open_dataset(made_set).records()]
    (tmp_path / "set" / names[1]).unlink()
    damaged = tmp_path / "set" / names[3]
    data = bytearray(damaged.read_bytes())
    damaged.unlink()  # a hard link to the source
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    whole = FeatureStore(stored(siglip(), made_set, tmp_path / "whole", batch_size=4))
    found = FeatureStore(stored(siglip(), tmp_path / "set", tmp_path / "s", batch_size=4, max_skipped=0.2))
    assert found.summary["skipped"] == {"hash_mismatch": 1, "image_missing": 1}
    assert found.summary["input"] == found.summary["ok"] + 2
    for place, record in enumerate(open_dataset(made_set).records()):
        sha256 = record.image_info[0].sha256
        assert (sha256 in found) == (place not in (1, 3))
        if sha256 in found:
            np.testing.assert_array_equal(found.features(sha256), whole.features(sha256))


# Never another encoder's ----------------------------------------------------------------------------------------------------


def others() -> dict[str, tuple[ModelConfig, str]]:
    def encoder(**changes: Any) -> ModelConfig:
        return MODEL.model_copy(update={"vision": VisionConfig(**{"path": str(encoder_folder("siglip")), **changes})})

    return {
        "layer": (encoder(layer=-2), r"layer is 'last' in the store and -2 in the model"),
        "weights": (encoder(path=str(encoder_folder("siglip_headless"))), r"the encoder's weights differ"),
        "fit": (MODEL.model_copy(update={"fit": "pad"}), r"preparation.pad is False in the store and True in the model"),
        "draft": (MODEL.model_copy(update={"draft": True}), r"preparation.draft is False in the store and True"),
        "another architecture": (encoder(path=str(encoder_folder("clip"))), r"dropped_tokens is 0 in the store and 1 in the model"),
    }


@pytest.mark.parametrize("part", others())
def test_a_model_with_another_part_is_refused_and_told_which(tmp_path: Path, made_set: Path, part: str) -> None:
    model, message = others()[part]
    store = stored(siglip(), made_set, tmp_path / "s")
    with pytest.raises(ConfigError, match=rf"(?s){message}.*sightline data features DATASET --config CONFIG"):
        train(config(made_set, store, model), tmp_path / "run")


def test_one_changed_weight_is_another_encoder(tmp_path: Path, made_set: Path) -> None:
    store = stored(siglip(), made_set, tmp_path / "s")
    assembled = built(config(made_set))
    open_features(str(store), assembled)
    with torch.no_grad():
        next(iter(assembled.model.vision.parameters())).view(-1)[0] += 1e-3
    with pytest.raises(ConfigError, match="weights differ"):
        open_features(str(store), assembled)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((StageConfig(name="both", parts={"connector": "train", "vision": "train"}),), "this stage trains vision"),
        (
            (
                StageConfig(name="first", parts={"vision": "train"}, data={"features": None}),
                StageConfig(name="second", parts={"connector": "train"}),
            ),
            "stage 'second' takes data.features of an encoder that stage 'first' has trained",
        ),
    ],
)
def test_an_encoder_that_trains_cannot_be_stored(tmp_path: Path, stages: tuple[StageConfig, ...], message: str) -> None:
    put(tmp_path / "c.yaml", config(tmp_path, tmp_path / "s", stages=(STAGE,)).model_dump_json())
    written = json.loads((tmp_path / "c.yaml").read_text()) | {"stages": [stage.model_dump(mode="json") for stage in stages]}
    put(tmp_path / "c.yaml", written)
    with pytest.raises(ConfigError, match=message):
        resolve_config(None, tmp_path / "c.yaml", [])


def test_an_encoder_may_train_after_the_stage_that_read_it_from_a_store(tmp_path: Path, made_set: Path) -> None:
    store = stored(siglip(), made_set, tmp_path / "s")
    later = StageConfig(name="full", parts={"connector": "train", "vision": 1e-3}, data={"features": None}, train={"steps": 1})
    first = StageConfig(name="align", parts={"connector": "train"}, data={"features": str(store)}, train={"steps": 1})
    train(config(made_set, stages=(first, later)), tmp_path / "run")
    assert [line["stage"] for line in metrics(tmp_path / "run")] == ["align", "full"]
    with pytest.raises(ConfigError, match="weights differ"):
        open_features(str(store), read_model(tmp_path / "run/checkpoints/step-2/model"))


def test_images_that_the_store_lacks_are_missed_before_the_first_step(tmp_path: Path, made_set: Path) -> None:
    store = stored(siglip(), made_set, tmp_path / "s", splits=("val",))
    with pytest.raises(ConfigError, match=r"lacks 8 of 8 images of .*split 'train'.*sightline data features"):
        train(config(made_set, store), tmp_path / "run")
    check_covered(FeatureLoader(FeatureStore(store)), [(open_dataset(made_set), "val")])


def test_a_run_gives_its_encoder_too_and_the_key_is_the_same(tmp_path: Path, made_set: Path) -> None:
    train(config(made_set, stages=(StageConfig(name="a", parts={"connector": "train"}, train={"steps": 1}),)), tmp_path / "run")
    assert feature_encoder_of_run(str(tmp_path / "run")).parts == siglip().parts
    begun = config(made_set).model_copy(update={"init": str(tmp_path / "run")})
    assert feature_encoder_of_config(begun).parts == siglip().parts


def test_an_encoder_from_sizes_is_the_one_that_the_run_will_build(tmp_path: Path, made_set: Path) -> None:
    sizes = {
        "model_type": "siglip_vision_model",
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    settings = config(made_set, model=MODEL.model_copy(update={"vision": VisionConfig(config=sizes)}))
    store = stored(feature_encoder_of_config(settings), made_set, tmp_path / "s")
    open_features(str(store), built(settings))


def test_what_has_no_encoder_cannot_be_encoded(tmp_path: Path, made_set: Path) -> None:
    text = RunConfig(
        model=ModelConfig(language=MODEL.language),
        train=TrainConfig(steps=1, batch_size=1),
        stages=(StageConfig(name="t", parts={"language": "train"}),),
    )
    with pytest.raises(ConfigError, match=r"no model\.vision"):
        feature_encoder_of_config(text)
    trains = config(made_set, stages=(StageConfig(name="full", parts={"vision": "train"}),))
    with pytest.raises(ConfigError, match="stage 'full' trains vision"):
        feature_encoder_of_config(trains)


# External tables ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data set of names without images, and a store of one vector for each."""
    from sightline.data.features.tables import TableKeys, import_table

    folder = tmp_path_factory.mktemp("table")
    rows = [
        {"id": f"{n}", "image": f"{n}.jpg", "captions": [f"A dog number {n}."], "split": "val" if n >= 8 else "train"}
        for n in range(COUNT)
    ]
    put(folder / "in/captions.jsonl", rows)
    prepared("flickr8k", folder / "in", folder / "set", source=SourceOptions(without_images=True))
    values = np.random.default_rng(0).normal(size=(COUNT, 20)).astype(np.float32)
    np.savez(folder / "t.npz", names=[f"{n}.jpg" for n in range(COUNT)], feat=values)
    import_table([open_dataset(folder / "set")], (), folder / "t.npz", TableKeys("names", "feat"), folder / "s", "fp32", 0.0)
    return folder / "set", folder / "s"


def external(table: tuple[Path, Path], **changes: Any) -> RunConfig:
    model = MODEL.model_copy(update={"vision": VisionConfig(external=str(table[1]))})
    return config(table[0], model=model, **changes)


def test_records_without_photos_train_and_are_evaluated_from_a_table(tmp_path: Path, table: tuple[Path, Path]) -> None:
    train(external(table), tmp_path / "run")
    losses = [line["loss"] for line in metrics(tmp_path / "run")]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    run, spec = str(tmp_path / "run"), EvalSpec(data=str(table[0]), batch_size=4, max_new_tokens=4, resamples=5)
    with pytest.raises(UsageError, match=r"external table.*--features STORE"):
        evaluate(spec, run)
    for control in (None, "blind", "shuffled", "text"):
        asked = spec.model_copy(update={"control": control, "features": str(table[1])})
        done = evaluate(asked, run, out=tmp_path / str(control))
        assert len(done.predicted.predictions) == 4
    options = ComparisonOptions(controls=("blind",), features=(str(table[1]),))
    told = compare([f"one={run}", f"two={run}"], [spec], tmp_path / "compared", options).to_json()
    assert (told["evaluations"], told["not_asked"]) == (4, [])
    assert [model["features"] for model in told["models"]] == [str(table[1])] * 2
    for control in ("grey", "blur:8"):
        asked = spec.model_copy(update={"control": control, "features": str(table[1])})
        with pytest.raises(UsageError, match=f"control '{control}' needs an encoder.*Use the control blind"):
            evaluate(asked, run, out=tmp_path / control)
    train(external(table, init=str(tmp_path / "run")), tmp_path / "next")


def test_a_saved_model_of_a_table_is_read_back_the_same(tmp_path: Path, table: tuple[Path, Path]) -> None:
    settings = external(table)
    assembled = built(settings)
    (tmp_path / "m").mkdir()
    write_model(assembled, tmp_path / "m")
    again = read_model(tmp_path / "m")
    data = stage_plan(settings, 0).data
    assert data.features == str(table[1])
    outs = []
    for one in (assembled, again):
        corpus: Corpus = build_corpus(one, data, visual_input_loader(one, data))
        batch = collate([[corpus.sample(0)]], one.pad_id).to_batch()
        with torch.no_grad():
            outs.append(float(NextToken()(one.model, batch).total))
    assert outs[0] == outs[1]
    with pytest.raises(UsageError, match="it has no encoder, so it cannot take images"):
        again.model.encode_pixels(torch.zeros(1, 3, 4, 4))


def test_the_blind_control_of_a_table_is_its_mean_row(table: tuple[Path, Path]) -> None:
    pictures = OpenedModel(table[0], built(external(table)), machine(), str(table[1])).visual_loader(control="blind")
    assert pictures is not None
    dataset = open_dataset(table[0])
    store = FeatureStore(table[1])
    every = [store.features(record.image_info[0].sha256) for record in dataset.records()]
    features = pictures.load(dataset, dataset.record(3)).features
    np.testing.assert_allclose(features, np.mean(every, axis=0), atol=1e-6)


def test_tables_and_encoders_are_not_taken_for_each_other(tmp_path: Path, made_set: Path, table: tuple[Path, Path]) -> None:
    store = stored(siglip(), made_set, tmp_path / "s")
    with pytest.raises(ConfigError, match="it is an external table, the model has an encoder of its own"):
        open_features(str(table[1]), built(config(made_set)))
    with pytest.raises(ConfigError, match=r"outputs of an encoder, the model takes an external table.*--external FILE"):
        open_features(str(store), built(external(table)))
    wrong = MODEL.model_copy(update={"vision": VisionConfig(external=str(store))})
    with pytest.raises(ConfigError, match=r"holds the outputs of an encoder.*model.vision.path"):
        built(config(made_set, model=wrong))
    with pytest.raises(DataError, match="is not a feature store"):
        built(config(made_set, model=MODEL.model_copy(update={"vision": VisionConfig(external=str(made_set))})))


def test_an_encoder_is_not_sent_to_look_at_images_that_are_not_there(tmp_path: Path, table: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match=r"prepared without its images, but this model reads pixels"):
        train(config(table[0]), tmp_path / "run")


def test_naming_a_table_on_the_command_line_takes_the_place_of_the_recipes_encoder() -> None:
    from sightline.recipes import RECIPES

    base = RECIPES["flickr8k_mobilenet_v2"]()
    one = resolve_config(base, None, ["model.vision.external=s"]).model.vision
    assert one is not None
    assert (one.path, one.config, one.external) == (None, None, "s")
    again = resolve_config(
        RunConfig.model_validate({**base.model_dump(), "model": {"vision": {"external": "s"}}}), None, ["model.vision.path=p"]
    )
    assert again.model.vision is not None
    assert (again.model.vision.path, again.model.vision.external) == ("p", None)
