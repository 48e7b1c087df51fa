"""Micro-batches of lessons: always the same ones, in the right shares, of like lengths, in the forms asked for."""

from collections import Counter

import numpy as np
import pytest
import torch

from most_core.config import TokenTable
from tests.train.conftest import write_lesson_folder
from train.data.lesson_mixture import FeatureNoise, Forms, LessonMixture
from train.data.lessons import Form, Lesson, put_together

TABLE = TokenTable.after(num_text_tokens=100, num_units=20)
PAD, BOS, EOS, USER, REPLY = 0, 1, 2, 4, 5
SIZE = 3  # of a feature
SHARES = {"asr": 0.3, "tts": 0.2, "text": 0.1, "speech_instructions": 0.4}
TOKENS = 300
AS_THEY_ARE = Forms(silent=0)


def lesson(task, number, rng):
    """One of the task's kind, with 5 to 60 words, a clip asked and, for those who speak, one in the answer."""
    words = rng.integers(10, 90, size=rng.integers(5, 60)).tolist()
    asked, answer = [], words
    if task in ("asr", "speech_instructions"):
        asked = [TABLE.wave_start, TABLE.wave_end]
    if task == "speech_instructions":
        answer = [11, TABLE.heard_end, *words]
    if task in ("tts", "speech_instructions", "text_instructions"):
        answer = [*answer, TABLE.audio_start, TABLE.audio_end]
    ids = [USER, *asked, REPLY, *answer, EOS] if task != "text" else [BOS, *words, EOS]
    heard = rng.integers(3, 40) if asked else 0
    clips = ([heard] if asked else []) + ([rng.integers(3, 40)] if TABLE.audio_start in answer else [])
    return Lesson(
        f"{task}-{number}",
        task,
        "here",
        "none",
        "train",
        "",
        np.array(ids, np.int32),
        np.array([[len(ids) - len(answer) - 1 if task != "text" else 1, len(ids)]], np.int32),
        np.array(clips, np.int32),
        rng.integers(20, size=sum(clips)).astype(np.int32),
        rng.normal(1, 2, size=(heard, SIZE)).astype(np.float16),
    )


MADE = {
    task: [lesson(task, i, np.random.default_rng([7, i])) for i in range(80)] for task in (*SHARES, "text_instructions")
}
BY_NAME = {each.id: each for lessons in MADE.values() for each in lessons}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with lessons of every task, in two shards each."""
    folder = tmp_path_factory.mktemp("lessons")
    for task, lessons in MADE.items():
        write_lesson_folder(folder / task, lessons[:50], lessons[50:])
    return folder


@pytest.fixture
def mix(folder):
    """`mix(**settings)`: a mixture of what is there."""

    def mix(shares=SHARES, tokens=TOKENS, forms=AS_THEY_ARE, **settings):
        return LessonMixture(folder, shares, TABLE, SIZE, PAD, tokens, forms, **settings)

    return mix


def same(one, other):
    pairs = zip(one[1:5], other[1:5])
    return one.names == other.names and all(a is b is None or torch.equal(a, b) for a, b in pairs)


NOISE = FeatureNoise()
ALL_FORMS = Forms(units_in=0.3, silent=0.4, direct=0.25)


def test_a_batch_is_a_function_of_seed_and_index(mix):
    settings = {"forms": ALL_FORMS, "noise": NOISE, "seed": 5}
    forth, back = mix(**settings), mix(**settings)
    expected = [forth[i] for i in range(40)]
    found = {i: back[i] for i in (*range(39, -1, -1), 7, 7, 3)}
    assert all(same(found[i], expected[i]) for i in range(40))
    assert [forth.task_of(i) for i in range(40)] == [batch.task for batch in expected]
    assert len({tuple(batch.names) for batch in expected}) > 35


def test_another_seed_takes_other_lessons_in_another_order(mix):
    one, other = mix(seed=5), mix(seed=6)
    assert [one.task_of(i) for i in range(20)] != [other.task_of(i) for i in range(20)]
    one, other = mix({"asr": 1.0}, seed=5), mix({"asr": 1.0}, seed=6)
    assert sum(one[i].names == other[i].names for i in range(40)) == 0


def test_other_processes_make_the_same_batches(mix):
    mixture = mix(forms=ALL_FORMS, noise=NOISE)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.Subset(mixture, range(100, 106)), batch_size=None, num_workers=2
    )
    for place, batch in zip(range(100, 106), loader):
        assert same(batch, mixture[place])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_tasks_keep_to_their_shares_over_any_stretch(mix, seed):
    mixture = mix(seed=seed)
    tasks = np.array([mixture.task_of(i) for i in range(100_000, 101_000)])
    for task, share in SHARES.items():
        ahead = np.cumsum(tasks == task) - share * np.arange(1, 1001)
        assert ahead.max() - ahead.min() < 4, task  # over any stretch of the thousand


def test_a_task_without_a_share_is_not_even_opened(mix):
    mixture = mix({"asr": 0.5, "nowhere": 0.0, "tts": 0.5})
    assert mixture.tasks == ["asr", "tts"]
    assert {mixture[i].task for i in range(20)} == {"asr", "tts"}


def test_batches_are_of_one_task_and_of_the_asked_size(mix):
    mixture = mix()
    for i in range(200):
        batch = mixture[i]
        assert {name.rsplit("-", 1)[0] for name in batch.names} == {batch.task}
        assert batch.ids.numel() <= TOKENS
        assert batch.ids.shape == batch.targets.shape == batch.valid.shape == (len(batch.names), batch.ids.shape[1])
        assert 0 <= batch.ids.shape[1] - max(BY_NAME[name].tokens for name in batch.names) < 8
        assert batch.ids.shape[1] % 8 == 0
    assert np.mean([mixture[i].ids.numel() for i in range(200)]) > 0.75 * TOKENS


def test_lessons_in_a_batch_are_about_equally_long(mix):
    mixture = mix(tokens=600)
    lengths = [mixture[i].valid.sum(1) for i in range(200)]
    valid = [(each.float().mean() / each.max()).item() for each in lengths]  # of the longest, which is rounded up
    assert np.mean(valid) > 0.95
    assert min(valid) > 0.7


def test_every_lesson_is_taken_about_as_often(mix):
    mixture = mix({"asr": 1.0}, tokens=600)
    taken = Counter(name for i in range(1500) for name in mixture[i].names)
    assert set(taken) == {each.id for each in MADE["asr"]}
    by_length = np.array([taken[each.id] for each in sorted(MADE["asr"], key=lambda each: each.tokens)])
    assert by_length[:40].mean() == pytest.approx(by_length[40:].mean(), rel=0.15)
    assert by_length.min() > by_length.mean() / 3


def test_rows_are_the_lessons_put_together_and_padded(mix):
    mixture = mix(noise=None)
    for i in range(60):
        batch = mixture[i]
        for row, name in enumerate(batch.names):
            taken = put_together(BY_NAME[name], Form(), TABLE)
            length, frames = len(taken.ids), len(taken.features)
            assert batch.ids[row, :length].tolist() == taken.ids.tolist()
            assert batch.targets[row, :length].tolist() == taken.targets.tolist()
            assert (batch.ids[row, length:] == PAD).all()
            assert not batch.targets[row, length:].any()
            assert batch.valid[row].tolist() == [True] * length + [False] * (batch.ids.shape[1] - length)
            if batch.task in ("asr", "speech_instructions"):
                assert batch.features[row, :frames].tolist() == taken.features.astype(np.float32).tolist()
                assert not batch.features[row, frames:].any()
        if batch.task in ("tts", "text"):
            assert batch.features is None
        assert (batch.ids.dtype, batch.targets.dtype, batch.valid.dtype) == (torch.int64, torch.bool, torch.bool)


def test_noise_is_on_features_alone(mix):
    clean, noisy = mix(noise=None), mix(noise=FeatureNoise(deviation=0.2, masks=0))
    differences = []
    for i in range(60):
        one, other = clean[i], noisy[i]
        assert same(one._replace(features=None), other._replace(features=None))
        for row, name in enumerate(one.names if one.features is not None else []):
            frames = len(BY_NAME[name].features)
            assert not other.features[row, frames:].any()
            differences.append((other.features - one.features)[row, :frames].flatten())
    noise = torch.cat(differences)
    assert noise.mean().item() == pytest.approx(0, abs=0.05)
    assert noise.std().item() == pytest.approx(0.2 * 2, rel=0.1)  # the features were drawn with deviation 2


def test_masks_blank_short_stretches_as_often_as_asked(mix):
    mixture = mix({"asr": 1.0}, noise=FeatureNoise(deviation=0, masks=0.2, mask_frames=2))
    blank = frames = 0
    for i in range(1000):
        batch = mixture[i]
        for row, name in enumerate(batch.names):
            kept = BY_NAME[name].features.astype(np.float32)
            given = batch.features[row, : len(kept)].numpy()
            blanked = ~given.any(1)
            assert (given[~blanked] == kept[~blanked]).all()
            blank, frames = blank + blanked.sum(), frames + len(kept)
    assert blank / frames == pytest.approx(0.2 * 1.5 / 25, rel=0.15)  # of one frame or two


def forms_of(mixture, task, batches=600):
    """For every taken lesson of a task: (its question is units, its answer is silent, nothing heard is told)."""
    found = []
    for i in range(batches):
        if mixture.task_of(i) == task:
            batch = mixture[i]
            for row, name in enumerate(batch.names):
                ids, asked = batch.ids[row], ~batch.targets[row]
                silent = not (ids[~asked] == TABLE.audio_start).any()
                found.append(((ids[asked] == TABLE.audio_start).any().item(), silent, TABLE.heard_end not in ids))
                assert len(BY_NAME[name].features) == (ids == TABLE.frame).sum() or found[-1][0]
    return np.array(found)


def test_forms_are_taken_as_often_as_asked(mix):
    found = forms_of(mix(forms=ALL_FORMS), "speech_instructions")
    assert len(found) > 500
    np.testing.assert_allclose(found.mean(0), [0.3, 0.4, 0.25], atol=0.05)
    both = (found[:, 0] & found[:, 1]).mean(), (found[:, 1] & found[:, 2]).mean()
    np.testing.assert_allclose(both, [0.12, 0.1], atol=0.05)  # independent of each other


def test_unless_asked_answers_are_rarely_silent_and_nothing_else(folder):
    mixture = LessonMixture(folder, {"speech_instructions": 1.0}, TABLE, SIZE, PAD, TOKENS)
    np.testing.assert_allclose(forms_of(mixture, "speech_instructions", 300).mean(0), [0, 0.1, 0], atol=0.04)


def test_who_learns_to_speak_or_to_hear_is_never_silent(mix):
    mixture = mix({"asr": 0.3, "tts": 0.3, "speech_instructions": 0.4}, forms=Forms(silent=1.0))
    for i in range(60):
        batch = mixture[i]
        speaks = (batch.ids == TABLE.audio_start).any(1)
        assert speaks.tolist() == [batch.task == "tts"] * len(speaks)
        if batch.task == "asr":
            assert ((batch.ids == TABLE.wave_start).sum(1) == 1).all()


def test_answers_to_written_questions_may_be_silent(mix):
    for silent in (0.0, 1.0):
        mixture = mix({"text_instructions": 1.0}, forms=Forms(silent=silent))
        spoken = [(mixture[i].ids == TABLE.audio_start).any(1) for i in range(10)]
        assert torch.cat(spoken).all() if silent == 0 else not torch.cat(spoken).any()


def test_longer_lessons_are_left_out_and_counted(mix):
    limit = 50
    mixture = mix(tokens=limit)
    kept = {each.id for task in SHARES for each in MADE[task] if each.tokens <= limit}
    assert mixture.dropped == 80 * len(SHARES) - len(kept) > 0
    assert {name for i in range(800) for name in mixture[i].names} <= kept


def test_a_batch_goes_to_a_device_whole(mix):
    batch = mix({"asr": 1.0})[0]
    moved = batch.to(torch.device("meta"))
    assert {each.device.type for each in moved[1:5]} == {"meta"}
    assert (moved.task, moved.names) == (batch.task, batch.names)


def test_a_task_that_is_not_there_is_named(tmp_path, folder):
    with pytest.raises(FileNotFoundError) as error:
        LessonMixture(folder, {"asr": 0.5, "songs": 0.5}, TABLE, SIZE, PAD, TOKENS)
    assert str(error.value) == f"{folder} holds no lessons for songs: prepare some, or give it no share"


def test_a_task_of_which_nothing_is_short_enough_is_named(mix, folder):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        mix(tokens=7)
    assert str(error.value) == f"{folder / 'asr'} holds no lesson of at most 7 tokens"
