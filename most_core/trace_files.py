"""A routing trace as three Parquet tables, and back again exactly. The arrays are those of `most_core.trace_rows`.

Unknown numbers and empty expert slots are null on disk. Shapes: T tokens, L MoE layers, E routed experts,
K experts per token, W ranked experts per token and layer.
"""

from __future__ import annotations

import io
import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub.errors import StrictDataclassError

from most_core.config import AUDIO, TEXT, MostConfig

Arrays = dict[str, np.ndarray]

SCHEMA_VERSION = "1"
NO_EXPERT = 255  # in memory: an empty slot
UNRANKED = 255  # on disk: the rank of a chosen expert that is not among the W ranked ones
SCHEMAS = {
    name: pa.schema([tuple(column.split()) for column in columns.split(", ")])
    for name, columns in {
        "tokens": "token int32, turn int32, role string, modality uint8, id int32, text string, "
        "start_s float, end_s float, logprob float",
        "routing": "token int32, layer int16, rank uint8, expert int16, weight float, chosen bool, "
        "unmasked_expert int16, unmasked_weight float",
        "layers": "token int32, layer int16, removed_mass float, entropy float, shared_norm float, routed_norm float",
    }.items()
}
NULLABLE = {"start_s", "end_s", "logprob", "shared_norm", "routed_norm"}
NULLABLE |= {"expert", "weight", "unmasked_expert", "unmasked_weight"}


def trace_bytes(arrays: Mapping[str, np.ndarray | None], metadata: dict[str, str]) -> dict[str, bytes]:
    """The three files, by table."""
    tables = {"tokens": arrays, "routing": _routing_rows(arrays), "layers": _layer_rows(arrays)}
    metadata = {"schema_version": SCHEMA_VERSION, **metadata}
    written = {}
    for name, schema in SCHEMAS.items():
        columns = [_to_arrow(tables[name][field.name], field) for field in schema]
        table, file = pa.table(columns, schema=schema.with_metadata(metadata)), io.BytesIO()
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)
        written[name] = file.getvalue()
    return written


def write_trace(prefix: str | Path, arrays: Mapping[str, np.ndarray | None], metadata: dict[str, str]) -> None:
    """Write `<prefix>.{tokens,routing,layers}.parquet`; none appears before all three are complete."""
    Path(prefix).parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".trace-", dir=Path(prefix).parent) as folder:
        for name, data in trace_bytes(arrays, metadata).items():
            Path(folder, name).write_bytes(data)
        for name in SCHEMAS:
            os.replace(f"{folder}/{name}", f"{prefix}.{name}.parquet")


def read_trace(prefix: str | Path) -> tuple[dict[str, np.ndarray | None], MostConfig, dict[str, str]]:
    """(arrays, configuration, metadata). FileNotFoundError if a file is missing, ValueError if it is unusable."""
    files = {}
    for name in SCHEMAS:
        path = Path(f"{prefix}.{name}.parquet")
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: a trace is a .tokens, a .routing and a .layers.parquet file")
        files[name] = path.read_bytes()
    return parse_trace(files, prefix)


def parse_trace(
    files: Mapping[str, bytes], prefix: str | Path
) -> tuple[dict[str, np.ndarray | None], MostConfig, dict[str, str]]:
    """As `read_trace`, from the files' bytes by table; `prefix` is what errors call them."""
    tables, metadata = {}, {}
    for name, schema in SCHEMAS.items():
        tables[name], metadata[name] = _read_table(files[name], f"{prefix}.{name}.parquet", schema)
    meta = metadata["tokens"]
    try:
        if any(other != meta for other in metadata.values()):
            raise ValueError("their metadata differ")
        config = MostConfig.from_dict(json.loads(meta["config"]))
        int(meta["seed"] or 0), meta["model_hash"], meta["dtype"]  # there, and of their kinds
        token, unknown = tables["tokens"]["token"], set(tables["tokens"]["modality"].tolist()) - {TEXT, AUDIO}
        if unknown:
            raise ValueError(f"modality {min(unknown)} is neither 0 (text) nor 1 (audio)")
        arrays = _unfold_routing(token, tables["routing"], config) | _unfold_layers(token, tables["layers"], config)
    except (ValueError, KeyError, TypeError, StrictDataclassError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the files of trace {prefix} do not fit together: {reason}; save it again") from error
    return tables["tokens"] | arrays, config, meta


def _routing_rows(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """The ranked experts of every token and layer, in order; then the chosen ones that are not among them."""
    token, layers, experts, chosen = (arrays[name] for name in ("token", "layers", "experts", "chosen"))
    T, L, W = experts.shape
    is_chosen = (chosen[..., None] == experts[..., None, :]) & (experts != NO_EXPERT)[..., None, :]
    extra = ~is_chosen.any(-1) & (chosen != NO_EXPERT)
    where_token, where_layer, _ = extra.nonzero()
    none = np.full(len(where_token), NO_EXPERT, np.uint8)
    expert = np.append(experts, chosen[extra])
    unmasked = np.append(arrays["unmasked_experts"], none)
    weight = np.append(arrays["probs"], arrays["chosen_probs"][extra]).astype(np.float32)
    unmasked_weight = np.append(arrays["unmasked_probs"], none).astype(np.float32)
    return {
        "token": np.append(np.repeat(token, L * W), token[where_token]),
        "layer": np.append(np.tile(np.repeat(layers, W), T), layers[where_layer]),
        "rank": np.append(np.tile(np.arange(W), T * L), np.full(len(none), UNRANKED)).astype(np.uint8),
        "expert": expert,
        "weight": np.where(expert == NO_EXPERT, np.float32(np.nan), weight),
        "chosen": np.append(is_chosen.any(-2), np.ones(len(none), bool)),
        "unmasked_expert": unmasked,
        "unmasked_weight": np.where(unmasked == NO_EXPERT, np.float32(np.nan), unmasked_weight),
    }


def _layer_rows(arrays: Mapping[str, np.ndarray | None]) -> Arrays:
    token, layers = arrays["token"], arrays["layers"]
    rows = {"token": np.repeat(token, len(layers)), "layer": np.tile(layers, len(token))}
    for name in ("removed_mass", "entropy", "shared_norm", "routed_norm"):
        missing = np.full(len(rows["token"]), np.nan, np.float32)
        rows[name] = missing if arrays[name] is None else arrays[name].ravel()
    return rows


def _unfold_routing(token: np.ndarray, rows: Arrays, config: MostConfig) -> Arrays:
    T, layers, E, K = len(token), config.moe_layers, config.n_routed_experts, config.num_experts_per_tok
    L = len(layers)
    if not 0 < K <= E <= NO_EXPERT:
        raise ValueError(f"{K} of {E} experts per token cannot have been recorded")
    count = int((rows["rank"] != UNRANKED).sum())
    W = count // (T * L) if T * L else min(8, E)
    _check_order(rows, np.repeat(token, L * W), np.tile(np.repeat(layers, W), T), count, "routing")
    if (np.diff(token) <= 0).any() or not np.array_equal(rows["rank"][:count], np.tile(np.arange(W), T * L)):
        raise ValueError("token numbers or ranks do not rise")
    if not np.isin([rows["expert"], rows["unmasked_expert"]], [*range(E), NO_EXPERT]).all():
        raise ValueError(f"an expert is not among the {E} of the model")
    if not (np.isin(rows["token"], token).all() and np.isin(rows["layer"], layers).all()):
        raise ValueError("a chosen expert belongs to an unknown token or layer")

    experts, unmasked = rows["expert"].astype(np.uint8), rows["unmasked_expert"].astype(np.uint8)
    probs, unmasked_probs = (np.nan_to_num(rows[n]).astype(np.float16) for n in ("weight", "unmasked_weight"))
    cell = np.searchsorted(token, rows["token"]) * L + np.searchsorted(layers, rows["layer"])
    picked = np.flatnonzero(rows["chosen"])
    picked = picked[np.argsort(cell[picked], kind="stable")]
    cell = cell[picked]
    slot = np.arange(len(cell)) - np.searchsorted(cell, cell)
    if (slot >= K).any():
        raise ValueError(f"a token has more than {K} chosen experts in one layer")
    chosen, chosen_probs = np.full((T * L, K), NO_EXPERT, np.uint8), np.zeros((T * L, K), np.float16)
    chosen[cell, slot], chosen_probs[cell, slot] = experts[picked], probs[picked]
    return {
        "layers": np.array(layers, np.int16),
        "experts": experts[:count].reshape(T, L, W),
        "probs": probs[:count].reshape(T, L, W),
        "chosen": chosen.reshape(T, L, K),
        "chosen_probs": chosen_probs.reshape(T, L, K),
        "unmasked_experts": unmasked[:count].reshape(T, L, W),
        "unmasked_probs": unmasked_probs[:count].reshape(T, L, W),
    }


def _unfold_layers(token: np.ndarray, rows: Arrays, config: MostConfig) -> dict[str, np.ndarray | None]:
    shape = (len(token), len(config.moe_layers))
    _check_order(rows, np.repeat(token, shape[1]), np.tile(config.moe_layers, shape[0]), None, "layer")
    names = ("removed_mass", "entropy", "shared_norm", "routed_norm")
    grids = {name: rows[name].reshape(shape) for name in names}
    return {n: None if n.endswith("_norm") and np.isnan(grid).all() else grid for n, grid in grids.items()}


def _check_order(rows: Arrays, token: np.ndarray, layer: np.ndarray, count: int | None, what: str) -> None:
    if not (np.array_equal(rows["token"][:count], token) and np.array_equal(rows["layer"][:count], layer)):
        raise ValueError(f"the {what} rows are not those of every token and MoE layer in order")


def _to_arrow(values: np.ndarray, field: pa.Field) -> pa.Array:
    empty = None
    if field.name in NULLABLE:
        empty = np.isnan(values) if values.dtype.kind == "f" else values == NO_EXPERT
    return pa.array(values.reshape(-1), field.type, mask=empty)


def _read_table(data: bytes, path: str, schema: pa.Schema) -> tuple[Arrays, dict[str, str]]:
    """(columns, metadata) of one file."""
    try:
        table = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True).read()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged or no Parquet file: save the trace again") from error
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    version = metadata.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(f"{path} has schema version {version}, not {SCHEMA_VERSION}: use the release that wrote it")
    if not table.schema.equals(schema):
        raise ValueError(f"{path} has other columns than {', '.join(schema.names)}: save the trace again")
    columns = {}
    for field in schema:
        column = table[field.name]
        if column.null_count:
            if field.name not in NULLABLE:
                raise ValueError(f"{path} has empty cells in column {field.name}: save the trace again")
            column = column.fill_null(math.nan if pa.types.is_floating(field.type) else NO_EXPERT)
        columns[field.name] = column.to_numpy()
    return columns, metadata
