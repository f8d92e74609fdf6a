// Reads plans by what the TensorRT plugin reads them with (plugin/plan_file.hpp): a line for each file, 'read' or why not.

#include <fstream>
#include <iostream>
#include <iterator>

#include "plan_file.hpp"

int main(int count, char** arguments) {
    for (int i = 1; i < count; ++i) {
        std::ifstream file(arguments[i], std::ios::binary);
        std::vector<char> const all{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
        try {
            restort::Plan const plan(all.data(), all.size());
            std::cout << "read\n";
        } catch (restort::Trouble const& trouble) {
            std::cout << trouble.what() << '\n';
        }
    }
}
