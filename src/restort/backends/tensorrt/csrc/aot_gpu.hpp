// An AOT package on the GPU: machine code, weights, scratch memory, and launches on a stream. TensorRT is not needed.

#pragma once

#include <cuda.h>
#include <dlfcn.h>

#include <memory>
#include <utility>

#include "aot_package.hpp"

namespace restort {

// The driver, loaded when it is first needed, by the names that cuda.h gives its functions ("cuMemAlloc_v2").

#define NAME_OF(function) #function
#define EACH(DO)                                                                                                    \
    DO(cuCtxGetCurrent) DO(cuCtxGetDevice) DO(cuCtxPushCurrent) DO(cuCtxPopCurrent) DO(cuCtxSynchronize)             \
    DO(cuDeviceGetAttribute) DO(cuModuleLoadData) DO(cuModuleUnload) DO(cuModuleGetFunction) DO(cuFuncGetAttribute)  \
    DO(cuFuncSetAttribute) DO(cuMemAlloc) DO(cuMemFree) DO(cuMemcpyHtoD) DO(cuMemsetD8) DO(cuStreamIsCapturing)      \
    DO(cuLaunchKernel) DO(cuLaunchKernelEx) DO(cuGetErrorName)

struct Driver {
#define MEMBER(function) decltype(&::function) function##_;
    EACH(MEMBER)
#undef MEMBER
    Driver() {
        void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
        if (!library) throw Error(text("cannot load the NVIDIA driver: %s", dlerror()));
#define LOAD(function)                                                                                              \
    function##_ = reinterpret_cast<decltype(&::function)>(dlsym(library, NAME_OF(function)));                        \
    if (!function##_) throw Error(text("the NVIDIA driver is too old: it has no %s", NAME_OF(function)));
        EACH(LOAD)
#undef LOAD
    }
};

inline Driver const& driver() {
    static Driver const loaded;
    return loaded;
}

inline void check(CUresult code, std::string const& doing) {
    if (code == CUDA_SUCCESS) return;
    char const* name = nullptr;
    driver().cuGetErrorName_(code, &name);
    throw Error(text("%s failed: %s (%d)", doing.c_str(), name ? name : "?", static_cast<int>(code)));
}

inline CUcontext current() {
    CUcontext found = nullptr;
    check(driver().cuCtxGetCurrent_(&found), "querying the CUDA context");
    if (!found) throw Error("no CUDA context is current in this thread");
    return found;
}

struct Memory {  // one allocation for some regions of a package
    CUcontext context;
    CUdeviceptr start = 0;

    // Sets the `places` of the regions in it; those shared with another package have their place already.
    Memory(Package const& package, bool weights, std::vector<CUdeviceptr>& places) : context(current()) {
        uint64_t total = 0;
        std::vector<std::pair<size_t, uint64_t>> mine;
        for (size_t i = 0; i < package.regions.size(); ++i) {
            Region const& r = package.regions[i];
            if (r.kind == INPUT || r.kind == OUTPUT || (r.kind == WEIGHTS) != weights || r.shared) continue;
            mine.emplace_back(i, total);
            total += r.bytes;
        }
        if (!total) return;
        check(driver().cuMemAlloc_(&start, total), text("allocating %.1f MiB", total / 1048576.0));
        try {
            check(driver().cuMemsetD8_(start, 0, total), "clearing memory");
            for (auto const& [i, offset] : mine) {
                Region const& r = package.regions[i];
                places[i] = start + offset;
                if (r.content)
                    check(driver().cuMemcpyHtoD_(places[i], package.file + r.at, r.content), "copying weights");
            }
            check(driver().cuCtxSynchronize_(), "waiting for the weights");  // launches are on other streams
        } catch (...) {
            driver().cuMemFree_(start);
            throw;
        }
    }
    ~Memory() {
        if (!start || driver().cuCtxPushCurrent_(context) != CUDA_SUCCESS) return;  // the process is ending
        driver().cuMemFree_(start);
        driver().cuCtxPopCurrent_(nullptr);
    }
    Memory(Memory const&) = delete;
};

struct LoadedPackage {  // machine code and weights: once for an engine
    std::shared_ptr<Packages const> all;
    std::shared_ptr<LoadedPackage const> first;  // whose weights it may share; null for the first
    Package const* package;
    std::vector<CUdeviceptr> places;
    std::vector<CUmodule> modules;
    std::vector<CUfunction> functions;
    Memory weights;

    LoadedPackage(std::shared_ptr<Packages const> from, size_t number, std::shared_ptr<LoadedPackage const> before)
        : all(std::move(from)), first(std::move(before)), package(&all->each[number]), places(shared()),
          weights(*package, true, places) {
        CUdevice device;
        int major = 0, minor = 0;
        check(driver().cuCtxGetDevice_(&device), "querying the device");
        auto const query = [&](int& value, CUdevice_attribute attribute) {
            check(driver().cuDeviceGetAttribute_(&value, attribute, device), "querying the device");
        };
        query(major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
        query(minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
        if (major * 10 + minor != static_cast<int>(package->head.capability))
            throw Error(text("the AOT package is for compute capability %u, and the GPU has %d",
                             package->head.capability, major * 10 + minor));
        try {
            for (size_t i = 0; i < package->kernels.size(); ++i) load(package->kernels[i], i);
        } catch (...) {
            unload();
            throw;
        }
    }
    ~LoadedPackage() {
        if (driver().cuCtxPushCurrent_(weights.context) != CUDA_SUCCESS) return;
        unload();
        driver().cuCtxPopCurrent_(nullptr);
    }
    LoadedPackage(LoadedPackage const&) = delete;

    std::vector<CUdeviceptr> shared() const {
        std::vector<CUdeviceptr> found;
        for (Region const& r : package->regions) found.push_back(r.shared ? first->places[r.shared - 1] : 0);
        return found;
    }

    void unload() noexcept {
        for (CUmodule module : modules) driver().cuModuleUnload_(module);
        modules.clear();
    }

    void load(Kernel const& k, size_t number) {
        std::string const who = text("loading kernel %zu (%s)", number, k.name);
        CUmodule module;
        CUfunction function;
        check(driver().cuModuleLoadData_(&module, package->file + k.at), who);
        modules.push_back(module);
        check(driver().cuModuleGetFunction_(&function, module, k.name), who);
        int threads = 0;  // also loads a lazily loaded kernel, which a capture cannot
        check(driver().cuFuncGetAttribute_(&threads, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, function), who);
        if (threads < static_cast<int>(k.threads))
            throw Error(text("%s: a block has %u threads, and the GPU takes at most %d", who.c_str(), k.threads,
                             threads));
        if (k.carveout >= 0 || k.shared > 48 << 10)
            check(driver().cuFuncSetAttribute_(function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                               static_cast<int>(k.shared)), who);
        if (k.carveout >= 0)
            check(driver().cuFuncSetAttribute_(function, CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT,
                                               k.carveout), who);
        functions.push_back(function);
    }
};

struct PreparedPass {  // of one execution context: scratch memory, and the arguments of every launch
    std::shared_ptr<LoadedPackage> loaded;
    std::vector<CUdeviceptr> places;
    Memory scratch;
    std::vector<uint64_t> values;
    std::vector<void*> pointers;
    std::vector<std::pair<size_t, uint64_t>> inputs, outputs;  // (argument, offset)

    explicit PreparedPass(std::shared_ptr<LoadedPackage> from)
        : loaded(std::move(from)), places(loaded->places), scratch(*loaded->package, false, places) {
        Package const& package = *loaded->package;
        values.resize(package.arguments.size());
        for (size_t i = 0; i < values.size(); ++i) {
            Argument const& a = package.arguments[i];
            if (a.kind == NUMBER) values[i] = static_cast<uint32_t>(a.value);  // the kernel reads its low half
            if (a.kind != ADDRESS) continue;
            uint32_t const kind = package.regions[a.region].kind;
            if (kind == INPUT) inputs.emplace_back(i, a.value);
            else if (kind == OUTPUT) outputs.emplace_back(i, a.value);
            else values[i] = places[a.region] + static_cast<uint64_t>(a.value);
        }
        for (uint64_t& value : values) pointers.push_back(&value);
    }

    void run(void const* input, void* output, CUstream stream) {
        auto const from = reinterpret_cast<uint64_t>(input), to = reinterpret_cast<uint64_t>(output);
        if (!from || !to || (from | to) % 16) throw Error("input and output must be aligned to 16 bytes");
        for (auto const& [i, offset] : inputs) values[i] = from + offset;
        for (auto const& [i, offset] : outputs) values[i] = to + offset;
        Package const& package = *loaded->package;
        for (size_t i = 0; i < package.launches.size(); ++i) {
            Launch const& l = package.launches[i];
            Kernel const& k = package.kernels[l.kernel];
            CUresult const code = launch(l, k, loaded->functions[l.kernel], pointers.data() + l.first, stream);
            if (code != CUDA_SUCCESS)
                check(code, text("launch %zu (%s) of kernel %u (%s)", i, l.label, l.kernel, k.name));
        }
    }

    static CUresult launch(Launch const& l, Kernel const& k, CUfunction function, void** arguments, CUstream stream) {
        if (!k.overlap)
            return driver().cuLaunchKernel_(function, l.grid[0], l.grid[1], l.grid[2], k.threads, 1, 1, k.shared,
                                            stream, arguments, nullptr);
        CUlaunchAttribute attribute{};
        attribute.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        attribute.value.programmaticStreamSerializationAllowed = 1;
        CUlaunchConfig config{};
        config.gridDimX = l.grid[0], config.gridDimY = l.grid[1], config.gridDimZ = l.grid[2];
        config.blockDimX = k.threads, config.blockDimY = config.blockDimZ = 1;
        config.sharedMemBytes = k.shared;
        config.hStream = stream;
        config.attrs = &attribute, config.numAttrs = 1;
        return driver().cuLaunchKernelEx_(&config, function, arguments, nullptr);
    }
};

}  // namespace restort
