"""Small copies of pictures for a report, made in child processes: what could not be decoded a moment ago still cannot hurt."""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sightline.data.check.examine import ExamineTask, ImagePosition, image_file
from sightline.data.dataset import Dataset
from sightline.data.images.opener import DEFAULT_LIMITS, open_image
from sightline.errors import DataError
from sightline.runtime.workers import GuardedPool, TaskFailure

SIDE, LEAST = 176, 96


@dataclass(frozen=True)
class Thumbnailer:
    """Shrinks one picture; goes to the children."""

    folders: tuple[Path, ...]

    def __call__(self, task: ExamineTask) -> bytes:
        """A JPEG of at most 176 pixels a side; a PNG where the picture is as small as that, enlarged if it is very small.

        Raises:
            RecordError: the reasons of `open_image`.
        """
        picture = open_image(image_file(self.folders[task.spot.folder], task.names, task.spot.image), DEFAULT_LIMITS)
        is_small = max(picture.size) <= SIDE
        factor = LEAST // max(picture.size)
        if factor > 1:
            picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG") if is_small else picture.save(buffer, "JPEG", quality=80)
        return buffer.getvalue()


def make_thumbnails(
    datasets: tuple[Dataset, ...], spots: Iterable[ImagePosition], workers: int, seconds: float = 60.0
) -> dict[ImagePosition, bytes]:
    """Small copies of the pictures at these spots; those that cannot be shown are left out."""
    tasks = []
    for spot in dict.fromkeys(spots):
        try:
            record = datasets[spot.folder].record(spot.record)
        except DataError:
            continue
        if spot.image < len(record.images):
            tasks.append(ExamineTask(spot, record.images, None))
    with GuardedPool(Thumbnailer(tuple(dataset.path for dataset in datasets)), workers, seconds) as pool:
        outcomes = list(pool.map(tasks))
    return {task.spot: made for task, made in zip(tasks, outcomes, strict=True) if not isinstance(made, TaskFailure)}
