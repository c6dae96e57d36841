"""Tasks: what is asked of a record, and how the answers are scored. One file each."""

from sightline.errors import UsageError
from sightline.evaluation.tasks.base import Query as Query
from sightline.evaluation.tasks.base import ScoreInfo as ScoreInfo
from sightline.evaluation.tasks.base import Task as Task
from sightline.evaluation.tasks.caption import Caption

TASKS: dict[str, type[Task]] = {
    "caption": Caption,
}


def task_by_name(name: str, resamples: int = 1000) -> Task:
    """Gives a task.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in TASKS:
        raise UsageError(f"no task {name!r}.", f"There are {', '.join(TASKS)}.")
    return TASKS[name](resamples)
