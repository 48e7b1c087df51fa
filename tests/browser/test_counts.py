"""What the page counts of a routing, against the same formulas in Python, on routings that no router made."""

import base64
import functools
import http.server
import threading
from pathlib import Path

import numpy as np
import pytest

from most_core import metrics

STATIC = Path("app/page/static")
COUNT = """async ({experts, modality, k, chosen, pieces}) => {
  const counts = await import("/routing/counts.js");
  const {Rows} = await import("/routing/rows.js");
  const rows = new Rows(experts.layers, k);
  rows.modality = modality;
  rows.chosen.push(Uint8Array.from(atob(chosen), (c) => c.charCodeAt(0)));
  const parts = pieces.map(([from, to]) => ({rows, from, to}));
  const load = counts.load(parts, experts), tokens = [0, 0];
  for (const {from, to} of parts) for (let t = from; t < to; t++) tokens[modality[t]] += 1;
  return {
    leakage: parts.map(({from, to}) => counts.leakage(rows, experts, from, to)),
    load: [...load],
    used: counts.used(parts, experts),
    persistence: counts.persistence(parts, experts),
    balance: [0, 1].map((side) =>
      experts.layers.map((_, layer) => counts.balance(load, side, layer, experts, k, tokens[side]))),
  };
}"""


@pytest.fixture(scope="module")
def blank(browser_for):
    """A page of nothing, beside the page's own modules."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if self.path != "/":
                return super().do_GET()
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>counts</title>")

        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=str(STATIC))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with browser_for(microphone=False) as page:
            page.goto(f"http://localhost:{server.server_port}/")
            yield page
        server.shutdown()


def made_up(seed, layers=3, routed=12, k=4, tokens=90, leaks=5, empty=7):
    """(facts of experts, groups, modalities, choices): layers differ, a few choices leak, a few are missing."""
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(routed) for _ in range(layers)]
    groups = [(sorted(o[: routed // 2 - 1].tolist()), sorted(o[routed // 2 - 1 :].tolist())) for o in orders]
    modality = np.repeat(rng.integers(0, 2, tokens // 6), 6).astype(np.uint8)
    chosen = np.array([[rng.permutation(groups[row][m])[:k] for row in range(layers)] for m in modality], np.uint8)
    for token, layer in zip(rng.choice(tokens, leaks, replace=False), rng.integers(0, layers, leaks), strict=True):
        chosen[token, layer, 0] = groups[layer][1 - modality[token]][0]
    for token in rng.choice(tokens, empty, replace=False):
        chosen[token, 0, k - 1] = metrics.NO_EXPERT
    experts = {
        "layers": list(range(1, layers + 1)),
        "routed": routed,
        "per_token": k,
        "groups": [{"text": text, "audio": audio} for text, audio in groups],
    }
    return experts, groups, modality, chosen


@pytest.mark.parametrize("seed", range(4))
def test_the_page_counts_as_python_does(blank, seed):
    experts, groups, modality, chosen = made_up(seed)
    pieces = [(0, 40), (40, 90)]
    k, routed = experts["per_token"], experts["routed"]
    found = blank.evaluate(
        COUNT,
        {
            "experts": experts,
            "modality": modality.tolist(),
            "k": k,
            "chosen": base64.b64encode(chosen.tobytes()).decode(),
            "pieces": pieces,
        },
    )
    allowed = metrics.allowed_experts(groups, routed)
    expected = [metrics.leakage(chosen[a:b], modality[a:b], allowed) for a, b in pieces]
    assert [(one["outside"], one["decisions"]) for one in found["leakage"]] == expected
    assert sum(one["outside"] for one in found["leakage"]) == 5
    load = np.array(found["load"]).reshape(2, len(groups), routed)
    for side, name in enumerate(("text", "audio")):
        own = chosen[modality == side]
        even = metrics.balance(own, allowed[side])
        assert (load[side] == even.counts).all()
        for layer, row in enumerate(found["balance"][side]):
            for figure in ("cv", "chance", "dead", "effective", "max_vio"):
                assert row[figure] == pytest.approx(getattr(even, figure)[layer]), figure
        kept = [metrics.kept_from_before(chosen[a:b], modality[a:b], side) for a, b in pieces]
        total, pairs = (sum(one[i] for one in kept) for i in range(2))
        assert found["persistence"][name]["pairs"] == pairs
        assert found["persistence"][name]["share"] == pytest.approx(total / pairs)
        assert found["persistence"][name]["chance"] == pytest.approx(np.mean(k / allowed[side].sum(1)))
    some = int((load.sum(0) > 0).sum())
    assert found["used"] == {"used": some, "idle": load[0].size - some, "all": load[0].size}
