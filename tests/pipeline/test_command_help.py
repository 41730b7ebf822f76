"""Help in groups, short options, hints at likely mistakes, and completion in a shell."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.commands import COMMANDS, Run, installed

GROUPS = {
    "rnn-infer": ["Input", "Model and provider", "Output", "CUDA", "Help"],
    "rnn-export": ["Graph", "Parity", "Output", "Help"],
    "rnn-serve": ["Model and provider", "Input", "Service", "Limits", "CUDA", "Help"],
    "rnn-onnx": ["Commands", "Help"],
    "rnn-onnx doctor": ["Model and provider", "CUDA", "Help"],
    "rnn-onnx check": ["Model and provider", "Tolerance", "CUDA", "Help"],
    "rnn-onnx benchmark": ["Model and provider", "Timing", "CUDA", "Help"],
    "rnn-onnx compare": ["Model and provider", "Timing", "CUDA", "Help"],
    "rnn-onnx merge": ["Output", "Help"],
    "rnn-onnx ray": ["Input", "Model and provider", "Output", "Help"],
    "rnn-onnx write-images": ["Data", "Help"],
    "rnn-train": ["Data", "Model", "Optimization", "Augmentation", "Run and checkpoint", "Help"],
}


@pytest.mark.parametrize("command", GROUPS)
def test_help_lists_options_in_groups(run: Run, command: str) -> None:
    text = run(*command.split(), "-h").stdout

    assert text == run(*command.split(), "--help").stdout
    assert re.findall(r"^(\S.*):$", text, re.MULTILINE) == GROUPS[command]
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("command", [name for name in GROUPS if name != "rnn-onnx"])
def test_help_shows_no_ranges_and_defaults_in_one_manner(run: Run, command: str) -> None:
    text = " ".join(run(*command.split(), "--help").stdout.split())

    assert not re.search(r"<=|>=|RANGE|no-\w+\]|Default:", text)
    assert "[default: " in text


def test_the_default_of_a_preset_that_differs_is_shown(run: Run) -> None:
    text = " ".join(run("rnn-train", "--help").stdout.split())

    assert "--cell [rnn|gru|lstm] Kind of recurrent cell. [default: rnn; accurate: gru]" in text
    assert "--hidden-size INTEGER Width of the hidden state. [default: 128]" in text


def test_short_options_do_what_the_long_ones_do(
    run: Run, tmp_path: Path, digits_model: Path, digits_images: Path
) -> None:
    shutil.copytree(digits_images, tmp_path / "images")
    long = ("--model", digits_model, "--provider", "cpu", "--recursive", "--top-k", "2", "--batch-size", "7")
    short = ("-m", digits_model, "-p", "cpu", "-r", "-k", "2", "-b", "7")

    expected = run("rnn-infer", *long, "--threads", "1", "--format", "jsonl", "--output", "a.out", "images")
    found = run("rnn-infer", *short, "-j", "1", "-f", "jsonl", "-o", "b.out", "-q", "images")

    assert (expected.returncode, found.returncode) == (0, 0)
    assert (tmp_path / "a.out").read_text() == (tmp_path / "b.out").read_text()
    assert "360 images" in expected.stderr
    assert found.stderr == ""


def test_a_quiet_run_still_says_what_is_wrong(run: Run) -> None:
    result = run("rnn-infer", "-q", "-m", "gone.onnx", "image.png")

    assert result.returncode == 2
    assert result.stderr.startswith("Error: gone.onnx: ")


def test_quiet_training_and_export_print_nothing(run: Run, tmp_path: Path) -> None:
    trained = run("rnn-train", "-q", "--dataset", "digits", "--epochs", "1", "--hidden-size", "4", "--no-plots")
    exported = run("rnn-export", "-q", "model.pt", "model.onnx")

    assert (trained.returncode, trained.stdout, trained.stderr) == (0, "", "")
    assert (exported.returncode, exported.stdout, exported.stderr) == (0, "", "")
    assert (tmp_path / "model.onnx").is_file()


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("rnn-infer m.onnx images", "m.onnx is a model, not an image. Did you mean --model m.onnx?"),
        (
            "rnn-infer model.pt images",
            "model.pt is a checkpoint, not an image. Export it with: rnn-export model.pt",
        ),
        ("rnn-onnx ray m.onnx -o parts", "m.onnx is a model, not an image. Did you mean --model m.onnx?"),
        ("rnn-infer -0 images", "--null is for names on standard input. Add -, or leave it out"),
        ("rnn-infer --null images", "--null is for names on standard input"),
        (
            "rnn-infer --summary model.onnx images",
            "--summary is named like a checkpoint or model",
        ),
        ("rnn-export model.pt -", "OUTPUT must be the name of a file, such as model.onnx"),
        ("rnn-train photos", "Got unexpected extra argument (photos). Did you mean --data photos? All options: "),
        ("rnn-train digits", "Did you mean --dataset digits?"),
        ("rnn-train model.pt", "Did you mean --resume model.pt?"),
        ("rnn-train -o -", "--output is the checkpoint to write, not -. Choose a name such as model.pt"),
        ("rnn-train -o model.onnx", "--output is the checkpoint to write, not model.onnx"),
        ("rnn-train --epoch 3", "? All options: rnn-train --help"),
        ("rnn-infer --gpu images", "No such option: --gpu. Use --provider cuda"),
        ("rnn-infer --bach-size 3 images", "--batch-size"),
        ("rnn-infer --summary - images", "--summary takes a file name, such as summary.json"),
        ("rnn-train --learning-rate .005 --epochs .5", "Error: --epochs must be a whole number from 1 up, not .5"),
        ("rnn-infer -o - images", "--output takes a file name. For standard output, leave it out"),
        ("rnn-infer --doctor", "No such option: --doctor. Use rnn-onnx doctor; all options: rnn-infer --help"),
        ("rnn-infer -k3 --self-check", "No such option: --self-check. Use rnn-onnx check model.onnx"),
        ("rnn-infer --benchmark", "Use rnn-onnx benchmark model.onnx"),
        ("rnn-infer --benchmark --compare", "Use rnn-onnx benchmark model.onnx"),
        ("rnn-infer --compare", "Use rnn-onnx compare model.onnx"),
        ("rnn-infer --merge parts", "Use rnn-onnx merge PARTS"),
        ("rnn-onnx", "Missing command; all commands: rnn-onnx --help"),
        ("rnn-onnx cheque", "No such command 'cheque'"),
        ("rnn-onnx check -m model.onnx", "No such option: -m. Use the argument MODEL; all options: rnn-onnx check --"),
        ("rnn-onnx check --atoll 1", "all options: rnn-onnx check --help"),
        ("rnn-onnx compare --provider cpu", "all options: rnn-onnx compare --help"),
        (
            "rnn-infer -j 99999 images",
            "Error: --threads must be a whole number from 1 to 4096, not 99999; all options:",
        ),
        ("rnn-infer -p cpu --no-tf32 images", "--no-tf32 does nothing on the CPU"),
        ("rnn-export model.onnx model.pt", "CHECKPOINT comes first. Did you mean: rnn-export model.pt model.onnx?"),
        ("rnn-export model.onnx new.onnx", "model.onnx is an exported model. Name the checkpoint that rnn-train wrote"),
        ("rnn-export model.pt other.pt", "other.pt is named like a checkpoint. Choose a name for the model"),
        ("rnn-export model.pt -o model.onnx", "Use the second argument: rnn-export model.pt model.onnx"),
        ("rnn-train --lr 0.1", "No such option: --lr. Use --learning-rate"),
        ("rnn-train --layers 3", "Use --num-layers"),
    ],
)
def test_likely_mistakes_get_the_right_hint(run: Run, tmp_path: Path, line: str, hint: str) -> None:
    command, *arguments = line.split()

    result = run(command, *arguments)

    assert result.returncode == 2
    assert hint in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (
            "rnn-infer",
            {
                "--prov": {"--provider"},
                "--provider c": {"cuda", "cpu"},
                "--format j": {"jsonl"},
                "--model di": {"files"},
                "im": {"files"},
            },
        ),
        (
            "rnn-train",
            {
                "--cell ": {"rnn", "gru", "lstm"},
                "--data": {"--dataset", "--data", "--data-root"},
                "-o di": {"files"},
                "--data im": {"files"},
                "--tensorboard r": {"folders"},
            },
        ),
        ("rnn-export", {"--graph s": {"scan"}, "di": {"files"}}),
    ],
    ids=["rnn-infer", "rnn-train", "rnn-export"],
)
def test_bash_completes_options_choices_and_files(tmp_path: Path, command: str, expected: dict[str, set[str]]) -> None:
    variable = f"_{command.upper().replace('-', '_')}_COMPLETE"
    script = f"""
        eval "$({variable}=bash_source {command})"
        complete -p {command} >&2
        # bash offers files and folders itself, where the completion asks for them
        compopt() {{ [ "$2" = default ] && COMPREPLY=(files) || COMPREPLY=(folders); }}
    """
    for line in expected:
        words = line.split(" ")
        script += f"""
        COMP_WORDS=({command} {" ".join(words[:-1])} "{words[-1]}"); COMP_CWORD={len(words)}; COMPREPLY=()
        _{command.replace("-", "_")}_completion {command}
        echo "${{COMPREPLY[@]}}"
        """
    path = f"{Path(installed(command)).parent}{os.pathsep}{os.environ['PATH']}"

    result = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )

    found = [set(answer.split()) for answer in result.stdout.splitlines()]
    assert dict(zip(expected, found, strict=True)) == expected
    assert command in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_the_documented_line_for_bash_sets_up_all_commands(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "cli.md").read_text()
    (line,) = re.findall(r"```bash\n(.*)\n```", page)
    names = list(COMMANDS)
    path = f"{Path(installed('rnn-infer')).parent}{os.pathsep}{os.environ['PATH']}"

    result = subprocess.run(
        ["bash", "-c", f"{line}; complete -p {' '.join(names)}"],
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
    )

    assert (result.returncode, result.stderr) == (0, "")
    assert [text.split()[-1] for text in result.stdout.splitlines()] == names


def test_every_command_is_looked_at() -> None:
    assert set(COMMANDS) == {command.split()[0] for command in GROUPS}


def test_a_quiet_run_that_failed_says_so(run: Run, tmp_path: Path, digits_model: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"broken")

    result = run("rnn-infer", "-q", "-m", digits_model, "broken.png")

    assert result.returncode == 1
    assert result.stderr.startswith("1 image, 1 unreadable, ")
