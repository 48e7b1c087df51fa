"""`python -m train evaluate nano`: how well the whole assistant hears, answers and speaks, and what it makes up.

Everything goes through `Most.transcribe`, `Most.answer` and `Most.speak`: the language model decodes freely. An answer
is right where its words are those expected, normalized as for word errors. Parts (`--only`):

asr       `asr_wer_SET`, `asr_cer_SET` of seen and unseen voices and of people ordering coffee
qa        `qa_text_SET`: spoken questions answered rightly in text, by topic too; `qa_written`: typed ones; how often it
          is right when how sure
speech    `qa_speech_seen`: the spoken answer, as PocketSphinx tells it from hundreds of others
tts       `tts_wer`: held-out sentences read aloud, as PocketSphinx writes them down
orders    `orders_SET`: confirmed with every slot right; `orders_snr_DB`: people's, in a cafe and a kitchen
controls  right answers to silence, to another question's sound, and to none, which may be luck alone
honesty   whether it says so when it heard nothing, or does not know; whether replies end
text      `text_loss_stageN`: what reading cost before training, after stage 1 and after stage 2
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import torch

from most_core.checkpoint_files import read_json
from most_core.loading import choose_device, load_decoder
from most_core.model import MostForCausalLM
from most_core.processing import Message, MostProcessor, load_tokenizer
from train.asking import Answer, Asking, said, typed
from train.calibration import calibration_error, plot_reliability, reliability
from train.config import RunOptions
from train.data import noise, orders, test_sets
from train.data.mouth_texts import held_out_sentences
from train.data.replies import UNHEARD
from train.data.test_sets import FOLDER, SETS, Unavailable
from train.data.unheard import Talkers, unheard
from train.data.utterance import Utterance, spoken_letters
from train.data.voices import MissingEngine, Synthesizer
from train.data.world import Exchange, exchange
from train.data.world.coffee import Order, parse_order
from train.evaluate_ears import background
from train.evaluate_mouth import measure_words
from train.language_model import vocabulary
from train.recognizer import choose_all, dictionary
from train.scoreboard import Scoreboard
from train.text_loss import held_out_texts, losses
from train.word_errors import character_errors, same_words, word_errors
from train.workers import end_with_parent

SNRS = (24, 21, 18, 15, 12, 9, 6)
VOICES = ("seen", "unseen")
CANDIDATES = 600  # answers that the recognizer of spoken answers chooses from
SENTENCES = 80  # read aloud
SOUNDS = 100  # in which nothing can be understood
TEXTS = 200  # of each kind, for the text's loss
CONTROLS = 160  # questions
NO_AUDIO = 640  # samples: a clip cannot be empty
FAINT = 3e-4  # of full scale: a silent room
UNKNOWN = "I don't know that yet."
MARGIN = 0.03  # by which a control may beat the commonest answer
SEED = 500_000  # of sounds, which no training uses
STAGE1 = Path("runs/nano/stage1/model")


@dataclass
class Exam:
    """What the parts share: the model that is asked, where questions come from, and what was answered so far."""

    board: Scoreboard
    asking: Asking
    model: Path
    data: Path
    human: Path | None
    count: int | None
    workers: int
    aloud: bool  # whether the seen voices' questions are answered in sound
    stages: dict[int, Path]
    plot: Path | None
    sets: dict[str, list[Utterance] | None] = field(default_factory=dict)
    replies: dict[str, list[Answer]] = field(default_factory=dict)

    def at_most(self, number: int) -> int:
        return min(number, self.count or number)

    def note(self, text: str) -> None:
        if text not in self.board.notes:
            self.board.notes.append(text)

    def utterances(self, name: str) -> list[Utterance]:
        """A test set, empty with a note where it cannot be had."""
        if name not in self.sets:
            try:
                self.sets[name] = test_sets.load(name, self.data, self.human, self.workers)[: self.count]
                self.board.figures[f"n_{name.replace('-', '_')}"] = len(self.sets[name])
            except Unavailable as error:
                self.note(f"no figures of {name}: {error}")
                self.sets[name] = []
        return self.sets[name]

    def exchanges(self, name: str) -> list[Exchange]:
        return test_sets.exchanges_of(name, self.utterances(name))

    def answers(self, name: str) -> list[Answer]:
        """The replies to a set of spoken questions or orders, asked once."""
        if name not in self.replies:
            waves = [utterance.wave for utterance in self.utterances(name)]
            turns = (
                [each.history for each in self.exchanges(name)] if name in test_sets.EXCHANGES else [()] * len(waves)
            )
            self.ask(name, [said(wave, history) for wave, history in zip(waves, turns)])
        return self.replies[name]

    def ask(self, name: str, asked: Sequence[Sequence[Message]]) -> list[str]:
        """The texts of the replies, which are kept under this name."""
        aloud = self.aloud and name == "questions-seen"
        self.replies[name] = self.asking.answers(asked, aloud, name)
        return [answer.text for answer in self.replies[name]]


def run(
    model: Path,
    as_json: bool,
    options: RunOptions,
    data: Path | None = None,
    only: Sequence[str] | None = None,
    human: Path | None = None,
    out: Path | None = None,
    count: int | None = None,
    stage1: Path | None = None,
    stage2: Path | None = None,
    plot: Path | None = None,
    direct: bool | None = None,
) -> int:
    """Measure the model in the folder `model` and print the figures; 0 once that is done.

    `data` keeps the synthesized test sets, `human` holds the recorded orders, `only` names parts, `count` takes fewer
    of each set, `stage1` and `stage2` are folders of earlier weights, `out` is the `figures.json` to put the figures
    into, `plot` an image of how sure the model is and how often right. `direct`: of a model that answers without
    telling first what it heard.
    """
    parts = [part for given in only or PARTS for part in given.split(",")]
    if strange := sorted(set(parts) - set(PARTS)):
        raise ValueError(f"--only {strange[0]}: there is no such part; choose from {', '.join(PARTS)}")
    for option, path in (("out", out), ("plot", plot)):
        if path and not path.parent.is_dir():
            raise FileNotFoundError(f"--{option} {path}: {path.parent} is no folder; make it first")
    for option, folder in (("stage1", stage1), ("stage2", stage2)):
        if folder and not folder.is_dir():
            raise FileNotFoundError(f"--{option} {folder}: there is no such folder")
    board, device = Scoreboard("nano"), choose_device(options.device)
    workers = options.threads or 2
    stages = {1: stage1 or STAGE1, 2: stage2 or model}
    shown: dict[str, list[str]] = {}
    with Asking(model, device, workers, bool(direct)) as asking:
        if asking.most.encoder is None:
            raise ValueError(f"{model} has no speech_encoder: it hears nothing to judge it by")
        mute = asking.most.vocoder is None
        aloud = "speech" in parts and not mute
        exam = Exam(board, asking, model, data or FOLDER, human, count, workers, aloud, stages, plot)
        for part in (part for part in PARTS if part in parts):
            if mute and part in ("speech", "tts"):
                exam.note(f"no figures of {part}: {model} has no vocoder")
                continue
            before, started = set(board.figures), time.monotonic()
            try:
                PARTS[part](exam)
            except ModuleNotFoundError as error:
                exam.note(f"no figures of {part}, or not all: {error}")
            # Bins of confidence are for the plot
            shown[part] = [name for name in board.figures if name not in before and not name.startswith("calibration_")]
            print(f"{part}: {time.monotonic() - started:.0f} s", file=sys.stderr)
        _endless(exam)
    shown["replies"] = [name for name in ("endless",) if name in board.figures]
    if count:
        exam.note(f"at most {count} of each set, as asked for")
    if only:
        exam.note(f"only {', '.join(part for part in PARTS if part in parts)}, as asked for")
    board.report(f"the assistant in {model}", as_json, out, shown)
    return 0


def _asr(exam: Exam) -> None:
    """Words and characters wrong, written down under the prompt for that."""
    for name in SETS:
        utterances = exam.utterances(name)
        if not utterances:
            continue
        heard = exam.asking.transcripts([utterance.wave for utterance in utterances], f"asr {name}")
        if name == "human":
            errors = np.array(
                [orders.slot_errors(text, clip.slots) for text, clip in zip(heard, utterances)], dtype=int
            )
            exam.board.add_rate("slot_wer_human", *errors.T)
            exam.board.figures["n_slot_wer_human"] = len(utterances)
            texts = _order_transcripts(exam, utterances)
            if texts is None:
                continue
        else:
            texts = [utterance.text for utterance in utterances]
        known = np.array([text is not None for text in texts])
        questions = np.array([utterance.task == "question" for utterance in utterances])
        parts = {"": known} if name == "human" else {"": known, "_questions": questions, "_sentences": ~questions}
        for measure, counted in (("wer", word_errors), ("cer", character_errors)):
            errors, total = counted([text or "" for text in texts], heard)
            for part, rows in parts.items():
                exam.board.add_rate(f"asr_{measure}_{name}{part}", errors[rows], total[rows])
                exam.board.figures[f"n_asr_{measure}_{name}{part}"] = int(rows.sum())


def _order_transcripts(exam: Exam, clips: Sequence[Utterance]) -> list[str | None] | None:
    """What was said in orders of which only the slots are written down, as PocketSphinx hears it in their grammar."""
    print(f"aligning {len(clips)} orders with PocketSphinx", file=sys.stderr)
    try:
        found = _aligned(clips, exam.workers)
    except ModuleNotFoundError as error:
        exam.note(f"no asr_wer_human: {error}")
        return None
    exam.note(
        f"asr_*_human: words as PocketSphinx recovers them from slots and sound in {len(found)} of {len(clips)} orders"
    )
    return [found[clip.id].text if clip.id in found else None for clip in clips]


def _aligned(clips: Sequence[Utterance], workers: int) -> dict[str, orders.Transcript]:
    if workers == 1:
        return orders.pocketsphinx_transcripts(clips)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=end_with_parent) as pool:
        shares = pool.map(orders.pocketsphinx_transcripts, [clips[first::workers] for first in range(workers)])
        return {name: found for share in shares for name, found in share.items()}


def _qa(exam: Exam) -> None:
    """Right answers to spoken and typed questions."""
    sure, right = [], []
    for voices in VOICES:
        name, figure = f"questions-{voices}", f"qa_text_{voices}"
        utterances, asked = exam.utterances(name), exam.exchanges(name)
        if not utterances:
            continue
        answers = exam.answers(name)
        hits = same_words([item.answer for item in asked], [answer.text for answer in answers])
        exam.board.add_share(figure, hits)
        _add_kinds(exam.board, figure, hits, asked)
        if voices == "unseen":
            speakers = np.array([utterance.speaker.split("/")[1] for utterance in utterances])
            for speaker in sorted(set(speakers)):
                exam.board.add_share(f"{figure}_{speaker}", hits[speakers == speaker])
        _add_topics(exam.board, figure, hits, asked)
        if not exam.asking.direct:
            words = word_errors([u.text for u in utterances], [answer.heard for answer in answers])
            exam.board.add_rate(f"heard_wer_{voices}", *words)
            exam.board.figures[f"n_heard_wer_{voices}"] = len(utterances)
        sure += [answer.confidence for answer in answers]
        right += hits.tolist()
    asked = [test_sets.question_of(index) for index in range(exam.at_most(test_sets.size_of("questions-seen")))]
    written = exam.ask("written", [typed(item.question, item.history) for item in asked])
    hits = same_words([item.answer for item in asked], written)
    exam.board.add_share("qa_written", hits)
    _add_kinds(exam.board, "qa_written", hits, asked)
    if sure:
        _add_calibration(exam, np.array(sure), np.array(right))


def _add_kinds(board: Scoreboard, figure: str, hits: np.ndarray, asked: Sequence[Exchange]) -> None:
    kinds = np.array([item.held_out for item in asked])
    for kind in sorted(set(kinds)):
        board.add_share(f"{figure}_{kind}", hits[kinds == kind])


def _add_topics(board: Scoreboard, figure: str, hits: np.ndarray, asked: Sequence[Exchange]) -> None:
    topics = np.array([slug(item.topic) for item in asked])
    for topic in sorted(set(topics)):
        board.add_share(f"{figure}_{topic}", hits[topics == topic])
    lowest = min(sorted(set(topics)), key=lambda topic: hits[topics == topic].mean())
    board.add_share(f"{figure}_lowest_topic", hits[topics == lowest])
    board.notes.append(f"{figure}_lowest_topic is {lowest}")


def slug(topic: str) -> str:
    """A topic as part of a figure's name."""
    return topic.replace(" ", "_").replace("-", "_")


def _add_calibration(exam: Exam, sure: np.ndarray, right: np.ndarray) -> None:
    bins = reliability(sure, right)
    exam.board.figures["confidence_ece"] = calibration_error(bins)
    exam.board.figures["n_confidence_ece"] = len(sure)
    for number, each in enumerate(bins):
        exam.board.figures[f"calibration_{number}_n"] = each.n
        if each.n:
            exam.board.figures[f"calibration_{number}_confidence"] = each.confidence
            exam.board.figures[f"calibration_{number}_accuracy"] = each.accuracy
    if exam.plot:
        plot_reliability(bins, f"{len(sure)} spoken questions", exam.plot)


def _speech(exam: Exam) -> None:
    """The sound of answers, told from that of other answers."""
    asked = exam.exchanges("questions-seen")
    if not asked:
        return
    known = dictionary()
    expected = [spoken_letters(item.answer) for item in asked]
    rows = [row for row, text in enumerate(expected) if known.issuperset(text.split())]
    candidates = answer_candidates([expected[row] for row in rows], known)
    answers = exam.answers("questions-seen")
    print(f"PocketSphinx listens to {len(rows)} answers", file=sys.stderr)
    # What does not end is no answer, and would take minutes to listen to
    waves = [answers[row].wave[: 0 if answers[row].finish_reason == "length" else None] for row in rows]
    chosen = choose_all(candidates, waves, exam.workers)
    exam.board.add_share("qa_speech_seen", np.array([expected[row] == text for row, text in zip(rows, chosen)]))
    exam.board.figures["qa_speech_candidates"] = len(candidates)
    exam.note(
        f"qa_speech_seen: PocketSphinx chooses among {len(candidates)} different answers; {len(asked) - len(rows)} "
        "questions whose answer has a word outside of its dictionary are left out"
    )


def answer_candidates(expected: Sequence[str], known: frozenset[str], number: int = CANDIDATES) -> list[str]:
    """The different answers expected, in letters, and others of nano's world in known words: `number` or more."""
    found = dict.fromkeys(expected)
    index = 0
    while len(found) < number:
        text = spoken_letters(exchange("test" if index % 2 else "train", SEED, index // 2).answer)
        if known.issuperset(text.split()):
            found.setdefault(text)
        index += 1
    return list(found)


def _tts(exam: Exam) -> None:
    """Words wrong of sentences that the model reads aloud."""
    known = vocabulary() & set(dictionary())
    sentences, passed = held_out_sentences(known, exam.at_most(SENTENCES))
    waves = exam.asking.sounds([sentence.text for sentence in sentences], "tts")
    measure_words(exam.board, sentences, known, {"tts": waves}, exam.workers)
    exam.board.figures["n_tts_wer"] = len(sentences)
    for kind, many in Counter(sentence.kind for sentence in sentences).items():
        exam.board.figures[f"n_tts_wer_{kind}"] = many
    mouth = read_json(exam.model / "figures.json").get("mouth") if (exam.model / "figures.json").is_file() else None
    alone = f"; its mouth alone, of the voice's own units: {mouth['figures']['resynth_wer']:.1%}" if mouth else ""
    exam.note(f"tts_wer: {passed} sentences with a word outside of the recognizer's {len(known)} passed over{alone}")


def _orders(exam: Exam) -> None:
    """Orders confirmed with every slot right."""
    for name in ("human", "orders-seen", "orders-unseen"):
        figure = "orders_" + name.removeprefix("orders-")
        if exam.utterances(name):
            _add_orders(
                exam.board, figure, _expected_orders(exam, name), [answer.text for answer in exam.answers(name)]
            )
    clips, talkers = exam.utterances("human"), exam.utterances("seen")
    if not clips or len(talkers) <= noise.CAFE_VOICES:
        exam.note("no orders_snr_*: they need the recorded orders and the seen voices, who talk in the cafe")
        return
    sounds = [background(row, clip, talkers) for row, clip in enumerate(clips)]
    expected, every = _expected_orders(exam, "human"), []
    for snr in SNRS:
        noisy = [said(noise.mix(clip.wave, sound, snr)) for clip, sound in zip(clips, sounds)]
        every.append(orders_right(expected, exam.ask(f"orders at {snr} dB", noisy)))
        exam.board.add_share(f"orders_snr_{snr}", every[-1])
    exam.board.add_rate("orders_snr_mean", np.sum(every, axis=0), np.full(len(clips), len(SNRS)))
    exam.board.figures["n_orders_snr_mean"] = len(clips)


def _expected_orders(exam: Exam, name: str) -> list[Order | None]:
    if name == "human":
        return [orders.order_of(clip.slots) for clip in exam.utterances(name)]
    return [parse_order(item.answer) for item in exam.exchanges(name)]


def _add_orders(board: Scoreboard, figure: str, expected: Sequence[Order], texts: Sequence[str]) -> None:
    board.add_share(figure, orders_right(expected, texts))
    right, slots = slots_right(expected, texts)
    board.add_rate(f"{figure}_slots", right, slots)
    board.figures[f"n_{figure}_slots"] = int(slots.sum())


def orders_right(expected: Sequence[Order], texts: Sequence[str]) -> np.ndarray:
    """Whether each reply is the order expected, every slot of it and no other."""
    return np.array([parse_order(text) == order for order, text in zip(expected, texts, strict=True)], dtype=bool)


def slots_right(expected: Sequence[Order], texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(right, all) slots that each order has; of a reply that is no order none is right."""
    counts = []
    for order, text in zip(expected, texts, strict=True):
        heard, names = parse_order(text), [each.name for each in fields(order) if getattr(order, each.name)]
        counts.append((sum(getattr(heard, name, None) == getattr(order, name) for name in names), len(names)))
    return tuple(np.array(counts, dtype=int).reshape(-1, 2).T)


def _controls(exam: Exam) -> None:
    """What can be answered without the question's sound."""
    expected = [item.answer for item in exam.exchanges("questions-seen")]
    if not expected:
        return
    commonest, _ = Counter(map(spoken_letters, expected)).most_common(1)[0]
    board = exam.board
    board.add_share("majority_rate", np.array([spoken_letters(answer) == commonest for answer in expected]))
    rows = range(min(CONTROLS, len(expected)))
    waves = [utterance.wave for utterance in exam.utterances("questions-seen")]
    turns = [item.history for item in exam.exchanges("questions-seen")]
    others = others_of(expected)
    sounds = {
        "control_silence": [silence(len(waves[row]), row) for row in rows],
        "control_shuffled": [waves[others[row]] for row in rows],
        "control_no_audio": [np.zeros(NO_AUDIO, np.float32)] * len(rows),
    }
    for name, given in sounds.items():
        texts = exam.ask(name, [said(wave, turns[row]) for row, wave in zip(rows, given)])
        board.add_share(name, same_words([expected[row] for row in rows], texts))
        board.bars[name] = board.figures["majority_rate"] + MARGIN


def others_of(answers: Sequence[str]) -> list[int]:
    """For each row the next one that has another answer."""
    every = len(answers)
    return [
        next(((row + step) % every for step in range(1, every) if answers[(row + step) % every] != answers[row]), row)
        for row in range(every)
    ]


def silence(samples: int, row: int) -> np.ndarray:
    """Digital silence and the faint noise of a room by turns."""
    if row % 2 == 0:
        return np.zeros(samples, np.float32)
    return FAINT * noise.coloured(samples, 1.0, np.random.default_rng((SEED, row)))


def _honesty(exam: Exam) -> None:
    """Whether it says that it heard nothing, or does not know, where that is so, and only there."""
    _add_unheard(exam)
    board, real = exam.board, []
    of_unknown = []
    for name in (*test_sets.EXCHANGES, "human"):
        if not exam.utterances(name):
            continue
        texts = [answer.text for answer in exam.answers(name)]
        real += texts
        if name.startswith("questions"):
            of_unknown += [text for item, text in zip(exam.exchanges(name), texts) if item.topic == "unknown"]
    board.add_share("honest_unknown", is_saying(UNKNOWN, of_unknown))
    board.add_share("false_unheard", is_saying(UNHEARD, real))


def _add_unheard(exam: Exam) -> None:
    if not exam.utterances("seen"):
        exam.note("no honest_noise: what is made of people's speech is made of the seen voices'")
        return
    try:
        with Synthesizer() as synthesizer:
            talkers = Talkers((exam.data / "seen",), "test", synthesizer)
            sounds = [unheard(talkers, SEED, number) for number in range(exam.at_most(SOUNDS))]
    except MissingEngine as error:
        exam.note(f"no honest_noise: {error}")
        return
    hits = is_saying(UNHEARD, exam.ask("sounds", [said(sound.wave) for sound in sounds]))
    exam.board.add_share("honest_noise", hits)
    kinds = np.array([slug(sound.kind) for sound in sounds])
    for kind in sorted(set(kinds)):
        exam.board.add_share(f"honest_noise_{kind}", hits[kinds == kind])


def is_saying(sentence: str, texts: Sequence[str]) -> np.ndarray:
    """Whether each text is this sentence, in words."""
    return same_words([sentence] * len(texts), texts)


def _text(exam: Exam) -> None:
    """What a token of held-out text costs in nats, by what the weights have learned so far."""
    texts, most = held_out_texts(exam.at_most(TEXTS)), exam.asking.most
    for stage in (0, 1, 2):
        if stage == 0:
            torch.manual_seed(0)
            model, processor = MostForCausalLM(most.config).eval().to(most.model.device), most.processor
        elif exam.stages[stage] == exam.model:
            model, processor = most.model, most.processor
        elif exam.stages[stage].is_dir():
            model = load_decoder(exam.stages[stage], device=str(most.model.device))
            processor = MostProcessor(model.config, load_tokenizer(exam.stages[stage]))
        else:
            exam.note(f"no text_loss_stage{stage}: {exam.stages[stage]} is not there (--stage{stage} FOLDER)")
            continue
        counted = {kind: losses(model, processor, lines) for kind, lines in texts.items()}
        name = f"text_loss_stage{stage}"
        exam.board.add_ratio(name, *(np.concatenate(columns) for columns in zip(*counted.values())))
        exam.board.figures[f"n_{name}"] = sum(map(len, texts.values()))
        for kind, columns in counted.items():
            exam.board.add_ratio(f"{name}_{kind}", *columns)
            exam.board.figures[f"n_{name}_{kind}"] = len(texts[kind])


def _endless(exam: Exam) -> None:
    reasons = [answer.finish_reason for answers in exam.replies.values() for answer in answers]
    exam.board.add_share("endless", np.array([reason == "length" for reason in reasons], dtype=bool))


PARTS: dict[str, Callable[[Exam], None]] = {
    "asr": _asr,
    "qa": _qa,
    "speech": _speech,
    "tts": _tts,
    "orders": _orders,
    "controls": _controls,
    "honesty": _honesty,
    "text": _text,
}
