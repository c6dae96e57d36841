"""A recipe's numbers at the real sizes, from configurations alone: visual tokens, parameters, and what the command prints.

The configurations are those of the published models; there are no weights and no network.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPVisionConfig, LlamaConfig, SiglipVisionConfig, SmolVLMConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from sightline.assembly.config.resolving import resolve_config, stage_plan
from sightline.assembly.config.schema import RunConfig
from sightline.assembly.model.blueprint import section_blueprint
from sightline.assembly.model.summary import image_cost, summarise
from sightline.cli import main
from sightline.recipes import RECIPES
from tests.builders import load_tokenizer
from tests.composites import stock_folder

SIGLIP_BASE = SiglipVisionConfig(
    image_size=224, patch_size=16, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
)
SIGLIP_SO400M = SiglipVisionConfig(
    image_size=384, patch_size=14, hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16
)
CLIP_LARGE = CLIPVisionConfig(
    image_size=336, patch_size=14, hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16
)
SMOLLM2 = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
)
VICUNA = LlamaConfig(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    max_position_embeddings=4096,
    tie_word_embeddings=False,
)
LLAMA_3B = LlamaConfig(
    vocab_size=128256,
    hidden_size=3072,
    intermediate_size=8192,
    num_hidden_layers=28,
    num_attention_heads=24,
    num_key_value_heads=8,
    max_position_embeddings=131072,
    tie_word_embeddings=True,
)
SMOLVLM = SmolVLMConfig(
    vision_config={"image_size": 512, "patch_size": 16, "hidden_size": 768, "intermediate_size": 3072}
    | {"num_hidden_layers": 12, "num_attention_heads": 12},
    text_config={"model_type": "llama", "vocab_size": 49280, "hidden_size": 960, "intermediate_size": 2560}
    | {"num_hidden_layers": 32, "num_attention_heads": 15, "num_key_value_heads": 5, "max_position_embeddings": 8192},
    scale_factor=4,
    tie_word_embeddings=False,
)
REAL: dict[str, tuple[Any, Any]] = {
    "alignvlm": (SIGLIP_SO400M, LLAMA_3B),
    "alignvlm_low_resource": (SIGLIP_SO400M, LLAMA_3B),
    "llava15": (CLIP_LARGE, VICUNA),
    "llava15_cal": (CLIP_LARGE, VICUNA),
    "llava_next": (CLIP_LARGE, VICUNA),
    "llava_next_cal": (CLIP_LARGE, VICUNA),
    "nanovlm": (SIGLIP_BASE, SMOLLM2),
    "tinyvlm": (SIGLIP_BASE, SMOLLM2),
    "tinyvlm_instruct": (SIGLIP_BASE, SMOLLM2),
}
# Visual tokens of a crop, and of an image of 672 x 672 pixels, counted by hand from patch sizes, shuffles and grids.
TOKENS = {
    "alignvlm": (729, 4 * 729),
    "alignvlm_low_resource": (729, 729 + 54 * 55),
    "alignvlm_smolvlm": (64, 17 * 64),
    "llava15": (576, 576),
    "llava15_cal": (576, 576),
    "llava_next": (576, 576 + 48 * 49),
    "llava_next_cal": (576, 576 + 48 * 49),
    "nanovlm": (49, 49),
    "tinyvlm": (49, 49),
    "tinyvlm_instruct": (49, 49),
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with configurations, processors and tokenizers, without weights."""
    root = tmp_path_factory.mktemp("hub")
    for number, (eye, decoder) in enumerate(REAL.values()):
        eye.save_pretrained(root / f"eye{number}")
        size = {"height": eye.image_size, "width": eye.image_size}
        is_clip = isinstance(eye, CLIPVisionConfig)
        processor = (
            CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=size) if is_clip else SiglipImageProcessorPil(size=size)
        )
        processor.save_pretrained(root / f"eye{number}")
        load_tokenizer("chatml").save_pretrained(root / f"decoder{number}")
        decoder.save_pretrained(root / f"decoder{number}")
    SMOLVLM.save_pretrained(root / "smolvlm")
    SmolVLMImageProcessorPil(size={"longest_edge": 2048}, max_image_size={"longest_edge": 512}).save_pretrained(root / "smolvlm")
    for file in stock_folder("smolvlm", True).iterdir():
        if "token" in file.name or file.suffix == ".jinja":
            (root / "smolvlm" / file.name).write_bytes(file.read_bytes())
    return root


def arguments(name: str, hub: Path) -> list[str]:
    if name == "alignvlm_smolvlm":
        return [f"model.from.path={hub / 'smolvlm'}"]
    number = list(REAL).index(name)
    out = [f"model.vision.path={hub / f'eye{number}'}", f"model.language.path={hub / f'decoder{number}'}"]
    return [*out, "model.language.tokenizer=null"] if name.startswith("llava") else out


def real(name: str, hub: Path, *more: str) -> RunConfig:
    return resolve_config(RECIPES[name](), None, [*arguments(name, hub), *more])


@pytest.mark.parametrize("name", TOKENS)
def test_visual_tokens_are_those_of_the_published_models(name: str, hub: Path) -> None:
    blueprint = section_blueprint(real(name, hub).model)
    layout = blueprint.processing.tiling.layout(672, 672, blueprint.token_grid)
    assert (blueprint.tokens_per_crop, layout.num_tokens) == TOKENS[name]


def test_without_merging_tinyvlm_sees_every_patch(hub: Path) -> None:
    config = real("tinyvlm", hub, "model.connector.shuffle=1", "model.connector.merge=blocks")
    assert section_blueprint(config.model).tokens_per_crop == 196


@pytest.mark.parametrize("name", TOKENS)
def test_rows_hold_the_largest_image_and_text(name: str, hub: Path) -> None:
    """Images of every shape leave room for text in every stage."""
    config = real(name, hub)
    blueprint = section_blueprint(config.model)
    most = 0
    for size in [(672, 672), (2000, 2000), (3000, 900), (900, 3000), (4000, 300), (1200, 800), (50, 60)]:
        layout = blueprint.processing.tiling.layout(*size, blueprint.token_grid)
        most = max(most, layout.num_tokens + 3 * layout.num_crops)  # and up to three tokens of text for each crop
    for number in range(len(config.stages)):
        assert stage_plan(config, number).data.max_tokens >= most + 25


PARAMETERS = {
    # Published counts of the backbones; connectors by their formulas.
    "tinyvlm": {"vision": 92_884_224, "connector": 82_575_360, "language": 134_515_008},
    "nanovlm": {"vision": 92_884_224, "connector": 3072 * 576, "language": 134_515_008},
    "llava15": {"vision": 303_507_456, "connector": 1024 * 4096 + 4096 + 4096 * 4096 + 4096, "language": 6_738_415_616},
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parts_have_the_published_sizes(name: str, hub: Path) -> None:
    told = summarise(real(name, hub))
    assert not told.unknown
    for stage in told.stages:
        sizes = {row.name: row.parameters for row in stage.table}
        extra = sizes["language"] - PARAMETERS[name]["language"]
        assert extra % 576 == 0 or extra % 4096 == 0  # rows for added tokens, where the vocabulary has none to spare
        assert sizes | {"language": sizes["language"] - extra} == PARAMETERS[name]
        for row in stage.table:
            assert row.trainable == (row.parameters if row.lr else 0)


def test_adapters_of_the_port_are_counted(hub: Path) -> None:
    """Rank 64 on seven maps of 32 layers; and embeddings, head and two norms a layer in full."""
    row = {row.name: row for row in summarise(real("alignvlm_smolvlm", hub)).stages[0].table}["language"]
    width, inner, heads = 960, 2560, 320
    maps = [(width, width), (width, heads), (width, heads), (width, width), (width, inner), (width, inner), (inner, width)]
    adapters = 32 * sum(64 * (a + b) for a, b in maps)
    assert row.rank == 64
    assert row.trainable == adapters + 2 * 49280 * width + 32 * 2 * width


def test_operations_of_an_encoder_follow_its_formula(hub: Path) -> None:
    """Multiply-adds count two: patch embedding, four maps, two products of attention and the MLP of each layer."""
    cost = image_cost(real("llava15", hub))
    assert cost is not None
    tokens, width, inner = 577, 1024, 4096
    layer = 2 * tokens * (4 * width * width + 2 * width * inner) + 4 * tokens * tokens * width
    assert cost.encoder_flops == 2 * 576 * 3 * 14 * 14 * width + 24 * layer


def exit_code(call: list[str]) -> int:
    """Runs a command; stdout and stderr are the test's."""
    with pytest.raises(SystemExit) as ended:
        main(call)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_command_prints_stages_and_costs_from_local_configurations(hub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["recipes", "show", "tinyvlm", *arguments("tinyvlm", hub)]) == 0
    said = capsys.readouterr().out
    assert "# stage align: 1 epoch of sets/cc3m-595k, 768 samples a step, objective next_token" in said
    assert "#   connector     82,575,360 parameters  trains at 0.001" in said
    assert "# visual tokens of a crop: 49" in said
    assert exit_code(["recipes", "show", "tinyvlm", *arguments("tinyvlm", hub), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["cost"]["tokens_per_crop"] == 49
    assert told["cost"]["parameters"] == 82_575_360
    assert told["outline"][0]["parts"]["vision"] == {"lr": 0.0, "rank": 0, "parameters": 92_884_224, "trainable": 0}


@pytest.mark.parametrize("name", TOKENS)
def test_without_the_hub_the_command_says_what_is_not_known_and_how_to_know_it(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code(["recipes", "show", name]) == 0
    said = capsys.readouterr().out
    for stage in RECIPES[name]().stages:
        assert f"# stage {stage.name}: " in said
    assert "trains at" in said
    assert "# Not known here: the sizes of the parts" in said
    assert f"HF_HUB_OFFLINE=0 sightline recipes show {name}" in said
    assert "path=FOLDER" in said


def test_seemore_and_seemoe_have_the_published_sizes() -> None:
    """Of seemore.py and seeMoE.py, whose decoders have 66 entries."""
    for name, decoder in (("seemore", 1_728_322), ("seemoe", 9_120_706)):
        config = resolve_config(RECIPES[name](), None, ["model.language.tokenizer.vocabulary=65"])
        sizes = {row.name: row.parameters for row in summarise(config).stages[0].table}
        assert sizes == {"vision": 9_866_752, "connector": 1_312_896, "language": decoder}  # 65 and the image token
        assert section_blueprint(config.model).tokens_per_crop == 1
