// Runs a plan twice, in two contexts' memory, by what the TensorRT plugin runs it with (plugin/plan_gpu.hpp).

#include <fstream>
#include <iostream>
#include <iterator>

#include "plan_gpu.hpp"

using namespace restort;

int main(int, char** arguments) try {
    std::ifstream file(arguments[1], std::ios::binary);
    std::vector<char> all{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    all.push_back(0);  // a parser may end what it takes for a string
    auto const plan = std::make_shared<Plan const>(all.data(), all.size());
    auto const loaded = std::make_shared<Loaded>(plan);
    alignas(16) static char input[16], output[16];
    std::vector<CUdeviceptr> before(plan->regions.size());
    for (int context = 0; context < 2; ++context) {
        Ready ready(loaded);
        std::cout << "input " << reinterpret_cast<uint64_t>(input) << "\noutput " << reinterpret_cast<uint64_t>(output);
        for (size_t i = 0; i < plan->regions.size(); ++i) {
            auto const& r = plan->regions[i];
            if (r.kind == INPUT || r.kind == OUTPUT) continue;
            char const* const mine = reinterpret_cast<char const*>(ready.places[i]);
            bool good = ready.places[i] % 256 == 0 && !std::memcmp(mine, plan->file.data() + r.at, r.content);
            for (uint64_t b = r.content; b < r.bytes; ++b) good = good && !mine[b];
            if (!good) throw Trouble(text("region %zu is not as it should be", i));
            if (context && (before[i] == ready.places[i]) != (r.kind == WEIGHTS))
                throw Trouble(text("region %zu is shared, or should be", i));
            before[i] = ready.places[i];
            std::cout << "\nregion " << i << ' ' << ready.places[i];
        }
        ready.run(input, output, nullptr);
        std::cout << "\npass" << std::endl;
        new Ready(loaded);  // takes other memory than the next
    }
} catch (std::exception const& error) {
    std::cerr << error.what() << '\n';
    return 1;
}
