"""What stands for a recipe's Hub ids and data in tests: tiny models of the same architectures in folders, and a few records."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from sightline.assembly.config import locate
from sightline.assembly.config.resolving import resolve_config
from sightline.assembly.config.schema import RunConfig
from sightline.assembly.train.run import train
from sightline.recipes import RECIPES
from sightline.runtime.logs import logger
from tests.builders import decoder_folder, encoder_folder
from tests.composites import stock_folder
from tests.data.pictures import picture, prepared, put

# Recipes whose parts come from the Hub, and the folders that take their places.
CHAT, VICUNA = "llama", "llama_untied"
PARTS: dict[str, tuple[str, str]] = {
    "alignvlm": ("siglip", CHAT),
    "alignvlm_low_resource": ("siglip", CHAT),
    "llava15": ("clip", VICUNA),
    "llava15_cal": ("clip", VICUNA),
    "llava_next": ("clip", VICUNA),
    "llava_next_cal": ("clip", VICUNA),
    "nanovlm": ("siglip", CHAT),
    "tinyvlm": ("siglip", CHAT),
    "tinyvlm_instruct": ("siglip", CHAT),
}
SCRATCH = ("scratch_flickr8k", "seemoe", "seemoe_frozen", "seemore")  # no part has to come from the Hub but one encoder
SIZES = [(40, 30), (20, 50), (64, 64), (90, 25), (33, 32), (30, 30)]
CAPTIONS = [
    "A brown dog runs.",
    "Two children play.",
    "A red ball.",
    "A woman in a white coat.",
    "The beach.",
    "Three people wait.",
]
ODD = "A sign that says <image>."  # cannot be trained on: reason `placeholder_in_text`


def model_arguments(name: str) -> list[str]:
    """Settings that put local folders in the place of Hub ids."""
    if name in ("caption_lm", "scenes_tiny"):
        return []
    if name in SCRATCH:
        return small(name)
    if name == "flickr8k_mobilenet_v2":
        return [f"model.vision.path={encoder_folder('mobilenet_v2')}"]
    if name == "alignvlm_smolvlm":  # its head is not tied to its embeddings, as in SmolVLM2-500M
        return [f"model.from.path={stock_folder('smolvlm', True)}"]
    eye, decoder = PARTS[name]
    out = [f"model.vision.path={encoder_folder(eye)}", f"model.language.path={decoder_folder(decoder)}"]
    return [*out, f"model.language.tokenizer={stock_folder('llava')}"] if decoder == VICUNA else out


def small(name: str) -> list[str]:
    """Two layers for each part of a recipe from scratch."""
    out = ["model.language.config.num_hidden_layers=2"]
    return [
        *out,
        f"model.vision.path={encoder_folder('siglip')}" if name == "seemoe_frozen" else "model.vision.config.num_hidden_layers=2",
    ]


def captions_folder(root: Path) -> Path:
    """A dataset folder of captions."""
    for number, size in enumerate(SIZES):
        put(root / f"captions/{number}.png", picture(number, size=size))
    rows = [{"id": f"c{number}", "images": [f"{number}.png"], "captions": [text]} for number, text in enumerate(CAPTIONS)]
    for row in rows[-2:]:
        row["split"] = "val"
    rows.append({"id": "odd", "images": ["0.png"], "captions": [ODD]})
    put(root / "captions/records.jsonl", rows)
    prepared("records", root / "captions", root / "sets/captions")
    return root / "sets/captions"


def instructions_folder(root: Path, name: str = "instructions", first: int = 0) -> Path:
    """A dataset folder of conversations: with an image, in several turns, and without one."""
    for number, size in enumerate(SIZES):
        put(root / f"{name}/{number}.png", picture(first + number, size=size))
    rows: list[dict[str, Any]] = [
        {
            "id": f"{name}{number}",
            "images": [f"{number}.png"],
            "messages": [
                turn("user", None, "What is it?"),
                turn("assistant", text),
                turn("user", "Sure?"),
                turn("assistant", "Yes."),
            ],
        }
        for number, text in enumerate(CAPTIONS[:4])
    ]
    rows.append({"id": f"{name}-text", "messages": [turn("user", "Who waits?"), turn("assistant", "Three people.")]})
    rows.append({"id": f"{name}-odd", "messages": [turn("user", ODD), turn("assistant", "Yes.")]})
    put(root / f"{name}/records.jsonl", rows)
    prepared("records", root / name, root / f"sets/{name}")
    return root / f"sets/{name}"


def turn(role: str, *parts: str | None) -> dict[str, Any]:
    """A turn; None is the image."""
    return {"role": role, "content": [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]}


# Runs -----------------------------------------------------------------------------------------------------------------------------

DUALS = {
    "clip": "clip",
    "comalign": "clip",
    "flickr8k_dual": "",
    "negclip": "clip",
    "siglip": "siglip",
}  # recipes of dual encoders, and their model
NAMES = sorted([*PARTS, "alignvlm_smolvlm"])
# The tiny decoders have 256 positions, SmolVLM's 4096.
LENGTHS = {"alignvlm_smolvlm": 1024, "nanovlm": 128}
CAPTIONED = ("sets/llava-558k", "sets/cc3m-595k", "sets/cc12m", "sets/pixmo-cap-100k")


@dataclass(frozen=True)
class Ran:
    """A finished run of a recipe; `log` holds the messages that training logged."""

    name: str
    config: RunConfig
    path: Path
    data: Path
    log: tuple[str, ...]

    def weights(self, stage: str) -> dict[str, torch.Tensor]:
        return read_weights(locate.model_folder(self.path, stage))


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of all files of a model folder."""
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def arguments(name: str, root: Path) -> list[str]:
    """The recipe on local folders, two steps a stage."""
    recipe, out = (
        RECIPES[name](),
        [*model_arguments(name), "data.workers=0", "runtime.threads=1", "runtime.gradient_checkpointing=false"],
    )
    out += ["train.accumulate=1", "data.validation_split=null", "data.max_skipped=0.5", f"data.max_tokens={LENGTHS.get(name, 256)}"]
    if recipe.train.batch_tokens is not None:
        out += ["data.row_tokens=256", "train.batch_tokens=512"]
    elif recipe.train.batch_size is not None:
        out += ["train.batch_size=2"]
    for stage in recipe.stages:
        if "mixture" in stage.data:
            sets = ", ".join(f"{{path: {root / 'sets' / each}}}" for each in ("instructions", "documents", "charts", "long"))
            out.append(f"stages.{stage.name}.data.mixture=[{sets}]")
        elif "path" in stage.data:
            out.append(f"stages.{stage.name}.data.path={local_data(stage.data['path'], root)}")
        out += [f"stages.{stage.name}.train.steps=2"]
        out += [f"stages.{stage.name}.train.batch_size=2"] if "batch_size" in stage.train else []
        out += [f"stages.{stage.name}.data.max_tokens=256"] if "max_tokens" in stage.data else []
    if recipe.data.path is not None:
        out.append(f"data.path={local_data(recipe.data.path, root)}")
    elif name not in NAMES:
        out.append(f"data.path={root / 'sets/captions'}")
    return out


def local_data(path: str, root: Path) -> Path:
    return root / "sets" / ("captions" if path in CAPTIONED else "instructions")


def run_of(name: str, root: Path) -> Ran:
    path, given = root / "runs" / name, arguments(name, root)
    if name == "tinyvlm_instruct":
        given.append(f"init={run_of('tinyvlm', root).path}")
    config = resolve_config(RECIPES[name](), None, given)
    log = root / "logs" / f"{name}.txt"
    if not path.exists():
        log.parent.mkdir(exist_ok=True)
        handler, level = logging.FileHandler(log), logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            train(config, path)
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            handler.close()
    return Ran(name, config, path, root / "sets/captions", tuple(log.read_text().splitlines()))
