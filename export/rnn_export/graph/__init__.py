"""The ONNX graph of a model, built node by node, in one of three forms.

`build.py` puts it together; each form of the recurrent net has a module of its own. `rnn_export.export` uses it.
"""
