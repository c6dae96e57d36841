"""Entities and relations of the sentences about a scene, known by construction instead of extracted from the words.

Entities are named with their attributes, `small red circle`, and groups with their number, `two red circles`. An entity has a box
if exactly one thing of the scene can be called that, and a relation has boxes if the scene has one such pair: phrases of false
sentences have none where they name nothing. Places in the image (`at the top left`) are no relation of two things.
"""

from sightline.data.scenes.language import RELATION_WORDS, SceneCaption, counted, named
from sightline.data.scenes.statements import Counted, Inventory, Phrase, Reads, Related, ThingAt, related
from sightline.data.scenes.world import Scene
from sightline.types import Components, Entity, Relation

SIGN = "sign"


def components(caption: SceneCaption, scene: Scene) -> Components:
    """Returns the entities and relations that a true or false sentence names."""
    match caption.statement:
        case ThingAt(phrase):
            return Components(caption.text, (_entity(phrase, scene),))
        case Related(first, relation, second):
            words = RELATION_WORDS[relation]
            pairs = [
                (one, other)
                for one, thing in enumerate(scene.things)
                for other, beside in enumerate(scene.things)
                if one != other and first.matches(thing) and second.matches(beside) and related(thing, relation, beside)
            ]
            found = Relation(named(first), words, named(second), pairs[0] if len(pairs) == 1 else None)
            return Components(caption.text, (_entity(first, scene), _entity(second, scene)), (found,))
        case Counted():
            return Components(caption.text, (_group(caption.statement, scene),))
        case Reads(text):
            return Components(caption.text, (_sign(scene),), (Relation(SIGN, "reads", text),))
        case Inventory(groups, text):
            entities = (*(_group(group, scene) for group in groups), _sign(scene))
            return Components(caption.text, entities, (Relation(SIGN, "reads", text),))


def _entity(phrase: Phrase, scene: Scene) -> Entity:
    return Entity(named(phrase), _only_box(phrase, scene))


def _group(group: Counted, scene: Scene) -> Entity:
    return Entity(counted(group.phrase, group.count), _only_box(group.phrase, scene) if group.count == 1 else None)


def _sign(scene: Scene) -> Entity:
    return Entity(SIGN, None if scene.sign is None else len(scene.things))  # its box follows those of the things


def _only_box(phrase: Phrase, scene: Scene) -> int | None:
    """Returns the number of the only thing that can be called that; None if there are none or several."""
    found = [number for number, thing in enumerate(scene.things) if phrase.matches(thing)]
    return found[0] if len(found) == 1 else None
