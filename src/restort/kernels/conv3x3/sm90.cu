// 3x3 convolutions before a pixel-unshuffle (DOWN) and before a pixel-shuffle (UP) for Hopper. Formulas: reference.py; order of the
// weights: sm90.py.
//
// A block has 16 x TALL pixels and COLUMNS of the ROWS results of each. The products are those of four warps (a group, wgmma),
// which has PARTS squares of 8 x 8 pixels, two rows of a square to each warp.
//   1. The tile with one pixel around it comes to shared memory, CHUNK channels at a time, zeros outside of the picture: 8
//      channels of all pixels lie together, 16 bytes a pixel. Eight pixels of a row are a piece of the left operand, the next
//      eight are a row of the tile further on: so the left operand of a tap is the tile by another address.
//   2. Weights come in stages of TAPS taps of a chunk, through SLOTS slots. The next chunk's pixels come with the first stage
//      (DEFER 1: the second) of the chunk before, into the other of two places. Products are waited for at the end of their
//      stage, while another group or block multiplies; with DEFER 1 at the end of the next, whose own have begun by then.
//   3. Results go to shared memory once more, in the order in which they lie in the picture, and from there 16 bytes at a time.
//
// Races: a stage begins by four things: each thread waits for its own copies, publishes them, has waited for the products of
// all stages but the DEFER last, and all meet at a barrier; copies are asked for and products begun only after that. So, at
// stage i (the emulator, whose products are done at once, cannot show the first three):
//   - Products of stage i - 1 - DEFER and before are done, in all groups: warpgroup_wait<DEFER> of stage i - 1 left only those of
//     the DEFER last in flight, and the barrier comes after it in all threads.
//   - Weights of stage i + EARLY go to the slot of stage i + EARLY - SLOTS = i - 1 - DEFER, which is one of these. The others
//     in the ring are the DEFER before in flight, i itself and EARLY - 1 that are on their way: SLOTS with it.
//   - Pixels of chunk c + 1 go to the place of chunk c - 1, whose last products are of stage c TURNS - 1; they are asked for at
//     stage c TURNS + DEFER, where these are the last that are done. (DEFER < TURNS, so that this stage is one of chunk c's.)
//   - A stage commits one group of copies, if an empty one, and EARLY were before the first, so that of group g, the weights of
//     stage g, all but the EARLY - 1 youngest are waited for at stage i: 0 to i are there. Pixels of chunk c + 1 are in group
//     EARLY + c TURNS + DEFER, not later than (c + 1) TURNS, the stage that reads them first, as EARLY + DEFER <= TURNS.
//   - Results go over the ring and the pixels after warpgroup_wait<0> and another barrier. No copy is on its way then: the last
//     group that is not empty has weights of the last stage or is older.
//   - One slot is for one stage, which is never followed. In numbers (SLOTS, DEFER, EARLY, TURNS), for what sm90.py asks for:
//     4, 1, 2, 9; 4, 0, 3, 9; 3, 0, 2, 3; 2, 0, 1, 3; 1, 0, 1, 1.
// Sums belong to products in flight from the first stage to warpgroup_wait<0> with DEFER 1: nothing else reads or writes them there
// (the machine code has none of their registers between the products of its loop), and products onto the same sums follow one
// another without a wait. Hence no warpgroup_fence_operand between: it would be such a reader. With DEFER 0 it is at each stage's ends.

constexpr int THREADS = 32 * WARPS;
constexpr int GROUPS = WARPS / 4;
constexpr int TALL = 4 * GROUPS * PARTS;
constexpr int ACROSS = 18;
constexpr int PIXELS = ACROSS * (TALL + 2);
constexpr int SHARES = ROWS / COLUMNS;
constexpr int TILES = COLUMNS / 8;                  // of 8 columns
constexpr int UNITS = CHUNK / 8;                    // of 8 channels
constexpr int CHUNKS = C / CHUNK;
constexpr int PLACES = CHUNKS > 1 ? 2 : 1;
constexpr int TURNS = 9 / TAPS;                     // stages of a chunk
constexpr int STAGES = CHUNKS * TURNS;
constexpr int EARLY = SLOTS > 1 ? SLOTS - 1 - DEFER : 1;  // stages that are asked for before they are used
constexpr int X_UNIT = PIXELS * 16 + 16;            // bytes from 8 channels of all pixels to the next 8
constexpr int X_BYTES = (UNITS * X_UNIT + 127) / 128 * 128;
constexpr int TAP_BYTES = CHUNK * COLUMNS * 2;
constexpr int SLOT = TAPS * TAP_BYTES;
constexpr int SLOTS_AT = PLACES * X_BYTES;
constexpr int QUARTER = ROWS / 4;
// The results: UP a pixel's columns, an odd number of 16 bytes on; DOWN a cell's, 64 bytes more than a multiple of 128.
constexpr int PITCH = MODE == 0 ? COLUMNS * 8 / 128 * 128 + 64 : (TILES | 1) * 16;
constexpr int OUT_BYTES = MODE == 0 ? 4 * TALL * PITCH : 16 * TALL * PITCH;
constexpr int IN_BYTES = SLOTS_AT + SLOTS * SLOT;
static_assert(MODE == 0 || MODE == 1, "the last convolution has a kernel of its own");
static_assert(C % CHUNK == 0 && CHUNK % 16 == 0 && 9 % TAPS == 0 && ROWS % COLUMNS == 0 && COLUMNS % 8 == 0, "whole pieces");
static_assert(MODE == 1 || COLUMNS * 8 % 128 == 0 || COLUMNS * 8 % 128 == 64, "a cell's pitch has room for its results");
static_assert(MODE == 0 || QUARTER % 8 == 0, "16 bytes are of one pixel");
static_assert(GROUPS * PARTS % 2 == 0 && WARPS % 4 == 0, "squares side by side");
static_assert(CHUNKS == 1 || EARLY + DEFER <= TURNS && DEFER < TURNS, "the next chunk's pixels are waited for by its first stage");
static_assert(EARLY > 0 && (SLOTS > 1 || STAGES == 1 && !DEFER), "a ring");
static_assert(STAGES <= SLOTS || EARLY + DEFER < SLOTS, "a slot is filled when the products that read it are done");
static_assert((DEFER == 0 || DEFER == 1) && PLACES <= 2, "what the comment on races counts on");
static_assert((IN_BYTES > OUT_BYTES ? IN_BYTES : OUT_BYTES) == SHARED, "shared_bytes of the Python module is this number");

struct Place { int lane, g, j, warp, group, share, n, top, left, h, w; };

// Step 1 for a chunk: a thread copies one unit of 16 bytes of many pixels.
DEVICE void fetch_pixels(const Place& at, int chunk, const u16* x) {
    constexpr int LINES = THREADS / UNITS;
    const int unit = thread_idx() % UNITS, line = thread_idx() / UNITS;
    if (line >= LINES) return;
    const u16* from = x + (u64)at.n * at.h * at.w * C + chunk * CHUNK + unit * 8;
    const u32 to = (chunk % PLACES) * X_BYTES + unit * X_UNIT;
#pragma unroll 4
    for (int p = line; p < PIXELS; p += LINES) {
        const int row = at.top - 1 + p / ACROSS, column = at.left - 1 + p % ACROSS;
        const bool there = row >= 0 && row < at.h && column >= 0 && column < at.w;
        cp_async_16(to + p * 16, from + (there ? (u64)(row * at.w + column) * C : 0), there);
    }
}

// Step 2: the weights of a stage; they lie in the order share, stage.
DEVICE void fetch_weights(const Place& at, int stage, const int* blob) {
    const char* from = (const char*)blob + (u64)(at.share * STAGES + stage) * SLOT;
    const u32 to = SLOTS_AT + stage % SLOTS * SLOT;
#pragma unroll 4
    for (int i = thread_idx() * 16; i < SLOT; i += THREADS * 16) cp_async_16(to + i, from + i, true);
}

// Between warpgroup_arrive and warpgroup_commit_batch: a stage's taps.
DEVICE void products(const Place& at, int chunk, int turn, u32 weights, float (&sum)[PARTS][TILES][4]) {
    const auto b = matrix_descriptor(weights, TILES * 128, 128);
#pragma unroll
    for (int k = 0; k < TAPS; ++k) {
        const int tap = turn * TAPS + k;
        const u32 shift = (chunk % PLACES) * X_BYTES + (tap / 3 * ACROSS + tap % 3) * 16;
#pragma unroll
        for (int m = 0; m < PARTS; ++m) {
            const int square = at.group * PARTS + m;
            const auto a = matrix_descriptor(shift + (square / 2 * 8 * ACROSS + square % 2 * 8) * 16, X_UNIT, ACROSS * 16);
#pragma unroll
            for (int s = 0; s < CHUNK / 16; ++s)
                wgmma_ss(sum[m], advance_descriptor(a, 2 * s * X_UNIT),
                                        advance_descriptor(b, k * TAP_BYTES + 2 * s * TILES * 128));
        }
    }
}

// Step 3, to shared memory. A thread has two columns of two pixels above one another.
DEVICE void put_results(const Place& at, const float (&sum)[PARTS][TILES][4]) {
#pragma unroll
    for (int m = 0; m < PARTS; ++m) {
        const int square = at.group * PARTS + m;
        const int row = square / 2 * 8 + at.warp % 4 * 2, column = square % 2 * 8 + at.g;
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
            const float (&d)[4] = sum[m][t];
            if (MODE == 0) {
                // With the lane of the pixel beside it the even one takes the first column of the whole cell, the odd one the second.
                const bool odd = at.g & 1;
                const float other0 = shfl_xor(odd ? d[0] : d[1], 4), other1 = shfl_xor(odd ? d[2] : d[3], 4);
                const Vec2 four = odd ? Vec2{pack(other0, d[1]), pack(other1, d[3])} : Vec2{pack(d[0], other0), pack(d[2], other1)};
                st_shared_v2((row / 2 * 8 + column / 2) * PITCH + (t * 8 + 2 * at.j + odd) * 8, four);
            } else {
#pragma unroll
                for (int r = 0; r < 2; ++r)
                    st_shared(((row + r) * 16 + column) * PITCH + (t * 8 + 2 * at.j) * 2, pack(d[2 * r], d[2 * r + 1]));
            }
        }
    }
}
// And on to the picture.
DEVICE void store_cells(const Place& at, u16* y) {
    constexpr int PIECES = COLUMNS / 2;
    const int across = at.w / 2, down = at.h / 2;
#pragma unroll 4
    for (int i = thread_idx(); i < 4 * TALL * PIECES; i += THREADS) {
        const int piece = i % PIECES, cell = i / PIECES;
        const int row = at.top / 2 + cell / 8, column = at.left / 2 + cell % 8;
        if (row >= down || column >= across) continue;
        u16* to = y + ((u64)(at.n * down + row) * across + column) * (4 * ROWS) + at.share * (4 * COLUMNS) + piece * 8;
        *(Vec4*)to = ld_shared_v4(cell * PITCH + piece * 16);
    }
}
DEVICE void store_pixels(const Place& at, const u16* extra, u16* y) {
#pragma unroll 4
    for (int i = thread_idx(); i < 16 * TALL * TILES; i += THREADS) {
        const int piece = i % TILES, pixel = i / TILES;
        const int row = at.top + pixel / 16, column = at.left + pixel % 16;
        if (row >= at.h || column >= at.w) continue;
        const int first = at.share * COLUMNS + piece * 8, corner = first / QUARTER, channel = first % QUARTER;
        const u64 large = ((u64)(at.n * at.h + row) * 2 + corner / 2) * (2 * at.w) + 2 * column + corner % 2;
        u16* to = y + large * ((EXTRA ? 2 : 1) * QUARTER) + channel;
        *(Vec4*)to = ld_shared_v4(pixel * PITCH + piece * 16);
        if (EXTRA) *(Vec4*)(to + QUARTER) = *(const Vec4*)(extra + large * QUARTER + channel);
    }
}

KERNEL(THREADS, BLOCKS)
conv3x3_sm90(const u16* x, const int* blob, const float* bias, const u16* extra, u16* y, int h_pixels, int w_pixels) {
    Place at;
    at.lane = thread_idx() & 31, at.warp = thread_idx() >> 5;
    at.g = at.lane >> 2, at.j = at.lane & 3, at.group = warp_uniform(at.warp / 4);
    at.share = block_idx(0) % SHARES, at.left = block_idx(0) / SHARES * 16;
    at.top = block_idx(1) * TALL, at.n = block_idx(2);
    at.h = h_pixels, at.w = w_pixels;
    griddepcontrol_launch_dependents();
#pragma unroll
    for (int i = 0; i < EARLY; ++i) {
        if (i < STAGES) fetch_weights(at, i, blob);
        if (i == 0) {
            griddepcontrol_wait();
            fetch_pixels(at, 0, x);
        }
        cp_async_commit_group();
    }
    float sum[PARTS][TILES][4];
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
        const float* b = bias + at.share * COLUMNS + t * 8 + 2 * at.j;
        const float first = b[0], second = b[1];
#pragma unroll
        for (int m = 0; m < PARTS; ++m) sum[m][t][0] = sum[m][t][2] = first, sum[m][t][1] = sum[m][t][3] = second;
    }
    int chunk = 0, turn = 0;
#pragma unroll
    for (int m = 0; m < PARTS; ++m) warpgroup_fence_operand(sum[m]);
#pragma unroll 1
    for (int i = 0; i < STAGES; ++i) {
        cp_async_wait_group<EARLY - 1>();
        fence_proxy_async();
        syncthreads();
        if (i + EARLY < STAGES) fetch_weights(at, i + EARLY, blob);
        if (turn == DEFER && chunk + 1 < CHUNKS) fetch_pixels(at, chunk + 1, x);
        cp_async_commit_group();
        if (!DEFER)
#pragma unroll
            for (int m = 0; m < PARTS; ++m) warpgroup_fence_operand(sum[m]);
        warpgroup_arrive();
        products(at, chunk, turn, SLOTS_AT + i % SLOTS * SLOT, sum);
        warpgroup_commit_batch();
        warpgroup_wait<DEFER>();
        if (!DEFER)
#pragma unroll
            for (int m = 0; m < PARTS; ++m) warpgroup_fence_operand(sum[m]);
        if (++turn == TURNS) turn = 0, ++chunk;
    }
    warpgroup_wait<0>();
#pragma unroll
    for (int m = 0; m < PARTS; ++m) warpgroup_fence_operand(sum[m]);
    syncthreads();
    put_results(at, sum);
    syncthreads();
    if (MODE == 0) store_cells(at, y);
    else store_pixels(at, extra, y);
}
