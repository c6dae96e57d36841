"""Synthetic data for benchmarks: images with the statistics of photos, five captions each, and a small complete model.

Images have the falling spectrum of photos, so that they compress and decode alike; their content is noise.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sightline.assembly.config.schema import DataConfig, ModelConfig, RunConfig, RuntimeConfig, StageConfig, TrainConfig
from sightline.data.prepare.run import PrepareOptions, prepare
from sightline.data.readers import SourceOptions
from sightline.models.connectors.mlp import MLPConfig
from sightline.models.language import LanguageConfig, TokenizerConfig
from sightline.models.vision import VisionConfig

QUALITY = 90
WORDS = """a an the two three several young old brown white black red blue green small large wet happy dog dogs boy girl man woman
child children people group player rider horse bird ball bicycle boat car beach street field grass snow water mountain building
park river bench wall crowd camera hat shirt jacket runs jumps sits stands plays walks rides holds looks swims climbs smiles
throws catches with on in over near through across behind while and at by under from into"""


def make_photos(folder: Path, count: int, size: tuple[int, int] = (500, 375), seed: int = 0) -> list[str]:
    """Writes JPEG files; returns their names.

    Args:
        folder: is created.
        count: number of images.
        size: width and height.
        seed: equal seeds give equal images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    field, names = photo(draw, size), []
    for number in range(count):
        names.append(f"{number:05}.jpg")
        shift = draw.integers(0, size[1]), draw.integers(0, size[0])
        Image.fromarray(np.roll(field, shift, axis=(0, 1))).save(folder / names[-1], quality=QUALITY)
    return names


def photo(draw: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Returns periodic noise whose amplitude falls with frequency, as in photos: `uint8 [height, width, 3]`."""
    width, height = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    weight = np.maximum(frequency, 1 / max(size)) ** -1.4
    common, *colours = (
        np.fft.irfft2((draw.normal(size=weight.shape) + 1j * draw.normal(size=weight.shape)) * weight, s=(height, width))
        for _ in range(4)
    )
    mixed = np.stack([common + 0.3 * colour for colour in colours], axis=-1)
    return np.clip(128 + 45 * mixed / mixed.std(), 0, 255).astype(np.uint8)


def make_captions(count: int, each: int = 5, seed: int = 0) -> list[list[str]]:
    """Returns sentences with Flickr8k's lengths: 12 words on average, few below 6 or above 20."""
    draw, words = np.random.default_rng([seed, 1]), WORDS.split()
    lengths = np.clip(np.rint(draw.gamma(9.0, 12 / 9.0, size=(count, each))), 4, 30).astype(int)
    return [[" ".join(draw.choice(words, size=length)) + " ." for length in row] for row in lengths]


def make_dataset(folder: Path, count: int, size: tuple[int, int] = (500, 375), shards: int | None = None) -> Path:
    """Creates a dataset folder of images with five captions each, all in split `train`.

    Args:
        folder: for the source and the result; may hold the source of an earlier call.
        count: number of images.
        size: width and height of each.
        shards: bytes per tar shard; None writes image files.
    """
    source = folder / "source"
    if not (source / "records.jsonl").exists():
        names = make_photos(source, count, size)
        write_records(source, names)
    out = folder / ("set" if shards is None else "sharded")
    prepare(source, "records", PrepareOptions(out=out, workers=0, shards=shards))
    return out


def write_records(folder: Path, names: list[str]) -> None:
    """Writes `records.jsonl` of images with generated captions."""
    rows: list[dict[str, Any]] = [
        {"id": name, "images": [name], "captions": captions, "split": "train"}
        for name, captions in zip(names, make_captions(len(names)), strict=True)
    ]
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def caption_folder(folder: Path, images: Path, count: int) -> Path:
    """Creates a dataset folder of the first JPEG files of a folder, with generated captions.

    Args:
        folder: for the result.
        images: the folder; searched recursively.
        count: number of images.
    """
    files = sorted(file for file in images.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg"))[:count]
    source = folder / "captions"
    source.mkdir()
    write_records(source, [str(file.relative_to(images)) for file in files])
    prepare(source, "records", PrepareOptions(out=folder / "set", source=SourceOptions(images=images), workers=0))
    return folder / "set"


def run_config(
    dataset: Path,
    vision: str | None,
    prompt: str = "",
    data: dict[str, Any] | None = None,
    decoder: dict[str, Any] | None = None,
) -> RunConfig:
    """Returns the configuration of an alignment stage: a frozen encoder, a connector and a small decoder that both train.

    Args:
        dataset: a dataset folder.
        vision: folder of the encoder; None uses a ViT of 5.5 million parameters with random weights.
        prompt: prompt of caption records.
        data: further keys of the data section.
        decoder: changed sizes of the decoder.
    """
    encoder = VisionConfig(path=vision) if vision else VisionConfig(config=VIT)
    return RunConfig(
        recipe="benchmark",
        model=ModelConfig(
            vision=encoder,
            connector=MLPConfig(),
            language=LanguageConfig(config=DECODER | (decoder or {}), tokenizer=TokenizerConfig(vocabulary=4096)),
        ),
        data=DataConfig(path=str(dataset), prompt=prompt, max_tokens=512, **(data or {})),
        train=TrainConfig(steps=1, batch_size=8),
        stages=(StageConfig(name="align", parts={"connector": "train", "language": "train"}),),
        runtime=RuntimeConfig(device="auto", threads=1),
    )


VIT: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "image_size": 224,
    "patch_size": 32,
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 3,
    "vision_use_head": False,
}
DECODER: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
