"""The generator of compositional images as a source: `-` takes the place of a path.

Options: `count` images, `seed`, `level` 1 to 3, `size` in pixels, `questions` instead of captions, and `novel` to hold pairs of
color and shape out of every split but one.
"""

import io
from collections.abc import Iterator
from pathlib import Path

from sightline.data.readers.base import Item, Skip, SourceOptions, Tally
from sightline.data.scenes import NOVEL_PAIRS, generate


def read(path: Path, options: SourceOptions, tally: Tally) -> Iterator[Item | Skip]:
    """Items with their images as PNG files in memory."""
    picture: object = None
    data = b""
    novel = NOVEL_PAIRS if options.novel else ()
    made = generate(options.count, options.seed, options.level, options.size, ask=options.questions, novel=novel)
    for number, (record, image) in enumerate(made):
        if image is not picture:  # questions about one image follow each other
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            picture, data = image, buffer.getvalue()
        yield Item(record, (data,), f"scenes[{number}]")
