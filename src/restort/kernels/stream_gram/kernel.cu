// The first half of a Restormer block in one kernel; restort/kernels/stream_gram/reference.py says what it computes.
//
// A block of WARPS warps goes over every gridDim.x-th tile of 16 x TALL pixels of an image. Of a tile:
//   1. The 18 x (TALL + 2) pixels around it, normalised, become the A operand of step 2 in registers.
//   2. For every chunk of CHUNK channels of q, then k, then v: their values of all these pixels by products -> 16
//      bits in shared memory E (0 outside of the image).
//   3. Depthwise 3x3 from E, 2 pixels and 4 channels a thread, down some rows; v goes out, q and k to shared memory QK.
//   4. When all of q and k are there: q^T k over the tile's pixels, by products, onto sums that stay in registers from
//      tile to tile, 48 x 48 channels a warp; the squares beside it.
// Steps 2 of one chunk and 3 of the chunk before are independent: even warps may do 2 first and odd warps 3.
// At the end each block writes one partial sum; none is added in an order that could change.
//
// Races: chunks are counted on from tile to tile; number q uses E[q mod 2], R[q mod 2] (rows of weights) and T[q mod 2]
// (taps). Between two barriers chunk q + 1 is expanded (writes E[q + 1], reads R[q + 1]) and chunk q convolved (reads
// E[q], T[q]), while copies fill R[q + 2] and T[q + 1], whose last readers are behind the barrier. The last
// chunk of a tile has no next one expanded beside it; that happens before the first barrier of the next tile.
// QK is written with chunks of q and k, read (step 4) with the first of v, a barrier later. The next tile's pixels X are
// copied with the last chunk of v: to a place of their own or, where that is not the chunk of step 4, over QK.

constexpr int WIDE = 16;
constexpr int ACROSS = WIDE + 2;
constexpr int PIXELS = ACROSS * (TALL + 2);
constexpr int THREADS = 32 * WARPS;
constexpr int GROUPS = (PIXELS + 15) / 16;
constexpr int TILES = (GROUPS + WARPS - 1) / WARPS;  // groups of 16 pixels a warp
constexpr int STEPS = (C + 15) / 16;
constexpr int COLUMNS = C / 8;
constexpr int ROW = STEPS * 32 + 16;
constexpr int PAIRS = CHUNK / 16;                    // groups of 16 channels in a chunk
constexpr int E_ROW = 32 * PAIRS + 16;
constexpr int E_BYTES = PIXELS * E_ROW;
#if WGMMA
constexpr int W_COLUMN = CHUNK * 16 + 32;            // bytes of 8 channels of all rows of W'; 32 more against bank conflicts
constexpr int W_BYTES = STEPS * 2 * W_COLUMN;
#else
constexpr int W_BYTES = CHUNK * ROW;
#endif
constexpr int R_BYTES = W_BYTES + CHUNK * 4;         // rows of W', then their shifts
constexpr int T_BYTES = 10 * CHUNK * 2;
constexpr int STRETCH = PAIRS * TALL % (4 * WARPS) == 0 ? 4 : 2;  // rows a warp goes down in step 3
constexpr int UNITS_OF_WORK = PAIRS * TALL / STRETCH;
constexpr int CHUNKS = 3 * C / CHUNK;
constexpr int FIRST_V = 2 * C / CHUNK;
constexpr int QK_ROW = 4 * C + 16;
constexpr int QK_BYTES = WIDE * TALL * QK_ROW;
constexpr int X_BYTES = PIXELS * ROW;
constexpr bool X_OVER_QK = X_BYTES <= QK_BYTES && CHUNKS - 1 > FIRST_V;
constexpr int E_AT = QK_BYTES;
constexpr int R_AT = E_AT + 2 * E_BYTES;
constexpr int T_AT = R_AT + 2 * R_BYTES;
constexpr int X_AT = X_OVER_QK ? 0 : T_AT + 2 * T_BYTES;
constexpr int BYTES = X_OVER_QK ? T_AT + 2 * T_BYTES : X_AT + X_BYTES;
#ifdef SHARED
static_assert(BYTES == SHARED, "the binding computes the same number of bytes");
#endif
constexpr int CH = C / HEADS;
constexpr int PART = 48;                             // q channels of a warp's part of the Gram matrix; PART_K of k
constexpr int SPLIT = CH / PART, SPLIT_K = CH / PART_K;
constexpr int PARTS = HEADS * SPLIT * SPLIT_K;
constexpr int SEGMENTS = WARPS / PARTS;              // of the tile's pixels, for warps with the same part
constexpr int UNROLL = C > 48 && !WGMMA ? 1 : PAIRS; // of step 2; more registers are not to be had with all the sums
constexpr int GM = PART / 16, GN = PART_K / 8, GP = (GN + 1) / 2;
// Sums of squares stand in further fours beside the GM * GN of the Gram matrix: of 16 channels of q, or of k, each. Each has to
// be counted by one of the warps whose parts have these channels; what one does not count needs no place of its own.
DEVICE constexpr int q_slot(int m) { return GM * GN + (SPLIT_K == 4 ? 0 : SPLIT_K == 2 && SPLIT == 1 ? m / 2 : m); }
DEVICE constexpr int k_slot(int p) { return GM * GN + (SPLIT_K == 4 ? 1 : SPLIT == 2 ? 0 : SPLIT_K == 2 ? 2 : 3) + p; }
constexpr int QUADS = (k_slot(GP - 1) > q_slot(GM - 1) ? k_slot(GP - 1) : q_slot(GM - 1)) + 1;
DEVICE bool counts_q(int m, int part_q, int part_k) {
    return SPLIT_K == 4 ? m == part_k : SPLIT == 2 ? part_q == part_k : SPLIT_K == 2 ? m % 2 == part_k : true;
}
DEVICE bool counts_k(int part_q, int part_k) {
    return SPLIT_K == 4 ? part_q == part_k % 2 : SPLIT == 2 ? part_q != part_k : true;
}
static_assert(C % CHUNK == 0 && CHUNK % 16 == 0 && C <= 192 && E_BYTES % 16 == 0 && R_BYTES % 16 == 0, "channels");
static_assert(CH % PART == 0 && SPLIT <= 2 && (PART_K == 48 || PART_K == 24) && WARPS % PARTS == 0, "heads");
static_assert(BYTES >= (SEGMENTS - 1) * PARTS * 32 * QUADS * 16, "other warps' sums fit");

DEVICE int spread(int r) { return 2 * (r & 7) + (r >> 3); }

struct Place { int lane, g, j, warp, n, top, left, h, w; };

DEVICE bool inside(const Place& at, int pixel) {
    int y = at.top - 1 + pixel / ACROSS, x = at.left - 1 + pixel % ACROSS;
    return y >= 0 && y < at.h && x >= 0 && x < at.w;
}
DEVICE u64 position(const Place& at, int pixel) {
    int y = at.top - 1 + pixel / ACROSS, x = at.left - 1 + pixel % ACROSS;
    return ((u64)at.n * at.h + y) * at.w + x;
}

// A thread copies units `part`, `part + SHARE`, ... of rows `line`, `line + LINES`, ...: all offsets but one are constants.
constexpr int UNITS = STEPS * 2;
constexpr int SHARE = UNITS % 4 == 0 ? 4 : 2;
constexpr int LINES = THREADS / SHARE;

DEVICE void fetch_pixels(const Place& at, const u16* x) {
    const int part = thread_index() % SHARE, line = thread_index() / SHARE;
    u32 to = X_AT + line * ROW + part * 16;
#pragma unroll
    for (int row = 0; row < PIXELS; row += LINES)
        if (row + LINES <= PIXELS || row + line < PIXELS) {
            bool there = inside(at, row + line);
            const u16* from = there ? x + position(at, row + line) * C + part * 8 : x;
#pragma unroll
            for (int unit = 0; unit < UNITS; unit += SHARE) {
                bool valid = there && (UNITS == C / 8 || unit + part < C / 8);
                copy16(to + row * ROW + unit * 16, valid ? from + unit * 8 : x, valid);
            }
        }
}
DEVICE u32 w_place(int row, int unit) {
#if WGMMA
    return unit * W_COLUMN + row * 16;
#else
    return row * ROW + unit * 16;
#endif
}

DEVICE void fetch_rows(int number, const u16* w, const float* affine) {
    const int part = thread_index() % SHARE, line = thread_index() / SHARE;
    u32 base = R_AT + (number & 1) * R_BYTES;
    int first = number % CHUNKS * CHUNK;
    // Column c of the first product of 16 channels is channel 4 (c / 2) + c % 2, of the second two more: so a
    // thread's four are neighbours.
    int channel = first + line / 16 * 16 + line % 8 / 2 * 4 + line / 8 % 2 * 2 + line % 2;
    u32 to = base + w_place(line, part);
    const u16* from = w + channel * C + part * 8;
    static_assert(LINES % 16 == 0, "rows are arranged by sixteens");
#pragma unroll
    for (int row = 0; row < CHUNK; row += LINES)
        if (row + LINES <= CHUNK || row + line < CHUNK)
#pragma unroll
            for (int unit = 0; unit < UNITS; unit += SHARE) {
                bool valid = UNITS == C / 8 || unit + part < C / 8;
                copy16(to + w_place(row, unit), valid ? from + row * C + unit * 8 : w, valid);
            }
    int k = thread_index() * 4;
    if (k < CHUNK) copy16(base + W_BYTES + k * 4, affine + 3 * C + first + k, true);
}
DEVICE void fetch_taps(int number, const u16* dw) {
    u32 base = T_AT + (number & 1) * T_BYTES;
    int first = number % CHUNKS * CHUNK;
    for (int k = thread_index(); k < 10 * CHUNK / 8; k += THREADS) {
        int tap = k / (CHUNK / 8), unit = k % (CHUNK / 8);
        copy16(base + k * 16, dw + tap * 3 * C + first + unit * 8, true);
    }
}

// Step 1 for 16 pixels, of which p[0], p[1] are this thread's: A operands straight from the pixels.
DEVICE void normalise(const Place& at, u32 (&a)[STEPS][4], const int (&p)[2], const bool (&valid)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        float value[COLUMNS][2], mean = 0, square = 0;
#pragma unroll
        for (int n = 0; n < COLUMNS; ++n) {
            u32 pair = load_shared(X_AT + p[i] * ROW + n * 16 + at.j * 4);
            value[n][0] = low(pair), value[n][1] = high(pair);
            mean += value[n][0] + value[n][1];
            square += value[n][0] * value[n][0] + value[n][1] * value[n][1];
        }
        mean += shuffle_xor(mean, 1);
        mean += shuffle_xor(mean, 2);
        mean *= 1.0f / C;
        square += shuffle_xor(square, 1);
        square += shuffle_xor(square, 2);
        float scale = valid[i] ? rsqrt_fast(fmaxf(square * (1.0f / C) - mean * mean, 0) + 1e-5f) : 0;
#if CENTRED
        const float shift = -mean * scale;
#else
        const float shift = 0;
#endif
#pragma unroll
        for (int n = 0; n < 2 * STEPS; ++n) {
            const float(&pair)[2] = value[n < COLUMNS ? n : 0];
            a[n / 2][i + n % 2 * 2] = n < COLUMNS ? pack(pair[0] * scale + shift, pair[1] * scale + shift) : 0;
        }
    }
}

// Step 2.
#if WGMMA
DEVICE void store_group(u32 to, int groups, const float (&sum)[2 * PAIRS][4]) {
    if (groups)
#pragma unroll
        for (int t = 0; t < PAIRS; ++t)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const float(&first)[4] = sum[2 * t];
                const float(&second)[4] = sum[2 * t + 1];
                store_shared2(to + i * E_ROW + t * 32, Vec2{pack(first[2 * i], first[2 * i + 1]), pack(second[2 * i], second[2 * i + 1])});
            }
}
#endif

DEVICE void expand(int number, const Place& at, const u32 (&a)[TILES][STEPS][4], u32 outside) {
    u32 to = E_AT + (number & 1) * E_BYTES + at.j * 8;
#if WGMMA
    static_assert(WARPS % 4 == 0, "whole groups of four warps");
    u32 base = R_AT + (number & 1) * R_BYTES;
    u32 shifts = base + W_BYTES + at.j * 16;
#pragma unroll
    for (int m = 0; m < TILES; ++m) {
        if (WARPS * (m + 1) > GROUPS && (at.warp & ~3) + m * WARPS >= GROUPS) continue;
        float sum[2 * PAIRS][4];
#pragma unroll
        for (int t = 0; t < PAIRS; ++t) {
            Vec4 shift = load_shared4(shifts + t * 64);
            sum[2 * t][0] = sum[2 * t][2] = as_float(shift.x), sum[2 * t][1] = sum[2 * t][3] = as_float(shift.y);
            sum[2 * t + 1][0] = sum[2 * t + 1][2] = as_float(shift.z), sum[2 * t + 1][1] = sum[2 * t + 1][3] = as_float(shift.w);
        }
        group_touch(sum);
        group_begin();
#pragma unroll
        for (int s = 0; s < STEPS; ++s) group_multiply(sum, a[m][s], group_operand(base + 2 * s * W_COLUMN, W_COLUMN, 128));
        group_commit();
        group_wait<0>();
        group_touch(sum);
        const int pixel = 16 * (at.warp + m * WARPS) + 2 * at.g;
        store_group(to + pixel * E_ROW, 16 * WARPS * (m + 1) <= PIXELS || pixel < PIXELS, sum);
    }
#else
    u32 base = R_AT + (number & 1) * R_BYTES;
    u32 rows = base + ((at.lane & 7) + (at.lane >> 4) * 8) * ROW + (at.lane >> 3 & 1) * 16;
    u32 shifts = base + W_BYTES + at.j * 16;
#pragma unroll UNROLL
    for (int t = 0; t < PAIRS; ++t) {
        float first[TILES][4], second[TILES][4];
        Vec4 shift = load_shared4(shifts + t * 64);
        float s0 = as_float(shift.x), s1 = as_float(shift.y), s2 = as_float(shift.z), s3 = as_float(shift.w);
#pragma unroll
        for (int m = 0; m < TILES; ++m) {
            first[m][0] = first[m][2] = s0, first[m][1] = first[m][3] = s1;
            second[m][0] = second[m][2] = s2, second[m][1] = second[m][3] = s3;
        }
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            u32 b[4];
            load_matrices(b, rows + t * 16 * ROW + s * 32);
#pragma unroll
            for (int m = 0; m < TILES; ++m) {
                multiply(first[m], a[m][s], b[0], b[1]);
                multiply(second[m], a[m][s], b[2], b[3]);
            }
        }
#pragma unroll
        for (int m = 0; m < TILES; ++m)
            if (16 * WARPS * (m + 1) <= PIXELS || 16 * (at.warp + m * WARPS) + 2 * at.g < PIXELS)
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    Vec2 four = {pack(first[m][2 * i], first[m][2 * i + 1]), pack(second[m][2 * i], second[m][2 * i + 1])};
                    store_shared2(to + (16 * (at.warp + m * WARPS) + 2 * at.g + i) * E_ROW + t * 32, four);
                }
    }
#endif
    if (outside)  // of the image: then zeros, over what this thread has just written
        for (int k = 0; k < 2 * TILES; ++k)
            if (outside >> k & 1)
                for (int t = 0; t < PAIRS; ++t)
                    store_shared2(to + (16 * (at.warp + k / 2 * WARPS) + 2 * at.g + k % 2) * E_ROW + t * 32, Vec2{0, 0});
}

// Step 3 of chunk i: a warp takes 16 channels down STRETCH rows at a time, a thread four of them and pixels 2g, 2g + 1.
template <bool V> DEVICE void convolve(int number, int i, const Place& at, u16* v) {
    const bool whole = at.top + TALL <= at.h && at.left + WIDE <= at.w;  // all of the tile lies within the image
#pragma unroll 1
    for (int unit = at.warp; unit < UNITS_OF_WORK; unit += WARPS) {
        const int group = unit % PAIRS, first = unit / PAIRS * STRETCH;
        u32 from = E_AT + (number & 1) * E_BYTES + (first * ACROSS + 2 * at.g) * E_ROW + group * 32 + at.j * 8;
        u32 taps = T_AT + (number & 1) * T_BYTES + group * 32 + at.j * 8;
        const int y0 = at.top + first, x0 = at.left + 2 * at.g, channel = i * CHUNK + group * 16 + at.j * 4;
        u32 to = (first * WIDE + 2 * at.g) * QK_ROW + channel * 2;
        u16* out = v + (((u64)at.n * at.h + y0) * at.w + x0) * C + channel - 2 * C;
        const Vec2 bias = load_shared2(taps + 9 * CHUNK * 2);
        Vec2 tap[9];
#pragma unroll
        for (int k = 0; k < 9; ++k) tap[k] = load_shared2(taps + k * CHUNK * 2);
#if PACKED
        Vec2 sum[3][2];  // of rows y, y - 1, y - 2, at their number mod 3
#else
        float sum[3][2][4];
#endif
        Vec2 next[4];  // a row ahead of its use
#pragma unroll
        for (int x = 0; x < 4; ++x) next[x] = load_shared2(from + x * E_ROW);
#pragma unroll
        for (int y = 0; y < STRETCH + 2; ++y) {
            Vec2 e[4];
#pragma unroll
            for (int x = 0; x < 4; ++x) {
                e[x] = next[x];
                if (y + 1 < STRETCH + 2) next[x] = load_shared2(from + ((y + 1) * ACROSS + x) * E_ROW);
            }
#pragma unroll
            for (int dy = 0; dy < 3; ++dy) {
                const int row = y - dy;
                if (row < 0 || row >= STRETCH) continue;
#pragma unroll
                for (int c = 0; c < 2; ++c) {
#if PACKED
                    Vec2& here = sum[row % 3][c];
                    if (dy == 0) here = bias;
#pragma unroll
                    for (int dx = 0; dx < 3; ++dx) {
                        here.x = fma2(e[c + dx].x, tap[dy * 3 + dx].x, here.x);
                        here.y = fma2(e[c + dx].y, tap[dy * 3 + dx].y, here.y);
                    }
#else
                    float(&here)[4] = sum[row % 3][c];
                    if (dy == 0) here[0] = low(bias.x), here[1] = high(bias.x), here[2] = low(bias.y), here[3] = high(bias.y);
#pragma unroll
                    for (int dx = 0; dx < 3; ++dx) {
                        here[0] += low(e[c + dx].x) * low(tap[dy * 3 + dx].x);
                        here[1] += high(e[c + dx].x) * high(tap[dy * 3 + dx].x);
                        here[2] += low(e[c + dx].y) * low(tap[dy * 3 + dx].y);
                        here[3] += high(e[c + dx].y) * high(tap[dy * 3 + dx].y);
                    }
#endif
                }
            }
            if (y >= 2) {
                const int row = y - 2;
#pragma unroll
                for (int c = 0; c < 2; ++c) {
#if PACKED
                    Vec2 four = sum[row % 3][c];
#else
                    const float(&here)[4] = sum[row % 3][c];
                    Vec2 four = {pack(here[0], here[1]), pack(here[2], here[3])};
#endif
                    bool there = whole || (y0 + row < at.h && x0 + c < at.w);
                    if (V) {
                        if (there) *(Vec2*)(out + (row * at.w + c) * C) = four;
                    } else {
                        if (!there) four = {0, 0};  // the taps' bias and neighbours must not count
                        store_shared2(to + (row * WIDE + c) * QK_ROW, four);
                    }
                }
            }
        }
    }
}

// Adds the sums of squares of 16 channels, which stand on the diagonals of the products of channels 0..7 and (`both`)
// 8..15 with themselves. A's fragment of 16 channels x 16 pixels is B's as well: (a0, a2) are its first 8 columns.
DEVICE void square(float (&sum)[4], u32 a0, u32 a1, u32 a2, u32 a3, bool both) {
    const u32 upper[4] = {a0, 0, a2, 0}, lower[4] = {0, a1, 0, a3};
    multiply(sum, upper, a0, a2);
    if (both) multiply(sum, lower, a1, a3);
}

// Step 4. This warp's part: q channels from first_q, k channels from first_k, of its segment of the pixels.
DEVICE void multiply_parts(const Place& at, float (&sums)[QUADS][4], int head, int part_q, int part_k, int segment) {
    constexpr int LENGTH = WIDE * TALL / SEGMENTS;
    const int first_q = head * CH + part_q * PART, first_k = head * CH + part_k * PART_K;
    u32 pixels = segment * LENGTH * QK_ROW;
    u32 q_at = pixels + ((at.lane & 7) + (at.lane >> 4) * 8) * QK_ROW + (first_q + (at.lane >> 3 & 1) * 8) * 2;
    u32 k_at = pixels + (at.lane & 15) * QK_ROW + (C + first_k + (at.lane >> 4) * 8) * 2;
#pragma unroll 1
    for (int s = 0; s < LENGTH / 16; ++s) {
        u32 a[GM][4], b[GP][4];
#pragma unroll
        for (int m = 0; m < GM; ++m) load_matrices_transposed(a[m], q_at + s * 16 * QK_ROW + m * 32);
        // The last of an odd number of columns' groups reads eight channels too many: not used.
#pragma unroll
        for (int p = 0; p < GP; ++p) load_matrices_transposed(b[p], k_at + s * 16 * QK_ROW + p * 32);
#pragma unroll
        for (int m = 0; m < GM; ++m)
#pragma unroll
            for (int n = 0; n < GN; ++n) multiply(sums[m * GN + n], a[m], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
#pragma unroll
        for (int m = 0; m < GM; ++m)
            if (counts_q(m, part_q, part_k)) square(sums[q_slot(m)], a[m][0], a[m][1], a[m][2], a[m][3], true);
        if (counts_k(part_q, part_k))
#pragma unroll
            for (int p = 0; p < GP; ++p) square(sums[k_slot(p)], b[p][0], b[p][2], b[p][1], b[p][3], 2 * p + 1 < GN);
    }
}

KERNEL(THREADS, BLOCKS)
stream_gram(const u16* x, const u16* w, const float* affine, const u16* dw, u16* v, float* partial, int h, int width) {
    Place at;
    at.lane = thread_index() & 31, at.warp = thread_index() >> 5;
    at.g = at.lane >> 2, at.j = at.lane & 3;
    at.n = block_index(1), at.h = h, at.w = width;
    const int across = (width + WIDE - 1) / WIDE, tiles = across * ((h + TALL - 1) / TALL);
    const int part = at.warp % PARTS, segment = at.warp / PARTS;
    const int head = part / (SPLIT * SPLIT_K), part_q = part / SPLIT_K % SPLIT, part_k = part % SPLIT_K;

    float sums[QUADS][4];
#pragma unroll
    for (int c = 0; c < 4 * QUADS; ++c) sums[c / 4][c % 4] = 0;

    int tile = block_index(0);
    at.top = tile / across * TALL, at.left = tile % across * WIDE;
    fetch_pixels(at, x);
    fetch_rows(0, w, affine);
    fetch_taps(0, dw);
    commit_copies();
    int number = 0;
    for (; tile < tiles; tile += block_count()) {
        at.top = tile / across * TALL, at.left = tile % across * WIDE;
        fetch_rows(number + 1, w, affine);
        commit_copies();
        wait_copies<1>();
        publish_to_groups();
        block_barrier();
        u32 a[TILES][STEPS][4];
        u32 outside = 0;  // bits 2 m, 2 m + 1: rows g, g + 8 of group m are pixels outside of the image
#pragma unroll
        for (int m = 0; m < TILES; ++m) {
            int first = 16 * (at.warp + m * WARPS) + 2 * at.g;
            const bool valid[2] = {first < PIXELS && inside(at, first), first + 1 < PIXELS && inside(at, first + 1)};
            int p[2] = {first < PIXELS ? first : 0, first + 1 < PIXELS ? first + 1 : 0};
            normalise(at, a[m], p, valid);
            outside |= (first < PIXELS && !valid[0] ? 1u : 0u) << 2 * m;
            outside |= (first + 1 < PIXELS && !valid[1] ? 1u : 0u) << (2 * m + 1);
        }
        expand(number, at, a, outside);
        for (int i = 0; i < CHUNKS; ++i, ++number) {
            wait_copies<0>();
            publish_to_groups();
            block_barrier();
            if (i + 2 < CHUNKS || i + 1 == CHUNKS) fetch_rows(number + 2 - (i + 1 == CHUNKS), w, affine);
            fetch_taps(number + 1, dw);
            if (i == CHUNKS - 1 && tile + block_count() < tiles) {
                Place next = at;
                int t = tile + block_count();
                next.top = t / across * TALL, next.left = t % across * WIDE;
                fetch_pixels(next, x);
            }
            commit_copies();
            // Of eight warps, four convolve first and four expand first: a scheduler of the multiprocessor has one of each,
            // and the matrix unit and the others work at once. (Hopper's products want four warps together.)
            auto step_3 = [&] {
                if (i < FIRST_V)
                    convolve<false>(number, i, at, v);
                else
                    convolve<true>(number, i, at, v);
                if (i == FIRST_V) multiply_parts(at, sums, head, part_q, part_k, segment);
            };
#if WARPS == 8
#pragma unroll 1
            for (int turn = 0; turn < 2; ++turn)
                if (turn ^ at.warp >> 2)
                    step_3();
                else if (i + 1 < CHUNKS)
                    expand(number + 1, at, a, outside);
#else
            step_3();
            if (i + 1 < CHUNKS) expand(number + 1, at, a, outside);
#endif
        }
    }
    wait_copies<0>();
    block_barrier();

    // Warps with the same part add up, the first one last: one partial sum a block.
    if (SEGMENTS > 1) {
        if (segment > 0) {
            u32 to = (((segment - 1) * PARTS + part) * 4 * QUADS * 32 + at.lane) * 4;
#pragma unroll
            for (int c = 0; c < 4 * QUADS; ++c) store_shared_float(to + 128 * c, sums[c / 4][c % 4]);
        }
        block_barrier();
        if (segment > 0) return;
        for (int s = 0; s < SEGMENTS - 1; ++s) {
            u32 from = ((s * PARTS + part) * 4 * QUADS * 32 + at.lane) * 4;
#pragma unroll
            for (int c = 0; c < 4 * QUADS; ++c) sums[c / 4][c % 4] += load_shared_float(from + 128 * c);
        }
    }

    float* to = partial + (((u64)block_index(0) * image_count() + at.n) * HEADS + head) * (CH * (CH + 2));
    float* to_q = to + CH * CH + part_q * PART;
    float* to_k = to + CH * CH + CH + part_k * PART_K;
    // Row g of a diagonal is with the lane whose columns 2 j, 2 j + 1 hold it.
    const bool diagonal = at.g / 2 == at.j;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int m = 0; m < GM; ++m) {
            int row = m * 16 + i * 8 + at.g;
#pragma unroll
            for (int n = 0; n < GN; ++n)
#pragma unroll
                for (int k = 0; k < 2; ++k)
                    to[(part_q * PART + row) * CH + part_k * PART_K + 8 * n + 2 * at.j + k] = sums[m * GN + n][2 * i + k];
            if (counts_q(m, part_q, part_k) && diagonal)
                to_q[row] = at.g & 1 ? sums[q_slot(m)][2 * i + 1] : sums[q_slot(m)][2 * i];
        }
#pragma unroll
        for (int p = 0; p < GP; ++p)
            if (counts_k(part_q, part_k) && diagonal && 2 * p + i < GN)
                to_k[p * 16 + i * 8 + at.g] = at.g & 1 ? sums[k_slot(p)][2 * i + 1] : sums[k_slot(p)][2 * i];
    }
}
