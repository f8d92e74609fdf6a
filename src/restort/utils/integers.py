"""Integer arithmetic of sizes, tiles and blocks."""

from __future__ import annotations


def cdiv(number: int, divisor: int) -> int:
    """Return number / divisor, rounded up."""
    return -(-number // divisor)


def round_up(number: int, multiple: int) -> int:
    """Return the least multiple of `multiple` that is not below `number`."""
    return cdiv(number, multiple) * multiple


def even_workers(items: int, most: int) -> int:
    """Return the least number of workers, at most `most`, with which the busiest has no more items than it must."""
    return cdiv(items, cdiv(items, most))


def next_power_of_2(number: int, least: int = 16) -> int:
    """Return the least power of two that is below neither `number` nor `least`.

    Triton's blocks have such sides, and those of tl.dot are at least 16.
    """
    return max(least, 1 << (number - 1).bit_length())


def two_powers_of_2(channels: int) -> tuple[int, int]:
    """Return two block sides that together cover `channels`: 32 + 16 for 48, 64 + 32 for 96, 64 + 0 for 64.

    Channel counts here are 3 * 2^n; one block of the next power of two would waste a quarter of its work.
    """
    whole = next_power_of_2(channels)
    first = whole // 2
    if whole == 16 or first + next_power_of_2(channels - first) >= whole:
        return whole, 0
    return first, next_power_of_2(channels - first)
