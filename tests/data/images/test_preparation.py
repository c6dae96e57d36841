"""Image preparation against transformers' own processors (Pillow backend)."""

import io
import json
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sightline.config import Tree, to_yaml, validate_tree
from sightline.data.images import preparation
from sightline.data.images.preparation import ImagePreparation
from sightline.errors import ConfigError, RecordError
from sightline.models.vision import normalise
from tests.data.broken_images import encode, photo
from tests.data.images.helpers import from_folder, normalised, opened

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import (
        BitImageProcessorPil,
        BlipImageProcessorPil,
        CLIPImageProcessorPil,
        DeiTImageProcessorPil,
        LlavaImageProcessorPil,
        MobileNetV2ImageProcessorPil,
        SiglipImageProcessorPil,
        ViTImageProcessorPil,
    )
    from transformers.image_processing_backends import PilBackend

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}

# The settings that the published checkpoints carry.
PROCESSORS: dict[str, PilBackend] = {
    "clip": CLIPImageProcessorPil(),
    "clip_336": CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
    "deit": DeiTImageProcessorPil(**IMAGENET),
    "dinov2": BitImageProcessorPil(size={"shortest_edge": 256}, **IMAGENET),
    "llava_pad": LlavaImageProcessorPil(do_pad=True),
    "mobilenet_v2": MobileNetV2ImageProcessorPil(),
    "mobilenet_v2_squash": MobileNetV2ImageProcessorPil(size={"height": 224, "width": 224}, do_center_crop=False),
    "odd_crop": BitImageProcessorPil(size={"shortest_edge": 51}, crop_size={"height": 44, "width": 37}),
    "padding_crop": BitImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 57, "width": 66}),
    "siglip": SiglipImageProcessorPil(),
    "siglip2": SiglipImageProcessorPil(size={"height": 256, "width": 256}, resample=2),
    "siglip_oblong": SiglipImageProcessorPil(size={"height": 96, "width": 160}),
    "unscaled": BlipImageProcessorPil(size=64, do_rescale=False, do_normalize=False),
    "vit": ViTImageProcessorPil(),
}
SHAPES = [
    (1, 1), (1, 40), (40, 1), (2, 3), (37, 400), (400, 37), (223, 224), (224, 223), (224, 224), (225, 224), (256, 256),
    (257, 255), (375, 500), (500, 333), (1201, 799), (60, 40), (41, 40),
]  # fmt: skip


def both(processor: PilBackend, image: Image.Image, prepared: ImagePreparation) -> tuple[np.ndarray, np.ndarray]:
    """The uint8 pixels of the processor and ours, channels last."""
    theirs = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
    return theirs.transpose(1, 2, 0), prepared.prepare(image)


def from_saved(processor: PilBackend, folder: Path) -> ImagePreparation:
    processor.save_pretrained(folder)
    return from_folder(folder)


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_equal_those_of_the_processor_bit_for_bit(name: str, tmp_path: Path) -> None:
    # Tolerance 0 in bytes. What must not pass: bilinear for bicubic (mean difference 2 levels), a crop or a longer side that is
    # rounded instead of cut (shift by a pixel), padding in another colour.
    prepared = from_saved(PROCESSORS[name], tmp_path)
    for seed, (width, height) in enumerate(SHAPES):
        theirs, ours = both(PROCESSORS[name], photo(width, height, seed), prepared)
        assert ours.dtype == np.uint8
        assert ours.shape == (prepared.height, prepared.width, 3)
        assert np.array_equal(theirs, ours), (width, height)


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(["clip", "dinov2", "siglip", "mobilenet_v2", "llava_pad", "odd_crop", "padding_crop"]),
    width=st.integers(1, 450),
    height=st.integers(1, 450),
)
def test_parity_holds_at_any_size(name: str, width: int, height: int) -> None:
    processor = PROCESSORS[name]
    if max(width, height) > 8 * min(width, height):
        width = height = max(width, height)
    theirs, ours = both(processor, photo(width, height), ImagePreparation.from_processor(processor.to_dict()))
    assert np.array_equal(theirs, ours)


@pytest.mark.parametrize("name", PROCESSORS)
def test_normalised_values_equal_those_of_the_processor(name: str, tmp_path: Path) -> None:
    # 1e-6 on values up to 2.7 are a few roundings of fp32. What must not pass: 1/256 for 1/255 (1e-2), swapped channels of mean.
    prepared = from_saved(PROCESSORS[name], tmp_path)
    image = photo(150, 110)
    theirs = PROCESSORS[name](image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0).astype(np.float64)
    pixels = prepared.prepare(image)
    assert np.array_equal(normalised(prepared, pixels), theirs.astype(np.float32))
    on_device = normalise(torch.from_numpy(pixels)[None], prepared.rescale, prepared.mean, prepared.std)[0].permute(1, 2, 0).numpy()
    assert on_device.dtype == np.float32
    assert np.abs(on_device - theirs).max() <= 1e-6
    formula = (pixels * np.float64(prepared.rescale) - np.array(prepared.mean)) / np.array(prepared.std)
    assert np.abs(formula - theirs).max() <= 1e-6


def test_the_tolerance_would_catch_the_wrong_filter_and_the_wrong_crop() -> None:
    image = photo(500, 375)
    exact = ImagePreparation(resize=256, crop=(224, 224))
    wrong_filter = exact.model_copy(update={"resample": "bilinear"})
    wrong_crop = exact.model_copy(update={"resize": 257})
    for wrong in (wrong_filter, wrong_crop):
        assert np.abs(exact.prepare(image).astype(int) - wrong.prepare(image)).mean() > 1


def test_the_result_is_a_fresh_array_that_may_be_written_to() -> None:
    image = photo(8, 8)
    pixels = ImagePreparation(resize=(8, 8)).prepare(image)
    pixels[:] = 0
    assert np.asarray(image).any()


def test_images_that_are_not_rgb_are_refused() -> None:
    with pytest.raises(ValueError, match="open_image"):
        ImagePreparation(resize=(8, 8)).prepare(Image.new("L", (8, 8)))


# Files of encoders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", preparation._PROCESSORS)
def test_what_a_file_leaves_out_is_what_transformers_assumes(kind: str) -> None:
    import transformers

    theirs = getattr(transformers, f"{kind}ImageProcessorPil")()
    bare = ImagePreparation.from_processor({"image_processor_type": f"{kind}ImageProcessor"})
    assert bare == ImagePreparation.from_processor(theirs.to_dict())
    size = 64
    if theirs.crop_size is not None or theirs.default_to_square:  # else images of different sizes come out, which is refused
        theirs = getattr(transformers, f"{kind}ImageProcessorPil")(size=size)
        plain = ImagePreparation.from_processor({"image_processor_type": f"{kind}ImageProcessor", "size": size})
        assert plain == ImagePreparation.from_processor(theirs.to_dict())


@pytest.mark.parametrize("name", PROCESSORS)
def test_it_can_be_written_as_a_processor_file_that_means_the_same(name: str, tmp_path: Path) -> None:
    own = ImagePreparation.from_processor(PROCESSORS[name].to_dict())
    values = json.loads(json.dumps(own.to_processor()))
    assert ImagePreparation.from_processor(values) == own
    theirs = (LlavaImageProcessorPil if own.pad else CLIPImageProcessorPil)(**values)
    image = photo(70, 90)
    assert np.array_equal(
        theirs(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0), normalised(own, own.prepare(image))
    )


def test_a_file_of_the_first_years_is_read() -> None:
    # The form of openai/clip-vit-base-patch32 on the Hub.
    old = {
        "crop_size": 224, "do_center_crop": True, "do_normalize": True, "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3, "size": 224,
    }  # fmt: skip
    assert ImagePreparation.from_processor(old) == ImagePreparation.from_processor(CLIPImageProcessorPil().to_dict())


@pytest.mark.parametrize("suffix", ["ImageProcessor", "ImageProcessorFast", "ImageProcessorPil"])
def test_every_spelling_of_a_kind_is_known(suffix: str) -> None:
    assert ImagePreparation.from_processor({"image_processor_type": f"Siglip{suffix}"}).height == 224


def test_the_image_section_of_a_joint_processor_file_comes_first(tmp_path: Path) -> None:
    section = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": section, "processor_class": "X"}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "SiglipImageProcessor"}))
    assert from_folder(tmp_path).height == 32
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "X"}))
    assert from_folder(tmp_path).height == 224


def test_a_hub_id_is_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    PROCESSORS["siglip2"].save_pretrained(tmp_path)
    asked = []

    def download(repository: str, name: str) -> str:
        asked.append((repository, name))
        if not (tmp_path / name).exists():
            raise EntryNotFoundError("404")
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert from_folder("google/siglip2-base-patch16-256").height == 256
    assert asked[-1] == ("google/siglip2-base-patch16-256", "preprocessor_config.json")

    def offline(repository: str, name: str) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(ConfigError, match="cannot be reached"):
        from_folder("google/siglip2-base-patch16-256")


SIGLIP = {"image_processor_type": "SiglipImageProcessor"}
CLIP = {"image_processor_type": "CLIPImageProcessor"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "image processor None"),
        ({"image_processor_type": "Siglip2ImageProcessor"}, "'Siglip2ImageProcessor' is not supported; supported are"),
        ({**SIGLIP, "size": {"shortest_edge": 224}}, "different sizes"),
        ({**SIGLIP, "size": {"longest_edge": 224}}, "'size' must be height and width"),
        ({**SIGLIP, "size": {"shortest_edge": 224, "longest_edge": 300}}, "'size' must be"),
        ({**SIGLIP, "size": {"height": 224, "width": "224"}}, "'size' must be"),
        ({**SIGLIP, "size": {"height": 0, "width": 224}}, "between 1 and 8192"),
        ({**SIGLIP, "size": {"height": 10**9, "width": 224}}, "between 1 and 8192"),
        ({**SIGLIP, "size": True}, "'size' must be"),
        ({**SIGLIP, "do_resize": False}, "different sizes"),
        ({**SIGLIP, "do_resize": "yes"}, "'do_resize' must be true or false"),
        ({**SIGLIP, "do_center_crop": True}, "'crop_size' must be"),
        ({**SIGLIP, "do_pad": True}, "do_pad"),
        ({**SIGLIP, "resample": 9}, "0 to 5"),
        ({**SIGLIP, "resample": 2.5}, "0 to 5"),
        ({**SIGLIP, "resample": "bicubic"}, "'resample' must be a number"),
        ({**SIGLIP, "image_std": [0.5, 0.0, 0.5]}, "'std' must be positive"),
        ({**SIGLIP, "image_mean": [0.5, 0.5]}, "'image_mean' must be a number, or three"),
        ({**SIGLIP, "image_mean": [0.5, 0.5, float("nan")]}, "finite"),
        ({**SIGLIP, "rescale_factor": 0}, "rescale"),
        ({**SIGLIP, "rescale_factor": 10**400}, "too large"),
        ({**CLIP, "crop_size": -3}, "between 1 and 8192"),
    ],
)
def test_what_cannot_be_reproduced_is_refused_with_the_file_and_the_field(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        ImagePreparation.from_processor(values, "encoder/preprocessor_config.json")
    assert "encoder/preprocessor_config.json" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b" " * 1_000_001])
def test_a_damaged_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json"):
        from_folder(tmp_path)


def test_a_folder_without_a_processor_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither"):
        from_folder(tmp_path)
    with pytest.raises(ConfigError, match="does not exist"):
        from_folder(tmp_path / "none")


# Ways to fit ----------------------------------------------------------------------------------------------------------------


def test_squash_crop_and_pad_keep_the_output_size_and_the_normalisation() -> None:
    own = ImagePreparation.from_processor(BitImageProcessorPil(size={"shortest_edge": 256}, **IMAGENET).to_dict())
    assert own.refitted("encoder") == own
    assert own.refitted("crop") == own, "an encoder that crops keeps its own way to crop"
    for fit in ("squash", "pad"):
        other = own.refitted(fit)
        assert (other.height, other.width, other.mean, other.std) == (224, 224, own.mean, own.std)
        assert other.refitted("crop").prepare(photo(60, 40)).shape == (224, 224, 3)


def test_each_fit_shows_what_it_promises() -> None:
    wide = Image.new("RGB", (60, 20), "red")
    wide.paste("blue", (20, 0, 40, 20))
    base = ImagePreparation(resize=(20, 20), resample="nearest", mean=(0.5, 0.25, 0.0))
    squashed, cropped, padded = (base.refitted(fit).prepare(wide) for fit in ("squash", "crop", "pad"))
    assert (squashed[:, 0] == (255, 0, 0)).all(), "squash keeps the sides"
    assert (cropped == (0, 0, 255)).all(), "crop keeps the centre"
    assert (padded[0] == (127, 63, 0)).all(), "pad adds the mean colour"
    assert (padded[10, 0] == (255, 0, 0)).all()


def test_pad_equals_llava_processors_padding(tmp_path: Path) -> None:
    theirs = LlavaImageProcessorPil(do_pad=True, size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    clip = ImagePreparation.from_processor(PROCESSORS["clip_336"].to_dict())
    for width, height in SHAPES:
        reference, ours = both(theirs, photo(width, height), clip.refitted("pad"))
        assert np.array_equal(reference, ours), (width, height)


def test_pad_for_an_oblong_encoder_is_refused() -> None:
    with pytest.raises(ConfigError, match="96 x 160"):
        ImagePreparation(resize=(96, 160)).refitted("pad")


# Identity -------------------------------------------------------------------------------------------------------------------


def test_the_key_is_stable_and_tells_every_setting_apart() -> None:
    base = ImagePreparation(resize=224, crop=(224, 224))
    assert base.key() == "ad36bd83b24673d2f99e7c2c9efeb39d70b53c1ff6e65f1c00856d1c7843a4f3"
    others = [
        {"resize": 256}, {"resize": (224, 224)}, {"crop": (224, 223)}, {"pad": True}, {"resample": "bilinear"},
        {"rescale": 1 / 127.5}, {"mean": (0.5, 0.5, 0.4)}, {"std": (0.5, 0.5, 0.4)}, {"draft": True},
    ]  # fmt: skip
    assert set().union(*others) == set(ImagePreparation.model_fields)
    keys = {base.model_copy(update=change).key() for change in others}
    assert len(keys | {base.key()}) == len(others) + 1


def test_it_survives_pickle_and_yaml() -> None:
    own = ImagePreparation.from_processor(CLIPImageProcessorPil().to_dict())
    assert pickle.loads(pickle.dumps(own)) == own
    assert pickle.loads(pickle.dumps(own)).key() == own.key()
    assert validate_tree(ImagePreparation, Tree(json.loads(own.model_dump_json()))) == own
    assert "resize: 224" in to_yaml(own)


def test_preparing_images_imports_neither_torch_nor_transformers() -> None:
    code = "import sightline.data.images.preparation, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Files to pixels, draft -----------------------------------------------------------------------------------------------------


def test_files_open_to_prepared_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(photo(50, 40), "PNG"))
    own = ImagePreparation(resize=(16, 16))
    assert np.array_equal(opened(own, path), own.prepare(photo(50, 40)))
    with pytest.raises(RecordError):
        opened(own, path.read_bytes()[:100])


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
def test_a_draft_is_close_and_of_the_same_size(fit: str) -> None:
    # Mean difference in levels, measured: 0.25; with pad 1.7 (margins of half a pixel). A shift by one pixel gives 7 to 9.
    smooth = photo(90, 70).resize((1200, 900), Image.Resampling.BICUBIC)
    data = encode(smooth, "JPEG", quality=95)
    exact = ImagePreparation(resize=(96, 96)).refitted(fit)
    draft = exact.model_copy(update={"draft": True})
    assert exact.draft_side is None
    assert draft.draft_side == 192
    difference = np.abs(opened(exact, data).astype(int) - opened(draft, data))
    assert difference.shape == (96, 96, 3)
    assert 0 < difference.mean() < 2.5
    assert np.array_equal(opened(exact, data), exact.prepare(Image.open(io.BytesIO(data)).convert("RGB")))
