"""Which option needs what: rules that a command lists in one table."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import click
from click.core import ParameterSource


class Rule(NamedTuple):
    """Options that may be given only under a condition.

    Attributes:
        options: Names of the options' parameters.
        allowed: Whether the values of all parameters allow them.
        otherwise: What a person is told, after the option's name.
    """

    options: tuple[str, ...]
    allowed: Callable[[Mapping[str, Any]], bool]
    otherwise: str


def check_rules(ctx: click.Context, rules: Iterable[Rule]) -> None:
    """Check the options that were given.

    Raises:
        click.UsageError: one isn't allowed beside the others.
    """
    for rule in rules:
        for name in rule.options:
            if is_given(ctx, name) and not rule.allowed(ctx.params):
                raise click.UsageError(f"{option_name(ctx.command, name)} {rule.otherwise}")


def is_given(ctx: click.Context, name: str) -> bool:
    """Whether an option stands on the command line."""
    return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE


def option_name(command: click.Command, name: str) -> str:
    """The option of a parameter as it is written, `--image-size`."""
    return next(max(param.opts, key=len) for param in command.params if param.name == name)
