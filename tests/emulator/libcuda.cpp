// A stand-in for libcuda.so.1: memory is the process's own, kernels do not run; what is called is written to the file
// that FAKE_CUDA_LOG names. Of a launch: the values of as many parameters as the machine code says that there are.

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include <cuda.h>
#undef cuGetProcAddress
#undef cuEventElapsedTime
#undef cuStreamBeginCapture

namespace {

struct Function {
    std::string name;
    std::vector<int> sizes;  // of the parameters
    int shared = 48 << 10;
};

std::vector<Function*> functions;
bool capturing = false;
size_t captured = 0;

std::FILE* log() {
    static std::FILE* const file = std::fopen(std::getenv("FAKE_CUDA_LOG") ? std::getenv("FAKE_CUDA_LOG") : "/dev/null", "a");
    return file;
}

template <typename T> T at(char const* image, size_t place) {
    T value;
    std::memcpy(&value, image + place, sizeof value);
    return value;
}

// Attribute 0x17 of the section .nv.info.NAME of a cubin.
std::vector<int> parameters(char const* image, std::string const& name) {
    std::map<int, int> found;
    auto const table = at<uint64_t>(image, 0x28);
    int const size = at<uint16_t>(image, 0x3A), count = at<uint16_t>(image, 0x3C), names = at<uint16_t>(image, 0x3E);
    auto const titles = at<uint64_t>(image, table + names * size + 24);
    for (int i = 0; i < count; ++i) {
        size_t const entry = table + i * size;
        if (image + titles + at<uint32_t>(image, entry) != ".nv.info." + name) continue;
        size_t place = at<uint64_t>(image, entry + 24);
        size_t const end = place + at<uint64_t>(image, entry + 32);
        while (place + 4 <= end) {
            int const form = image[place], kind = image[place + 1], length = at<uint16_t>(image, place + 2);
            if (form == 4 && kind == 0x17) found[at<uint16_t>(image, place + 8)] = at<uint32_t>(image, place + 12) >> 18;
            place += 4 + (form == 4 ? length : 0);
        }
    }
    std::vector<int> sizes;
    for (auto const& [number, bytes] : found) sizes.push_back(bytes);
    return sizes;
}

CUresult launch(Function* f, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned shared, int overlap, void** given) {
    if (static_cast<int>(shared) > f->shared) return CUDA_ERROR_INVALID_VALUE;
    captured += capturing;
    std::fprintf(log(), "launch %s %u %u %u %u %u %d", f->name.c_str(), x, y, z, threads, shared, overlap);
    for (size_t i = 0; i < f->sizes.size(); ++i) {
        uint64_t value = 0;
        std::memcpy(&value, given[i], f->sizes[i]);
        std::fprintf(log(), " %d:%llu", f->sizes[i], static_cast<unsigned long long>(value));
    }
    std::fprintf(log(), "\n");
    std::fflush(log());
    return CUDA_SUCCESS;
}

int handle;  // what is not looked into: contexts, streams, events

}  // namespace

extern "C" {
CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int* version) { return *version = 13000, CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext* c) { return *c = reinterpret_cast<CUcontext>(&handle), CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext* c, CUdevice) { return cuCtxGetCurrent(c); }
CUresult cuCtxPushCurrent_v2(CUcontext) { return CUDA_SUCCESS; }
CUresult cuCtxPopCurrent_v2(CUcontext*) { return CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice* d) { return *d = 0, CUDA_SUCCESS; }
CUresult cuCtxSynchronize() { return capturing ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice) {
    char const* given = std::getenv("FAKE_CUDA_MAJOR");
    int const major = given ? std::atoi(given) : 9;
    *value = which == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? major : 0;
    return CUDA_SUCCESS;
}
CUresult cuMemAlloc_v2(CUdeviceptr* p, size_t count) {
    if (capturing) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    *p = reinterpret_cast<CUdeviceptr>(std::aligned_alloc(512, (count + 511) / 512 * 512));
    std::memset(reinterpret_cast<void*>(*p), 0xCD, count);
    std::fprintf(log(), "alloc %llu %zu\n", *p, count);
    return CUDA_SUCCESS;
}
CUresult cuMemFree_v2(CUdeviceptr p) {
    std::fprintf(log(), "free %llu\n", p);
    std::free(reinterpret_cast<void*>(p));
    return CUDA_SUCCESS;
}
CUresult cuMemsetD8_v2(CUdeviceptr p, unsigned char v, size_t n) { return std::memset(reinterpret_cast<void*>(p), v, n), CUDA_SUCCESS; }
CUresult cuMemcpyHtoD_v2(CUdeviceptr p, void const* from, size_t n) { return std::memcpy(reinterpret_cast<void*>(p), from, n), CUDA_SUCCESS; }
CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr p, size_t n) { return std::memcpy(to, reinterpret_cast<void*>(p), n), CUDA_SUCCESS; }
CUresult cuModuleLoadData(CUmodule* m, void const* image) {
    *m = reinterpret_cast<CUmodule>(const_cast<void*>(image));  // must stay: cubins of tests do
    return std::memcmp(image, "\x7f" "ELF", 4) ? CUDA_ERROR_INVALID_IMAGE : CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction* f, CUmodule m, char const* name) {
    auto const made = new Function{name, parameters(reinterpret_cast<char const*>(m), name)};
    if (made->sizes.empty()) return CUDA_ERROR_NOT_FOUND;
    functions.push_back(made);
    return *f = reinterpret_cast<CUfunction>(made), CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int* value, CUfunction_attribute, CUfunction) { return *value = 1024, CUDA_SUCCESS; }
CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute which, int value) {
    if (which == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) reinterpret_cast<Function*>(f)->shared = value;
    return CUDA_SUCCESS;
}
CUresult cuLaunchKernel(CUfunction f, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned, unsigned,
                        unsigned shared, CUstream, void** given, void**) {
    return launch(reinterpret_cast<Function*>(f), x, y, z, threads, shared, 0, given);
}
CUresult cuLaunchKernelEx(CUlaunchConfig const* c, CUfunction f, void** given, void**) {
    int const overlap = c->numAttrs == 1 && c->attrs->id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION &&
                        c->attrs->value.programmaticStreamSerializationAllowed;
    return launch(reinterpret_cast<Function*>(f), c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX, c->sharedMemBytes,
                  overlap, given);
}
CUresult cuGetErrorName(CUresult, char const** name) { return *name = "CUDA_ERROR_OF_THE_STAND_IN", CUDA_SUCCESS; }
CUresult cuStreamIsCapturing(CUstream, CUstreamCaptureStatus* s) {
    return *s = capturing ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE, CUDA_SUCCESS;
}
CUresult cuStreamCreate(CUstream* s, unsigned) { return *s = reinterpret_cast<CUstream>(&handle), CUDA_SUCCESS; }
CUresult cuStreamSynchronize(CUstream) { return CUDA_SUCCESS; }
CUresult cuStreamBeginCapture_v2(CUstream, CUstreamCaptureMode) { return capturing = true, captured = 0, CUDA_SUCCESS; }
CUresult cuStreamEndCapture(CUstream, CUgraph* g) { return capturing = false, *g = reinterpret_cast<CUgraph>(captured), CUDA_SUCCESS; }
CUresult cuGraphInstantiateWithFlags(CUgraphExec* e, CUgraph g, unsigned long long) {
    return *e = reinterpret_cast<CUgraphExec>(g), CUDA_SUCCESS;
}
CUresult cuGraphLaunch(CUgraphExec, CUstream) { return CUDA_SUCCESS; }
CUresult cuEventCreate(CUevent* e, unsigned) { return *e = reinterpret_cast<CUevent>(&handle), CUDA_SUCCESS; }
CUresult cuEventRecord(CUevent, CUstream) { return CUDA_SUCCESS; }
CUresult cuEventSynchronize(CUevent) { return CUDA_SUCCESS; }
CUresult cuEventElapsedTime_v2(float* ms, CUevent, CUevent) { return *ms = 1.0f, CUDA_SUCCESS; }
CUresult cuEventElapsedTime(float* ms, CUevent, CUevent) { return *ms = 1.0f, CUDA_SUCCESS; }

// For cuda-bindings, which asks for every function in this way.
CUresult cuGetProcAddress_v2(char const* name, void** into, int, cuuint64_t, CUdriverProcAddressQueryResult* status) {
    static void* const self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    std::string const plain = name;
    *into = nullptr;
    for (auto const& wanted : {plain + "_v2", plain, plain + "WithFlags"})
        if (!*into) *into = dlsym(self, wanted.c_str());
    if (status) *status = *into ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return *into ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
CUresult cuGetProcAddress(char const* name, void** into, int version, cuuint64_t flags) {
    return cuGetProcAddress_v2(name, into, version, flags, nullptr);
}
}
