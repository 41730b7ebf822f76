"""The ONNX graph of a model, built node by node: from raw pixels to probabilities.

`onnx_model.py` builds the model and chooses the form of the recurrent net: step by step (`unrolled.py`), all layers
of neighbouring steps at once (`wavefront.py`), a loop (`scan.py`), or ONNX's own RNN, GRU and LSTM (`operators.py`).
"""
