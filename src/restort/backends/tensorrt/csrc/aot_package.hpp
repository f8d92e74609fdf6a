// An AOT package, read from its file and checked; no GPU is needed. Format: backends/fused/aot_package.py.

#pragma once

#include <algorithm>
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
    uint32_t capability, regions, kernels, launches, arguments, text, following, zero32, input[4], output[4];
    uint64_t zero;
};
struct Region { uint32_t kind, shared; uint64_t bytes, at, content; };
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

struct Package {  // one size
    char const* file;  // of `head.bytes` bytes, which must stay
    Header head;
    std::vector<Region> regions;
    std::vector<Kernel> kernels;
    std::vector<Launch> launches;
    std::vector<Argument> arguments;

    // `count` may exceed the size of the package. `first` is the first package of the file, for those after it, which
    // may share its weights.
    Package(char const* data, size_t count, Package const* first = nullptr) : file(data) {
        if (count < sizeof head || std::memcmp(data, "RSTPLAN\n", 8))
            throw Error(text("not an AOT package, or cut off: %zu bytes; give it as file:PATH", count));
        std::memcpy(&head, data, sizeof head);
        if (head.version != 1 && head.version != 2)
            throw Error(text("the AOT package has version %u, and this plugin reads 1 and 2", head.version));
        if (head.bytes > count || head.bytes < sizeof head)
            throw Error(text("the AOT package has %zu of %llu bytes", count,
                             static_cast<unsigned long long>(head.bytes)));
        if (crc32(file + 12, head.bytes - 12) != head.crc)
            throw Error("the AOT package is damaged; make it again");
        size_t place = sizeof head;
        take(regions, head.regions, place);
        take(kernels, head.kernels, place);
        take(launches, head.launches, place);
        take(arguments, head.arguments, place);
        verify(first);
    }

    template <typename T> void take(std::vector<T>& into, uint32_t count, size_t& place) {
        if (count > (head.bytes - place) / sizeof(T)) throw Error("the AOT package ends in a table");
        into.resize(count);
        if (count) std::memcpy(into.data(), file + place, count * sizeof(T));
        place += count * sizeof(T);
    }

    bool inside(uint64_t at, uint64_t count) const { return at <= head.bytes && count <= head.bytes - at; }

    static void verify_shape(uint32_t const (&shape)[4], uint64_t bytes) {
        uint64_t need = 4;
        for (uint32_t n : shape) {
            if (!n || n > INT32_MAX || need > MOST / n) throw Error("the AOT package has an impossible shape");
            need *= n;
        }
        if ((need + 255) / 256 * 256 != bytes)
            throw Error("the AOT package has an input or output that does not match its shape");
    }

    void verify(Package const* first) const {
        int seen[KINDS] = {};
        uint64_t total = 0;  // one allocation may hold all regions
        for (auto const& r : regions) {
            if (r.kind >= KINDS || !r.bytes || r.bytes % 256 || r.bytes > MOST - total || r.content > r.bytes ||
                !inside(r.at, r.content) || (r.shared && !shares(r, first)))
                throw Error("the AOT package has an impossible region");
            ++seen[r.kind];
            total += r.bytes;
            if (r.kind == INPUT || r.kind == OUTPUT) verify_shape(r.kind == INPUT ? head.input : head.output, r.bytes);
        }
        if (seen[INPUT] != 1 || seen[OUTPUT] != 1)
            throw Error("the AOT package does not have one input and one output");
        for (auto const& k : kernels)
            if (!inside(k.at, k.bytes) || k.bytes < 4 || std::memcmp(file + k.at, "\x7f" "ELF", 4) ||
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

    // Whether the first package has the weights that a region shares.
    static bool shares(Region const& r, Package const* first) {
        if (!first || r.shared > first->regions.size() || r.kind != WEIGHTS || r.content) return false;
        Region const& other = first->regions[r.shared - 1];
        return other.kind == WEIGHTS && other.bytes == r.bytes;
    }
};

struct Packages {  // a file: packages of one network for several sizes, or one
    std::vector<char> file;
    std::vector<Package> each;

    // `count` may exceed the size of the file, of which zeros after its end are dropped.
    Packages(char const* data, size_t count) {
        Package const first(data, count);  // before anything is copied
        size_t const most = 1 + static_cast<size_t>(first.head.following);
        if (most > count / sizeof(Header)) throw Error("the AOT package ends before its last size");
        file.assign(data, data + count);
        each.reserve(most);
        size_t place = 0;
        while (each.size() < most) {
            if (place >= count) throw Error("the AOT package ends before its last size");
            each.emplace_back(file.data() + place, count - place, each.empty() ? nullptr : &each[0]);
            count = each.size() == most ? place + each.back().head.bytes : count;
            place += (each.back().head.bytes + 255) / 256 * 256;
        }
        file.resize(count);
        for (int axis = 0; axis < 4; ++axis) factor(axis);
        for (size_t i = 0; i < each.size(); ++i)
            if (each[i].head.capability != each[0].head.capability || find(each[i].head.input) != i)
                throw Error("the AOT package has a size twice, or sizes for several GPUs");
    }
    Packages(Packages const&) = delete;

    // The package for an input of that shape; each.size() for none.
    template <typename T> size_t find(T const* shape) const {
        size_t i = 0;
        while (i < each.size() && !std::equal(shape, shape + 4, each[i].head.input, same<T>)) ++i;
        return i;
    }
    template <typename T> static bool same(T a, uint32_t b) { return static_cast<int64_t>(a) == b; }

    // How many times the input's extent of an axis the output has in all packages; 0 where it is constant.
    uint32_t factor(int axis) const {
        Header const& one = each[0].head;
        bool constant = true, scaled = one.output[axis] % one.input[axis] == 0;
        uint32_t const times = one.output[axis] / one.input[axis];
        for (Package const& p : each) {
            constant = constant && p.head.output[axis] == one.output[axis];
            scaled = scaled && uint64_t{p.head.input[axis]} * times == p.head.output[axis];
        }
        if (!constant && !scaled) throw Error("the AOT package has outputs that do not scale with its inputs");
        return constant ? 0 : times;
    }
};

}  // namespace restort
