// The first half of a Restormer block in one kernel. Formula: reference.py; order of the weights: sm80.py.
//
// A block of WARPS warps goes over every gridDim.x-th tile of 16 x TALL pixels of an image. Of a tile:
//   1. The 18 x (TALL + 2) pixels around it, normalised, become the A operand of step 2 in registers.
//   2. For every chunk of CHUNK channels of q, then k, then v: their values of all these pixels by products -> 16
//      bits in shared memory E (0 outside of the image).
//   3. Depthwise 3x3 from E, 2 pixels and 4 channels a thread, down some rows; v goes out, q and k to shared memory QK.
//   4. When all of q and k are there: q^T k over the tile's pixels, by products, onto sums that stay in registers from
//      tile to tile, 48 x 48 channels a warp; the squares beside it.
// Steps 2 of one chunk and 3 of the chunk before are independent and one stream of instructions: a warp convolves while the
// tensor core works for it.
// At the end each block writes one partial sum; none is added in an order that could change.
//
// Races: chunks are counted on from tile to tile; number q uses E[q mod 2], R[q mod 2] (rows of weights) and T[q mod 2]
// (taps). Between two barriers chunk q + 1 is expanded (writes E[q + 1], reads R[q + 1]) and chunk q convolved (reads
// E[q], T[q]), while copies fill R[q + 2] and T[q + 1], whose last readers are behind the barrier. The last
// chunk of a tile has no next one expanded beside it; that happens before the first barrier of the next tile.
// QK is written with chunks of q and k, read (step 4) with the first of v, a barrier later. The next tile's pixels X are
// copied with the last chunk of v: to a place of their own or, where that is not the chunk of step 4, over QK.

constexpr int TILE_W = 16;
constexpr int ACROSS = TILE_W + 2;
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
constexpr int W_BYTES = CHUNK * ROW;
constexpr int R_BYTES = W_BYTES + CHUNK * 8;         // rows of W', then their shifts, each twice
constexpr int T_BYTES = 10 * CHUNK * 2;
// A warp convolves a group of 16 channels, STRETCH rows of it, beside the expansion of SPAN others.
constexpr int SPAN = PAIRS % 3 == 0 && WARPS % 3 == 0 ? 3 : PAIRS % 2 == 0 ? 2 : 1;
constexpr int STRETCH = TALL * SPAN / WARPS;
static_assert(STRETCH * WARPS == TALL * SPAN, "every warp has as much of step 3");
constexpr int CHUNKS = 3 * C / CHUNK;
constexpr int FIRST_V = 2 * C / CHUNK;
constexpr int QK_ROW = 4 * C + 16;
constexpr int QK_BYTES = TILE_W * TALL * QK_ROW;
constexpr int X_BYTES = PIXELS * ROW;
constexpr bool X_OVER_QK = X_BYTES <= QK_BYTES && CHUNKS - 1 > FIRST_V;
constexpr int E_AT = QK_BYTES;
constexpr int R_AT = E_AT + 2 * E_BYTES;
constexpr int T_AT = R_AT + 2 * R_BYTES;
constexpr int X_AT = X_OVER_QK ? 0 : T_AT + 2 * T_BYTES;
constexpr int ZERO_AT = X_OVER_QK ? T_AT + 2 * T_BYTES : X_AT + X_BYTES;  // 16 bytes
constexpr int BYTES = ZERO_AT + 16;
static_assert(BYTES == SHARED, "shared_bytes of the Python module is this number");
constexpr int CH = C / HEADS;
constexpr int PART = 48;                             // q channels of a warp's part of the Gram matrix; PART_K of k
constexpr int SPLIT = CH / PART, SPLIT_K = CH / PART_K;
constexpr int PARTS = HEADS * SPLIT * SPLIT_K;
constexpr int SEGMENTS = WARPS / PARTS;              // of the tile's pixels, for warps with the same part
constexpr int GRAM = 2;                              // steps of 4 that are unrolled
constexpr int GM = PART / 16, GN = PART_K / 8, GP = (GN + 1) / 2;
// Sums of squares stand in further fours, of 16 channels each: a warp with the columns part_k counts channels of these numbers
// of q and of k or, where two warps have them, one counts k and one q.
constexpr int OWN = GM * GN;
constexpr int QUADS = OWN + (SPLIT == 1 ? 2 : 1) * GP;
static_assert(C % CHUNK == 0 && CHUNK % 16 == 0 && C <= 192 && E_BYTES % 16 == 0 && R_BYTES % 16 == 0, "channels");
static_assert(CH % PART == 0 && SPLIT <= 2 && CH % PART_K == 0 && PART_K % 8 == 0 && WARPS % PARTS == 0, "heads");
static_assert(BYTES >= (SEGMENTS - 1) * PARTS * 32 * QUADS * 16, "other warps' sums fit");

DEVICE int spread(int r) { return 2 * (r & 7) + (r >> 3); }

struct Place { int lane, g, j, warp, n, top, left, h, w; };

DEVICE bool inside(const Place& at, int pixel) {
    const u32 y = at.top - 1 + pixel / ACROSS, x = at.left - 1 + pixel % ACROSS;
    return y < (u32)at.h && x < (u32)at.w;
}

// A thread copies units `part`, `part + SHARE`, ... of rows `line`, `line + LINES`, ...: all offsets but one are constants.
constexpr int UNITS = STEPS * 2;
constexpr int SHARE = UNITS % 4 == 0 ? 4 : 2;
constexpr int LINES = THREADS / SHARE;

DEVICE void fetch_pixels(const Place& at, const u16* x) {
    const int thread = launder(thread_idx()), part = thread % SHARE, line = thread / SHARE;
    const u32 to = X_AT + line * ROW + part * 16;
    const u16* corner = x + (((long long)at.n * at.h + at.top - 1) * at.w + at.left - 1) * C + part * 8;
#pragma unroll
    for (int row = 0; row < PIXELS; row += LINES)
        if (row + LINES <= PIXELS || row + line < PIXELS) {
            const bool there = inside(at, row + line);
            const u16* from = corner + ((row + line) / ACROSS * at.w + (row + line) % ACROSS) * C;
#pragma unroll
            for (int unit = 0; unit < UNITS; unit += SHARE)
                cp_async_16(to + row * ROW + unit * 16, from + unit * 8, there && (UNITS == C / 8 || unit + part < C / 8));
        }
}
// SIZE bytes as they lie in global memory: neighbours copy neighbours.
template <int SIZE> DEVICE void fetch(u32 to, const unsigned char* from) {
    const int mine = launder(thread_idx()) * 16;
#pragma unroll
    for (int k = 0; k < SIZE; k += THREADS * 16)
        if (k + THREADS * 16 <= SIZE || k + mine < SIZE) cp_async_16(to + mine + k, from + mine + k, true);
}
// `weights` (`pack` of sm80.py): R of every chunk, then T of every chunk.
DEVICE void fetch_rows(int number, int chunk, const unsigned char* weights) {
    fetch<R_BYTES>(R_AT + (number & 1) * R_BYTES, weights + chunk * R_BYTES);
}
DEVICE void fetch_taps(int number, int chunk, const unsigned char* weights) {
    fetch<T_BYTES>(T_AT + (number & 1) * T_BYTES, weights + CHUNKS * R_BYTES + chunk * T_BYTES);
}

// Step 1 for 16 pixels; bits 0 and 1 of `outside`: rows g, g + 8 lie outside of the image. Sums come from products as well: of
// the pixels with ones, and with themselves: then the first (second) 8 rows' squares stand on the diagonal of their products with
// the first (second) 8 pixels, and what the other rows make is of no use.
DEVICE void normalise(const Place& at, u32 (&a)[STEPS][4], int first, u32 outside) {
    const int mine = first + spread(launder(at.lane) & 15);
    const u32 from = X_AT + (mine < PIXELS ? mine : 0) * ROW + (at.lane >> 4) * 16;
    const u32 ones = pack(1, 1);
    float sum[4] = {}, upper[4] = {}, lower[4] = {};
#pragma unroll
    for (int s = 0; s < STEPS; ++s) {
        ldmatrix_x4(a[s], from + s * 32);
        mma_m16n8k16(sum, a[s], ones, ones);
#pragma unroll
        for (int half = 0; half < 4; half += 2) {
            mma_m16n8k8(upper, a[s][half], a[s][half + 1], a[s][half]);
            mma_m16n8k8(lower, a[s][half], a[s][half + 1], a[s][half + 1]);
        }
    }
    const bool diagonal = at.g / 2 == at.j;  // this lane holds it
    float square[2] = {at.g & 1 ? upper[1] : upper[0], at.g & 1 ? lower[3] : lower[2]}, scale[2], shift[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        square[i] = diagonal ? square[i] : 0;
        square[i] += shfl_xor(square[i], 1);
        square[i] += shfl_xor(square[i], 2);
        const float mean = sum[2 * i] * (1.0f / C);
        scale[i] = outside >> i & 1 ? 0 : rsqrt_approx(fmaxf(square[i] * (1.0f / C) - mean * mean, 0) + 1e-5f);
        shift[i] = CENTRED ? -mean * scale[i] : 0;
    }
#pragma unroll
    for (int s = 0; s < STEPS; ++s)
#pragma unroll
        for (int k = 0; k < 4; ++k)
            a[s][k] = pack(low(a[s][k]) * scale[k % 2] + shift[k % 2], high(a[s][k]) * scale[k % 2] + shift[k % 2]);
}

// What the sums of 8 channels begin with.
DEVICE void load_shift(float (&sum)[4], u32 from) {
    Vec4 shift = ld_shared_v4(from);
    sum[0] = as_float(shift.x), sum[1] = as_float(shift.y), sum[2] = as_float(shift.z), sum[3] = as_float(shift.w);
}

// Step 2.

// Pixels outside of the image: zeros, over what this thread has just written.
DEVICE void clear_outside(int number, const Place& at, u32 outside) {
    u32 to = E_AT + (number & 1) * E_BYTES + at.j * 8;
    for (int k = 0; k < 2 * TILES; ++k)
        if (outside >> k & 1)
            for (int t = 0; t < PAIRS; ++t)
                st_shared_v2(to + (16 * (at.warp + k / 2 * WARPS) + 2 * at.g + k % 2) * E_ROW + t * 32, Vec2{0, 0});
}

// Step 3 of a warp's unit: 16 channels down STRETCH rows, a thread four of them and pixels 2g, 2g + 1.
struct Unit {
    u32 from, to;     // in E, in QK
    u16* out;         // in v
    u32 line;         // numbers in a row of v
    u32 covered;      // bits 2 y, 2 y + 1: the pixels of row y lie within the image
    Vec2 tap[9], bias;
    Vec2 next[4];     // a row of E ahead of its use
    Vec2 sum[3][2];   // of rows y, y - 1, y - 2, at their number mod 3
};
constexpr u32 COVERED = (1u << 2 * STRETCH) - 1;

DEVICE u32 coverage(const Place& at, int first) {
    u32 bits = 0;
#pragma unroll
    for (int k = 0; k < 2 * STRETCH; ++k)
        bits |= (at.top + first + k / 2 < at.h && at.left + 2 * at.g + k % 2 < at.w ? 1u : 0u) << k;
    return bits;
}

// Of chunk i, which has this number: 16 channels from group * 16, rows from `first`.
template <bool V> DEVICE void begin(Unit& unit, int number, int i, int group, int first, const Place& at, u16* v) {
    unit.from = E_AT + (number & 1) * E_BYTES + (first * ACROSS + 2 * at.g) * E_ROW + group * 32 + at.j * 8;
    u32 taps = T_AT + (number & 1) * T_BYTES + group * 32 + at.j * 8;
    const int channel = i * CHUNK + group * 16 + at.j * 4;
    if (V) {
        const int y = at.top + first, x = at.left + 2 * at.g;
        unit.out = v + (((u64)at.n * at.h + y) * at.w + x) * C + channel - 2 * C;
        unit.line = at.w * C;
    } else
        unit.to = (first * TILE_W + 2 * at.g) * QK_ROW + channel * 2;
    unit.bias = ld_shared_v2(taps + 9 * CHUNK * 2);
#pragma unroll
    for (int x = 0; x < 4; ++x) unit.next[x] = ld_shared_v2(unit.from + x * E_ROW);
#pragma unroll
    for (int k = 0; k < 9; ++k) unit.tap[k] = ld_shared_v2(taps + k * CHUNK * 2);
}

// What row y of E adds, and the row of results that it completes. `y` is known once loops are unrolled.
template <bool V> DEVICE void convolve_row(Unit& unit, int y) {
    Vec2 e[4];
#pragma unroll
    for (int x = 0; x < 4; ++x) {
        e[x] = unit.next[x];
        if (y + 1 < STRETCH + 2) unit.next[x] = ld_shared_v2(unit.from + ((y + 1) * ACROSS + x) * E_ROW);
    }
#pragma unroll
    for (int dx = 0; dx < 3; ++dx)
#pragma unroll
        for (int dy = 0; dy < 3; ++dy) {
            const int row = y - dy;
            if (row < 0 || row >= STRETCH) continue;
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                Vec2& here = unit.sum[row % 3][c];
                const Vec2 before = dy == 0 && dx == 0 ? unit.bias : here;
                here.x = fma2(e[c + dx].x, unit.tap[dy * 3 + dx].x, before.x);
                here.y = fma2(e[c + dx].y, unit.tap[dy * 3 + dx].y, before.y);
            }
        }
    if (y < 2) return;
    const int row = y - 2;
#pragma unroll
    for (int c = 0; c < 2; ++c) {
        const Vec2 four = unit.sum[row % 3][c];
        if (V)
            st_global_v2_if(unit.out + row * unit.line + c * C, four, unit.covered & 1u << (2 * row + c));
        else
            st_shared_v2(unit.to + (row * TILE_W + c) * QK_ROW, four);
    }
}
// q and k outside of the image must not count, whatever the taps' bias and neighbours made them.
DEVICE void clear_uncovered(const Unit& unit) {
    for (int k = 0; k < 2 * STRETCH; ++k)
        if (!(unit.covered >> k & 1)) st_shared_v2(unit.to + (k / 2 * TILE_W + k % 2) * QK_ROW, Vec2{0, 0});
}

template <bool V> DEVICE void convolve(int number, int i, const Place& at, u16* v) {
#pragma unroll 1
    for (int u = 0; u < PAIRS; u += SPAN) {
        const int group = u + at.warp % SPAN, first = at.warp / SPAN * STRETCH;
        Unit unit;
        unit.covered = coverage(at, first);
        begin<V>(unit, number, i, group, first, at, v);
#pragma unroll
        for (int y = 0; y < STRETCH + 2; ++y) convolve_row<V>(unit, y);
        if (!V && unit.covered != COVERED) clear_uncovered(unit);
    }
}

// Step 2 of chunk `number` and, between the products, which leave most of a warp's issue slots free, step 3 of the chunk
// before, i of its tile (KIND 1: of q or k, 2: of v). KIND 0: step 2 alone.
template <int KIND>
DEVICE void expand(int number, int i, const Place& at, const u32 (&a)[TILES][STEPS][4], u32 outside, u16* v) {
    u32 base = R_AT + (number & 1) * R_BYTES;
    u32 rows = base + ((at.lane & 7) + (at.lane >> 4) * 8) * ROW + (at.lane >> 3 & 1) * 16;
    u32 shifts = base + W_BYTES + at.j * 16;
    u32 to = E_AT + (number & 1) * E_BYTES + at.j * 8 + (16 * at.warp + 2 * at.g) * E_ROW;
    const bool last = 16 * (at.warp + (TILES - 1) * WARPS) + 2 * at.g < PIXELS;
    const int first_row = at.warp / SPAN * STRETCH;
    Unit unit;
    if (KIND) unit.covered = coverage(at, first_row);
#pragma unroll 1
    for (int u = 0; u < PAIRS; u += SPAN) {
        if (KIND) begin<KIND == 2>(unit, number - 1, i, u + at.warp % SPAN, first_row, at, v);
#pragma unroll
        for (int t = 0; t < SPAN; ++t) {
            float first[TILES][4], second[TILES][4], c[2][4];
            load_shift(c[0], shifts + (u + t) * 128);
            load_shift(c[1], shifts + (u + t) * 128 + 64);
#pragma unroll
            for (int s = 0; s < STEPS; ++s) {
                u32 b[4];
                ldmatrix_x4(b, rows + (u + t) * 16 * ROW + s * 32);
#pragma unroll
                for (int m = 0; m < TILES; ++m) {
                    if (s == 0) {
                        mma_m16n8k16_from(first[m], c[0], a[m][s], b[0], b[1]);
                        mma_m16n8k16_from(second[m], c[1], a[m][s], b[2], b[3]);
                    } else {
                        mma_m16n8k16(first[m], a[m][s], b[0], b[1]);
                        mma_m16n8k16(second[m], a[m][s], b[2], b[3]);
                    }
                }
                // Rows are spread evenly over the turns of these two loops, at most two a turn.
                constexpr int ROWS = STRETCH + 2, TURNS = SPAN * STEPS;
                static_assert(ROWS <= 2 * TURNS, "at most two");
                const int turn = t * STEPS + s, y = (turn * ROWS + TURNS - 1) / TURNS;
                if (KIND && y < ROWS && y * TURNS / ROWS == turn) convolve_row<KIND == 2>(unit, y);
                if (KIND && y + 1 < ROWS && (y + 1) * TURNS / ROWS == turn) convolve_row<KIND == 2>(unit, y + 1);
            }
#pragma unroll
            for (int m = 0; m < TILES; ++m)
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    Vec2 four = {pack(first[m][2 * r], first[m][2 * r + 1]), pack(second[m][2 * r], second[m][2 * r + 1])};
                    u32 place = to + (16 * m * WARPS + r) * E_ROW + (u + t) * 32;
                    if (16 * WARPS * (m + 1) <= PIXELS)
                        st_shared_v2(place, four);
                    else
                        st_shared_v2_if(place, four, last);
                }
        }
        if (KIND == 1 && unit.covered != COVERED) clear_uncovered(unit);
    }
    if (outside) clear_outside(number, at, outside);
}

// Adds the sums of squares of 16 channels of 16 pixels at `at`, which stand on the diagonals of the products of channels 0..7 and
// (`both`) 8..15 with themselves. `from` is this lane's row of two pieces of 8 x 8 with zeros between them: so what a
// matrix is multiplied with is in registers beside a zero as it comes, and the other half of the sum stays as it is.
DEVICE void square(float (&sum)[4], u32 from, u32 step, bool both) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        u32 a[4];
        ldmatrix_x4_trans(a, from + half * step);
        mma_m16n8k8(sum, a[0], a[1], a[0]);
        if (both) mma_m16n8k8(sum, a[2], a[3], a[3]);
    }
}

// Step 4. This warp's part: q channels from first_q, k channels from first_k, of its segment of the pixels.
DEVICE void multiply_parts(const Place& at, float (&sums)[QUADS][4], int head, int part_q, int part_k, int segment) {
    constexpr int LENGTH = TILE_W * TALL / SEGMENTS;
    const int first_q = head * CH + part_q * PART, first_k = head * CH + part_k * PART_K;
    u32 pixels = segment * LENGTH * QK_ROW;
    u32 q_at = pixels + ((at.lane & 7) + (at.lane >> 4) * 8) * QK_ROW + (first_q + (at.lane >> 3 & 1) * 8) * 2;
    u32 k_at = pixels + (at.lane & 15) * QK_ROW + (C + first_k + (at.lane >> 4) * 8) * 2;
    const bool zero = at.lane >> 3 == 1 || at.lane >> 3 == 2;  // this lane's row, for `square`
    u32 own = pixels + (at.lane & 7) * QK_ROW + ((SPLIT == 1 || part_q ? 0 : C) + first_k + at.lane / 16 * 8) * 2;
    if (zero) own = ZERO_AT;
    const u32 step = zero ? 0 : 8 * QK_ROW, right = zero ? 0 : 32, to_k = zero ? 0 : 2 * C;
#pragma unroll GRAM
    for (int s = 0; s < LENGTH / 16; ++s) {
        u32 a[GM][4], b[GP][4];
#pragma unroll
        for (int m = 0; m < GM; ++m) ldmatrix_x4_trans(a[m], q_at + m * 32);
        // The last of an odd number of columns' groups reads eight channels too many: not used.
#pragma unroll
        for (int p = 0; p < GP; ++p) ldmatrix_x4_trans(b[p], k_at + p * 32);
#pragma unroll
        for (int m = 0; m < GM; ++m)
#pragma unroll
            for (int n = 0; n < GN; ++n) mma_m16n8k16(sums[m * GN + n], a[m], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
#pragma unroll
        for (int p = 0; p < GP; ++p) {
            square(sums[OWN + p], own + p * right, step, 2 * p + 1 < GN);
            if (SPLIT == 1) square(sums[QUADS - GP + p], own + to_k + p * right, step, 2 * p + 1 < GN);
        }
        q_at += 16 * QK_ROW, k_at += 16 * QK_ROW, own += 2 * step;
    }
}

KERNEL(THREADS, BLOCKS)
mdta_gram_sm80(const u16* x, const u16* packed, u16* v, float* partial, int h, int width) {
    const unsigned char* weights = (const unsigned char*)packed;
    Place at;
    at.lane = thread_idx() & 31, at.warp = thread_idx() >> 5;
    at.g = at.lane >> 2, at.j = at.lane & 3;
    at.n = block_idx(1), at.h = h, at.w = width;
    const int across = (width + TILE_W - 1) / TILE_W, tiles = across * ((h + TALL - 1) / TALL);
    const int part = at.warp % PARTS, segment = at.warp / PARTS;
    const int head = part / (SPLIT * SPLIT_K), part_q = part / SPLIT_K % SPLIT, part_k = part % SPLIT_K;

    float sums[QUADS][4];
#pragma unroll
    for (int c = 0; c < 4 * QUADS; ++c) sums[c / 4][c % 4] = 0;

    if (thread_idx() == 0) st_shared_v4(ZERO_AT, Vec4{0, 0, 0, 0});
    int tile = block_idx(0);
    at.top = tile / across * TALL, at.left = tile % across * TILE_W;
    fetch_pixels(at, x);
    fetch_rows(0, 0, weights);
    fetch_rows(1, 1, weights);
    fetch_taps(0, 0, weights);
    cp_async_commit_group();
    int number = 0;
    for (; tile < tiles; tile += grid_dim_x()) {
        at.top = tile / across * TALL, at.left = tile % across * TILE_W;
        cp_async_wait_group<0>();
        syncthreads();
        u32 a[TILES][STEPS][4];
        u32 outside = 0;  // bits 2 m, 2 m + 1: rows g, g + 8 of group m are pixels outside of the image
        if (at.top == 0 || at.left == 0 || at.top + TALL >= at.h || at.left + TILE_W >= at.w)
#pragma unroll
            for (int k = 0; k < 2 * TILES; ++k) {
                const int pixel = launder(16 * at.warp + 2 * at.g) + 16 * (k / 2) * WARPS + k % 2;
                outside |= (pixel < PIXELS && !inside(at, pixel) ? 1u : 0u) << k;
            }
#pragma unroll
        for (int m = 0; m < TILES; ++m) normalise(at, a[m], 16 * (at.warp + m * WARPS), outside >> 2 * m);
        expand<0>(number, 0, at, a, outside, v);
        for (int i = 0; i < CHUNKS; ++i, ++number) {
            cp_async_wait_group<0>();
                syncthreads();
            // Of the last chunk but one (the last): the first (second) rows of the next tile.
            fetch_rows(number + 2, i + 2 < CHUNKS ? i + 2 : i + 2 - CHUNKS, weights);
            fetch_taps(number + 1, i + 1 < CHUNKS ? i + 1 : 0, weights);
            if (i == CHUNKS - 1 && tile + grid_dim_x() < tiles) {
                Place next = at;
                int t = tile + grid_dim_x();
                next.top = t / across * TALL, next.left = t % across * TILE_W;
                fetch_pixels(next, x);
            }
            cp_async_commit_group();
            if (i < FIRST_V)
                expand<1>(number + 1, i, at, a, outside, v);
            else if (i + 1 < CHUNKS)
                expand<2>(number + 1, i, at, a, outside, v);
            else
                convolve<true>(number, i, at, v);
            if (i == FIRST_V) multiply_parts(at, sums, head, part_q, part_k, segment);
        }
    }
    cp_async_wait_group<0>();
    syncthreads();

    // Warps with the same part add up, the first one last: one partial sum a block.
    if (SEGMENTS > 1) {
        if (segment > 0) {
            u32 to = (((segment - 1) * PARTS + part) * 4 * QUADS * 32 + at.lane) * 4;
#pragma unroll
            for (int c = 0; c < 4 * QUADS; ++c) st_shared_f32(to + 128 * c, sums[c / 4][c % 4]);
        }
        syncthreads();
        if (segment > 0) return;
        for (int s = 0; s < SEGMENTS - 1; ++s) {
            u32 from = ((s * PARTS + part) * 4 * QUADS * 32 + at.lane) * 4;
#pragma unroll
            for (int c = 0; c < 4 * QUADS; ++c) sums[c / 4][c % 4] += ld_shared_f32(from + 128 * c);
        }
    }

    float* to = partial + (((u64)block_idx(0) * grid_dim_y() + at.n) * HEADS + head) * (CH * (CH + 2));
    float* to_own = to + CH * CH + (SPLIT == 1 || part_q ? 0 : CH) + part_k * PART_K;
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
        }
#pragma unroll
        for (int p = 0; p < GP; ++p)
            if (diagonal && 2 * p + i < GN) {
                const float *first = sums[OWN + p] + 2 * i, *second = sums[QUADS - GP + p] + 2 * i;
                to_own[p * 16 + i * 8 + at.g] = at.g & 1 ? first[1] : first[0];
                if (SPLIT == 1) to_own[CH + p * 16 + i * 8 + at.g] = at.g & 1 ? second[1] : second[0];
            }
    }
}
