// What both versions of the plugin share: messages, the AOT package of a field, and its memory in engine and contexts.

#pragma once

#include <NvInferRuntime.h>

#include <algorithm>
#include <mutex>

#include "aot_gpu.hpp"

namespace restort {

// The logger of the library that loaded this one (setLoggerFinder); without one, stderr.
inline nvinfer1::ILoggerFinder*& finder() {
    static nvinfer1::ILoggerFinder* found = nullptr;
    return found;
}

inline void say(std::string const& what) noexcept {
    try {
        std::string const line = "RestortPass: " + what;
        nvinfer1::ILogger* const logger = finder() ? finder()->findLogger() : nullptr;
        if (logger) logger->log(nvinfer1::ILogger::Severity::kERROR, line.c_str());
        else std::fprintf(stderr, "%s\n", line.c_str());
    } catch (...) {
    }
}

// The result of `work`; an error is logged, and the result is `failed`.
template <typename T, typename F> T guarded(T failed, F work) noexcept {
    try {
        return work();
    } catch (std::exception const& error) {
        say(error.what());
    }
    return failed;
}

inline std::vector<char> contents(std::string const& path) {
    std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
    if (!file) throw Error("cannot open the AOT package " + path);
    std::vector<char> all, piece(1 << 20);
    while (size_t const count = std::fread(piece.data(), 1, piece.size(), file.get()))
        all.insert(all.end(), piece.begin(), piece.begin() + static_cast<std::ptrdiff_t>(count));
    return all;
}

constexpr char const* FIELD = "plan";

// The package in the field "plan" of a node or a serialized plugin: its bytes, or "file:" and the path of its file.
inline std::shared_ptr<Package const> package_of(nvinfer1::PluginFieldCollection const* given) {
    for (int32_t i = 0; given && i < given->nbFields; ++i) {
        nvinfer1::PluginField const& field = given->fields[i];
        if (!field.name || std::strcmp(field.name, FIELD) || !field.data) continue;
        auto const data = static_cast<char const*>(field.data);
        size_t const count = field.length < 0 ? 0 : static_cast<size_t>(field.length);
        if (count < 5 || std::memcmp(data, "file:", 5)) return std::make_shared<Package const>(data, count);
        std::vector<char> const all = contents(std::string(data + 5, strnlen(data + 5, count - 5)));
        return std::make_shared<Package const>(all.data(), all.size());
    }
    throw Error(text("the node has no field \"%s\"", FIELD));
}

// The package on the GPU. The clones of a plugin share one Loader, and so the weights while one of them is in use.
class Loader {
public:
    explicit Loader(std::shared_ptr<Package const> package) : package_(std::move(package)) {}

    std::shared_ptr<LoadedPackage> get() {
        std::lock_guard<std::mutex> const lock(mutex_);
        std::shared_ptr<LoadedPackage> found = loaded_.lock();
        if (!found || found->weights.context != current())
            loaded_ = found = std::make_shared<LoadedPackage>(package_);
        return found;
    }

private:
    std::shared_ptr<Package const> package_;
    std::mutex mutex_;
    std::weak_ptr<LoadedPackage> loaded_;
};

// The state of one plugin object. A copy has memory of its own for the pass, and shares the weights.
class Pass {
public:
    explicit Pass(std::shared_ptr<Package const> package)
        : package_(std::move(package)), loader_(std::make_shared<Loader>(package_)) {}
    Pass(Pass const& other) : package_(other.package_), loader_(other.loader_), kept_(other.kept_) {}

    Package const& package() const { return *package_; }
    void keep() { kept_ = loader_->get(); }  // the weights, until `drop`
    void drop() { pass_.reset(), kept_.reset(); }

    void prepare() {
        keep();
        if (!pass_ || pass_->loaded != kept_) pass_ = std::make_unique<PreparedPass>(kept_);
    }
    void release() { pass_.reset(); }  // the memory of the pass

    void run(void const* input, void* output, CUstream stream) {
        if (!pass_ || pass_->scratch.context != current()) {
            CUstreamCaptureStatus capturing = CU_STREAM_CAPTURE_STATUS_NONE;
            check(driver().cuStreamIsCapturing_(stream, &capturing), "querying the stream");
            if (capturing != CU_STREAM_CAPTURE_STATUS_NONE)
                throw Error("the first call cannot be captured in a CUDA graph; run it once before");
            prepare();
        }
        pass_->run(input, output, stream);
    }

    // Whether the input has the package's shape; where `open`, -1 stands for any size.
    bool agrees(nvinfer1::Dims const& given, bool open) const noexcept {
        bool same = given.nbDims == 4;
        for (int i = 0; same && i < 4; ++i)
            same = given.d[i] == static_cast<int64_t>(package_->head.input[i]) || (open && given.d[i] < 0);
        if (!same) guarded(0, [&] { return say("the input has the shape " + shape(given) + ", and the AOT package " +
                                               shape(package_->head.input)), 0; });
        return same;
    }

    void output(nvinfer1::DimsExprs& made, nvinfer1::IExprBuilder& make) const noexcept {
        made.nbDims = 4;
        for (int i = 0; i < 4; ++i) made.d[i] = make.constant(static_cast<int32_t>(package_->head.output[i]));
    }

private:
    std::shared_ptr<Package const> package_;
    std::shared_ptr<Loader> loader_;
    std::shared_ptr<LoadedPackage> kept_;
    std::unique_ptr<PreparedPass> pass_;

    static std::string shape(uint32_t const (&sizes)[4]) {
        return text("%ux%ux%ux%u", sizes[0], sizes[1], sizes[2], sizes[3]);
    }
    static std::string shape(nvinfer1::Dims const& given) {
        std::string made;
        for (int i = 0; i < given.nbDims; ++i)
            made += text(i ? "x%lld" : "%lld", static_cast<long long>(given.d[i]));
        return made;
    }
};

}  // namespace restort
