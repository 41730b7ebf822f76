"""onnxruntime: finding it, opening a session on the requested execution provider, and running batches.

Only this package imports onnxruntime. `Classifier`, the checks and `rnn-export` use it; training doesn't.
"""
