"""Fault injection for tests: named points in the code at which a process can be killed, signalled, or made to fail.

`fault_injection.hit("checkpoint.before_rename")` does nothing unless the environment variable `SIGHTLINE_FAULTS` names the point:

    SIGHTLINE_FAULTS="checkpoint.before_rename=kill@2,step.end=term@5"

kills the process at the second call of the first point and sends SIGTERM at the fifth call of the second. Actions: `kill`
(SIGKILL), `term` (SIGTERM), `enospc` and `eio` (OSError).
"""

import errno
import os
import signal
from collections import Counter

VARIABLE = "SIGHTLINE_FAULTS"
_passages: Counter[str] = Counter()


def hit(point: str) -> None:
    """Runs the fault that `SIGHTLINE_FAULTS` sets for this point, if any."""
    plan = os.environ.get(VARIABLE)
    if plan:
        _act(plan, point)


def _act(plan: str, point: str) -> None:
    _passages[point] += 1
    for entry in plan.split(","):
        name, _, action = entry.strip().partition("=")
        verb, _, at = action.partition("@")
        if name != point or _passages[point] != int(at or 1):
            continue
        if verb == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif verb == "term":
            os.kill(os.getpid(), signal.SIGTERM)
        elif verb == "enospc":
            raise OSError(errno.ENOSPC, "No space left on device (injected)", point)
        elif verb == "eio":
            raise OSError(errno.EIO, "Input/output error (injected)", point)
