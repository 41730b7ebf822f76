"""onnxruntime: finding it, opening a session on the execution provider that was asked for, and running batches.

Only this room imports onnxruntime. `Classifier`, the checks and `rnn-export` use it; training does not.
"""
