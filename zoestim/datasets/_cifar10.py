"""CIFAR-10 (Krizhevsky, 2009), from its python batches or an image folder, or a tar of either."""

import io
import lzma
import os
import pickle
import re
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from sklearn.utils import Bunch, check_random_state

SHAPE = (3, 32, 32)
CLASSES = [
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
]
SPLITS = {"train": ("train",), "test": ("test",), "all": ("train", "test")}
BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
DTYPES = [np.dtype(name) for name in ("uint8", "float32", "float64")]

URL = "https://www.cs.toronto.edu/~kriz/cifar.html"
LAYOUTS = (
    "the folder cifar-10-batches-py, a folder with images in train/<class>/ and test/<class>/ "
    "(.jpg, .jpeg or .png), or a tar of either"
)

_BATCH_NAME = re.compile(r"(?:.*/)?(data_batch_[1-5]|test_batch)")
_IMAGE_NAME = re.compile(r"(?:.*/)?(train|test)/([^/.][^/]*)/[^/.][^/]*\.(?i:jpe?g|png)")

_Bytes = NDArray[np.uint8]
_Ints = NDArray[np.int64]
_Files = dict[str, Callable[[], bytes]]  # what a file holds, by its path inside the folder or tar


def load_cifar10(
    path: str | os.PathLike[str],
    *,
    split: str = "train",
    n_samples: int | None = None,
    shuffle: bool = False,
    random_state: int | np.random.RandomState | None = None,
    dtype: DTypeLike = "float32",
    return_X_y: bool = False,
) -> Bunch | tuple[NDArray[Any], _Ints]:
    """Load CIFAR-10: 50,000 training and 10,000 test images of 32 x 32 pixels, in 10 classes.

    Nothing is downloaded and nothing is written: an archive is read through once, as a stream.

    Parameters
    ----------
    path : str or path-like
        The folder `cifar-10-batches-py` of the python version (or the folder it is in), or a
        folder of images, `train/<class>/*` and `test/<class>/*` with .jpg, .jpeg or .png files;
        or a tar of one of them, such as `cifar-10-python.tar.gz`, compressed in any way.

    split : {'train', 'test', 'all'}, default='train'
        Which images to load; `'all'` has the training images first.

    n_samples : int, default=None
        How many images to load, the same number from each class as far as it goes. None loads
        all of them. Of an image folder, no other image is decoded.

    shuffle : bool, default=False
        Whether to draw the samples at random and in random order. Otherwise the first ones of
        each class are taken, in the order of the data: that of the batches, or, as a folder has
        none, one image of each class in turn, by name.

    random_state : int, RandomState instance or None, default=None
        Determines what is drawn if `shuffle` is True. Pass an int for the same samples each time.

    dtype : {'float32', 'float64', 'uint8'}, default='float32'
        Type of the pixels: floats in [0, 1], or integers in [0, 255].

    return_X_y : bool, default=False
        Whether to return `(data, target)` rather than a Bunch.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        Dictionary-like object, with the following attributes.

        data : ndarray of shape (n_samples, 3, 32, 32)
            The images: red, green and blue planes of rows of pixels.
        target : ndarray of int64 of shape (n_samples,)
            The class of each image.
        target_names : list of str
            The name of each class, in the official order: airplane, automobile, ..., truck. An
            image folder with other classes has them sorted by name.

    (data, target) : tuple if `return_X_y` is True
        The first two of these.

    Raises
    ------
    FileNotFoundError
        If there is nothing at `path`.

    ValueError
        If a parameter is out of its range, if `path` has none of the layouts above, or if a
        file in it is damaged, or is a pickle of anything but a CIFAR-10 batch.

    ImportError
        If images are to be decoded and Pillow is not installed.

    Notes
    -----
    A pickle can run any code as it is read. These are read by an unpickler that knows lists,
    dictionaries, numbers, text, bytes and arrays of bytes, and refuses all else.

    References
    ----------
    A. Krizhevsky. "Learning multiple layers of features from tiny images", University of
    Toronto, 2009; https://www.cs.toronto.edu/~kriz/cifar.html.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from zoestim.datasets import load_cifar10
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("cat", "dog"):
    ...         Path(folder, "train", name).mkdir(parents=True)
    ...         Image.new("RGB", (32, 32), "red").save(Path(folder, "train", name, "0.png"))
    ...     X, y = load_cifar10(folder, return_X_y=True)
    >>> X.shape, y.tolist()
    ((2, 3, 32, 32), [0, 1])
    """
    if split not in SPLITS:
        raise ValueError(f"split must be 'train', 'test' or 'all'; got {split!r}.")
    pixel = _check_dtype(dtype)
    path = Path(path).expanduser()
    files = _list_files(path)
    samples = _find_batches(files, split, path) or _find_images(files, split)
    if samples is None:
        raise ValueError(
            f"Found no CIFAR-10 data for split={split!r} in {path}. Pass {LAYOUTS}. "
            f"The data can be had from {URL}."
        )
    chosen = _choose(samples.target, n_samples, shuffle, random_state)
    data: NDArray[Any] = samples.read(chosen)
    if pixel != np.uint8:
        data = data.astype(pixel)
        data /= 255
    target = samples.target[chosen]
    if return_X_y:
        return data, target
    return Bunch(data=data, target=target, target_names=list(samples.target_names))


def _check_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """Return the type of the pixels, one of three."""
    try:
        return DTYPES[DTYPES.index(np.dtype(dtype))]
    except (TypeError, ValueError):  # not a type at all, or not one of these
        names = ", ".join(map(str, DTYPES))
        raise ValueError(f"dtype must be one of {names}; got {dtype!r}.") from None


def _choose(
    target: _Ints,
    n_samples: int | None,
    shuffle: bool,
    random_state: int | np.random.RandomState | None,
) -> _Ints:
    """Return the indices of `n_samples` samples, as evenly from all classes as can be."""
    available = len(target)
    if n_samples is None:
        n_samples = available
    if not isinstance(n_samples, Integral) or not 1 <= n_samples <= available:
        raise ValueError(
            f"n_samples must be an integer from 1 to {available}, the number of images in this "
            f"split, or None for all of them; got {n_samples!r}."
        )
    order = np.arange(available)
    if shuffle:
        order = check_random_state(random_state).permutation(order)
    labels = target[order]
    rank = np.empty(available, dtype=np.int64)  # a sample's place among those of its class
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = np.arange(len(members))
    lowest = np.argsort(rank, kind="stable")[: int(n_samples)]
    return order[np.sort(lowest)]


def _list_files(path: Path) -> _Files:
    """Return the files of a folder or an archive that can belong to CIFAR-10."""
    if not path.exists():
        raise FileNotFoundError(
            f"There is no file or folder {path}. Get CIFAR-10 from {URL} (the python version), "
            f"and pass {LAYOUTS}."
        )
    return _list_folder(path) if path.is_dir() else _list_archive(path)


def _list_folder(folder: Path) -> _Files:
    """Return the files of a folder, unread."""
    found = [
        file
        for pattern in ("*_batch*", "cifar-10-batches-py/*_batch*", "train/*/*", "test/*/*")
        for file in folder.glob(pattern)
    ]
    names = {file.relative_to(folder).as_posix(): file for file in found}
    return {name: file.read_bytes for name, file in names.items() if _is_data(name)}


def _list_archive(path: Path) -> _Files:
    """Return the files of a tar, still encoded: a stream gives each of them only once."""
    files: _Files = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if _is_data(member.name) and member.isfile():
                    stream = cast(IO[bytes], archive.extractfile(member))
                    files[member.name] = io.BytesIO(stream.read()).getvalue
                elif _is_data(member.name) and member.islnk():  # to an earlier member
                    files[member.name] = files[member.linkname]
            # A tar that was cut off between two files looks complete, but for its last blocks.
            if cast(IO[bytes], archive.fileobj).tell() < archive.offset + tarfile.BLOCKSIZE:
                raise EOFError("The end of the archive is missing.")
    except (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error, KeyError) as error:
        raise ValueError(
            f"Cannot read {path} as a tar archive ({type(error).__name__}): it is damaged, "
            f"incomplete or of another kind. Pass {LAYOUTS}; the data can be had from {URL}."
        ) from error
    return files


def _is_data(name: str) -> bool:
    return bool(_BATCH_NAME.fullmatch(name) or _IMAGE_NAME.fullmatch(name))


@dataclass(frozen=True)
class _Samples:
    """The classes of all samples, and a function from indices to their images."""

    target: _Ints
    target_names: Sequence[str]
    read: Callable[[_Ints], _Bytes]


def _find_images(files: _Files, split: str) -> _Samples | None:
    """Return the samples of a folder of images, or None if there are none for the split."""
    found: dict[tuple[str, str], list[str]] = {}  # names, by split and class
    for name in files:
        if match := _IMAGE_NAME.fullmatch(name):
            found.setdefault((match[1], match[2]), []).append(name)
    if not all(any(key[0] == part for key in found) for part in SPLITS[split]):
        return None
    # Both splits count, so that a class has the same number in each.
    classes = {key[1] for key in found}
    target_names = CLASSES if classes == set(CLASSES) else sorted(classes)
    ordered = [
        (name, label)
        for part in SPLITS[split]
        for _, label, name in sorted(
            (rank, label, name)
            for label, class_name in enumerate(target_names)
            for rank, name in enumerate(sorted(found.get((part, class_name), [])))
        )
    ]
    return _Samples(
        target=np.array([label for _, label in ordered], dtype=np.int64),
        target_names=target_names,
        read=lambda chosen: _decode([ordered[i][0] for i in chosen], files),
    )


def _decode(names: Sequence[str], files: _Files) -> _Bytes:
    """Return the named images as an array of shape (n_images, 3, 32, 32)."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "Decoding .jpg and .png images needs Pillow, which is not installed: "
            'pip install "zoestim[datasets]". The python batches of CIFAR-10 need nothing.'
        ) from error
    images = np.empty((len(names), *SHAPE), dtype=np.uint8)
    for i, name in enumerate(names):
        try:
            with Image.open(io.BytesIO(files[name]()), formats=("JPEG", "PNG")) as image:
                size = image.size  # known from the header: a huge image is never decoded
                if size == SHAPE[1:]:
                    images[i] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        except Exception as error:  # a decoder can raise anything on damaged bytes
            raise ValueError(
                f"Cannot decode the image {name} ({error}): it is damaged. Replace or delete it."
            ) from error
        if size != SHAPE[1:]:
            raise ValueError(
                f"CIFAR-10 images have 32 x 32 pixels; {name} has {size[0]} x {size[1]}. "
                "Resize or delete it."
            )
    return images


def _find_batches(files: _Files, split: str, path: Path) -> _Samples | None:
    """Return the samples of the python batches, or None if none of them is there."""
    found = {match[1]: name for name in files if (match := _BATCH_NAME.fullmatch(name))}
    if not found:
        return None
    wanted = [batch for part in SPLITS[split] for batch in BATCHES[part]]
    if missing := [batch for batch in wanted if batch not in found]:
        raise ValueError(
            f"The python batches in {path} are incomplete: split={split!r} needs "
            f"{', '.join(missing)} too. The data can be had from {URL}."
        )
    batches = [_read_batch(files[found[batch]](), batch) for batch in wanted]
    images, target = map(np.concatenate, zip(*batches, strict=True))
    return _Samples(target, CLASSES, read=lambda chosen: images[chosen])


def _read_batch(pickled: bytes, name: str) -> tuple[_Bytes, _Ints]:
    """Return the images and the classes of one batch."""
    try:
        batch = _BatchUnpickler(io.BytesIO(pickled), encoding="bytes").load()
        # Python 2 wrote the keys as bytes; a copy saved by Python 3 may have them as text.
        batch = {key if isinstance(key, bytes) else key.encode(): batch[key] for key in batch}
        images = batch[b"data"].pixels().reshape(-1, *SHAPE)
        target = _as_classes(batch[b"labels"], len(images))
    except Exception as error:  # a pickle can raise anything
        raise ValueError(
            f"Refused to read {name}, since it is not a CIFAR-10 batch: "
            f"{type(error).__name__}: {error}. The data can be had from {URL}."
        ) from error
    return images, target


def _as_classes(labels: ArrayLike, n_images: int) -> _Ints:
    """Return the labels as integers, one for each image."""
    target = np.asarray(labels)
    if target.shape != (n_images,) or target.dtype.kind != "i":
        raise ValueError(f"it has {n_images} images, and its labels are not as many integers")
    if n_images and not 0 <= target.min() <= target.max() < len(CLASSES):
        raise ValueError(f"its labels are not all from 0 to {len(CLASSES) - 1}")
    return target.astype(np.int64)


class _PickledArray:
    """An array or its type, as the pickle describes it; numpy's own unpickling is never run."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def pixels(self) -> _Bytes:
        """Return the array, of one byte a pixel and 3,072 pixels an image."""
        if self.state:  # what ndarray.__setstate__ is given
            _, shape, dtype, fortran_order, content = self.state
        else:  # what numpy's _frombuffer is given, by pickles of protocol 5
            content, dtype, shape, order = self.arguments
            fortran_order = order == "F"
        if dtype.arguments[0] not in ("u1", b"u1"):
            raise ValueError(f"its pixels are of type {dtype.arguments[0]!r} instead of 'u1'")
        pixels = np.frombuffer(content, dtype=np.uint8)
        return pixels.reshape(shape, order="F" if fortran_order else "C")


class _Latin1(bytes):
    """Bytes, which Python 3 writes into pickles of protocol 2 as text and its encoding."""

    def __new__(cls, text: str, encoding: str) -> "_Latin1":
        return super().__new__(cls, text, "latin-1")


class _BatchUnpickler(pickle.Unpickler):
    """Unpickler to which a batch's few global names mean harmless stand-ins, and others nothing."""

    admitted: dict[str, type] = {
        "_codecs.encode": _Latin1,
        "numpy.ndarray": _PickledArray,
        "numpy.dtype": _PickledArray,
        "numpy.core.multiarray._reconstruct": _PickledArray,
        "numpy._core.multiarray._reconstruct": _PickledArray,
        "numpy.core.numeric._frombuffer": _PickledArray,
        "numpy._core.numeric._frombuffer": _PickledArray,
    }

    def find_class(self, module: str, name: str) -> type:
        """Return the stand-in for a global name, without importing anything."""
        stand_in = self.admitted.get(f"{module}.{name}")
        if stand_in is None:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, and only lists, dictionaries, numbers, text, bytes "
                "and arrays of bytes are admitted, as a pickle can run any code"
            )
        return stand_in
