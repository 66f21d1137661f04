"""What sharing costs who does not share: ``python -m benchmarks.speed.overhead``.

One dense gradient by the backend of one process, beside the same folds in a plain loop: without
a plan for workers, patience, records, or a journal.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.speed.measure import add_options, interleaved, print_table, start, write_json
from benchmarks.speed.problems import Problem, load_case
from benchmarks.speed.problems import add_options as add_problem_options
from zoestim.evaluation import Batch, Objective, evaluate, unchanged_generators
from zoestim.evaluation._asker import Asker
from zoestim.evaluation._losses import Losses
from zoestim.evaluation._patience import Patience
from zoestim.evaluation._plan import make_groups, make_parts
from zoestim.evaluation._planner import Planner
from zoestim.gradients import CoordinateEstimator, CoordinateQueries


def plain_loop(objective: Objective, batch: Batch, queries: CoordinateQueries) -> torch.Tensor:
    """Return by how much each query changes the loss."""
    found = torch.empty(len(queries), dtype=torch.float64)
    with torch.no_grad(), unchanged_generators(batch.X.device):
        program, done = objective.base(batch)
        base_loss = objective.batch_loss(done.output, batch)
        losses = Losses(objective, batch, program, done, base_loss, None)
        planner = Planner(Asker(losses, Patience()))
        groups = make_groups(queries, objective.parameters, objective.theta())
        for part in make_parts(groups, [planner.size(group) for group in groups]):
            chunk = part.chunk()
            found[chunk.positions] = losses.folded(chunk)
    return found


def compare(case: Problem, options: argparse.Namespace) -> dict[str, Any]:
    """Time both on one case, and return the row."""
    objective = Objective(case.module, case.criterion)
    batch = Batch(case.X, case.y)
    coordinates = objective.parameters.flatten(case.coordinates)
    queries = CoordinateEstimator().queries(coordinates)
    with_plan: Callable[[], Any] = lambda: evaluate(objective, batch, queries)  # noqa: E731
    evaluation, loop = with_plan(), plain_loop(objective, batch, queries)
    same = torch.equal(evaluation.losses, evaluation.base_loss + loop)
    methods = {
        "loop": (lambda: plain_loop(objective, batch, queries), len(queries)),
        "evaluate": (with_plan, len(queries)),
    }
    runs = interleaved(methods, options.repeats, options.device)
    return {
        "case": case.name,
        "coordinates": len(queries),
        "loop s": runs["loop"].median,
        "evaluate s": runs["evaluate"].median,
        "overhead %": 100 * (runs["evaluate"].ratio_to(runs["loop"]) - 1),
        "same bits": "yes" if same else "no",
    }


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Print the table and return its rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--cases", type=lambda text: text.split(","), default=["mlp", "cnn730", "cnn3700"]
    )
    add_problem_options(parser)
    add_options(parser)
    options = parser.parse_args(arguments)

    start(options)
    rows = [compare(load_case(name, options), options) for name in options.cases]
    print_table(rows)
    write_json(options, {"rows": rows})
    return rows


if __name__ == "__main__":
    main()
