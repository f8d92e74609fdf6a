// Layer normalisation and the 1x1 expansion after it for Hopper; reference.py says what it computes, wide.py packs the weights.
//
// All products are those of four warps (a group, wgmma). A group has 64 pixels, a warp 16 of them, whose raw channels stay in
// registers as the left operand while columns of w pass by; the normalisation is applied to the products. A block has two of
// these and four more warps, the feeder, of which one thread asks for weights; they give their registers to the others.
//
// An item of work is COLUMNS columns for a block's 128 pixels. Items are numbered column first, and every block gets as many
// neighbouring ones as any other, or one more: pixels are loaded at its first item and where column 0 comes. The weights of an
// item are one piece of memory, of a ring of DEPTH items, in PARTS parts (of channels): a part is the unit that is asked for,
// waited for and freed.
//
// Groups take turns (TURNS): a group begins its products when the other has begun all of its own, so that one multiplies
// while the other stores. Otherwise both would do the same at the same time.
//
// Races: a part of the ring is read by products alone, which every warp waits for before it frees the part; the feeder asks
// for it again when all warps have freed it. So nobody is further than one filling ahead of another, and the parity of a
// filling is enough to know it by. Every part that is asked for is waited for: no copy is under way when a block ends.
//
// Channels are permuted within 32, and so are columns (wide.py): a thread has eight that lie together.

constexpr int THREADS = 32 * WARPS;
constexpr int GROUPS = 2;
constexpr int REGISTERS_FED = 24, REGISTERS = 240;  // of the feeder's threads and the others'; all begin with 168
constexpr int PIXELS = 64 * GROUPS;                 // of a block
constexpr int STEPS = C / 16;
constexpr int TILES = COLUMNS / 8;
constexpr int ACROSS = M / COLUMNS;                 // items of the same pixels
constexpr int SLOTS = DEPTH * PARTS;
constexpr int PART_STEPS = STEPS / PARTS;
constexpr int STEP_BYTES = 16 * COLUMNS * 2;        // of 16 channels
constexpr int PART_BYTES = PART_STEPS * STEP_BYTES;
constexpr int AFFINE_AT = SLOTS * PART_BYTES;
constexpr int BARRIERS_AT = AFFINE_AT + 8 * M;
static_assert(WARPS == 4 * GROUPS + 4 && BLOCKS == 1, "groups and the feeder, and registers for one block");
static_assert(C % 32 == 0 && STEPS % PARTS == 0 && COLUMNS % 32 == 0 && M % COLUMNS == 0, "whole parts");
static_assert(PART_BYTES % 128 == 0 && 8 * M % 16 == 0, "pieces of 16 bytes");
#ifdef SHARED
static_assert(BARRIERS_AT + 256 == SHARED && 2 * SLOTS < 32, "the binding computes the same number of bytes");
#endif

struct Place { int lane, g, j, warp, group; };

#ifdef EMULATE
DEVICE void rings_begin() {}
DEVICE void rings_await() {}
DEVICE void feed(const u16* w, const float* affine, int first, int last) {
    const bool leader = thread_index() == 128 * GROUPS;
    for (int k = 0; k < 8 * M; k += 16)
        if (leader) copy16(AFFINE_AT + k, (const char*)affine + k, true);
    for (int item = first; item < last; ++item) {
        const u32 to = (item - first) % DEPTH * PARTS * PART_BYTES;
        for (int k = 0; k < PARTS * PART_BYTES; k += 16)
            if (leader) copy16(to + k, (const char*)w + item % ACROSS * PARTS * PART_BYTES + k, true);
        commit_copies();
        wait_copies<0>();
        for (int part = 0; part < 2 * PARTS; ++part) block_barrier();
    }
}
DEVICE void affine_await() {}
DEVICE void part_await(int) { block_barrier(); }
DEVICE void part_free(int, const Place&) { block_barrier(); }
DEVICE void turn_await(int) {}
DEVICE void turn_pass(int) {}
DEVICE void operand_touch(u32 (&)[STEPS][4]) {}
DEVICE void give_registers() {}
DEVICE void take_registers() {}
#else
// Of the n-th part that a block takes.
DEVICE u32 there(int n) { return BARRIERS_AT + n % SLOTS * 8; }
DEVICE u32 freed(int n) { return BARRIERS_AT + (SLOTS + n % SLOTS) * 8; }
constexpr u32 AFFINE_THERE = BARRIERS_AT + 2 * SLOTS * 8;
// By the feeder, and by the others, who may load pixels meanwhile.
DEVICE void rings_begin() {
    if (thread_index() == 128 * GROUPS) {
#pragma unroll
        for (int n = 0; n < SLOTS; ++n) {
            barrier_begin(there(n), 1);
            barrier_begin(freed(n), 4 * GROUPS);
        }
        barrier_begin(AFFINE_THERE, 1);
        barriers_begun();
    }
    __syncwarp();
    block_barrier();
}
DEVICE void rings_await() { block_barrier(); }
DEVICE void feed(const u16* w, const float* affine, int first, int last) {
    if (thread_index() == 128 * GROUPS) {
        int n = 0;
#pragma unroll 1
        for (int item = first; item < last; ++item) {
            const char* from = (const char*)w + (u64)(item % ACROSS) * (PARTS * PART_BYTES);
#pragma unroll 1
            for (int part = 0; part < PARTS; ++part, ++n) {
                if (n >= SLOTS) barrier_await(freed(n), n / SLOTS - 1 & 1);
                barrier_expect(there(n), PART_BYTES);
                bulk_copy(n % SLOTS * PART_BYTES, from + part * PART_BYTES, PART_BYTES, there(n));
            }
            if (item == first) {
                barrier_expect(AFFINE_THERE, 8 * M);
                bulk_copy(AFFINE_AT, affine, 8 * M, AFFINE_THERE);
            }
        }
    }
    __syncwarp();
}
DEVICE void affine_await() { barrier_await(AFFINE_THERE, 0); }
DEVICE void part_await(int n) { barrier_await(there(n), n / SLOTS & 1); }
DEVICE void part_free(int n, const Place& at) {
    __syncwarp();
    if (at.lane == 0) barrier_arrive(freed(n));
    __syncwarp();
}
// Barrier 1 + group: all of the group wait, all of the other arrive.
DEVICE void turn_await(int group) { asm volatile("bar.sync %0, 256;" :: "r"(1 + group) : "memory"); }
DEVICE void turn_pass(int group) { asm volatile("bar.arrive %0, 256;" :: "r"(1 + (group + 1) % GROUPS) : "memory"); }
// The left operand, before products with it are begun: the compiler is not to make it among those.
DEVICE void operand_touch(u32 (&a)[STEPS][4]) {
#pragma unroll
    for (int s = 0; s < STEPS; ++s) asm volatile("" : "+r"(a[s][0]), "+r"(a[s][1]), "+r"(a[s][2]), "+r"(a[s][3]) :: "memory");
}
// For the whole group; a kernel begins with the same number for all threads.
DEVICE void give_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(REGISTERS_FED)); }
DEVICE void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(REGISTERS)); }
#endif

// The raw channels of this thread's two pixels (those beyond the last one: the last one's).
DEVICE void load_pixels(u32 (&a)[STEPS][4], const i64 (&pixel)[2], const Place& at, const u16* x, int pixels) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const u16* from = x + (pixel[r] < pixels ? pixel[r] : pixels - 1) * C + at.j * 8;
#pragma unroll
        for (int s = 0; s < STEPS; s += 2) {
            const Vec4 four = *(const Vec4*)(from + s * 16);
            a[s][r] = four.x, a[s][2 + r] = four.y, a[s + 1][r] = four.z, a[s + 1][2 + r] = four.w;
        }
    }
}

struct Normal { float mean[2], scale[2]; };

// Mean by products with ones, which are exact but for float32 sums; then the deviations from it.
DEVICE Normal statistics(const u32 (&a)[STEPS][4]) {
    Normal normal;
    const u32 ones = pack(1.0f, 1.0f);
    float total[4][4] = {};
#pragma unroll
    for (int s = 0; s < STEPS; ++s) multiply(total[s % 4], a[s], ones, ones);
    float square[2][2] = {};
#pragma unroll
    for (int r = 0; r < 2; ++r)
        normal.mean[r] = (total[0][2 * r] + total[1][2 * r] + (total[2][2 * r] + total[3][2 * r])) * (1.0f / C);
#pragma unroll
    for (int s = 0; s < STEPS; ++s)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float first = low(a[s][i]) - normal.mean[i % 2], second = high(a[s][i]) - normal.mean[i % 2];
            square[i % 2][i / 2] += first * first;
            square[i % 2][i / 2] += second * second;
        }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float sum = square[r][0] + square[r][1];
        sum += shuffle_xor(sum, 1);
        sum += shuffle_xor(sum, 2);
        normal.scale[r] = rsqrt_fast(sum * (1.0f / C) + 1e-5f);
    }
    return normal;
}

// Of the item whose first part is the n-th: parts are waited for one by one.
DEVICE void products(float (&d)[TILES][4], const u32 (&a)[STEPS][4], int n) {
    const auto b = group_operand(n % SLOTS * PART_BYTES, COLUMNS * 16, 128);
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
        if (part > 0) part_await(n + part);
#pragma unroll
        for (int step = 0; step < PART_STEPS; ++step) {
            const int s = part * PART_STEPS + step;
            if (s == 0) group_product(d, a[s], b);
            else group_multiply(d, a[s], group_operand_at(b, s * STEP_BYTES));
        }
        group_commit();
    }
}
// Frees the last LEFT + 1 parts of these as their products end.
template <int LEFT> DEVICE void finish(int n, const Place& at) {
    group_wait<LEFT>();
    part_free(n + PARTS - 1 - LEFT, at);
    if constexpr (LEFT > 0) finish<LEFT - 1>(n, at);
}

DEVICE void store_item(const float (&d)[TILES][4], const Normal& normal, const i64 (&pixel)[2], int column, const Place& at,
                       u16* y, int pixels) {
    column += at.j * 8;
#pragma unroll
    for (int part = 0; part < COLUMNS / 32; ++part) {
        const u32 from = AFFINE_AT + (column + part * 32) * 4;
        float sums[8], shift[8];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const Vec4 one = load_shared4(from + half * 16), other = load_shared4(from + half * 16 + 4 * M);
            sums[4 * half] = as_float(one.x), sums[4 * half + 1] = as_float(one.y);
            sums[4 * half + 2] = as_float(one.z), sums[4 * half + 3] = as_float(one.w);
            shift[4 * half] = as_float(other.x), shift[4 * half + 1] = as_float(other.y);
            shift[4 * half + 2] = as_float(other.z), shift[4 * half + 3] = as_float(other.w);
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            u32 pairs[4];
#pragma unroll
            for (int t = 0; t < 4; ++t) {
                float two[2];
#pragma unroll
                for (int e = 0; e < 2; ++e)
                    two[e] = normal.scale[r] * (d[4 * part + t][2 * r + e] - normal.mean[r] * sums[2 * t + e]) + shift[2 * t + e];
                pairs[t] = pack(two[0], two[1]);
            }
            if (pixel[r] < pixels) *(Vec4*)(y + pixel[r] * M + column + part * 32) = Vec4{pairs[0], pairs[1], pairs[2], pairs[3]};
        }
    }
}

// This thread's pixels in tile `tile`.
DEVICE void place(i64 (&pixel)[2], const Place& at, int tile) {
    pixel[0] = (i64)tile * PIXELS + at.warp * 16 + at.g;
    pixel[1] = pixel[0] + 8;
}

KERNEL(THREADS, BLOCKS)
norm_expand_wide(const u16* x, const u16* w, const float* affine, u16* y, int pixels) {
    Place at;
    at.lane = thread_index() & 31, at.warp = uniform(thread_index() >> 5);
    at.g = at.lane >> 2, at.j = at.lane & 3, at.group = at.warp / 4;
    const int items = (pixels + PIXELS - 1) / PIXELS * ACROSS, block = block_index(0);
    const int each = items / block_count(), more = items % block_count();
    const int first = block * each + (block < more ? block : more), last = first + each + (block < more);
    start_successor();
    if (at.group == GROUPS) {
        give_registers();
        rings_begin();
        feed(w, affine, first, last);
    } else {
        take_registers();
        u32 a[STEPS][4];
        float d[TILES][4];
        Normal normal;
        i64 pixel[2];
        await_predecessor();
        place(pixel, at, first / ACROSS);
        load_pixels(a, pixel, at, x, pixels);
        rings_await();
#pragma unroll 1
        for (int item = first; item < last; ++item) {
            const int across = item % ACROSS, n = (item - first) * PARTS;
            if (across == 0 && item > first) {
                place(pixel, at, item / ACROSS);
                load_pixels(a, pixel, at, x, pixels);
            }
            if (across == 0 || item == first) normal = statistics(a);
            if (TURNS && (at.group > 0 || item > first)) turn_await(at.group);
            part_await(n);
            group_touch(d);
            operand_touch(a);
            group_begin();
            products(d, a, n);
            if (TURNS && (at.group < GROUPS - 1 || item < last - 1)) turn_pass(at.group);
            finish<PARTS - 1>(n, at);
            group_touch(d);
            if (item == first) affine_await();
            store_item(d, normal, pixel, across * COLUMNS, at, y, pixels);
        }
    }
}
