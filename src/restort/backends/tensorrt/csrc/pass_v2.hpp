// RestortPass, version "1", for TensorRT 8.6.

#pragma once

#include "pass.hpp"

namespace restort {

using namespace nvinfer1;

class RestortPass final : public IPluginV2DynamicExt {
public:
    explicit RestortPass(std::shared_ptr<Packages const> packages) : pass_(std::move(packages)) {}
    RestortPass(RestortPass const&) = default;

    char const* getPluginType() const noexcept override { return "RestortPass"; }
    char const* getPluginVersion() const noexcept override { return "1"; }
    int32_t getNbOutputs() const noexcept override { return 1; }
    void setPluginNamespace(char const* name) noexcept override { namespace_ = name ? name : ""; }
    char const* getPluginNamespace() const noexcept override { return namespace_.c_str(); }
    size_t getSerializationSize() const noexcept override { return pass_.file().size(); }
    void serialize(void* to) const noexcept override {
        std::memcpy(to, pass_.file().data(), pass_.file().size());
    }
    void destroy() noexcept override { delete this; }
    DataType getOutputDataType(int32_t, DataType const*, int32_t) const noexcept override { return DataType::kFLOAT; }
    size_t getWorkspaceSize(PluginTensorDesc const*, int32_t, PluginTensorDesc const*, int32_t) const noexcept override {
        return 0;
    }

    IPluginV2DynamicExt* clone() const noexcept override {
        return guarded<IPluginV2DynamicExt*>(nullptr, [&] { return new RestortPass(*this); });
    }

    DimsExprs getOutputDimensions(int32_t, DimsExprs const* in, int32_t, IExprBuilder& make) noexcept override {
        DimsExprs made{};
        pass_.output(in[0], made, make);
        return made;
    }

    bool supportsFormatCombination(int32_t at, PluginTensorDesc const* all, int32_t in, int32_t out) noexcept override {
        return in == 1 && out == 1 && all[at].type == DataType::kFLOAT && all[at].format == TensorFormat::kLINEAR;
    }

    void configurePlugin(DynamicPluginTensorDesc const* in, int32_t, DynamicPluginTensorDesc const*,
                         int32_t) noexcept override {
        guarded(false, [&] { return pass_.fits(in[0].desc.dims); });
    }

    int32_t initialize() noexcept override {
        return guarded<int32_t>(1, [&] { return pass_.keep(), 0; });
    }
    void terminate() noexcept override { pass_.drop(); }
    void attachToContext(cudnnContext*, cublasContext*, IGpuAllocator*) noexcept override {
        guarded(1, [&] { return pass_.attach(), 0; });  // if this fails, enqueue tries again and reports the error
    }
    void detachFromContext() noexcept override { pass_.release(); }

    int32_t enqueue(PluginTensorDesc const* in, PluginTensorDesc const*, void const* const* inputs,
                    void* const* outputs, void*, cudaStream_t stream) noexcept override {
        return guarded<int32_t>(1, [&] {
            return pass_.run(pass_.number(in[0].dims), inputs[0], outputs[0], stream), 0;
        });
    }

private:
    Pass pass_;
    std::string namespace_;
};

class Creator final : public IPluginCreator {
public:
    Creator() : field_(FIELD, nullptr, PluginFieldType::kCHAR, 0), fields_{1, &field_} {}

    char const* getPluginName() const noexcept override { return "RestortPass"; }
    char const* getPluginVersion() const noexcept override { return "1"; }
    PluginFieldCollection const* getFieldNames() noexcept override { return &fields_; }
    void setPluginNamespace(char const* name) noexcept override { namespace_ = name ? name : ""; }
    char const* getPluginNamespace() const noexcept override { return namespace_.c_str(); }

    IPluginV2* createPlugin(char const*, PluginFieldCollection const* given) noexcept override {
        return guarded<IPluginV2*>(nullptr, [&] { return make(packages_of(given)); });
    }

    IPluginV2* deserializePlugin(char const*, void const* data, size_t count) noexcept override {
        return guarded<IPluginV2*>(nullptr, [&] {
            return make(std::make_shared<Packages const>(static_cast<char const*>(data), count));
        });
    }

private:
    PluginField field_;
    PluginFieldCollection fields_;
    std::string namespace_;

    IPluginV2* make(std::shared_ptr<Packages const> packages) const {
        auto made = std::make_unique<RestortPass>(std::move(packages));
        made->setPluginNamespace(namespace_.c_str());
        return made.release();
    }
};

}  // namespace restort
