// Local feature extraction with its projections, for a tile of 16 x 2 WARPS pixels. Formula: reference.py; order of the weights: sm80.py.
//
//   1. The tile with one pixel around it goes to shared memory *shifted*: where pixel p stands, channels of group k are
//      those of p + d(k). So the input of the hidden channels at any pixel is one row of it.
//   2. A warp has two rows of 16 pixels, all channels of the result in registers, which start as x and the bias. For each group g
//      of the second shift, 24 hidden channels at a time: their products at pixels p + d(g), rectified and set to zero outside
//      of the picture; a thread's part of that result is its part of the left operand of the second product.
//   3. The result is stored and, still in registers, multiplied by the projections.
//
// The weights come in the order of use as `blob` (sm80.py): pieces that threads read with one 16-byte load each. They are
// copied to shared memory whole (STAGES = 0) or through a ring of STAGES pieces. A piece is filled again after the barrier
// that follows its last use, and read after each thread has waited for its copies and passed a barrier.
//
// Columns of results are permuted within 32 channels (sm80.py) so that a thread has eight that lie together.

constexpr int THREADS = 32 * WARPS;
constexpr int TALL = 2 * WARPS;
constexpr int ACROSS = 18;
constexpr int PIXELS = ACROSS * (TALL + 2);
constexpr int GROUP = C / 5;
constexpr int STEPS = (C + 31) / 32 * 2;            // of 16 channels
constexpr int TILES = (C + 7) / 8;                  // of 8 channels
constexpr int PADDED_C = (C + 63) / 64 * 64;            // channels of a pixel in memory
constexpr int ROW = STEPS * 32 + 16;                // bytes of a pixel: an odd number of 16
constexpr int PIECES = 2 * C / 24;                  // of 24 hidden channels
constexpr int IN_BYTES = STEPS / 2 * 3 * 512;
constexpr int OUT_BYTES = (TILES + 3) / 4 * 3 * 512;
constexpr int PIECE = IN_BYTES + OUT_BYTES + 128;
constexpr int MADE = 3 * DS / 8;                    // tiles of a projection
constexpr int BLOCKS_MADE = (MADE + 3) / 4;         // of 32 channels or, the last one, fewer
constexpr int REST = MADE - 4 * (BLOCKS_MADE - 1);
constexpr int BLOCK_BYTES = STEPS / 2 * 4 * 512 + 128;
constexpr int REST_BYTES = STEPS / 2 * REST * 512 + 128;
constexpr int SET_BYTES = (BLOCKS_MADE - 1) * BLOCK_BYTES + REST_BYTES;
constexpr int SETS = HAS_Q ? 2 : 1;
constexpr int STEPS_ALL = PIECES + SETS * BLOCKS_MADE;
constexpr int PIECES_BYTES = PIECES * PIECE;
constexpr int BIAS_AT = PIECES_BYTES + 2 * SET_BYTES;  // of the blob: after the values' and the queries' weights
constexpr int WEIGHTS_AT = (PIXELS * ROW + 127) / 128 * 128;
constexpr int WEIGHT_BYTES = STAGES ? STAGES * PIECE : PIECES_BYTES + SETS * SET_BYTES;
static_assert(GROUP % 4 == 0 && C % 5 == 0 && 2 * C % 120 == 0, "groups in halves of 16 bytes, and of 24 hidden channels");
static_assert(!STAGES || STAGES > 1, "a ring");
static_assert(BLOCK_BYTES <= PIECE || !STAGES, "pieces of the ring");
static_assert(WEIGHTS_AT + WEIGHT_BYTES == SHARED, "shared_bytes of the Python module is this number");

struct Place { int lane, g, j, warp, n, top, left, h, w; };

// d(group).
DEVICE int down(int group) { return group == 2 ? 1 : group == 3 ? -1 : 0; }
DEVICE int right(int group) { return group == 0 ? 1 : group == 1 ? -1 : 0; }

DEVICE int begin(int i) {  // of piece i in the blob
    int rest = i - PIECES;
    if (rest < 0) return i * PIECE;
    bool second = rest >= BLOCKS_MADE;
    return PIECES_BYTES + (second ? SET_BYTES : 0) + (second ? rest - BLOCKS_MADE : rest) * BLOCK_BYTES;
}
DEVICE u32 piece_at(int i) { return WEIGHTS_AT + (STAGES ? i % (STAGES ? STAGES : 1) * PIECE : begin(i)); }

DEVICE void fetch(int first, int end, const int* blob) {  // pieces, into shared memory
    int from = begin(first), bytes;
    if (end > PIECES && (end - PIECES) % BLOCKS_MADE == 0) bytes = PIECES_BYTES + (end - PIECES) / BLOCKS_MADE * SET_BYTES - from;
    else bytes = begin(end) - from;
    u32 to = piece_at(first);
    const char* source = (const char*)blob + from;
    for (int i = thread_idx() * 16; i < bytes; i += THREADS * 16) cp_async_16(to + i, source + i, true);
}

// Step 1. A thread copies one 16-byte unit of pixels; it may be halves of two groups.
DEVICE void fetch_tile(const Place& at, const u16* x) {
    constexpr int UNITS = STEPS * 2, LINES = THREADS / UNITS;
    const int unit = thread_idx() % UNITS, line = thread_idx() / UNITS;
    if (line >= LINES) return;
    const int across = at.w + 4;
    int group0 = unit * 8 / GROUP, group1 = (unit * 8 + 4) / GROUP;
    int move0 = (down(group0) * across + right(group0)) * PADDED_C, move1 = (down(group1) * across + right(group1)) * PADDED_C;
    const u16* from = x + ((u64)(at.n * (at.h + 4) + at.top + 1) * across + at.left + 1) * PADDED_C + unit * 8;
    u32 to = unit * 16;
#pragma unroll 4
    for (int p = line; p < PIXELS; p += LINES) {
        const u16* pixel = from + (p / ACROSS * across + p % ACROSS) * PADDED_C;
        if (move0 == move1) cp_async_16(to + p * ROW, pixel + move0, true);
        else {
            cp_async_8(to + p * ROW, pixel + move0);
            cp_async_8(to + p * ROW + 8, pixel + 4 + move1);
        }
    }
}

// Step 2, 24 hidden channels: from[m] the row of the tile whose address this lane gives, keep[m][i] whether rows g, g + 8 are
// pixels of the picture.
DEVICE void hidden_channels(const Place& at, u32 weights, const u32 (&from)[2], const bool (&keep)[2][2], float (&sum)[2][TILES][4]) {
    float h[2][3][4];
#pragma unroll
    for (int t = 0; t < 3; ++t) {
        Vec2 b = ld_shared_v2(weights + IN_BYTES + OUT_BYTES + t * 32 + at.j * 8);
#pragma unroll
        for (int m = 0; m < 2; ++m) h[m][t][0] = h[m][t][2] = as_float(b.x), h[m][t][1] = h[m][t][3] = as_float(b.y);
    }
    u32 mine = weights + at.lane * 16;
#pragma unroll
    for (int s = 0; s < STEPS; s += 2) {
        u32 b[12];
#pragma unroll
        for (int k = 0; k < 3; ++k) {
            Vec4 four = ld_shared_v4(mine + (s / 2 * 3 + k) * 512);
            b[4 * k] = four.x, b[4 * k + 1] = four.y, b[4 * k + 2] = four.z, b[4 * k + 3] = four.w;
        }
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                u32 a[4];
                ldmatrix_x4(a, from[m] + (s + i) * 32);
#pragma unroll
                for (int t = 0; t < 3; ++t) mma_m16n8k16(h[m][t], a, b[(i * 3 + t) * 2], b[(i * 3 + t) * 2 + 1]);
            }
    }
    u32 a[2][4], last[2][2];
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            bool there = keep[m][r];
            a[m][r] = there ? pack_relu(h[m][0][2 * r], h[m][0][2 * r + 1]) : 0;
            a[m][2 + r] = there ? pack_relu(h[m][1][2 * r], h[m][1][2 * r + 1]) : 0;
            last[m][r] = there ? pack_relu(h[m][2][2 * r], h[m][2][2 * r + 1]) : 0;
        }
#pragma unroll
    for (int first = 0; first < TILES; first += 4) {
        u32 b[12];
#pragma unroll
        for (int k = 0; k < 3; ++k) {
            Vec4 four = ld_shared_v4(mine + IN_BYTES + (first / 4 * 3 + k) * 512);
            b[4 * k] = four.x, b[4 * k + 1] = four.y, b[4 * k + 2] = four.z, b[4 * k + 3] = four.w;
        }
#pragma unroll
        for (int t = 0; t < 4; ++t)
            if (first + t < TILES)
#pragma unroll
                for (int m = 0; m < 2; ++m) mma_m16n8k16(sum[m][first + t], a[m], b[3 * t], b[3 * t + 1]);
#pragma unroll
        for (int t = 0; t < 4; ++t)
            if (first + t < TILES)
#pragma unroll
                for (int m = 0; m < 2; ++m) mma_m16n8k8(sum[m][first + t], last[m][0], last[m][1], b[3 * t + 2]);
    }
}

// Step 3: N tiles of a projection, columns from `column` on, of pixels to[m] (row g; row g + 8 is eight pixels on).
template <int N>
DEVICE void project(const Place& at, u32 weights, const u32 (&x)[2][STEPS][4], u16* to, u64 pixel, int column, int across) {
    float y[2][N][4];
#pragma unroll
    for (int t = 0; t < N; ++t) {
        Vec2 b = ld_shared_v2(weights + STEPS / 2 * N * 512 + t * 32 + at.j * 8);
#pragma unroll
        for (int m = 0; m < 2; ++m) y[m][t][0] = y[m][t][2] = as_float(b.x), y[m][t][1] = y[m][t][3] = as_float(b.y);
    }
#pragma unroll
    for (int s = 0; s < STEPS; s += 2) {
        u32 b[4 * N];
#pragma unroll
        for (int k = 0; k < N; ++k) {
            Vec4 four = ld_shared_v4(weights + at.lane * 16 + (s / 2 * N + k) * 512);
            b[4 * k] = four.x, b[4 * k + 1] = four.y, b[4 * k + 2] = four.z, b[4 * k + 3] = four.w;
        }
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int t = 0; t < N; ++t)
#pragma unroll
                for (int m = 0; m < 2; ++m) mma_m16n8k16(y[m][t], x[m][s + i], b[(i * N + t) * 2], b[(i * N + t) * 2 + 1]);
    }
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            u16* here = to + (pixel + m * across + r * 8) * (3 * DS) + column + 2 * N * at.j;
            u32 pairs[N];
#pragma unroll
            for (int t = 0; t < N; ++t) pairs[t] = pack(y[m][t][2 * r], y[m][t][2 * r + 1]);
            if constexpr (N == 4) *(Vec4*)here = Vec4{pairs[0], pairs[1], pairs[2], pairs[3]};
            else
#pragma unroll
                for (int t = 0; t < N; ++t) *(u32*)(here + 2 * t) = pairs[t];
        }
}

// Before piece i of the ring is used: it is there, and the one that was used before it makes room for another.
DEVICE void turn(int i, const int* blob) {
    cp_async_wait_group<(STAGES > 2 ? STAGES - 2 : 0)>();
    syncthreads();
    int next = i + STAGES - 1;
    if (next < STEPS_ALL) fetch(next, next + 1, blob);
    cp_async_commit_group();
}

KERNEL(THREADS, BLOCKS)
lfe_sm80(const u16* x, const int* blob, u16* out, u16* v, u16* q, int h, int w) {
    Place at;
    at.lane = thread_idx() & 31, at.warp = thread_idx() >> 5;
    at.g = at.lane >> 2, at.j = at.lane & 3;
    at.n = block_idx(2), at.top = block_idx(1) * TALL, at.left = block_idx(0) * 16;
    at.h = h, at.w = w;
    griddepcontrol_launch_dependents();

    if (STAGES) {
        fetch(0, 1, blob);
        griddepcontrol_wait();
        fetch_tile(at, x);
        cp_async_commit_group();
#pragma unroll
        for (int i = 1; i < STAGES - 1; ++i) {
            fetch(i, i + 1, blob);
            cp_async_commit_group();
        }
    } else if (OVERLAP) {
        fetch(0, STEPS_ALL, blob);
        griddepcontrol_wait();
        fetch_tile(at, x);
        cp_async_commit_group();
        cp_async_commit_group();  // as many groups as otherwise
        cp_async_commit_group();
    } else {
        fetch(0, 1, blob);
        griddepcontrol_wait();
        fetch_tile(at, x);
        cp_async_commit_group();
        fetch(1, PIECES, blob);
        cp_async_commit_group();
        fetch(PIECES, STEPS_ALL, blob);
        cp_async_commit_group();
    }

    // The sum starts as x and the bias. What a thread holds: of each 32 channels (the last part has REMAIN tiles of 8) those from
    // 2 REMAIN j on, two in each tile.
    const int across = w + 4;
    const u64 place = ((u64)(at.n * (h + 4) + at.top + 2 * at.warp + 2) * across + at.left + at.g + 2) * PADDED_C;
    constexpr int FULL = TILES / 4, REMAIN = TILES % 4;
    float sum[2][TILES][4];
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const u16* from = x + place + (m * across + r * 8) * PADDED_C;
            u32 pairs[TILES];
#pragma unroll
            for (int part = 0; part < FULL; ++part) {
                Vec4 four = *(const Vec4*)(from + part * 32 + at.j * 8);
                pairs[4 * part] = four.x, pairs[4 * part + 1] = four.y, pairs[4 * part + 2] = four.z, pairs[4 * part + 3] = four.w;
            }
#pragma unroll
            for (int t = 0; t < REMAIN; ++t) pairs[4 * FULL + t] = *(const u32*)(from + FULL * 32 + 2 * REMAIN * at.j + 2 * t);
#pragma unroll
            for (int t = 0; t < TILES; ++t) sum[m][t][2 * r] = low(pairs[t]), sum[m][t][2 * r + 1] = high(pairs[t]);
        }
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
        Vec2 b = *(const Vec2*)(blob + BIAS_AT / 4 + t * 8 + at.j * 2);
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int r = 0; r < 2; ++r) sum[m][t][2 * r] += as_float(b.x), sum[m][t][2 * r + 1] += as_float(b.y);
    }

#pragma unroll 1
    for (int group = 0; group < 5; ++group) {
        const int dy = down(group), dx = right(group);
        u32 from[2];
        bool keep[2][2];
#pragma unroll
        for (int m = 0; m < 2; ++m) {
            int row = 2 * at.warp + m + dy, column = at.g + dx;
            from[m] = ((row + 1) * ACROSS + (at.lane & 15) + dx + 1) * ROW + (at.lane >> 4) * 16;
            int y = at.top + row, left = at.left + column;
            bool inside = y >= 0 && y < h;
            keep[m][0] = inside && left >= 0, keep[m][1] = inside && left + 8 < w;
        }
        constexpr int EACH = PIECES / 5;
#pragma unroll 1
        for (int k = 0; k < EACH; ++k) {
            int i = group * EACH + k;
            if (STAGES) turn(i, blob);
            else if (i < 2) {
                if (i == 0) cp_async_wait_group<2>();
                else cp_async_wait_group<1>();
                syncthreads();
            }
            hidden_channels(at, piece_at(i), from, keep, sum);
        }
    }

    u32 made[2][STEPS][4];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int t = 0; t < 2 * STEPS; ++t)
#pragma unroll
            for (int r = 0; r < 2; ++r)
                made[m][t / 2][t % 2 * 2 + r] = t < TILES ? pack(sum[m][t < TILES ? t : 0][2 * r], sum[m][t < TILES ? t : 0][2 * r + 1]) : 0;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            u16* to = out + place + (m * across + r * 8) * PADDED_C;
#pragma unroll
            for (int part = 0; part < FULL; ++part) {
                int s = 2 * part;
                *(Vec4*)(to + part * 32 + at.j * 8) = Vec4{made[m][s][r], made[m][s][2 + r], made[m][s + 1][r], made[m][s + 1][2 + r]};
            }
#pragma unroll
            for (int t = 0; t < REMAIN; ++t) {
                int tile = 4 * FULL + t;
                *(u32*)(to + FULL * 32 + 2 * REMAIN * at.j + 2 * t) = made[m][tile / 2][tile % 2 * 2 + r];
            }
            if (TILES * 8 + at.j * 8 < PADDED_C) *(Vec4*)(to + TILES * 8 + at.j * 8) = Vec4{0, 0, 0, 0};
        }
    }

    const u64 pixel = (u64)(at.n * h + at.top + 2 * at.warp) * w + at.left + at.g;
    if (!STAGES) {
        cp_async_wait_group<0>();
        syncthreads();
    }
#pragma unroll 1
    for (int set = 0; set < SETS; ++set) {
        u16* to = set ? q : v;
        int i = PIECES + set * BLOCKS_MADE;
#pragma unroll 1
        for (int part = 0; part < BLOCKS_MADE - (REST < 4); ++part, ++i) {
            if (STAGES) turn(i, blob);
            project<4>(at, piece_at(i), made, to, pixel, part * 32, w);
        }
        if constexpr (REST < 4) {
            if (STAGES) turn(i, blob);
            project<REST>(at, piece_at(i), made, to, pixel, 32 * (BLOCKS_MADE - 1), w);
        }
    }
}
