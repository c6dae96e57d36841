"""Records whose images are named but not there, for training on tables of features that others computed.

The name of an image, as the source gives it, takes the place of its file: it stays in `images`, and its hash in `image_info` is
made of the name, so that equal names are one image everywhere.
"""

import hashlib
from dataclasses import replace

from sightline.data.readers.base import ImageInRoot, Item, Tally
from sightline.data.readers.boxes import kept_boxes, pixel_fractions
from sightline.data.records import check_record
from sightline.errors import RecordError
from sightline.types import ImageInfo, Record


def name_only_key(name: str) -> str:
    """Returns the key that replaces the sha256 of an image that is known by name only."""
    return hashlib.sha256(b"name:" + name.encode("utf-8", "surrogatepass")).hexdigest()


def name_only_record(item: Item, tally: Tally) -> Record:
    """Returns the record of an item with the names of its images; sizes are those that the source claims, else 1 x 1.

    Raises:
        RecordError: `image_without_name`: the image lies in the source itself; or the reasons of `check_record`.
    """
    names = []
    for image in item.images:
        if not isinstance(image, ImageInRoot):
            raise RecordError("image_without_name", "the image lies in the source itself and has no name to keep")
        names.append(image.name)
    sizes = item.sizes or ((1, 1),) * len(names)
    infos = tuple(ImageInfo(name_only_key(name), max(size[0], 1), max(size[1], 1)) for name, size in zip(names, sizes, strict=True))
    boxes = item.record.boxes
    if item.pixel_boxes and item.sizes:
        boxes += kept_boxes([(label, pixel_fractions(box, item.sizes[0]), False) for label, box in item.pixel_boxes], tally)[0]
    elif item.pixel_boxes:
        tally.notes["box_without_size"] += len(item.pixel_boxes)
    record = replace(item.record, images=tuple(names), image_info=infos, boxes=boxes)
    check_record(record)
    return record
