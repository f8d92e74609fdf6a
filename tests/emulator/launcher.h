// The entry of a compiled kernel: copies the buffers beside pages that do not exist, runs every block, copies them back.
// Python appends `#define CALL(t, s) gdfn_sm80((const u16*)t[0], ..., s[0], ...)` from the launch.
#pragma once

namespace emulator {

inline std::vector<void*> buffers;
inline const int* sizes;

inline void body() {
    CALL(buffers, sizes);
    threads[current].done = true;
    yield();
}

inline void run_block(long shared_size) {
    shared.assign(shared_size, 0x7b);  // large numbers: what nobody wrote shows in the result
    bytes.assign(shared_size, Byte{});
    warps.assign(BLOCK_THREADS / 32, Warp{});
    block_epoch = block_arrived = 0;
    if (threads.empty()) threads.resize(BLOCK_THREADS);
    for (int i = 0; i < BLOCK_THREADS; ++i) {
        Thread& thread = threads[i];
        thread.done = false, thread.open.clear(), thread.groups.clear();
        begin(thread.fiber, body);
    }
    for (bool running = true; running && trouble.empty();) {
        running = false;
        long before = progress;
        int done = 0;
        // Other orders of warps find other races: start at a warp that changes.
        for (int k = 0; k < BLOCK_THREADS && trouble.empty(); ++k) {
            current = (k + 32 * (block_epoch % 3)) % BLOCK_THREADS;
            if (threads[current].done) { ++done; continue; }
            running = true;
            change(scheduler, threads[current].fiber);
        }
        int ended = 0;
        for (const Thread& thread : threads) ended += thread.done;
        if (running && before == progress && ended == done) fail("threads wait for one another for ever");
    }
}

}  // namespace emulator

extern "C" __attribute__((visibility("default"))) const char* emulate(void** tensors, const long* lengths, int count, const int* sizes, const int* grid, long shared) {
    using namespace emulator;
    long page = sysconf(_SC_PAGESIZE);
    std::vector<std::pair<void*, long>> maps;
    emulator::sizes = sizes;
    buffers.clear();
    trouble.clear();
    for (int i = 0; i < count; ++i) {
        long whole = (lengths[i] + page - 1) / page * page;
        char* memory = (char*)mmap(nullptr, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        mprotect(memory + whole, page, PROT_NONE);
        maps.push_back({memory, whole + page});
        buffers.push_back(memory + whole - lengths[i]);
        memcpy(buffers[i], tensors[i], lengths[i]);
    }
    for (int i = 0; i < 3; ++i) emulator::grid[i] = grid[i];
    for (blocks[2] = 0; blocks[2] < grid[2]; ++blocks[2])
        for (blocks[1] = 0; blocks[1] < grid[1]; ++blocks[1])
            for (blocks[0] = 0; blocks[0] < grid[0]; ++blocks[0])
                if (trouble.empty()) run_block(shared);
    for (int i = 0; i < count; ++i) {
        memcpy(tensors[i], buffers[i], lengths[i]);
        munmap(maps[i].first, maps[i].second);
    }
    static std::string result;
    result = trouble;
    return result.c_str();
}
