"""What a command prints of a library's errors, and when."""

import click
import pytest
from click.testing import CliRunner, Result

from rnn_runtime.command.command import Command
from rnn_runtime.errors import Argument, InputError


def run_failing(*parts: str | Argument, environment: dict[str, str] | None = None) -> Result:
    """Run a command with some options that fails with an error of these parts."""

    @click.command(cls=Command)
    @click.option("--image-size")
    @click.option("-0", "--null", is_flag=True)
    @click.option("--provider")
    @click.option("--plots/--no-plots")
    @click.option("--resume")
    def fail(**_: object) -> None:
        try:
            raise ZeroDivisionError("the cause")
        except ZeroDivisionError:
            raise InputError(*parts) from None

    return CliRunner().invoke(fail, env=environment or {})


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        (Argument("image_size"), "--image-size"),
        (Argument("null", True), "--null"),
        (Argument("provider", "cpu"), "--provider cpu"),
        (Argument("image_size", 64), "--image-size 64"),
        (Argument("plots", False), "--no-plots"),
        (Argument("resume", "a b.pt"), "--resume 'a b.pt'"),
        (Argument("batch_size"), "`batch_size`"),
        (Argument("batch_size", 3), "`batch_size=3`"),
    ],
)
def test_arguments_of_an_error_are_shown_as_options(argument: Argument, shown: str) -> None:
    assert run_failing("Choose ", argument, " here").output == f"Error: Choose {shown} here\n"


def test_debug_shows_the_traceback_and_the_cause_before_the_line() -> None:
    output = run_failing("wrong", environment={"RNN_DEBUG": "1"}).output

    assert output.startswith("Traceback (most recent call last):\n")
    assert "ZeroDivisionError: the cause" in output
    assert output.endswith("InputError: wrong\nError: wrong\n")


def test_options_are_checked_before_anything_is_imported() -> None:
    def check(ctx: click.Context) -> None:
        raise click.UsageError(f"{ctx.params['wrong']} is wrong")

    @click.command(cls=Command, check=check, requires=["not_installed"], imports=["not_importable"])
    @click.option("--wrong")
    def command(wrong: str) -> None:
        raise AssertionError(wrong)

    result = CliRunner().invoke(command, ["--wrong", "this"], prog_name="rnn-test")

    assert (result.exit_code, result.output) == (2, "Error: this is wrong; all options: rnn-test --help\n")


def test_a_missing_package_is_named_with_exit_code_3() -> None:
    @click.command(cls=Command, requires=["not_installed"], imports=["not_importable"])
    def command() -> None:
        raise AssertionError

    result = CliRunner().invoke(command)

    assert result.exit_code == 3
    assert result.output == "Error: not_installed is not installed. Install it with: pip install not_installed\n"
