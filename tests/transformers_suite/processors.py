"""transformers' own processor tests and the pipeline test for any model, on ours and on a stock LLaVA's beside it.

Run by `make test-transformers`; the pipeline test needs a checkout of transformers' repository (see `fetch.py`).
"""

import functools
import tempfile
import unittest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaProcessor,
    ProcessorMixin,
)
from transformers.pipelines import ImageTextToTextPipeline
from transformers_tests.pipelines.test_pipelines_image_text_to_text import ImageTextToTextPipelineTests
from transformers_tests.test_processing_common import ProcessorTesterMixin

from sightline.assembly.model.build import ModelBundle, write_model
from sightline.assembly.model.processor import SightlineProcessor
from sightline.data.images.tilings import WholeConfig
from sightline.models.connectors.mlp import MLPConfig
from tests.composites import stock_folder
from tests.export.helpers import built

HAS_PIPELINE_TEST = hasattr(ImageTextToTextPipelineTests, "run_pipeline_test")


@functools.cache
def our_bundle() -> ModelBundle:
    return built(MLPConfig(shuffle=2), WholeConfig())


def stock_processor() -> LlavaProcessor:
    """The processor of a LLaVA with what the folder of the tests leaves to defaults."""
    folder = stock_folder("llava")
    found, config = AutoProcessor.from_pretrained(folder), AutoConfig.from_pretrained(folder)
    found.patch_size = config.vision_config.patch_size
    found.vision_feature_select_strategy = config.vision_feature_select_strategy
    found.num_additional_image_tokens = 1
    return found


class StockProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    """What a processor of transformers passes with a tokenizer of our tests."""

    processor_class = LlavaProcessor

    @classmethod
    def _setup_from_components(cls) -> ProcessorMixin:
        return stock_processor()


class SightlineProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    """Our processor."""

    processor_class = SightlineProcessor

    @classmethod
    def _setup_tokenizer(cls) -> Any:
        return our_bundle().tokenizer

    @staticmethod
    def prepare_processor_dict() -> dict[str, Any]:
        bundle = our_bundle()
        return {"processing": bundle.processing.model_dump(mode="json"), "token_grid": list(bundle.token_grid)}


@unittest.skipUnless(HAS_PIPELINE_TEST, "the source distribution lacks the tests of pipelines")
class StockPipelineTest(unittest.TestCase):
    """The pipeline of a stock LLaVA."""

    def pipeline(self, place: Path) -> ImageTextToTextPipeline:
        model = AutoModelForImageTextToText.from_pretrained(stock_folder("llava"))
        return ImageTextToTextPipeline(model=model, processor=stock_processor(), max_new_tokens=10)

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

    def pipeline(self, place: Path) -> ImageTextToTextPipeline:
        write_model(our_bundle(), place)
        model, processor = AutoModelForImageTextToText.from_pretrained(place), AutoProcessor.from_pretrained(place)
        return ImageTextToTextPipeline(model=model, processor=processor, max_new_tokens=10)
