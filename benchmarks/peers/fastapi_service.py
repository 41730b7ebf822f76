"""A web service as it is usually written: FastAPI, Pillow and onnxruntime, one run of the model per request."""

import io
import os

import numpy as np
import onnxruntime
from fastapi import FastAPI, UploadFile
from PIL import Image

app = FastAPI()
session = onnxruntime.InferenceSession(os.environ["MODEL"], providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name


@app.post("/classify")
def classify(image: UploadFile) -> dict[str, object]:
    pixels = np.asarray(Image.open(io.BytesIO(image.file.read())).convert("L"), np.float32) / 255
    logits = session.run(None, {name: pixels.reshape(1, 28, 28)})[0][0]
    exponentials = np.exp(logits - logits.max())
    probabilities = exponentials / exponentials.sum()
    label = int(probabilities.argmax())
    return {"label": str(label), "probability": float(probabilities[label])}
