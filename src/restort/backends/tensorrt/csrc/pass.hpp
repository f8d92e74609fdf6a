// What both versions of the plugin share: messages, the AOT package of a field, and its memory in engine and contexts.

#pragma once

#include <NvInferRuntime.h>

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

// The packages in the field "plan" of a node or a serialized plugin: their bytes, or "file:" and the path of their file.
inline std::shared_ptr<Packages const> packages_of(nvinfer1::PluginFieldCollection const* given) {
    for (int32_t i = 0; given && i < given->nbFields; ++i) {
        nvinfer1::PluginField const& field = given->fields[i];
        if (!field.name || std::strcmp(field.name, FIELD) || !field.data) continue;
        auto const data = static_cast<char const*>(field.data);
        size_t const count = field.length < 0 ? 0 : static_cast<size_t>(field.length);
        if (count < 5 || std::memcmp(data, "file:", 5)) return std::make_shared<Packages const>(data, count);
        std::vector<char> const all = contents(std::string(data + 5, strnlen(data + 5, count - 5)));
        return std::make_shared<Packages const>(all.data(), all.size());
    }
    throw Error(text("the node has no field \"%s\"", FIELD));
}

// The packages on the GPU. The clones of a plugin share one Loader, and so the weights while one of them is in use; with
// `hold` as long as there is a clone. Contexts may be made in several threads at once.
class Loader {
public:
    explicit Loader(std::shared_ptr<Packages const> packages)
        : packages_(std::move(packages)), loaded_(packages_->each.size()) {}

    std::vector<std::shared_ptr<LoadedPackage>> get(bool hold) {
        std::lock_guard<std::mutex> const lock(mutex_);
        std::vector<std::shared_ptr<LoadedPackage>> all;
        for (size_t i = 0; i < loaded_.size(); ++i) {
            std::shared_ptr<LoadedPackage> found = loaded_[i].lock();
            if (!found || found->weights.context != current() || (i && found->first != all[0]))
                loaded_[i] = found = std::make_shared<LoadedPackage>(packages_, i, i ? all[0] : nullptr);
            all.push_back(std::move(found));
        }
        if (hold) held_ = all;
        return all;
    }

private:
    std::shared_ptr<Packages const> packages_;
    std::mutex mutex_;
    std::vector<std::weak_ptr<LoadedPackage>> loaded_;
    std::vector<std::shared_ptr<LoadedPackage>> held_;
};

// The state of one plugin object. A copy has memory of its own for the passes, and shares the weights.
class Pass {
public:
    explicit Pass(std::shared_ptr<Packages const> packages)
        : packages_(std::move(packages)), loader_(std::make_shared<Loader>(packages_)), passes_(packages_->each.size()) {}
    Pass(Pass const& other)
        : packages_(other.packages_), loader_(other.loader_), kept_(other.kept_), passes_(packages_->each.size()) {}

    std::vector<char> const& file() const { return packages_->file; }
    void keep(bool hold = false) { kept_ = loader_->get(hold); }  // weights and machine code, until `drop`
    void drop() { release(), kept_.clear(); }
    void release() {  // the memory of the passes
        for (auto& pass : passes_) pass.reset();
    }

    // For a context: everything that is known before the shape of its input.
    void attach(bool hold = false) {
        keep(hold);
        if (passes_.size() == 1) prepare(0);
    }
    void prepare(size_t number) {
        keep();
        auto& pass = passes_[number];
        if (!pass || pass->loaded != kept_[number]) pass = std::make_unique<PreparedPass>(kept_[number]);
    }

    void run(size_t number, void const* input, void* output, CUstream stream) {
        if (!passes_[number] || passes_[number]->scratch.context != current()) {
            CUstreamCaptureStatus capturing = CU_STREAM_CAPTURE_STATUS_NONE;
            check(driver().cuStreamIsCapturing_(stream, &capturing), "querying the stream");
            if (capturing != CU_STREAM_CAPTURE_STATUS_NONE)
                throw Error("the first call of a size cannot be captured in a CUDA graph; run it once before");
            prepare(number);
        }
        passes_[number]->run(input, output, stream);
    }

    // The package for an input of that shape. Throws an Error that names the shapes there are.
    size_t number(nvinfer1::Dims const& given) const {
        size_t const found = given.nbDims == 4 ? packages_->find(given.d) : packages_->each.size();
        if (found < packages_->each.size()) return found;
        std::string sizes;
        for (Package const& p : packages_->each) {
            uint32_t const* const n = p.head.input;
            sizes += (sizes.empty() ? "" : ", ") + text("%ux%ux%ux%u", n[0], n[1], n[2], n[3]);
        }
        std::string mine;
        for (int i = 0; i < given.nbDims; ++i)
            mine += text(i ? "x%lld" : "%lld", static_cast<long long>(given.d[i]));
        throw Error("the input has the shape " + mine + ", and the AOT package " + sizes);
    }

    // Whether the input may get one of the shapes; -1 stands for any size.
    bool fits(nvinfer1::Dims const& given) const {
        if (given.nbDims == 4 && std::any_of(given.d, given.d + 4, [](auto n) { return n < 0; })) return true;
        return number(given) < packages_->each.size();
    }

    void output(nvinfer1::DimsExprs const& in, nvinfer1::DimsExprs& made, nvinfer1::IExprBuilder& make) const {
        made.nbDims = 4;
        for (int i = 0; i < 4; ++i) {
            uint32_t const times = packages_->factor(i);
            auto const constant = [&](uint32_t n) { return make.constant(static_cast<int32_t>(n)); };
            if (!times) made.d[i] = constant(packages_->each[0].head.output[i]);
            else if (times == 1) made.d[i] = in.d[i];
            else made.d[i] = make.operation(nvinfer1::DimensionOperation::kPROD, *in.d[i], *constant(times));
        }
    }

private:
    std::shared_ptr<Packages const> packages_;
    std::shared_ptr<Loader> loader_;
    std::vector<std::shared_ptr<LoadedPackage>> kept_;
    std::vector<std::unique_ptr<PreparedPass>> passes_;
};

}  // namespace restort
