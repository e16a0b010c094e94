"""What a wrong command line is answered with: one line that names what was wrong and what would do.

Owns: the words for each way to get a command line wrong, the exit statuses, and how a command ends.
Rules: status 2 for what the user got wrong, before anything has started; 1 for a run that failed;
no traceback for either. A name is suggested only if it is really close; else all names are given.
"""

import re
import sys
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Final, NoReturn

import click

from toolstack.loadspec import ConfigError

BAD_INPUT: Final = 2
FAILED: Final = 1
INTERRUPTED: Final = 130

PROGRAM: Final = "./run.sh"
# What run.sh does itself, before any Python: its `case` names the same.
OF_RUN_SH: Final = {
    "bench": "How fast it is, against the memory's limit and fio + nbdkit.",
    "test": "Lint, check types, run every test; arguments go to pytest.",
    "python": "The environment's Python, with grantlab importable.",
}
CLOSE: Final = 0.6  # of difflib's ratio, dashes left out: with them "--guests" is close to "--out"


class RunEnded(Exception):
    """A run that did not come to a good end: what to say, and the exit status."""

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status


class Within(click.ParamType[float]):
    """A number from `least` (or above it) to `most`, refused in the words of the other settings."""

    def __init__(self, kind: type[float], least: float, most: float, above: bool = False) -> None:
        self.name = kind.__name__
        self._kind, self._least, self._most, self._above = kind, least, most, above

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number. Raises click.BadParameter."""
        try:
            number = self._kind(value)
        except ValueError:
            number = None
        if number is None or not self._least <= number <= self._most:
            self.fail(f"{value!r} is not {self}", param, ctx)
        if self._above and number == self._least:
            self.fail(f"{value!r} is not {self}", param, ctx)
        return number

    def __str__(self) -> str:
        if self._above:
            return f"above {self._least:g}, at most {self._most:g}"
        return f"in {self._least:g}..{self._most:g}"


class Numbers(click.ParamType[list[int]]):
    """Whole numbers from `least` to `most`, each once and in order: 5,10 or 1-15 or 1-4,8."""

    name = "numbers"

    def __init__(self, least: int, most: int) -> None:
        self._least, self._most = least, most

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[int]:
        """The numbers. Raises click.BadParameter."""
        if isinstance(value, list):
            return value
        found: set[int] = set()
        for piece in str(value).split(","):
            match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", piece.strip())
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
            if not self._least <= first <= last <= self._most:
                self.fail(
                    f"{value!r} is not numbers in {self._least}..{self._most}, as 5,10 or 1-15",
                    param,
                    ctx,
                )
            found |= set(range(first, last + 1))
        return sorted(found)


def output_directory(out: str | Path) -> Path:
    """Where to write, made now: not when everything has been computed. Raises ConfigError."""
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out: '{out}' cannot be written: {error.strerror}") from None
    return Path(out)


class _OneLine(click.Command):
    """Whatever a command line's end is, it is said in one line and is the exit status."""

    @property
    def program(self) -> str:
        """What a user types for it."""
        return f"{PROGRAM} {self.name}"

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run the command line and exit. A `standalone_mode` that is asked for is ignored."""
        kwargs.update(prog_name=self.program, standalone_mode=False)
        try:
            super().main(*args, **kwargs)
        except click.ClickException as error:
            _fail(explain(error), BAD_INPUT)
        except ConfigError as error:
            _fail(str(error), BAD_INPUT)
        except RunEnded as error:
            _fail(str(error), error.status)
        except click.Abort:  # Ctrl-C where `__main__` does not listen, as in a user's own program
            _fail("interrupted", INTERRUPTED)
        sys.exit(0)


class Command(_OneLine):
    """A command of flags only."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the flags. Raises click.UsageError at anything else."""
        ctx.allow_extra_args = True  # so that what click would say of them is not said
        try:
            rest = super().parse_args(ctx, args)
        except click.BadOptionUsage as error:
            error.ctx = ctx  # which the parser leaves out
            raise
        if rest:
            only = f"it takes only flags: {', '.join(_flags(ctx))}"
            raise click.UsageError(f"{_name(ctx)}: unexpected argument {rest[0]!r}; {only}", ctx)
        return rest


class Group(_OneLine, click.Group):
    """Commands, and the program whose they are."""

    program = PROGRAM
    elsewhere: ClassVar[Mapping[str, str]] = OF_RUN_SH  # commands that are not ours to run


def explain(error: click.ClickException) -> str:
    """What was wrong, and what would do."""
    if isinstance(error, click.NoSuchCommand):
        assert error.ctx is not None and isinstance(error.ctx.command, click.Group)
        group = error.ctx.command
        known = [*group.commands, *(group.elsewhere if isinstance(group, Group) else ())]
        advice = _advice(error.command_name, known, "the commands are")
        return f"no such command {error.command_name!r}; {advice}"
    ctx = getattr(error, "ctx", None)
    if isinstance(error, click.NoSuchOption) and ctx is not None:
        advice = _advice(error.option_name, _flags(ctx), "its flags are")
        return f"{_name(ctx)}: no such flag {error.option_name}; {advice}"
    if isinstance(error, click.BadOptionUsage) and ctx is not None:
        return f"{_name(ctx)}: {_misused(ctx.command, error.option_name)}"
    if isinstance(error, click.MissingParameter) and ctx is not None and error.param is not None:
        return f"{_name(ctx)}: {error.param.opts[0]} is needed"
    if isinstance(error, click.BadParameter) and ctx is not None and error.param is not None:
        return f"{_name(ctx)}: {error.param.opts[0].lstrip('-')}: {error.message}"
    return error.format_message()


def _misused(command: click.Command, name: str) -> str:
    """Of a flag that lacks its value, or was given one that it does not take."""
    (flag,) = (p for p in command.params if name in (*p.opts, *p.secondary_opts))
    assert isinstance(flag, click.Option)
    if flag.is_flag:
        return f"{name} takes no value"
    return f"{name} needs a value, {flag.metavar}: {flag.help}"


def _advice(name: str, known: Iterable[str], all_of_them: str) -> str:
    bare = {each.lstrip("-"): each for each in known}
    closest = get_close_matches(name.lstrip("-").lower(), bare, n=1, cutoff=CLOSE)
    if closest:
        return f"did you mean {bare[closest[0]]}?"
    return f"{all_of_them} {', '.join(bare.values())}"


def _flags(ctx: click.Context) -> list[str]:
    """Every flag that `ctx`'s command takes."""
    return [
        name
        for param in ctx.command.get_params(ctx)
        for name in (*param.opts, *param.secondary_opts)
    ]


def _name(ctx: click.Context) -> str:
    """What the user calls the command: `figure`, `bench`."""
    return ctx.command_path.removeprefix(PROGRAM).strip()


def _fail(message: str, status: int) -> NoReturn:
    click.echo(f"grantlab: error: {' '.join(message.split()).rstrip('.')}", err=True)
    sys.exit(status)
