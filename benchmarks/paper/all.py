"""All figures and tables that are grids of cells: ``python -m benchmarks.paper.all``."""

import sys
from collections.abc import Sequence

from benchmarks.paper import (
    fig1d,
    fig2,
    fig3,
    fig4,
    fig5,
    fig_a3,
    fig_a4,
    fig_a5,
    fig_a6,
    table1,
    table_a1,
    table_a2,
    table_a3,
)
from benchmarks.paper.figure import main as run

FIGURES = [
    each.FIGURE
    for each in (
        *(fig1d, fig2, fig3, fig4, fig5, table1),
        *(table_a1, table_a2, table_a3, fig_a3, fig_a4, fig_a5, fig_a6),
    )
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one after the other with the same options; ``--out`` is each one's own file."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for figure in FIGURES:
        run(figure, [*given, "--out", str(figure.path)])
        print()


if __name__ == "__main__":
    main()
