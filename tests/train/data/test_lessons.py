import numpy as np
import pytest

from most_core.config import TokenTable
from tests.train.conftest import spoken, write_lesson_folder
from train.data.lessons import Form, Lesson, Lessons, put_together, write_lessons
from train.data.shards import describe_shard, write_manifest, write_shard

TABLE = TokenTable.after(num_text_tokens=100, num_units=20)
WAVE, END_WAVE, AUDIO, END_AUDIO = TABLE.wave_start, TABLE.wave_end, TABLE.audio_start, TABLE.audio_end
USER, REPLY, EOS = 4, 5, 2


def lesson(name="one", **changes):
    """<user> [wave] 3 frames [/wave] <assistant> 30 31 [heard] 40 [audio] 2 units [/audio] 41 <eos>"""
    ids = [USER, WAVE, END_WAVE, REPLY, 30, 31, TABLE.heard_end, 40, AUDIO, END_AUDIO, 41, EOS]
    values = {
        "id": name,
        "task": "speech_instructions",
        "source": "here",
        "licence": "none",
        "split": "train",
        "text": "thirty",
        "ids": np.array(ids, np.int32),
        "replies": np.array([[4, 12]], np.int32),
        "clips": np.array([3, 2], np.int32),
        "units": np.array([1, 2, 3, 7, 8], np.int32),
        "features": np.arange(6, dtype=np.float16).reshape(3, 2),
    }
    return Lesson(**values | changes)


def units(*numbers):
    return [TABLE.first_unit + number for number in numbers]


FRAMES = [TABLE.frame] * 3


@pytest.mark.parametrize(
    ("form", "asked", "said"),
    [
        (
            Form(),
            [USER, WAVE, *FRAMES, END_WAVE, REPLY],
            [30, 31, TABLE.heard_end, 40, AUDIO, *units(7, 8), END_AUDIO, 41, EOS],
        ),
        (
            Form(units_in=True),
            [USER, AUDIO, *units(1, 2, 3), END_AUDIO, REPLY],
            [30, 31, TABLE.heard_end, 40, AUDIO, *units(7, 8), END_AUDIO, 41, EOS],
        ),
        (Form(silent=True), [USER, WAVE, *FRAMES, END_WAVE, REPLY], [30, 31, TABLE.heard_end, 40, 41, EOS]),
        (Form(silent=True, heard=False), [USER, WAVE, *FRAMES, END_WAVE, REPLY], [40, 41, EOS]),
        (Form(heard=False), [USER, WAVE, *FRAMES, END_WAVE, REPLY], [40, AUDIO, *units(7, 8), END_AUDIO, 41, EOS]),
    ],
)
def test_a_lesson_is_taken_in_every_form(form, asked, said):
    taken = put_together(lesson(), form, TABLE)
    assert taken.ids.tolist() == asked + said
    assert taken.ids[taken.targets].tolist() == said
    assert taken.features.tolist() == ([] if form.units_in else lesson().features.tolist())


def test_taking_a_lesson_changes_nothing_in_it():
    mine, same = lesson(), lesson()
    for array in (mine.ids, mine.units):
        array.flags.writeable = False
    put_together(mine, Form(units_in=True, silent=True, heard=False), TABLE)
    assert mine.ids.tolist() == same.ids.tolist()


def test_speech_that_nobody_has_the_sound_of_is_heard_as_units():
    taken = put_together(lesson(features=np.zeros((0, 2), np.float16)), Form(), TABLE)
    assert taken.ids[:7].tolist() == [USER, AUDIO, *units(1, 2, 3), END_AUDIO, REPLY]


def test_a_reply_that_was_cut_teaches_its_units_but_not_to_stop():
    taken = put_together(lesson(replies=np.array([[4, 9]], np.int32)), Form(), TABLE)
    assert taken.ids[taken.targets].tolist() == [30, 31, TABLE.heard_end, 40, AUDIO, *units(7, 8)]


def test_a_reply_of_units_alone_is_never_silent():
    ids = np.array([USER, 30, REPLY, AUDIO, END_AUDIO, EOS], np.int32)
    alone = lesson(ids=ids, replies=np.array([[3, 6]], np.int32), clips=np.array([2], np.int32), units=np.array([7, 8]))
    assert put_together(alone, Form(silent=True), TABLE).ids[3:].tolist() == [AUDIO, *units(7, 8), END_AUDIO, EOS]


def test_text_alone_is_all_to_be_said():
    plain = lesson(
        ids=np.array([1, 30, 31, EOS], np.int32),
        replies=np.array([[1, 4]], np.int32),
        clips=np.zeros(0, np.int32),
        units=np.zeros(0, np.int32),
    )
    taken = put_together(plain, Form(units_in=True, silent=True, heard=False), TABLE)
    assert (taken.ids.tolist(), taken.targets.tolist()) == ([1, 30, 31, EOS], [False, True, True, True])


def test_lessons_come_back_from_disk(tmp_path):
    silent = lesson("two", clips=np.zeros(0, np.int32), units=np.zeros(0, np.int32), features=np.zeros((0, 2), "f2"))
    many = [lesson(str(number)) for number in range(300)]  # more than a record batch
    infos = write_lesson_folder(tmp_path, [lesson(), silent], many)
    read = Lessons(tmp_path, 2)
    assert len(read) == 302
    assert read.lengths.tolist() == [17, 12] + [17] * 300 == [read[i].tokens for i in range(302)]
    assert [read[i].id for i in (0, 1, 2, 301)] == ["one", "two", "0", "299"]
    for field in ("ids", "replies", "clips", "units", "features"):
        assert getattr(read[301], field).tolist() == getattr(lesson(), field).tolist()
    assert read[1].features.shape == (0, 2)
    assert (infos[0].rows, infos[0].seconds) == (2, 0.2)
    with pytest.raises(IndexError):
        read[302]


def test_a_damaged_shard_is_refused_in_one_line(tmp_path):
    write_lesson_folder(tmp_path, [lesson()])
    path = tmp_path / "lessons-00000.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not what was written"):
        Lessons(tmp_path, 2, verify=True)
    path.write_bytes(content[:-10])
    with pytest.raises(ValueError, match="the manifest says"):
        Lessons(tmp_path, 2)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="is missing, though the manifest lists it"):
        Lessons(tmp_path, 2)


def test_a_shard_of_something_else_is_refused(tmp_path):
    path = tmp_path / "lessons-00000.arrow"
    write_shard(path, [spoken(0, "hello")])
    write_manifest(tmp_path, [describe_shard(path)], {})
    with pytest.raises(ValueError, match="not those of lessons"):
        Lessons(tmp_path, 2)


def test_a_shard_that_fails_leaves_nothing(tmp_path):
    def rows():
        yield lesson()
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        write_lessons(tmp_path / "lessons-00000.arrow", rows())
    assert list(tmp_path.iterdir()) == []
