// The last convolution and the shuffle of its channels into pixels, for a tile of 16 x 2 WARPS pixels. Formula: reference.py; order
// of the weights: sm80.py.
//
// The tile with one pixel around it lies in shared memory; a warp has two rows of 16 pixels and adds the nine taps' products,
// whose weights come as `blob` (sm80.py), whole (STAGES = 0) or through a ring of STAGES taps: a tap is filled again after the
// barrier that follows its last use, and read after each thread has waited for its copies and passed a barrier.
// Columns are permuted so that a thread has SCALE neighbouring numbers of a row of the picture.

constexpr int THREADS = 32 * WARPS;
constexpr int TALL = 2 * WARPS;
constexpr int ACROSS = 18;
constexpr int PIXELS = ACROSS * (TALL + 2);
constexpr int STEPS = (C + 31) / 32 * 2;            // of 16 channels
constexpr int PADDED_C = (C + 63) / 64 * 64;            // channels of a pixel in memory
constexpr int ROW = STEPS * 32 + 16;                // bytes of a pixel: an odd number of 16
constexpr int MADE = COLORS * SCALE * SCALE;
constexpr int TILES = (MADE + 15) / 16 * 2;         // of 8 numbers
constexpr int TAP = STEPS * TILES * 256;
constexpr int WEIGHTS_AT = (PIXELS * ROW + 127) / 128 * 128;
static_assert(SCALE == 2 || SCALE == 4, "a thread stores whole groups of SCALE numbers");
static_assert(WEIGHTS_AT + (STAGES ? STAGES : 9) * TAP == SHARED, "shared_bytes of the Python module is this number");
static_assert(STAGES != 1, "a ring");

struct alignas(16) Four { float x, y, z, w; };
struct alignas(8) Two { float x, y; };

DEVICE u32 tap_at(int tap) { return WEIGHTS_AT + (STAGES ? tap % (STAGES ? STAGES : 1) : tap) * TAP; }
DEVICE void fetch(int first, int end, const int* blob) {  // taps
    const char* from = (const char*)blob + first * TAP;
    u32 to = tap_at(first);
    for (int i = thread_idx() * 16; i < (end - first) * TAP; i += THREADS * 16) cp_async_16(to + i, from + i, true);
}

KERNEL(THREADS, BLOCKS)
upsample_tail_sm80(const u16* x, const int* blob, float* out, int h, int w) {
    const int lane = thread_idx() & 31, warp = thread_idx() >> 5, g = lane >> 2, j = lane & 3;
    const int n = block_idx(2), top = block_idx(1) * TALL, left = block_idx(0) * 16, across = w + 4;
    griddepcontrol_launch_dependents();
    fetch(0, STAGES ? 1 : OVERLAP ? 9 : 1, blob);
    griddepcontrol_wait();
    {
        constexpr int UNITS = STEPS * 2, LINES = THREADS / UNITS;
        const int unit = thread_idx() % UNITS, line = thread_idx() / UNITS;
        const u16* from = x + ((u64)(n * (h + 4) + top + 1) * across + left + 1) * PADDED_C + unit * 8;
        if (line < LINES)
#pragma unroll 4
            for (int p = line; p < PIXELS; p += LINES)
                cp_async_16(unit * 16 + p * ROW, from + (p / ACROSS * across + p % ACROSS) * PADDED_C, true);
    }
    cp_async_commit_group();
    if (STAGES) {
#pragma unroll
        for (int tap = 1; tap < STAGES - 1; ++tap) {
            fetch(tap, tap + 1, blob);
            cp_async_commit_group();
        }
    } else {
        if (!OVERLAP) fetch(1, 9, blob);
        cp_async_commit_group();
    }

    float y[2][TILES][4];
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int t = 0; t < TILES; ++t) y[m][t][0] = y[m][t][1] = y[m][t][2] = y[m][t][3] = 0;
#pragma unroll 1
    for (int tap = 0; tap < 9; ++tap) {
        if (STAGES) {
            cp_async_wait_group<(STAGES > 2 ? STAGES - 2 : 0)>();
            syncthreads();
            if (tap + STAGES - 1 < 9) fetch(tap + STAGES - 1, tap + STAGES, blob);
            cp_async_commit_group();
        } else if (tap < 2) {
            if (tap == 0) cp_async_wait_group<1>();
            else cp_async_wait_group<0>();
            syncthreads();
        }
        const u32 weights = tap_at(tap) + lane * 16;
        const u32 from = ((2 * warp + tap / 3) * ACROSS + (lane & 15) + tap % 3) * ROW + (lane >> 4) * 16;
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            u32 a[2][4];
#pragma unroll
            for (int m = 0; m < 2; ++m) ldmatrix_x4(a[m], from + m * ACROSS * ROW + s * 32);
#pragma unroll
            for (int t = 0; t < TILES; t += 2) {
                Vec4 b = ld_shared_v4(weights + (s * TILES + t) * 256);
#pragma unroll
                for (int m = 0; m < 2; ++m) {
                    mma_m16n8k16(y[m][t], a[m], b.x, b.y);
                    mma_m16n8k16(y[m][t + 1], a[m], b.z, b.w);
                }
            }
        }
    }
    const float factor = as_float(((const u32*)blob)[9 * TAP / 4]);
    const float* bias = (const float*)blob + 9 * TAP / 4 + 4;
    constexpr int GROUPS = 4 / SCALE;               // of SCALE numbers that a thread has of two tiles
#pragma unroll
    for (int t = 0; t < TILES; t += 2) {
        float b[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) b[k] = bias[t * 8 + k / 2 * 8 + 2 * j + k % 2];
#pragma unroll
        for (int group = 0; group < GROUPS; ++group) {
            const int row = SCALE == 4 ? t / 2 * 4 + j : (t + group) * 4 + j;  // of COLORS * SCALE
            if (row >= COLORS * SCALE) continue;
#pragma unroll
            for (int m = 0; m < 2; ++m)
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    const u64 line = (u64)(n * COLORS + row / SCALE) * h + top + 2 * warp + m;
                    float* to = out + (line * SCALE + row % SCALE) * w * SCALE + (left + g + 8 * r) * SCALE;
                    float v[4];
#pragma unroll
                    for (int k = 0; k < SCALE; ++k) {
                        int number = group * SCALE + k;
                        v[k] = y[m][t + number / 2][2 * r + number % 2] * factor + b[number];
                    }
                    if constexpr (SCALE == 4) *(Four*)to = Four{v[0], v[1], v[2], v[3]};
                    else *(Two*)to = Two{v[0], v[1]};
                }
        }
    }
}
