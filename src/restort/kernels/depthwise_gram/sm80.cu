// Depthwise 3x3 of q, k and v of one head, v stored, Gram matrix and squares of q and k as partial sums. Formula: reference.py; the
// convolution: depthwise.cuh.
//
// A block has a head and takes every splits-th tile of an image. Of a tile:
//   1. q, k and v are convolved; v goes out, q and k in 16 bits to shared memory, 0 outside of the image.
//   2. The next tile is asked for, where this one was; meanwhile q^T k by products onto sums that stay in registers from tile
//      to tile. A warp has 16 channels of q, all of k, and the rows of its own strip; the squares are the diagonals of
//      q^T q and k^T k of its 16 channels. Strips are added up at the end, in their order.
// Neighbouring blocks have neighbouring heads of one tile, so that blocks that run together read neighbouring memory.
// The last tiles come first: they are what the launch before wrote last, and so still in the L2.
//
// Races: the tile is written by copies that every thread waits for before the first barrier of a turn, and read until the second.
// q and k are written between the first and the second, and read from the second to the next turn's first.

constexpr int CH = CHANNELS, C = STRIDE / PARTS, HEADS = C / CH;
constexpr int SIXTEENS = CH / 16;                   // warps of a strip
constexpr int QK_ROW = 4 * CH + 16;                 // bytes of a pixel: an odd number of 16
constexpr int QK_AT = FREE_AT;
constexpr int OWN = 2 * SIXTEENS;                   // products of 8 columns of k; after them squares of q, of k
constexpr int SUMS = 4 * OWN + 4;
static_assert(PARTS == 3 && CH % 16 == 0 && STRIP == 32 * SIXTEENS, "a strip is as many warps as the matrix has 16 rows");
static_assert(QK_AT + TILE_W * TALL * QK_ROW == SHARED, "shared_bytes of the Python module is this number");
static_assert((STRIPS - 1) * STRIP * SUMS * 4 <= TAPS_AT, "the other strips' sums fit where the tile was");

DEVICE Tile tile_at(int index, int tiles, int n, int h, int w) {
    const int across = (w + TILE_W - 1) / TILE_W;
    index = tiles - 1 - index;
    return {n, index / across * TALL, index % across * TILE_W, h, w};
}

// Step 1 of q and k.
DEVICE void convolve_part(int part, const Tile& at) {
    const Share mine = share();
    const int top = at.top + mine.strip * ROWS, left = at.left + 2 * mine.pair;
    const u32 from = begin(mine, part), to = QK_AT + (mine.strip * ROWS * TILE_W + 2 * mine.pair) * QK_ROW + part * 2 * CH + mine.lane * 8;
    Taps taps;
    load_taps(taps, mine, part);
    Sums sums;
#pragma unroll
    for (int row = 0; row < ROWS + 2; ++row) {
        convolve(row, sums, taps, from);
        if (row < 2) continue;
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            const u32 covered = top + row - 2 < at.h && left + c < at.w ? ~0u : 0;
            const Vec2 four = sums.at[(row - 2) % 3][c];
            st_shared_v2(to + ((row - 2) * TILE_W + c) * QK_ROW, Vec2{four.x & covered, four.y & covered});
        }
    }
}
// And of v.
DEVICE void convolve_v(const Tile& at, u16* v) {
    const Share mine = share();
    const int top = at.top + mine.strip * ROWS, left = at.left + 2 * mine.pair;
    const u32 from = begin(mine, 2);
    u16* to = v + (((u64)at.n * at.h + top) * at.w + left) * C + mine.lane * 4;
    Taps taps;
    load_taps(taps, mine, 2);
    Sums sums;
#pragma unroll
    for (int row = 0; row < ROWS + 2; ++row) {
        convolve(row, sums, taps, from);
        if (row < 2) continue;
#pragma unroll
        for (int c = 0; c < 2; ++c)
            st_global_v2_if(to + c * C, sums.at[(row - 2) % 3][c], top + row - 2 < at.h && left + c < at.w);
        to += (i64)at.w * C;
    }
}

// The squares of 16 channels, on the diagonals of the upper and the lower half of `sum`: a register of the A of 8 channels and 8
// pixels is also their B. With zeros beside, the upper rows take the first 8 steps of the product and the lower ones the others.
DEVICE void square(float (&sum)[4], const u32 (&a)[4]) {
#pragma unroll
    for (int pixels = 0; pixels < 4; pixels += 2) {
        const u32 apart[4] = {a[pixels], 0, 0, a[pixels + 1]};
        mma_m16n8k16(sum, apart, a[pixels], a[pixels + 1]);
    }
}

// Step 2: this warp's 16 channels of q.
DEVICE void multiply_strip(float (&sums)[OWN][4], float (&squares)[2][4]) {
    const int thread = launder(thread_idx()), lane = thread & 31, strip = thread / STRIP, m = thread / 32 % SIXTEENS;
    const u32 pixels = QK_AT + strip * ROWS * TILE_W * QK_ROW;
    const u32 q_at = pixels + ((lane & 7) + (lane >> 4) * 8) * QK_ROW + (16 * m + (lane >> 3 & 1) * 8) * 2;
    const u32 k_at = pixels + (lane & 15) * QK_ROW + (CH + (lane >> 4) * 8) * 2;
#pragma unroll 2
    for (int row = 0; row < ROWS; ++row) {
        const u32 here = row * TILE_W * QK_ROW;
        u32 q[4], k[4];
        ldmatrix_x4_trans(q, q_at + here);
        ldmatrix_x4_trans(k, q_at + here + 2 * CH);
#pragma unroll
        for (int p = 0; p < SIXTEENS; ++p) {
            u32 b[4];
            ldmatrix_x4_trans(b, k_at + here + p * 32);
            mma_m16n8k16(sums[2 * p], q, b[0], b[1]);
            mma_m16n8k16(sums[2 * p + 1], q, b[2], b[3]);
        }
        square(squares[0], q);
        square(squares[1], k);
    }
}

KERNEL(THREADS, BLOCKS)
depthwise_gram_sm80(const u16* qkv, const u16* dw, u16* v, float* partial, int h, int w) {
    const int head = block_idx(0) % HEADS, split = block_idx(0) / HEADS, splits = grid_dim_x() / HEADS;
    const int n = block_idx(1), first = head * CH;
    const int tiles = (h + TALL - 1) / TALL * ((w + TILE_W - 1) / TILE_W);
    fetch_tile(tile_at(split, tiles, n, h, w), qkv, first);
    fetch_taps(dw, first);
    cp_async_commit_group();
    float sums[OWN][4], squares[2][4];
#pragma unroll
    for (int i = 0; i < 4 * OWN; ++i) sums[i / 4][i % 4] = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) squares[i / 4][i % 4] = 0;
    for (int index = split; index < tiles; index += splits) {
        const Tile at = tile_at(index, tiles, n, h, w);
        cp_async_wait_group<0>();
        syncthreads();
#pragma unroll 1
        for (int part = 0; part < 2; ++part) convolve_part(part, at);
        convolve_v(at, v + first);
        syncthreads();
        if (index + splits < tiles) fetch_tile(tile_at(index + splits, tiles, n, h, w), qkv, first);
        cp_async_commit_group();
        multiply_strip(sums, squares);
    }

    const int thread = launder(thread_idx()), g = thread >> 2 & 7, j = thread & 3, m = thread / 32 % SIXTEENS;
    const int strip = thread / STRIP;
    // Of a diagonal, row g is with the lane whose columns 2 j, 2 j + 1 hold it: of q's channels g and g + 8, and of k's.
    float own[SUMS];
#pragma unroll
    for (int i = 0; i < 4 * OWN; ++i) own[i] = sums[i / 4][i % 4];
#pragma unroll
    for (int i = 0; i < 4; ++i) own[4 * OWN + i] = g & 1 ? squares[i / 2][i % 2 * 2 + 1] : squares[i / 2][i % 2 * 2];
    if (STRIPS > 1) {
        const u32 place = thread % STRIP * 4;
        syncthreads();
        if (strip > 0) {
#pragma unroll
            for (int i = 0; i < SUMS; ++i) st_shared_f32(((strip - 1) * SUMS + i) * STRIP * 4 + place, own[i]);
        }
        syncthreads();
        if (strip > 0) return;
        for (int k = 0; k < STRIPS - 1; ++k)
#pragma unroll
            for (int i = 0; i < SUMS; ++i) own[i] += ld_shared_f32((k * SUMS + i) * STRIP * 4 + place);
    }
    float* to = partial + (((u64)split * grid_dim_y() + n) * HEADS + head) * (CH * (CH + 2));
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int channel = 16 * m + 8 * i + g;
#pragma unroll
        for (int t = 0; t < OWN; ++t)
#pragma unroll
            for (int k = 0; k < 2; ++k) to[channel * CH + 8 * t + 2 * j + k] = own[4 * t + 2 * i + k];
        if (g / 2 == j) {
            to[CH * CH + channel] = own[4 * OWN + i];
            to[CH * CH + CH + channel] = own[4 * OWN + 2 + i];
        }
    }
}
