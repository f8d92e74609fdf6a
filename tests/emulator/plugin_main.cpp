// The life of the plugin "RestortPass" of TensorRT 10 and 11 in a genuine plugin registry, on a stand-in for the driver:
//
//     plugin_main LIBNVINFER PLUGIN FIELD [NxCxHxW]...
//
// created from FIELD ("file:PATH") as by a parser, asked what a builder asks, serialized, created again as by a runtime,
// attached to two contexts, and run at each shape. Prints a line for each answer.

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

using namespace nvinfer1;

struct Size final : IDimensionExpr, apiv::VDimensionExpr {
    int64_t value;
    explicit Size(int64_t n) : value(n) { mImpl = this; }
    bool isConstant() const override { return true; }
    int64_t getConstantValue() const override { return value; }
    bool isSizeTensor() const override { return false; }
};

struct Sizes final : IExprBuilder, apiv::VExprBuilder {
    Sizes() { mImpl = this; }
    IDimensionExpr const* constant(int64_t value) override { return new Size(value); }
    IDimensionExpr const* operation(DimensionOperation op, IDimensionExpr const& a, IDimensionExpr const& b) override {
        if (op != DimensionOperation::kPROD) std::abort();
        return new Size(a.getConstantValue() * b.getConstantValue());
    }
    IDimensionExpr const* declareSizeTensor(int32_t, IDimensionExpr const&, IDimensionExpr const&) override {
        return nullptr;
    }
};

Dims dims(char const* text) {
    Dims made{4, {}};
    long long n[4];
    if (std::sscanf(text, "%lldx%lldx%lldx%lld", n, n + 1, n + 2, n + 3) != 4) std::abort();
    for (int i = 0; i < 4; ++i) made.d[i] = n[i];
    return made;
}

PluginTensorDesc port(Dims const& shape) { return {shape, DataType::kFLOAT, TensorFormat::kLINEAR, 1.0f}; }

template <typename T> T* part(IPluginV3* plugin, PluginCapabilityType type) {
    return static_cast<T*>(plugin->getCapabilityInterface(type));
}

void expect(bool good, char const* what) {
    if (good) return;
    std::printf("FAILED: %s\n", what);
    std::exit(1);
}

int main(int count, char** arguments) {
    void* const library = dlopen(arguments[1], RTLD_NOW | RTLD_GLOBAL);
    if (!library) return std::printf("%s\n", dlerror()), 1;
    auto const registry = reinterpret_cast<IPluginRegistry* (*)()>(dlsym(library, "getPluginRegistry"))();
    expect(registry->loadLibrary(arguments[2]), "loading the library");
    IPluginCreatorInterface* const found = registry->getCreator("RestortPass", "2", "");
    expect(found, "finding the creator");
    expect(!std::strcmp(found->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE"), "the creator's kind");
    auto const creator = static_cast<IPluginCreatorV3One*>(found);
    expect(!std::strcmp(creator->getFieldNames()->fields[0].name, "plan"), "the creator's field");

    PluginField field("plan", arguments[3], PluginFieldType::kCHAR, static_cast<int32_t>(std::strlen(arguments[3])));
    PluginFieldCollection fields{1, &field};
    IPluginV3* const parsed = creator->createPlugin("pass", &fields, TensorRTPhase::kBUILD);
    if (!parsed) return std::printf("refused\n"), 0;
    IPluginV3* const built = parsed->clone();
    delete parsed;
    auto const core = part<IPluginV3OneCore>(built, PluginCapabilityType::kCORE);
    std::printf("%s %s\n", core->getPluginName(), core->getPluginVersion());
    auto const build = part<IPluginV3OneBuild>(built, PluginCapabilityType::kBUILD);
    Sizes sizes;
    for (int i = 4; i < count; ++i) {
        Dims const shape = dims(arguments[i]);
        DimsExprs in{4, {}}, out{};
        for (int j = 0; j < 4; ++j) in.d[j] = sizes.constant(shape.d[j]);
        expect(!build->getOutputShapes(&in, 1, nullptr, 0, &out, 1, sizes), "shapes of the output");
        DynamicPluginTensorDesc ports[2] = {{port(shape), shape, shape, shape}, {port(shape), shape, shape, shape}};
        expect(build->supportsFormatCombination(0, ports, 1, 1), "float32, linear");
        ports[1].desc.type = DataType::kHALF;
        expect(!build->supportsFormatCombination(1, ports, 1, 1), "float16");
        int const fits = build->configurePlugin(ports, 1, ports + 1, 1);
        std::printf("configured %d output", fits);
        for (int j = 0; j < 4; ++j) std::printf(" %lld", static_cast<long long>(out.d[j]->getConstantValue()));
        std::printf("\n");
    }
    DataType type = DataType::kHALF, input = DataType::kFLOAT;
    expect(!build->getOutputDataTypes(&type, 1, &input, 1) && type == DataType::kFLOAT, "the output's type");

    PluginFieldCollection const* const kept =
        part<IPluginV3OneRuntime>(built, PluginCapabilityType::kRUNTIME)->getFieldsToSerialize();
    PluginField const& only = kept->fields[0];
    std::printf("serialized %d %s %d\n", kept->nbFields, only.name, only.length);
    std::vector<char> const engine(static_cast<char const*>(only.data), static_cast<char const*>(only.data) + only.length);
    delete built;
    PluginField again("plan", engine.data(), PluginFieldType::kCHAR, static_cast<int32_t>(engine.size()));
    PluginFieldCollection stored{1, &again};
    IPluginV3* const opened = creator->createPlugin("pass", &stored, TensorRTPhase::kRUNTIME);
    expect(opened, "creating it again");
    IPluginV3* contexts[2];
    for (auto& context : contexts) {
        context = part<IPluginV3OneRuntime>(opened, PluginCapabilityType::kRUNTIME)->attachToContext(nullptr);
        if (!context) return std::printf("not attached\n"), 0;
        auto const run = part<IPluginV3OneRuntime>(context, PluginCapabilityType::kRUNTIME);
        for (int i = 4; i < count; ++i) {
            PluginTensorDesc const in = port(dims(arguments[i])), out = in;
            alignas(16) static char memory[32];
            void const* inputs[] = {memory};
            void* outputs[] = {memory + 16};
            int const changed = run->onShapeChange(&in, 1, &out, 1);
            std::printf("changed %d ran %d\n", changed, run->enqueue(&in, &out, inputs, outputs, nullptr, nullptr));
        }
    }
    for (auto* context : contexts) delete context;
    delete opened;
    std::printf("end\n");
}
