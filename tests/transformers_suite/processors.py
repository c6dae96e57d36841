"""transformers' own processor tests and the pipeline test for any model, on ours and on a stock LLaVA's beside it.

Run by `make test-transformers`; the pipeline test needs a checkout of transformers' repository (see `fetch.py`).
"""

import tempfile
import unittest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaProcessor,
    ProcessorMixin,
)
from transformers.pipelines import ImageTextToTextPipeline
from transformers_tests.pipelines.test_pipelines_image_text_to_text import ImageTextToTextPipelineTests
from transformers_tests.test_processing_common import ProcessorTesterMixin

from sightline.assembly.model.build import write_model
from sightline.assembly.model.processor import SightlineProcessor
from sightline.data.images.tilings import WholeConfig
from sightline.models.connectors.mlp import MLPConfig
from tests.composites import stock_folder
from tests.export.helpers import built

HAS_PIPELINE_TEST = hasattr(ImageTextToTextPipelineTests, "run_pipeline_test")


class StockProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    """What a processor of transformers passes with a tokenizer of our tests."""

    processor_class = LlavaProcessor

    @classmethod
    def _setup_from_components(cls) -> ProcessorMixin:
        stock = AutoProcessor.from_pretrained(stock_folder("llava"))
        assert isinstance(stock, LlavaProcessor), stock
        return stock


class SightlineProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    """Our processor."""

    processor_class = SightlineProcessor

    @classmethod
    def _setup_from_components(cls) -> ProcessorMixin:
        return SightlineProcessor.of(built(MLPConfig(shuffle=2), WholeConfig()))


@unittest.skipUnless(HAS_PIPELINE_TEST, "the source distribution lacks the tests of pipelines")
class StockPipelineTest(unittest.TestCase):
    """The pipeline of a stock LLaVA."""

    def folder(self, place: Path) -> Path:
        return stock_folder("llava")

    def pipeline(self, place: Path, **options: Any) -> ImageTextToTextPipeline:
        folder = self.folder(place)
        model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
        return ImageTextToTextPipeline(model=model, processor=processor, max_new_tokens=10, **options)

    def examples(self) -> list[dict[str, Any]]:
        images = [Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 40, 3), np.uint8)) for seed in range(2)]
        return [
            {"images": image, "text": f"<image>{text}"} for image, text in zip(images, ("This is a ", "Here I see a "), strict=True)
        ]

    def test_run_pipeline_test(self) -> None:
        with tempfile.TemporaryDirectory() as place:
            torch.manual_seed(0)
            ImageTextToTextPipelineTests().run_pipeline_test(self.pipeline(Path(place)), self.examples())


class SightlinePipelineTest(StockPipelineTest):
    """The pipeline of our folder."""

    def folder(self, place: Path) -> Path:
        write_model(built(MLPConfig(shuffle=2), WholeConfig()), place)
        return place
