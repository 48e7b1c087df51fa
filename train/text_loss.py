"""How well a language model still reads: its loss on held-out sentences, by what it was trained with so far."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count, islice

import numpy as np
import torch
import torch.nn.functional as F

from most_core.model import MostForCausalLM
from most_core.processing import MostProcessor
from train.data import english
from train.data.test_sets import SEED
from train.data.world import exchange


def held_out_texts(number: int) -> dict[str, list[str]]:
    """As many different sentences of the test split: open ones, and answers of nano's world."""
    drawn = {
        "sentences": (english.sentence("test", SEED + 1, index) for index in count()),
        "answers": (exchange("test", SEED + 1, index).answer for index in count()),
    }
    return {kind: _different(texts, number) for kind, texts in drawn.items()}


def _different(texts: Sequence[str], number: int) -> list[str]:
    found: dict[str, None] = {}
    for text in islice(texts, 100 * number):
        found.setdefault(text)
        if len(found) == number:
            break
    return list(found)


def losses(model: MostForCausalLM, processor: MostProcessor, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(nats, tokens) of each text, said alone as lessons of text are: what each token and the end cost."""
    totals, tokens = [], []
    begin, end = processor.tokenizer.bos_token_id, processor.tokenizer.eos_token_id
    for text in texts:
        ids = torch.tensor([[begin, *processor.text_ids(text), end]], device=model.device)
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0, :-1].float()
        totals.append(float(F.cross_entropy(logits, ids[0, 1:], reduction="sum")))
        tokens.append(ids.shape[1] - 1)
    return np.array(totals), np.array(tokens)
