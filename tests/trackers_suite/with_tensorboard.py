"""What TensorBoard has stored of a short training."""

import io
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.trackers_suite.helpers import followed, numbers


def test_tensorboard_has_losses_rates_norms_and_samples(tmp_path: Path) -> None:
    found = followed(tmp_path, "tensorboard")
    stored = EventAccumulator(str(found.run / "scenes"), size_guidance={"images": 0, "tensors": 0, "scalars": 0})
    stored.Reload()
    for name, values in numbers(found).items():
        assert {event.step: event.value for event in stored.Scalars(name)} == pytest.approx(values, rel=1e-6), name
    for step, texts in found.texts.items():
        assert len(texts) == 2
        for record, text in texts.items():
            (image,) = [event for event in stored.Images(f"generated/{record}") if event.step == step]
            assert Image.open(io.BytesIO(image.encoded_image_string)).size == (64, 64)
            (kept,) = [event for event in stored.Tensors(f"generated/{record}/text_summary") if event.step == step]
            assert kept.tensor_proto.string_val[0].decode() == f"{text} (true: {found.truths[record]})"
