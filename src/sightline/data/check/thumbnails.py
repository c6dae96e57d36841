"""Makes thumbnails for a report in child processes, so that a damaged image cannot end the command."""

import io
from collections.abc import Iterable
from dataclasses import dataclass

from PIL import Image

from sightline.data.check.examine import ExamineTask
from sightline.data.dataset import Dataset
from sightline.data.images.reader import ImageLocation, read_image
from sightline.errors import DataError
from sightline.runtime.workers import GuardedPool, TaskFailure
from sightline.types import Record

SIDE, LEAST = 176, 96


@dataclass(frozen=True)
class Thumbnailer:
    """Shrinks one image; goes to the children."""

    datasets: tuple[Dataset, ...]

    def __call__(self, task: ExamineTask) -> bytes:
        """Returns a JPEG of at most 176 pixels a side; a PNG where the image is as small as that, enlarged if it is very small.

        Raises:
            RecordError: the reasons of `read_image`.
        """
        image = read_image(self.datasets[task.location.folder], task.record, task.location.image)
        factor = LEAST // max(image.size)
        if factor > 1:
            image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
        return shrunk(image, SIDE, quality=80)


def shrunk(image: Image.Image, side: int, quality: int) -> bytes:
    """Returns a JPEG of at most `side` pixels a side; a PNG where the image is as small as that."""
    is_small = max(image.size) <= side
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG") if is_small else image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def make_thumbnails(
    datasets: tuple[Dataset, ...], locations: Iterable[ImageLocation], workers: int, seconds: float = 60.0
) -> dict[ImageLocation, bytes]:
    """Returns small copies of the images at these locations; those that cannot be shown are left out."""
    tasks = []
    for location in dict.fromkeys(locations):
        try:
            record = datasets[location.folder].record(location.record)
        except DataError:
            continue
        if location.image < len(record.images):
            tasks.append(ExamineTask(location, Record("", images=record.images)))  # no image_info: changed images are shown too
    with GuardedPool(Thumbnailer(datasets), workers, seconds) as pool:
        outcomes = list(pool.map(tasks))
    return {task.location: made for task, made in zip(tasks, outcomes, strict=True) if not isinstance(made, TaskFailure)}
