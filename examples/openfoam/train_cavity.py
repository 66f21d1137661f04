"""
Correct OpenFOAM on a coarse mesh
=================================

OpenFOAM is a black box: programs in C++, files in, files out, no gradient. Here, a network of 56
parameters learns to correct its flow in a lid-driven cavity on 16 x 16 cells with an upwind scheme,
such that it follows the flow on 64 x 64 cells with a scheme of second order. Each step of the
solver is a process of its own, started by `SubprocessSolver`.

It needs OpenFOAM, which Debian and Ubuntu have as a package (67 MB), and matplotlib::

    apt-get install --no-install-recommends openfoam
    pip install "zoestim[plot]"
    python examples/openfoam/train_cavity.py --out cavity.json

``--check`` makes the reference data, checks the solver, and stops before the training.

Run once on two cores that others used too, in 11 minutes; ``cavity.json`` and ``cavity.png`` hold
the rest. One seed, two Reynolds numbers that were not trained on, eight roll-outs of ten steps:

==================================== ======== ============== =================
mean absolute error                           gap closed     steps of OpenFOAM
==================================== ======== ============== =================
coarse mesh                          0.0187
corrected, NON: single steps         0.0093   50 %           363
corrected, NOG: no solver gradient   0.0096   49 %           1,275
corrected, queries from nothing      0.0121   35 %           6,390
corrected, queries from NON          0.0085   54 %           6,390 + 363
==================================== ======== ============== =================

So begin with NON, which is nearly free, and let queries improve on it: from nothing, 1,476 of them
are not enough. Nearly all of the time is OpenFOAM's.
"""

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from zoestim import SolverInTheLoop
from zoestim.models import CorrectorCNN
from zoestim.solvers import Simulations, SubprocessSolver, check_solver, simulate

CASE = Path(__file__).resolve().parent / "cavity"
# Where Debian's package keeps OpenFOAM's global settings; an installation of one's own has set it.
FOAM = {"WM_PROJECT_DIR": os.environ.get("WM_PROJECT_DIR", "/usr/share/openfoam")}
N_CELLS, REFINED = 16, 4
STEP = 0.2  # of time: the lid needs 5 steps from wall to wall
# A tolerance of the solver is noise to finite differences, so it is tight where it is learned
# through.
COARSE = {"divScheme": "Gauss upwind", "deltaT": STEP / 4, "accuracy": 1e-12}
FINE = {"divScheme": "Gauss linear", "deltaT": STEP / 16, "accuracy": 1e-7}
TRAIN, TEST = (200.0, 400.0, 800.0), (300.0, 600.0)  # Reynolds numbers
FIRST, LAST = 5, 45  # frames of a trajectory; the lid starts to move at frame 0
N_STEPS = 10  # of a test

# %%
# Fields of OpenFOAM
# ------------------
#
# `write` and `read` are all that `SubprocessSolver` needs to know of OpenFOAM. A state is the
# velocity along x and y in each cell; the pressure is found anew in each step.

HEADER = "FoamFile {{ version 2.0; format ascii; class {}; object {}; }}\n"
VELOCITY = """
dimensions [0 1 -1 0 0 0 0];
internalField nonuniform List<vector> {n} ( {values} );
boundaryField
{{
    lid          {{ type fixedValue; value uniform (1 0 0); }}
    walls        {{ type noSlip; }}
    frontAndBack {{ type empty; }}
}}
"""
PRESSURE = """
dimensions [0 2 -2 0 0 0 0];
internalField uniform 0;
boundaryField
{
    "lid|walls"  { type zeroGradient; }
    frontAndBack { type empty; }
}
"""


def write(workdir, state, conditions):
    """Write the start of a run: the velocity, no pressure, and the viscosity."""
    for name in ("0", "constant"):
        (workdir / name).mkdir(exist_ok=True)
    # 17 digits give back the same bits.
    values = " ".join(f"({u:.17g} {v:.17g} 0)" for u, v in state.reshape(2, -1).T.tolist())
    velocity = VELOCITY.format(n=state[0].size, values=values)
    (workdir / "0" / "U").write_text(HEADER.format("volVectorField", "U") + velocity)
    (workdir / "0" / "p").write_text(HEADER.format("volScalarField", "p") + PRESSURE)
    viscosity = f"nu [0 2 -1 0 0 0 0] {1 / conditions['Re']:.17g};\n"
    properties = HEADER.format("dictionary", "transportProperties") + viscosity
    (workdir / "constant" / "transportProperties").write_text(properties)


def read(workdir, at=STEP):
    """Read the velocity at a time: of shape (2, n, n), rows from the bottom to the lid."""
    text = (workdir / f"{at:.8g}" / "U").read_text()
    size, _, values = text.split("nonuniform List<vector>")[1].partition("(")
    values = values[: values.index(";")].replace("(", " ").replace(")", " ").split()
    n = round(int(size) ** 0.5)
    return np.array(values, dtype=np.float64).reshape(n, n, 3).transpose(2, 0, 1)[:2]


# %%
# The solver and the reference
# ----------------------------


def make_case(folder, n_cells, end, settings):
    """Copy the case and make its mesh."""
    shutil.copytree(CASE, folder)
    lines = {"nCells": n_cells, "endTime": end, "writeInterval": STEP, **settings}
    text = "".join(f"{name} {value};\n" for name, value in lines.items())
    (folder / "system" / "settings").write_text(text)
    environment = {**os.environ, **FOAM}
    subprocess.run(["blockMesh"], cwd=folder, env=environment, check=True, capture_output=True)
    return folder


def make_solver(folder, pool):
    template = make_case(folder / "coarse", N_CELLS, STEP, COARSE)
    return SubprocessSolver(
        ["icoFoam"],
        write=write,
        read=read,
        workdir_template=template,
        env=FOAM,
        timeout=30,
        pool=pool,
    )


def reference(folder, reynolds):
    """Return a trajectory of the fine mesh on the coarse one, by means over 4 x 4 cells."""
    n, end = N_CELLS * REFINED, LAST * STEP
    case = make_case(folder / f"fine-{reynolds:g}", n, end, FINE)
    write(case, np.zeros((2, n, n)), {"Re": reynolds})
    environment = {**os.environ, **FOAM}
    subprocess.run(["icoFoam"], cwd=case, env=environment, check=True, capture_output=True)
    frames = np.stack([read(case, number * STEP) for number in range(FIRST, LAST + 1)])
    shape = (len(frames), 2, N_CELLS, REFINED, N_CELLS, REFINED)
    return frames.reshape(shape).mean(axis=(3, 5)).astype(np.float32)


def starts(truth, reynolds):
    """Cut trajectories into pieces; return their first frames and Re, and what follows."""
    frames = np.stack([truth[re] for re in reynolds])
    pieces = [frames[:, at : at + 1 + N_STEPS] for at in range(0, LAST - FIRST, N_STEPS)]
    re = np.tile(reynolds, len(pieces))
    pieces = np.concatenate(pieces)
    return Simulations(pieces[:, 0], {"Re": re}), pieces[:, 1:]


def look_at(solver, X, y):
    """Print how fast and how wrong the solver is, and whether it can be learned through."""
    began = time.perf_counter()
    found = simulate(solver, X.states, X.conditions, n_steps=N_STEPS)
    seconds = (time.perf_counter() - began) / (N_STEPS * len(X))
    print(f"solver: {1000 * seconds:.0f} ms a step, with {solver.pool} at once")
    for number in (1, 5, 10):
        wrong, changed = (
            np.abs(each - y)[:, number - 1].mean() for each in (found, X.states[:, None])
        )
        print(
            f"after {number:2} steps: MAE {wrong:.4f}; the flow itself has changed by {changed:.4f}"
        )
    report = check_solver(solver, X.states[:2], {"Re": X.conditions["Re"][:2]})
    print(f"check_solver: {report}")
    return {"ms_per_step": 1000 * seconds, "check": vars(report)}


# %%
# Training
# --------
#
# Two methods need no gradient of the solver: learning from single steps (NON), and from roll-outs
# as if the solver passed no gradient on (NOG). They come first, as they cost little. What the
# solver does with a correction is told by queries only; they begin with a new corrector, or with
# that of NON.

QUERIES = {"gradient": "cge", "sparsity": 0.5, "n_unroll": 3, "batch_size": 2, "max_epochs": 1000}
METHODS = {
    "NON": {"mode": "non", "batch_size": 30, "max_epochs": 100, "lr": 1e-2},
    "NOG": {"mode": "nog", "n_unroll": 3, "batch_size": 2, "max_epochs": 4, "lr": 1e-2},
    "queries": {**QUERIES, "lr": 1e-2},
    "NON + queries": {**QUERIES, "lr": 3e-3},
}


def train(name, solver, truth, corrector, max_queries):
    """Fit the corrector to the trajectories of the training Reynolds numbers."""
    settings = dict(METHODS[name])
    if "queries" in name:
        settings["max_queries"] = max_queries
    frames = np.stack([truth[re] for re in TRAIN])
    X, y = Simulations(frames[:, 0], {"Re": np.array(TRAIN)}), frames[:, 1:]
    model = SolverInTheLoop(solver, corrector, max_retries=0, random_state=0, verbose=1, **settings)
    began = time.perf_counter()
    model.fit(X, y)
    return model, time.perf_counter() - began


def error_by_step(found, y):
    return np.abs(found - y).mean(axis=(0, 2, 3, 4))


def compare(solver, truth, X, y, max_queries):
    """Train by each method; print and return what came of it, and the trajectories."""
    rows, found, non = {}, {}, None
    print(f"MAE over {N_STEPS} steps, Reynolds numbers {TEST}, which were not trained on:")
    for name in METHODS:
        corrector = CorrectorCNN(2, 1, hidden=(), kernel_size=3)  # 3 x 3 cells around, linear: 56
        if name.startswith("NON +"):
            corrector = non.corrector_
        model, seconds = train(name, solver, truth, corrector, max_queries)
        non = model if name == "NON" else non
        if not found:
            found["solver"] = model.predict(X, n_steps=N_STEPS, correct=False)
            rows["solver"] = {"mae": error_by_step(found["solver"], y).mean()}
            print(f"  solver        {rows['solver']['mae']:.4f}")
        found[name] = model.predict(X, n_steps=N_STEPS)
        errors = error_by_step(found[name], y)
        closed = 1 - errors.mean() / rows["solver"]["mae"]
        rows[name] = {
            "mae": errors.mean(),
            "gap_closed": closed,
            "mae_by_step": errors.tolist(),
            "score_in_training": [model.baseline_score_, model.corrected_score_],
            "loss_curve": list(model.loss_curve_),
            "n_parameters": sum(each.numel() for each in model.corrector_.parameters()),
            "n_updates": model.n_updates_,
            "n_queries": model.n_queries_,
            "n_solver_steps": model.n_solver_steps_,
            "n_failed_queries": model.n_failed_queries_,
            "seconds": seconds,
            "seconds_in_solver": model.fit_time_solver_,
        }
        print(
            f"  {name:13} {errors.mean():.4f}, {closed:.0%} of the gap closed: "
            f"{model.n_updates_} updates, {model.n_queries_} queries, {model.n_solver_steps_} "
            f"steps of OpenFOAM, {seconds:.0f} s, of which OpenFOAM {model.fit_time_solver_:.0f} s"
        )
    return rows, found


def draw(found, y, path):
    """Draw the error over time, and the last frame of one simulation."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(13, 3), layout="constrained")
    for name, each in found.items():
        axes[0].plot(np.arange(1, N_STEPS + 1), error_by_step(each, y), label=name)
    axes[0].set(xlabel="step", ylabel="mean absolute error", ylim=(0, None))
    axes[0].legend(fontsize=7)
    speed = np.linalg.norm(y[-1, -1], axis=0)
    shown = {"speed, reference": speed}
    for name in ("solver", "NON + queries"):
        each = found[name]
        shown[f"error of the speed, {name}"] = np.abs(np.linalg.norm(each[-1, -1], axis=0) - speed)
    largest = max(each.max() for name, each in shown.items() if "error" in name)
    for ax, (name, values) in zip(axes[1:], shown.items(), strict=True):
        limit = largest if "error" in name else None
        image = ax.imshow(values, origin="lower", vmin=0, vmax=limit, extent=(0, 1, 0, 1))
        ax.set_title(name, fontsize=9)
        figure.colorbar(image, ax=ax, shrink=0.8)
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--pool", type=int, default=2, help="programs at once")
    parser.add_argument("--max-queries", type=int, default=1500)
    parser.add_argument("--check", action="store_true", help="stop before the training")
    parser.add_argument("--out", type=Path, help="a JSON file; the picture goes beside it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, began = Path(name), time.perf_counter()
        with ThreadPoolExecutor(options.pool) as threads:
            runs = threads.map(lambda re: (re, reference(folder, re)), (*TRAIN, *TEST))
            truth = dict(runs)
        print(f"reference: {len(truth)} runs in {time.perf_counter() - began:.0f} s")
        X, y = starts(truth, TEST)
        with make_solver(folder, options.pool) as solver:
            written = look_at(solver, X, y)
            if not options.check:
                written["methods"], found = compare(solver, truth, X, y, options.max_queries)
                if options.out:
                    draw(found, y, options.out.with_suffix(".png"))
            print(f"steps that failed: {solver.n_failures}")
    if options.out:
        options.out.write_text(json.dumps(written, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
