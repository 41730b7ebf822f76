"""The usual script: Pillow and onnxruntime, an image at a time. Arguments: model, folder, output."""

import csv
import glob
import os
import sys

import numpy as np
import onnxruntime
from PIL import Image

model, folder, output = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
with open(output, "w", newline="") as file:
    writer = csv.writer(file)
    for path in sorted(glob.glob(os.path.join(folder, "*"))):
        image = Image.open(path).convert("L").resize((28, 28))
        pixels = np.asarray(image, np.float32)[None] / 255
        (logits,) = session.run(None, {name: pixels})
        writer.writerow([path, int(logits[0].argmax())])
