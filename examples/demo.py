"""Train a small CNN on real handwritten digits, from loss values alone and by backprop.

Run it with ``python examples/demo.py``; ``--max-queries 2000`` gives a short look.
"""

import argparse
import time

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from zoestim import ZOClassifier


class DigitsCNN(nn.Module):
    """Two convolutions with BatchNorm: 1,466 parameters for 8x8 images of 10 digits."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, num_classes),
        )

    def forward(self, x):
        return self.layers(x)


def train_by_backprop(X, y, epochs, seed):
    """The same network, batches of the same size, the true gradient."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = DigitsCNN()
        X, y = torch.as_tensor(X, dtype=torch.float32), torch.as_tensor(y)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        for _ in range(epochs):
            for rows in torch.randperm(len(X)).split(128):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(X[rows]), y[rows]).backward()
                optimizer.step()
            schedule.step()
    return net.eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-queries", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", type=int, default=1)
    options = parser.parse_args()

    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X / 16, y, random_state=0, stratify=y)

    model = ZOClassifier(
        DigitsCNN,
        sparsity=0.9,
        max_queries=options.max_queries,
        max_epochs=200,
        batch_size=128,
        random_state=options.seed,
        verbose=options.verbose,
    )
    start = time.perf_counter()
    model.fit(X_train, y_train)
    seconds = time.perf_counter() - start

    backprop = train_by_backprop(X_train, y_train, epochs=40, seed=options.seed)
    with torch.no_grad():
        predicted = backprop(torch.as_tensor(X_test, dtype=torch.float32)).argmax(1).numpy()

    n_parameters = sum(p.numel() for p in model.module_.parameters())
    print(
        f"\nCNN with BatchNorm, {n_parameters:,} parameters, digits: {len(X_train)} train, ", end=""
    )
    print(f"{len(X_test)} test images\n")
    print(f"{'':28}{'test accuracy':>14}{'queries':>10}{'seconds':>9}")
    accuracy = model.score(X_test, y_test)
    print(f"{'zoestim, loss values only':28}{accuracy:14.3f}{model.n_queries_:10,}{seconds:9.1f}")
    print(f"{'backprop, the true gradient':28}{(predicted == y_test).mean():14.3f}")
    print(f"\nthe fit ended by {model.termination_condition_} after {model.n_iter_} epochs")


if __name__ == "__main__":
    main()
