"""From what a user gives to pixels: finding image files, limits, decoding, and decoding many images ahead of the model.

Training and inference both use it, so an image becomes the same pixels in both. It knows nothing of onnxruntime.
"""
