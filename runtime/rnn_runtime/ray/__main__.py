"""`python -m rnn_runtime.ray`."""

from rnn_runtime.ray.cli import main

main(prog_name="python -m rnn_runtime.ray")
