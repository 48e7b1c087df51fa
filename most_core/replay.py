"""A recorded reply once more: the very tokens of a trace in one teacher-forced pass, with experts off or without mask.

    plain = scored(most, trace, features)
    without = scored(most, trace, features, knock_out=[(3, 7)], like=plain)
    lost = plain.logprob - without.logprob          # nats of each token of the reply
    for effect in importance(most, trace, features, count=5): ...

`features` [F, D] are those of the sound in the prompt (`features_of`), None where nothing was heard. A pass goes
through the model's modules layer by layer and chooses the experts itself, so that nothing that others use is ever
changed: any number of replays may run beside a conversation.

Shapes: T tokens, R tokens of the reply, L MoE layers, E routed experts, K experts per token, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from transformers.masking_utils import create_causal_mask

from most_core import generation
from most_core.assistant import Most
from most_core.decoder import ModuleDecoder, knock_out_masks
from most_core.generation import HEARD, GenerationSettings, ReplyGrammar
from most_core.model import MostMoe, check_ids
from most_core.processing import Prompt, as_messages
from most_core.router import choose_experts, modality_of
from most_core.speech import SAMPLE_RATE
from most_core.trace import RoutingRecorder, RoutingTrace
from most_core.trace_rows import group_masks

UNBOUNDED = 2**31  # tokens of a stretch, where its own limit is not known
ROWS = 256  # of logits at a time: a full vocabulary is wide
SOFTENED = 2.0  # temperature at which experts are ranked: where a reply is sure of its words, nothing has a slope


@dataclass(frozen=True)
class Rules:
    """Which tokens the grammar left at each place of a reply: `bias` [kinds, V] is 0 or -inf, `kind` [R] says which."""

    bias: torch.Tensor
    kind: torch.Tensor


@dataclass(frozen=True)
class Replay:
    """A reply's tokens, scored. Without experts off and with the mask `logprob` is what was recorded."""

    place: np.ndarray  # int64 [R], positions of the reply's tokens in the trace
    logprob: np.ndarray  # float32 [R], among the tokens that might have come
    free: np.ndarray  # float32 [R], among the whole vocabulary
    trace: RoutingTrace  # how all T tokens were routed in this pass, with its log-probabilities and both norms
    rules: Rules


@dataclass(frozen=True)
class Effect:
    """What one expert is worth to a reply: the nats that its log-probability loses without it."""

    layer: int  # decoder layer number
    expert: int
    modality: int  # of the tokens that it took
    estimate: float  # of silencing it, from the reply's gradient
    exact: float | None = None  # from a pass without it; None where that was not made


def features_of(most: Most, wave: np.ndarray, sampling_rate: int = SAMPLE_RATE) -> torch.Tensor:
    """The features of a sound as the prompt of an answer to it has them."""
    prompt = most.processor.prompt(as_messages(wave, sampling_rate), max_frames=most.loop.decoder.context)
    return prompt.features


def prompt_of(most: Most, trace: RoutingTrace, features: torch.Tensor | None = None) -> Prompt:
    """What the recorded reply answered, exactly: for `Most.stream_prompt`. ValueError with one line where the trace
    has no reply, or not these features."""
    place = _place(most, trace)
    ids, tokens = trace.id.tolist(), most.tokens
    frames, given = ids.count(tokens.frame), 0 if features is None else len(features)
    if frames and not given:
        raise ValueError(f"the turn was spoken, {frames} frames long: give the sound that was heard")
    if frames != given:
        raise ValueError(f"the turn heard {frames} frames of sound, but {given} are given: give the sound of this turn")
    begin = int(place[0])
    if not begin:
        raise ValueError("the trace begins with its reply: give one with the prompt that was answered")
    spans = _spans(trace, 0, begin)
    asked = [at for at, (role, _, _) in enumerate(spans) if role != "assistant"][-1:]
    starts = np.cumsum([0, *(count for _, _, count in spans)])
    last = ids[starts[asked[0]] : starts[asked[0] + 1]] if asked else []
    return Prompt(ids[:begin], features=features, has_speech=tokens.frame in last, spans=spans)


@torch.inference_mode()
def scored(
    most: Most,
    trace: RoutingTrace,
    features: torch.Tensor | None = None,
    *,
    knock_out: Sequence[tuple[int, int]] = (),
    mode: str = "next",
    masked: bool = True,
    settings: GenerationSettings | None = None,
    like: Replay | None = None,
) -> Replay:
    """The reply of a trace under this model, token by token.

    `knock_out` switches (decoder layer, expert) pairs off: in mode "next" the next best of the group stands in, in mode
    "zero" nobody does. Without `masked` every token may meet every expert, in all layers: what this router does without
    its mask, which is no plain mixture that was trained so.

    A token's log-probability is among those that the reply's grammar allowed, before temperature, as it is recorded
    while decoding (a repetition penalty is left out). The grammar is that of `settings`, by default the model's usual
    ones; whether the reply was to be spoken and to begin with the words heard is seen by what was recorded. `like` is
    another replay of this trace, whose grammar is taken over: it spares the work, and makes sure that both compare.
    """
    prompt = prompt_of(most, trace, features)
    place = _place(most, trace)
    if like is not None and not np.array_equal(like.place, place):
        raise ValueError("like is a replay of another trace: give one of this trace, or none")
    rules = like.rules if like is not None else None
    if rules is None and (knock_out or not masked):
        plain = _run(most, trace, features, _masks(most, (), "next", True))
        rules = _rules(most, trace, prompt, plain, settings)
    run = _run(most, trace, features, _masks(most, knock_out, mode, masked))
    rules = rules or _rules(most, trace, prompt, run, settings)
    logprob, free = _log_probs(most, trace, run, rules)
    known = np.full(trace.num_tokens, np.nan, np.float32)
    known[place] = logprob.numpy()
    return Replay(place, logprob.numpy(), free.numpy(), _traced(most, trace, run, known, knock_out), rules)


def importance(
    most: Most,
    trace: RoutingTrace,
    features: torch.Tensor | None = None,
    *,
    count: int = 5,
    mode: str = "next",
    settings: GenerationSettings | None = None,
) -> Iterator[Effect]:
    """What each expert that the trace's tokens met is worth to the reply, those first that are likely to matter most.

    The estimates are of first order: the reply's gradient by the experts' weights, times these weights, which silences
    an expert as mode "zero" does. They are small where the reply is sure of its words, so that the order is by the
    same of the reply at a temperature of 2, added up in size over the tokens. The first `count` experts come with the
    `exact` loss, too, in the given mode: a pass for each, made when it is asked for. Below 0 the reply would be
    likelier without the expert.
    """
    prompt, masks = prompt_of(most, trace, features), _masks(most, (), mode, True)
    with torch.inference_mode(False), torch.enable_grad():
        given = None if features is None else features.clone()
        scales = torch.ones(
            len(trace.layers), trace.num_tokens, most.config.num_experts_per_tok, device=most.model.device
        ).requires_grad_()
        run = _run(most, trace, given, masks, scales)
        rules = _rules(most, trace, prompt, run, settings)
        total = _log_probs(most, trace, run, rules)[0].sum()
        (gradient,) = torch.autograd.grad(total, [scales], retain_graph=True)
        softened = _log_probs(most, trace, run, rules, SOFTENED)[0].sum()
        (soft_gradient,) = torch.autograd.grad(softened, [scales])
    before = float(total.detach())
    effects = _effects(most, trace, run, gradient, soft_gradient)
    for number, effect in enumerate(effects):
        if number >= count:
            yield effect
            continue
        with torch.inference_mode():
            without = _run(most, trace, features, _masks(most, [(effect.layer, effect.expert)], mode, True))
            after = float(_log_probs(most, trace, without, rules)[0].sum())
        yield replace(effect, exact=before - after)


# The tokens


def _place(most: Most, trace: RoutingTrace) -> np.ndarray:
    """Where the reply's tokens are: the last of those that were generated, which alone have a log-probability."""
    if isinstance(most.loop.decoder, ModuleDecoder):
        raise ValueError("an offloaded model cannot be replayed: load it whole on one device")
    if trace.layers.tolist() != most.config.moe_layers or not most.config.moe_layers:
        raise ValueError("the trace is of a model with other layers: replay it with the model that recorded it")
    context = most.loop.decoder.context
    if trace.num_tokens > context:
        raise ValueError(
            f"the trace is {trace.num_tokens} tokens long, the context holds {context}: replay a shorter one"
        )
    check_ids(_ids(trace), most.config.vocab_size)
    made = np.isfinite(trace.logprob)
    if not made.any() or not made[-1]:
        raise ValueError("the trace does not end with a reply: give one that was recorded while it was answered")
    begin = 0 if made.all() else int(np.flatnonzero(~made)[-1]) + 1
    return np.arange(begin, trace.num_tokens)


def _ids(trace: RoutingTrace) -> torch.Tensor:
    return torch.from_numpy(trace.id.astype(np.int64))


def _spans(trace: RoutingTrace, begin: int, end: int) -> list[tuple[str, int, int]]:
    pairs = zip(trace.role[begin:end].tolist(), trace.turn[begin:end].tolist())
    return [(role, turn, len(list(run))) for (role, turn), run in groupby(pairs)]


# One pass


@dataclass
class _Run:
    hidden_RH: torch.Tensor  # before the tokens of the reply, normed
    probs_LTE: torch.Tensor
    choice_LTK: torch.Tensor  # -1: silenced
    shared_norm_LT: torch.Tensor
    routed_norm_LT: torch.Tensor


def _masks(
    most: Most, knock_out: Sequence[tuple[int, int]], mode: str, masked: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(who may be chosen [L, 2, E], who is not silenced [L, E])"""
    base = group_masks(most.config).transpose(0, 1).float()
    masks, keep = knock_out_masks(base if masked else torch.ones_like(base), most.config, knock_out, mode)
    return masks.to(most.model.device), keep.to(most.model.device)


def _run(
    most: Most,
    trace: RoutingTrace,
    features: torch.Tensor | None,
    masks: tuple[torch.Tensor, torch.Tensor],
    scales_LTK: torch.Tensor | None = None,
) -> _Run:
    """As `MostModel.forward`, with the routers' choices made here. `scales_LTK` are factors of the chosen experts."""
    model, config = most.model.model, most.config
    ids = _ids(trace).to(most.model.device)[None]
    modality = modality_of(ids, config.tokens)[0]
    x = model.embed(ids, None if features is None else features[None].to(ids.device))
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    attention = {
        "attention_mask": create_causal_mask(
            config=config, inputs_embeds=x, attention_mask=None, past_key_values=None, position_ids=positions
        ),
        "position_ids": positions,
        "position_embeddings": model.rotary_emb(x, positions),
    }
    parts: list[tuple[torch.Tensor, ...]] = []
    for layer in model.layers:
        x = x + layer.self_attn(hidden_states=layer.input_layernorm(x), **attention)[0]
        normed = layer.post_attention_layernorm(x)
        if not isinstance(layer.mlp, MostMoe):
            x = x + layer.mlp(normed)
            continue
        moe, row = layer.mlp, len(parts)
        probs = F.linear(normed[0].float(), moe.gate.weight.float()).softmax(-1)
        weights, choice = choose_experts(probs, masks[0][row][modality], config)
        kept = masks[1][row][choice]
        weights = weights * kept if scales_LTK is None else weights * kept * scales_LTK[row]
        routed = moe.experts(normed[0], choice, weights)[None]
        shared = moe.shared_experts(normed) if moe.shared_experts is not None else torch.zeros_like(routed)
        x = x + (routed + shared)
        norms = (part[0].detach().float().norm(dim=-1) for part in (shared, routed))
        parts.append((probs.detach(), choice.masked_fill(kept == 0, -1), *norms))
    place = _place(most, trace)
    hidden = model.norm(x)[0, torch.from_numpy(place - 1).to(x.device)]
    return _Run(hidden, *(torch.stack(column) for column in zip(*parts)))


def _log_probs(
    most: Most, trace: RoutingTrace, run: _Run, rules: Rules, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """([R] among the tokens allowed, [R] among all), on the CPU."""
    ids = _ids(trace)[-len(run.hidden_RH) :].to(run.hidden_RH.device)
    bias, kind = rules.bias.to(ids.device), rules.kind.to(ids.device)
    allowed, free = [], []
    for rows, token, which in zip(run.hidden_RH.split(ROWS), ids.split(ROWS), kind.split(ROWS)):
        logits = most.model.lm_head(rows).float() / temperature
        taken = logits.gather(1, token[:, None])[:, 0]
        free.append(taken - logits.logsumexp(-1))
        allowed.append(taken - (logits + bias[which]).logsumexp(-1))
    return torch.cat(allowed).cpu(), torch.cat(free).cpu()


# The grammar


def _rules(most: Most, trace: RoutingTrace, prompt: Prompt, plain: _Run, settings: GenerationSettings | None) -> Rules:
    """Of the ways in which the reply may have been decoded, the one that comes nearest to what was recorded."""
    place, tokens = _place(most, trace), most.tokens
    ids, known = trace.id[place].tolist(), torch.from_numpy(trace.logprob[place])
    settings = settings or most.usual_settings
    unbounded = replace(
        settings, max_sentence_tokens=UNBOUNDED, max_sentence_units=UNBOUNDED, max_heard_tokens=UNBOUNDED
    )
    starts = (
        [HEARD] if tokens.heard_end in ids else [HEARD, generation.TEXT] if prompt.has_speech else [generation.TEXT]
    )
    speaks = [True] if tokens.audio_start in ids else [True, False]
    for limits in (settings, unbounded):
        ways = [_allowed(most, ids, replace(limits, speak=speak), start) for start in starts for speak in speaks]
        found = [way for way in ways if way is not None]
        if len(found) > 1:
            with torch.no_grad():
                found.sort(key=lambda way: float((_log_probs(most, trace, plain, way)[0] - known).abs().sum()))
        if found:
            return found[0]
    raise ValueError("the reply is not text and speech in turns, as replies are: replay one that this model gave")


def _allowed(most: Most, ids: Sequence[int], settings: GenerationSettings, start: str) -> Rules | None:
    """None if one of these tokens could not have come."""
    grammar = ReplyGrammar(most.config, most.processor.special_ids, settings, start)
    biases: dict[tuple[str | int, ...], torch.Tensor] = {}
    kinds: list[tuple[str | int, ...]] = []
    for token in ids:
        bias = grammar.bias()
        if bias[token] != 0:
            return None
        kinds.append(grammar.allowed())
        biases[kinds[-1]] = bias
        grammar.advance(token)
    at = {kind: number for number, kind in enumerate(biases)}
    return Rules(torch.stack(list(biases.values())), torch.tensor([at[kind] for kind in kinds]))


# What comes out


def _traced(
    most: Most, trace: RoutingTrace, run: _Run, logprob: np.ndarray, knock_out: Sequence[tuple[int, int]]
) -> RoutingTrace:
    recorder = RoutingRecorder(most.config, knock_out=knock_out)
    modality = modality_of(_ids(trace), most.tokens).tolist()
    start = 0
    for role, turn, count in _spans(trace, 0, trace.num_tokens):
        part = slice(start, start + count)
        choice = run.choice_LTK[:, part]
        recorder.record(run.probs_LTE[:, part], trace.id[part].tolist(), modality[part], role, turn, indices_LNK=choice)
        start += count
    made = recorder.finish(model_hash=most.model_hash, dtype=trace.dtype, seed=trace.seed)
    columns = {name: getattr(trace, name).copy() for name in ("token", "text", "start_s", "end_s")}
    norms = {name: getattr(run, f"{name}_LT").t().cpu().numpy() for name in ("shared_norm", "routed_norm")}
    return replace(made, logprob=logprob, **columns, **norms)


def _effects(
    most: Most, trace: RoutingTrace, run: _Run, gradient_LTK: torch.Tensor, soft_gradient_LTK: torch.Tensor
) -> list[Effect]:
    """Of all experts that were met, the largest soft gradients first."""
    modality = modality_of(_ids(trace), most.tokens)
    choice, gradient, soft = run.choice_LTK.cpu(), gradient_LTK.cpu(), soft_gradient_LTK.abs().cpu()
    effects = []
    for row, layer in enumerate(most.config.moe_layers):
        for expert in choice[row].unique().tolist():
            taken = choice[row] == expert
            kind = modality[taken.any(-1)].float().mean()  # of the plain router's experts, what most tokens are
            effect = Effect(layer, expert, int(kind > 0.5), float(gradient[row][taken].sum()))
            effects.append((float(soft[row][taken].sum()), effect))
    return [effect for _, effect in sorted(effects, key=lambda pair: -pair[0])]
