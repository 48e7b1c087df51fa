"""The inspector in a real browser: what it shows against the model's own routers, and every file that it gives."""

import base64
import io
import json
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile
import torch
from axe_playwright_python.sync_playwright import Axe

import most_core
from app.audio import WIRE_RATE, Resampler, to_pcm16
from app.page import exact_trace
from most_core import RoutingTrace
from most_core.processing import as_messages
from most_core.router import choose_experts

HALF = 2**-10  # what half precision keeps of a probability
EVIL = "${alert(1)}</script><img src=x onerror=alert(1)>"
INSPECT = """<!doctype html><html lang="en"><title>inspector</title>
<link rel="stylesheet" href="/page/static/page.css">
<body><main class="talk" style="display: block; height: auto; padding: 16px"></main>"""

# Builds an inspector of the given turns beside nothing else, and keeps what it asks of the page.
BUILD = """async ({facts, turns}) => {
  const from = (name) => import(`/page/static/${name}`);
  const [{learn}, {Routing}, {Inspector}, {bytesOf}] = await Promise.all(
    ["words.js", "routing/rows.js", "routing/inspector.js", "turns.js"].map(from));
  learn(facts.words);
  const pcm = (text) => new Int16Array(bytesOf(text).buffer);
  const routing = new Routing();
  const list = turns.map(({tables, user, reply, trace, delta, ...turn}) => {
    const made = {
      ...turn,
      tables: tables && Object.fromEntries(Object.entries(tables).map(([name, text]) => [name, bytesOf(text)])),
      user: {...user, sound: user.sound ? pcm(user.sound) : null},
      reply: {...reply, sound: reply.sound ? [pcm(reply.sound)] : []},
    };
    if (trace) routing.give(made, trace);
    if (delta) routing.take({type: "most.routing.delta", sequence: 1, ...delta}, made);
    return made;
  });
  const asked = (globalThis.asked = {played: [], selected: [], experts: [], brushed: [], said: [], files: []});
  const does = {
    play: async (pcm, rate) => void asked.played.push({pcm: Array.from(pcm), rate}),
    stop: () => {},
    settings: () => ({temperature: 0, seed: ""}),
    turns: () => list,
    select: (selection) => asked.selected.push(selection && {...selection, turn: selection.turn.number}),
    selectExpert: (expert) => asked.experts.push(expert),
    brush: (span) => asked.brushed.push(span),
    say: (text) => asked.said.push(text),
    about: () => ({model: facts.model, versions: facts.versions}),
    download: async (blob, name) => {
      const {base64Of} = await from("turns.js");
      asked.files.push({name, type: blob.type, data: base64Of(new Uint8Array(await blob.arrayBuffer()))});
    },
  };
  globalThis.list = list;
  globalThis.routing = routing;
  globalThis.inspector = new Inspector(facts, routing, does);
  document.querySelector("main").append(inspector.element);
}"""


@pytest.fixture(scope="module")
def most():
    return most_core.load("assets/nano")


@pytest.fixture(scope="module")
def spoken(most):
    """(waveform, its answer with a trace)."""
    wave, _ = soundfile.read("assets/samples/animal.wav", dtype="float32")
    return wave, most.answer(wave, record_routing=True)


def in_base64(data):
    return base64.b64encode(data).decode()


def turn_of(number, wave, reply, **more):
    """A turn that is over, as the page has it."""
    up = Resampler(reply.sample_rate, WIRE_RATE)
    sound = to_pcm16(np.concatenate([up.push(reply.waveform), up.finish()]))
    return {
        "number": number,
        "kind": "spoken",
        "seed": None,
        "tables": {name: in_base64(data) for name, data in reply.trace.to_bytes().items()},
        "trace": exact_trace.exact(reply.trace),
        "user": {"text": reply.heard, "words": [], "sound": in_base64(to_pcm16(wave)), "file": None},
        "reply": {"text": reply.text, "status": "completed", "sound": in_base64(sound)},
        **more,
    }


@pytest.fixture
def open_inspector(browser_for, app_url):
    """`with open_inspector(turns, ...) as page:` a page with nothing but the inspector of these turns."""
    import contextlib

    @contextlib.contextmanager
    def opened(turns, **context):
        with browser_for(microphone=False, **context) as page:
            page.errors = []
            page.on("pageerror", lambda error: page.errors.append(str(error)))
            page.on("dialog", lambda dialog: (page.errors.append(f"dialog {dialog.message}"), dialog.dismiss()))
            page.route("**/inspect.html", lambda route: route.fulfill(body=INSPECT, content_type="text/html"))
            page.goto(f"{app_url}/inspect.html")
            if context.get("color_scheme") == "dark":
                page.evaluate("document.body.classList.add('dark')")
            facts = page.evaluate("fetch('/page/facts.json').then((answer) => answer.json())")
            page.evaluate(BUILD, {"facts": facts, "turns": turns})
            yield page
            assert page.errors == []

    return opened


def select(page, token, layer=0, turn=0):
    page.evaluate("([t, token, layer]) => inspector.show({turn: list[t], token, layer})", [turn, token, layer])


def numbers(page, where, *names):
    """Of every element there, these data attributes as numbers."""
    return page.eval_on_selector_all(
        where, "(all, names) => all.map((one) => names.map((name) => Number(one.dataset[name])))", list(names)
    )


def saved(page, kind):
    """(name, bytes) of a file that the inspector gives."""
    before = page.evaluate("asked.files.length")
    page.click("#inspector-tab-export")
    page.click(f'[data-action="export-{kind}"]')
    page.wait_for_function("(before) => asked.files.length > before", arg=before)
    file = page.evaluate("asked.files.at(-1)")
    return file["name"], base64.b64decode(file["data"])


def own_routers(most, wave, trace):
    """The model's own routers over the trace's tokens in one forward: (p [T, L, E], chosen [T, L, K])."""
    prompt = most.processor.prompt(as_messages(wave, 16_000))
    logits = []
    gates = [layer.mlp.gate for layer in most.model.model.layers if hasattr(layer.mlp, "gate")]
    hooks = [gate.register_forward_hook(lambda _, __, output: logits.append(output[0])) for gate in gates]
    with torch.inference_mode():
        ids = torch.tensor(trace.id.astype(np.int64))[None]
        most.model.model(ids, input_features=prompt.features[None])
    for hook in hooks:
        hook.remove()
    probs = [one.float().softmax(-1) for one in logits]
    modality = torch.tensor(trace.modality.astype(np.int64))
    picks = [choose_experts(p, gate.allowed(modality), most.config)[1] for p, gate in zip(probs, gates)]
    return torch.stack(probs, 1).numpy(), torch.stack(picks, 1).numpy()


def test_a_tokens_card_shows_what_the_models_own_routers_gave(open_inspector, most, spoken):
    wave, reply = spoken
    trace, k = reply.trace, most.config.num_experts_per_tok
    probs, picks = own_routers(most, wave, trace)
    groups = most.config.expert_groups()
    heard = next(t for t in range(trace.num_tokens) if trace.modality[t])
    said = next(t for t in range(trace.num_tokens) if not np.isnan(trace.logprob[t]))
    unit = trace.num_tokens - 3
    with open_inspector([turn_of(1, wave, reply)]) as page:
        for token, layer in [(0, 0), (heard, 1), (said, 4), (unit, 2)]:
            select(page, token, layer)
            p, group = probs[token, layer], groups[layer][trace.modality[token]]
            shown = numbers(page, ".bars tr[data-expert]", "expert", "probability")
            own = sorted(group, key=lambda expert: -p[expert])[:8]
            assert [int(expert) for expert, _ in shown] == own
            assert [share for _, share in shown] == pytest.approx([p[e] for e in own], rel=HALF, abs=1e-6)
            chosen = numbers(page, ".bars tr[data-chosen]", "expert")
            assert {int(expert) for (expert,) in chosen} == set(picks[token, layer].tolist())
            q = np.sort(p[group] / p[group].sum())[::-1]
            ((confidence, *_),) = numbers(page, ".token-card [data-confidence]", "confidence")
            ((margin,),) = numbers(page, ".token-card [data-margin]", "margin")
            ((removed,),) = numbers(page, ".token-card [data-removed]", "removed")
            ((entropy,),) = numbers(page, ".token-card [data-entropy]", "entropy")
            assert confidence == pytest.approx(q[0] - q[1], abs=2 * HALF)
            assert margin == pytest.approx(q[k - 1] - q[k], abs=2 * HALF)
            assert removed == pytest.approx(1 - p[group].sum(), abs=1e-4)
            assert entropy == pytest.approx(-(q * np.log(q)).sum(), abs=1e-3)
            unmasked = numbers(page, ".unmasked li", "expert", "probability")
            free = np.argsort(-p, kind="stable")[:k]
            assert {int(expert) for expert, _ in unmasked} == set(free.tolist())
            assert [share for _, share in unmasked] == pytest.approx(p[free].tolist(), rel=HALF, abs=1e-6)
            outside = numbers(page, ".unmasked li[data-outside]", "expert")
            assert {int(expert) for (expert,) in outside} == set(free.tolist()) - set(group)
            everywhere = page.eval_on_selector_all(
                ".layers button", "(all) => all.map((b) => [...b.querySelectorAll('[data-expert]')]"
                ".map((one) => Number(one.dataset.expert)))"
            )
            assert [set(one) for one in everywhere] == [set(row.tolist()) for row in picks[token]]
            assert str(trace.id[token]) == page.get_attribute(".token-card [data-id]", "data-id")
        assert float(page.get_attribute(".token-card [data-removed]", "data-removed")) > 0
