"""The article's training script. Arguments: torchvision's root of FashionMNIST, seed, epochs.

Prints the seconds of training and the accuracy on the test images, as JSON.
"""

import json
import sys
import time

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from benchmarks.peers.networks import ArticleNetwork

root, seed, epochs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.manual_seed(seed)
train_loader = DataLoader(datasets.FashionMNIST(root, train=True, transform=transforms.ToTensor()), 100, shuffle=True)
test_loader = DataLoader(datasets.FashionMNIST(root, train=False, transform=transforms.ToTensor()), 100)
model = ArticleNetwork("rnn", 28)
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=0.001)

start = time.perf_counter()
for epoch in range(epochs):
    for step, (images, labels) in enumerate(train_loader):
        loss = criterion(model(images.reshape(-1, 28, 28)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 100 == 0:
            print(f"Epoch [{epoch + 1}/{epochs}], Step [{step + 1}/600], Loss: {loss.item():.4f}", file=sys.stderr)
seconds = time.perf_counter() - start

with torch.no_grad():
    right = sum((model(x.reshape(-1, 28, 28)).argmax(1) == y).sum().item() for x, y in test_loader)
print(json.dumps({"seconds": seconds, "accuracy": right / 10_000}))
