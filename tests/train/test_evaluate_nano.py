"""Evaluation of the assistant on a handful of hums: a tiny one with random weights, and one that knows every clip."""

import json
from dataclasses import replace

import numpy as np
import pytest

import most_core
from most_core import Most
from train import __main__ as cli
from train import asking, evaluate_nano
from train.asking import Answer, Asking, said, typed
from train.config import RunOptions
from train.data import orders, synthesize, test_sets
from train.data.mouth_texts import Sentence
from train.data.readers import OrderClip
from train.data.replies import UNHEARD
from train.data.shards import describe_shard, write_manifest, write_shard
from train.data.utterance import Utterance, spoken_letters
from train.data.voices import MissingEngine
from train.data.world import exchange
from train.data.world.coffee import confirmation, parse_order
from train.evaluate_nano import answer_candidates, is_saying, orders_right, others_of, silence, slots_right
from train.scoreboard import Scoreboard

ITEMS = 12
ORDERS = [
    {"coffeeDrink": "latte", "size": "small"},
    {"coffeeDrink": "mocha", "sugarAmount": "brown sugar", "milkAmount": "a bit of cream"},
]
FULL = asking.SILENT
SHORT = replace(FULL, max_new_tokens=8, max_heard_tokens=3, max_sentence_tokens=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a tiny random assistant; read only."""
    folder = tmp_path_factory.mktemp("nano") / "model"
    most_core.untrained("tiny").save(folder)
    return folder


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """Shards of hum in place of the synthesized sets: every utterance of all has a length of its own."""
    folder = tmp_path_factory.mktemp("evaluation")
    rng, length = np.random.default_rng(0), 16_000
    with pytest.MonkeyPatch.context() as patch:
        _shrink(patch)
        for name in ("seen", "unseen", *test_sets.EXCHANGES):
            config, items = test_sets.config_of(name), []
            for row in range(config.shards * config.utterances_per_shard):
                text, task = test_sets._texts_of(name)(config, row)
                wave = rng.uniform(-0.3, 0.3, length := length + 1).astype(np.float32)
                speaker = synthesize.voice(config, row, 0).speaker
                items.append(Utterance(f"{name}/{row}/0", speaker, text, wave, "", "", "test", task))
            path = folder / name / "speech-00000.arrow"
            write_shard(path, items)
            write_manifest(path.parent, [describe_shard(path)], config.generator)
    return folder


def _shrink(patch):
    patch.setattr(test_sets, "UTTERANCES", ITEMS)
    patch.setattr(test_sets, "size_of", lambda name: ITEMS)


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """Small sets, no engine, two orders of people, no PocketSphinx, short replies."""

    def read(kind, folder, split):
        assert (kind, split) == ("barista", "test")
        for row, slots in enumerate(ORDERS):
            wave = np.random.default_rng(row).uniform(-0.3, 0.3, 2000 + row).astype(np.float32)
            yield OrderClip(f"order-{row}", "barista-1", None, wave, "", "", "test", slots=slots)

    def without_engine(*_):
        raise MissingEngine("espeak-ng is not installed: run `apt install espeak-ng`")

    _shrink(monkeypatch)
    monkeypatch.setattr(test_sets.readers, "read", read)
    monkeypatch.setattr(orders, "pocketsphinx_transcripts", lambda clips: {})
    monkeypatch.setattr(evaluate_nano, "unheard", without_engine)
    monkeypatch.setattr(asking, "SILENT", SHORT)
    monkeypatch.setattr(asking, "ALOUD", replace(SHORT, speak=True, max_sentence_units=3))
    monkeypatch.setattr(evaluate_nano, "CONTROLS", 4)
    monkeypatch.setattr(evaluate_nano, "STAGE1", evaluate_nano.Path("no/such/stage1"))
    monkeypatch.setenv(test_sets.HUMAN_VARIABLE, "orders")
    monkeypatch.delenv("MOST_DEBUG", raising=False)


@pytest.fixture
def knowing(monkeypatch, spoken):
    """An assistant that knows clips by their length: it is right about seen voices, says "no idea" to unseen ones,
    takes every order, leaves out the size where there is noise, and says so when it does not know a clip."""
    right, texts = {}, {}
    for name in test_sets.EXCHANGES:
        utterances = test_sets.load(name, spoken)
        for utterance, item in zip(utterances, test_sets.exchanges_of(name, utterances)):
            right[len(utterance.wave)] = "No idea." if name == "questions-unseen" else item.answer
    for name in ("seen", "unseen"):
        texts |= {len(utterance.wave): utterance.text for utterance in test_sets.load(name, spoken)}
    for row, slots in enumerate(ORDERS):
        right[2000 + row] = confirmation(orders.order_of(slots))
    typed_answers = {item.question: item.answer for item in map(test_sets.question_of, range(ITEMS))}
    clean = {}

    def answer(self, messages, aloud=None, title=""):
        told = []
        for conversation in messages:
            content = conversation[-1]["content"]
            if isinstance(content, str):
                told.append(Answer(typed_answers[content], "", 1.0, "eos", np.zeros(0, np.float32)))
                continue
            wave = content[0]["audio"]
            text = right.get(len(wave), UNHEARD) if wave.std() > 0.05 else UNHEARD
            if len(wave) < 3000 and not np.array_equal(clean.setdefault(len(wave), wave), wave):
                text = text.replace("small ", "")
            told.append(Answer(text, "", 0.95 if text != "No idea." else 0.15, "eos", wave[:100]))
        return told

    monkeypatch.setattr(Asking, "answers", answer)
    monkeypatch.setattr(Asking, "transcripts", lambda self, waves, title: [texts.get(len(w), "latte") for w in waves])


def evaluated(capsys, model, spoken, **options):
    assert evaluate_nano.run(model, True, RunOptions(threads=1, device="cpu"), spoken, **options) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_right_answers_are_counted_by_voice_topic_and_kind(capsys, model, spoken, knowing, tmp_path):
    plot = tmp_path / "sure.png"
    told = evaluated(capsys, model, spoken, only=["qa"], plot=plot)
    figures = told["figures"]
    assert (figures["qa_text_seen"], figures["qa_text_unseen"], figures["qa_written"]) == (1, 0, 1)
    assert figures["qa_text_seen_low"] == pytest.approx(ITEMS / (ITEMS + 1.96**2), abs=1e-3)  # Wilson's
    assert (figures["qa_text_seen_high"], figures["n_qa_text_seen"]) == (1, ITEMS)
    assert figures["qa_text_unseen_rms"] == figures["qa_text_unseen_lowest_topic"] == 0
    assert figures["qa_text_seen_arithmetic"] == figures["n_qa_text_seen_arithmetic"] == 1
    assert figures["n_qa_written_template"] + figures["n_qa_written_value"] == ITEMS
    # Half are right and .95 sure, half wrong and .15 sure
    assert figures["confidence_ece"] == pytest.approx((0.05 + 0.15) / 2)
    assert (figures["calibration_9_n"], figures["calibration_9_accuracy"]) == (ITEMS, 1)
    assert (figures["calibration_1_n"], figures["calibration_1_confidence"]) == (ITEMS, 0.15)
    assert plot.stat().st_size > 5000
    assert figures["endless"] == 0


def test_orders_are_accepted_with_every_slot_right(capsys, model, spoken, knowing):
    figures = evaluated(capsys, model, spoken, only=["orders"])["figures"]
    assert figures["orders_human"] == figures["orders_seen"] == figures["orders_unseen"] == 1
    # In noise the first of two orders, which had a size, is confirmed without
    assert [figures[f"orders_snr_{snr}"] for snr in evaluate_nano.SNRS] == [0.5] * 7
    assert figures["orders_snr_mean"] == 0.5


def test_controls_are_no_better_than_luck_for_one_who_listens(capsys, model, spoken, knowing):
    told = evaluated(capsys, model, spoken, only=["controls", "honesty"])
    figures = told["figures"]
    assert figures["majority_rate"] == pytest.approx(1 / ITEMS, abs=1e-4)
    assert figures["control_silence"] == figures["control_shuffled"] == figures["control_no_audio"] == 0
    assert figures["false_unheard"] == 0
    assert "no honest_noise: espeak-ng is not installed" in " ".join(told["notes"])


def test_transcripts_are_judged_by_words_and_characters(capsys, model, spoken, knowing):
    told = evaluated(capsys, model, spoken, only=["asr"])
    figures = told["figures"]
    assert figures["asr_wer_seen"] == figures["asr_cer_unseen_questions"] == 0
    assert figures["n_seen"] == figures["n_asr_wer_seen"] == ITEMS
    # "latte" is one of the two words of the first order, none of the five of the second ("mocha" is taken for it)
    assert figures["slot_wer_human"] == pytest.approx((1 + 7) / 9, abs=0.12)
    assert "in 0 of 2 orders" in " ".join(told["notes"])


def test_a_random_assistant_by_the_command_line(capsys, model, spoken, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate_nano, "dictionary", lambda: frozenset())
    monkeypatch.setattr(evaluate_nano, "choose_all", lambda candidates, waves, workers: ["" for _ in waves])
    out = tmp_path / "figures.json"
    out.write_text('{"ears": {}}')
    command = ["evaluate", "nano", "--model", str(model), "--data", str(spoken), "--device", "cpu", "--threads", "1"]
    command += ["--count", "2", "--out", str(out)]
    parts = ["asr,qa,orders", "controls", "honesty", "text"]
    assert cli.main([*command, "--json", "--only", *parts]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["bench"], set(told["machine"])) == ("nano", {"cpu", "cores", "gpu", "torch"})
    assert json.loads(out.read_text()) == {"ears": {}, "nano": told}
    figures = told["figures"]
    for name in ("qa_text_seen", "qa_text_unseen", "qa_written", "orders_human", "control_no_audio", "endless"):
        assert 0 <= figures[name + "_low"] <= figures[name] <= figures[name + "_high"] <= 1
    assert figures["n_qa_text_seen"] == 2
    assert figures["qa_text_seen"] == figures["orders_human"] == 0
    assert figures["text_loss_stage0"] > 3
    assert figures["text_loss_stage2_low"] <= figures["text_loss_stage2"] <= figures["text_loss_stage2_high"]
    assert "text_loss_stage1" not in figures
    assert any("no/such/stage1 is not there (--stage1 FOLDER)" in note for note in told["notes"])
    assert any("at most 2 of each set" in note for note in told["notes"])

    assert cli.main([*command, "--only", "orders"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "## orders" in lines
    [row] = [line for line in lines if line.startswith("| `orders_human` ")]
    assert row == "| `orders_human` | 0.00 % | 0.0 .. 65.8 | 2 | at least 85 %: MISS |"


def test_what_cannot_be_had_is_left_out_with_a_note(capsys, monkeypatch, model, tmp_path):
    def run(*_):
        raise MissingEngine("flite is not installed: run `apt install flite`")

    monkeypatch.setattr(synthesize, "run", run)
    monkeypatch.delenv(test_sets.HUMAN_VARIABLE)
    monkeypatch.setattr(test_sets, "HUMAN_BESIDE_PROJECT", tmp_path / "no")
    told = evaluated(capsys, model, tmp_path, count=1, only=["asr,qa,speech,orders,controls,honesty"])
    assert "qa_written" in told["figures"]
    assert not [name for name in told["figures"] if "seen" in name or "human" in name or "control" in name]
    notes = " ".join(told["notes"])
    assert "no figures of questions-seen: flite is not installed" in notes
    assert "no figures of human: no recorded coffee orders" in notes


def test_spoken_answers_are_told_from_others(capsys, monkeypatch, model, spoken, knowing):
    asked = []

    def choose(candidates, waves, workers):
        asked.append((candidates, [len(wave) for wave in waves]))
        return [*candidates[: len(waves) - 3], "", candidates[-1], candidates[0]]

    monkeypatch.setattr(evaluate_nano, "choose_all", choose)
    monkeypatch.setattr(evaluate_nano, "answer_candidates", lambda expected, known: [*expected, "another answer"])
    told = evaluated(capsys, model, spoken, only=["speech"])
    [(candidates, lengths)] = asked
    n = told["figures"]["n_qa_speech_seen"]
    assert told["figures"]["qa_speech_seen"] == pytest.approx((n - 3) / n, abs=1e-4)
    assert told["figures"]["qa_speech_candidates"] == len(candidates) == n + 1
    assert set(lengths) == {100}


def test_sentences_are_read_aloud(capsys, model, spoken, monkeypatch):
    sentences = [Sentence("It is noon.", "answers"), Sentence("Hello, hello.", "sentences")]

    def measure_words(board, given, known, sounds, workers):
        assert given == sentences
        assert [len(wave) for wave in sounds["tts"]] == [11, 13]
        assert max(wave.max() for wave in sounds["tts"]) == 1
        board.add_rate("tts_wer", np.array([1, 0]), np.array([3, 2]))

    monkeypatch.setattr(Most, "speak", lambda self, text: (np.full(len(text), 2.0, np.float32), 16_000))
    monkeypatch.setattr(evaluate_nano, "measure_words", measure_words)
    monkeypatch.setattr(evaluate_nano, "held_out_sentences", lambda known, number: (sentences, 3))
    for name in ("vocabulary", "dictionary"):
        monkeypatch.setattr(evaluate_nano, name, frozenset)
    (model / "figures.json").write_text('{"mouth": {"figures": {"resynth_wer": 0.25}}}')
    try:
        told = evaluated(capsys, model, spoken, only=["tts"])
    finally:
        (model / "figures.json").unlink()
    assert (told["figures"]["tts_wer"], told["figures"]["n_tts_wer"]) == (0.2, 2)
    assert "3 sentences" in told["notes"][0]
    assert told["notes"][0].endswith("its mouth alone, of the voice's own units: 25.0%")


def test_two_processes_answer_as_one_does(model, monkeypatch):
    monkeypatch.setattr(asking, "SILENT", FULL)  # other processes know nothing of shorter replies
    given = [typed("hello"), said(np.zeros(2000, np.float32), [("hello", "Hello.")]), typed("good morning")] * 2
    told = []
    for workers in (1, 2):
        with Asking(model, workers=workers) as asked:
            told.append([(answer.text, answer.heard, answer.confidence) for answer in asked.answers(given)])
    assert told[0] == told[1]
    assert told[0][0] != told[0][2]


def test_an_order_is_right_with_every_slot_and_no_other():
    latte = orders.order_of({"coffeeDrink": "latte", "size": "small", "milkAmount": "some cream"})
    texts = [
        "One small latte with some cream, coming up.",
        "One small latte with cream, coming up.",
        "One small latte with some cream and sugar, coming up.",
        "One latte, coming up.",
        UNHEARD,
        "",
    ]
    assert orders_right([latte] * 6, texts).tolist() == [True, False, False, False, False, False]
    right, slots = slots_right([latte] * 6, texts)
    assert right.tolist() == [3, 2, 3, 1, 0, 0]
    assert slots.tolist() == [3] * 6
    assert parse_order(confirmation(latte)) == latte


def test_another_question_has_another_answer():
    assert others_of(["a", "a", "b", "c"]) == [2, 2, 3, 0]
    assert not silence(100, 0).any()
    assert 0 < np.abs(silence(100, 1)).max() <= 3e-4
    assert np.array_equal(silence(100, 1), silence(100, 1))


def test_a_sentence_is_known_by_its_words():
    assert is_saying(UNHEARD, ["sorry i did not catch that", "I did not catch that.", ""]).tolist() == [
        True,
        False,
        False,
    ]
    assert len(is_saying(UNHEARD, [])) == 0


def test_candidates_are_many_different_and_all_of_known_words():
    drawn = [spoken_letters(exchange("test", evaluate_nano.SEED, index).answer) for index in range(60)]
    known = frozenset(word for text in drawn for word in text.split()) - {"is"}
    found = answer_candidates(["one two", "one two", "three"], known, 20)
    assert found[:2] == ["one two", "three"]
    assert len(found) == len(set(found)) == 20
    assert all(known.issuperset(text.split()) for text in found[2:])


def test_the_share_of_none_is_no_figure():
    board = Scoreboard("nano")
    board.add_share("endless", np.array([], bool))
    assert board.figures == {}
    board.add_share("endless", np.array([True, False]))
    assert board.figures["endless_low"] == pytest.approx(0.0945, abs=1e-3)
    assert board.figures["endless_high"] == pytest.approx(0.9055, abs=1e-3)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--model", "nowhere"], "error: there is no folder nowhere: give a MoST checkpoint folder"),
        (["--only", "qa,noise"], "error: --only noise: there is no such part; choose from asr, qa, speech, tts"),
        (["--out", "nowhere/f.json"], "error: --out nowhere/f.json: nowhere is no folder; make it first"),
        (["--plot", "nowhere/f.png"], "error: --plot nowhere/f.png: nowhere is no folder; make it first"),
        (["--stage1", "nowhere"], "error: --stage1 nowhere: there is no such folder"),
    ],
)
def test_wrong_input_is_one_line(capsys, model, flags, line):
    assert cli.main(["evaluate", "nano", "--model", str(model), *flags]) == 2
    [told] = capsys.readouterr().err.splitlines()
    assert told.startswith(line)
