"""load_cifar10: four layouts, one result; even subsets; pickles that are refused, not run."""

import builtins
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from zoestim.datasets import load_cifar10

CLASSES = ["airplane", "automobile", "bird", "cat", "deer"]
CLASSES += ["dog", "frog", "horse", "ship", "truck"]
LAYOUTS = ["batches", "parent of batches", "tar of batches", "images", "tar of images"]
N_EACH = {"train": 5, "test": 2}  # images of each class


@pytest.fixture(scope="module")
def truth():
    """Return images and classes by split, one of each class in turn: the order of a folder."""
    rng = np.random.default_rng(0)
    return {
        split: (
            rng.integers(0, 256, (10 * n_each, 3, 32, 32), dtype=np.uint8),
            np.tile(np.arange(10), n_each),
        )
        for split, n_each in N_EACH.items()
    }


def save_batches(folder, truth, protocol=2, key=str.encode):
    """Write the python batches; of the training set, ten images in each."""
    folder.mkdir(parents=True)
    (images, target), (test_images, test_target) = truth["train"], truth["test"]
    parts = {"test_batch": (test_images, test_target)}
    for i in range(5):
        rows = slice(10 * i, 10 * i + 10)
        parts[f"data_batch_{i + 1}"] = (images[rows], target[rows])
    for name, (data, labels) in parts.items():
        batch = {
            key("batch_label"): name.encode(),
            key("labels"): labels.tolist(),
            key("data"): data.reshape(-1, 3072),
            key("filenames"): [f"{i}.png".encode() for i in labels],
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol))
    (folder / "batches.meta").write_bytes(b"the names of the classes, which are known")


def save_images(folder, truth, names=CLASSES, suffix="png"):
    """Write the images, losslessly unless as JPEG, with what a file manager leaves behind."""
    for split, (images, target) in truth.items():
        for i, (image, label) in enumerate(zip(images, target, strict=True)):
            file = folder / split / names[label] / f"{i:04}.{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(file)
    for litter in (".DS_Store", "train/.DS_Store", "train/cat/._0003.png", "train/cat/notes.txt"):
        if (folder / litter).parent.is_dir():
            (folder / litter).write_bytes(b"not an image")


def save_image(folder, image, **options):
    """Write a training set of one image."""
    (folder / "train" / "cat").mkdir(parents=True)
    image.save(folder / "train" / "cat" / "0.png", **options)


def save_tar(folder, path, compression):
    with tarfile.open(path, f"w:{compression}") as archive:
        archive.add(folder, arcname=folder.name)


@pytest.fixture(scope="module")
def layouts(truth, tmp_path_factory):
    root = tmp_path_factory.mktemp("cifar")
    paths = {
        "batches": root / "cifar-10-batches-py",
        "parent of batches": root,
        "tar of batches": root / "cifar-10-python.tar.gz",
        "images": root / "images",
        "tar of images": root / "images.tar.xz",
    }
    save_batches(paths["batches"], truth)
    save_images(paths["images"], truth)
    save_tar(paths["batches"], paths["tar of batches"], "gz")
    save_tar(paths["images"], paths["tar of images"], "xz")
    return paths


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_arrays(layouts, truth, layout, split):
    found = load_cifar10(layouts[layout], split=split, dtype="uint8")
    images, target = truth[split]
    assert found.data.dtype == np.uint8
    assert found.target.dtype == np.int64
    np.testing.assert_array_equal(found.data, images)
    np.testing.assert_array_equal(found.target, target)
    assert found.target_names == CLASSES


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_is_train_and_then_test(layouts, truth, layout):
    X, y = load_cifar10(str(layouts[layout]), split="all", dtype="uint8", return_X_y=True)
    np.testing.assert_array_equal(X, np.concatenate([truth["train"][0], truth["test"][0]]))
    np.testing.assert_array_equal(y, np.concatenate([truth["train"][1], truth["test"][1]]))


@pytest.mark.parametrize("dtype", ["float32", "float64", np.float32])
def test_floats_are_pixels_over_255(layouts, truth, dtype):
    data = load_cifar10(layouts["batches"], dtype=dtype).data
    assert data.dtype == np.dtype(dtype)
    np.testing.assert_allclose(data, truth["train"][0] / 255.0, rtol=1e-6)
    assert load_cifar10(layouts["batches"]).data.dtype == np.float32


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("n_samples", [1, 10, 23, 50])
@pytest.mark.parametrize("layout", ["batches", "tar of images"])
def test_subset_is_as_even_as_can_be(layouts, truth, layout, n_samples, shuffle):
    draw = {"n_samples": n_samples, "shuffle": shuffle, "random_state": 0}
    X, y = load_cifar10(layouts[layout], **draw, dtype="uint8", return_X_y=True)
    counts = np.bincount(y, minlength=10)
    assert len(X) == len(y) == counts.sum() == n_samples
    assert np.ptp(counts) <= 1
    images, target = truth["train"]
    for image, label in zip(X, y, strict=True):
        source = np.flatnonzero((images == image).all(axis=(1, 2, 3)))
        assert target[source].tolist() == [label]


def test_subset_without_shuffle_keeps_the_order_of_the_batches(tmp_path, truth):
    # Classes are in blocks of five, so two of each are not the first twenty.
    images, target = truth["train"]
    blocks = np.argsort(target, kind="stable")
    save_batches(tmp_path / "b", {**truth, "train": (images[blocks], target[blocks])})
    X, y = load_cifar10(tmp_path / "b", n_samples=20, dtype="uint8", return_X_y=True)
    assert y.tolist() == np.repeat(np.arange(10), 2).tolist()
    first_two = images[blocks].reshape(10, 5, 3, 32, 32)[:, :2]
    np.testing.assert_array_equal(X, first_two.reshape(X.shape))


def test_random_state_determines_what_is_drawn(layouts):
    def draw(seed, layout="batches"):
        return load_cifar10(layouts[layout], n_samples=30, shuffle=True, random_state=seed).data

    np.testing.assert_array_equal(draw(1), draw(1))
    np.testing.assert_array_equal(draw(1), draw(1, layout="tar of images"))
    assert not np.array_equal(draw(1), draw(2))


def test_only_the_chosen_images_are_decoded(tmp_path, truth):
    save_images(tmp_path, truth)
    for file in tmp_path.glob("train/*/004*.png"):  # the last image of each class
        file.write_bytes(b"damaged")
    assert len(load_cifar10(tmp_path, n_samples=40).data) == 40
    with pytest.raises(ValueError, match=r"Cannot decode the image train/airplane/0040\.png"):
        load_cifar10(tmp_path, n_samples=41)


def test_jpeg_images_are_nearly_the_same(tmp_path, truth):
    smooth = np.tile(np.linspace(40, 200, 32).astype(np.uint8), (50, 3, 32, 1))
    save_images(tmp_path, {"train": (smooth, truth["train"][1])}, suffix="JPEG")
    assert np.abs(load_cifar10(tmp_path).data * 255 - smooth).max() < 8


def test_gray_images_become_three_equal_planes(tmp_path):
    save_image(tmp_path, Image.new("L", (32, 32), 51))
    data = load_cifar10(tmp_path).data
    assert data.shape == (1, 3, 32, 32)
    assert (data == np.float32(0.2)).all()


def test_other_classes_are_sorted_and_numbered_over_both_splits(tmp_path, truth):
    names = [f"class {9 - i}" for i in range(10)]
    images, _ = truth["test"]
    save_images(tmp_path, {"train": (images[:3], [9, 4, 0]), "test": (images[:1], [4])}, names)
    found = load_cifar10(tmp_path, split="test")
    assert found.target_names == ["class 0", "class 5", "class 9"]
    assert found.target.tolist() == [1]


def test_hard_links_in_a_tar_are_followed_and_symbolic_ones_are_not(tmp_path, truth):
    save_images(tmp_path / "images", {"train": (truth["train"][0][:1], [3])})
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.add(tmp_path / "images", "images")
        for name, kind in (("1.png", tarfile.LNKTYPE), ("2.png", tarfile.SYMTYPE)):
            link = tarfile.TarInfo(f"images/train/dog/{name}")
            link.type, link.linkname = kind, "images/train/cat/0000.png"
            archive.addfile(link)
    X, y = load_cifar10(tmp_path / "images.tar", return_X_y=True)
    assert y.tolist() == [0, 1]
    np.testing.assert_array_equal(X[0], X[1])


@pytest.mark.parametrize("key", [str, str.encode])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_batches_saved_again_by_python_3_are_read(tmp_path, truth, protocol, key):
    save_batches(tmp_path / "b", truth, protocol, key)
    found = load_cifar10(tmp_path / "b", dtype="uint8").data
    np.testing.assert_array_equal(found, truth["train"][0])


def test_batch_as_python_2_and_an_old_numpy_wrote_it(tmp_path, truth):
    # The official files: byte strings, and numpy by the name that it had before 2.0.
    pixels = b"T" + (2 * 3072).to_bytes(4, "little") + truth["test"][0][:2].tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01"
        b"(K\x02M\x00\x0ctcnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89" + pixels + b"tb"
    )
    batch = b"\x80\x02}(U\x06labels](K\x07K\x02eU\x04data" + array + b"u."
    (tmp_path / "test_batch").write_bytes(batch)
    found = load_cifar10(tmp_path, split="test", dtype="uint8")
    np.testing.assert_array_equal(found.data, truth["test"][0][:2])
    assert found.target.tolist() == [7, 2]


def test_array_in_the_order_of_fortran_is_read(tmp_path, truth):
    images = truth["test"][0]
    batch = {"labels": [0] * len(images), "data": np.asfortranarray(images.reshape(-1, 3072))}
    for protocol in (2, 5):
        (tmp_path / "test_batch").write_bytes(pickle.dumps(batch, protocol))
        found = load_cifar10(tmp_path, split="test", dtype="uint8").data
        np.testing.assert_array_equal(found, images)


class Hostile:
    """Something whose pickle calls a function as it is loaded."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_hostile_pickle_is_refused_and_not_run(tmp_path, protocol):
    trace = tmp_path / "trace"
    hostile = pickle.dumps({"data": Hostile(builtins.open, str(trace), "w")}, protocol)
    pickle.loads(hostile)["data"].close()
    assert trace.exists()  # it does run where pickles are trusted
    trace.unlink()
    (tmp_path / "test_batch").write_bytes(hostile)
    with pytest.raises(ValueError, match=r"Refused to read test_batch.*it asks for \w+\.open, and"):
        load_cifar10(tmp_path, split="test")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("opcodes", "name"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
        (b"(S'true'\nios\nsystem\n.", "os.system"),
        (b"\x80\x04\x8c\x05numpy\x8c\x12ndarray.__reduce__\x93.", "numpy.ndarray.__reduce__"),
        (b"cnumpy\nload\n(S'x'\ntR.", "numpy.load"),
        (b"cfunctools\npartial\n.", "functools.partial"),
        (b"cbuiltins\ngetattr\n.", "builtins.getattr"),
    ],
)
def test_no_other_global_name_is_admitted(tmp_path, opcodes, name):
    (tmp_path / "test_batch").write_bytes(opcodes)
    with pytest.raises(ValueError, match=f"it asks for {name}, and only lists.*can run any code"):
        load_cifar10(tmp_path, split="test")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "EOFError"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.uint8)}), "KeyError: b'labels'"),
        (pickle.dumps({"data": [1], "labels": [1]}), "AttributeError"),
        (pickle.dumps({"data": np.zeros((1, 3072)), "labels": [1]}), "type 'f8' instead of 'u1'"),
        (pickle.dumps({"data": np.zeros((1, 99), np.uint8), "labels": [1]}), "reshape"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [1, 2]}), "1 images, and"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": ["a"]}), "as many integ"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}), "from 0 to 9"),
    ],
)
def test_pickle_of_anything_but_a_batch_is_refused(tmp_path, content, reason):
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(
        ValueError, match=f"test_batch, since it is not a CIFAR-10 .*{reason}.*http"
    ):
        load_cifar10(tmp_path, split="test")


def test_missing_path_says_where_to_get_the_data(tmp_path):
    said = r"no file or folder .*absent.*www\.cs\.toronto\.edu/.*cifar-10-batches-py.* a tar of"
    with pytest.raises(FileNotFoundError, match=said):
        load_cifar10(tmp_path / "absent")


def test_folder_with_neither_layout_is_refused(tmp_path):
    (tmp_path / "cat.png").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"no CIFAR-10 data for split='train' in .*Pass the folder"
    ):
        load_cifar10(tmp_path)


@pytest.mark.parametrize("split", ["test", "all"])
def test_image_folder_without_the_split_is_refused(tmp_path, truth, split):
    save_images(tmp_path, {"train": truth["train"]})
    with pytest.raises(ValueError, match=f"no CIFAR-10 data for split='{split}'"):
        load_cifar10(tmp_path, split=split)


def test_missing_batches_are_named(tmp_path, truth):
    save_batches(tmp_path / "b", truth)
    for i in (2, 5):
        (tmp_path / "b" / f"data_batch_{i}").unlink()
    with pytest.raises(ValueError, match="split='train' needs data_batch_2, data_batch_5 too"):
        load_cifar10(tmp_path / "b")
    assert len(load_cifar10(tmp_path / "b", split="test").data) == 20


@pytest.mark.parametrize("compression", ["", "gz", "bz2", "xz"])
def test_archive_that_was_cut_off_is_refused(tmp_path, truth, compression):
    save_images(tmp_path / "images", {"test": truth["test"]})
    save_tar(tmp_path / "images", tmp_path / "whole", compression)
    whole = (tmp_path / "whole").read_bytes()
    assert len(load_cifar10(tmp_path / "whole", split="test").data) == 20
    # In the plain tar these are the middle of a file, or of a header, or the end of either.
    with tarfile.open(tmp_path / "whole") as archive:
        last = archive.getmembers()[-1]
    plain = (last.offset, last.offset + 9, last.offset_data, last.offset_data + 9)
    for kept in plain if compression == "" else (0, 100, len(whole) // 2):
        (tmp_path / "part").write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=r"Cannot read .*part as a tar .*incomplete.*Pass the"):
            load_cifar10(tmp_path / "part", split="test")


def test_archive_with_a_link_to_nothing_is_refused(tmp_path):
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        link = tarfile.TarInfo("train/cat/0.png")
        link.type, link.linkname = tarfile.LNKTYPE, "/etc/hostname"
        archive.addfile(link)
    with pytest.raises(ValueError, match=r"as a tar archive \(KeyError\): it is damaged"):
        load_cifar10(tmp_path / "images.tar")


@pytest.mark.parametrize("kept", [0, 20, 100])
def test_damaged_image_is_named(tmp_path, truth, kept):
    save_images(tmp_path, {"train": truth["train"]})
    file = tmp_path / "train" / "deer" / "0004.png"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"Cannot decode the image train/deer/0004\.png .*damaged"):
        load_cifar10(tmp_path)


def test_image_of_another_format_is_not_decoded(tmp_path):
    save_image(tmp_path, Image.new("RGB", (32, 32)), format="GIF")
    with pytest.raises(ValueError, match=r"Cannot decode the image train/cat/0\.png"):
        load_cifar10(tmp_path)


def test_image_of_another_size_is_refused(tmp_path):
    save_image(tmp_path, Image.new("RGB", (32, 64)))
    with pytest.raises(ValueError, match=r"32 x 32 pixels; train/cat/0\.png has 32 x 64"):
        load_cifar10(tmp_path)


def test_images_without_pillow_say_how_to_install_it(layouts, monkeypatch):
    original = builtins.__import__

    def without_pillow(name, *args, **kwargs):
        if name.split(".")[0] == "PIL":
            raise ImportError("No module named 'PIL'")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pillow)
    assert len(load_cifar10(layouts["batches"]).data) == 50
    with pytest.raises(ImportError, match=r'pip install "zoestim\[datasets\]"'):
        load_cifar10(layouts["images"])


@pytest.mark.parametrize("split", ["validation", "Train", None])
def test_unknown_split_is_refused(layouts, split):
    with pytest.raises(ValueError, match=f"split must be 'train', 'test' or 'all'; got {split!r}"):
        load_cifar10(layouts["batches"], split=split)


@pytest.mark.parametrize("n_samples", [0, -1, 51, 10.0, "10"])
def test_number_of_samples_out_of_range_is_refused(layouts, n_samples):
    with pytest.raises(
        ValueError, match=f"integer from 1 to 50, .* all of them; got {n_samples!r}"
    ):
        load_cifar10(layouts["batches"], n_samples=n_samples)


@pytest.mark.parametrize("dtype", ["int64", "float16", ">f4", "pixels", 3])
def test_other_types_of_pixels_are_refused(layouts, dtype):
    with pytest.raises(ValueError, match=f"one of uint8, float32, float64; got {dtype!r}"):
        load_cifar10(layouts["batches"], dtype=dtype)
