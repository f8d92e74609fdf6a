"""Finds the one set of weights in what a checkpoint holds: containers, prefixes, training leftovers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from restort.errors import RestortError

# In the order of preference: the moving average of the weights is what a training run publishes.
CONTAINERS = (
    "params_ema",
    "ema_state_dict",
    "model_ema",
    "state_dict_ema",
    "net_g_ema",
    "generator_ema",
    "ema",
    "params",
    "state_dict",
    "model_state_dict",
    "model",
    "net_g",
    "netG",
    "generator",
    "net",
    "network",
    "weights",
    "module",
    "state",
)
MAX_DEPTH = 6
_EMA = re.compile(r"(^|[._])ema([._]|$)", re.IGNORECASE)
# One name of each architecture which no other network has under it; what stands before it is the prefix.
_SIGNATURES = (
    re.compile(r"^(.*?)encoder_level1\.0\.attn\.temperature$"),
    re.compile(r"^(.*?)body\.0\.modules_lfe\.(?:lfe_)?0\."),
)


def find_state(content: Any, is_tensor: Callable[[Any], bool]) -> dict[str, Any]:
    """The state dict within a checkpoint's content, under the network's own names.

    Containers (`params_ema` before `params`, `state_dict`, ...) are opened, prefixes (`module.`,
    `net_g.`, ...) removed. Raises RestortError where nothing or more than one network is found.
    """
    state = _open(content, is_tensor, 0, set())
    if state is None:
        raise RestortError("it holds no weights (a state dict: names and tensors)")
    return strip_prefix(state)


def _open(
    content: Any, is_tensor: Callable[[Any], bool], depth: int, seen: set[int]
) -> dict[str, Any] | None:
    if not isinstance(content, dict) or depth > MAX_DEPTH or id(content) in seen:
        return None
    seen.add(id(content))
    named = [content[key] for key in CONTAINERS if key in content]
    for inner in named:
        found = _open(inner, is_tensor, depth + 1, seen)
        if found is not None:
            return found
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and is_tensor(value)}
    if tensors:
        return tensors
    others = [value for key, value in content.items() if key not in CONTAINERS and isinstance(value, dict)]
    if depth == 0 and len(others) == 1:  # a container of another name, if there is only one
        return _open(others[0], is_tensor, depth + 1, seen)
    return None


def strip_prefix(state: Mapping[str, Any]) -> dict[str, Any]:
    """The network's entries without what stands before every one of its names; others are left out."""
    found = {
        match.group(1) for name in state for signature in _SIGNATURES if (match := signature.match(name))
    }
    if len(found) > 1:
        averaged = {prefix for prefix in found if _EMA.search(prefix)}
        if len(averaged) != 1:
            listed = ", ".join(sorted(prefix or "(none)" for prefix in found)[:4])
            raise RestortError(f"it holds several networks (under {listed}); save the one wanted by itself")
        found = averaged
    prefix = found.pop() if found else ""
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
