"""Encoders, connectors, decoders and the vision-language model made of them.

Importing this package registers the model and its configuration with the Auto classes of transformers.
"""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from sightline.models.comalign import SightlineComAlign as SightlineComAlign
from sightline.models.comalign import SightlineComAlignConfig as SightlineComAlignConfig
from sightline.models.dual import SightlineDualConfig as SightlineDualConfig
from sightline.models.dual import SightlineDualEncoder as SightlineDualEncoder
from sightline.models.stored import StoredFeatures as StoredFeatures
from sightline.models.stored import StoredFeaturesConfig as StoredFeaturesConfig
from sightline.models.vlm import SightlineConfig as SightlineConfig
from sightline.models.vlm import SightlineForConditionalGeneration as SightlineForConditionalGeneration
from sightline.models.vlm import SightlineModel as SightlineModel

AutoConfig.register(SightlineConfig.model_type, SightlineConfig)
AutoModel.register(SightlineConfig, SightlineModel)
AutoModelForImageTextToText.register(SightlineConfig, SightlineForConditionalGeneration)
AutoConfig.register(StoredFeaturesConfig.model_type, StoredFeaturesConfig)
AutoModel.register(StoredFeaturesConfig, StoredFeatures)
