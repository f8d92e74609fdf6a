// Runs blocks of the CUDA kernels on the CPU: what kernels/include offers, one fiber a thread.
//
// Threads of a block take turns; at a warp-wide operation a thread waits until its warp has arrived, at a barrier until
// the block has. It also looks for what a GPU would only sometimes show:
// - a byte of shared memory read or written by one thread after a write (written after a read) by another with no
//   barrier between them: the block's, or the warp's for threads of one warp;
// - bytes that an asynchronous copy has been issued for, touched before every thread's wait and a barrier;
// - shared memory beyond what the launch asked for; threads of a warp that do not arrive together.
// Reads and writes beyond the end of a global buffer hit a page that does not exist.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include "fibers.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#define DEVICE static inline
#define KERNEL(threads, blocks) \
    constexpr int BLOCK_THREADS = threads; \
    extern "C" void
#define __restrict__

struct Vec4 { u32 x, y, z, w; };
struct Vec2 { u32 x, y; };

namespace emulator {

struct Byte {  // who touched a byte of shared memory last, and when
    int writer = -1, write_block = -1, write_warp = 0;
    int reader = -1, read_block = -1, read_warp = 0;  // reader -2: several warps; -3 - w: several threads of warp w
    bool flying = false;
};
struct Copy { u32 to; int bytes; unsigned char data[16]; };
struct Thread {
    Fiber fiber;
    int id = 0, waits = 0;  // waits: how often it has arrived at its warp's (block's) present meeting
    bool done = false;
    std::vector<Copy> open;
    std::vector<std::vector<Copy>> groups;
};
struct Warp {
    int arrived = 0, meeting = 0, epoch = 0;
    u32 offset[32];
    u32 words[32][4];
    float numbers[32];
    u32 a[32][4], b[32][2];
    float d[32][4];
    int kind[32];
};

inline std::vector<Thread> threads;
inline std::vector<Warp> warps;
inline std::vector<unsigned char> shared;
inline std::vector<Byte> bytes;
inline int current, block_epoch, block_arrived, blocks[3], grid[3];
inline long progress;  // grows with every arrival: tells waiting from being stuck
inline Fiber scheduler;
inline std::string trouble;

inline void fail(const std::string& what) {
    if (trouble.empty())
        trouble = what + " (block " + std::to_string(blocks[0]) + " " + std::to_string(blocks[1]) + " " +
                  std::to_string(blocks[2]) + ", thread " + std::to_string(current) + ")";
}

inline void yield() { change(threads[current].fiber, scheduler); }

// All lanes of a warp arrive; `act` runs once, by the last.
template <class Act> void meet(int kind, Act act) {
    Warp& warp = warps[current / 32];
    int lane = current % 32, meeting = warp.meeting;
    warp.kind[lane] = kind;
    ++progress;
    if (++warp.arrived == 32) {
        for (int i = 0; i < 32; ++i)
            if (warp.kind[i] != kind) fail("lanes of a warp meet at different operations");
        act(warp);
        warp.arrived = 0;
        ++warp.meeting;
    } else
        while (warp.meeting == meeting) yield();
}

inline bool ordered(int who, int when_block, int when_warp) {
    if (who == -1 || when_block < block_epoch || who == current) return true;
    int warp = who >= 0 ? who / 32 : who <= -3 ? -3 - who : -1;
    return warp == current / 32 && when_warp < warps[warp].epoch;
}
inline bool within(u32 offset, int count) {
    if (offset + count <= shared.size() && offset % count == 0) return true;
    fail("shared memory at " + std::to_string(offset) + " is beyond the launch's or not aligned");
    return false;
}
inline void touch_read(u32 offset, int count) {
    for (u32 i = offset; i < offset + count; ++i) {
        Byte& b = bytes[i];
        if (b.flying) fail("read of byte " + std::to_string(i) + " while a copy to it is under way");
        if (!ordered(b.writer, b.write_block, b.write_warp))
            fail("read of byte " + std::to_string(i) + " with no barrier after the write by thread " + std::to_string(b.writer));
        int warp = current / 32;
        if (b.read_block < block_epoch || b.reader == -1) b.reader = current;
        else if (b.reader != current) {
            int other = b.reader >= 0 ? b.reader / 32 : b.reader <= -3 ? -3 - b.reader : -1;
            b.reader = other == warp ? -3 - warp : -2;
        }
        b.read_block = block_epoch, b.read_warp = warps[warp].epoch;
    }
}
inline void touch_write(u32 offset, int count, bool landing) {
    for (u32 i = offset; i < offset + count; ++i) {
        Byte& b = bytes[i];
        if (b.flying && !landing) fail("write to byte " + std::to_string(i) + " while a copy to it is under way");
        if (!ordered(b.writer, b.write_block, b.write_warp))
            fail("write to byte " + std::to_string(i) + " with no barrier after the write by thread " + std::to_string(b.writer));
        if (!ordered(b.reader, b.read_block, b.read_warp))
            fail("write to byte " + std::to_string(i) + " with no barrier after a read");
        b.writer = current, b.write_block = block_epoch, b.write_warp = warps[current / 32].epoch;
    }
}
template <class V> V get(u32 offset) {
    V value{};
    if (!within(offset, sizeof(V))) return value;
    touch_read(offset, sizeof(V));
    memcpy(&value, &shared[offset], sizeof(V));
    return value;
}
template <class V> void put(u32 offset, V value) {
    if (!within(offset, sizeof(V))) return;
    touch_write(offset, sizeof(V), false);
    memcpy(&shared[offset], &value, sizeof(V));
}
inline void launch_copy(u32 to, const void* from, int count, bool valid) {
    if (!within(to, count)) return;
    touch_write(to, count, false);
    Copy copy{to, count, {}};
    if (valid) memcpy(copy.data, from, count);
    for (int i = 0; i < count; ++i) bytes[to + i].flying = true;
    threads[current].open.push_back(copy);
}

inline float from_half(u16 bits) {
    int sign = bits >> 15, exponent = bits >> 10 & 31, fraction = bits & 1023;
    float value = exponent == 0    ? std::ldexp((float)fraction, -24)
                  : exponent == 31 ? (fraction ? NAN : INFINITY)
                                   : std::ldexp((float)(fraction + 1024), exponent - 25);
    return sign ? -value : value;
}
inline u16 to_half(double value) {  // rounds to nearest, ties to even
    u16 sign = std::signbit(value) ? 0x8000 : 0;
    double size = std::fabs(value);
    if (std::isnan(value)) return 0x7e00;
    int exponent = size > 0 ? std::max(std::ilogb(size), -14) : -14;
    if (exponent > 15) return sign | 0x7c00;
    double steps = std::nearbyint(std::ldexp(size, 10 - exponent));  // 0 .. 2048
    int bits = (int)steps + (exponent + 14) * 1024;
    return sign | (u16)(bits >= 0x7c00 ? 0x7c00 : bits);
}
inline float from_brain(u16 bits) {
    u32 wide = (u32)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}
inline u16 to_brain(float value) {
    u32 bits;
    memcpy(&bits, &value, 4);
    if (std::isnan(value)) return 0x7fc0;
    return (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
#if BF16
inline float number(u16 bits) { return from_brain(bits); }
inline u16 bits_of(double value) { return to_brain((float)value); }
#else
inline const std::vector<float>& halves() {
    static std::vector<float> table = [] {
        std::vector<float> t(65536);
        for (int i = 0; i < 65536; ++i) t[i] = from_half((u16)i);
        return t;
    }();
    return table;
}
inline float number(u16 bits) { return halves()[bits]; }
inline u16 bits_of(double value) { return to_half(value); }
#endif

inline void matrices(u32 (&r)[4], u32 offset, bool transposed) {
    Warp& mine = warps[current / 32];
    mine.offset[current % 32] = offset;
    if (within(offset, 16)) touch_read(offset, 16);  // the lane that gives the address stands for all readers
    meet(transposed ? 2 : 1, [transposed](Warp& warp) {
        if (!trouble.empty()) return;
        for (int lane = 0; lane < 32; ++lane)
            for (int i = 0; i < 4; ++i) {
                u16 pair[2];
                for (int k = 0; k < 2; ++k) {
                    int row = lane / 4, column = 2 * (lane % 4) + k;
                    if (transposed) std::swap(row, column);
                    memcpy(&pair[k], &shared[warp.offset[8 * i + row] + 2 * column], 2);
                }
                warp.words[lane][i] = pair[0] | (u32)pair[1] << 16;
            }
    });
    for (int i = 0; i < 4; ++i) r[i] = mine.words[current % 32][i];
}

}  // namespace emulator

DEVICE int thread_idx() { return emulator::current; }
DEVICE int block_idx(int axis) { return emulator::blocks[axis]; }
DEVICE int grid_dim_x() { return emulator::grid[0]; }
DEVICE int grid_dim_y() { return emulator::grid[1]; }
DEVICE void syncthreads() {
    using namespace emulator;
    int epoch = block_epoch;
    ++progress;
    if (++block_arrived == (int)emulator::threads.size()) {
        block_arrived = 0;
        ++block_epoch;
    } else
        while (block_epoch == epoch) yield();
}
DEVICE void syncwarp() { emulator::meet(3, [](emulator::Warp& warp) { ++warp.epoch; }); }
DEVICE float shfl_xor(float value, int lanes) {
    emulator::Warp& warp = emulator::warps[emulator::current / 32];
    int lane = emulator::current % 32;
    warp.numbers[lane] = value;
    emulator::meet(4, [](emulator::Warp&) {});
    float other = warp.numbers[lane ^ lanes];
    emulator::meet(5, [](emulator::Warp&) {});
    return other;
}
DEVICE u32 shfl_by(u32 value, int step) {
    emulator::Warp& warp = emulator::warps[emulator::current / 32];
    int lane = emulator::current % 32;
    warp.offset[lane] = value;
    emulator::meet(7, [](emulator::Warp&) {});
    u32 other = warp.offset[lane + step < 0 || lane + step > 31 ? lane : lane + step];
    emulator::meet(8, [](emulator::Warp&) {});
    return other;
}
DEVICE u32 shfl_up_1(u32 value) { return shfl_by(value, -1); }
DEVICE u32 shfl_down_1(u32 value) { return shfl_by(value, 1); }
DEVICE u32 movmatrix_trans(u32 value) {
    emulator::Warp& warp = emulator::warps[emulator::current / 32];
    int lane = emulator::current % 32;
    warp.offset[lane] = value;
    emulator::meet(9, [](emulator::Warp&) {});
    u32 turned = 0;
    for (int k = 0; k < 2; ++k)
        turned |= (warp.offset[4 * (2 * (lane % 4) + k) + lane / 8] >> 16 * (lane / 4 % 2) & 0xffff) << 16 * k;
    emulator::meet(10, [](emulator::Warp&) {});
    return turned;
}
DEVICE u32 byte_perm(u32 a, u32 b, u32 which) {
    u64 both = (u64)b << 32 | a;
    u32 picked = 0;
    for (int i = 0; i < 4; ++i) picked |= (u32)(both >> 8 * (which >> 4 * i & 7) & 0xff) << 8 * i;
    return picked;
}
DEVICE int launder(int value) { return value; }
DEVICE int warp_uniform(int value) { return value; }
DEVICE float as_float(u32 bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
DEVICE u32 ld_shared(u32 offset) { return emulator::get<u32>(offset); }
DEVICE Vec2 ld_shared_v2(u32 offset) { return emulator::get<Vec2>(offset); }
DEVICE Vec4 ld_shared_v4(u32 offset) { return emulator::get<Vec4>(offset); }
DEVICE float ld_shared_f32(u32 offset) { return emulator::get<float>(offset); }
DEVICE void st_shared(u32 offset, u32 value) { emulator::put(offset, value); }
DEVICE void st_shared_v2(u32 offset, Vec2 value) { emulator::put(offset, value); }
DEVICE void st_shared_if(u32 offset, u32 value, bool valid) {
    if (valid) st_shared(offset, value);
}
DEVICE void st_shared_v2_if(u32 offset, Vec2 value, bool valid) {
    if (valid) st_shared_v2(offset, value);
}
DEVICE void st_global_v2_if(void* to, Vec2 value, bool valid) {
    if (valid) *(Vec2*)to = value;
}
DEVICE void st_shared_v4(u32 offset, Vec4 value) { emulator::put(offset, value); }
DEVICE void st_shared_v4_if(u32 offset, Vec4 value, bool valid) {
    if (valid) st_shared_v4(offset, value);
}
DEVICE void st_shared_f32(u32 offset, float value) { emulator::put(offset, value); }
DEVICE void ldmatrix_x4(u32 (&r)[4], u32 offset) { emulator::matrices(r, offset, false); }
DEVICE void ldmatrix_x4_trans(u32 (&r)[4], u32 offset) { emulator::matrices(r, offset, true); }
DEVICE void cp_async_16(u32 to, const void* from, bool valid) { emulator::launch_copy(to, from, 16, valid); }
DEVICE void cp_async_8(u32 to, const void* from) { emulator::launch_copy(to, from, 8, true); }
DEVICE void cp_async_commit_group() {
    emulator::Thread& thread = emulator::threads[emulator::current];
    thread.groups.push_back(std::move(thread.open));
    thread.open.clear();
}
template <int PENDING> DEVICE void cp_async_wait_group() {
    using namespace emulator;
    Thread& thread = threads[current];
    while (thread.groups.size() > PENDING) {
        for (const Copy& copy : thread.groups.front()) {
            touch_write(copy.to, copy.bytes, true);
            for (int i = 0; i < copy.bytes; ++i) bytes[copy.to + i].flying = false;
            memcpy(&shared[copy.to], copy.data, copy.bytes);
        }
        thread.groups.erase(thread.groups.begin());
    }
}
DEVICE float low(u32 pair) { return emulator::number((u16)pair); }
DEVICE float high(u32 pair) { return emulator::number((u16)(pair >> 16)); }
DEVICE u32 pack(float first, float second) {
    return emulator::bits_of(first) | (u32)emulator::bits_of(second) << 16;
}
DEVICE u32 pack_relu(float first, float second) { return pack(std::fmax(first, 0.0f), std::fmax(second, 0.0f)); }
DEVICE u32 fma2(u32 a, u32 b, u32 c) {
    return emulator::bits_of((double)low(a) * low(b) + low(c)) |
           (u32)emulator::bits_of((double)high(a) * high(b) + high(c)) << 16;
}
DEVICE u32 mul2(u32 a, u32 b) {
    return emulator::bits_of((double)low(a) * low(b)) | (u32)emulator::bits_of((double)high(a) * high(b)) << 16;
}
DEVICE u32 min2(u32 a, u32 b) {
    return emulator::bits_of(std::fmin(low(a), low(b))) | (u32)emulator::bits_of(std::fmin(high(a), high(b))) << 16;
}
DEVICE u32 tanh2_approx(u32 x) {
    return emulator::bits_of(std::tanh(low(x))) | (u32)emulator::bits_of(std::tanh(high(x))) << 16;
}
DEVICE void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    using namespace emulator;
    Warp& mine = warps[current / 32];
    int lane = current % 32;
    memcpy(mine.a[lane], a, 16), memcpy(mine.d[lane], d, 16);
    mine.b[lane][0] = b0, mine.b[lane][1] = b1;
    meet(6, [](Warp& warp) {
        float a[16][16], b[16][8];
        for (int t = 0; t < 32; ++t)
            for (int i = 0; i < 4; ++i)
                for (int k = 0; k < 2; ++k) {
                    a[t / 4 + i % 2 * 8][2 * (t % 4) + k + i / 2 * 8] = number((u16)(warp.a[t][i] >> 16 * k));
                    if (i < 2) b[2 * (t % 4) + k + i * 8][t / 4] = number((u16)(warp.b[t][i] >> 16 * k));
                }
        for (int t = 0; t < 32; ++t)
            for (int i = 0; i < 4; ++i)
                for (int k = 0; k < 16; ++k) warp.d[t][i] += a[t / 4 + i / 2 * 8][k] * b[k][2 * (t % 4) + i % 2];
    });
    memcpy(d, mine.d[lane], 16);
}
DEVICE void mma_m16n8k8(float (&d)[4], u32 a0, u32 a1, u32 b) {
    const u32 a[4] = {a0, a1, 0, 0};
    mma_m16n8k16(d, a, b, 0);
}
DEVICE void mma_m16n8k16_from(float (&d)[4], const float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    memcpy(d, c, 16);
    mma_m16n8k16(d, a, b0, b1);
}
DEVICE void griddepcontrol_wait() {}
DEVICE void griddepcontrol_launch_dependents() {}
DEVICE void fence_proxy_async() {}
struct Operand { u32 offset, rows, columns; };
DEVICE Operand matrix_descriptor(u32 offset, u32 rows, u32 columns) { return {offset, rows, columns}; }
DEVICE Operand advance_descriptor(Operand operand, u32 bytes) { return {operand.offset + bytes, operand.rows, operand.columns}; }
DEVICE void warpgroup_arrive() {}
DEVICE void warpgroup_commit_batch() {}
template <int PENDING> DEVICE void warpgroup_wait() {}
template <class T, int N> DEVICE void warpgroup_fence_operand(T (&)[N][4]) {}
template <int N> DEVICE void wgmma_rs(float (&d)[N][4], const u32 (&a)[4], Operand from) {
    for (int t = 0; t < N; ++t) {
        u32 b[2];
        for (int i = 0; i < 2; ++i)
            b[i] = ld_shared(from.offset + t * from.columns + i * from.rows + emulator::current % 32 * 4);
        mma_m16n8k16(d[t], a, b[0], b[1]);
    }
}
template <int N> DEVICE void wgmma_rs_zero(float (&d)[N][4], const u32 (&a)[4], Operand from) {
    memset(d, 0, sizeof(d));
    wgmma_rs(d, a, from);
}
template <int N> DEVICE void wgmma_ss_transposed_a(float (&d)[N][4], Operand a, Operand b) {
    u32 mine[4];
    const int warp = emulator::current / 32 % 4, lane = emulator::current % 32;
    for (int i = 0; i < 4; ++i) {
        mine[i] = 0;
        for (int k = 0; k < 2; ++k) {
            u32 at = a.offset + (2 * warp + i % 2) * a.columns + i / 2 * a.rows + (2 * (lane % 4) + k) * 16 + lane / 4 * 2;
            mine[i] |= (ld_shared(at & ~3u) >> (at & 2 ? 16 : 0) & 0xffff) << 16 * k;
        }
    }
    wgmma_rs(d, mine, b);
}
template <int N> DEVICE void wgmma_ss(float (&d)[N][4], Operand a, Operand b) {
    u32 mine[4];
    const int warp = emulator::current / 32 % 4, lane = emulator::current % 32;
    for (int i = 0; i < 4; ++i)
        mine[i] = ld_shared(a.offset + (2 * warp + i % 2) * a.columns + i / 2 * a.rows + lane * 4);
    wgmma_rs(d, mine, b);
}
template <int N> DEVICE void wgmma_ss_zero(float (&d)[N][4], Operand a, Operand b) {
    memset(d, 0, sizeof(d));
    wgmma_ss(d, a, b);
}
DEVICE float ex2_approx(float x) { return std::exp2(x); }
DEVICE float rcp_approx(float x) { return 1 / x; }
DEVICE float tanh_approx(float x) { return std::tanh(x); }
DEVICE float rsqrt_approx(float x) { return 1 / std::sqrt(x); }
