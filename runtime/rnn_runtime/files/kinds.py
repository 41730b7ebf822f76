"""What the ending of a file's name says about its content."""

CHECKPOINT_SUFFIXES, MODEL_SUFFIXES = (".pt", ".pth"), (".onnx",)
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm"})
