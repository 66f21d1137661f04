"""How many steps the built-in solvers make in a second: ``python -m benchmarks.speed.solvers``.

A step of one simulation counts as one, so that a batch of B simulations makes B at a time. The
second column of figures is of a prototype in torch, with the same equations, on one thread of a
machine with other work: what the built-in solvers must not fall below. Solvers take turns, and a
row shows the median of the rounds.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.speed.measure import add_options, interleaved, print_table, start, write_json
from zoestim.solvers import Burgers1D, WakeFlow2D, simulate

# Solver, number of simulations, and the prototype's steps a second where they are known.
ROWS = [
    ("wake", 16, 1, None),
    ("wake", 16, 10, None),
    ("wake", 16, 100, 25_417),
    ("wake", 16, 500, 28_748),
    ("wake", 32, 1, 882),
    ("wake", 32, 10, 4_870),
    ("wake", 32, 100, 7_107),
    ("wake", 32, 500, 7_156),
    ("wake", 64, 10, 1_317),
    ("burgers", 32, 100, None),
    ("burgers", 32, 1000, None),
]
MADE_BEFORE = 10  # steps, such that states are no longer special


class Ready:
    """A solver with states to begin with; called, it makes a step from them.

    Parameters
    ----------
    name : {"wake", "burgers"}
        Which solver.
    resolution : int
        Of the wake, cells across the flow; of Burgers' equation, cells.
    n_simulations : int
        The size of the batch.
    """

    def __init__(self, name: str, resolution: int, n_simulations: int) -> None:
        spread = np.linspace(0, 1, n_simulations)
        self.solver: Any
        if name == "wake":
            self.solver = WakeFlow2D(resolution)
            self.conditions = {"Re": 97.65625 * 32**spread}
            states = self.solver.initial_states(n_simulations)
        else:
            self.solver = Burgers1D(resolution)
            self.conditions = {"viscosity": 0.005 * 12**spread}
            states = self.solver.initial_states(n_simulations, random_state=0)
        path = simulate(self.solver, states, self.conditions, n_steps=1, skip=MADE_BEFORE)
        self.states = torch.from_numpy(path[:, 0].copy())
        self.grid = " x ".join(map(str, sorted(self.solver.feature_shape[1:])))

    def on(self, device: str) -> "Ready":
        """Put the states on a device, and return this."""
        self.states = self.states.to(device)
        return self

    def __call__(self) -> Any:
        """Make a step of each simulation."""
        return self.solver.step(self.states, self.conditions)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Print the table and return its rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--solvers", nargs="+", choices=["wake", "burgers"])
    parser.add_argument("--most", type=int, default=1000, help="simulations at once")
    add_options(parser)
    options = parser.parse_args(arguments)
    chosen = [
        row for row in ROWS if row[0] in (options.solvers or row[0]) and row[2] <= options.most
    ]

    start(options)
    ready = {row: Ready(*row[:3]).on(options.device) for row in chosen}
    runs = interleaved(
        {str(row): (ready[row], row[2]) for row in chosen}, options.repeats, options.device
    )
    rows = [
        {
            "solver": row[0],
            "grid": ready[row].grid,
            "simulations": row[2],
            "ms/step": 1000 * runs[str(row)].median,
            "steps/s": row[2] / runs[str(row)].median,
            "prototype": row[3],
        }
        for row in chosen
    ]
    print_table(rows)
    write_json(options, {"rows": rows, "runs": [run.as_row() for run in runs.values()]})
    return rows


if __name__ == "__main__":
    main()
