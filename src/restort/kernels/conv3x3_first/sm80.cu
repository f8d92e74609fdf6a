// The first 3x3 convolution: from the float32 image to channels-last, in 16-bit products. Order of the weights: sm80.py.
//
// The image and the weights are each the sum of two 16-bit numbers, what is rounded and what that leaves, and of the four
// products all but that of the two remainders are made: as good as float32, rounded once at the end, in 16-bit matrix units.
//
// A block has 32 x 2 WARPS pixels, whose image with one pixel around lies in shared memory. A warp has two rows of 32, 16
// pixels at a time: a thread gathers its part of the left operand, the numbers (channel, dy, dx) around a pixel, and keeps the
// weights in registers. Columns of results are permuted (channel_order of fragments.py) so that a thread has neighbouring channels to store.

constexpr int THREADS = 32 * WARPS;
constexpr int TALL = 2 * WARPS;
constexpr int PITCH = 40;                           // numbers of a row of the tile: its neighbours' banks are 8 on
constexpr int ACROSS = 34;
constexpr int LINES = CIN * (TALL + 2);
constexpr int STEPS = (9 * CIN + 15) / 16;
constexpr int TILES = C / 8;
constexpr int FULL = TILES / 4, REMAIN = TILES % 4;
static_assert(C % 8 == 0 && LINES * PITCH * 4 == SHARED, "shared_bytes of the Python module is this number");

KERNEL(THREADS, BLOCKS)
conv3x3_first_sm80(const float* image, const int* blob, u16* y, int h, int w) {
    const int lane = thread_idx() & 31, warp = thread_idx() >> 5, g = lane >> 2, j = lane & 3;
    const int left = block_idx(0) * 32, top = block_idx(1) * TALL, n = block_idx(2);
    griddepcontrol_launch_dependents();
    Vec4 b[STEPS][TILES];  // of a step's rows 2j, 2j + 1 and those 8 on: what is rounded, then what is left
#pragma unroll
    for (int s = 0; s < STEPS; ++s)
#pragma unroll
        for (int t = 0; t < TILES; ++t) b[s][t] = ((const Vec4*)blob)[(s * TILES + t) * 32 + lane];
    u32 from[STEPS][4];    // where a thread's numbers of the left operand lie, from the pixel above to the left on
    bool used[STEPS][4];
#pragma unroll
    for (int s = 0; s < STEPS; ++s)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const int k = s * 16 + e / 2 * 8 + 2 * j + e % 2;
            used[s][e] = k < 9 * CIN;
            from[s][e] = used[s][e] ? (k / 9 * (TALL + 2) * PITCH + k % 9 / 3 * PITCH + k % 3) * 4 : 0;
        }
    griddepcontrol_wait();
    const float* mine = image + (u64)n * CIN * h * w;
#pragma unroll 4
    for (int i = thread_idx(); i < LINES * ACROSS; i += THREADS) {
        const int line = i / ACROSS, column = left - 1 + i % ACROSS;
        const int row = top - 1 + line % (TALL + 2);
        const bool there = row >= 0 && row < h && column >= 0 && column < w;
        const float value = there ? mine[((u64)(line / (TALL + 2)) * h + row) * w + column] : 0.0f;
        st_shared_f32((line * PITCH + i % ACROSS) * 4, value);
    }
    syncthreads();
#pragma unroll 1
    for (int m = 0; m < 4; ++m) {
        const int row = 2 * warp + m / 2, column = m % 2 * 16 + g;
        const u32 pixel = (row * PITCH + column) * 4;
        float sum[TILES][4];
#pragma unroll
        for (int t = 0; t < TILES; ++t) sum[t][0] = sum[t][1] = sum[t][2] = sum[t][3] = 0;
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            u32 a[4], rest[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {  // i: 8 pixels on (odd), 8 numbers on (2 and 3)
                float value[2];
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const float found = ld_shared_f32(pixel + i % 2 * 32 + from[s][i / 2 * 2 + e]);
                    value[e] = used[s][i / 2 * 2 + e] ? found : 0.0f;
                }
                a[i] = pack(value[0], value[1]);
                rest[i] = pack(value[0] - low(a[i]), value[1] - high(a[i]));
            }
#pragma unroll
            for (int t = 0; t < TILES; ++t) {
                mma_m16n8k16(sum[t], rest, b[s][t].x, b[s][t].y);
                mma_m16n8k16(sum[t], a, b[s][t].z, b[s][t].w);
                mma_m16n8k16(sum[t], a, b[s][t].x, b[s][t].y);
            }
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int down = top + row, across = left + column + 8 * r;
            if (down >= h || across >= w) continue;
            u16* to = y + (((u64)n * h + down) * w + across) * C;
            u32 pair[TILES];
#pragma unroll
            for (int t = 0; t < TILES; ++t) pair[t] = pack(sum[t][2 * r], sum[t][2 * r + 1]);
#pragma unroll
            for (int part = 0; part < FULL; ++part)
                *(Vec4*)(to + part * 32 + j * 8) = Vec4{pair[4 * part], pair[4 * part + 1], pair[4 * part + 2], pair[4 * part + 3]};
            to += FULL * 32 + 2 * REMAIN * j;
            if constexpr (REMAIN == 2) *(Vec2*)to = Vec2{pair[4 * FULL], pair[4 * FULL + 1]};
            else
#pragma unroll
                for (int t = 0; t < REMAIN; ++t) *(u32*)(to + 2 * t) = pair[4 * FULL + t];
        }
    }
}
