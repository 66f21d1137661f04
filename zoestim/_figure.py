"""Where displays get matplotlib from: only when they draw."""

from typing import Any


def import_pyplot(asker: str) -> Any:
    """Return matplotlib.pyplot; ImportError, in the name of who asks, if there is none."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            f'{asker} needs matplotlib, which is not installed. Run: pip install "zoestim[plot]"'
        ) from error
    return pyplot
