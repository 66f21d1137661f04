"""Short roll-outs first: how many steps are unrolled as the fit goes on."""

from __future__ import annotations

from typing import Any

from zoestim.training import Progress


class Curriculum(Progress):
    """Unrolls each number of steps of a schedule for an equal part of the fit.

    A validation takes the most of them.
    """

    def on_batch_begin(self, net: Any, training: bool = True, **kwargs: Any) -> None:
        """Set the number for a batch."""
        unrolled = net.module_
        schedule = unrolled.schedule
        part = min(int(self.progress(net) * len(schedule)), len(schedule) - 1)
        wanted = schedule[part] if training else unrolled.longest
        if wanted != unrolled.n_unroll:
            unrolled.n_unroll = wanted
            net.zo_step.objective.distrust(wholly=True)

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        """Leave the longest behind."""
        net.module_.n_unroll = net.module_.longest
