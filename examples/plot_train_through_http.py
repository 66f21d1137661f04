"""
Train a model that answers over HTTP
====================================

A server holds a model: frozen random features, a small part that can be adapted, scores rounded to
two digits. It gives no gradient, only scores, and it is not a good server: it takes its time, fails
on 5 % of its calls and sometimes does not answer at all.

zoestim trains the small part through the API alone, with four queries under way at once. The result
is the one that a sound server gives, to the last bit.

Run it with ``python examples/plot_train_through_http.py``; ``--max-queries 500`` is a short look.
The table at its end needs pandas, the figure matplotlib.
"""

import argparse
import contextlib
import hashlib
import http.client
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

N_PIXELS, N_FEATURES, N_CLASSES = 64, 32, 10
START = {"weight": np.zeros((N_FEATURES, N_CLASSES)), "bias": np.zeros(N_CLASSES)}

# %%
# The server
# ----------
#
# It runs in a process of its own and needs neither torch nor zoestim. A call brings raw float64:
# the parameters, then the images. `faults` is the share of calls that fail. A twentieth as many
# hang and are then dropped.

FROZEN = np.random.default_rng(0).normal(scale=0.4, size=(N_PIXELS, N_FEATURES))
LATENCY, HANG = 0.003, 1.0  # seconds


def scores(body):
    """Return what the model gives, rounded: nothing that one could differentiate."""
    numbers = np.frombuffer(body)
    weight, bias, images = np.split(numbers, [N_FEATURES * N_CLASSES, (N_FEATURES + 1) * N_CLASSES])
    features = np.round(8 * np.tanh(images.reshape(-1, N_PIXELS) @ FROZEN)) / 8
    return np.round(features @ weight.reshape(N_FEATURES, N_CLASSES) + bias, 2)


class Service(ThreadingHTTPServer):
    """Answers, fails or hangs, and counts what it did."""

    daemon_threads = True

    def __init__(self, faults):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults, self.random = faults, random.Random(0)
        self.lock = threading.Lock()
        self.counts = {"calls": 0, "failed": 0, "hung": 0, "answered": 0}
        self.answered = set()

    def fate(self):
        """Draw what becomes of a call."""
        with self.lock:
            drawn = self.random.random()
            fate = "failed" if drawn < self.faults else "answered"
            fate = "hung" if drawn > 1 - self.faults / 20 else fate
            self.counts["calls"] += 1
            self.counts[fate] += 1
            return fate


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # one connection for many calls
    disable_nagle_algorithm = True

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        fate = self.server.fate()
        time.sleep(HANG if fate == "hung" else LATENCY)
        if fate == "answered":
            with self.server.lock:
                self.server.answered.add(hashlib.sha256(body).digest())
            self.reply(200, scores(body).tobytes())
        elif fate == "failed":
            self.reply(500, b"the model server is busy")
        else:
            self.close_connection = True

    def do_GET(self):
        with self.server.lock:
            counts = {**self.server.counts, "distinct": len(self.server.answered)}
        self.reply(200, json.dumps(counts).encode())

    def reply(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Say nothing."""


def serve(faults):
    """Serve until whoever started this process closes its input, or is no more."""
    with Service(faults) as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        print(service.server_port, flush=True)
        sys.stdin.read()
        service.shutdown()


@contextlib.contextmanager
def server(faults):
    """Start the server; give its port."""
    here = serve.__code__.co_filename  # a gallery does not define __file__
    command = [sys.executable, here, "--serve", str(faults)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        yield int(process.stdout.readline())


# %%
# The client
# ----------
#
# To zoestim the API is a function of parameters and a batch. Whatever goes wrong is an exception.
#
# - A connection cannot be shared by threads, nor sent to a process. It is opened when it is first
#   needed and then kept. With `query_timeout` each query has a thread of its own, so connections
#   are kept in a pool and not by thread.
# - The connection has a timeout too. `query_timeout` leaves a hung query to itself; this one ends
#   it.


class Remote:
    """The model behind the API, as ``f(params, X) -> scores``."""

    def __init__(self, port, timeout=2.0):
        self.port, self.timeout = port, timeout
        self.idle = deque()

    def __call__(self, params, X):
        sent = (params["weight"], params["bias"], X.reshape(len(X), -1))
        body = b"".join(np.ascontiguousarray(part, np.float64).tobytes() for part in sent)
        return np.frombuffer(self.request("POST", body)).reshape(len(X), N_CLASSES)

    def counts(self):
        """Ask the server what it did."""
        return json.loads(self.request("GET"))

    def request(self, method, body=None):
        try:
            connection = self.idle.pop()
        except IndexError:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout)
        try:
            connection.request(method, "/", body)
            response = connection.getresponse()
            answer = response.read()
        except BaseException:
            connection.close()
            raise
        self.idle.append(connection)
        if response.status != 200:
            raise OSError(f"{response.status}: {answer.decode()}")
        return answer

    def close(self):
        while self.idle:
            self.idle.pop().close()

    def __getstate__(self):
        return {**vars(self), "idle": deque()}  # for workers that are processes


# %%
# Training
# --------
#
# Four threads wait for the server at the same time. A query that fails is asked again after 0.1 s,
# then 0.2 s, and so on; it counts once. Each answer is written to a journal beside the checkpoint:
# killed and started again, the fit would not ask for it twice.


def train(faults, max_queries, folder, data):
    """Train through a server with so many faults; return the model and what happened."""
    from zoestim import BlackBox, ZOClassifier  # not above: the server has no use for it

    X_train, X_test, y_train, y_test = data
    with server(faults) as port:
        remote = Remote(port)
        model = ZOClassifier(
            BlackBox(remote, START),
            gradient="rge",
            n_directions=31,
            sparsity=0,
            smoothing=0.1,
            lr=0.2,
            batch_size=256,
            max_epochs=10_000,
            max_queries=max_queries,
            n_jobs=4,
            backend="threading",
            query_timeout=0.3,
            max_retries=5,
            checkpoint=f"{folder}/faults-{faults}.safetensors",
            journal_queries=True,
            random_state=0,
        )
        began = time.perf_counter()
        model.fit(X_train, y_train)
        seconds = time.perf_counter() - began
        counts = remote.counts()  # before score, which asks too
        accuracy = model.score(X_test, y_test)
        remote.close()
    return model, {"accuracy": accuracy, "seconds": seconds, **counts}


def digits():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    X, y = load_digits(return_X_y=True)
    return train_test_split(X / 16 - 0.3, y, random_state=0, stratify=y)


def accuracy_before(data):
    """Return the accuracy of the model as it is served: all scores are zero."""
    _, X, _, y = data
    untrained = scores(b"".join(part.tobytes() for part in (*START.values(), X)))
    return float((untrained.argmax(1) == y).mean())


def same_bits(first, second):
    """Return whether two fits have the same parameters and losses, to the last bit."""
    pairs = zip(first.module_.parameters(), second.module_.parameters(), strict=True)
    same = all(a.detach().numpy().tobytes() == b.detach().numpy().tobytes() for a, b in pairs)
    return same and first.loss_curve_ == second.loss_curve_


# %%
# What happened
# -------------
#
# `distinct` counts the different queries that the server answered. It is the number of queries that
# the fit has asked for: none was lost, and each was counted once however often it was asked.


def report(data, found):
    (model, faulty), (reference, sound) = found
    print(f"test accuracy before {accuracy_before(data):.3f}, after {faulty['accuracy']:.3f}\n")
    print(f"{'':16}" + "".join(f"{name:>10}" for name in faulty))
    for name, row in (("faulty server", faulty), ("sound server", sound)):
        cells = (
            f"{value:10.3g}" if isinstance(value, float) else f"{value:10}"
            for value in row.values()
        )
        print(f"{name:16}" + "".join(cells))
    print(f"\nqueries of the fit: {model.n_queries_}; calls beyond one a query: ", end="")
    print(faulty["calls"] - model.n_queries_)
    print(f"the same bits as through the sound server: {same_bits(model, reference)}\n")
    frame = model.query_log_.to_frame()
    seconds = frame.groupby("worker")["seconds"].describe(percentiles=[0.5, 0.95])
    seconds["asked again"] = frame.groupby("worker")["attempts"].sum() - seconds["count"]
    print(model.query_log_)
    print("seconds a query (those at the current parameters are not in it):")
    print(seconds.drop(columns=["std", "min"]).round(3).to_string())


def plot(model):
    """Draw how long queries took, those that were asked again apart."""
    import matplotlib.pyplot as plt

    rows = model.query_log_.rows
    once, again = (
        rows["seconds"][chosen] for chosen in (rows["attempts"] == 1, rows["attempts"] > 1)
    )
    bins = np.geomspace(rows["seconds"].min(), rows["seconds"].max(), 40)
    _, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    axes.hist([once, again], bins, stacked=True, label=["asked once", "asked again"])
    axes.set(xscale="log", yscale="log", xlabel="seconds a query", ylabel="queries")
    axes.legend()
    plt.show()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--max-queries", type=int, default=1_200)
    parser.add_argument("--faults", type=float, default=0.05)
    parser.add_argument("--no-plot", action="store_true")
    parser.add_argument("--serve", type=float, metavar="FAULTS", help="be the server")
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve)
        return
    data = digits()
    with tempfile.TemporaryDirectory() as folder:
        found = [
            train(faults, options.max_queries, folder, data) for faults in (options.faults, 0.0)
        ]
    report(data, found)
    if not options.no_plot:
        with contextlib.suppress(ImportError):
            plot(found[0][0])


if __name__ == "__main__":
    main()
