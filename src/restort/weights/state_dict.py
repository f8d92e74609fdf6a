"""Find the one set of weights in a checkpoint: containers, prefixes, averaged copies, training leftovers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from restort.errors import RestortError

# Keys under which trainers keep a network, the most likely first.
CONTAINERS = (
    "params",
    "state_dict",
    "model_state_dict",
    "model",
    "net_g",
    "netG",
    "generator",
    "g",
    "net",
    "network",
    "weights",
    "module",
    "state",
)
MAX_DEPTH = 6
MAX_ENTRIES = 100_000  # tensors; a full-size Restormer has 568
# An exponential moving average of the weights: params_ema, ema_state_dict, g_ema, model_ema, netG_EMA, ema_model ...
_EMA = re.compile(r"(^|[._])ema([._]|$)", re.IGNORECASE)
# One name of each architecture which no other network has; what stands before it is the prefix.
_SIGNATURES = (
    re.compile(r"^(.*?)encoder_level1\.0\.attn\.temperature$"),
    re.compile(r"^(.*?)body\.0\.modules_lfe\.(?:lfe_)?0\."),
)
# Counters that THOP (pytorch-OpCounter) registers as buffers of every module.
_LEFTOVERS = ("total_ops", "total_params")

IsTensor = Callable[[Any], bool]


@dataclass(frozen=True)
class FoundState:
    """`state`: tensors by the network's own names; `note`: a sentence for the user where there was a choice."""

    state: dict[str, Any]
    note: str | None


def find_state(content: Any, is_tensor: IsTensor) -> FoundState:
    """Find the state dict within a checkpoint's content.

    Opens containers (`params`, `state_dict`, ...) and removes prefixes (`module.`, `net_g.`, ...). Averaged weights
    (`params_ema`, `g_ema`, ...) are preferred, since they are what a training run publishes; `note` then says so.
    Raises RestortError where there is no network, or more than one to choose from.
    """
    found = _open(content, is_tensor, (), set())
    if found is None:
        raise RestortError(
            "no weights found (a state dict: names and tensors); save the model's state_dict()"
        )
    path, tensors = found
    if len(tensors) > MAX_ENTRIES:
        raise RestortError(f"more than {MAX_ENTRIES:,} tensors; save the model's state_dict() by itself")
    prefix, passed_over = _choose_prefix(tensors)
    label = ".".join([*path, *filter(None, [prefix.rstrip(".")])])
    note = None
    if passed_over or any(_EMA.search(key) for key in path):
        note = f"using the averaged weights {label!r} of the checkpoint"
    elif (shadow := _shadow_parameters(content)) is not None:
        key, values = shadow
        if _same_shapes(tensors.values(), values, is_tensor):
            tensors = dict(zip(tensors, values, strict=True))
            note = f"using the averaged weights {key!r} of the checkpoint"
        else:
            note = (
                f"using {label!r}: the averaged weights {key!r} have no names and do not match its parameters; to use "
                "them, copy them into the model (ema.copy_to) and save its state_dict()"
            )
    state = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
    return FoundState({n: v for n, v in state.items() if n.rpartition(".")[2] not in _LEFTOVERS}, note)


def _open(
    content: Any, is_tensor: IsTensor, path: tuple[str, ...], seen: set[int]
) -> tuple[tuple[str, ...], dict[str, Any]] | None:
    """Return the keys that lead to the tensors, and the tensors by name."""
    if isinstance(content, (list, tuple)) and not path:  # [state_dict, epoch]
        content = next((item for item in content[:16] if isinstance(item, dict)), None)
    if not isinstance(content, dict) or len(path) > MAX_DEPTH or id(content) in seen:
        return None
    seen.add(id(content))
    keys = [key for key, value in content.items() if isinstance(key, str) and isinstance(value, dict)]
    averaged = [key for key in keys if _EMA.search(key)]
    for key in [*averaged, *(key for key in CONTAINERS if key in keys and key not in averaged)]:
        found = _open(content[key], is_tensor, (*path, key), seen)
        # The state of an averager may hold other tensors than weights, such as a count of updates.
        if found is not None and (key not in averaged or _has_network(found[1])):
            return found
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and is_tensor(value)}
    if tensors:
        return path, tensors
    others = [key for key in keys if key not in CONTAINERS and key not in averaged]
    if not path and len(others) == 1:  # a container of another name, if there is only one
        return _open(content[others[0]], is_tensor, (others[0],), seen)
    return None


def _has_network(tensors: Mapping[str, Any]) -> bool:
    return any(signature.match(name) for name in tensors for signature in _SIGNATURES)


def _choose_prefix(tensors: Mapping[str, Any]) -> tuple[str, bool]:
    """Return the prefix of the network's names, and whether other networks were passed over for their average."""
    found = {
        match.group(1) for name in tensors for signature in _SIGNATURES if (match := signature.match(name))
    }
    if len(found) < 2:
        return (found.pop() if found else ""), False
    averaged = {prefix for prefix in found if _EMA.search(prefix)}
    if len(averaged) != 1:
        listed = ", ".join(sorted(prefix or "(none)" for prefix in found)[:4])
        raise RestortError(f"several networks (under {listed}) in one file; save the one wanted by itself")
    return averaged.pop(), True


def _shadow_parameters(content: Any) -> tuple[str, Sequence[Any]] | None:
    """Return the average that torch_ema keeps, and its key: a list in the order of `model.parameters()`."""
    for key, value in content.items() if isinstance(content, dict) else ():
        values = value.get("shadow_params") if isinstance(value, dict) else None
        if isinstance(values, (list, tuple)):
            return f"{str(key)[:40]}.shadow_params", values
    return None


def _same_shapes(tensors: Iterable[Any], values: Sequence[Any], is_tensor: IsTensor) -> bool:
    shapes = [tuple(tensor.shape) for tensor in tensors]
    return all(map(is_tensor, values)) and shapes == [tuple(value.shape) for value in values]
