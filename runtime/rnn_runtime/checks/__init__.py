"""Checks of a model and its installation: its accuracy, its speed, and what is missing here.

`rnn-infer --self-check`, `--benchmark` and `--doctor` use them.
"""
