"""Errors made of TensorRT's messages, and who receives a message."""

from __future__ import annotations

import enum
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from restort.backends.tensorrt.logger import CapturedMessages, Logger
from restort.errors import OutOfMemory

# As TensorRT-RTX 1.7 and TensorRT 8.6 and 10 wrote them, and what is made of them.
MESSAGES = [
    (
        "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([myelin_graph.h:1295: attachExceptionMsgToGraph] "
        "Unexpected exception std::bad_alloc In compileGraph at /_src/optimizer/myelin/codeGenerator.cpp:2012)",
        "out of memory (Myelin Unexpected exception std::bad_alloc); use smaller sizes",
    ),
    (
        "1: [defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)",
        "out of memory (Cuda Runtime (out of memory)",
    ),
    (
        "10: Could not find any implementation for node {ForeignNode[conv_1...add_2]}.",
        "no kernel for one of the layers in this precision (10: Could not find any implementation for node",
    ),
    (
        "1: Myelin (Myelin error from unknown graph)",
        "its compiler Myelin cannot compile this network (1: Myelin (Myelin error from unknown graph)); build with "
        "another --precision or --level, or run the network with --backend fused",
    ),
    (
        "1: [stdArchiveReader.cpp::StdArchiveReaderInitCommon::46] Error Code 1: Serialization (Serialization "
        "assertion stdVersionRead == serializationVersion failed.Version tag does not match. Note: Current Version: "
        "236, Serialized Engine Version: 239)",
        "built by another version or for another GPU (Serialization",
    ),
    (
        "CUDA initialization failure with error: 35",
        "the NVIDIA driver is absent or too old (CUDA initialization failure with error: 35); install a newer driver",
    ),
    (
        "CUDA initialization failure with error: 100",
        "no usable NVIDIA GPU (CUDA initialization failure",
    ),
    ("Something nobody has seen before.", "building the engine: Something nobody has seen before"),
]


@pytest.mark.parametrize(("message", "expected"), MESSAGES)
def test_messages_become_a_sentence(message: str, expected: str) -> None:
    captured = CapturedMessages("TensorRT", [("WARNING", "unrelated"), ("ERROR", message)])
    doing = "opening the engine" if "Serialization" in message else "building the engine"
    sentence = str(captured.error(doing))
    assert sentence.startswith(f"TensorRT failed while {doing}: ") and expected in sentence
    assert "/_src" not in sentence and ".cpp" not in sentence and "\n" not in sentence


def test_an_engine_with_too_little_memory_may_have_smaller_tiles() -> None:
    message = "RestortPass: allocating 593.9 MiB failed: CUDA_ERROR_OUT_OF_MEMORY (2)"
    captured = CapturedMessages("TensorRT", [("ERROR", message)])
    error = captured.error("running the engine")
    assert isinstance(error, OutOfMemory) and "593.9 MiB" in str(error) and "--tile" in str(error)
    assert not isinstance(captured.error("building the engine"), OutOfMemory)
    assert not isinstance(
        CapturedMessages("TensorRT", [("ERROR", "a fault")]).error("running the engine"), OutOfMemory
    )


def test_a_timing_cache_of_another_version_is_not_why_a_build_fails() -> None:
    stale = (
        "Serialization assertion stdVersionRead == serializationVersion failed.Version tag does not match."
    )
    myelin = "1: Myelin (Myelin error from unknown graph)"
    captured = CapturedMessages("TensorRT", [("ERROR", stale), ("ERROR", myelin)])
    assert "Myelin cannot compile this network" in str(captured.error("building the engine"))
    alone = str(CapturedMessages("TensorRT", [("ERROR", stale)]).error("building the engine"))
    assert "another version" not in alone and "does not match" in alone


class Severity(enum.IntEnum):
    """TensorRT's: the smaller the worse."""

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    """The base class that TensorRT's bindings have."""

    Severity = Severity


def test_captures_receive_their_own_thread_and_the_librarys() -> None:
    module: Any = SimpleNamespace(ILogger=ILogger)
    logger = Logger(module, "TensorRT")
    with logger.capture() as outer:
        with logger.capture() as inner:
            logger.ilogger.log(Severity.ERROR, "first")
            logger.ilogger.log(Severity.INFO, "noise")
        thread = threading.Thread(target=lambda: logger.ilogger.log(Severity.WARNING, "second"))
        thread.start()
        thread.join()
    logger.ilogger.log(Severity.ERROR, "after")
    assert (inner.errors(), outer.errors(), outer.warnings()) == (["first"], ["first"], ["second"])
    assert "without a message" in str(CapturedMessages("TensorRT").error("waking up"))
