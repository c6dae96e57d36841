"""Source formats, one reader per file. `data prepare --format NAME` looks the name up here."""

from sightline.data.sources import coco, csv_table, flickr8k, llava, records, scenes
from sightline.data.sources.base import Format as Format
from sightline.data.sources.base import Item as Item
from sightline.data.sources.base import Located as Located
from sightline.data.sources.base import Skip as Skip
from sightline.data.sources.base import SourceOptions as SourceOptions
from sightline.data.sources.base import Tally as Tally

FORMATS: dict[str, Format] = {
    "coco": Format(coco.read, tuple(coco.KEYS), "annotations CC BY 4.0; each photo has its own"),
    "csv": Format(csv_table.read, tuple(csv_table.KEYS)),
    "flickr8k": Format(flickr8k.read, tuple(flickr8k.KEYS), "non-commercial research and education"),
    "llava": Format(llava.read, tuple(llava.KEYS)),
    "records": Format(records.read, ()),
    "scenes": Format(scenes.read, (), "made by Sightline; free of rights", is_generator=True),
}
