"""Test sets of every form give the same pictures; hostile archives are refused."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datafree.evaluate import Dataset, open_dataset
from datafree.evaluate import pictures as sources
from datafree.spec import InputSpec, Refusal

INPUTS = InputSpec(shape=(3, 4, 4))
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), np.uint8)
LABELS = np.arange(12)


def read(dataset: Dataset) -> dict[int, list[float]]:
    """label -> pixels, whatever the order."""
    return {
        int(label): x.flatten().tolist()
        for batch, labels in dataset.batches(INPUTS, 5)
        for x, label in zip(batch, labels)
    }


def npz(path: Path, **arrays) -> Path:
    np.savez(path, **arrays)
    return path


def folder(path: Path, table: bool) -> Path:
    for pixels, label in zip(PIXELS, LABELS):
        file = path / (f"{label * 7 % 12}.png" if table else f"{label}/a.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    if table:
        rows = "\n".join(f"{label * 7 % 12}.png,x,{label}" for label in LABELS)
        (path / "labels.csv").write_text(f"file,author,label\n{rows}\n")
    return path


def tar(path: Path, source: Path) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        archive.add(source, arcname=".")
    return path


def test_every_form_gives_the_same_pictures(tmp_path):
    expected = read(Dataset("memory", PIXELS, LABELS))
    assert len(expected) == 12
    for names in (("images", "labels"), ("test_images", "test_labels"), ("x_test", "y_test")):
        assert read(open_dataset(npz(tmp_path / "a.npz", **dict(zip(names, (PIXELS, LABELS)))))) == expected
    for table in (True, False):  # twelve classes: 10 must not come before 2
        made = folder(tmp_path / f"folder{table}", table)
        assert read(open_dataset(made)) == expected
        assert read(open_dataset(tar(tmp_path / f"{table}.tar", made))) == expected
        assert read(open_dataset(tar(tmp_path / f"{table}.tgz", made))) == expected


def test_class_folders_are_numbered_in_the_order_of_their_names(tmp_path):
    for name in ("n02", "n01"):
        (tmp_path / name).mkdir()
        Image.fromarray(PIXELS[int(name == "n02")]).save(tmp_path / name / "x.png")
    dataset = open_dataset(tmp_path)
    assert read(dataset) == {label: read(Dataset("m", PIXELS, LABELS))[label] for label in (0, 1)}


def test_sample_is_seeded_and_without_replacement():
    dataset = Dataset("memory", PIXELS, LABELS)
    a, b, c = dataset.sample(8, seed=1), dataset.sample(8, seed=1), dataset.sample(8, seed=2)
    assert a.labels.tolist() == b.labels.tolist() != c.labels.tolist()
    assert len(set(a.labels.tolist())) == 8
    assert len(dataset.sample(99)) == 12
    assert read(a).items() <= read(dataset).items()


def test_labels_as_a_column_are_read(tmp_path):
    assert open_dataset(npz(tmp_path / "a.npz", images=PIXELS, labels=LABELS[:, None])).labels.tolist() == list(
        range(12)
    )


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": PIXELS}, "name its arrays"),
        ({"images": PIXELS, "labels": LABELS[:5]}, "12 pictures but 5 labels"),
        ({"images": PIXELS, "labels": LABELS / 2}, "whole numbers"),
        ({"images": PIXELS, "labels": LABELS - 1}, "whole numbers"),
        ({"images": PIXELS[0, 0], "labels": LABELS[:4]}, "shape"),
        ({"images": PIXELS[:0], "labels": LABELS[:0]}, "no picture"),
        ({"images": np.array([{}], dtype=object), "labels": LABELS}, "Python objects"),
    ],
)
def test_npz_files_that_cannot_be_used(tmp_path, arrays, said):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(Refusal, match=said):
        open_dataset(tmp_path / "a.npz")


def test_a_header_that_promises_more_than_there_is(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (2**50, 4, 4, 3)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue())
        archive.writestr("labels.npy", header.getvalue())
    with pytest.raises(Refusal, match="promises"):
        open_dataset(tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["a.npz", "a.tar", "a.tgz"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"garbage" * 100])
def test_broken_archives(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Refusal):
        open_dataset(tmp_path / name)


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_truncated_archives(tmp_path, keep):
    for path in (
        npz(tmp_path / "a.npz", images=PIXELS, labels=LABELS),
        tar(tmp_path / "a.tgz", folder(tmp_path / "f", True)),
    ):
        data = path.read_bytes()
        path.write_bytes(data[: int(keep * len(data))])
        with pytest.raises(Refusal):
            open_dataset(path)


def test_archives_that_swell_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_BYTES", 1000)
    with pytest.raises(Refusal, match="unpacks to"):
        open_dataset(npz(tmp_path / "a.npz", images=np.zeros((12, 8, 8, 3), np.uint8), labels=LABELS))
    with pytest.raises(Refusal, match="bytes so far"):
        open_dataset(tar(tmp_path / "a.tar", folder(tmp_path / "f", True)))


def test_nothing_leaves_the_archive(tmp_path, monkeypatch):
    """Links are passed over, members that climb out of the folder are refused; a tar is only ever read in memory."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(PIXELS[0]).save(tmp_path / "secret.png")
    picture = (tmp_path / "secret.png").read_bytes()
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("0/inside.png")
        member.size = len(picture)
        archive.addfile(member, io.BytesIO(picture))
        link = tarfile.TarInfo("1/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.png")
        archive.addfile(link)
    before = sorted(path.name for path in tmp_path.parent.rglob("*"))
    assert len(open_dataset(tmp_path / "a.tar")) == 1
    assert sorted(path.name for path in tmp_path.parent.rglob("*")) == before
    for name in ("../outside.png", "/outside.png", "0/../../outside.png"):
        with tarfile.open(tmp_path / "b.tar", "w") as archive:
            member = tarfile.TarInfo(name)
            member.size = len(picture)
            archive.addfile(member, io.BytesIO(picture))
        with pytest.raises(Refusal, match="points outside"):
            open_dataset(tmp_path / "b.tar")


@pytest.mark.parametrize("row", ["../secret.png,0", "missing.png,0", "0.png,-1", "0.png,cat", "0.png"])
def test_tables_that_name_what_is_not_there(tmp_path, row):
    folder(tmp_path / "f", True)
    Image.fromarray(PIXELS[0]).save(tmp_path / "secret.png")
    (tmp_path / "f" / "labels.csv").write_text(f"file,label\n{row}\n")
    with pytest.raises(Refusal, match=r"labels\.csv"):
        open_dataset(tmp_path / "f")


def test_pictures_that_are_none(tmp_path):
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(Refusal, match=r"a\.jpg cannot be read"):
        read(open_dataset(tmp_path))


def test_pictures_of_sixteen_bits_keep_them(tmp_path):
    (tmp_path / "0").mkdir()
    grey = np.array([[0, 1, 256, 65535]] * 4, np.uint16)
    Image.fromarray(grey).save(tmp_path / "0" / "a.png")
    assert np.array_equal(open_dataset(tmp_path).pictures[0][..., 0], grey)
    Image.fromarray(np.zeros((4, 4), np.int32)).save(tmp_path / "0" / "a.tif")
    with pytest.raises(Refusal, match="8 or 16 bits"):
        read(open_dataset(tmp_path))


def test_a_picture_bomb_is_refused(tmp_path, monkeypatch):
    folder(tmp_path / "f", False)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(Refusal, match="DecompressionBomb"):
        read(open_dataset(tmp_path / "f"))


def test_other_paths(tmp_path):
    with pytest.raises(Refusal, match="no such file"):
        open_dataset(tmp_path / "none.npz")
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(Refusal, match="is not a test set"):
        open_dataset(tmp_path / "a.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refusal, match="no pictures"):
        open_dataset(tmp_path / "empty")


def test_the_bundled_network_brings_its_test_set():
    dataset = open_dataset("bundled:digits")
    assert len(dataset) == 500
    with pytest.raises(Refusal, match="bundled:letters"):
        open_dataset("bundled:letters")
