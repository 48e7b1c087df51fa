"""Conversations and texts as lessons: what is in them, what stays out, and that nothing typed becomes special."""

from pathlib import Path

import numpy as np
import pytest

from most_core import MostConfig
from most_core.config import TokenTable
from most_core.generation import DONE, HEARD, GenerationSettings, ReplyGrammar
from most_core.processing import SPEAK, TRANSCRIBE, MostProcessor, train_small_tokenizer
from most_core.speech import untrained_encoder
from tests.train.conftest import FakeSynthesizer, spoken, write_folder
from train.data.conversations import Conversation, Stretch, Turn
from train.data.lesson_maker import LessonMaker
from train.data.lessons import Form, put_together
from train.data.sources import Source, open_sources
from train.data.voices import SynthesisError, Voice

# All 256 bytes have tokens, unlike in tiny(), so that any text survives.
CONFIG = MostConfig.tiny(vocab_size=640, token_table=vars(TokenTable.after(num_text_tokens=600, num_units=32)))
TABLE = CONFIG.tokens
HI = spoken(0, "hi there").wave
MORE = spoken(1, "and so on").wave
ANSWER = spoken(2, "sure").wave


@pytest.fixture(scope="module")
def tokenizer():
    return train_small_tokenizer(["What is pi? About three.", TRANSCRIBE, SPEAK], CONFIG)


@pytest.fixture(scope="module")
def encoder():
    return untrained_encoder(CONFIG.speech_feature_size, TABLE.num_units)


@pytest.fixture
def maker(tokenizer, encoder):
    return LessonMaker(CONFIG, tokenizer, encoder, longest=500)


def user(*stretches):
    return Turn("user", stretches, "anna")


def assistant(*stretches, cut=False):
    return Turn("assistant", stretches, cut=cut)


def lessons_of(maker, task, *turns):
    talk = Conversation("t/1", "somewhere", "CC0", "valid", turns)
    return list(maker.lessons(task, Source(Path("talks"), 1, [talk].__getitem__, tuple), 0))


def lesson_of(maker, task, *turns):
    (lesson,) = lessons_of(maker, task, *turns)
    return lesson


def spelled(maker, ids):
    """Ids as one string; runs of frames and units as their count."""
    out, run = "", 0
    for token in [*map(int, ids), -1]:
        if TABLE.is_audio(token):
            run += 1
        else:
            out += f"({run})" * (run > 0) + (maker.processor.tokenizer.decode([token]) if token >= 0 else "")
            run = 0
    return out


def asked_and_said(maker, lesson):
    """What the model reads and what it has to say, in turn."""
    taken = put_together(lesson, Form(), TABLE)
    changes = np.flatnonzero(np.diff(taken.targets.astype(int))) + 1
    assert not taken.targets[0]
    return [spelled(maker, ids) for ids in np.split(taken.ids, changes)]


def frames(encoder, wave):
    return len(encoder.units(wave))


def one_utterance(maker, tmp_path, task):
    source = open_sources({task: [write_folder(tmp_path, [spoken(0, "hi there")])]})[task][0]
    return next(maker.lessons(task, source, 0))


def test_a_recording_teaches_to_hear(maker, encoder, tmp_path):
    lesson = one_utterance(maker, tmp_path, "asr")
    heard = f"<bos><|user|>{TRANSCRIBE}[Wave]({frames(encoder, HI)})[/Wave]<|assistant|>"
    assert asked_and_said(maker, lesson) == [heard, "hi there<eos>"]
    assert (lesson.id, lesson.task, lesson.source, lesson.licence) == ("u0", "asr", "a test", "CC0-1.0")
    assert lesson.text == f"user: {TRANSCRIBE} hi there\nassistant: hi there"
    assert lesson.clips.tolist() == [len(lesson.features)] == [len(lesson.units)]


def test_a_recording_teaches_to_speak(maker, encoder, tmp_path):
    lesson = one_utterance(maker, tmp_path, "tts")
    said = f"[Audio]({frames(encoder, HI)})[/Audio]<eos>"
    assert asked_and_said(maker, lesson) == [f"<bos><|user|>{SPEAK} hi there<|assistant|>", said]
    assert len(lesson.features) == 0
    np.testing.assert_array_equal(lesson.units, encoder.units(HI)[: len(lesson.units)])


def test_words_alone_are_all_to_be_said(maker, tmp_path):
    lesson = one_utterance(maker, tmp_path, "text")
    assert asked_and_said(maker, lesson) == ["<bos>", "hi there<eos>"]
    assert (lesson.id, lesson.clips.tolist(), len(lesson.features)) == ("u0/0", [], 0)


def test_spoken_questions_are_heard_and_answers_spoken_sentence_by_sentence(maker, encoder):
    turns = (
        Turn("system", (Stretch("Be kind."),)),
        user(Stretch("hi there", HI)),
        assistant(Stretch("Hello."), Stretch("Sure.", ANSWER)),
        user(Stretch("and so on", MORE)),
        assistant(Stretch("Yes."), Stretch("It does.", HI)),
    )
    lesson = lesson_of(maker, "speech_instructions", *turns)
    hi, more, answer = (frames(encoder, wave) for wave in (HI, MORE, ANSWER))
    assert asked_and_said(maker, lesson) == [
        f"<bos><|system|>Be kind.<|user|>[Wave]({hi})[/Wave]<|assistant|>",
        f"hi there[/Heard]Hello. Sure.[Audio]({answer})[/Audio]<eos>",
        f"<|user|>[Wave]({more})[/Wave]<|assistant|>",
        f"and so on[/Heard]Yes. It does.[Audio]({hi})[/Audio]<eos>",
    ]
    assert lesson.clips.tolist() == [hi, answer, more, hi]
    np.testing.assert_array_equal(lesson.units, np.concatenate([encoder.units(w) for w in (HI, ANSWER, MORE, HI)]))
    assert lesson.text.splitlines()[2] == "assistant: Hello. Sure."


def test_features_are_the_users_alone_and_as_the_ears_give_them(maker, encoder):
    turns = user(Stretch("hi there", HI)), assistant(Stretch("Sure.", ANSWER)), user(Stretch("more", MORE))
    lesson = lesson_of(maker, "speech_instructions", *turns, assistant(Stretch("Yes.")))
    expected = np.concatenate([encoder.features(HI).numpy(), encoder.features(MORE).numpy()])
    assert lesson.features.dtype == np.float16
    np.testing.assert_array_equal(lesson.features, expected.astype(np.float16))


def test_written_questions_are_read_whether_or_not_they_have_sound(maker, encoder):
    turns = user(Stretch("hi there", HI)), assistant(Stretch("Sure.", ANSWER), Stretch("And you?"))
    lesson = lesson_of(maker, "text_instructions", *turns)
    said = f"Sure.[Audio]({frames(encoder, ANSWER)})[/Audio] And you?<eos>"
    assert asked_and_said(maker, lesson) == ["<bos><|user|>hi there<|assistant|>", said]
    assert len(lesson.features) == 0


def test_what_nobody_speaks_gives_no_spoken_question(maker):
    turns = user(Stretch("hi there")), assistant(Stretch("Sure.", ANSWER))
    assert lessons_of(maker, "speech_instructions", *turns) == []
    assert len(lessons_of(maker, "text_instructions", *turns)) == 1


def test_a_question_that_is_only_written_is_not_said_to_be_heard(maker, encoder):
    turns = (
        user(Stretch("hi there", HI)),
        assistant(Stretch("Sure.")),
        user(Stretch("More?")),
        assistant(Stretch("No.")),
    )
    lesson = lesson_of(maker, "speech_instructions", *turns)
    assert asked_and_said(maker, lesson)[2:] == ["<|user|>More?<|assistant|>", "No.<eos>"]
    unanswered = lesson_of(maker, "speech_instructions", turns[0], turns[2], turns[1])
    assert asked_and_said(maker, unanswered)[1] == "Sure.<eos>"


def test_of_a_sound_without_words_nothing_is_heard_and_that_is_told(maker, encoder):
    sorry = "Sorry, I did not catch that."
    maker.said = {sorry: np.array([3, 4], np.int32)}
    lesson = lesson_of(maker, "speech_instructions", user(Stretch("", HI)), assistant(Stretch(sorry)))
    asked = f"<bos><|user|>[Wave]({frames(encoder, HI)})[/Wave]<|assistant|>"
    assert asked_and_said(maker, lesson) == [asked, f"[/Heard]{sorry}[Audio](2)[/Audio]<eos>"]
    assert lessons_of(maker, "text_instructions", user(Stretch("", HI)), assistant(Stretch(sorry))) == []

    # Each token of the reply is one that the model may choose when it answers a sound
    taken = put_together(lesson, Form(), TABLE)
    grammar = ReplyGrammar(CONFIG, maker.processor.special_ids, GenerationSettings(), start=HEARD)
    for token in taken.ids[taken.targets].tolist():
        assert grammar.bias()[token] == 0, maker.processor.spelling(token)
        grammar.advance(token)
    assert grammar.phase == DONE


def test_units_without_words_are_not_said_to_hold_none(maker):
    lesson = lesson_of(maker, "speech_instructions", user(READY), assistant(Stretch("Sure.")))
    assert asked_and_said(maker, lesson)[1] == "Sure.<eos>"


def test_what_was_heard_is_told_once(maker):
    turns = user(Stretch("hi there", HI)), assistant(Stretch("Sure.")), assistant(Stretch("And more."))
    lesson = lesson_of(maker, "speech_instructions", *turns)
    assert asked_and_said(maker, lesson)[1::2] == ["hi there[/Heard]Sure.<eos>", "And more.<eos>"]


def test_a_conversation_that_ends_with_a_question_teaches_nothing(maker):
    turns = user(Stretch("hi", HI)), assistant(Stretch("Sure.")), user(Stretch("more", MORE))
    for task in ("speech_instructions", "text_instructions"):
        assert lessons_of(maker, task, *turns) == []


@pytest.mark.parametrize(
    ("task", "question"),
    [("asr", [{"type": "text", "text": TRANSCRIBE}, "clip"]), ("speech_instructions", ["clip"])],
)
def test_a_lesson_begins_as_the_prompt_of_the_same_sound(maker, tokenizer, encoder, task, question):
    stretches = [Stretch(part["text"]) if part != "clip" else Stretch("hi there", HI) for part in question]
    lesson = lesson_of(maker, task, user(*stretches), assistant(Stretch("Sure.")))
    clip = {"type": "audio", "audio": HI, "sampling_rate": 16_000}
    content = [clip if part == "clip" else part for part in question]
    prompt = MostProcessor(CONFIG, tokenizer, encoder).prompt([{"role": "user", "content": content}])
    taken = put_together(lesson, Form(), TABLE)
    assert taken.ids[: len(prompt.ids)].tolist() == prompt.ids
    assert taken.targets.tolist() == [False] * len(prompt.ids) + [True] * (len(taken.ids) - len(prompt.ids))
    np.testing.assert_array_equal(taken.features, prompt.features.numpy().astype(np.float16))


def test_a_second_question_begins_as_the_prompt_of_the_conversation_so_far(maker, tokenizer, encoder):
    turns = user(Stretch("hi", HI)), assistant(Stretch("Sure.", ANSWER)), user(Stretch("more", MORE))
    lesson = lesson_of(maker, "speech_instructions", *turns, assistant(Stretch("No.")))
    hi, answer, more = ({"type": "audio", "audio": wave, "sampling_rate": 16_000} for wave in (HI, ANSWER, MORE))
    spoken_reply = [{"type": "heard", "text": "hi"}, {"type": "text", "text": "Sure."}, answer]
    history = [("user", [hi]), ("assistant", spoken_reply), ("user", [more])]
    messages = [{"role": role, "content": content} for role, content in history]
    prompt = MostProcessor(CONFIG, tokenizer, encoder).prompt(messages)
    assert put_together(lesson, Form(), TABLE).ids[: len(prompt.ids)].tolist() == prompt.ids


def test_who_was_broken_into_is_not_taught_to_stop(maker, encoder):
    turns = user(Stretch("hi", HI)), assistant(Stretch("Sure."), Stretch("And so on.", ANSWER[:2560]), cut=True)
    again = user(Stretch("more", MORE)), assistant(Stretch("No.", ANSWER))
    lesson = lesson_of(maker, "speech_instructions", *turns, *again)
    answer, whole = frames(encoder, ANSWER[:2560]), frames(encoder, ANSWER)
    assert asked_and_said(maker, lesson)[1:] == [
        f"hi[/Heard]Sure. And so on.[Audio]({answer})",
        f"[/Audio]<eos><|user|>[Wave]({frames(encoder, MORE)})[/Wave]<|assistant|>",
        f"more[/Heard]No.[Audio]({whole})[/Audio]<eos>",
    ]


def test_the_assistants_voice_speaks_what_has_no_sound(maker, encoder):
    maker.said = {"Sure.": np.array([3, 4], np.int32), "hi": np.array([5], np.int32)}
    lesson = lesson_of(maker, "text_instructions", user(Stretch("hi")), assistant(Stretch("Well."), Stretch("Sure.")))
    assert asked_and_said(maker, lesson) == ["<bos><|user|>hi<|assistant|>", "Well. Sure.[Audio](2)[/Audio]<eos>"]
    assert lesson.units.tolist() == [3, 4]
    heard = lesson_of(maker, "asr", user(Stretch("hi", HI)), assistant(Stretch("Sure.")))
    assert asked_and_said(maker, heard)[1] == "Sure.<eos>"


def test_a_sentence_that_cannot_be_spoken_has_no_units(maker, encoder):
    class Mute:
        def speak(self, text, voice):
            raise SynthesisError("no")

    maker.synthesizer = FakeSynthesizer()
    voice = Voice("flite", "slt")
    expected = encoder.units(FakeSynthesizer().speak("Sure.", voice))
    assert maker.spoken_by(voice, "Sure.").tolist() == expected.tolist()
    maker.synthesizer = Mute()
    assert maker.spoken_by(voice, "Sure.").tolist() == []


READY = Stretch("", units=np.array([7, 31], np.int32))


def test_ready_made_units_are_heard_and_said(maker):
    lesson = lesson_of(maker, "asr", user(Stretch(TRANSCRIBE), READY), assistant(Stretch("Hi.")))
    assert asked_and_said(maker, lesson) == [f"<bos><|user|>{TRANSCRIBE}[Audio](2)[/Audio]<|assistant|>", "Hi.<eos>"]
    assert (lesson.units.tolist(), len(lesson.features)) == ([7, 31], 0)
    lesson = lesson_of(maker, "tts", user(Stretch("Say hi.")), assistant(READY))
    assert asked_and_said(maker, lesson)[1] == "[Audio](2)[/Audio]<eos>"
    assert lesson.ids.max() < TABLE.first_unit + TABLE.num_units + 6


def test_units_beside_sound_are_taken_with_its_units(maker, encoder):
    """Features of one clip are not those of both."""
    turns = user(Stretch("hi", HI)), assistant(Stretch("Sure.")), user(READY), assistant(Stretch("No."))
    lesson = lesson_of(maker, "speech_instructions", *turns)
    assert len(lesson.features) == 0
    assert lesson.clips.tolist() == [frames(encoder, HI), 2]


@pytest.mark.parametrize("unit", [32, 99999])
def test_units_that_the_model_has_not_are_refused(maker, unit):
    strange = Stretch("", units=np.array([3, unit], np.int32))
    with pytest.raises(ValueError, match=rf"^t/1 has unit {unit}, the model 0 to 31: they are of other ears$"):
        lessons_of(maker, "asr", user(strange), assistant(Stretch("Hi.")))


@pytest.mark.parametrize("task", ["asr", "text_instructions", "speech_instructions"])
def test_an_answer_with_nothing_in_it_teaches_nothing(maker, task):
    assert lessons_of(maker, task, user(Stretch("hi", HI)), assistant(Stretch(""))) == []


def test_a_question_that_nobody_can_read_teaches_nothing(maker):
    turns = user(READY), assistant(Stretch("Sure."))
    assert lessons_of(maker, "text_instructions", *turns) == []
    assert len(lessons_of(maker, "speech_instructions", *turns)) == 1


def test_a_rule_may_be_empty(maker):
    turns = Turn("system", (Stretch(""),)), user(Stretch("hi")), assistant(Stretch("Sure."))
    assert len(lessons_of(maker, "text_instructions", *turns)) == 1


def test_lessons_that_are_too_long_are_left_out(maker, encoder):
    turns = user(Stretch("hi there", HI)), assistant(Stretch("Sure.", ANSWER))
    length = lesson_of(maker, "speech_instructions", *turns).tokens
    assert length > frames(encoder, HI) + frames(encoder, ANSWER)
    maker.longest = length
    assert len(lessons_of(maker, "speech_instructions", *turns)) == 1
    maker.longest = length - 1
    assert lessons_of(maker, "speech_instructions", *turns) == []


@pytest.mark.parametrize("longest", [2, 7, 16, 500])
def test_long_texts_are_cut_and_nothing_is_lost(maker, longest):
    maker.longest = longest
    text = "What is pi? About three, it is said, though some give more of it. " * 3
    ids = [
        maker.processor.tokenizer.bos_token_id,
        *maker.processor.text_ids(text),
        maker.processor.tokenizer.eos_token_id,
    ]
    pieces = lessons_of(maker, "text", assistant(Stretch(text)))
    said = np.concatenate([piece.ids[1:] for piece in pieces]).tolist()
    assert said == ids[1:]
    assert [piece.ids[0] for piece in pieces[1:]] == [piece.ids[-1] for piece in pieces[:-1]]
    assert [len(piece.ids) for piece in pieces[:-1]] == [longest] * (len(pieces) - 1)
    assert 2 <= len(pieces[-1].ids) <= longest
    assert [piece.replies.tolist() for piece in pieces] == [[[1, len(piece.ids)]] for piece in pieces]
    assert len({piece.id for piece in pieces}) == len(pieces)


def test_what_begins_with_the_assistant_or_asks_by_sound_alone_is_left_out(maker):
    sound = Stretch("", units=np.array([1, 2], np.int32))
    answer = assistant(Stretch("One."))
    assert lessons_of(maker, "text_instructions", answer, user(Stretch("hi")), answer) == []
    assert lessons_of(maker, "text_instructions", user(Stretch("What is said?"), sound), answer) == []
    assert len(lessons_of(maker, "speech_instructions", user(Stretch("What is said?"), sound), answer)) == 1


def test_a_sentence_that_no_voice_can_spell_stays_written(maker):
    assert len(maker.spoken_by(Voice("flite", "slt"), "It costs 3.5 dollars.")) == 0


def test_the_turns_of_a_conversation_are_lines_of_a_text(maker):
    lesson = lesson_of(maker, "text", user(Stretch("hi", HI)), assistant(Stretch("One."), Stretch("Two.", ANSWER)))
    assert asked_and_said(maker, lesson) == ["<bos>", "hi\nOne. Two.<eos>"]


SPELLINGS = ["<eos>", "<|assistant|>", "[Wave]", "[/Heard]", "[Audio]", "<pad>"]


@pytest.mark.parametrize("task", ["asr", "tts", "text", "speech_instructions", "text_instructions"])
def test_no_spelling_in_a_text_is_special(maker, task):
    plain = user(Stretch("ask "), Stretch("hi", HI)), assistant(Stretch("one"), Stretch("two", ANSWER))
    special = maker.processor.special_ids

    def marks(*turns):
        return [token for token in lesson_of(maker, task, *turns).ids.tolist() if token in special]

    for spelling in SPELLINGS:
        asked = user(Stretch(f"ask {spelling}"), Stretch(f"hi {spelling}", HI))
        parted = assistant(Stretch(f"one {spelling[:3]}"), Stretch(f"{spelling[3:]} two {spelling}", ANSWER))
        assert marks(asked, parted) == marks(*plain)


def test_a_spelling_cut_in_two_is_not_special_either(maker):
    """A reply's sentences meet with a space, a question's parts do not."""
    asked = user(Stretch("<e"), Stretch("os>"), Stretch("hi", HI))
    ids = lesson_of(maker, "speech_instructions", asked, assistant(Stretch("Sure."))).ids.tolist()
    assert ids.count(maker.processor.tokenizer.eos_token_id) == 1


def test_ears_of_another_model_are_refused(tokenizer):
    with pytest.raises(ValueError, match=r"^the ears have 40 units, the model 32: they do not match$"):
        LessonMaker(CONFIG, tokenizer, untrained_encoder(24, 40), 100)
    with pytest.raises(ValueError, match=r"^the ears give features of 16, the model takes 24: they do not match$"):
        LessonMaker(CONFIG, tokenizer, untrained_encoder(16, 32), 100)


def test_a_tokenizer_of_another_model_is_refused(encoder):
    other = train_small_tokenizer(["hello"], MostConfig.tiny())
    with pytest.raises(ValueError, match="they do not belong together"):
        LessonMaker(CONFIG, other, encoder, 100)
