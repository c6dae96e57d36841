"""What benchmarks measure on where no data is given: pictures like photos, five captions each, and a small model of all parts.

Pictures have the falling spectrum of photos, so that they compress and decode like them; their content means nothing.
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
        folder: is made.
        count: number of pictures.
        size: width and height.
        seed: the same pictures for the same seed.
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
    """Periodic noise whose amplitude falls with frequency, as in photos: `uint8 [height, width, 3]`."""
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
    """Sentences of Flickr8k's lengths: 12 words on the average, few below 6 or above 20."""
    draw, words = np.random.default_rng([seed, 1]), WORDS.split()
    lengths = np.clip(np.rint(draw.gamma(9.0, 12 / 9.0, size=(count, each))), 4, 30).astype(int)
    return [[" ".join(draw.choice(words, size=length)) + " ." for length in row] for row in lengths]


def make_dataset(folder: Path, count: int, size: tuple[int, int] = (500, 375), shards: int | None = None) -> Path:
    """A dataset folder of pictures with five captions each, all of split `train`.

    Args:
        folder: for the source and the result; may hold the source of an earlier call.
        count: pictures.
        size: of each.
        shards: bytes of a tar shard; None writes image files.
    """
    source = folder / "source"
    if not (source / "records.jsonl").exists():
        names = make_photos(source, count, size)
        write_records(source, names)
    out = folder / ("set" if shards is None else "sharded")
    prepare(source, "records", PrepareOptions(out=out, workers=0, shards=shards))
    return out


def write_records(folder: Path, names: list[str]) -> None:
    """Writes `records.jsonl` of pictures with captions that are made up."""
    rows: list[dict[str, Any]] = [
        {"id": name, "images": [name], "captions": captions, "split": "train"}
        for name, captions in zip(names, make_captions(len(names)), strict=True)
    ]
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def caption_folder(folder: Path, images: Path, count: int) -> Path:
    """A dataset folder of the first JPEG files of a folder, with captions that are made up.

    Args:
        folder: for the result.
        images: the folder; files below it count too.
        count: how many are taken.
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
    """A stage of alignment: a frozen encoder, a connector that trains, a small decoder that trains with it.

    Args:
        dataset: a dataset folder.
        vision: folder of the encoder; None takes a ViT of 5.5 million parameters with random weights.
        prompt: of caption records.
        data: further keys of the data section.
        decoder: sizes that differ.
    """
    eye = VisionConfig(path=vision) if vision else VisionConfig(config=VIT)
    return RunConfig(
        recipe="benchmark",
        model=ModelConfig(
            vision=eye,
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
