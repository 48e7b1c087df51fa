"""Files that are there whole or not at all."""

import hashlib
import os

import pytest

from train.files import sha256_of, whole_file, write_whole


def test_content_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "shard.arrow"
    with whole_file(path) as file:
        file.write(b"some")
        file.flush()
        assert not path.exists()
        assert [each.suffix for each in path.parent.iterdir()] == [".unfinished"]
        file.write(b"thing")
    assert path.read_bytes() == b"something"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("no space left on device"), KeyboardInterrupt(), ValueError("a bad row")])
def test_an_error_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "shard.arrow"

    def fail():
        with whole_file(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert list(tmp_path.iterdir()) == []
    write_whole(path, b"before")
    with pytest.raises(type(error)):
        fail()
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"before"


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path, done = tmp_path / "a.json", []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: done.append(name) or real(*args))
    write_whole(path, b"first")
    write_whole(path, b"second")
    assert done == ["fsync", "replace", "fsync"] * 2
    assert path.read_bytes() == b"second"


def test_a_disk_that_refuses_to_keep_it_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "a.json", b"something")
    assert list(tmp_path.iterdir()) == []


def test_the_digest_is_of_all_bytes(tmp_path):
    path, content = tmp_path / "large", os.urandom(300_001)
    path.write_bytes(content)
    assert sha256_of(path) == hashlib.sha256(content).hexdigest()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert sha256_of(path) != hashlib.sha256(content).hexdigest()
    path.write_bytes(b"")
    assert sha256_of(path) == hashlib.sha256().hexdigest()
