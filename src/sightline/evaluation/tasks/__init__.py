"""Tasks: what is asked of a record, and how the answers are scored. One file each."""

from sightline.evaluation.tasks.base import Task as Task
from sightline.evaluation.tasks.caption import Caption

TASKS: dict[str, type[Task]] = {
    "caption": Caption,
}
