// The last 3x3 convolution, to the resulting image, for Hopper: float32 planes, the image added. Order of the weights: sm90.py.
//
// It has at most three results a pixel, so that products tap by tap would read the tile nine times from shared memory for
// little. Instead all nine taps of all results are the columns of one product over the tile's pixels, and each result is the sum
// of nine numbers of the pixels around it.
//   1. A tile of 16 x TALL pixels with one pixel around it comes to shared memory, zeros outside of the picture: 8 channels of
//      all pixels lie together, 16 bytes a pixel. Pixels are numbered along the rows of the tile; those beyond its last that
//      fill up a product are whatever lies there, and go nowhere.
//   2. The products of groups of four warps (wgmma), each with PARTS times 64 pixels. They go to shared memory in place of the
//      tile, a plane for each tap and result.
//   3. A thread adds up a pixel at a time.

constexpr int THREADS = 32 * WARPS;
constexpr int GROUPS = WARPS / 4;
constexpr int ACROSS = 18;
constexpr int PIXELS = ACROSS * (TALL + 2);
constexpr int PARTS = (PIXELS + 64 * GROUPS - 1) / (64 * GROUPS);
constexpr int TILES = 4;                            // of 8 columns
constexpr int UNITS = C / 8;                        // of 8 channels
constexpr int X_UNIT = PIXELS * 16 + 16;            // bytes from 8 channels of all pixels to the next 8
constexpr int WEIGHTS_AT = (UNITS * X_UNIT + 127) / 128 * 128;
constexpr int W_BYTES = C * TILES * 16;
constexpr int BEYOND = ((UNITS - 1) * X_UNIT + PARTS * GROUPS * 1024 + 127) / 128 * 128;  // what products read
constexpr int PLANE = (PIXELS + 27) / 32 * 32 + 4;  // numbers; 4 more than a multiple of 32: a warp's writes in 32 banks
constexpr int OUT_BYTES = 9 * ROWS * PLANE * 4;
constexpr int IN_BYTES = WEIGHTS_AT + W_BYTES > BEYOND ? WEIGHTS_AT + W_BYTES : BEYOND;
constexpr int OWN = (16 * TALL + THREADS - 1) / THREADS;
static_assert(9 * ROWS <= 8 * TILES && C % 16 == 0 && WARPS % 4 == 0 && PLANE >= PIXELS, "columns and steps");
static_assert((IN_BYTES > OUT_BYTES ? IN_BYTES : OUT_BYTES) == SHARED, "shared_bytes of the Python module is this number");

KERNEL(THREADS, BLOCKS)
conv3x3_last_sm90(const u16* x, const int* blob, const float* bias, const float* extra, float* y, int h, int w) {
    const int lane = thread_idx() & 31, warp = thread_idx() >> 5, g = lane >> 2, j = lane & 3;
    const int group = warp_uniform(warp / 4);
    const int left = block_idx(0) * 16, top = block_idx(1) * TALL, n = block_idx(2);
    griddepcontrol_launch_dependents();
    for (int i = thread_idx() * 16; i < W_BYTES; i += THREADS * 16) cp_async_16(WEIGHTS_AT + i, (const char*)blob + i, true);
    griddepcontrol_wait();
    {
        constexpr int LINES = THREADS / UNITS;
        const int unit = thread_idx() % UNITS, line = thread_idx() / UNITS;
        const u16* from = x + (u64)n * h * w * C + unit * 8;
        if (line < LINES)
#pragma unroll 4
            for (int p = line; p < PIXELS; p += LINES) {
                const int row = top - 1 + p / ACROSS, column = left - 1 + p % ACROSS;
                const bool there = row >= 0 && row < h && column >= 0 && column < w;
                cp_async_16(unit * X_UNIT + p * 16, from + (there ? (u64)(row * w + column) * C : 0), there);
            }
    }
    cp_async_commit_group();
    const u64 plane = (u64)h * w, mine = n * ROWS * plane;
    float own[OWN][ROWS];  // the bias and the image, asked for before they are needed
#pragma unroll
    for (int k = 0; k < OWN; ++k) {
        const int pixel = k * THREADS + thread_idx(), row = top + pixel / 16, column = left + pixel % 16;
#pragma unroll
        for (int o = 0; o < ROWS; ++o) {
            own[k][o] = bias[o];
            if (EXTRA && pixel < 16 * TALL && row < h && column < w) own[k][o] += extra[mine + o * plane + row * w + column];
        }
    }
    cp_async_wait_group<0>();
    fence_proxy_async();
    syncthreads();

    float sum[PARTS][TILES][4];
    const auto b = matrix_descriptor(WEIGHTS_AT, TILES * 128, 128);
#pragma unroll
    for (int m = 0; m < PARTS; ++m) warpgroup_fence_operand(sum[m]);
    warpgroup_arrive();
#pragma unroll
    for (int m = 0; m < PARTS; ++m) {
        const auto a = matrix_descriptor((group * PARTS + m) * 1024, X_UNIT, 128);
        wgmma_ss_zero(sum[m], a, b);
#pragma unroll
        for (int s = 1; s < C / 16; ++s)
            wgmma_ss(sum[m], advance_descriptor(a, 2 * s * X_UNIT), advance_descriptor(b, 2 * s * TILES * 128));
    }
    warpgroup_commit_batch();
    warpgroup_wait<0>();
#pragma unroll
    for (int m = 0; m < PARTS; ++m) warpgroup_fence_operand(sum[m]);
    syncthreads();
#pragma unroll
    for (int m = 0; m < PARTS; ++m)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int pixel = (group * PARTS + m) * 64 + warp % 4 * 16 + r * 8 + g;
#pragma unroll
            for (int t = 0; t < TILES; ++t)
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const int column = t * 8 + 2 * j + e;
                    if (pixel < PIXELS && column < 9 * ROWS) st_shared_f32((column * PLANE + pixel) * 4, sum[m][t][2 * r + e]);
                }
        }
    syncthreads();
#pragma unroll
    for (int k = 0; k < OWN; ++k) {
        const int pixel = k * THREADS + thread_idx(), row = top + pixel / 16, column = left + pixel % 16;
        if (pixel >= 16 * TALL || row >= h || column >= w) continue;
        const u32 from = (pixel / 16 * ACROSS + pixel % 16) * 4;
#pragma unroll
        for (int o = 0; o < ROWS; ++o) {
            float result = own[k][o];
#pragma unroll
            for (int tap = 0; tap < 9; ++tap)
                result += ld_shared_f32(from + ((tap * ROWS + o) * PLANE + tap / 3 * ACROSS + tap % 3) * 4);
            y[mine + o * plane + row * w + column] = result;
        }
    }
}
