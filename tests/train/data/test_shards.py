import json
import time
from pathlib import Path

import numpy as np
import pytest

from train.data.shards import ShardedSpeech, ShardInfo, describe_shard, read_manifest, write_manifest, write_shard
from train.data.utterance import Utterance


def utterances(count, seed=0, seconds=0.2):
    rng = np.random.default_rng(seed)
    for i in range(count):
        wave = rng.uniform(-0.7, 0.7, round(16_000 * seconds) + i).astype(np.float32)
        text = None if i % 7 == 6 else f"sentence number {i}"
        yield Utterance(f"{seed}/{i}", f"speaker {i % 3}", text, wave, "noise", "CC0", "test", "question")


def folder_of(path, counts, generator=None):
    shards = []
    for number, count in enumerate(counts):
        write_shard(path / f"s-{number}.arrow", utterances(count, number))
        shards.append(describe_shard(path / f"s-{number}.arrow"))
    write_manifest(path, shards, generator or {"seed": 1})
    return path


def test_what_is_written_is_read_in_any_order(tmp_path):
    folder = folder_of(tmp_path, [300, 5])  # 300 rows are more than one batch
    expected = [*utterances(300, 0), *utterances(5, 1)]
    speech = ShardedSpeech(folder)
    assert len(speech) == 305
    for index in (304, 0, 255, 256, 299, 300, -1):
        found, wanted = speech[index], expected[index]
        assert np.abs(found.wave - wanted.wave).max() <= 0.5 / 32768 + 1e-7
        assert found.wave.dtype == np.float32
        for name in ("id", "speaker", "text", "source", "licence", "split", "task"):
            assert getattr(found, name) == getattr(wanted, name)
    assert speech.texts == [item.text for item in expected]
    assert speech.speakers == [item.speaker for item in expected]
    assert np.allclose(speech.seconds, [len(item.wave) / 16000 for item in expected])
    assert len(list(speech)) == 305
    with pytest.raises(IndexError, match="305"):
        speech[305]


def test_pcm_is_a_view_of_the_file(tmp_path):
    speech = ShardedSpeech(folder_of(tmp_path, [3]))
    pcm = speech.pcm(1)
    assert pcm.dtype == np.int16
    assert not pcm.flags.owndata
    assert not pcm.flags.writeable
    address = pcm.ctypes.data
    mapped = next(line for line in Path("/proc/self/maps").read_text().splitlines() if _holds(line, address))
    assert mapped.endswith("s-0.arrow")


def _holds(line, address):
    start, end = (int(part, 16) for part in line.split()[0].split("-"))
    return start <= address < end


def test_several_folders_are_one_sequence(tmp_path):
    one, two = folder_of(tmp_path / "one", [3]), folder_of(tmp_path / "two", [2, 2])
    speech = ShardedSpeech(one, two)
    assert len(speech) == 7
    assert speech.column("id") == ["0/0", "0/1", "0/2", "0/0", "0/1", "1/0", "1/1"]


def test_loud_samples_are_clipped_not_wrapped(tmp_path):
    wave = np.array([1.5, 1.0, -1.0, -2.0] * 100, np.float32)
    write_shard(tmp_path / "a.arrow", [Utterance("a", "b", "c", wave, "d", "e")])
    write_manifest(tmp_path, [describe_shard(tmp_path / "a.arrow")], {})
    assert ShardedSpeech(tmp_path).pcm(0)[:4].tolist() == [32767, 32767, -32768, -32768]


def test_an_error_while_writing_leaves_nothing(tmp_path):
    def broken():
        yield from utterances(300)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_shard(tmp_path / "a.arrow", broken())
    assert list(tmp_path.iterdir()) == []


def test_manifest_says_what_there_is_and_how_it_was_made(tmp_path):
    folder = folder_of(tmp_path, [4], {"seed": 7, "command": "x"})
    (info,), generator = read_manifest(folder)
    assert generator == {"seed": 7, "command": "x"}
    assert info == describe_shard(folder / "s-0.arrow")
    assert isinstance(info, ShardInfo)
    assert info.rows == 4
    assert info.seconds == pytest.approx(0.8, abs=0.01)


def test_damage_is_told_in_one_line(tmp_path):
    folder = folder_of(tmp_path, [3, 3])
    shard = folder / "s-1.arrow"
    whole = shard.read_bytes()

    shard.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"s-1.arrow has \d+ bytes, the manifest says \d+"):
        ShardedSpeech(folder)

    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    shard.write_bytes(flipped)
    ShardedSpeech(folder)
    with pytest.raises(ValueError, match=r"s-1.arrow is not what was written"):
        ShardedSpeech(folder, verify=True)

    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"s-1.arrow is missing"):
        ShardedSpeech(folder)

    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text()[:50])
    with pytest.raises(ValueError, match=r"manifest.json is damaged"):
        ShardedSpeech(folder)
    manifest.write_text(json.dumps({"format": 99, "generator": {}, "shards": []}))
    with pytest.raises(ValueError, match="format 99"):
        ShardedSpeech(folder)
    manifest.unlink()
    with pytest.raises(FileNotFoundError, match="python -m train synthesize"):
        ShardedSpeech(folder)


def test_a_file_that_is_no_shard_is_named(tmp_path):
    (tmp_path / "a.arrow").write_bytes(b"not arrow at all" * 10)
    with pytest.raises(ValueError, match=r"a\.arrow is no whole shard"):
        describe_shard(tmp_path / "a.arrow")


def test_opening_many_rows_is_quick(tmp_path):
    wave = np.zeros(160, np.float32)
    rows = (Utterance(str(i), "s", "some words that were said", wave, "x", "y") for i in range(20_000))
    write_shard(tmp_path / "a.arrow", rows)
    write_manifest(tmp_path, [describe_shard(tmp_path / "a.arrow")], {})
    started = time.process_time()
    speech = ShardedSpeech(tmp_path)
    assert len(speech.texts) == len(speech.seconds) == 20_000
    assert time.process_time() - started < 1
