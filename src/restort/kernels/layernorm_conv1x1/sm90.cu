// Layer normalisation and the 1x1 expansion after it for Hopper. Formula: reference.py; order of the weights: sm90.py.
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
// Groups take turns: a group begins its products when the other has begun all of its own, so that one multiplies while the
// other stores.
//
// Races: a part of the ring is read by products alone, which every warp waits for before it frees the part; the feeder asks
// for it again when all warps have freed it. So nobody is further than one filling ahead of another, and the parity of a
// filling is enough to know it by. Every part that is asked for is waited for: no copy is under way when a block ends.
//
// Channels are permuted within 32, and so are columns (sm90.py): a thread has eight that lie together.

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
static_assert(BARRIERS_AT + 256 == SHARED && 2 * SLOTS < 32, "shared_bytes of the Python module is this number");

struct Place { int lane, g, j, warp, group; };

#ifdef EMULATE
DEVICE void rings_begin() {}
DEVICE void rings_wait() {}
DEVICE void feed(const u16* w, const float* affine, int first, int last) {
    const bool leader = thread_idx() == 128 * GROUPS;
    for (int k = 0; k < 8 * M; k += 16)
        if (leader) cp_async_16(AFFINE_AT + k, (const char*)affine + k, true);
    for (int item = first; item < last; ++item) {
        const u32 to = (item - first) % DEPTH * PARTS * PART_BYTES;
        for (int k = 0; k < PARTS * PART_BYTES; k += 16)
            if (leader) cp_async_16(to + k, (const char*)w + item % ACROSS * PARTS * PART_BYTES + k, true);
        cp_async_commit_group();
        cp_async_wait_group<0>();
        for (int part = 0; part < 2 * PARTS; ++part) syncthreads();
    }
}
DEVICE void affine_wait() {}
DEVICE void part_wait(int) { syncthreads(); }
DEVICE void part_free(int, const Place&) { syncthreads(); }
DEVICE void turn_wait(int) {}
DEVICE void turn_pass(int) {}
DEVICE void setmaxnreg_dec() {}
DEVICE void setmaxnreg_inc() {}
#else
// Of the n-th part that a block takes.
DEVICE u32 there(int n) { return BARRIERS_AT + n % SLOTS * 8; }
DEVICE u32 freed(int n) { return BARRIERS_AT + (SLOTS + n % SLOTS) * 8; }
constexpr u32 AFFINE_THERE = BARRIERS_AT + 2 * SLOTS * 8;
// By the feeder, and by the others, who may load pixels meanwhile.
DEVICE void rings_begin() {
    if (thread_idx() == 128 * GROUPS) {
#pragma unroll
        for (int n = 0; n < SLOTS; ++n) {
            mbarrier_init(there(n), 1);
            mbarrier_init(freed(n), 4 * GROUPS);
        }
        mbarrier_init(AFFINE_THERE, 1);
        fence_mbarrier_init();
    }
    __syncwarp();
    syncthreads();
}
DEVICE void rings_wait() { syncthreads(); }
DEVICE void feed(const u16* w, const float* affine, int first, int last) {
    if (thread_idx() == 128 * GROUPS) {
        int n = 0;
#pragma unroll 1
        for (int item = first; item < last; ++item) {
            const char* from = (const char*)w + (u64)(item % ACROSS) * (PARTS * PART_BYTES);
#pragma unroll 1
            for (int part = 0; part < PARTS; ++part, ++n) {
                if (n >= SLOTS) mbarrier_wait_parity(freed(n), n / SLOTS - 1 & 1);
                mbarrier_arrive_expect_tx(there(n), PART_BYTES);
                cp_async_bulk(n % SLOTS * PART_BYTES, from + part * PART_BYTES, PART_BYTES, there(n));
            }
            if (item == first) {
                mbarrier_arrive_expect_tx(AFFINE_THERE, 8 * M);
                cp_async_bulk(AFFINE_AT, affine, 8 * M, AFFINE_THERE);
            }
        }
    }
    __syncwarp();
}
DEVICE void affine_wait() { mbarrier_wait_parity(AFFINE_THERE, 0); }
DEVICE void part_wait(int n) { mbarrier_wait_parity(there(n), n / SLOTS & 1); }
DEVICE void part_free(int n, const Place& at) {
    __syncwarp();
    if (at.lane == 0) mbarrier_arrive(freed(n));
    __syncwarp();
}
// Barrier 1 + group: all of the group wait, all of the other arrive.
DEVICE void turn_wait(int group) { asm volatile("bar.sync %0, 256;" :: "r"(1 + group) : "memory"); }
DEVICE void turn_pass(int group) { asm volatile("bar.arrive %0, 256;" :: "r"(1 + (group + 1) % GROUPS) : "memory"); }
// For the whole group; a kernel begins with the same number for all threads.
DEVICE void setmaxnreg_dec() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(REGISTERS_FED)); }
DEVICE void setmaxnreg_inc() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(REGISTERS)); }
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
    for (int s = 0; s < STEPS; ++s) mma_m16n8k16(total[s % 4], a[s], ones, ones);
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
        sum += shfl_xor(sum, 1);
        sum += shfl_xor(sum, 2);
        normal.scale[r] = rsqrt_approx(sum * (1.0f / C) + 1e-5f);
    }
    return normal;
}

// Of the item whose first part is the n-th: parts are waited for one by one.
DEVICE void products(float (&d)[TILES][4], const u32 (&a)[STEPS][4], int n) {
    const auto b = matrix_descriptor(n % SLOTS * PART_BYTES, COLUMNS * 16, 128);
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
        if (part > 0) part_wait(n + part);
#pragma unroll
        for (int step = 0; step < PART_STEPS; ++step) {
            const int s = part * PART_STEPS + step;
            if (s == 0) wgmma_rs_zero(d, a[s], b);
            else wgmma_rs(d, a[s], advance_descriptor(b, s * STEP_BYTES));
        }
        warpgroup_commit_batch();
    }
}
// Frees the last LEFT + 1 parts of these as their products end.
template <int LEFT> DEVICE void finish(int n, const Place& at) {
    warpgroup_wait<LEFT>();
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
            const Vec4 one = ld_shared_v4(from + half * 16), other = ld_shared_v4(from + half * 16 + 4 * M);
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
layernorm_conv1x1_sm90(const u16* x, const u16* w, const float* affine, u16* y, int pixels) {
    Place at;
    at.lane = thread_idx() & 31, at.warp = warp_uniform(thread_idx() >> 5);
    at.g = at.lane >> 2, at.j = at.lane & 3, at.group = at.warp / 4;
    const int items = (pixels + PIXELS - 1) / PIXELS * ACROSS, block = block_idx(0);
    const int each = items / grid_dim_x(), more = items % grid_dim_x();
    const int first = block * each + (block < more ? block : more), last = first + each + (block < more);
    griddepcontrol_launch_dependents();
    if (at.group == GROUPS) {
        setmaxnreg_dec();
        rings_begin();
        feed(w, affine, first, last);
    } else {
        setmaxnreg_inc();
        u32 a[STEPS][4];
        float d[TILES][4];
        Normal normal;
        i64 pixel[2];
        griddepcontrol_wait();
        place(pixel, at, first / ACROSS);
        load_pixels(a, pixel, at, x, pixels);
        rings_wait();
#pragma unroll 1
        for (int item = first; item < last; ++item) {
            const int across = item % ACROSS, n = (item - first) * PARTS;
            if (across == 0 && item > first) {
                place(pixel, at, item / ACROSS);
                load_pixels(a, pixel, at, x, pixels);
            }
            if (across == 0 || item == first) normal = statistics(a);
            if (at.group > 0 || item > first) turn_wait(at.group);
            part_wait(n);
            warpgroup_fence_operand(d);
            warpgroup_fence_operand(a);
            warpgroup_arrive();
            products(d, a, n);
            if (at.group < GROUPS - 1 || item < last - 1) turn_pass(at.group);
            finish<PARTS - 1>(n, at);
            warpgroup_fence_operand(d);
            if (item == first) affine_wait();
            store_item(d, normal, pixel, across * COLUMNS, at, y, pixels);
        }
    }
}
