"""Scenes as records with their images, and the split that each belongs to.

`generate` is the source behind `data prepare --format scenes`. A record's split depends on the index alone, or, with
`novel`, on the things too: images that show a held-out pair of color and shape form the split `novel`, and no text of any
other split names such a pair.
"""

from collections.abc import Collection, Iterator

from PIL import Image

from sightline.data.scenes.components import components
from sightline.data.scenes.drawing import check_size, render
from sightline.data.scenes.language import Negative, SceneCaption, captions, named, negatives
from sightline.data.scenes.questions import Question, questions
from sightline.data.scenes.statements import Phrase
from sightline.data.scenes.world import COLORS, SHAPES, Scene, make_scene
from sightline.errors import UsageError
from sightline.types import Box, Message, Part, Record

# Four of 48 pairs, no color or shape twice: 8 % of the images of level 1, 16 % of level 2, a quarter of level 3.
NOVEL_PAIRS = (("blue", "star"), ("green", "triangle"), ("red", "ring"), ("yellow", "cross"))


def generate(
    count: int,
    seed: int,
    level: int,
    size: int = 64,
    offset: int = 0,
    *,
    num_captions: int = 3,
    ask: bool = False,
    val: float = 0.1,
    test: float = 0.1,
    novel: Collection[tuple[str, str]] = (),
) -> Iterator[tuple[Record, Image.Image]]:
    """Makes the records of scenes `offset` to `offset + count - 1`, each with its image.

    Args:
        count: number of images.
        seed: names the series; scene i of a series is always the same.
        level: 1 one thing; 2 two things in a relation; 3 three to six things and a sign to read.
        size: side of the images in pixels: 32 to 1024, at level 3 from 64.
        offset: index of the first scene.
        num_captions: captions a record, 1 to 6, the canonical one first (levels 2 and 3 have at least five to tell).
        ask: questions instead of captions: several records an image, which follow each other and share the Image object and
            the path.
        val, test: shares of the indices that go to these splits.
        novel: (color, shape) pairs that only the split `novel` shows and names, such as `NOVEL_PAIRS`.

    Yields:
        Records whose only image path is `ID.png`, with the id of the scene, and the image in memory.

    Raises:
        UsageError: an argument is out of range.
    """
    if count < 0:
        raise UsageError(f"count is {count}.", "Choose 0 or more.")
    check_size(size, has_sign=level == 3)
    held_out = _checked_pairs(novel)
    split_of(0, val, test)
    for index in range(offset, offset + count):
        scene = make_scene(seed, level, index)
        is_novel = bool(scene.pairs & held_out)
        split = "novel" if is_novel else split_of(index, val, test)
        avoid = frozenset[tuple[str, str]]() if is_novel else held_out
        if ask:
            records = question_records(scene, questions(scene, avoid), split)
        else:
            scene_captions = captions(scene, num_captions)
            records = [caption_record(scene, scene_captions, negatives(scene, scene_captions, avoid), split)]
        image = render(scene, size)
        for record in records:
            yield record, image


def split_of(index: int, val: float = 0.1, test: float = 0.1) -> str:
    """Returns the split of an index: a hash of it (the finaliser of SplitMix64) against the two shares.

    Raises:
        UsageError: a share is negative, or both exceed 1.
    """
    if not (val >= 0 and test >= 0 and val + test <= 1):
        raise UsageError(f"Split shares are val={val}, test={test}.", "Choose shares from 0 to 1 that leave room for train.")
    mask = 2**64 - 1
    word = (index + 0x9E3779B97F4A7C15) & mask
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & mask
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & mask
    share = ((word ^ (word >> 31)) >> 11) / 2**53
    return "val" if share < val else "test" if share < val + test else "train"


def scene_id(scene: Scene) -> str:
    """Returns `scenes-SEED-LEVEL-INDEX`, which is unique over all series."""
    return f"scenes-{scene.seed}-{scene.level}-{scene.index:06d}"


def caption_record(scene: Scene, scene_captions: list[SceneCaption], false: list[Negative], split: str) -> Record:
    """Returns a record with captions, boxes, hard negatives, and the entities and relations of all these sentences.

    Its meta has `level`, `seed`, `index`, `objects`, `sign`, `canonical`, and, with one entry for each negative,
    `negative_kinds` and `negative_of` (the number of the caption that it is a false version of).
    """
    return Record(
        id=scene_id(scene),
        images=(f"{scene_id(scene)}.png",),
        captions=tuple(caption.text for caption in scene_captions),
        boxes=boxes(scene),
        negatives=tuple(negative.caption.text for negative in false),
        components=tuple(components(caption, scene) for caption in _distinct([*scene_captions, *(item.caption for item in false)])),
        split=split,
        meta={
            **_description(scene),
            "canonical": scene_captions[0].text,
            "negative_kinds": [negative.kind for negative in false],
            "negative_of": [negative.of for negative in false],
        },
    )


def _distinct(sentences: list[SceneCaption]) -> list[SceneCaption]:
    return list({caption.text: caption for caption in sentences}.values())


def question_records(scene: Scene, asked: list[Question], split: str) -> list[Record]:
    """Returns a record for each question with its preferred answer; `answers` has all accepted ones."""
    return [
        Record(
            id=f"{scene_id(scene)}-{question.kind}",
            images=(f"{scene_id(scene)}.png",),
            messages=(
                Message("user", (Part(), Part(question.text))),
                Message("assistant", (Part(question.answers[0]),)),
            ),
            boxes=boxes(scene),
            answers=question.answers,
            split=split,
            meta={**_description(scene), "question_kind": question.kind},
        )
        for question in asked
    ]


def boxes(scene: Scene) -> tuple[Box, ...]:
    """Returns one box for each thing, labelled with size, color and shape, and one for the sign."""
    found = [Box(named(Phrase(thing.shape, thing.color, thing.size)), thing.box) for thing in scene.things]
    return (*found, Box("sign", scene.sign.box)) if scene.sign is not None else tuple(found)


def _description(scene: Scene) -> dict[str, object]:
    objects = [
        {"shape": thing.shape, "color": thing.color, "size": thing.size, "center": [thing.x, thing.y]} for thing in scene.things
    ]
    sign = {} if scene.sign is None else {"sign": scene.sign.text}
    return {"level": scene.level, "seed": scene.seed, "index": scene.index, "objects": objects, **sign}


def _checked_pairs(novel: Collection[tuple[str, str]]) -> frozenset[tuple[str, str]]:
    for color, shape in novel:
        if color not in COLORS or shape not in SHAPES:
            raise UsageError(f"There is no {color} {shape}.", f"Colors are {', '.join(COLORS)}; shapes are {', '.join(SHAPES)}.")
    return frozenset(novel)
