"""Tilings give the crops, the texts and the token counts of transformers' own processors, and the order of its own models.

Pixels are compared with the Pillow backends: those of torchvision differ from them by up to 0.03.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlavaNextConfig, LlavaNextModel
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from sightline.data.images.preparation import ImagePreparation
from sightline.data.images.tilings import AnyResConfig, SplitConfig, TilingConfig, WholeConfig
from sightline.data.images.tilings.processors import read_processor
from sightline.data.samples.encoding import ConversationEncoder, TextRules
from sightline.data.samples.templates import Template
from sightline.errors import ConfigError
from sightline.ops.splice import splice
from sightline.types import IMAGE, ImageInfo, Message, Part, Record
from tests.builders import load_tokenizer
from tests.data.images.helpers import normalised

SIDE, PATCH = 24, 8
PINPOINTS = [[24, 48], [48, 24], [48, 48], [72, 24], [24, 72]]
# Rounding decides at these: equal sides, one pixel more, odd sides, primes, strips, exact multiples.
EDGES = [
    (1, 1),
    (24, 24),
    (25, 24),
    (24, 25),
    (48, 49),
    (49, 48),
    (96, 96),
    (97, 96),
    (95, 97),
    (3, 60),
    (60, 3),
    (7, 139),
    (72, 24),
]


def sizes(count: int, seed: int = 0) -> list[tuple[int, int]]:
    """Sizes of images: those at the edges and random ones of up to 1:20."""
    draw = np.random.default_rng(seed)
    pairs = (tuple(int(side) for side in draw.integers(1, 200, 2)) for _ in range(10 * count))
    return [*EDGES, *[(w, h) for w, h in pairs if max(w, h) <= 20 * min(w, h)]][:count]


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8))


def saved(processor: Any, folder: Path, **changes: Any) -> Path:
    """The processor's file, written by transformers, with changes made by hand."""
    processor.save_pretrained(folder)
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


def normalised_crops(tiling: TilingConfig, preparation: ImagePreparation, image: Image.Image) -> np.ndarray:
    return normalised(preparation, tiling.crops(image, preparation)).transpose(0, 3, 1, 2)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    made = load_tokenizer("chatml")
    tokens = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    made.add_special_tokens({"extra_special_tokens": [IMAGE, "<fake_token_around_image>", "<global-img>", *tokens]})
    return made


# LLaVA-NeXT -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llava_next() -> LlavaNextImageProcessorPil:
    return LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=PINPOINTS
    )


def test_anyres_crops_are_those_of_llava_next_bit_for_bit(llava_next: LlavaNextImageProcessorPil, tmp_path: Path) -> None:
    preparation, tiling = read_processor(saved(llava_next, tmp_path))
    assert tiling == AnyResConfig(tile=SIDE, grids=((1, 2), (2, 1), (2, 2), (3, 1), (1, 3)))
    assert tiling.model_copy(update={"grids": "llava_next"}).choices == tiling.choices
    for width, height in sizes(60):
        image = noise(width, height)
        theirs = llava_next(image, return_tensors="np")["pixel_values"][0]
        np.testing.assert_array_equal(normalised_crops(tiling, preparation, image), theirs, err_msg=f"{width} x {height}")


@pytest.mark.parametrize(("strategy", "class_tokens"), [("default", 1), ("full", 0)])
def test_anyres_counts_tokens_as_llava_nexts_processor(
    llava_next: LlavaNextImageProcessorPil, tokenizer: Any, strategy: str, class_tokens: int
) -> None:
    processor = LlavaNextProcessor(
        llava_next, tokenizer, patch_size=PATCH, vision_feature_select_strategy=strategy, num_additional_image_tokens=class_tokens
    )
    tiling, grid = AnyResConfig(tile=SIDE), (SIDE // PATCH, SIDE // PATCH)
    for width, height in sizes(25, seed=1):
        ids = processor(images=noise(width, height), text=IMAGE)["input_ids"][0]
        assert tiling.layout(width, height, grid).num_tokens == ids.count(processor.image_token_id), f"{width} x {height}"
    many = sizes(800, seed=2)
    theirs = processor._get_num_multimodal_tokens(image_sizes=[(height, width) for width, height in many])["num_image_tokens"]
    assert [tiling.layout(*size, grid).num_tokens for size in many] == list(theirs)


def test_anyres_puts_visual_tokens_in_the_order_of_llava_next() -> None:
    """Given the same tokens of each crop, our slots hold what `pack_image_features` returns."""
    config = LlavaNextConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "image_size": SIDE,
            "patch_size": PATCH,
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": 32,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
        },
        image_grid_pinpoints=PINPOINTS,
        image_token_index=31,
    )
    model, tiling, grid = LlavaNextModel(config), AnyResConfig(tile=SIDE), (SIDE // PATCH, SIDE // PATCH)
    many = sizes(60, seed=3)
    layouts = [tiling.layout(*size, grid) for size in many]
    crops = [torch.randn(layout.num_crops, grid[0] * grid[1], 16) for layout in layouts]
    packed, lengths = model.pack_image_features(
        crops, torch.tensor([(height, width) for width, height in many]), "default", image_newline=model.image_newline
    )
    assert lengths.tolist() == [layout.num_tokens for layout in layouts]
    for layout, own, theirs in zip(layouts, crops, packed, strict=True):
        table = torch.cat([own.flatten(0, 1), model.image_newline[None]])
        rows = torch.zeros(1, layout.num_tokens, 16)
        ours = splice(rows, table, torch.arange(layout.num_tokens), torch.tensor(layout.visual_index))
        assert torch.equal(ours[0], theirs)


# Idefics3 and SmolVLM ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [Idefics3ImageProcessorPil, SmolVLMImageProcessorPil])
@pytest.mark.parametrize("longest", [4 * SIDE, 3 * SIDE, 59, SIDE, 10])
def test_split_crops_are_those_of_idefics3_and_smolvlm_bit_for_bit(family: Any, longest: int, tmp_path: Path) -> None:
    processor = family(size={"longest_edge": longest}, max_image_size={"longest_edge": SIDE})
    preparation, tiling = read_processor(saved(processor, tmp_path))
    assert tiling == SplitConfig(tile=SIDE, longest_edge=longest)
    for width, height in sizes(25, seed=longest):
        image = noise(width, height)
        found = processor([image], return_row_col_info=True, return_tensors="np")
        ours = normalised_crops(tiling, preparation, image)
        np.testing.assert_array_equal(ours, found["pixel_values"][0], err_msg=f"{width} x {height}")
        assert tiling.grid(width, height) == (found["rows"][0][0], found["cols"][0][0])


def test_a_image_that_is_not_split_is_that_of_idefics3(tmp_path: Path) -> None:
    processor = Idefics3ImageProcessorPil(
        size={"longest_edge": 4 * SIDE}, max_image_size={"longest_edge": SIDE}, do_image_splitting=False
    )
    preparation, tiling = read_processor(saved(processor, tmp_path))
    for width, height in sizes(20):
        theirs = processor([noise(width, height)], return_tensors="np")["pixel_values"][0]
        np.testing.assert_array_equal(normalised_crops(tiling, preparation, noise(width, height)), theirs)


@pytest.mark.parametrize("splits", [True, False])
def test_split_rows_are_the_ids_of_idefics3s_processor(tokenizer: Any, splits: bool) -> None:
    """Several images of any size between texts; the line breaks around them may merge to one token and must do so alike."""
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 3 * SIDE}, max_image_size={"longest_edge": SIDE}, do_image_splitting=splits
    )
    processor = Idefics3Processor(images, tokenizer, image_seq_len=4)
    tiling = SplitConfig(tile=SIDE, longest_edge=3 * SIDE, splits=splits)
    conversation_encoder = ConversationEncoder(
        tokenizer, Template(tokenizer, "plain"), TextRules(grid=(2, 2), tiling=tiling, max_tokens=4096)
    )
    many = sizes(45, seed=5)
    for number in range(0, 45, 3):
        infos = tuple(ImageInfo("", *size) for size in many[number : number + 3])
        parts = (Part("Look:"), Part(), Part("\n"), Part(), Part(), Part(" What is it?"))
        record = Record("r", ("a", "b", "c"), infos, (Message("user", parts),))
        row = conversation_encoder.encode_prompt(record.messages, conversation_encoder.layouts(record))
        text = conversation_encoder.template.render(record.messages, prompt=True)
        found = processor(text=text, images=[noise(*size) for size in many[number : number + 3]], add_special_tokens=False)
        assert row.ids.tolist() == found["input_ids"][0], many[number : number + 3]


# Processor files --------------------------------------------------------------------------------------------------------------


def test_what_a_file_does_not_say_is_as_in_transformers(tmp_path: Path) -> None:
    for kind, default in {"Idefics3": Idefics3ImageProcessorPil, "LlavaNext": LlavaNextImageProcessorPil}.items():
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": f"{kind}ImageProcessor"}))
        processor = default()
        if kind == "LlavaNext":  # its default tiles of 224 do not divide its default pinpoints
            with pytest.raises(ConfigError, match="no pair of multiples of the tile's 224 pixels"):
                read_processor(tmp_path)
            continue
        preparation, tiling = read_processor(tmp_path)
        image = noise(500, 400)
        theirs = processor([image], return_tensors="np")["pixel_values"][0]
        np.testing.assert_array_equal(normalised_crops(tiling, preparation, image), theirs)


def test_processors_that_do_not_tile_give_one_crop(tmp_path: Path) -> None:
    processor = LlavaImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, do_pad=True)
    preparation, tiling = read_processor(saved(processor, tmp_path))
    assert tiling == WholeConfig()
    theirs = processor([noise(30, 50)], return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(normalised_crops(tiling, preparation, noise(30, 50)), theirs)


@pytest.mark.parametrize(
    ("kind", "changes", "fault"),
    [
        ("Idefics3", {"do_resize": False}, "'do_resize' is off"),
        ("Idefics3", {"size": {"height": 3, "width": 4}}, "'size' must give 'longest_edge'"),
        ("Idefics3", {"max_image_size": {"longest_edge": "24"}}, "'max_image_size' must give"),
        ("Idefics3", {"max_image_size": {"longest_edge": -1}}, "'max_image_size' must give"),
        ("Idefics3", {"max_image_size": {"longest_edge": 100000}}, "preprocessor_config.json"),
        ("Idefics3", {"do_image_splitting": "yes"}, "'do_image_splitting' must be true or false"),
        ("LlavaNext", {"image_grid_pinpoints": [[24, 50]]}, "no pair of multiples"),
        ("LlavaNext", {"image_grid_pinpoints": [[24]]}, "no pair of multiples"),
        ("LlavaNext", {"image_grid_pinpoints": "(1x1),...,(6x6)"}, "image_grid_pinpoints"),
        ("LlavaNext", {"image_grid_pinpoints": [[24 * 50, 24]]}, "preprocessor_config.json"),
        ("LlavaNext", {"crop_size": {"height": 20, "width": 20}}, "must be equal"),
        ("Unheard", {}, "Unheard"),
    ],
)
def test_a_damaged_processor_file_is_refused_by_name(kind: str, changes: dict[str, Any], fault: str, tmp_path: Path) -> None:
    settings = {
        "image_processor_type": f"{kind}ImageProcessor",
        "size": {"longest_edge": 96} if kind == "Idefics3" else {"shortest_edge": 24},
        "max_image_size": {"longest_edge": 24},
        "crop_size": {"height": 24, "width": 24},
        "image_grid_pinpoints": PINPOINTS,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**settings, **changes}))
    with pytest.raises(ConfigError, match=fault):
        read_processor(tmp_path)
