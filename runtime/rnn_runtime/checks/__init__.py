"""Checks of a model and its installation: its accuracy, its speed, and what is missing here.

`rnn-onnx check`, `benchmark`, `compare` and `doctor` use them.
"""
