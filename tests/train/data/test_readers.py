"""Readers: tiny folders laid out as the corpora are published, and what happens when they are damaged."""

import gzip
import io
import json
import logging
import sys
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from train.data.corpora import BARISTA_VOICES
from train.data.readers import HUMAN_TEST_VOICES, READERS, OrderClip, TextItem, read, read_texts, usable_for_ctc

TEXT = "SEVEN PLUS FIVE"


def tone(seconds=0.25, rate=16_000, hz=200):
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


def write(path, wave=None, rate=16_000, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(rate=rate) if wave is None else wave, rate, **options)
    return path


def librispeech(folder, part="train-clean-100", names=("7-1-0000", "7-1-0001")):
    for name in names:
        speaker, chapter, _ = name.split("-")
        write(folder / part / speaker / chapter / f"{name}.flac")
    listing = folder / part / speaker / chapter / f"{speaker}-{chapter}.trans.txt"
    listing.write_text("".join(f"{name} {TEXT}\n" for name in names))
    return folder


def test_librispeech_as_published(tmp_path):
    librispeech(tmp_path)
    librispeech(tmp_path, "test-clean", ("9-1-0000",))
    first, second = read("librispeech", tmp_path)
    assert (first.id, first.speaker, first.text, first.split) == ("7-1-0000", "librispeech-7", TEXT, "train")
    assert first.licence == "CC BY 4.0"
    assert "LibriSpeech" in first.source
    assert first.wave.dtype == np.float32
    assert first.wave.shape == (4000,)
    assert second.id == "7-1-0001"
    assert [u.split for u in read("librispeech", tmp_path, split="test-clean")] == ["test"]
    with pytest.raises(FileNotFoundError, match="'train-other'"):
        list(read("librispeech", tmp_path, split="train-other"))


def libriheavy_cut(name, start, **supervision):
    source = "download/librilight/small/100/book/chapter.flac"
    recording = {"id": "chapter", "sources": [{"type": "file", "channels": [0], "source": source}]}
    said = {"id": name, "start": 0, "duration": 0.25, "speaker": "100"} | supervision
    return {"id": name, "start": start, "duration": 0.25, "supervisions": [said], "recording": recording}


@pytest.mark.parametrize("below", ["", "download/librilight"])
def test_libriheavy_cuts_the_chapter_and_takes_the_words_of_the_book(tmp_path, below):
    wave = np.concatenate([np.zeros(8000), tone(), np.zeros(8000)])
    write(tmp_path / below / "small/100/book/chapter.flac", wave)
    cuts = [
        libriheavy_cut("chapter_0", 0.5, custom={"texts": ["The sea, fairies!", "THE C FAIRIES"]}),
        libriheavy_cut("chapter_1", 0.0, text="Silence."),
    ]
    with gzip.open(tmp_path / "libriheavy_cuts_small.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(cut) + "\n" for cut in cuts)
    spoken, silent = read("libriheavy", tmp_path)
    assert (spoken.text, spoken.speaker) == ("The sea, fairies!", "librispeech-100")
    assert silent.text == "Silence."
    np.testing.assert_allclose(spoken.wave, tone(), atol=1e-4)
    assert len(silent.wave) == 4000
    assert not silent.wave.any()
    with pytest.raises(FileNotFoundError, match="libriheavy_cuts_medium"):
        list(read("libriheavy", tmp_path, split="medium"))


def test_common_voice_resamples_its_mp3_and_keeps_quotes(tmp_path):
    write(tmp_path / "clips/common_voice_en_1.mp3", rate=48_000)
    sentence = '"Four score," he said.'
    (tmp_path / "validated.tsv").write_text(
        f"client_id\tpath\tsentence\tage\n{'f' * 128}\tcommon_voice_en_1.mp3\t{sentence}\t\n"
    )
    (one,) = read("common_voice", tmp_path, split="validated")
    assert (one.id, one.text, one.split) == ("common_voice_en_1", sentence, "train")
    assert one.speaker == "common_voice-" + 16 * "f"
    assert abs(len(one.wave) - 4000) < 800
    with pytest.raises(FileNotFoundError, match=r"train\.tsv is missing"):
        list(read("common_voice", tmp_path))
    (tmp_path / "train.tsv").write_text("path\tsentence\n")
    with pytest.raises(ValueError, match="no column 'client_id'"):
        list(read("common_voice", tmp_path))


def test_voxpopuli_as_its_own_script_leaves_it(tmp_path):
    write(tmp_path / "2018/20180117-0900-PLENARY-15-en_2.ogg")
    (tmp_path / "asr_dev.tsv").write_text(
        "id\traw_text\tnormalized_text\tspeaker_id\tsplit\tgender\n"
        "20180117-0900-PLENARY-15-en_2\tIn 2018.\tin two thousand eighteen.\t125\tdev\tfemale\n"
    )
    (one,) = read("voxpopuli", tmp_path, split="dev")
    assert (one.text, one.speaker, one.split) == ("in two thousand eighteen.", "voxpopuli-125", "dev")


def test_own_folder_of_any_format(tmp_path):
    for name in ("anna/a.wav", "anna/b.flac", "c.ogg", "d.mp3"):
        write(tmp_path / name)
    write(tmp_path / "e.opus", format="OGG", subtype="OPUS")
    write(tmp_path / "f.WAV", np.stack([tone(), -tone() / 2], 1))
    (tmp_path / "anna/a.txt").write_text("Seven, please.\n")
    read_ = {u.id: u for u in read("folder", tmp_path)}
    assert sorted(read_) == ["anna/a", "anna/b", "c", "d", "e", "f"]
    assert read_["anna/a"].text == "Seven, please."
    assert read_["anna/b"].text is None
    assert read_["anna/a"].speaker == read_["anna/b"].speaker != read_["c"].speaker
    np.testing.assert_allclose(read_["f"].wave, tone() / 4, atol=1e-3)


def test_orders_are_split_by_voice(tmp_path):
    voices = (4, *sorted(HUMAN_TEST_VOICES))
    labels = {}
    for voice in voices:
        write(tmp_path / f"{voice}.opus", format="OGG", subtype="OPUS")
        labels[f"{voice}.opus"] = {"intent": "orderDrink", "voice": voice, "slots": {"coffeeDrink": "mocha"}}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    (trained,) = read("barista", tmp_path)
    assert isinstance(trained, OrderClip)
    assert trained.slots == {"coffeeDrink": "mocha"}
    assert (trained.speaker, trained.text, trained.split) == ("barista-4", None, "train")
    tested = list(read("barista", tmp_path, split="test"))
    assert {u.speaker for u in tested} == {f"barista-{voice}" for voice in (1, 5, 11, 20, 22, 49, 53)}
    assert {u.split for u in tested} == {"test"}


def test_orders_are_read_from_the_public_repository_too(tmp_path):
    voices = json.loads(BARISTA_VOICES.read_text())
    known = {"train": voices["4"][0], "test": voices["49"][0]}
    labels = {f"{clip}.wav": {"slots": {"coffeeDrink": "mocha", "milkAmount": " milk"}} for clip in known.values()}
    labels["somebody-else.wav"] = {"slots": {"coffeeDrink": "latte"}}
    for name in labels:
        (tmp_path / "data" / "speech" / "clean").mkdir(parents=True, exist_ok=True)
        write(tmp_path / "data" / "speech" / "clean" / name)
    (tmp_path / "data" / "label").mkdir()
    (tmp_path / "data" / "label" / "label.json").write_text(json.dumps(labels))
    for split, clip in known.items():
        (found,) = read("barista", tmp_path, split=split)
        assert (found.id, found.split) == (clip, split)
        assert found.slots == {"coffeeDrink": "mocha", "milkAmount": "milk"}


def test_no_clip_has_two_voices():
    voices = json.loads(BARISTA_VOICES.read_text())
    clips = [clip for several in voices.values() for clip in several]
    assert len(set(clips)) == len(clips) == 303
    assert {str(voice) for voice in HUMAN_TEST_VOICES} <= set(voices)


def test_keywords(tmp_path):
    write(tmp_path / "words/view_glass/0a.opus", format="OGG", subtype="OPUS")
    (keyword,) = read("keywords", tmp_path / "words")
    assert (keyword.text, keyword.speaker, keyword.licence) == ("view glass", "keywords-0a", "Apache-2.0")
    with pytest.raises(ValueError, match="keywords has no part 'test', only train"):
        read("keywords", tmp_path, split="test")


def test_every_eighth_clip_of_the_librispeech_sample_is_for_tests(tmp_path):
    for speaker in range(100, 110):
        write(tmp_path / f"{speaker}-1240-0000.opus", format="OGG", subtype="OPUS")
    tested = [(sample.text, sample.speaker) for sample in read("librispeech_sample", tmp_path, split="test")]
    assert tested == [(None, "librispeech-100"), (None, "librispeech-108")]
    trained = [sample.speaker for sample in read("librispeech_sample", tmp_path)]
    assert len(trained) == 8
    assert not set(trained) & {speaker for _, speaker in tested}


def test_a_few_damaged_clips_are_skipped_with_a_line_each(tmp_path, caplog):
    names = [f"7-1-{i:04}" for i in range(101)]
    librispeech(tmp_path, names=names)
    (tmp_path / "train-clean-100/7/1" / f"{names[3]}.flac").write_bytes(b"fLaC\0\0")
    with caplog.at_level(logging.WARNING):
        assert [u.id for u in read("librispeech", tmp_path)] == names[:3] + names[4:]
    (line,) = caplog.messages
    assert line.startswith(f"skipped {names[3]}: ")
    assert "\n" not in line


@pytest.mark.parametrize("damage", ["garbage", "empty", "missing", "nan"])
def test_too_many_damaged_clips_are_an_error(tmp_path, damage):
    for name in "ab":
        write(tmp_path / f"clips/{name}.wav")
    bad = tmp_path / "clips/b.wav"
    if damage == "missing":
        bad.unlink()
    elif damage == "garbage":
        bad.write_bytes(b"\0" * 100)
    else:
        write(bad, np.full(100, np.nan) if damage == "nan" else np.zeros(0), subtype="FLOAT")
    (tmp_path / "train.tsv").write_text("client_id\tpath\tsentence\n" + "".join(f"x\t{n}.wav\tyes\n" for n in "ab"))
    heard = read("common_voice", tmp_path)
    assert next(heard).id == "a"
    with pytest.raises(ValueError, match=r"1 of 2 clips of Common Voice .* damaged or missing"):
        next(heard)


def test_a_corpus_without_its_sound_fails_long_before_its_end(tmp_path):
    rows = "".join(f"x\t{n}.mp3\tyes\n" for n in range(5000))
    (tmp_path / "train.tsv").write_text("client_id\tpath\tsentence\n" + rows)
    with pytest.raises(ValueError, match="11 of 11 clips"):
        list(read("common_voice", tmp_path))


def test_errors_name_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="'librespeech' is no kind of corpus: choose one of barista, common_voice"):
        read("librespeech", tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        read("folder", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no sound files"):
        list(READERS["folder"](tmp_path))
    with pytest.raises(ValueError, match="barista is read from a folder only"):
        read("barista", "hub:someone/orders")


def test_usable_for_ctc():
    assert usable_for_ctc("Four score, he said.")
    assert usable_for_ctc("naïve café")
    assert not any(map(usable_for_ctc, (None, "", "?!", "in 1999", "привет")))


def encoded(wave):
    file = io.BytesIO()
    soundfile.write(file, wave, 16_000, format="FLAC")
    return file.getvalue()


ROWS = [{"id": "7-1-0000", "speaker_id": 7, "text": TEXT, "audio": {"bytes": encoded(tone()), "path": None}}]


class Stream(list):
    """What of datasets.IterableDataset the reader uses."""

    column_names = tuple(ROWS[0])

    def cast_column(self, name, feature):
        assert (name, feature) == ("audio", {"decode": False})
        return self


def test_streaming_from_a_hub(monkeypatch):
    asked = []

    def load_dataset(*args, **options):
        asked.append((args, options))
        return Stream(ROWS)

    stub = types.SimpleNamespace(load_dataset=load_dataset, Audio=lambda **options: options)
    monkeypatch.setitem(sys.modules, "datasets", stub)
    (one,) = read("librispeech", "hub:openslr/librispeech_asr?config=clean&revision=abc", split="train.100")
    assert asked == [
        (("openslr/librispeech_asr", "clean"), {"split": "train.100", "streaming": True, "revision": "abc"})
    ]
    assert (one.id, one.speaker, one.text, one.split) == ("7-1-0000", "librispeech-7", TEXT, "train")
    np.testing.assert_allclose(one.wave, tone(), atol=1e-4)
    with pytest.raises(ValueError, match="common_voice needs path, client_id, sentence"):
        list(read("common_voice", "hub:someone/voices"))


def test_streaming_without_datasets_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match="hub:a/b is streamed with `datasets`: pip install datasets"):
        list(read("librispeech", "hub:a/b"))


def test_streaming_through_the_real_library(tmp_path):
    pytest.importorskip("datasets")
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    (one,) = read("librispeech", f"hub:parquet?data_files={tmp_path}/rows.parquet")
    assert one.text == TEXT
    assert one.wave.shape == (4000,)


def test_written_text(tmp_path):
    pq.write_table(pa.table({"content": ["one", "two"], "url": ["", ""]}), tmp_path / "a.parquet")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write('{"text": "three"}\n')
    items = list(read_texts(tmp_path))
    assert [item.text for item in items] == ["one", "two", "three"]
    assert len({item.id for item in items}) == 3
    assert items[0] == TextItem("a.parquet-0", "one", "RefinedWeb (Penedo et al. 2023)", "ODC-By 1.0")
    (own,) = read_texts(tmp_path / "b.jsonl.gz", source="diary", licence="CC0-1.0")
    assert (own.source, own.licence) == ("diary", "CC0-1.0")


def test_written_text_that_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no \.parquet"):
        list(read_texts(tmp_path))
    (tmp_path / "a.jsonl").write_text('{"words": "one"}\n')
    with pytest.raises(ValueError, match="neither `content` nor `text`"):
        list(read_texts(tmp_path))
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "tw')
    with pytest.raises(ValueError, match=r"a\.jsonl line 2 is no JSON"):
        list(read_texts(tmp_path))
