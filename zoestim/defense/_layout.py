"""Where the channels of an image are: for the user and the black box, and for the denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

DATA_FORMATS = ("channels_first", "channels_last")


@dataclass(frozen=True)
class Layout:
    """How samples are laid out: as the user has them, and as a denoiser takes them.

    Parameters
    ----------
    shape : tuple of int
        One sample as the user, and with them the black box, has it.
    image : tuple of int, or None
        Channels, height and width; None for rows of a table.
    channels_last : bool
        Whether the user's images end with the channels.
    """

    shape: tuple[int, ...]
    image: tuple[int, int, int] | None
    channels_last: bool = False

    @classmethod
    def of(cls, X: np.ndarray, image_shape: Sequence[int] | None, data_format: str) -> Layout:
        """Return the layout of samples.

        Parameters
        ----------
        X : ndarray of shape (n, d), (n, height, width) or (n, ...) with four dimensions
            The samples.
        image_shape : sequence of int, or None
            Of rows that are flattened images: (height, width), or three numbers in the order
            of `data_format`.
        data_format : {"channels_first", "channels_last"}
            Where the channels of images are.
        """
        last = data_format == "channels_last"
        if image_shape is not None and not all(
            isinstance(size, Integral) and size > 0 for size in image_shape
        ):
            raise ValueError(
                f"image_shape={image_shape!r} is no shape; expected two or three positive "
                "integers, as (height, width)."
            )
        if image_shape is None and X.ndim == 2:
            return cls(X.shape[1:], None)
        shape = X.shape[1:] if image_shape is None else tuple(map(int, image_shape))
        if len(shape) == 2:
            shape = (*shape, 1) if last else (1, *shape)
        size = int(np.prod(X.shape[1:]))
        if len(shape) != 3 or int(np.prod(shape)) != size or (X.ndim > 2 and _other(X, shape)):
            raise ValueError(
                f"X has samples of shape {X.shape[1:]} and image_shape is {image_shape}; expected "
                "rows of as many numbers as the image, or images of that shape: (height, width), "
                f"or three numbers with {data_format.replace('_', ' ')}."
            )
        channels, height, width = (shape[-1], *shape[:-1]) if last else shape
        return cls(X.shape[1:], (channels, height, width), last)

    @property
    def item(self) -> tuple[int, ...]:
        """One sample as a denoiser takes it."""
        return self.shape if self.image is None else self.image

    def to_denoiser(self, X: np.ndarray) -> np.ndarray:
        """Return samples with their channels first."""
        if self.image is None:
            return X
        channels, height, width = self.image
        if not self.channels_last:
            return X.reshape(len(X), channels, height, width)
        return np.moveaxis(X.reshape(len(X), height, width, channels), -1, 1)

    def to_user(self, X: np.ndarray) -> np.ndarray:
        """Return samples as the user has them."""
        if self.channels_last:
            X = np.moveaxis(X, 1, -1)
        return np.ascontiguousarray(X).reshape(len(X), *self.shape)


def _other(X: np.ndarray, shape: Any) -> bool:
    """Return whether images have another shape than the one that is given."""
    return tuple(n for n in X.shape[1:] if n != 1) != tuple(n for n in shape if n != 1)
