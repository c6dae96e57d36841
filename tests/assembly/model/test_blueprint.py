"""A model described without weights says what the model itself says: grid, visual tokens, rows."""

from pathlib import Path

import pytest

from sightline.assembly.config.schema import DataConfig, ModelConfig, RunConfig, StageConfig, TrainConfig
from sightline.assembly.model import inputs
from sightline.assembly.model.blueprint import Blueprint, config_blueprint, folder_blueprint
from sightline.assembly.model.build import ModelBundle, Processing, build_from_config, build_model, read_model, write_model
from sightline.assembly.model.tokenizer import load_tokenizer, texts_of
from sightline.data.dataset import open_dataset
from sightline.data.samples.encoding import TextRules
from sightline.data.samples.templates import Template
from sightline.errors import ConfigError, StorageError, UsageError
from sightline.models.connectors.linear import LinearConfig
from sightline.models.connectors.mlp import MLPConfig
from sightline.models.language import LanguageConfig, TokenizerConfig
from sightline.models.vision import VisionConfig
from sightline.types import ImageInfo, Message, Part, Record
from tests.builders import composite_folder, decoder_folder, encoder_folder
from tests.composites import stock_folder
from tests.data.check.planted import folder, png, record, scene

PLAIN = MLPConfig()
RECORD = Record(
    "r",
    images=("a.png",),
    image_info=(ImageInfo("0" * 64, 70, 40),),
    messages=(
        Message("user", (Part(), Part("What colour is it?"))),
        Message("assistant", (Part("It is blue."),)),
        Message("user", (Part("Sure?"),)),
        Message("assistant", (Part("Yes, 東京."),)),
    ),
)


def run_config(
    vision: VisionConfig | None, language: LanguageConfig, connector: MLPConfig | LinearConfig = PLAIN, **data: object
) -> RunConfig:
    part = "language" if vision is None else "connector"
    return RunConfig(
        model=ModelConfig(vision=vision, connector=connector, language=language),
        data=DataConfig.model_validate({"max_tokens": 200, **data}, strict=False),
        train=TrainConfig(steps=3, batch_size=2),
        stages=(StageConfig(name="align", parts={part: "train"}),),
    )


def built(config: RunConfig) -> ModelBundle:
    return build_from_config(
        config, Processing(prompt=config.data.prompt, template=config.data.template, max_tokens=config.data.max_tokens), None
    )


def assert_same(described: Blueprint, bundle: ModelBundle) -> None:
    assert described.tokens_per_crop == bundle.tokens_per_crop
    assert described.token_grid == bundle.token_grid
    assert described.processing.preparation == bundle.processing.preparation
    assert described.processing.tiling == bundle.processing.tiling
    assert described.tokenizer.get_vocab() == bundle.tokenizer.get_vocab()
    assert described.pad_id == bundle.pad_id == bundle.conversation_encoder().pad_id
    if described.vlm is not None and bundle.model.connector is not None:
        assert described.connector_shape == bundle.model.connector.shape
    if described.section is not None and described.section.from_ is None:
        meta = build_model(described, init_device="meta")
        assert {name: value.shape for name, value in meta.inner.named_parameters()} == {
            name: value.shape for name, value in bundle.inner.named_parameters()
        }
        assert {value.device.type for value in meta.inner.parameters()} == {"meta"}
    ours, theirs = described.conversation_encoder("Look."), bundle.conversation_encoder("Look.")
    assert ours.rules == theirs.rules
    rows = [
        conversation_encoder.encode_conversation(RECORD.messages, conversation_encoder.layouts(RECORD))
        for conversation_encoder in (ours, theirs)
    ]
    assert rows[0].ids.tolist() == rows[1].ids.tolist()
    assert rows[0].spans == rows[1].spans


@pytest.mark.parametrize("kind", ["clip", "dinov2_registers", "mobilenet_v2", "siglip"])
def test_the_tokens_of_an_encoder_are_known_without_its_weights(kind: str) -> None:
    eye = VisionConfig(path=str(encoder_folder(kind)))
    config = run_config(eye, LanguageConfig(path=str(decoder_folder("llama"))))
    assert_same(config_blueprint(config), built(config))


@pytest.mark.parametrize(
    ("eye", "connector"),
    [
        (VisionConfig(path=str(encoder_folder("siglip")), layer=-2), MLPConfig(shuffle=2)),
        (VisionConfig(path=str(encoder_folder("clip")), drop_class_token=False), LinearConfig()),
        (VisionConfig(path=str(composite_folder("siglip"))), LinearConfig(shuffle=4, merge="raster")),
    ],
)
def test_layers_class_tokens_and_folding_count(eye: VisionConfig, connector: MLPConfig | LinearConfig) -> None:
    config = run_config(eye, LanguageConfig(path=str(decoder_folder("gpt2"))), connector)
    assert_same(config_blueprint(config), built(config))


@pytest.mark.parametrize(("decoder", "spare", "added", "words"), [("gpt2", 0, 0, 300), ("gpt2", 24, 0, 300), ("gpt2", 0, 7, 300)])
def test_the_number_of_words_is_that_of_the_smaller_of_tokenizer_and_embedding(
    decoder: str, spare: int, added: int, words: int, tmp_path: Path
) -> None:
    """A decoder may have more rows than its tokenizer has entries, and a tokenizer more entries than its decoder has rows."""
    path = str(decoder_folder(decoder, spare))
    tokenizer = load_tokenizer(path)
    tokenizer.add_tokens([f"extra{number}" for number in range(added)])
    tokenizer.save_pretrained(tmp_path)
    language = LanguageConfig(path=path, tokenizer=str(tmp_path))
    config = run_config(VisionConfig(path=str(encoder_folder("siglip"))), language)
    described, bundle = config_blueprint(config), built(config)
    assert len(tokenizer) == words + added
    assert described.connector_shape.num_words == bundle.inner.config.num_words == words
    assert_same(described, bundle)


def test_the_pad_id_is_known_without_compiling_a_template(monkeypatch: pytest.MonkeyPatch) -> None:
    described = config_blueprint(run_config(None, LanguageConfig(path=str(decoder_folder("llama")))))
    expected = described.conversation_encoder().pad_id
    monkeypatch.setattr(inputs, "Template", None)
    assert described.pad_id == expected


def test_every_rule_of_a_stage_reaches_the_encoder_of_conversations() -> None:
    described = config_blueprint(run_config(None, LanguageConfig(path=str(decoder_folder("llama")))))
    data = DataConfig(
        prompt="Say it.",
        template="plain",
        supervise="all_text",
        max_tokens=77,
        too_long="truncate",
        captions="first",
        drop_images=True,
    )
    encoder = described.stage_builder(data)
    assert encoder.rules == TextRules("Say it.", "all_text", 77, "truncate", captions="first", drop_images=True)
    assert encoder.template.source == Template(described.tokenizer, "plain").source != described.template.source
    assert described.stage_builder(data, "Look.").rules.prompt == "Look."


def test_a_decoder_alone_has_no_grid() -> None:
    config = run_config(None, LanguageConfig(path=str(decoder_folder("qwen2"))))
    described = config_blueprint(config)
    assert (described.takes_images, described.token_grid, described.tokens_per_crop) == (False, (1, 1), 0)
    assert described.conversation_encoder().rules.tiling is None
    assert described.facts()["image_size"] is None


@pytest.mark.parametrize("kind", ["idefics3", "llava", "llava_next"])
def test_a_stock_model_is_described_by_its_parts(kind: str) -> None:
    path = str(stock_folder(kind))
    assert_same(folder_blueprint(path), read_model(path))


def test_a_model_of_ours_is_described_by_its_folder(tmp_path: Path) -> None:
    config = run_config(
        VisionConfig(path=str(encoder_folder("siglip"))), LanguageConfig(path=str(decoder_folder("llama"))), MLPConfig(shuffle=2)
    )
    bundle = built(config)
    (tmp_path / "model").mkdir()
    write_model(bundle, tmp_path / "model")
    described = folder_blueprint(str(tmp_path / "model"))
    assert_same(described, bundle)
    assert described.config is None
    with pytest.raises(UsageError, match=r"no configuration that 'data.prompt=x'"):
        folder_blueprint(str(tmp_path / "model"), ["data.prompt=x"])


def test_a_new_tokenizer_is_trained_on_the_data_as_the_run_would(tmp_path: Path) -> None:
    data = folder(
        tmp_path / "data", [record(f"r{i}", "a.png", captions=[f"a red bicycle {i}"]) for i in range(9)], {"a.png": png(scene(0))}
    )
    sizes = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    language = LanguageConfig(config={**sizes, "max_position_embeddings": 256}, tokenizer=TokenizerConfig(vocabulary=300))
    config = run_config(VisionConfig(path=str(encoder_folder("siglip"))), language, path=str(data))
    described = config_blueprint(config)
    texts = texts_of([(open_dataset(data), "train")])
    bundle = build_from_config(config, Processing(max_tokens=200), texts)
    assert_same(described, bundle)
    assert described.facts()["vocabulary"] == len(bundle.tokenizer)


def test_what_training_would_refuse_is_refused_here(tmp_path: Path) -> None:
    eye = VisionConfig(path=str(encoder_folder("siglip")))
    language = LanguageConfig(path=str(decoder_folder("llama")))
    with pytest.raises(ConfigError, match=r"data\.max_tokens=300, but the decoder has 256 positions"):
        config_blueprint(run_config(eye, language, max_tokens=300))
    with pytest.raises(ConfigError, match="shuffle=3 does not divide"):
        config_blueprint(run_config(eye, language, MLPConfig(shuffle=3)))
    kept = VisionConfig(path=str(encoder_folder("clip")), drop_class_token=False)
    with pytest.raises(ConfigError, match="class token has no place"):
        config_blueprint(run_config(kept, language, MLPConfig(shuffle=2)))
    with pytest.raises((ConfigError, StorageError)):
        folder_blueprint(str(tmp_path))
