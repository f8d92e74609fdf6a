// Runs an AOT package twice, in the memory of two contexts, by the code of the TensorRT plugin (csrc/aot_gpu.hpp).

#include <fstream>
#include <iostream>
#include <iterator>

#include "aot_gpu.hpp"

using namespace restort;

int main(int, char** arguments) try {
    std::ifstream file(arguments[1], std::ios::binary);
    std::vector<char> all{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    all.push_back(0);  // a parser may append a zero to a string
    auto const packages = std::make_shared<Packages const>(all.data(), all.size());
    Package const* const package = &packages->each[0];
    auto const loaded = std::make_shared<LoadedPackage>(packages, 0, nullptr);
    alignas(16) static char input[16], output[16];
    std::vector<CUdeviceptr> before(package->regions.size());
    for (int context = 0; context < 2; ++context) {
        PreparedPass pass(loaded);
        std::cout << "input " << reinterpret_cast<uint64_t>(input) << "\noutput " << reinterpret_cast<uint64_t>(output);
        for (size_t i = 0; i < package->regions.size(); ++i) {
            auto const& r = package->regions[i];
            if (r.kind == INPUT || r.kind == OUTPUT) continue;
            char const* const mine = reinterpret_cast<char const*>(pass.places[i]);
            bool good = pass.places[i] % 256 == 0 && !std::memcmp(mine, package->file + r.at, r.content);
            for (uint64_t b = r.content; b < r.bytes; ++b) good = good && !mine[b];
            if (!good) throw Error(text("region %zu is not as it should be", i));
            if (context && (before[i] == pass.places[i]) != (r.kind == WEIGHTS))
                throw Error(text("region %zu is shared, or should be", i));
            before[i] = pass.places[i];
            std::cout << "\nregion " << i << ' ' << pass.places[i];
        }
        pass.run(input, output, nullptr);
        std::cout << "\npass" << std::endl;
        new PreparedPass(loaded);  // its memory is not that of the next
    }
} catch (std::exception const& error) {
    std::cerr << error.what() << '\n';
    return 1;
}
