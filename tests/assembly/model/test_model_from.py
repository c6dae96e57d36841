"""`model.from` takes parts out of whole models bit for bit, and all parts together are the model they came from."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sightline.assembly.config.parts import resolve_model_section
from sightline.assembly.config.resolving import resolve_config
from sightline.assembly.config.schema import RunConfig
from sightline.assembly.model.build import build_from_config, read_model, write_model
from sightline.assembly.model.bundle import ModelBundle
from sightline.cli import main
from sightline.config import Tree, read_yaml, to_yaml, validate_tree
from sightline.data.samples.encoding import join_visual_indices
from sightline.data.samples.processing import Processing
from sightline.errors import ConfigError
from sightline.models import composites
from sightline.models.vlm import SightlineForConditionalGeneration
from tests.assembly.model.helpers import RECORDS, inputs, noise, prompt, question
from tests.builders import Exact, decoder_folder, encoder_folder, load_tokenizer
from tests.composites import STOCK, stock, stock_folder

WHOLE = ["vision", "connector", "language", "tiling"]


def configured(**model: Any) -> RunConfig:
    """A run with this model section."""
    run = {
        "model": model,
        "data": {"max_tokens": 1024},
        "train": {"steps": 1, "batch_size": 1},
        "stages": [{"name": "align", "parts": {"connector": "train"}}],
    }
    return validate_tree(RunConfig, Tree(run))


def built(**model: Any) -> ModelBundle:
    bundle = build_from_config(configured(**model), Processing(max_tokens=256), None)
    bundle.model.eval()
    return bundle


def same(ours: nn.Module, theirs: nn.Module) -> bool:
    mine, other = ours.state_dict(), theirs.state_dict()
    return mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)


@pytest.fixture(scope="module", params=STOCK)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def whole(kind: str) -> ModelBundle:
    return built(**{"from": {"path": str(stock_folder(kind)), "parts": WHOLE}})


def test_every_part_is_the_composites_bit_for_bit(kind: str, whole: ModelBundle) -> None:
    theirs, ours = stock(kind), whole.model
    assert isinstance(ours, SightlineForConditionalGeneration)
    assert same(ours.vision, composites.vision_of(theirs))
    body = theirs.get_submodule("model.language_model" if kind.startswith("llava") else "model.text_model")
    assert same(ours.language.base_model, body)
    assert torch.equal(ours.language.lm_head.weight, theirs.lm_head.weight)  # pyrefly: ignore
    weights = sorted(theirs.get_submodule(COMPOSITE_CONNECTOR[kind]).state_dict().items())
    mine = sorted(ours.connector.state_dict().items())
    assert all(torch.equal(value, other) for (_, value), (_, other) in zip(mine, weights, strict=True))
    if kind == "llava_next":
        assert torch.equal(ours.separators[0], theirs.model.image_newline)  # pyrefly: ignore
    else:
        assert ours.separators.shape[0] == 0


COMPOSITE_CONNECTOR = {
    "idefics3": "model.connector.modality_projection",
    "llava": "model.multi_modal_projector",
    "llava_next": "model.multi_modal_projector",
    "smolvlm": "model.connector.modality_projection",
}


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.id)
def test_all_parts_together_give_the_stock_models_logits_in_float64(kind: str, record: Any) -> None:
    """Everything between pixels and logits: encoder layer, class token, pixel shuffle, order of tiles, newlines, head."""
    bundle = built(**{"from": {"path": str(stock_folder(kind)), "parts": WHOLE}})
    model = bundle.model.double()
    theirs = {name: value.double() if value.is_floating_point() else value for name, value in inputs(kind, bundle, record).items()}
    layouts = bundle.conversation_encoder().layouts(record)
    rows = theirs["pixel_values"]
    if kind == "llava_next":
        rows = torch.cat([crops[: layout.num_crops] for crops, layout in zip(rows, layouts, strict=True)])
    pixels = rows.reshape(-1, *rows.shape[-3:])
    assert prompt(bundle, record).row.ids.tolist() == theirs["input_ids"][0].tolist()
    with Exact(), torch.no_grad():
        expected = stock(kind).double()(**theirs, use_cache=False).logits
        ours = model(
            input_ids=theirs["input_ids"],
            pixel_values=pixels,
            visual_sources=torch.from_numpy(join_visual_indices(layouts, bundle.tokens_per_crop)),
            use_cache=False,
        ).logits
    assert ours.dtype == torch.float64
    # The same sums in the same order: measured 0.
    assert (ours - expected).abs().max() <= 1e-12 * expected.abs().max()


def test_preparation_template_and_tokenizer_come_along(kind: str, whole: ModelBundle) -> None:
    known = read_model(stock_folder(kind))
    assert whole.processing.preparation == known.processing.preparation
    assert whole.processing.tiling == known.processing.tiling
    assert whole.template.source == known.template.source
    assert whole.tokenizer.get_vocab() == known.tokenizer.get_vocab()
    assert whole.inner.config.image_token_id == known.inner.config.image_token_id
    assert prompt(whole, RECORDS[2]).row.ids.tolist() == prompt(known, RECORDS[2]).row.ids.tolist()


def test_tokens_that_the_composite_added_are_no_words(kind: str, whole: ModelBundle) -> None:
    """Convex combinations of words (ALIGN) must not reach into `<image>` and the tokens of rows and columns."""
    plain = load_tokenizer("sentencepiece" if kind.startswith("llava") else "chatml")
    assert isinstance(whole.model, SightlineForConditionalGeneration)
    assert whole.model.config.num_words == len(plain)
    assert whole.model.words().shape[0] == len(plain)


def test_a_model_of_taken_parts_is_saved_and_read_back(kind: str, whole: ModelBundle, tmp_path: Path) -> None:
    write_model(whole, tmp_path)
    again = read_model(tmp_path)
    assert isinstance(again.model, SightlineForConditionalGeneration)
    again.model.eval()
    assert same(again.model, whole.model)
    assert again.processing == whole.processing
    tied = kind == "smolvlm"
    weight = again.model.get_output_embeddings().weight  # pyrefly: ignore
    assert (weight is again.model.get_input_embeddings().weight) == tied
    assert prompt(again, RECORDS[1]).row.ids.tolist() == prompt(whole, RECORDS[1]).row.ids.tolist()


def test_parts_come_out_of_a_model_of_ours_too(whole: ModelBundle, tmp_path: Path) -> None:
    write_model(whole, tmp_path)
    again = built(**{"from": {"path": str(tmp_path), "parts": WHOLE}})
    assert same(again.model, whole.model)
    assert again.processing.tiling == whole.processing.tiling
    assert again.processing.preparation is not None
    assert whole.processing.preparation is not None
    np.testing.assert_array_equal(
        again.processing.tiling.crops(noise(3), again.processing.preparation),
        whole.processing.tiling.crops(noise(3), whole.processing.preparation),
    )


# Which parts --------------------------------------------------------------------------------------------------------------------


def test_a_path_alone_takes_encoder_and_decoder_for_a_connector_of_ones_own(kind: str) -> None:
    bundle = built(**{"from": str(stock_folder(kind)), "connector": {"kind": "linear"}})
    theirs = stock(kind)
    assert isinstance(bundle.model, SightlineForConditionalGeneration)
    assert same(bundle.model.vision, composites.vision_of(theirs))
    assert same(bundle.model.language.base_model, composites.language_of(theirs).base_model)
    assert bundle.processing.tiling.kind == "whole"
    assert list(bundle.model.connector.state_dict()) == ["project.linear.weight", "project.linear.bias"]


def test_what_is_named_wins() -> None:
    path = str(stock_folder("idefics3"))
    bundle = built(**{"from": path, "vision": {"path": str(encoder_folder("siglip"))}})
    assert isinstance(bundle.model, SightlineForConditionalGeneration)
    assert bundle.model.vision.config.model_type == "siglip_vision_model"
    assert same(bundle.model.language.base_model, composites.language_of(stock("idefics3")).base_model)
    bundle = built(**{"from": path, "language": {"path": str(decoder_folder("qwen3"))}})
    assert isinstance(bundle.model, SightlineForConditionalGeneration)
    assert bundle.model.language.config.model_type == "qwen3"
    assert same(bundle.model.vision, composites.vision_of(stock("idefics3")))


def test_a_section_is_resolved_without_weights(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(stock_folder("llava_next"), folder)
    (folder / "model.safetensors").unlink()
    section = configured(**{"from": {"path": str(folder), "parts": WHOLE}}).model
    resolved = resolve_model_section(section)
    assert resolved.vision is not None
    assert (resolved.vision.layer, resolved.vision.drop_class_token) == (-2, True)
    assert resolved.connector.kind == "mlp"
    assert resolved.tiling == read_model(stock_folder("llava_next")).processing.tiling


def test_the_section_survives_arguments_and_files(tmp_path: Path) -> None:
    base = configured(vision={"path": "EYE"}, language={"path": "TONGUE"})
    run = resolve_config(base, None, ["model.from=SOME/MODEL", "model.from.parts=[connector]"][:1])
    assert run.model.from_ is not None
    assert (run.model.from_.path, run.model.from_.parts) == ("SOME/MODEL", ("vision", "language"))
    run = resolve_config(base, None, ["model.from.path=SOME/MODEL", "model.from.parts=[connector]"])
    assert run.model.from_ is not None
    assert run.model.from_.parts == ("connector",)
    (tmp_path / "run.yaml").write_text(to_yaml(run))
    assert validate_tree(RunConfig, read_yaml(tmp_path / "run.yaml")) == run
    assert resolve_config(None, tmp_path / "run.yaml", []) == run


# Faults -------------------------------------------------------------------------------------------------------------------------


def altered(kind: str, target: Path, **values: Any) -> str:
    shutil.copytree(stock_folder(kind), target)
    content = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**content, **values}))
    return str(target)


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"vision_feature_layer": [-2, -1]}, "concatenates the hidden states"),
        ({"projector_hidden_act": "relu"}, "a connector with the activation 'relu'"),
        ({"model_type": "qwen2_vl"}, "holds a qwen2_vl model; Sightline does not know"),
    ],
)
def test_a_composite_that_ours_cannot_equal_is_refused(values: dict[str, Any], fault: str, tmp_path: Path) -> None:
    path = altered("llava", tmp_path / "model", **values)
    with pytest.raises(ConfigError, match=fault):
        resolve_model_section(configured(**{"from": {"path": path, "parts": WHOLE}}).model)


def test_an_encoder_of_which_a_patch_would_be_lost_is_refused(tmp_path: Path) -> None:
    """LLaVA's `default` with an encoder that has no class token."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    known = stock("llava").config.to_dict()
    vision = {key: value for key, value in known["vision_config"].items() if key != "model_type"}
    config = LlavaConfig(
        vision_config={**vision, "model_type": "siglip_vision_model"},
        text_config=known["text_config"],
        image_token_index=known["image_token_index"],
    )
    shutil.copytree(stock_folder("llava"), tmp_path / "model")
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match="removes one token, but its encoder has 0 class and register tokens"):
        built(**{"from": {"path": str(tmp_path / "model"), "parts": WHOLE}})
    stock_alone = read_model(tmp_path / "model")  # as it is it works: a patch less in every crop
    assert stock_alone.tokens_per_crop == 15


def test_two_connectors_for_one_place_are_refused() -> None:
    path = str(stock_folder("llava"))
    with pytest.raises(ConfigError, match=r"asks for 'linear', but model\.from\.parts takes the connector"):
        resolve_model_section(configured(**{"from": {"path": path, "parts": WHOLE}, "connector": {"kind": "linear"}}).model)


def test_a_connector_between_other_parts_is_refused_before_training() -> None:
    path = str(stock_folder("llava"))
    given = {"from": {"path": path, "parts": ["connector", "language"]}, "vision": {"path": str(encoder_folder("mobilenet_v2"))}}
    with pytest.raises(ConfigError, match="the connector does not fit these parts"):
        built(**given)


def test_a_run_without_any_decoder_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.language must be given.*model\.from="):
        resolve_model_section(configured(vision={"path": str(encoder_folder("siglip"))}).model)


# The whole way ------------------------------------------------------------------------------------------------------------------


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--json"])
    out, err = capsys.readouterr()
    assert stopped.value.code == 0, err
    return json.loads(out)


def test_a_new_connector_is_trained_between_the_parts_of_smolvlm(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Train, evaluate, and take a part out of the run again."""
    (tmp_path / "run.yaml").write_text(
        f"""
model:
  from: {{path: {stock_folder("smolvlm")}, parts: [vision, language, tiling]}}
  connector: {{kind: mlp, shuffle: 2}}
data: {{path: {dataset}, split: val, validation_split: null, prompt: "Say what you see.", max_tokens: 512, row_tokens: 1024}}
train: {{steps: 2, batch_size: 1, checkpoint_every: 0, lr: 1.0e-3}}
stages: [{{name: align, parts: {{connector: train}}}}]
"""
    )
    done = command(capsys, "train", "--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run"))
    assert done["step"] == 2
    trained = read_model(Path(done["checkpoint"]) / "model")
    assert isinstance(trained.model, SightlineForConditionalGeneration)
    theirs = stock("smolvlm")
    assert same(trained.model.vision, composites.vision_of(theirs))
    assert same(trained.model.language.base_model, composites.language_of(theirs).base_model)
    scored = ["--task", "caption", "--data", str(dataset), "--max-new-tokens", "4"]
    assert command(capsys, "eval", str(tmp_path / "run"), *scored)["scores"]["cider_d"]["n"] == 8
    again = built(**{"from": {"path": str(tmp_path / "run"), "parts": ["vision", "connector", "language"]}})
    assert same(again.model, trained.model)
    assert (
        prompt(trained, question(1)).row.ids.tolist() == prompt(read_model(stock_folder("smolvlm")), question(1)).row.ids.tolist()
    )
