"""A hook of MkDocs: `::: help rnn-train` in a page becomes what `rnn-train --help` prints."""

import re
from importlib import import_module
from importlib.metadata import entry_points

import click

_WIDTH = 78  # what click leaves of a terminal's 80 columns


def on_page_markdown(markdown: str, **_: object) -> str:
    """Called by MkDocs with the text of each page."""
    return re.sub(r"^::: help (\S.*)$", lambda match: f"```text\n{_help_text(match[1])}\n```", markdown, flags=re.M)


def _load(name: str) -> click.Command:
    module = name.removeprefix("python -m ")
    if module != name:
        return import_module(f"{module}.cli").main  # type: ignore[no-any-return]
    (script,) = entry_points(group="console_scripts", name=name)
    return script.load()  # type: ignore[no-any-return]


def _help_text(name: str) -> str:
    command = _load(name)
    # With the command's own settings: click keeps the help option that it makes here.
    context = click.Context(command, info_name=name, terminal_width=_WIDTH, **command.context_settings)
    return command.get_help(context)
