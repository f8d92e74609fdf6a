"""Which model `restort upscale` takes for which file, where the user names none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from restort.errors import RestortError

if TYPE_CHECKING:
    from restort.imaging.folder import Job
    from restort.inference.attempts import Attempts
    from restort.inference.manifest import Manifest
    from restort.inference.resolve import ResolvedModel
    from restort.weights.catalogue import Entry


@dataclass
class Group:
    """The files of one model.

    model    None for the model of the command's options
    damage   for each source, what damage_of found; empty where it was not asked
    """

    model: ResolvedModel | None
    jobs: list[Job] = field(default_factory=list)
    damage: dict[Path, str | None] = field(default_factory=dict)


def group(
    jobs: Iterable[Job],
    root: Path | None,
    scale: int | None,
    notify: Callable[[str], None],
    *,
    retry: bool = False,
) -> list[Group]:
    """Return the files of every model that `restort upscale` takes, at most two groups, and say the choice in a line.

    retry   look at files again that were set aside
    root    the output folder, whose manifest knows the damage of files that were restored before; None for one file
    scale   that the user asks for; None for the default
    """
    from restort.inference.attempts import Attempts
    from restort.inference.manifest import FOLDER, Manifest
    from restort.inference.resolve import resolve_model
    from restort.weights.catalogue import default_for, default_for_damaged

    jobs = list(jobs)
    usual = default_for("upscale", scale)
    photo = default_for_damaged("upscale", usual.scale)
    manifest = None if root is None else Manifest(root)
    attempts = None if root is None else Attempts(root / FOLDER, retry=retry, notify=notify)
    damage = {job.source: _damage(job, manifest, attempts) for job in jobs}
    if attempts is not None:
        attempts.close()
    if photo is None or photo.name == usual.name:
        _hint(usual, damage, notify)
        return [Group(None, jobs, damage)]
    groups = [Group(resolve_model(entry.name, task="upscale", scale=scale)) for entry in (photo, usual)]
    for job in jobs:
        chosen = groups[damage[job.source] is None]
        chosen.jobs.append(job)
        chosen.damage[job.source] = damage[job.source]
    groups = [one for one in groups if one.jobs]
    parts = [
        f"{_files(len(one.jobs))} by {one.model.name} ({_reasons(one.damage)})" for one in groups if one.model
    ]
    notify(f"upscale: {', '.join(parts)}; --model NAME overrides")
    return groups


def _damage(job: Job, manifest: Manifest | None, attempts: Attempts | None) -> str | None:
    """What damaged a file, from the manifest or by a look at it. None, too, for a file that cannot be decoded: the
    error is reported in its turn."""
    from restort.inference.damage import VERSION, damage_of

    if manifest is not None:
        known = manifest.known(job.source, job.target).get("damage")
        if isinstance(known, list) and len(known) == 2 and known[0] == VERSION:
            return None if known[1] is None else str(known[1])
    try:
        if attempts is None:
            return damage_of(job.source)
        attempts.check(job.source)
        with attempts.trying(job.source):
            return damage_of(job.source)
    except RestortError:
        return None


def _hint(usual: Entry, damage: Mapping[Path, str | None], notify: Callable[[str], None]) -> None:
    damaged = {source: why for source, why in damage.items() if why is not None}
    if damaged:
        notify(
            f"upscale: {_files(len(damaged))} damaged ({_reasons(damaged)}), and {usual.name} was made for undamaged "
            f"ones; `restort dejpeg` or `restort denoise` before helps"
        )


def _reasons(damage: Mapping[Path, str | None]) -> str:
    """The reasons, the most frequent first."""
    return ", ".join(why or "undamaged" for why, _ in Counter(damage.values()).most_common())


def _files(count: int) -> str:
    return f"{count} file{'s' * (count != 1)}"
