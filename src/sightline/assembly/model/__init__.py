"""One model from a configuration or a folder. Importing this package registers the processor with transformers."""

from transformers import AutoProcessor

from sightline.assembly.model.processor import SightlineProcessor
from sightline.models import SightlineConfig

AutoProcessor.register(SightlineConfig, SightlineProcessor)
