"""What stands for a recipe's Hub ids and data in tests: tiny models of the same architectures in folders, and a few records."""

from pathlib import Path
from typing import Any

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
SIZES = [(40, 30), (20, 50), (64, 64), (90, 25), (33, 32), (30, 30)]
CAPTIONS = [
    "A brown dog runs.",
    "Two children play.",
    "A red ball.",
    "A woman in a white coat.",
    "The beach.",
    "Three people wait.",
]


def model_arguments(name: str) -> list[str]:
    """Settings that put local folders in the place of Hub ids."""
    if name == "alignvlm_smolvlm":  # its head is not tied to its embeddings, as in SmolVLM2-500M
        return [f"model.from.path={stock_folder('smolvlm', True)}"]
    eye, decoder = PARTS[name]
    out = [f"model.vision.path={encoder_folder(eye)}", f"model.language.path={decoder_folder(decoder)}"]
    return [*out, f"model.language.tokenizer={stock_folder('llava')}"] if decoder == VICUNA else out


def captions_folder(root: Path) -> Path:
    """A dataset folder of captions."""
    for number, size in enumerate(SIZES):
        put(root / f"captions/{number}.png", picture(number, size=size))
    rows = [{"id": f"c{number}", "images": [f"{number}.png"], "captions": [text]} for number, text in enumerate(CAPTIONS)]
    for row in rows[-2:]:
        row["split"] = "val"
    put(root / "captions/records.jsonl", rows)
    prepared("records", root / "captions", root / "sets/captions")
    return root / "sets/captions"


def instructions_folder(root: Path, name: str = "instructions", first: int = 0) -> Path:
    """A dataset folder of conversations: with a picture, in several turns, and without one."""
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
    put(root / f"{name}/records.jsonl", rows)
    prepared("records", root / name, root / f"sets/{name}")
    return root / f"sets/{name}"


def turn(role: str, *parts: str | None) -> dict[str, Any]:
    """A turn; None is the picture."""
    return {"role": role, "content": [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]}
