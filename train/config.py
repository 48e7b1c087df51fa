"""Settings of a training command: strict YAML to a frozen dataclass and back, presets by name, options of one run.

A command describes its settings as a dataclass with defaults, whose fields may be numbers, booleans, text, paths,
`Literal`, `X | None`, lists, tuples, dictionaries with text keys, and further dataclasses.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
import time
import types
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from train.files import write_whole

PRESETS = Path(__file__).parent / "configs"
Config = TypeVar("Config")


@dataclass(frozen=True)
class RunOptions:
    """How to run a command this once. None of it changes what is trained, so none is in the config or its hash."""

    dry_run: bool = False  # show what would be done, on fake data, and leave nothing behind
    minutes: float | None = None  # stop after so long; the same command continues
    fresh: bool = False  # begin anew, whatever checkpoints there are
    threads: int | None = None  # of torch (set already) and workers where there are any; None: its own choice
    device: str = "auto"  # as `most_core.loading.choose_device` takes it


def deadline(minutes: float | None) -> Callable[[], bool]:
    """A function that says whether `minutes` from now have passed; never, for None."""
    end = math.inf if minutes is None else time.monotonic() + 60 * minutes
    return lambda: time.monotonic() >= end


def find_config(name: str | Path) -> Path:
    """The file that `name` means: a path, or the name of a preset in `train/configs`."""
    for path in (Path(name), PRESETS / name, PRESETS / f"{name}.yaml"):
        if path.is_file():
            return path
    presets = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    raise FileNotFoundError(f"{name}: neither a file nor a preset; presets are {', '.join(presets) or '(none yet)'}")


def load_config(cls: type[Config], path: Path | str | None, overrides: Sequence[str] = ()) -> Config:
    """Settings from a YAML file (None: the defaults), then from overrides such as `"encoder.steps=100"`.

    What a section leaves out is as in the default of that section; an override of one name of a dictionary leaves its
    other names, one of the whole dictionary replaces it. Raises ValueError, in one line with place and value, for what
    `cls` does not have or cannot hold.
    """
    origin = _Origin("settings" if path is None else str(path), {})
    settings = {} if path is None else _parse(Path(path).read_text(encoding="utf-8"), origin.file)
    settings = {} if settings is None else settings
    if not isinstance(settings, dict):
        raise origin.error("", f"expected settings, 'name: value' on each line, got {settings!r}")
    for override in overrides:
        _override(settings, override, origin)
    return _build(cls, settings, origin, "", None)


def to_yaml(config: Any) -> str:
    """Every setting, defaults included, as `load_config` reads it back."""
    return _dumped(_plain(config))


def _dumped(plain: Any) -> str:
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def claim(
    out: Path,
    config: Any,
    *,
    fresh: bool = False,
    made: Sequence[str] = (),
    inputs: Mapping[str, str] = types.MappingProxyType({}),
) -> None:
    """Write `out/config.yaml`; ValueError with the first difference if `out` was begun with other settings or inputs.

    `inputs` are digests by name of what is worked on. `fresh` removes what was `made` there first.
    """
    path, plain = out / "config.yaml", _plain(config) | ({"inputs": dict(inputs)} if inputs else {})
    if fresh:
        for name in (*made, path.name):
            shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink(missing_ok=True)
    if not path.is_file():
        write_whole(path, _dumped(plain).encode())
        return
    earlier, now = (_flat(each) for each in (yaml.safe_load(path.read_text(encoding="utf-8")), plain))
    for name in {**now, **earlier}:
        if earlier.get(name) != now.get(name):
            raise ValueError(
                f"{out} was begun with {name} {earlier.get(name)!r}, not {now.get(name)!r}: "
                "choose another --out, or --fresh to begin anew"
            )


def _flat(value: Any, place: str = "") -> dict[str, Any]:
    """Nested settings as one dictionary of "section.name"."""
    if not isinstance(value, dict):
        return {place: value}
    prefix = f"{place}." if place else ""
    return {name: leaf for key, item in value.items() for name, leaf in _flat(item, f"{prefix}{key}").items()}


def config_hash(config: Any) -> str:
    """Short name of these settings: the same for equal ones, whatever the order or spelling in the file."""
    canonical = json.dumps(_plain(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice, where the standard loader silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key} is given twice", key_node.start_mark)
            seen.add(key if isinstance(key, Hashable) else None)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """YAML with short lists on one line."""


_Dumper.add_representer(
    list,
    lambda dumper, items: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", items, flow_style=not any(isinstance(item, (dict, list)) for item in items)
    ),
)


@dataclass(frozen=True)
class _Origin:
    """Where settings come from, so that an error names the file or the `--set` at fault."""

    file: str
    overrides: dict[str, str]  # dotted name of each override, and of each section that one had to open -> its --set
    opened: set[str] = dataclasses.field(default_factory=set)  # sections of which --set gave some names only

    def error(self, place: str, problem: str) -> ValueError:
        return ValueError(f"{self.overrides.get(place, self.file)}: {place}{' ' if place else ''}{problem}")

    def mismatch(self, place: str, value: Any, kind: Any) -> ValueError:
        text_wanted = str in _alternatives(kind) and isinstance(value, (bool, int, float))
        found = "empty" if value is None else repr(value)
        return self.error(place, f"is {found}; expected {_describe(kind)}{' (in quotes)' if text_wanted else ''}")


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        raise ValueError(f"{place}: {getattr(error, 'problem', None) or ' '.join(str(error).split())}") from error


def _override(settings: dict[str, Any], override: str, origin: _Origin) -> None:
    """Put one `a.b=value` into settings as a file gives them."""
    name, equals, text = override.partition("=")
    keys = [key.strip() for key in name.split(".")]
    if not equals or not all(keys):
        raise ValueError(f"--set {override}: expected name=value, as in --set encoder.steps=100")
    for depth, key in enumerate(keys[:-1], 1):
        if settings.get(key) is None:
            settings[key] = {}
            origin.overrides[".".join(keys[:depth])] = f"--set {override}"
            origin.opened.add(".".join(keys[:depth]))
        if not isinstance(settings[key], dict):
            raise ValueError(f"--set {override}: {'.'.join(keys[:depth])} is {settings[key]!r}, not a section")
        settings = settings[key]
    settings[keys[-1]] = _parse(text, f"--set {override}")
    origin.overrides[".".join(keys)] = f"--set {override}"
    origin.opened.discard(".".join(keys))


def _build(cls: type[Config], settings: Mapping[Any, Any], origin: _Origin, place: str, base: Config | None) -> Config:
    """A `cls` with these settings; others as in `base`, if there is one, else as `cls` has them."""
    kinds = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    prefix = f"{place}." if place else ""
    values = {}
    for key, value in settings.items():
        if key not in fields:
            near = get_close_matches(str(key), fields, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(fields)}"
            raise origin.error(f"{prefix}{key}", f"is no setting; {hint}")
        default = _default(fields[key]) if base is None else getattr(base, key)
        values[key] = _convert(kinds[key], value, origin, prefix + key, default)
    for key, field in fields.items():
        if base is None and key not in values and field.default is field.default_factory is MISSING:
            raise origin.error(prefix + key, f"is missing; expected {_describe(kinds[key])}")
    try:
        return cls(**values) if base is None else dataclasses.replace(base, **values)
    except ValueError as error:  # what the dataclass itself refuses
        raise origin.error(place, str(error)) from error


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return None if field.default is MISSING else field.default


def _convert(kind: Any, value: Any, origin: _Origin, place: str, default: Any = None) -> Any:
    """`value`, as YAML gave it, as the type `kind`; ValueError if it is not one."""
    alternatives = _alternatives(kind)
    if len(alternatives) > 1:
        return _convert_to_one(kind, value, origin, place, default)
    outer, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _build(kind, value, origin, place, default if type(default) is kind else None)
    if outer is Literal and any(type(choice) is type(value) and choice == value for choice in inner):
        return value
    if outer is dict and isinstance(value, dict) and all(isinstance(key, str) for key in value):
        kept = dict(default or {}) if place in origin.opened else {}
        return kept | {key: _convert(inner[1], item, origin, f"{place}.{key}") for key, item in value.items()}
    if outer in (tuple, list) and isinstance(value, list):
        kinds = [inner[0]] * len(value) if outer is list or inner[-1] is Ellipsis else inner
        if len(kinds) == len(value):
            pairs = enumerate(zip(kinds, value, strict=True))
            return outer(_convert(one, item, origin, f"{place}[{i}]") for i, (one, item) in pairs)
    if kind is float and type(value) in (int, float, str):
        number = _number(value)
        if number is not None:
            return number
    if kind is Path and isinstance(value, str) and value:
        return Path(value)
    if kind in (int, bool, str) and type(value) is kind:
        return value
    raise origin.mismatch(place, value, kind)


def _convert_to_one(kind: Any, value: Any, origin: _Origin, place: str, default: Any) -> Any:
    """`_convert` for `A | B`."""
    alternatives = [one for one in _alternatives(kind) if one is not type(None)]
    if value is None and type(None) in _alternatives(kind):
        return None
    if len(alternatives) == 1 and value is not None:  # so that the error is about the place inside it
        return _convert(alternatives[0], value, origin, place, default)
    for one in sorted(alternatives, key=lambda one: type(value) is not one):  # `int | float` keeps 1 whole
        try:
            return _convert(one, value, origin, place, default)
        except ValueError:
            continue
    raise origin.mismatch(place, value, kind)


def _number(value: float | str) -> float | None:
    """Also of text: YAML reads 1e-3, which has no dot, as such."""
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return None if math.isnan(number) else number


def _plain(value: Any) -> Any:
    """What YAML and JSON can hold of a config: dictionaries, lists, numbers, text."""
    if dataclasses.is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value) if item.init}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _describe(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    alternatives = _alternatives(kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if len(alternatives) > 1:
        return " or ".join("null" if one is type(None) else _describe(one) for one in alternatives)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is dict:
        return f"names with {_describe(arguments[1])} each"
    if origin in (tuple, list):
        if origin is tuple and arguments[-1] is not Ellipsis:
            return f"a list of {len(arguments)} ({', '.join(map(_describe, arguments))})"
        return f"a list, each item {_describe(arguments[0])}"
    if dataclasses.is_dataclass(kind):
        return f"settings ({', '.join(item.name for item in dataclasses.fields(kind) if item.init)})"
    return names.get(kind, str(kind))
