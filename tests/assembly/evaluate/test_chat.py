"""A streamed answer is the answer: nothing of the prompt, with or without an image before it."""

from pathlib import Path

import pytest

from sightline.assembly.evaluate.chat import ChatModel
from sightline.assembly.evaluate.opened import OpenedModel
from sightline.assembly.model.build import build_from_config
from sightline.data.samples.processing import Processing
from sightline.generation.decode import DecodingConfig
from sightline.runtime.device import choose_runtime, process_settings_restored
from tests.assembly.helpers import run_config
from tests.data.check.planted import png, scene


@pytest.mark.parametrize("count", [0, 1])
@process_settings_restored()
def test_what_is_streamed_is_the_answer(count: int, tmp_path: Path) -> None:
    bundle = build_from_config(run_config(), Processing(prompt="Look.", max_tokens=200), None)
    bundle.module.eval()
    chat = ChatModel(OpenedModel(tmp_path, bundle, choose_runtime("cpu", "fp32", 1)))
    images = [tmp_path / f"{number}.png" for number in range(count)]
    for number, path in enumerate(images):
        path.write_bytes(png(scene(number, 64)))
    pieces: list[str] = []
    answer = chat.answer((chat.opening(count, "What is it?"),), images, DecodingConfig(max_new_tokens=6), pieces.append)
    assert answer.num_tokens == 6
    assert "".join(pieces).strip() == answer.text
