"""A DataLoader with two workers and PyTorch eager. Arguments: weights, folder, output."""

import csv
import glob
import os
import sys

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.peers.networks import ArticleNetwork


class Folder(Dataset[tuple[str, Tensor]]):
    def __init__(self, folder: str) -> None:
        self.paths = sorted(glob.glob(os.path.join(folder, "*")))
        self.transform = transforms.Compose([transforms.Resize((28, 28)), transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[str, Tensor]:
        return self.paths[index], self.transform(Image.open(self.paths[index]).convert("L"))


if __name__ == "__main__":
    weights, folder, output = sys.argv[1:]
    model = ArticleNetwork("rnn", 28)
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.eval()
    with open(output, "w", newline="") as file, torch.inference_mode():
        writer = csv.writer(file)
        for paths, images in DataLoader(Folder(folder), batch_size=256, num_workers=2):
            labels = model(images.reshape(-1, 28, 28)).argmax(dim=1)
            writer.writerows(zip(paths, labels.tolist()))
