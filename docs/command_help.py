"""A hook of MkDocs: `::: help rnn-train` in a page becomes what `rnn-train --help` prints."""

import re
from importlib.metadata import entry_points

import click

_WIDTH = 78  # what click leaves of a terminal's 80 columns


def on_page_markdown(markdown: str, **_: object) -> str:
    """Called by MkDocs with the text of each page."""
    return re.sub(r"^::: help (\S.*)$", lambda match: f"```text\n{_help_text(match[1])}\n```", markdown, flags=re.M)


def _help_text(name: str) -> str:
    program, *words = name.split()
    (script,) = entry_points(group="console_scripts", name=program)
    command: click.Command = script.load()
    for word in words:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), word)
        assert found is not None
        command = found
    # With the command's own settings: click keeps the help option that it makes here.
    context = click.Context(command, info_name=name, terminal_width=_WIDTH, **command.context_settings)
    return command.get_help(context)
