// The TensorRT plugin "RestortPass": one node that is a whole forward pass at fixed shapes. Version "1" (IPluginV2DynamicExt)
// is for TensorRT 8.6, version "2" (IPluginV3) for 10 and 11; the headers decide which of them is compiled.
//
// Its field "plan" holds an AOT package (restort.backends.fused.aot_package), of one size or several, or "file:" and the
// path of one. Input and output are float32, linear, of the package's shapes. Kernels and weights are loaded once for an
// engine and shared by its execution contexts. Each context has its own clone with scratch memory, so contexts may run
// side by side. All of that is prepared in attachToContext, onShapeChange or, at the latest, the first enqueue of a size.
// Later calls only launch kernels, so they can be captured in a CUDA graph. An error is logged in a sentence, and the call
// fails.
//
// libcuda.so.1 is loaded when it is first needed, and nothing of libnvinfer is linked. TensorRT takes the creator from
// the functions exported below: by IPluginRegistry::loadLibrary, `trtexec --dynamicPlugins=FILE`, Triton and DeepStream. To
// compile it, with the headers of that TensorRT (8.6, 10 or 11) and of CUDA 12 or newer:
//
//     g++ -std=c++17 -O2 -fPIC -shared -fvisibility=hidden -ITENSORRT/include -ICUDA/include -o librestort_pass.so
//         restort_pass.cpp -ldl

#include <NvInferRuntime.h>

#if NV_TENSORRT_MAJOR >= 10
#include "pass_v3.hpp"
#else
#include "pass_v2.hpp"
#endif

#define EXPORTED extern "C" __attribute__((visibility("default")))

// Interfaces differ between major versions: a plugin runs in TensorRT of its headers' version only.
EXPORTED int32_t restortTensorrtMajor() { return NV_TENSORRT_MAJOR; }

EXPORTED void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { restort::finder() = finder; }

namespace {
restort::Creator creator;
}

#if NV_TENSORRT_MAJOR >= 10
EXPORTED nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    static nvinfer1::IPluginCreatorInterface* const all[] = {&creator};
#else
EXPORTED nvinfer1::IPluginCreator* const* getPluginCreators(int32_t& count) {
    static nvinfer1::IPluginCreator* const all[] = {&creator};
#endif
    count = 1;
    return all;
}
