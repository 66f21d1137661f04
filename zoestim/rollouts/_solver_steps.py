"""How often the solver was asked, over the runs of a fit that goes on from a checkpoint."""

from __future__ import annotations

from skorch.callbacks import Callback

from zoestim.evaluation import Meter, Spent


class SolverSteps(Callback):
    """Keeps the count of a meter with a checkpoint, to which that of the next run is added.

    Parameters
    ----------
    meter : Meter
        That of the solver.
    """

    def __init__(self, meter: Meter):
        self.meter = meter

    def state_dict(self) -> dict[str, int]:
        """Return the count."""
        return {"n_rows": self.meter.read().n_rows}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Add the count of the run before; seconds are those of this one."""
        self.meter.add(Spent(n_rows=state["n_rows"]))
