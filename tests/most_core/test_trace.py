"""The recorder against a slow reference, the Parquet round trip, and what happens to damaged files."""

import base64
import itertools
import json
import math
import statistics
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from most_core.config import MostConfig
from most_core.trace import NO_EXPERT, RoutingRecorder, RoutingRows, RoutingTrace, concatenate
from most_core.trace_files import SCHEMAS
from most_core.trace_rows import PER_TOKEN

PER_LAYER = {
    "text_expert_indices": [[0, 2, 4, 6, 8], [1, 3, 5], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]],
    "audio_expert_indices": [[1, 3, 5, 7, 9, 11], [0, 2, 4, 6, 7], [11, 10, 8]],
    "n_routed_experts": 12,
    "num_hidden_layers": 4,
    "num_experts_per_tok": 3,
}
CONFIGS = {
    "tiny": MostConfig.tiny(),  # groups of 4
    "nano": MostConfig.nano(),  # groups of 8
    "groups of 12": MostConfig.nano(n_routed_experts=24),
    "per layer": MostConfig.tiny(**PER_LAYER),
    "plain": MostConfig.tiny(use_modality_aware_routing=False),
    "scaled": MostConfig.tiny(routed_scaling_factor=2.5, norm_topk_prob=True),
    "6 experts": MostConfig.tiny(n_routed_experts=6),
}


def random_probs(config, tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (len(config.moe_layers), tokens, config.n_routed_experts)
    return torch.randn(shape, generator=generator).mul(2).softmax(-1)


def record(config, tokens=11, seed=0, indices=None, **options):
    """A recorder fed a prefill of up to 4 user tokens, then single reply tokens; (recorder, probs, modality)."""
    recorder = RoutingRecorder(config, **options)
    probs = random_probs(config, tokens, seed)
    modality = [(t // 2) % 2 for t in range(tokens)]
    starts = [0, *range(4, tokens)] if tokens else []
    for start, stop in zip(starts, [*starts[1:], tokens]):
        now = slice(start, stop)
        first = recorder.record(
            probs[:, now],
            list(range(100 + start, 100 + stop)),
            modality[now],
            "user" if start == 0 else "assistant",
            3,
            indices_LNK=None if indices is None else indices[:, now],
        )
        assert first == start
    return recorder, probs, modality


def reference(config, probs, modality, off=()):
    """The same, one token, layer and expert at a time."""
    width = min(8, config.n_routed_experts)
    for t, m in enumerate(modality):
        for i, layer in enumerate(config.moe_layers):
            p = probs[i, t].tolist()
            group = config.expert_groups()[i][m]
            ranked = sorted(group, key=lambda e: -p[e])
            everyone = sorted(range(len(p)), key=lambda e: -p[e])
            inside = sum(p[e] for e in group)
            chosen = [e for e in ranked if (layer, e) not in off][: config.num_experts_per_tok]
            yield {
                "at": (t, i),
                "experts": (ranked + [NO_EXPERT] * width)[:width],
                "probs": ([p[e] for e in ranked] + [0.0] * width)[:width],
                "chosen": (chosen + [NO_EXPERT] * 9)[: config.num_experts_per_tok],
                "chosen_probs": ([p[e] for e in chosen] + [0.0] * 9)[: config.num_experts_per_tok],
                "unmasked_experts": everyone[:width],
                "unmasked_probs": [p[e] for e in everyone[:width]],
                "removed_mass": sum(p[e] for e in range(len(p)) if e not in group),
                "entropy": -sum(p[e] / inside * math.log(p[e] / inside) for e in group),
            }


def assert_same(one: RoutingRows, other: RoutingRows):
    for name in [*PER_TOKEN, "layers"]:
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.dtype == b.dtype, name
            np.testing.assert_array_equal(a, b, err_msg=name)


def edit(path, change, metadata=None):
    table = pq.read_table(path)
    kept = dict(table.schema.metadata) | (metadata or {})
    pq.write_table(change(table).replace_schema_metadata(kept), path)


@pytest.mark.parametrize("name", CONFIGS)
def test_recorder_agrees_with_reference(name):
    config = CONFIGS[name]
    recorder, probs, modality = record(config)
    trace = recorder.finish()
    for row in reference(config, probs, modality):
        at = row.pop("at")
        for column, expected in row.items():
            got = getattr(trace, column)[at]
            if got.dtype == np.uint8:
                assert got.tolist() == expected, (column, at)
            else:
                np.testing.assert_allclose(got, expected, rtol=1e-3, atol=2e-6, err_msg=column)
    assert trace.layers.tolist() == config.moe_layers
    assert trace.leakage == 0
    assert trace.decisions == 11 * len(config.moe_layers) * config.num_experts_per_tok
    if name == "plain":
        assert not trace.removed_mass.any()
        assert (trace.experts == trace.unmasked_experts).all()


def test_token_columns_and_frame_times():
    recorder, _, modality = record(CONFIGS["tiny"], tokens=11)
    recorder.annotate(0, text="hé", logprob=-0.5)
    recorder.annotate(2, start_s=1.0, end_s=1.5)
    trace = recorder.finish(model_hash="abc", dtype="float32", seed=7)
    assert trace.token.tolist() == list(range(11))
    assert trace.id.tolist() == list(range(100, 111))
    assert trace.turn.tolist() == [3] * 11
    assert trace.role.tolist() == ["user"] * 4 + ["assistant"] * 7
    assert trace.modality.tolist() == modality == [0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1]
    assert trace.text.tolist() == ["hé"] + [""] * 10
    assert trace.logprob[0] == -0.5
    assert np.isnan(trace.logprob[1:]).all()
    # the user's two frames, the first of them set by hand, then the reply's frames count from 0 again
    start = [1.0, 1 / 25, 0, 1 / 25, 2 / 25]
    np.testing.assert_allclose(trace.start_s[trace.modality == 1], start, rtol=1e-6)
    np.testing.assert_allclose(trace.end_s[trace.modality == 1], [1.5] + [s + 1 / 25 for s in start[1:]], rtol=1e-6)
    assert np.isnan(trace.start_s[trace.modality == 0]).all()


def test_drained_rows_join_to_the_finished_trace():
    config = CONFIGS["nano"]
    probs = random_probs(config, 30, seed=5)
    live, whole = RoutingRecorder(config), RoutingRecorder(config)
    buffer = torch.empty(5, 1, 16)
    drained = []
    for t in range(30):
        buffer.copy_(probs[:, t : t + 1])  # the decoder reuses its buffer
        token = live.record(buffer, [t], [1], "user", 0)
        live.annotate(token, text=str(t))
        if t % 7 == 3:
            drained += [live.drain(), live.drain()]
    drained.append(live.drain())
    whole.record(probs, range(30), [1] * 30, "user", 0)
    for t in range(30):
        whole.annotate(t, text=str(t))
    assert [rows.num_tokens for rows in drained] == [4, 0, 7, 0, 7, 0, 7, 0, 5]
    assert_same(live.finish(), whole.finish())
    assert_same(concatenate(drained), whole.finish())


def test_inference_and_grad_tensors():
    config = CONFIGS["tiny"]
    with torch.inference_mode():
        recorder, _, _ = record(config, indices=torch.zeros(2, 11, 2, dtype=torch.long))
    assert recorder.finish().num_tokens == 11
    recorder = RoutingRecorder(config)
    recorder.record(random_probs(config, 1, 0).requires_grad_(), [1], [0], "user", 0)
    assert recorder.finish().num_tokens == 1


def test_leakage_is_counted_from_what_the_model_used():
    config = CONFIGS["tiny"]
    right, probs, modality = record(config)
    right = right.finish()
    indices = torch.from_numpy(right.chosen.astype(np.int64)).transpose(0, 1).flip(-1).contiguous()
    assert_same(record(config, indices=indices)[0].finish(), right)

    indices[1, 4, 0] = 6  # an audio expert for a text token
    indices[0, 2, 1] = 0  # a text expert for an audio token
    indices[0, 3, 1] = -1  # nothing at all is no leak
    trace = record(config, indices=indices)[0].finish()
    assert (modality[4], modality[2]) == (0, 1)
    assert trace.leakage == pytest.approx(2 / 11)
    assert trace.chosen[4, 1, 1] == 6
    assert trace.chosen_probs[4, 1, 1] == np.float16(probs[1, 4, 6].item())
    assert trace.chosen[3, 0, 1] == NO_EXPERT
    assert trace.slice(5, None).leakage == 0
    assert trace.slice(0, 0).leakage == 0


def test_indices_may_come_with_some_forwards_only():
    config = CONFIGS["tiny"]
    recorder, probs = RoutingRecorder(config), random_probs(config, 3, 0)
    for t in range(3):
        indices = torch.tensor([[[0, 1]], [[2, 3]]]) if t == 1 else None
        recorder.record(probs[:, t : t + 1], [t], [0], "user", 0, indices_LNK=indices)
    trace = recorder.finish()
    assert set(trace.chosen[1, 0]) == {0, 1}
    assert set(trace.chosen[1, 1]) == {2, 3}
    np.testing.assert_array_equal(trace.experts[0, :, :2], trace.chosen[0])


def test_knocked_out_experts_are_replaced_by_the_next_best():
    config = CONFIGS["tiny"]
    _, probs, modality = record(config)
    off = [(1, int(e)) for e in probs[0].argmax(-1)[:2]] + [(2, e) for e in (0, 1, 2)]
    trace = record(config, knock_out=off)[0].finish()
    for row in reference(config, probs, modality, off):
        assert trace.chosen[row["at"]].tolist() == row["chosen"]
        assert trace.experts[row["at"]].tolist() == row["experts"]
    assert (trace.chosen[0, 1] == [3, NO_EXPERT]).all()  # only one text expert of layer 2 is left
    # a model that goes on picking them, but gives them weight zero
    picks = torch.from_numpy(record(config)[0].finish().chosen.astype(np.int64)).transpose(0, 1)
    zeroed = record(config, indices=picks, knock_out=off)[0].finish()
    for t, i in np.ndindex(11, 2):
        left = [e for e in picks[i, t].tolist() if (i + 1, e) not in off]
        assert zeroed.chosen[t, i].tolist() == (left + [NO_EXPERT] * 2)[:2]
    assert trace.leakage == 0


@pytest.mark.parametrize("name", CONFIGS)
def test_save_and_load_are_exact(name, tmp_path):
    config = CONFIGS[name]
    recorder, _, _ = record(config)
    recorder.annotate(1, text="a\0b", logprob=-1.25, start_s=0.1)
    trace = recorder.finish(model_hash="abc", dtype="bfloat16", seed=3)
    trace.save(tmp_path / "turn-01")
    loaded = RoutingTrace.load(tmp_path / "turn-01")
    assert_same(trace, loaded)
    assert (loaded.model_hash, loaded.dtype, loaded.seed) == ("abc", "bfloat16", 3)
    assert loaded.config.to_json_string() == config.to_json_string()
    assert len(list(tmp_path.iterdir())) == 3  # no temporary files left


def test_bytes_are_those_of_the_files_and_come_back(tmp_path):
    trace = record(MostConfig.tiny())[0].finish(model_hash="abc", dtype="bfloat16", seed=3)
    trace.save(tmp_path / "reply")
    files = trace.to_bytes()
    assert list(files) == ["tokens", "routing", "layers"]
    for name, data in files.items():
        assert (tmp_path / f"reply.{name}.parquet").read_bytes() == data
    again = RoutingTrace.from_bytes(files)
    assert_same(trace, again)
    assert (again.model_hash, again.seed, again.dtype) == (trace.model_hash, trace.seed, trace.dtype)
    with pytest.raises(ValueError, match=r"turn 3\.layers\.parquet is damaged"):
        RoutingTrace.from_bytes(files | {"layers": files["layers"][:-9]}, "turn 3")


def test_saving_makes_the_folder(tmp_path):
    trace = record(CONFIGS["tiny"])[0].finish()
    trace.save(tmp_path / "runs" / "today" / "turn-01")
    assert_same(trace, RoutingTrace.load(tmp_path / "runs" / "today" / "turn-01"))


def test_round_trip_of_odd_traces(tmp_path):
    config = CONFIGS["groups of 12"]
    every = torch.arange(24).expand(5, 11, 24)
    weakest_last = random_probs(config, 11, 0).argsort(-1)[..., [0, 23, 1, 22]]  # leaks, deep picks, all of them
    leaking = record(config, indices=weakest_last)[0].finish()
    assert leaking.leakage > 0
    ranked = (leaking.chosen[..., None] == leaking.experts[..., None, :]).any(-1)
    for probs in (leaking.chosen_probs[t, i][~ranked[t, i]] for t in range(11) for i in range(5)):
        assert (np.diff(probs) <= 0).all()  # those outside the ranking follow by falling probability
    norms = record(config)[0].finish()
    norms.shared_norm = np.full(norms.entropy.shape, np.nan, np.float32)
    norms.shared_norm[2, 1] = 1.5
    empty = RoutingRecorder(config).finish()
    short = record(config, indices=every[..., :4].clone().fill_(-1))[0].finish()
    for i, trace in enumerate([leaking, norms, empty, short, leaking.slice(3, 8), norms.slice(2, 2)]):
        if i == 5:
            trace.shared_norm = None  # without tokens there is nothing to tell "none" from "empty"
        trace.save(tmp_path / str(i))
        loaded = RoutingTrace.load(str(tmp_path / str(i)))
        assert_same(trace, loaded)
        assert loaded.leakage == trace.leakage
        assert loaded.seed is None


def test_parquet_has_the_documented_columns(tmp_path):
    trace = record(CONFIGS["tiny"])[0].finish(model_hash="abc", dtype="float32", seed=3)
    trace.save(tmp_path / "x")
    documented = {
        "tokens": "token int32, turn int32, role string, modality uint8, id int32, text string, "
        "start_s float, end_s float, logprob float",
        "routing": "token int32, layer int16, rank uint8, expert int16, weight float, chosen bool, "
        "unmasked_expert int16, unmasked_weight float",
        "layers": "token int32, layer int16, removed_mass float, entropy float, shared_norm float, routed_norm float",
    }
    tables = {name: pq.read_table(tmp_path / f"x.{name}.parquet") for name in documented}
    for name, table in tables.items():
        assert ", ".join(f"{f.name} {f.type}" for f in table.schema) == documented[name]
        meta = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
        assert (meta["schema_version"], meta["model_hash"], meta["dtype"], meta["seed"]) == ("1", "abc", "float32", "3")
        assert json.loads(meta["config"])["model_type"] == "most"
    rows = tables["routing"].to_pylist()
    assert len(rows) == 11 * 2 * 8
    row = rows[2 * 8 + 8 + 1]  # token 1, second MoE layer, rank 1
    assert (row["token"], row["layer"], row["rank"], row["chosen"]) == (1, 2, 1, True)
    assert row["expert"] == trace.experts[1, 1, 1]
    assert row["weight"] == trace.probs[1, 1, 1]
    assert row["unmasked_expert"] == trace.unmasked_experts[1, 1, 1]
    assert rows[4]["expert"] is rows[4]["weight"] is None  # groups of 4: no fifth expert
    assert sum(r["chosen"] for r in rows) == trace.decisions
    assert tables["tokens"]["logprob"].null_count == 11
    assert tables["layers"]["shared_norm"].null_count == 22


def drop_last(table):
    return table.slice(0, table.num_rows - 1)


def flip_byte(path):
    content = bytearray(path.read_bytes())
    content[300] ^= 1  # a value in the middle of a page: only its checksum can tell
    path.write_bytes(content)


def swap_rows(table):
    return table.take([1, 0, *range(2, table.num_rows)])


DAMAGE = {
    "missing": ("layers", lambda path: path.unlink(), FileNotFoundError, "missing"),
    "truncated": ("routing", lambda path: path.write_bytes(path.read_bytes()[:-200]), ValueError, "damaged"),
    "empty": ("tokens", lambda path: path.write_bytes(b""), ValueError, "damaged"),
    "flipped byte": ("layers", lambda path: flip_byte(path), ValueError, "damaged"),
    "version": ("tokens", lambda path: edit(path, lambda t: t, {b"schema_version": b"9"}), ValueError, "version 9"),
    "columns": ("layers", lambda path: edit(path, lambda t: t.drop_columns("entropy")), ValueError, "columns"),
    "other model": ("layers", lambda path: edit(path, lambda t: t, {b"model_hash": b"x"}), ValueError, "metadata"),
    "lost row": ("routing", lambda path: edit(path, drop_last), ValueError, "do not fit"),
    "lost token": ("tokens", lambda path: edit(path, drop_last), ValueError, "do not fit"),
    "lost layer": ("layers", lambda path: edit(path, drop_last), ValueError, "do not fit"),
    "order": ("routing", lambda path: edit(path, swap_rows), ValueError, "do not rise"),
    "nulls": (
        "tokens",
        lambda path: edit(path, lambda t: t.set_column(1, "turn", [[None] * 11]).cast(SCHEMAS["tokens"])),
        ValueError,
        "empty cells in column turn",
    ),
    "all chosen": (
        "routing",
        lambda path: edit(path, lambda t: t.set_column(5, "chosen", [[True] * t.num_rows])),
        ValueError,
        "more than 2",
    ),
    "modality": (
        "tokens",
        lambda path: edit(path, lambda t: t.set_column(3, "modality", [[7] * 11]).cast(SCHEMAS["tokens"])),
        ValueError,
        "modality 7 is neither",
    ),
    "unknown expert": (
        "routing",
        lambda path: edit(path, lambda t: t.set_column(3, "expert", [[99] * t.num_rows]).cast(SCHEMAS["routing"])),
        ValueError,
        "not among the 8",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_files_give_one_line(name, tmp_path):
    record(CONFIGS["tiny"])[0].finish().save(tmp_path / "x")
    table, damage, kind, words = DAMAGE[name]
    damage(tmp_path / f"x.{table}.parquet")
    with pytest.raises(kind, match=words) as error:
        RoutingTrace.load(tmp_path / "x")
    assert "\n" not in str(error.value)
    assert str(tmp_path / "x") in str(error.value)


def test_a_broken_configuration_gives_one_line(tmp_path):
    record(CONFIGS["tiny"])[0].finish().save(tmp_path / "x")
    for table in SCHEMAS:
        edit(tmp_path / f"x.{table}.parquet", lambda t: t, {b"config": b'{"n_routed_experts": "x"}'})
    with pytest.raises(ValueError, match="do not fit") as error:
        RoutingTrace.load(tmp_path / "x")
    assert "\n" not in str(error.value)


def test_a_failed_save_leaves_the_old_trace(tmp_path):
    trace = record(CONFIGS["tiny"])[0].finish()
    trace.save(tmp_path / "x")
    broken = trace.slice(0, 5)
    broken.entropy = broken.entropy[:, :1]
    with pytest.raises(ValueError, match="length"):
        broken.save(tmp_path / "x")
    assert_same(RoutingTrace.load(tmp_path / "x"), trace)
    assert len(list(tmp_path.iterdir())) == 3


TRACE = record(CONFIGS["per layer"], tokens=23)[0].finish()


@settings(max_examples=50, deadline=None)
@given(cuts=st.lists(st.integers(0, 23), max_size=6))
def test_slices_concatenate_to_the_whole(cuts):
    edges = [0, *sorted(cuts), 23]
    pieces = [TRACE.slice(a, b) for a, b in itertools.pairwise(edges)]
    assert_same(concatenate(pieces), TRACE)
    for a, piece in zip(edges, pieces):
        assert piece.token.tolist() == list(range(a, a + piece.num_tokens))
    assert concatenate(pieces).leakage == TRACE.leakage


def test_concatenate_renumbers_and_fills():
    twice = concatenate([TRACE.slice(5, 8), TRACE.slice(10, 12), TRACE])
    assert twice.token.tolist() == [5, 6, 7, 10, 11, *range(12, 35)]
    with_norms = TRACE.slice(0, 2)
    with_norms.routed_norm = np.ones((2, 3), np.float32)
    mixed = concatenate([with_norms, TRACE.slice(2, 4)])
    assert mixed.shared_norm is None
    assert np.isnan(mixed.routed_norm).sum() == 6
    assert mixed.routed_norm[:2].all()
    with pytest.raises(ValueError, match="2 kinds"):
        concatenate([TRACE, record(CONFIGS["tiny"])[0].finish()])
    with pytest.raises(ValueError, match="no traces"):
        concatenate([])


def test_wire_has_the_fields_of_the_delta():
    recorder, _, _ = record(CONFIGS["per layer"], tokens=6)
    recorder.drain()
    recorder.record(random_probs(CONFIGS["per layer"], 3, 1), [1, 2, 3], [0, 1, 1], "assistant", 3)
    rows = recorder.drain()
    wire = rows.to_wire(provisional=True)
    assert json.loads(json.dumps(wire, allow_nan=False)) == wire == rows.to_wire(provisional=True)
    assert " ".join(wire) == (
        "first_token provisional modality role text start_ms end_ms layers k experts weights unmasked removed"
    )
    assert (wire["first_token"], wire["provisional"], wire["k"]) == (6, True, 3)
    assert (wire["modality"], wire["layers"]) == ([0, 1, 1], [1, 2, 3])
    assert (wire["start_ms"], wire["end_ms"]) == ([None, 0, 40], [None, 40, 80])

    def grid(name, *shape):
        return np.frombuffer(base64.b64decode(wire[name]), np.uint8).reshape(3, 3, *shape)

    np.testing.assert_array_equal(grid("experts", 3), rows.chosen)
    np.testing.assert_array_equal(grid("unmasked", 3), rows.unmasked_experts[..., :3])
    np.testing.assert_allclose(grid("weights", 3) / 255, rows.chosen_probs, atol=1 / 500)
    np.testing.assert_allclose(grid("removed") / 255, rows.removed_mass, atol=1 / 500)
    assert RoutingRecorder(CONFIGS["tiny"]).drain().to_wire()["first_token"] == 0


def test_extreme_probabilities():
    config = CONFIGS["tiny"]
    probs = torch.zeros(2, 1, 8)
    probs[..., 7] = 1.0  # all mass outside the text group
    recorder = RoutingRecorder(config)
    recorder.record(probs, [1], [0], "user", 0)
    trace = recorder.finish()
    assert (trace.removed_mass == 1).all()
    assert (trace.entropy == 0).all()
    assert set(trace.experts[0, 0]) == {0, 1, 2, 3, NO_EXPERT}
    assert trace.leakage == 0


def test_wrong_calls_say_what_to_do():
    config = CONFIGS["tiny"]
    recorder = RoutingRecorder(config)
    probs = random_probs(config, 2, 0)
    for ids, modality in (([1], [0]), ([1, 2], [0])):
        with pytest.raises(ValueError, match=r"do not fit probabilities \(2, 2, 8\)"):
            recorder.record(probs, ids, modality, "user", 0)
    with pytest.raises(ValueError, match="modality id 2"):
        recorder.record(probs, [1, 2], [0, 2], "user", 0)
    with pytest.raises(ValueError, match="token 0 is not among the 0"):
        recorder.annotate(0, text="x")
    recorder.record(probs, [1, 2], [0, 1], "user", 0, indices_LNK=torch.full((2, 2, 2), 8))
    with pytest.raises(ValueError, match="a token has no 'txt'"):
        recorder.annotate(0, txt="x")
    with pytest.raises(ValueError, match="no expert 8"):
        recorder.finish()
    with pytest.raises(ValueError, match="keep 1"):
        RoutingRecorder(config, keep=1)
    with pytest.raises(ValueError, match="no expert 3 in layer 0"):
        RoutingRecorder(config, knock_out=[(0, 3)])
    with pytest.raises(ValueError, match="256 experts"):
        RoutingRecorder(MostConfig.tiny(n_routed_experts=256))
    with pytest.raises(ValueError, match="no mixture-of-experts layers"):
        RoutingRecorder(MostConfig.tiny(feed_forward="dense"))


def test_record_costs_next_to_nothing():
    recorder, probs = RoutingRecorder(CONFIGS["nano"]), random_probs(CONFIGS["nano"], 1, 0)
    seconds = []
    for t in range(2000):
        before = time.perf_counter()
        recorder.record(probs, [t], [0], "assistant", 0)
        seconds.append(time.perf_counter() - before)
    assert statistics.median(seconds) < 60e-6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_trace_as_the_cpu():
    config = CONFIGS["nano"]
    probs = random_probs(config, 40, 0)
    indices = torch.zeros(5, 40, 4, dtype=torch.long)
    traces = []
    for device in ("cpu", "cuda"):
        recorder, buffer = RoutingRecorder(config), torch.empty(5, 20, 16, device=device)
        for start, stop in ((0, 3), (3, 20), *((t, t + 1) for t in range(20, 40))):
            buffer[:, : stop - start].copy_(probs[:, start:stop])
            now = indices[:, start:stop].to(device)
            recorder.record(
                buffer[:, : stop - start], [1] * (stop - start), [1] * (stop - start), "u", 0, indices_LNK=now
            )
        traces.append(recorder.finish())
    assert_same(*traces)
