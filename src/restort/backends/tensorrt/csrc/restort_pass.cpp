// The TensorRT 8.6 plugin "RestortPass", version "1": one node that is a whole forward pass at one shape.
//
// Its field "plan" holds an AOT package (restort.backends.fused.aot_package), or "file:" and the path of one. Input and
// output are float32, linear, of the package's shapes. Kernels and weights are loaded once for an engine and shared by
// its execution contexts. Each context has its own clone with scratch memory, so contexts may run side by side. All of
// that is prepared in initialize, attachToContext or, at the latest, the first enqueue. Later calls only launch kernels,
// so they can be captured in a CUDA graph. An error is logged in a sentence, and the call fails.
//
// libcuda.so.1 is loaded when it is first needed. Of libnvinfer.so.8 only getPluginRegistry and getLogger are used. To
// compile it, with the headers of TensorRT 8.6 and CUDA 12 or newer:
//
//     g++ -std=c++17 -O2 -fPIC -shared -fvisibility=hidden -ITENSORRT/include -ICUDA/include -o librestort_pass.so
//         restort_pass.cpp -Wl,--no-as-needed -LTENSORRT/lib -l:libnvinfer.so.8 -Wl,--as-needed -ldl
//
// The library must list libnvinfer.so.8 as needed, because TensorRT's Python package does not load it globally.

#include <NvInferRuntime.h>

#include "aot_gpu.hpp"

namespace {

using namespace nvinfer1;
using restort::LoadedPackage;
using restort::Package;
using restort::PreparedPass;
using restort::Error;
using restort::check;
using restort::current;
using restort::driver;

void say(std::string const& what) noexcept {
    try {
        std::string const line = "RestortPass: " + what;
        if (ILogger* const logger = getLogger()) logger->log(ILogger::Severity::kERROR, line.c_str());
        else std::fprintf(stderr, "%s\n", line.c_str());
    } catch (...) {
    }
}

class RestortPass final : public IPluginV2DynamicExt {
public:
    explicit RestortPass(std::shared_ptr<Package const> package) : package_(std::move(package)) {}

    char const* getPluginType() const noexcept override { return "RestortPass"; }
    char const* getPluginVersion() const noexcept override { return "1"; }
    int32_t getNbOutputs() const noexcept override { return 1; }
    void setPluginNamespace(char const* name) noexcept override { namespace_ = name ? name : ""; }
    char const* getPluginNamespace() const noexcept override { return namespace_.c_str(); }
    size_t getSerializationSize() const noexcept override { return package_->file.size(); }
    void serialize(void* to) const noexcept override { std::memcpy(to, package_->file.data(), package_->file.size()); }
    void destroy() noexcept override { delete this; }
    DataType getOutputDataType(int32_t, DataType const*, int32_t) const noexcept override { return DataType::kFLOAT; }
    size_t getWorkspaceSize(PluginTensorDesc const*, int32_t, PluginTensorDesc const*, int32_t) const noexcept override {
        return 0;
    }

    IPluginV2DynamicExt* clone() const noexcept override {
        return guarded<IPluginV2DynamicExt*>(nullptr, [&] {
            auto made = std::make_unique<RestortPass>(package_);
            made->loaded_ = loaded_;
            made->namespace_ = namespace_;
            return made.release();
        });
    }

    DimsExprs getOutputDimensions(int32_t, DimsExprs const*, int32_t, IExprBuilder& make) noexcept override {
        DimsExprs made{};
        made.nbDims = 4;
        for (int i = 0; i < 4; ++i) made.d[i] = make.constant(static_cast<int32_t>(package_->head.output[i]));
        return made;
    }

    bool supportsFormatCombination(int32_t at, PluginTensorDesc const* all, int32_t in, int32_t out) noexcept override {
        return in == 1 && out == 1 && all[at].type == DataType::kFLOAT && all[at].format == TensorFormat::kLINEAR;
    }

    void configurePlugin(DynamicPluginTensorDesc const* in, int32_t, DynamicPluginTensorDesc const*,
                         int32_t) noexcept override {
        agrees(in[0].desc.dims, true);
    }

    int32_t initialize() noexcept override {
        return guarded<int32_t>(1, [&] { return load(), 0; });
    }
    void terminate() noexcept override { pass_.reset(), loaded_.reset(); }
    void attachToContext(cudnnContext*, cublasContext*, IGpuAllocator*) noexcept override {
        guarded<int32_t>(1, [&] { return prepare(), 0; });  // if this fails, enqueue tries again and reports the error
    }
    void detachFromContext() noexcept override { pass_.reset(); }

    int32_t enqueue(PluginTensorDesc const* in, PluginTensorDesc const*, void const* const* inputs,
                    void* const* outputs, void*, cudaStream_t stream) noexcept override {
        if (!agrees(in[0].dims, false)) return 1;
        return guarded<int32_t>(1, [&] {
            if (!pass_ || pass_->scratch.context != current()) {
                CUstreamCaptureStatus capturing = CU_STREAM_CAPTURE_STATUS_NONE;
                check(driver().cuStreamIsCapturing_(stream, &capturing), "querying the stream");
                if (capturing != CU_STREAM_CAPTURE_STATUS_NONE)
                    throw Error("the first call cannot be captured in a CUDA graph; run it once before");
                prepare();
            }
            pass_->run(inputs[0], outputs[0], stream);
            return 0;
        });
    }

private:
    std::shared_ptr<Package const> package_;
    std::shared_ptr<LoadedPackage> loaded_;
    std::unique_ptr<PreparedPass> pass_;
    std::string namespace_;

    template <typename T, typename F> static T guarded(T failed, F work) noexcept {
        try {
            return work();
        } catch (std::exception const& error) {
            say(error.what());
        }
        return failed;
    }

    void load() {
        if (!loaded_ || loaded_->weights.context != current()) loaded_ = std::make_shared<LoadedPackage>(package_);
    }

    void prepare() {
        load();
        if (!pass_ || pass_->loaded != loaded_) pass_ = std::make_unique<PreparedPass>(loaded_);
    }

    bool agrees(Dims const& given, bool open) const noexcept {  // -1 is unknown yet
        bool same = given.nbDims == 4;
        for (int i = 0; same && i < 4; ++i)
            same = given.d[i] == static_cast<int32_t>(package_->head.input[i]) || (open && given.d[i] < 0);
        if (!same) say("the input does not have the shape of the AOT package");
        return same;
    }
};

class RestortPassCreator final : public IPluginCreator {
public:
    RestortPassCreator() : field_("plan", nullptr, PluginFieldType::kCHAR, 0), fields_{1, &field_} {}

    char const* getPluginName() const noexcept override { return "RestortPass"; }
    char const* getPluginVersion() const noexcept override { return "1"; }
    PluginFieldCollection const* getFieldNames() noexcept override { return &fields_; }
    void setPluginNamespace(char const* name) noexcept override { namespace_ = name ? name : ""; }
    char const* getPluginNamespace() const noexcept override { return namespace_.c_str(); }

    IPluginV2* createPlugin(char const*, PluginFieldCollection const* given) noexcept override {
        try {
            for (int32_t i = 0; given && i < given->nbFields; ++i) {
                PluginField const& field = given->fields[i];
                if (std::strcmp(field.name, "plan") || !field.data) continue;
                auto const data = static_cast<char const*>(field.data);
                size_t const count = field.length < 0 ? 0 : static_cast<size_t>(field.length);
                if (count < 5 || std::memcmp(data, "file:", 5)) return make(data, count);
                std::string const path(data + 5, strnlen(data + 5, count - 5));
                std::vector<char> const all = contents(path);
                return make(all.data(), all.size());
            }
            throw Error("the node has no field \"plan\"");
        } catch (std::exception const& error) {
            say(error.what());
        }
        return nullptr;
    }

    IPluginV2* deserializePlugin(char const*, void const* data, size_t count) noexcept override {
        try {
            return make(static_cast<char const*>(data), count);
        } catch (std::exception const& error) {
            say(error.what());
        }
        return nullptr;
    }

private:
    PluginField field_;
    PluginFieldCollection fields_;
    std::string namespace_;

    static std::vector<char> contents(std::string const& path) {
        std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
        if (!file) throw Error("cannot open the AOT package " + path);
        std::vector<char> all, piece(1 << 20);
        while (size_t const count = std::fread(piece.data(), 1, piece.size(), file.get()))
            all.insert(all.end(), piece.begin(), piece.begin() + static_cast<std::ptrdiff_t>(count));
        return all;
    }

    IPluginV2* make(char const* data, size_t count) const {
        auto made = std::make_unique<RestortPass>(std::make_shared<Package const>(data, count));
        made->setPluginNamespace(namespace_.c_str());
        return made.release();
    }
};

REGISTER_TENSORRT_PLUGIN(RestortPassCreator);

}  // namespace
