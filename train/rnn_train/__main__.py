"""`python -m rnn_train` is `rnn-train`, for `torchrun -m rnn_train`."""

from rnn_train.cli import main

main(prog_name="rnn-train")
