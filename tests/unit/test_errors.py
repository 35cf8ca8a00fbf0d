"""The error tree: its drawing, its hints, and its way across process borders."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from collections.abc import Iterator

import pytest

from standpipe import errors
from standpipe.errors import (
    ConfigError,
    FieldError,
    LineError,
    ServerUnavailableError,
    StandpipeError,
)

CLASSES = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, StandpipeError)
]
BRANCH = re.compile(r"^(?P<indent>[│ ]*)(?:├──|└──) (?P<name>\w+)\s*(?P<note>.*)$")


def drawn() -> Iterator[tuple[str, str, bool]]:
    """Name, parent and whether it is marked retryable, for each line of the drawn tree."""
    above = ["StandpipeError"]
    for line in (errors.__doc__ or "").splitlines():
        if found := BRANCH.match(line):
            depth = len(found["indent"]) // 4 + 1
            del above[depth:]
            yield found["name"], above[-1], found["note"].endswith("retryable")
            above.append(found["name"])


def make(kind: type[StandpipeError]) -> StandpipeError:
    """An error of the class, with something for each argument that its constructor asks for."""
    samples = {
        "str": "volts",
        "int": 7,
        "Any": ("a", "report"),
        "Sequence[tuple[int, str]]": ((3, "$.volts"),),
    }
    asked = [
        parameter
        for parameter in inspect.signature(kind).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
    ]
    return kind("what is wrong", **{p.name: samples[p.annotation] for p in asked})


def test_the_drawn_tree_is_the_real_one() -> None:
    """Each class stands in the docstring once, under its parent, marked retryable if it is."""
    real = sorted(
        (kind.__name__, kind.__mro__[1].__name__, kind.retryable)
        for kind in CLASSES
        if kind is not StandpipeError
    )
    assert sorted(drawn()) == real


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_has_the_root_the_ending_and_an_explanation(kind: type) -> None:
    """One except clause catches them all, and a name says that it is an error."""
    assert issubclass(kind, StandpipeError)
    assert kind.__name__.endswith("Error")
    assert kind.__doc__


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_an_error_keeps_everything_when_it_is_pickled_or_copied(kind: type[StandpipeError]) -> None:
    """A worker's error arrives in its parent process with class, message, hint and extras."""
    error = make(kind)
    error.hint = "do this"
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is kind
        assert twin.message == str(twin) == "what is wrong"
        assert vars(twin) == vars(error)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_the_hint_is_the_classes_own_unless_another_is_given(kind: type[StandpipeError]) -> None:
    """A hint is one sentence or more; it is never part of the message."""
    error = make(kind)
    assert error.hint == kind.default_hint
    assert not error.hint or error.hint[-1] in ".?"
    assert error.hint not in str(error) or not error.hint


def test_a_given_hint_replaces_the_classes_own_even_if_empty() -> None:
    """None takes the default, an empty hint means that there is none."""
    assert ServerUnavailableError("down").hint == ServerUnavailableError.default_hint != ""
    assert ServerUnavailableError("down", hint="Start it.").hint == "Start it."
    assert ServerUnavailableError("down", hint="").hint == ""
    assert ConfigError("bad").hint == ""


def test_errors_about_a_field_and_a_line_say_which() -> None:
    """What a program needs to act on stands in attributes, not in the text alone."""
    field = FieldError("volts is nan", field="volts", value=float("nan"))
    assert field.field == "volts"
    assert field.value != field.value
    line = LineError("no event", line=3, text="a,b")
    assert (line.line, line.text) == (3, "a,b")


def test_what_is_wrong_with_the_input_is_never_retryable() -> None:
    """The same input fails again: only servers and full buffers get better by waiting."""
    assert not any(kind.retryable for kind in CLASSES if issubclass(kind, errors.InputError))
    assert not StandpipeError.retryable
