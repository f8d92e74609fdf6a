// An AOT package, read from its file and checked; no GPU is needed. Format: backends/fused/aot_package.py.

#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace restort {

// Its message is one sentence for the user.
struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

inline std::string text(char const* form, ...) {
    char line[512];
    va_list arguments;
    va_start(arguments, form);
    std::vsnprintf(line, sizeof line, form, arguments);
    va_end(arguments);
    return line;
}

struct Header {
    char magic[8];
    uint32_t crc, version;
    uint64_t bytes;
    uint32_t capability, regions, kernels, launches, arguments, text, zeros[2], input[4], output[4];
    uint64_t zero;
};
struct Region { uint32_t kind, zero; uint64_t bytes, at, content; };
struct Kernel {
    uint64_t at, bytes;
    uint32_t shared, threads, cluster, overlap;
    int32_t carveout;
    uint32_t zero;
    char name[104];
};
struct Launch { uint32_t kernel, grid[3], first, count; char label[56]; };
struct Argument { uint32_t kind, region; int64_t value; };
static_assert(sizeof(Header) == 96 && sizeof(Region) == 32 && sizeof(Kernel) == 144, "records of the file");
static_assert(sizeof(Launch) == 80 && sizeof(Argument) == 16, "records of the file");

enum { INPUT = 0, OUTPUT = 1, WEIGHTS = 2, KINDS = 5 };
constexpr uint64_t MOST = 1ull << 46;  // bytes of all regions; their sum cannot overflow
enum { ADDRESS = 0, NUMBER = 1, NOTHING = 2 };

inline uint32_t crc32(char const* data, size_t count) {
    uint32_t table[256];
    for (uint32_t i = 0; i < 256; ++i) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; ++bit) value = value >> 1 ^ (value & 1 ? 0xEDB88320u : 0);
        table[i] = value;
    }
    uint32_t sum = ~0u;
    for (size_t i = 0; i < count; ++i) sum = sum >> 8 ^ table[(sum ^ static_cast<uint8_t>(data[i])) & 255];
    return ~sum;
}

struct Package {
    std::vector<char> file;
    Header head;
    std::vector<Region> regions;
    std::vector<Kernel> kernels;
    std::vector<Launch> launches;
    std::vector<Argument> arguments;

    // `count` may exceed the size of the package; zeros after it are dropped.
    Package(char const* data, size_t count) {
        if (count < sizeof head || std::memcmp(data, "RSTPLAN\n", 8))
            throw Error(text("not an AOT package, or cut off: %zu bytes; give it as file:PATH", count));
        std::memcpy(&head, data, sizeof head);
        if (head.version != 1)
            throw Error(text("the AOT package has version %u, and this plugin reads 1", head.version));
        if (head.bytes > count || head.bytes < sizeof head)
            throw Error(text("the AOT package has %zu of %llu bytes", count,
                             static_cast<unsigned long long>(head.bytes)));
        file.assign(data, data + head.bytes);
        if (crc32(file.data() + 12, file.size() - 12) != head.crc)
            throw Error("the AOT package is damaged; make it again");
        size_t place = sizeof head;
        take(regions, head.regions, place);
        take(kernels, head.kernels, place);
        take(launches, head.launches, place);
        take(arguments, head.arguments, place);
        verify();
    }

    template <typename T> void take(std::vector<T>& into, uint32_t count, size_t& place) {
        if (count > (file.size() - place) / sizeof(T)) throw Error("the AOT package ends in a table");
        into.resize(count);
        if (count) std::memcpy(into.data(), file.data() + place, count * sizeof(T));
        place += count * sizeof(T);
    }

    bool inside(uint64_t at, uint64_t count) const { return at <= file.size() && count <= file.size() - at; }

    static void verify_shape(uint32_t const (&shape)[4], uint64_t bytes) {
        uint64_t need = 4;
        for (uint32_t n : shape) {
            if (!n || n > INT32_MAX || need > MOST / n) throw Error("the AOT package has an impossible shape");
            need *= n;
        }
        if ((need + 255) / 256 * 256 != bytes)
            throw Error("the AOT package has an input or output that does not match its shape");
    }

    void verify() const {
        int seen[KINDS] = {};
        uint64_t total = 0;  // one allocation may hold all regions
        for (auto const& r : regions) {
            if (r.kind >= KINDS || !r.bytes || r.bytes % 256 || r.bytes > MOST - total || r.content > r.bytes ||
                !inside(r.at, r.content))
                throw Error("the AOT package has an impossible region");
            ++seen[r.kind];
            total += r.bytes;
            if (r.kind == INPUT || r.kind == OUTPUT) verify_shape(r.kind == INPUT ? head.input : head.output, r.bytes);
        }
        if (seen[INPUT] != 1 || seen[OUTPUT] != 1)
            throw Error("the AOT package does not have one input and one output");
        for (auto const& k : kernels)
            if (!inside(k.at, k.bytes) || k.bytes < 4 || std::memcmp(file.data() + k.at, "\x7f" "ELF", 4) ||
                !std::memchr(k.name, 0, sizeof k.name) || !k.threads || k.threads > 1024)
                throw Error("the AOT package has an impossible kernel");  // without ELF, the driver would parse text
        for (auto const& l : launches) {
            if (l.kernel >= kernels.size() || l.first > arguments.size() || l.count > arguments.size() - l.first ||
                !std::memchr(l.label, 0, sizeof l.label))
                throw Error("the AOT package has an impossible launch");
            for (uint32_t i = l.first; i < l.first + l.count; ++i) {
                Argument const& a = arguments[i];
                if (a.kind > NOTHING || (a.kind == ADDRESS && (a.region >= regions.size() || a.value < 0 ||
                        static_cast<uint64_t>(a.value) >= regions[a.region].bytes)))
                    throw Error("the AOT package has an address outside of its region");
            }
        }
    }
};

}  // namespace restort
