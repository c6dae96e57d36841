"""Errors are the same text at each run, and the same error in each process."""

import pickle
import subprocess
import sys

import pytest

from sightline import errors
from sightline.errors import ConfigError, RecordError, SightlineError, without_addresses
from sightline.runtime.workers import GuardedPool, TaskFailure

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SightlineError)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"cannot read {object()!r}.", "cannot read <object object>."),
        ("<function f.<locals>.g at 0x7f269b5b5cb0> failed", "<function f.<locals>.g> failed"),
        ("<bound method A.b of <m.A object at 0x0000021F5A3C1D60>>", "<bound method A.b of <m.A object>>"),
        ("colour 0xff00ff at byte 0x1f of 'a at 0x3'", "colour 0xff00ff at byte 0x1f of 'a at 0x3'"),
        ("nothing", "nothing"),
    ],
)
def test_addresses_of_objects_are_left_out(text: str, expected: str) -> None:
    assert without_addresses(text) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_no_error_of_ours_shows_an_address(kind: type[SightlineError]) -> None:
    message = f"{object()!r} is wrong"
    error = kind("reason", message) if kind is RecordError else kind(message)
    assert error.message == "<object object> is wrong"
    assert "0x" not in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), str(error))


def test_a_remedy_shows_no_address_either() -> None:
    assert str(ConfigError("a.", f"Not {object()!r}.")) == "a. Not <object object>."


def fails(task: int) -> None:
    raise ValueError(f"{object()!r} {task}")


def test_no_failure_of_a_task_shows_an_address() -> None:
    with GuardedPool(fails, 0) as pool:
        outcome = pool.run(3)
    assert isinstance(outcome, TaskFailure)
    assert outcome.detail.startswith("ValueError: <object object> 3")


def test_a_broken_image_has_the_same_reason_in_two_processes() -> None:
    code = (
        "from sightline.data.images.opener import open_image\n"
        "try: open_image(b'\\x89PNG\\r\\n\\x1a\\n' + bytes(40))\n"
        "except Exception as error: print(repr(error), error)"
    )
    texts = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(texts) == 1
    assert "BytesIO object>" in texts.pop()
