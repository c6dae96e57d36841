"""Decides whether a name is a path on this machine or a repository on the Hub, and whether the Hub can be reached.

Every name of a model, tokenizer or data set that may lie on the Hub goes through `find_local`, so that a mistyped path never
becomes a request, and through `check_reachable`, so that without a network a command ends within seconds, not after many retries.
"""

import difflib
import threading
from pathlib import Path

from sightline.errors import ConfigError, SightlineError
from sightline.runtime.logs import logger

PATIENCE = 6.0  # seconds until the Hub counts as unreachable; a resolver alone may wait longer
_answers: dict[str, str] = {}  # why an endpoint cannot be reached, by endpoint; empty if it can


def is_path(name: str) -> bool:
    """Returns whether a name can only be a path on this machine.

    It is one if it exists, begins with `.`, `/` or `~`, is no `NAME` or `OWNER/NAME`, or if OWNER is a folder here.
    """
    if not name or "\0" in name or name[0] in "./~" or "\\" in name or name.endswith("/") or name.count("/") > 1:
        return True
    owner, slash, _ = name.partition("/")
    return Path(name).exists() or (bool(slash) and Path(owner).is_dir())


def find_local(name: str, kind: str = "model", error: type[SightlineError] = ConfigError) -> Path | None:
    """Returns the path that a name stands for, or None where it is an id on the Hub. Asks no network.

    Args:
        name: as the user gave it.
        kind: what it should be, for messages.
        error: class of the error that is raised.

    Raises:
        SightlineError: of class `error`: it is a path, and nothing lies there.
    """
    if not is_path(name):
        return None
    if not name or "\0" in name:
        raise error(f"{name!r} is no path and no id on the Hub ({kind}).", "Give a folder, or an id on the Hub.")
    path = Path(name)
    if not path.exists():
        raise error(f"{name} does not exist.", nearest_hint(path) or "Check the path.")
    return path


def nearest_hint(path: Path) -> str:
    """Returns a sentence with the existing path that is nearest to a missing one; empty if none is near."""
    if str(path).startswith("~") and path.expanduser().exists():
        return f"'~' is not expanded here: write {path.expanduser()}."
    for part in (path, *path.parents):
        if part.parent.is_dir():
            break
    else:
        return ""
    try:
        names = sorted(entry.name for entry in part.parent.iterdir() if not entry.name.startswith("."))
    except OSError:
        return ""
    wanted, at, stage = part.name.partition("@")  # as in RUN@STAGE
    near = difflib.get_close_matches(wanted, names, 1)
    if near:
        return f"Did you mean {part.parent / near[0]}{at}{stage}?"
    return f"{part.parent.resolve() if str(part.parent) == '.' else part.parent} has nothing of a similar name."


def check_reachable() -> str:
    """Asks the Hub once for a sign of life; returns why it cannot be reached, or an empty text.

    If it cannot be reached, `huggingface_hub` is set to offline mode for the rest of the process: its cache is used, and nothing is
    tried again and again. `HF_HUB_OFFLINE` and `HF_ENDPOINT` are respected.
    """
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return next((reason for reason in _answers.values() if reason), "HF_HUB_OFFLINE is set")
    if constants.ENDPOINT not in _answers:
        _answers[constants.ENDPOINT] = _ask(constants.ENDPOINT)
        if reason := _answers[constants.ENDPOINT]:
            logger.warning("%s cannot be reached (%s): only files in its cache are used", constants.ENDPOINT, reason)
            constants.HF_HUB_OFFLINE = True
    return _answers[constants.ENDPOINT]


def not_found(name: str, kind: str, detail: str) -> tuple[str, str]:
    """Returns message and remedy for a name that is no path and that the Hub did not give, with both readings of it."""
    near = nearest_hint(Path(name))
    near = f" {near}" if near.startswith("Did") else ""
    if reason := check_reachable():
        return (
            f"{name!r} is no path here, and as an id on the Hub it is not in the cache, and the Hub cannot be reached ({reason}).",
            f"Give the path of one ({kind}), or connect to the Hub.{near}",
        )
    return (
        f"{name!r} is no path here, and the Hub has no {kind} of this name that can be read: {detail}",
        f"Check the name.{near}",
    )


def _ask(endpoint: str) -> str:
    """Returns why an endpoint does not answer; empty if it does. Ends within `PATIENCE`, even if a resolver hangs."""
    found: list[str] = []

    def ask() -> None:
        from huggingface_hub.utils import get_session

        try:
            answer = get_session().head(endpoint, timeout=PATIENCE / 2)
            found.append(f"status {answer.status_code}" if answer.status_code >= 500 else "")
        except Exception as error:  # any error of the HTTP library, of a proxy or of TLS
            found.append(" ".join(str(error).split())[:100] or type(error).__name__)

    thread = threading.Thread(target=ask, name="hub", daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return found[0] if found else f"no answer within {PATIENCE:g} s"
