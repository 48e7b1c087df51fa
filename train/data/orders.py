"""What was said in a recorded coffee order, of which only the slots are written down, and how well the slots are heard.

A clip's slots leave a few hundred sentences of the order grammar. The full transcript is the one among them that an
acoustic model finds likeliest: any CTC model (`transcripts`), or PocketSphinx, which needs none of ours.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from most_core.speech import WORD_SEPARATOR
from train.data.readers import OrderClip, read
from train.data.utterance import spoken_letters
from train.data.world.coffee import OPENINGS, Order, order_phrases

if TYPE_CHECKING:
    from pocketsphinx import Decoder

SLOTS = ("size", "roast", "numberOfShots", "coffeeDrink", "milkAmount", "sugarAmount")  # as the labels name them
PATHS_AT_ONCE = 128
JOINING = ("with", "and")  # the words between slots, which no slot has
EDIT = 1000  # what an edit of any word costs; one of a slot word costs 1 more, so the remainder counts those


class Transcript(NamedTuple):
    """A recovered transcript; `margin` is how clearly it won, to be compared within one way of recovery only."""

    text: str
    margin: float


def order_of(slots: Mapping[str, str]) -> Order:
    """The grammar's order with these slots."""
    unknown = sorted(set(slots) - set(SLOTS))
    if unknown or "coffeeDrink" not in slots:
        raise ValueError(f"{dict(slots)} is no coffee order: it needs coffeeDrink and may have {', '.join(SLOTS)}")
    return Order(*(slots.get(name) for name in SLOTS))


def candidates(slots: Mapping[str, str]) -> list[str]:
    """Every sentence, in lower case, that an order with these slots may have been: at most 360.

    Wider than `order_phrases`: people leave out the article ("brew espresso"), and some clips begin after the opening.
    """
    return [f"{start} {body}".strip() for start in _starts() for body in _bodies(slots)]


def _starts() -> list[str]:
    openings, articles = [opening.lower() for opening in OPENINGS] + [""], ("a", "an", "")
    return [f"{opening} {article}".strip() for opening in openings for article in articles]


def transcripts(
    clips: Iterable[OrderClip], log_probs: Callable[[np.ndarray], torch.Tensor], vocab: Mapping[str, int]
) -> dict[str, Transcript]:
    """The likeliest candidate of each clip by its CTC score; the margin is the lead over the second, in nats a frame.

    `log_probs` gives [frames, characters] for a waveform; `vocab` numbers lower-case letters, "'" and "|", blank 0.
    A clip too short for any of its candidates is left out.
    """
    found = {}
    for clip in clips:
        texts = candidates(clip.slots)
        scores = log_probs(clip.wave).float().cpu()
        losses = torch.cat(
            [_ctc_losses(scores, texts[at : at + PATHS_AT_ONCE], vocab) for at in range(0, len(texts), PATHS_AT_ONCE)]
        )
        (best, second), order = losses.topk(2, largest=False)
        if best.isfinite():
            found[clip.id] = Transcript(texts[int(order[0])], float(second - best) / len(scores))
    return found


def _ctc_losses(scores: torch.Tensor, texts: Sequence[str], vocab: Mapping[str, int]) -> torch.Tensor:
    targets = [[vocab[WORD_SEPARATOR if c == " " else c] for c in spoken_letters(text)] for text in texts]
    return F.ctc_loss(
        scores[:, None].expand(-1, len(texts), -1),
        torch.tensor(list(chain.from_iterable(targets))),
        torch.full((len(texts),), len(scores)),
        torch.tensor([len(target) for target in targets]),
        reduction="none",
    )


def pocketsphinx_transcripts(clips: Iterable[OrderClip]) -> dict[str, Transcript]:
    """The same with PocketSphinx and its US English model; the margin is its posterior of the sentence, 0..1.

    A clip in which it finds none of the candidates is left out.
    """
    try:
        from pocketsphinx import Decoder
    except ImportError:
        raise ModuleNotFoundError("orders are aligned with PocketSphinx: pip install pocketsphinx") from None
    decoders = [
        Decoder(lm=None, beam=beam, pbeam=beam, wbeam=beam, cmn="batch", loglevel="FATAL") for beam in (1e-60, 1e-90)
    ]  # the wide beam takes four times as long, and few clips need it
    found = {}
    for clip in clips:
        texts = frozenset(candidates(clip.slots))
        heard = (_aligned(decoder, clip) for decoder in decoders)
        best = next((transcript for transcript in heard if transcript and transcript.text in texts), None)
        if best:
            found[clip.id] = best
    return found


def _aligned(decoder: Decoder, clip: OrderClip) -> Transcript | None:
    """PocketSphinx's best path, which with too narrow a beam is only the beginning of a sentence."""
    decoder.add_jsgf_string(clip.id, grammar(clip.slots))
    decoder.activate_search(clip.id)
    decoder.start_utt()
    decoder.process_raw(_pcm16(clip.wave), full_utt=True)
    decoder.end_utt()
    heard = decoder.hyp()
    decoder.remove_search(clip.id)
    return Transcript(heard.hypstr, float(heard.prob)) if heard else None


def grammar(slots: Mapping[str, str]) -> str:
    """The candidates as a JSGF grammar. Weights say what English makes likely and a recognizer cannot hear well."""
    bodies = []
    for body in _bodies(slots):
        right, wrong = ("an", "a") if body[0] in "aei" else ("a", "an")
        bodies.append(f"( /0.80/ {right} | /0.04/ {wrong} | /0.16/ <NULL> ) {body}")
    openings = " | ".join(f"/0.11/ {opening.lower()}" for opening in OPENINGS)
    return f"#JSGF V1.0;\ngrammar order;\npublic <order> = ( {openings} | /0.01/ <NULL> ) ( {' | '.join(bodies)} );\n"


def _bodies(slots: Mapping[str, str]) -> list[str]:
    """The grammar's orderings of the slots, without opening and article."""
    start = f"{OPENINGS[0]} a "
    phrases = order_phrases(order_of(slots))
    return [phrase.removeprefix(start).lower() for phrase in phrases if phrase.startswith(start)]


def _pcm16(wave: np.ndarray) -> bytes:
    peak = max(float(np.abs(wave).max()), 1e-3)  # quiet clips are brought up, for the model expects a near microphone
    return (wave * (0.6 * 32767 / peak)).astype(np.int16).tobytes()


def slot_words(slots: Mapping[str, str]) -> list[str]:
    """The words of all slots, in the grammar's order: what `slot_errors` counts against."""
    return [word for name in SLOTS if name in slots for word in _words(slots[name])]


def slot_errors(heard: str, slots: Mapping[str, str]) -> tuple[int, int]:
    """Word errors on the slots of an order, and the number of their words.

    What was heard is aligned with every candidate sentence, the closest one counts (by all words, then by slot words,
    so nobody has to know the order in which the slots were said). Errors are slot words substituted or deleted, and
    words inserted just before a slot word: "soy milk" for "milk" is one. The rest of the sentence is not judged:
    openings, articles, "with", "and", a "please" at the end.
    """
    hypothesis = _words(heard)
    cost = min(
        _edit_cost(hypothesis, [(word, False) for word in _words(start)] + body)
        for body in ([(word, word not in JOINING) for word in _words(body)] for body in _bodies(slots))
        for start in _starts()
    )
    return cost % EDIT, len(slot_words(slots))


def _edit_cost(heard: Sequence[str], reference: Sequence[tuple[str, bool]]) -> int:
    """The least cost of turning the reference, words and whether they are of a slot, into what was heard."""
    row = [0]
    for _, slot in reference:
        row.append(row[-1] + EDIT + slot)
    for word in heard:
        above, row = row, [row[0] + EDIT + reference[0][1]]
        for at, (expected, slot) in enumerate(reference):
            before_slot = at + 1 < len(reference) and reference[at + 1][1]
            replaced = above[at] + (0 if word == expected else EDIT + slot)
            row.append(min(replaced, row[-1] + EDIT + slot, above[at + 1] + EDIT + before_slot))
    return row[-1]


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def _main(folder: str) -> None:
    """Print the transcripts of all orders in a folder, both splits, as JSON for `corpus`'s `transcripts`."""
    clips = [clip for split in ("train", "test") for clip in read("barista", folder, split)]
    texts = {name: found.text for name, found in pocketsphinx_transcripts(clips).items()}
    print(json.dumps(texts, indent=1))


if __name__ == "__main__":
    _main(*sys.argv[1:])
