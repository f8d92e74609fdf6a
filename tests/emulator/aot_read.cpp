// Reads AOT packages by the code of the TensorRT plugin (csrc/aot_package.hpp): a line each, 'read' or why not.

#include <fstream>
#include <iostream>
#include <iterator>

#include "aot_package.hpp"

int main(int count, char** arguments) {
    for (int i = 1; i < count; ++i) {
        std::ifstream file(arguments[i], std::ios::binary);
        std::vector<char> const all{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
        try {
            restort::Packages const packages(all.data(), all.size());
            std::cout << "read\n";
        } catch (restort::Error const& error) {
            std::cout << error.what() << '\n';
        }
    }
}
