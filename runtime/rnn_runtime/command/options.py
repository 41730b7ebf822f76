"""Options in groups, and rules for their combinations."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import click
from click.core import ParameterSource

from rnn_runtime.files.atomic import REMOTE
from rnn_runtime.model.values import converted


class Option(click.Option):
    """An option that the help lists in a group, with its default at the end of its text.

    Args:
        arguments: Passed to `click.Option`.
        group: Heading of the group.
        default_text: How the help shows the default; None for its value.
        options: Passed to `click.Option`. `type` may also be an annotation of `rnn_runtime.model.values`, or a
            `Literal`: the values that the library takes are those that the option takes.
    """

    def __init__(self, *arguments: Any, group: str, default_text: str | None = None, **options: Any) -> None:
        options["type"] = _click_type(options.get("type"))
        super().__init__(*arguments, **options)
        self.group = group
        default = options.get("default")
        if default_text is None and default is not None:
            default_text = format_value(default)
        notes = [f"default: {default_text}"] if default_text else []
        notes += [f"environment: {self.envvar}"] if self.envvar else []
        self._text = f"{self.help}  [{'; '.join(notes)}]" if notes else self.help or ""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The option's names and its text for the help."""
        record = super().get_help_record(ctx)
        return record and (record[0], self._text)


class _Number(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.2 on
    """A number that an annotation describes."""

    def __init__(self, hint: Any) -> None:
        self.hint = hint
        self.name = "integer" if get_args(hint)[0] is int else "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number that was typed."""
        try:
            return converted(value, self.hint, typed=True)
        except ValueError as error:  # in the words of the library
            assert param is not None
            raise click.UsageError(f"{long_name(param)} {error}", ctx) from None


def _click_type(kind: Any) -> Any:
    if get_origin(kind) is Annotated:
        return _Number(kind)
    return click.Choice(get_args(kind)) if get_origin(kind) is Literal else kind


class PathOrStorage(click.Path):
    """A path of this machine, as a `Path`, or a name in object storage, which stays text."""

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A name in object storage isn't looked up on the disk."""
        return value if isinstance(value, str) and value.startswith(REMOTE) else super().convert(value, param, ctx)


def format_value(value: object) -> str:
    """A value as help and errors show it: `on`, `0.1`, `48x64`."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def option_group(name: str) -> Callable[..., Decorator]:
    """Make a decorator like `click.option` for the options of a group."""
    return partial(click.option, cls=Option, group=name)


class Rule(NamedTuple):
    """Options that are allowed only under a condition.

    Attributes:
        options: The options' parameter names.
        allowed: Decides it from the values of all parameters.
        otherwise: The error, after the option's name.
    """

    options: tuple[str, ...]
    allowed: Callable[[Mapping[str, Any]], bool]
    otherwise: str


def check_rules(ctx: click.Context, rules: Iterable[Rule]) -> None:
    """Check the options that were given.

    Raises:
        click.UsageError: an option isn't allowed together with the others.
    """
    for rule in rules:
        for name in rule.options:
            if is_given(ctx, name) and not rule.allowed(ctx.params):
                raise click.UsageError(f"{given_name(ctx, name)} {rule.otherwise}")


def is_given(ctx: click.Context, name: str) -> bool:
    """Whether an option was given on the command line."""
    return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE


def given_name(ctx: click.Context, name: str) -> str:
    """The option of a parameter for an error: `--batch-size`, or `--no-tf32` where that was given."""
    option = next(param for param in ctx.command.params if param.name == name)
    return option.secondary_opts[0] if ctx.params[name] is False and option.secondary_opts else long_name(option)


def long_name(param: click.Parameter) -> str:
    """The long form of an option: `--batch-size`."""
    return max(param.opts, key=len)
