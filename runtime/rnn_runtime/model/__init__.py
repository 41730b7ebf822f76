"""What a model is: its description, the metadata that travels in `model.onnx`, and that file with its SHA-256.

All three packages use it. It opens no session: that is `rnn_runtime.engine`.
"""
