"""`half_truth`: prefer a true phrase to the same phrase and a false one (CS-CLIP, arXiv 2602.23906)."""

from collections.abc import Sequence
from dataclasses import replace

from sightline.data.records import prompt_messages
from sightline.evaluation.counterfactual import COLOURS, SCENE_SIZES
from sightline.evaluation.tasks.base import Query, ScoreInfo
from sightline.evaluation.tasks.composition import Composition
from sightline.runtime.keyed import keyed_generator
from sightline.types import Components, Entity, Record, Relation

ATTRIBUTES = (frozenset(COLOURS.split()), frozenset(SCENE_SIZES))  # classes of words that exclude each other


class HalfTruth(Composition):
    """Records with one image and components; a case is right if `s(image, unit) > s(image, unit and wrong unit)`.

    The units are the entities and relations of the first caption. A wrong unit exchanges one word for another of its class: the
    noun or a color or size of an entity, or the relation. Nouns and relations come from the captions of all records that are asked,
    and none stands in a caption of the record. A model that reads texts as bags of words prefers the longer text. Chance is 50 %;
    the control `blind` is the text-only baseline. Differs: the paper takes the words from training captions.
    """

    name = "half_truth"
    scores = (ScoreInfo("accuracy", "accuracy", is_share=True), ScoreInfo("macro", "mean over kinds", is_detail=True))

    def __init__(self, resamples: int = 1000, seed: int = 0) -> None:
        super().__init__(resamples, seed)
        self._nouns: list[str] = []
        self._relations: list[str] = []

    def asks(self, record: Record) -> bool:
        return len(record.images) == 1 and bool(record.captions) and bool(record.components_of(record.captions[0]).entities)

    def survey(self, records: Sequence[Record]) -> None:
        """Collects nouns and relations of all captions, in order of first appearance."""
        components = [record.components_of(caption) for record in records for caption in record.captions]
        self._nouns = list(dict.fromkeys(item.text.split()[-1] for found in components for item in found.entities))
        self._relations = list(dict.fromkeys(item.relation for found in components for item in found.relations))

    def queries(self, record: Record, prompt: str) -> tuple[Query, ...]:
        own = record.components_of(record.captions[0])
        units = [self._of_entity(record, entity) for entity in own.entities]
        units += [self._of_relation(record, relation) for relation in own.relations]
        found = {unit.text: (kind, unit, both) for case in units if case is not None for kind, unit, both in [case]}
        if not found:
            return ()
        kinds, true, false = zip(*found.values(), strict=True)
        captions, negatives = (tuple(item.text for item in items) for items in (true, false))
        meta = {"negative_kinds": list(kinds), "negative_of": list(range(len(kinds)))}
        asked = replace(record, captions=captions, negatives=negatives, components=(*true, *false), meta=meta)
        return (Query(record.id, asked, prompt_messages(asked, prompt), "likelihood", (*captions, *negatives), captions),)

    def _of_entity(self, record: Record, entity: Entity) -> tuple[str, Components, Components] | None:
        """Returns the kind of change, the entity alone, and it with the wrong one."""
        words = entity.text.split()
        choices = [("object", len(words) - 1, self._nouns)]
        for place, word in enumerate(words[:-1]):
            choices += [("attribute", place, sorted(group)) for group in ATTRIBUTES if word in group]
        generator = keyed_generator("half truth", record.id, entity.text)
        for number in generator.permutation(len(choices)).tolist():
            kind, place, pool = choices[number]
            word = _other(record, words[place], pool, generator.permutation(len(pool)).tolist())
            if word is not None:
                wrong = Entity(" ".join([*words[:place], word, *words[place + 1 :]]))
                unit = Entity(entity.text, entity.box)
                text = f"{unit.text} and {wrong.text}"
                return kind, Components(unit.text, (unit,)), Components(text, (unit, wrong))
        return None

    def _of_relation(self, record: Record, relation: Relation) -> tuple[str, Components, Components] | None:
        order = keyed_generator("half truth", record.id, relation.text).permutation(len(self._relations)).tolist()
        words = _other(record, relation.relation, self._relations, order)
        if words is None:
            return None
        wrong = Relation(relation.subject, words, relation.object)
        things = (Entity(relation.subject), Entity(relation.object))
        both = Components(f"{relation.text} and {wrong.text}", things, (relation, wrong))
        return "relation", Components(relation.text, things, (relation,)), both


def _other(record: Record, word: str, pool: Sequence[str], order: Sequence[int]) -> str | None:
    """Returns the first other entry of a pool in an order that stands in no caption of a record, nor in a label of its boxes."""
    texts = f" {' | '.join((*record.captions, *(box.label for box in record.boxes)))} ".lower()
    return next((pool[k] for k in order if pool[k] != word and f" {pool[k].lower()}" not in texts), None)
