"""Results that are not finite are computed again in a precision of more range."""

from __future__ import annotations

import pytest

from restort.backends.precision_fallback import PRECISION_FALLBACK, FallbackWarning, run_with_fallback
from restort.errors import OutOfMemory, RestortError


class Machine:
    """Runs in any precision: `bad` ones give a result that is not finite, `errors` are raised."""

    def __init__(self, *bad: str, **errors: Exception) -> None:
        self.bad, self.errors = bad, errors
        self.ran: list[str] = []
        self.warned: list[tuple[str, str]] = []

    def run(self, precision: str) -> tuple[str, bool]:
        self.ran.append(precision)
        if precision in self.errors:
            raise self.errors[precision]
        return precision, precision not in self.bad

    def result(self, wanted: str = "fp16", finite_input: bool = True) -> str:
        def warn(failed: str, following: str) -> None:
            self.warned.append((failed, following))

        return run_with_fallback(PRECISION_FALLBACK[wanted], self.run, lambda: finite_input, warn)


def test_the_first_finite_result_is_taken() -> None:
    for bad, expected in (((), "fp16"), (("fp16",), "bf16"), (("fp16", "bf16"), "fp32")):
        machine = Machine(*bad)
        assert machine.result() == expected
        assert machine.warned == list(zip(machine.ran, machine.ran[1:]))


def test_a_result_of_an_input_that_is_not_finite_stays() -> None:
    machine = Machine("fp16")
    assert machine.result(finite_input=False) == "fp16" and machine.ran == ["fp16"] and not machine.warned


def test_the_last_result_stays_even_if_it_is_not_finite() -> None:
    machine = Machine("tf32", "fp32")
    assert machine.result("tf32") == "fp32" and machine.ran == ["tf32", "fp32"]


def test_errors_of_later_precisions() -> None:
    missing = RestortError("no such engine")
    machine = Machine("fp16", bf16=missing)
    assert machine.result() == "fp32" and machine.ran == ["fp16", "bf16", "fp32"]
    for errors in ({"fp16": missing}, {"fp32": missing}, {"bf16": OutOfMemory("too large")}):
        with pytest.raises(type(next(iter(errors.values())))):
            Machine("fp16", "bf16", **errors).result()


def test_a_warning_is_given_once() -> None:
    lines: list[str] = []
    warn = FallbackWarning()
    for _ in range(2):
        warn(lines.append, "fp16", "bf16")
    assert len(lines) == 1 and "fp16 produced NaN/Inf" in lines[0] and "--precision bf16" in lines[0]
