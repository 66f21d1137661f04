"""Clusters of Dask and Ray, as people have them, give the bits of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# In a process of its own: a cluster starts threads, processes and warnings of its own.
SCRIPT = """
import sys, warnings
import joblib, numpy as np, torch
from sklearn.model_selection import GridSearchCV
from zoestim import BlackBox, ZOClassifier, estimate_gradient
from zoestim.backends import JoblibBackend

def start(kind):
    if kind == "dask":
        import distributed
        processes = {"n_workers": 2, "threads_per_worker": 2, "dashboard_address": ":0"}
        return distributed.Client(distributed.LocalCluster(**processes))
    import ray
    from ray.util.joblib import register_ray
    register_ray()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)

def weights(model):
    return torch.cat([p.detach().flatten() for p in model.module_.parameters()])

def main(kind):
    start(kind)
    X = np.linspace(-1, 1, 60).reshape(20, 3) ** 3
    y = np.arange(20) % 2
    net = torch.nn.Sequential(
        torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(), torch.nn.Linear(8, 2)
    ).double()
    box = BlackBox(lambda params, inputs: np.round(inputs @ params, 3), np.ones((3, 2)))
    for module in (net, torch.nn.Sequential(torch.nn.Linear(3, 3).double(), box)):
        loss = torch.nn.CrossEntropyLoss()
        alone = estimate_gradient(module, loss, X, y, smoothing=0.1)
        backend = JoblibBackend(2, kind)
        for _ in range(2):
            found = estimate_gradient(module, loss, X, y, smoothing=0.1, backend=backend)
            assert torch.equal(found.gradient.values, alone.gradient.values)
        backend.close()
    settings = dict(module=net, max_epochs=2, batch_size=7, sparsity=0.5, random_state=0)
    settings["n_pruning_queries"] = 8
    alone = ZOClassifier(**settings).fit(X, y)
    with joblib.parallel_config(backend=kind):
        found = ZOClassifier(**settings).fit(X, y)
        assert torch.equal(weights(found), weights(alone))
        assert len({row["worker"] for row in found.query_log_.rows}) >= 1
        search = GridSearchCV(ZOClassifier(**settings), {"lr": [0.1, 0.2]}, cv=2).fit(X, y)
        assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    print("the same bits")

if __name__ == "__main__":
    main(sys.argv[1])
"""


@pytest.mark.parametrize(("kind", "package"), [("dask", "distributed"), ("ray", "ray")])
@pytest.mark.timeout(240)  # Ray takes 30 seconds to start, and each of its workers imports torch
def test_a_cluster_gives_the_bits_of_one_process(kind: str, package: str, tmp_path: Path):
    pytest.importorskip(package)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(script), kind],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "RAY_AUTH_MODE": "disabled"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "the same bits" in done.stdout
