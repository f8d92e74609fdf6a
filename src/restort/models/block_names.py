"""The blocks of a network, by the names of their published modules."""

from __future__ import annotations

from restort.models.spec import LEVELS, RestormerSpec, Spec


def block_names(spec: Spec) -> tuple[str, ...]:
    """Return the modules whose outputs follow one another along the residual stream, in the order they run.

    Restormer: every transformer block ('encoder_level1.0', ..., 'latent.7', ..., 'refinement.3'; CVPR 2022,
    figure 2). ELAN: every ELAB ('body.0', ...), which is n_share + 1 pairs of LFE and GMSA that share one set of
    scores (ECCV 2022, section 3.1); the sums inside an ELAB are no module's output.
    """
    if not isinstance(spec, RestormerSpec):
        return tuple(f"body.{i}" for i in range(spec.groups))
    counts = dict(zip(LEVELS, spec.num_blocks, strict=True))
    counts |= {f"decoder_level{level + 1}": spec.num_blocks[level] for level in (2, 1, 0)}
    counts["refinement"] = spec.num_refinement_blocks
    return tuple(f"{stage}.{i}" for stage, count in counts.items() for i in range(count))


def block_channels(spec: Spec) -> dict[str, int]:
    """Return the number of channels of each block's output, by the names of `block_names`, in their order."""
    if not isinstance(spec, RestormerSpec):
        return dict.fromkeys(block_names(spec), spec.channels)
    factors = {name: 1 << i for i, name in enumerate(LEVELS)}
    factors |= {"decoder_level3": 4, "decoder_level2": 2, "decoder_level1": 2, "refinement": 2}
    return {name: spec.dim * factors[name.split(".")[0]] for name in block_names(spec)}
