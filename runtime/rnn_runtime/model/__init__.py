"""A model's description, its metadata in `model.onnx`, and that file with its SHA-256.

All three packages use it. Sessions are opened in `rnn_runtime.engine`.
"""
