"""A network over a Picture: tiles, colour, alpha, and back."""

from __future__ import annotations

from restort.imaging.picture import Picture
from restort.models.spec import Spec
from restort.tiling.tiles import Network, Progress, TilePlan, stream_tiled


def apply(
    network: Network, spec: Spec, picture: Picture, plan: TilePlan, progress: Progress | None = None
) -> Picture:
    """`picture` restored by `network`, cut as `plan` says (made by `tiles.plan` for its height and width).

    Alpha that varies goes through an enlarging network as a gray picture of its own, which takes as long
    again; `progress(done, total)` counts its tiles too. Raises RestortError where the network takes no such
    picture or returns no numbers.
    """
    x = picture.to_unit(spec.in_channels)
    alpha = picture.alpha_to_unit(spec.in_channels, spec.scale)
    total = plan.count * (1 if alpha is None else 2)

    def counted(before: int) -> Progress | None:
        return None if progress is None else lambda done, _: progress(before + done, total)

    bands = stream_tiled(network, x, plan, counted(0))
    alpha_bands = None if alpha is None else stream_tiled(network, alpha, plan, counted(plan.count))
    return picture.from_bands(bands, spec.scale, alpha_bands)
