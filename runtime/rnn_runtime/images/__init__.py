"""From what a user names to pixels: finding image files, their limits, decoding, and decoding many ahead of the model.

Training and inference both use it, so an image becomes the same pixels in both. It knows nothing of onnxruntime.
"""
