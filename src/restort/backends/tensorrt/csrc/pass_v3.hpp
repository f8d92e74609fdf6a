// RestortPass, version "2", for TensorRT 10 and 11.

#pragma once

#include "pass.hpp"

namespace restort {

using namespace nvinfer1;

class RestortPass final : public IPluginV3, public IPluginV3OneCore, public IPluginV3OneBuild, public IPluginV3OneRuntime {
public:
    RestortPass(std::shared_ptr<Packages const> packages, bool in_engine)
        : pass_(std::move(packages)), in_engine_(in_engine) {}
    RestortPass(RestortPass const& other) : pass_(other.pass_), in_engine_(other.in_engine_) {}

    IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
        if (type == PluginCapabilityType::kCORE) return static_cast<IPluginV3OneCore*>(this);
        if (type == PluginCapabilityType::kBUILD) return static_cast<IPluginV3OneBuild*>(this);
        return type == PluginCapabilityType::kRUNTIME ? static_cast<IPluginV3OneRuntime*>(this) : nullptr;
    }
    IPluginV3* clone() noexcept override {
        return guarded<IPluginV3*>(nullptr, [&] { return new RestortPass(*this); });
    }

    char const* getPluginName() const noexcept override { return "RestortPass"; }
    char const* getPluginVersion() const noexcept override { return "2"; }
    char const* getPluginNamespace() const noexcept override { return ""; }

    int32_t getNbOutputs() const noexcept override { return 1; }
    int32_t getOutputDataTypes(DataType* made, int32_t outputs, DataType const*, int32_t) const noexcept override {
        if (outputs != 1) return 1;
        made[0] = DataType::kFLOAT;
        return 0;
    }
    int32_t getOutputShapes(DimsExprs const* in, int32_t inputs, DimsExprs const*, int32_t, DimsExprs* made,
                            int32_t outputs, IExprBuilder& make) noexcept override {
        if (inputs != 1 || outputs != 1) return 1;
        pass_.output(in[0], made[0], make);
        return 0;
    }
    bool supportsFormatCombination(int32_t at, DynamicPluginTensorDesc const* all, int32_t in,
                                   int32_t out) noexcept override {
        return in == 1 && out == 1 && all[at].desc.type == DataType::kFLOAT &&
               all[at].desc.format == TensorFormat::kLINEAR;
    }
    int32_t configurePlugin(DynamicPluginTensorDesc const* in, int32_t, DynamicPluginTensorDesc const*,
                            int32_t) noexcept override {
        return guarded(false, [&] { return pass_.fits(in[0].desc.dims); }) ? 0 : 1;
    }

    int32_t onShapeChange(PluginTensorDesc const* in, int32_t, PluginTensorDesc const*, int32_t) noexcept override {
        return guarded<int32_t>(1, [&] { return pass_.prepare(pass_.number(in[0].dims)), 0; });
    }
    IPluginV3* attachToContext(IPluginResourceContext*) noexcept override {
        return guarded<IPluginV3*>(nullptr, [&] {
            auto made = std::make_unique<RestortPass>(*this);
            made->pass_.attach(in_engine_);
            return made.release();
        });
    }
    int32_t enqueue(PluginTensorDesc const* in, PluginTensorDesc const*, void const* const* inputs,
                    void* const* outputs, void*, cudaStream_t stream) noexcept override {
        return guarded<int32_t>(1, [&] {
            return pass_.run(pass_.number(in[0].dims), inputs[0], outputs[0], stream), 0;
        });
    }
    PluginFieldCollection const* getFieldsToSerialize() noexcept override {
        std::vector<char> const& file = pass_.file();
        field_ = PluginField(FIELD, file.data(), PluginFieldType::kCHAR, static_cast<int32_t>(file.size()));
        fields_ = PluginFieldCollection{1, &field_};
        return &fields_;
    }

private:
    Pass pass_;
    bool in_engine_;  // deserialized from one, which holds the weights; in a build only its contexts do
    PluginField field_;
    PluginFieldCollection fields_{};
};

class Creator final : public IPluginCreatorV3One {
public:
    Creator() : field_(FIELD, nullptr, PluginFieldType::kCHAR, 0), fields_{1, &field_} {}

    char const* getPluginName() const noexcept override { return "RestortPass"; }
    char const* getPluginVersion() const noexcept override { return "2"; }
    char const* getPluginNamespace() const noexcept override { return ""; }
    PluginFieldCollection const* getFieldNames() noexcept override { return &fields_; }

    IPluginV3* createPlugin(char const*, PluginFieldCollection const* given, TensorRTPhase phase) noexcept override {
        return guarded<IPluginV3*>(nullptr, [&] {
            auto packages = packages_of(given);
            if (packages->file.size() > INT32_MAX)  // the length of a field
                throw Error("the AOT package has 2 GiB or more, which an engine cannot hold");
            return new RestortPass(std::move(packages), phase == TensorRTPhase::kRUNTIME);
        });
    }

private:
    PluginField field_;
    PluginFieldCollection fields_;
};

}  // namespace restort
