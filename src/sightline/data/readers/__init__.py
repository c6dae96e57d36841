"""Source formats, one reader per file. `data prepare --format NAME` looks the name up here."""

from sightline.data.readers import coco, csv_table, flickr8k, hub, imagefolder, llava, records, scenes, text, urls, webdataset
from sightline.data.readers.base import Format as Format
from sightline.data.readers.base import ImageInRoot as ImageInRoot
from sightline.data.readers.base import Item as Item
from sightline.data.readers.base import Skip as Skip
from sightline.data.readers.base import SourceOptions as SourceOptions
from sightline.data.readers.base import Tally as Tally
from sightline.data.readers.tables import PRESETS


def _table(name: str, licence: str = "", groups_by_image: bool = False) -> Format:
    preset = PRESETS[name]
    return Format(preset.reader(), ("split", *sorted(preset.keys)), licence, groups_by_image=groups_by_image)


FORMATS: dict[str, Format] = {
    "cauldron": _table("cauldron", "each subset has its own"),
    "chartqa": _table("chartqa", "GPL-3.0"),
    "coco": Format(coco.read, tuple(coco.KEYS), "annotations CC BY 4.0; each photo has its own"),
    "csv": Format(csv_table.read, tuple(csv_table.KEYS), groups_by_image=True),
    "docvqa": _table("docvqa"),
    "easy_vqa": _table("easy_vqa", "MIT"),
    "flickr8k": Format(flickr8k.read, tuple(flickr8k.KEYS), "non-commercial research and education"),
    "flickr30k": Format(flickr8k.read_30k, (), "non-commercial research and education"),
    "hf": Format(hub.read, tuple(hub.KEYS), takes="name", groups_by_image=True),
    "imagefolder": Format(imagefolder.read, tuple(imagefolder.KEYS), groups_by_image=True),
    "llava": Format(llava.read, tuple(llava.KEYS)),
    "localized_narratives": _table("localized_narratives", "CC BY 4.0", groups_by_image=True),
    "nlvr": _table("nlvr", "CC BY 4.0"),
    "parquet": _table("parquet", groups_by_image=True),
    "records": Format(records.read, ("id",)),
    "refcocog": _table("refcocog"),
    "scenes": Format(scenes.read, (), "made by Sightline; free of rights", takes="-"),
    "scienceqa": _table("scienceqa", "CC BY-NC-SA 4.0"),
    "sroie": _table("sroie", "MIT"),
    "text": Format(text.read, ()),
    "textcaps": _table("textcaps", "CC BY 4.0"),
    "textvqa": _table("textvqa", "CC BY 4.0"),
    "trl": _table("trl"),
    "urls": Format(urls.read, tuple(sorted(urls.KEYS)), "each image has its own", is_remote=True),
    "webdataset": Format(webdataset.read, tuple(webdataset.KEYS), groups_by_image=True),
}
