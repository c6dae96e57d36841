"""Tasks: the query of each record, and how the answers are scored. One file each."""

from sightline.errors import UsageError
from sightline.evaluation.tasks.base import Query as Query
from sightline.evaluation.tasks.base import ScoreInfo as ScoreInfo
from sightline.evaluation.tasks.base import Task as Task
from sightline.evaluation.tasks.caption import Caption
from sightline.evaluation.tasks.choice import Choice
from sightline.evaluation.tasks.classify import Classify
from sightline.evaluation.tasks.composition import Composition
from sightline.evaluation.tasks.grounding import Grounding
from sightline.evaluation.tasks.half_truth import HalfTruth
from sightline.evaluation.tasks.retrieval import Retrieval
from sightline.evaluation.tasks.vqa import VQA
from sightline.evaluation.tasks.yes_no import YesNo
from sightline.registry import Registry

TASKS = Registry[Task](
    Task,
    "sightline.tasks",
    {task.name: task for task in (Caption, VQA, Choice, YesNo, Grounding, Retrieval, Composition, HalfTruth, Classify)},
)


def task_by_name(name: str, resamples: int = 1000) -> Task:
    """Gives a task: a built-in one, one of an installed package, or `MODULE:Class` of a loaded plug-in.

    Raises:
        UsageError: there is none of this name.
    """
    try:
        return TASKS.find(name)(resamples)
    except LookupError as error:
        raise UsageError(f"no task {name!r}: {error.args[0]}.") from None
