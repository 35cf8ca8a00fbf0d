"""The root of all errors."""

from __future__ import annotations


class StandpipeError(Exception):
    """The root of all errors of this package.

    Args:
        message: What is wrong, with the name and the value it is about.
        hint: The way out, one sentence; None takes the class's own.
    """

    retryable: bool = False
    default_hint: str = ""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint: str = hint if hint is not None else self.default_hint

    @property
    def message(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders (workers report to their parent), hint and extras included.
        return (_rebuild, (type(self), self.args, self.__dict__.copy()))


def _rebuild(
    kind: type[StandpipeError], args: tuple[object, ...], state: dict[str, object]
) -> StandpipeError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error
