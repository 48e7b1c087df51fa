"""Saved conversations: good ones come back whole, and whatever else is given is refused in one line."""

import io
import json
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import session_zips as zips
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.page import session_file
from most_core.trace_rows import PER_TOKEN

GOOD = zips.zipped()
DEFLATED = zips.zipped(method=zipfile.ZIP_DEFLATED)


def refused(data, match):
    with pytest.raises(ValueError, match=match) as caught:
        session_file.read(data)
    told = str(caught.value)
    assert "\n" not in told
    assert len(told) < 500
    return told


def told_of(data):
    """What is said of a session that may be broken; "" if it is read."""
    try:
        session_file.read(data)
    except ValueError as error:
        return str(error)
    return ""


def flips(data):
    return st.tuples(st.integers(0, len(data) - 1), st.integers(1, 255))


def changed(path, value):
    """A session.json with one thing in it that is another; a value of ... takes it out."""
    about = zips.about()
    inner = about
    for step in path[:-1]:
        inner = inner[step]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return about


@pytest.mark.parametrize("data", [GOOD, DEFLATED], ids=["stored", "deflated"])
def test_a_session_comes_back_whole(data):
    session = session_file.read(data)
    assert session.about == zips.ABOUT
    files = zips.files()
    assert session.sounds == {name: files[name] for name in (zips.USER, zips.REPLY)}
    assert list(session.traces) == [1]
    expected = zips.trace()
    for name in [*PER_TOKEN, "layers"]:
        a, b = getattr(session.traces[1], name), getattr(expected, name)
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_array_equal(a, b)
    assert session.traces[1].seed == 4


def test_a_session_without_turns_is_one():
    assert session_file.read(zips.zipped(changed(["turns"], []), {})).sounds == {}


def test_what_a_later_page_adds_is_let_be():
    about = changed(["turns", 0, "mood"], "good")
    assert session_file.read(zips.zipped(about)).about["turns"][0]["mood"] == "good"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *((["reply", "status"], status) for status in ("completed", "cancelled", "incomplete", "failed", "lost")),
        *((["reply", "confidence"], share) for share in (0, 0.5, 1.0, None)),
        *((["reply", "cut"], cut) for cut in (True, False)),
        *((["reply", "why"], why) for why in ("the model failed", "a" * 100_000, "", None)),
        *((["seed"], seed) for seed in (0, -(2**63), 2**31, None)),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_a_turn_may_tell_comes_back(path, value):
    about = changed(["turns", 0, *path], value)
    assert session_file.read(zips.zipped(about)).about == about


# The zip


@pytest.mark.parametrize("data", [b"", b"hello", b"PK\x05\x06", b"\0" * 100, zips.wav()])
def test_what_is_no_zip_is_refused(data):
    refused(data, "no zip")


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("data", [GOOD, DEFLATED], ids=["stored", "deflated"])
def test_half_a_zip_is_refused(data, keep):
    refused(data[: int(len(data) * keep)], "only the beginning of one|damaged")


@pytest.mark.parametrize(
    "name",
    [
        "../evil.wav",
        "/etc/passwd",
        "turn-01-user.wav/../../x",
        "a/turn-01-user.wav",
        "..\\turn-01-user.wav",
        "C:\\turn-01-user.wav",
        "turn-1-user.wav",
        "turn-01-user.WAV",
        "turn-٠١-user.wav",
        "turn-01-user.wav\n",
        "notes.txt",
        "folder/",
        "session.json/",
        "turn-01.secrets.parquet",
    ],
)
def test_a_name_that_no_session_has_is_refused(name):
    refused(zips.zipped(beside=zips.files() | {name: b""}), "which no session has|does not name it")


def test_a_name_with_a_hidden_end_is_refused():
    data = zips.zipped(beside=zips.files() | {"turn-02-user.wavX.exe": b""})
    refused(data.replace(b"turn-02-user.wavX.exe", b"turn-02-user.wav\0.exe"), "which no session has")


def test_a_file_that_no_turn_names_is_refused():
    refused(zips.zipped(beside=zips.files() | {"turn-02-user.wav": zips.wav()}), "turn-02-user.wav, but session.json")


def test_a_file_that_is_missing_is_told():
    for name in zips.files():
        refused(zips.zipped(beside={k: v for k, v in zips.files().items() if k != name}), f"{name} is missing")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zips.USER, zips.wav())
    refused(file.getvalue(), "has no session.json")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_same_name_twice_is_refused():
    file = io.BytesIO(GOOD)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("session.json", b"{}")
    refused(file.getvalue(), "session.json twice")


def test_too_many_files_are_refused_before_they_are_listed():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(60_000):
            archive.writestr(f"turn-{number:02}-user.wav", b"")
    data = file.getvalue()
    tracemalloc.start()
    refused(data, "more than 50001 files")
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    lying = bytearray(data)
    struct.pack_into("<HH", lying, len(lying) - 22 + 8, 1, 1)  # it says one, and lists them all
    refused(bytes(lying), "more than 50001 files")


def test_an_encrypted_file_is_refused():
    data = bytearray(GOOD)
    for at in (6, GOOD.index(b"PK\x01\x02") + 8):  # the flags, in the file's own head and in the list
        data[at] |= 1
    refused(bytes(data), "session.json in the zip is encrypted")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_ways_to_pack_are_refused(method):
    refused(zips.zipped(method=method), "packed in a way")


def bomb(says):
    """200 kB that unpack to 200 MB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = b"".join(packer.compress(bytes(1_000_000)) for _ in range(200)) + packer.flush()
    name, crc = b"session.json", zlib.crc32(bytes(says))
    head = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, crc, len(packed), says, len(name), 0)
    local = b"PK\x03\x04" + head + name + packed
    entry = b"PK\x01\x02" + struct.pack("<H", 20) + head + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name
    return local + entry + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(entry), len(local), 0)


@pytest.mark.parametrize(
    ("says", "match"), [(200_000_000, "holds 200 MB, the limit is 100"), (500_000, "not as long|damaged|no JSON")]
)
def test_a_bomb_is_never_unpacked(says, match):
    data = bomb(says)
    tracemalloc.start()
    refused(data, match)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_many_files_together_may_not_be_too_large():
    files = {f"turn-{n:02}-user.wav": bytes(30_000_000) for n in range(1, 5)}
    refused(zips.zipped(beside=files, method=zipfile.ZIP_DEFLATED), "holds 120 MB, the limit is 100 MB")


@pytest.mark.parametrize("data", [GOOD, DEFLATED], ids=["stored", "deflated"])
def test_no_flipped_byte_does_harm(data):
    @settings(max_examples=150, deadline=5000, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(flips(data), min_size=1, max_size=4), st.booleans())
    def flipped(places, cut):
        broken = bytearray(data)
        for place, bits in places:
            broken[place] ^= bits
        if cut:
            del broken[places[0][0] :]
        tracemalloc.start()
        told = told_of(bytes(broken))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert "\n" not in told
        assert peak < 30_000_000

    flipped()


@settings(max_examples=100, deadline=5000, database=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(zips.files())), st.data())
def test_no_flipped_byte_of_a_file_in_it_does_harm(name, data):
    """The zip's own checksums fit."""
    files = zips.files()
    broken = bytearray(files[name])
    for _ in range(data.draw(st.integers(1, 3))):
        broken[data.draw(st.integers(0, len(broken) - 1))] ^= data.draw(st.integers(1, 255))
    assert "\n" not in told_of(zips.zipped(beside=files | {name: bytes(broken)}))


# session.json


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format": "most-session", "version": 1, "x": NaN}',
        b'{"format": "most-session", "version": 1, "x": Infinity}',
        b'{"format": "most-session", "version": 1, "x": 1e999}',
        b'{"format": "most-session", "version": 1, "x": ' + b"9" * 5000 + b"}",
        b'{"format": "most-session", "version": 1, "x": 99999999999999999999}',
        b'{"format": "most-session", "version": 1, "x": ' + b"[" * 40 + b"]" * 40 + b"}",
        b'{"format": "most-session", "version": 1}',
        b"[]",
        b"3",
        b'"most-session"',
        b'{"format": "other"}',
    ],
    ids=lambda body: body[-40:].decode("latin-1"),
)
def test_a_malformed_session_json_is_refused(body):
    refused(zips.zipped(body, {}), "session.json")


def test_a_session_json_that_is_too_large_is_refused():
    refused(zips.zipped(b" " * 10_000_001, {}, zipfile.ZIP_DEFLATED), "larger than 10 MB")


@pytest.mark.parametrize("version", [0, 2, 1.0, "1", None, True, [1]])
def test_the_version_that_can_be_read_is_told(version):
    refused(zips.zipped(changed(["version"], version)), "only 1 is read here")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["created"], 3),
        (["created"], ...),
        (["model"], []),
        (["settings"], None),
        (["versions"], "1"),
        (["turns"], {}),
        (["turns", 0], 7),
        (["turns", 0, "turn"], "1"),
        (["turns", 0, "turn"], True),
        (["turns", 0, "turn"], 0),
        (["turns", 0, "turn"], -1),
        (["turns", 0, "turn"], 1.5),
        (["turns", 0, "kind"], "sung"),
        (["turns", 0, "at"], None),
        (["turns", 0, "user"], None),
        (["turns", 0, "user", "text"], 1),
        (["turns", 0, "user", "text"], "a" * 100_001),
        (["turns", 0, "user", "words"], None),
        (["turns", 0, "user", "words", 0, "start_ms"], -1),
        (["turns", 0, "user", "words", 0, "confidence"], 2),
        (["turns", 0, "user", "confidence"], "high"),
        (["turns", 0, "user", "wav"], ...),
        (["turns", 0, "user", "wav"], 5),
        (["turns", 0, "reply", "status"], "happy"),
        (["turns", 0, "reply", "sound_ms"], None),
        (["turns", 0, "reply", "played_ms"], 1e300),
        (["turns", 0, "reply", "confidence"], 1.5),
        (["turns", 0, "reply", "confidence"], "high"),
        (["turns", 0, "reply", "cut"], 1),
        (["turns", 0, "reply", "cut"], None),
        (["turns", 0, "reply", "why"], 3),
        (["turns", 0, "reply", "why"], "a" * 100_001),
        (["turns", 0, "seed"], 1.5),
        (["turns", 0, "seed"], True),
        (["turns", 0, "timings", "stages"], [{"name": "x"}]),
        (["turns", 0, "timings", "total_ms"], "3"),
        (["turns", 0, "tables"], {"tokens": "turn-01.tokens.parquet"}),
        (["turns", 0, "tables"], "turn-01"),
    ],
    ids=str,
)
def test_a_value_of_the_wrong_kind_is_told_by_its_place(path, value):
    told = refused(zips.zipped(changed(path, value)), "session.json: .* is not right")
    assert str(path[-1]) in told or value == [{"name": "x"}] or "tables" in told


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["turns", 0, "user", "wav"], "../../turn-01-user.wav"),
        (["turns", 0, "user", "wav"], "turn-02-user.wav"),
        (["turns", 0, "reply", "wav"], "turn-01-user.wav"),
        (["turns", 0, "tables", "tokens"], "turn-01.layers.parquet"),
        (["turns", 0, "turn"], 3),
    ],
    ids=str,
)
def test_a_turn_names_its_own_files_alone(path, value):
    refused(zips.zipped(changed(path, value)), "only turn-0[13].* may be|do not rise")


@pytest.mark.parametrize("numbers", [(1, 1), (2, 1)])
def test_turns_rise(numbers):
    about = zips.about()
    for turn, number in zip(about["turns"], numbers):
        turn["turn"] = number
    refused(zips.zipped(about), "do not rise")


# Sounds and traces


@pytest.mark.parametrize(
    ("sound", "match"),
    [
        (b"", "no WAV"),
        (b"RIFF", "no WAV"),
        (b"ID3" + bytes(100), "no WAV"),
        (zips.wav(rate=24_000), "24000 Hz, not one of 16 bits at 16000 Hz"),
        (zips.wav(channels=2), "2 channels"),
        (zips.wav(width=1), "8 bits"),
        (zips.wav(width=3), "24 bits"),
        (zips.wav()[:-100], "ends before"),
        (zips.wav()[:30], "no WAV"),
        (zips.wav()[:20] + struct.pack("<H", 3) + zips.wav()[22:], "no WAV"),  # float samples
        (zips.wav()[:22] + bytes(14) + zips.wav()[36:], "no WAV|channels"),  # no channels, no rate
    ],
)
def test_a_sound_that_is_none_of_ours_is_refused(sound, match):
    told = refused(zips.zipped(beside=zips.files() | {zips.USER: sound}), match)
    assert zips.USER in told


def table(name):
    return pq.read_table(io.BytesIO(zips.files()[zips.TABLES[name]]))


def parquet(table, **options):
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


def config_of(**changes):
    """The tokens' table of a model that says something else about itself."""
    found = table("tokens")
    meta = dict(found.schema.metadata)
    meta[b"config"] = json.dumps(json.loads(meta[b"config"]) | changes).encode()
    return parquet(found.replace_schema_metadata(meta))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("tokens", b""),
        ("tokens", b"PAR1"),
        ("routing", zips.files()[zips.TABLES["routing"]][:-20]),
        ("routing", zips.files()[zips.TABLES["layers"]]),
        ("layers", parquet(table("layers").slice(1))),
        ("layers", parquet(table("layers").replace_schema_metadata({}))),
        ("tokens", parquet(table("tokens").replace_schema_metadata({"schema_version": "2"}))),
        ("tokens", parquet(table("tokens").drop_columns(["text"]))),
        ("tokens", config_of(num_hidden_layers=10**9)),
        ("tokens", config_of(n_routed_experts=10**9)),
        ("tokens", config_of(num_experts_per_tok=10**9)),
        ("tokens", config_of(num_hidden_layers="many")),
    ],
)
def test_a_trace_that_is_none_is_refused(name, data):
    told = refused(zips.zipped(beside=zips.files() | {zips.TABLES[name]: data}), "turn")
    assert "01" in told or "turn 1" in told


def test_a_schema_of_another_version_is_told():
    data = parquet(table("tokens").replace_schema_metadata({"schema_version": "2"}))
    refused(zips.zipped(beside=zips.files() | {zips.TABLES["tokens"]: data}), "schema version 2, not 1")


def test_few_bytes_with_very_many_rows_are_not_read():
    count = 20_000_000
    rows = pa.table({"token": pa.array(np.zeros(count, np.int32))})
    data = parquet(rows)
    assert len(data) < 100_000
    refused(zips.zipped(beside=zips.files() | {zips.TABLES["layers"]: data}), "20000000 rows")


def test_few_bytes_with_very_much_text_are_not_read():
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 4000, pa.int32()), ["a" * 1_000_000])
    data = parquet(pa.table({"text": texts}), store_schema=False)
    assert len(data) < 1_000_000
    before = pa.total_allocated_bytes()
    refused(zips.zipped(beside=zips.files() | {zips.TABLES["tokens"]: data}), "more than 50000000 characters")
    assert pa.total_allocated_bytes() - before < 50_000_000


def test_columns_of_another_kind_are_not_read():
    texts = pa.array([["a" * 1000]] * 1000)
    data = parquet(pa.table({"text": texts}))
    refused(zips.zipped(beside=zips.files() | {zips.TABLES["tokens"]: data}), "a column of list<")


@pytest.mark.parametrize(
    "changes",
    [
        {"n_routed_experts": 10**9, "text_expert_indices": None, "audio_expert_indices": None},
        {"num_hidden_layers": 5000},
        {"text_expert_indices": [0, 1] * 5000},
        {"name": "a" * 300_001},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_model_that_would_take_memory_or_time_is_not_made(changes):
    told = refused(zips.zipped(beside=zips.files() | {zips.TABLES["tokens"]: config_of(**changes)}), "tells of")
    assert zips.TABLES["tokens"] in told


def test_a_modality_that_there_is_not_is_refused():
    trace = zips.trace()
    trace.modality[3] = 7
    given = {zips.TABLES[name]: data for name, data in trace.to_bytes().items()}
    refused(zips.zipped(beside=zips.files() | given), "turn 1 has a modality")


def test_a_share_that_is_no_number_is_refused():
    trace = zips.trace()
    trace.entropy[3, 1] = np.inf
    given = {zips.TABLES[name]: data for name, data in trace.to_bytes().items()}
    refused(zips.zipped(beside=zips.files() | given), "turn 1 has a modality or a share")


def test_all_traces_together_have_a_limit(monkeypatch):
    trace = zips.trace()
    cells = trace.chosen.size + trace.experts.size + 2 * len(trace.layers) * trace.config.n_routed_experts
    monkeypatch.setattr(session_file, "MOST_CELLS", cells)
    assert list(session_file.read(GOOD).traces) == [1]
    monkeypatch.setattr(session_file, "MOST_CELLS", cells - 1)
    refused(GOOD, "more than [0-9]+ choices")
