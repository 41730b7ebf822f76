"""Which options of `rnn-infer` go together."""

import pytest

from tests.support.commands import Run


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--resume", "a.png"), "--resume continues the results in a file. Add --output"),
        (("--null", "a.png"), "--null is for names on standard input. Add -, or leave it out"),
        (("--output", "a", "--summary", "./a", "b.png"), "--summary and --output are the same file. Choose another"),
        (("--provider", "cpu", "--tf32", "a.png"), "--tf32 does nothing on the CPU. Leave it out, or choose"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_that_do_not_go_together_are_refused(run: Run, arguments: tuple[str, ...], problem: str) -> None:
    result = run("rnn-infer", *arguments)

    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"Error: {problem}")
    assert result.stderr.endswith("; all options: rnn-infer --help\n")
