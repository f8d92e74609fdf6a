"""TensorRT and TensorRT-RTX: engines built from weights, kept on disk, and run without PyTorch.

From the bottom up; a module imports only those above it in this list:

options         Profile, BuildOptions, Built: types only
cuda, logger    calls of the CUDA runtime; the library's messages
library         which TensorRT is installed, and what it can do: `find('auto') -> Flavour`
engine_key      the identity of an engine, and its name in the cache
sidecar         ENGINE.json beside ENGINE
cache           engines and timing caches on disk
mixed_precision which sections of a network stay in float32, as measured
plugin          the plugin RestortPass (csrc/), compiled and loaded
network         parsing, optimization profile, precisions of layers
inspector       what an engine is and computes in
builder         `build(flavour, graph, options) -> Built`
aot_builder     `build_aot_engine(flavour, weights, packages, options) -> Built`, with RestoRT's own kernels
context, engine an execution context for one shape; arrays in, arrays out
provider        EngineProvider: the engine for a size, found in the cache or built
availability    whether engines can run here, without importing TensorRT
runner          TensorrtRunner, the backend
"""
