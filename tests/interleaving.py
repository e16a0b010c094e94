"""Runs a compiled function as it is written, with something happening between two of its steps.

The steps are the compiled ones; the function itself runs in Python, so that its peer can act at a
moment that two threads would hit once in a million times.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest


class Moment(NamedTuple):
    """Just before or just after `step`, a function that the code under test calls by that name."""

    step: str
    after: bool


def moments(*steps: str) -> list[Moment]:
    """Each moment there is around `steps`."""
    return [Moment(step, after) for step in steps for after in (False, True)]


def run_with(
    patch: pytest.MonkeyPatch,
    function: Any,
    dev: Any,
    others: tuple[Any, ...],
    modules: tuple[ModuleType, ...],
    moment: Moment,
    act: Callable[[], None],
) -> int:
    """`function(dev, *others)`; `act` once, at `moment` of a step found in one of `modules`.

    dev: a named tuple of arrays; each step is given it as it is.
    """
    acted: list[None] = []

    def once() -> None:
        if not acted:
            acted.append(act())

    def step(real: Callable[..., Any], at_this: bool) -> Callable[..., Any]:
        def stepped(*args: Any) -> Any:
            if at_this and not moment.after:
                once()
            result = real(*(dev if type(arg) is type(dev) else _plain(arg) for arg in args))
            if at_this:
                once()
            return result

        return stepped

    homes = [module for module in modules if hasattr(module, moment.step)]
    assert homes, f"no step {moment.step}"
    for module in modules:
        for name, value in list(vars(module).items()):
            if hasattr(value, "py_func") and value is not function:
                here = module is homes[0] and name == moment.step
                patch.setattr(module, name, step(value, here))
    records = type(dev)(*(_records(part) for part in dev))
    result = int(function.py_func(records, *others))
    assert acted, f"{moment}: that moment did not come"
    patch.undo()
    return result


def _records(part: Any) -> Any:
    """A structured array whose elements have attributes, as they have when compiled."""
    structured = isinstance(part, np.ndarray) and part.dtype.names
    return part.view(np.recarray) if structured else part


def _plain(arg: Any) -> Any:
    return arg.view(np.ndarray) if isinstance(arg, np.recarray) else arg
