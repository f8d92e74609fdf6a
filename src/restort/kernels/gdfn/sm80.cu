// The second half of a Restormer block in one kernel. Formula: reference.py; order of the weights: sm80.py.
//
// A block of WARPS warps makes 16 x TALL pixels from the 18 x (TALL + 2) around them:
//   1. x' = x + v matrix^T + attention_b by products; the pixels of a warp's own one or two rows stay in its registers in
//      float32 as the sum that ends as the output (so the residual is never stored nor rounded); all pixels,
//      normalised, go to shared memory once, and from there into registers as the A operand of step 2.
//   2. For every 32 hidden channels: their gates and values of all 18 x (TALL + 2) pixels by products -> 16 bits
//      in shared memory E, all less their shift, which the bias of the convolution has in it: it pads the expanded
//      tensor with zeros, so a pixel outside of the image is minus the shift.
//   3. Depthwise 3x3 and gate, from E to G in shared memory: a warp takes 8 hidden channels down 8 rows, so that taps and
//      most of E are read once.
//   4. The projection, onto the sum; G holds what a thread needs as its part of an A operand.
//
// Races: E is written in step 2 and read in step 3, G written in 3 and read in 4; a barrier stands between 2 and 3 and
// between 3 and 4, and 4 of one chunk may run beside 2 of the next, which have nothing in common. Weights of chunk
// i lie in W[i mod 2] (read in step 2) and P[i mod 2] (in 3 and 4); the copies issued after the first barrier of
// chunk i fill W[i + 2], last read before it, and P[i + 1], whose last readers were steps 3 and 4 of chunk i - 1, also
// before it. They are read after every thread has waited for its own copies and then passed a barrier.
//
// `out` must not overlap x or v: other blocks read their halos there.

constexpr int ROWS = TALL / WARPS;                  // of pixels, that a warp makes
constexpr int TILE_W = 16;
constexpr int ACROSS = TILE_W + 2;                    // columns with the halo
constexpr int PIXELS = ACROSS * (TALL + 2);         // with the halo
constexpr int THREADS = 32 * WARPS;
constexpr int EXPAND_TILES = (PIXELS + 15) / 16;    // groups of 16 pixels
constexpr int TILES = (EXPAND_TILES + WARPS - 1) / WARPS;
constexpr int RING = PIXELS - TILE_W * TALL;          // pixels of the halo alone
constexpr int RINGS = ((RING + 15) / 16 + WARPS - 1) / WARPS;  // groups of 16 of them a warp
constexpr int STEPS = (C + 15) / 16;                // of 16 channels, in products over channels
constexpr int COLUMNS = C / 8;                      // groups of 8 channels, in products that make channels
constexpr int ROW = STEPS * 32 + 16;                // bytes of a row of channels: an odd number of 16, no bank conflicts
constexpr int CHUNK = 32;                           // hidden channels a step
constexpr int PAIRS = CHUNK / 8;
constexpr int CHUNKS = F / CHUNK;
constexpr int E_ROW = 32 * PAIRS + 16;              // bytes of a pixel of E: 8 for each lane j and pair: 2 gates, 2 values
constexpr int E_BYTES = 16 * EXPAND_TILES * E_ROW;  // whole groups of pixels
constexpr int W_BYTES = 2 * CHUNK * ROW;
constexpr int IN_BYTES = W_BYTES + 2 * CHUNK * 2;   // rows of W', then minus the shift of each, as E holds a pixel
constexpr int TAP_BYTES = CHUNK * 4;                // a tap of 32 gates and 32 values
constexpr int OUT_ROW = COLUMNS * 16 + 16 + (COLUMNS % 2) * 16;  // bytes of a hidden row of the projection
constexpr int P_BYTES = CHUNK * OUT_ROW;
constexpr int OUT_BYTES = P_BYTES + 10 * TAP_BYTES;
constexpr int TILE_BYTES = PIXELS * ROW;            // v, then the normalised pixels; dead when E is first written
constexpr int MATRIX_BYTES = C * ROW;
constexpr int STRETCH = TALL * PAIRS / WARPS;       // rows a warp goes down in step 3
constexpr int G_BYTES = TALL * PAIRS * 256;
constexpr int E_AREA = E_BYTES > TILE_BYTES ? E_BYTES : TILE_BYTES;
constexpr int IN_AT = (E_AREA + 15) / 16 * 16;
constexpr int OUT_AT = IN_AT + 2 * IN_BYTES;
constexpr int G_AT = OUT_AT + 2 * OUT_BYTES;
constexpr int MATRIX_AT = IN_AT + IN_BYTES;           // the matrix lies where the second W, both P and G come later
constexpr int BYTES = G_AT + G_BYTES > MATRIX_AT + MATRIX_BYTES ? G_AT + G_BYTES : MATRIX_AT + MATRIX_BYTES;
static_assert(C % 8 == 0 && F % CHUNK == 0 && C * ROWS <= 192 && TALL % WARPS == 0, "channel counts");
static_assert(BYTES == SHARED, "shared_bytes of the Python module is this number");
static_assert(WARPS % PAIRS == 0, "step 3 gives every warp the same work");
static_assert(ROWS * TILE_W * OUT_ROW * WARPS <= E_AREA, "the output is staged where E was");

// The row of an image-high tile that fragment row r of a group of 16 pixels stands for: a thread's rows g and g + 8 are
// neighbouring pixels, which share two of three columns of taps.
DEVICE int spread(int r) { return 2 * (r & 7) + (r >> 3); }

DEVICE void clear(float (&d)[4]) { d[0] = d[1] = d[2] = d[3] = 0; }

struct Place { int lane, g, j, warp, n, top, left, h, w; };

DEVICE bool inside(const Place& at, int pixel) {
    int y = at.top - 1 + pixel / ACROSS, x = at.left - 1 + pixel % ACROSS;
    return y >= 0 && y < at.h && x >= 0 && x < at.w;
}
DEVICE u64 position(const Place& at, int pixel) {
    int y = at.top - 1 + pixel / ACROSS, x = at.left - 1 + pixel % ACROSS;
    return ((u64)at.n * at.h + y) * at.w + x;
}
DEVICE int ring_pixel(int k) {
    if (k < ACROSS) return k;
    if (k < 2 * ACROSS) return (TALL + 1) * ACROSS + k - ACROSS;
    k -= 2 * ACROSS;
    return (1 + (k >> 1)) * ACROSS + (k & 1) * (ACROSS - 1);
}

constexpr int UNITS = STEPS * 2;                    // of 16 bytes in a row of shared memory; C / 8 of them in an array's
constexpr int LINES = THREADS / UNITS;              // rows that all threads copy at once
static_assert(LINES > 0, "a thread copies less than a row");

// What lies as it is to lie in shared memory, as `pack` of sm80.py makes it: consecutive threads, consecutive bytes.
template <int SIZE> DEVICE void fetch(u32 to, const u16* from) {
    const int mine = thread_idx() * 16;
#pragma unroll
    for (int at = 0; at < SIZE; at += THREADS * 16)
        if (at + THREADS * 16 <= SIZE || at + mine < SIZE) cp_async_16(to + at + mine, (const char*)from + at + mine, true);
}

// Weights of chunk i for the expansion: rows of W' and their shifts.
DEVICE void fetch_in(int i, const u16* image) {
    fetch<IN_BYTES>(IN_AT + (i & 1) * IN_BYTES, image + i * ((IN_BYTES + OUT_BYTES) / 2));
}

// Weights of chunk i for the projection, and the taps: [tap][pair of channels] (2 gates, 2 values).
DEVICE void fetch_out(int i, const u16* image) {
    fetch<OUT_BYTES>(OUT_AT + (i & 1) * OUT_BYTES, image + i * ((IN_BYTES + OUT_BYTES) / 2) + IN_BYTES / 2);
}

// v of all pixels and the matrix into shared memory; zeros outside of the image.
DEVICE void fetch_tile(const Place& at, const u16* v, const u16* matrix) {
    constexpr int SLOTS = (ACROSS * UNITS + THREADS - 1) / THREADS;  // what a thread copies of a row of pixels
    const u16* corner = v + (((i64)at.n * at.h + at.top - 1) * at.w + at.left - 1) * C;
#pragma unroll
    for (int slot = 0; slot < SLOTS; ++slot) {
        const int k = thread_idx() + slot * THREADS, column = k / UNITS, unit = k % UNITS;
        const bool mine = k < ACROSS * UNITS;
        const bool valid = at.left - 1 + column >= 0 && at.left - 1 + column < at.w && unit < C / 8;
        u32 to = column * ROW + unit * 16;
        const u16* from = corner + column * C + unit * 8;
#pragma unroll
        for (int row = 0; row < TALL + 2; ++row) {
            bool there = valid && at.top - 1 + row >= 0 && at.top - 1 + row < at.h;
            if (mine) cp_async_16(to, there ? from : v, there);
            to += ACROSS * ROW;
            from += at.w * C;
        }
    }
    const int unit = thread_idx() % UNITS, line = thread_idx() / UNITS;
    if (line < LINES) {
        const bool valid = unit < C / 8;
        u32 to = MATRIX_AT + line * ROW + unit * 16;
        const u16* row_of = matrix + ((u64)at.n * C + line) * C + unit * 8;
#pragma unroll
        for (int row = 0; row < C; row += LINES)
            if (row + LINES <= C || row + line < C)
                cp_async_16(to + row * ROW, valid ? row_of + row * C : matrix, valid);
    }
}

// x of rows g, g + 8 of a group of 16 pixels: p[0] and p[1]; zeros outside of the image.
DEVICE void load_pixels(const Place& at, u32 (&pairs)[COLUMNS][2], const int (&p)[2], const u16* x) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const u16* row = x + position(at, p[i]) * C + 2 * at.j;
        bool valid = inside(at, p[i]);
#pragma unroll
        for (int n = 0; n < COLUMNS; ++n) pairs[n][i] = valid ? *(const u32*)(row + 8 * n) : 0;
    }
}

// sum = x + attention_b + v matrix^T of GROUPS times 16 pixels, `mine` being the pixels of this lane's row of A.
constexpr int GROUPS = RINGS + ROWS;
DEVICE void residual(const Place& at, float (&sum)[GROUPS][COLUMNS][4], const u32 (&pairs)[GROUPS][COLUMNS][2],
                     const int (&mine)[GROUPS], const float* attention_b) {
#pragma unroll
    for (int k = 0; k < GROUPS; ++k)
#pragma unroll
        for (int n = 0; n < COLUMNS; ++n)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                sum[k][n][2 * i] = low(pairs[k][n][i]);
                sum[k][n][2 * i + 1] = high(pairs[k][n][i]);
            }
#if ATTENTION_BIAS
#pragma unroll
    for (int n = 0; n < COLUMNS; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float b = attention_b[8 * n + 2 * at.j + i];
#pragma unroll
            for (int k = 0; k < GROUPS; ++k) {
                sum[k][n][i] += b;
                sum[k][n][2 + i] += b;
            }
        }
#endif
    u32 matrix = MATRIX_AT + ((at.lane & 7) + (at.lane >> 4) * 8) * ROW + (at.lane >> 3 & 1) * 16;
#pragma unroll
    for (int s = 0; s < STEPS; ++s) {
        u32 a[GROUPS][4];
#pragma unroll
        for (int k = 0; k < GROUPS; ++k) ldmatrix_x4(a[k], mine[k] * ROW + (at.lane >> 4) * 16 + s * 32);
#pragma unroll
        for (int n = 0; n < COLUMNS; n += 2) {
            u32 b[4];
            // The last group of an odd number reads eight rows too many, of other weights: not used.
            ldmatrix_x4(b, matrix + n * 8 * ROW + s * 32);
#pragma unroll
            for (int k = 0; k < GROUPS; ++k) {
                mma_m16n8k16(sum[k][n], a[k], b[0], b[1]);
                if (n + 1 < COLUMNS) mma_m16n8k16(sum[k][n + 1], a[k], b[2], b[3]);
            }
        }
    }
}

// The normalised pixels p[0], p[1] (this thread's columns of them) to shared memory; not stored where p[i] >= PIXELS.
DEVICE void normalise(const Place& at, const float (&sum)[COLUMNS][4], const int (&p)[2], const bool (&store)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        float mean = 0, square = 0;
#pragma unroll
        for (int n = 0; n < COLUMNS; ++n) {
            mean += sum[n][2 * i] + sum[n][2 * i + 1];
            square += sum[n][2 * i] * sum[n][2 * i] + sum[n][2 * i + 1] * sum[n][2 * i + 1];
        }
        mean += shfl_xor(mean, 1);
        mean += shfl_xor(mean, 2);
        mean *= 1.0f / C;
        square += shfl_xor(square, 1);
        square += shfl_xor(square, 2);
        float scale = inside(at, p[i]) ? rsqrt_approx(fmaxf(square * (1.0f / C) - mean * mean, 0) + 1e-5f) : 0;
#if CENTRED
        const float shift = -mean * scale;
#else
        const float shift = 0;
#endif
        if (store[i])
#pragma unroll
            for (int n = 0; n < COLUMNS; ++n) {
                u32 pair = pack(sum[n][2 * i] * scale + shift, sum[n][2 * i + 1] * scale + shift);
                st_shared(p[i] * ROW + n * 16 + at.j * 4, pair);
            }
    }
}

// Step 4: the projection of chunk i, of this warp's rows.
DEVICE void project(int i, const Place& at, float (&sum)[ROWS][COLUMNS][4]) {
    u32 from = G_AT + ROWS * at.warp * PAIRS * 256 + at.lane * 8;
    u32 rows = OUT_AT + (i & 1) * OUT_BYTES + (at.lane & 15) * OUT_ROW + (at.lane >> 4) * 16;
#pragma unroll
    for (int s = 0; s < CHUNK / 16; ++s) {
        u32 a[ROWS][4];
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                Vec2 both = ld_shared_v2(from + (r * PAIRS + 2 * s + half) * 256);
                a[r][2 * half] = both.x, a[r][2 * half + 1] = both.y;
            }
#pragma unroll
        for (int n = 0; n < COLUMNS; n += 2) {
            u32 b[4];
            // An odd last group reads 16 bytes of padding: not used.
            ldmatrix_x4_trans(b, rows + s * 16 * OUT_ROW + n * 16);
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                mma_m16n8k16(sum[r][n], a[r], b[0], b[1]);
                if (n + 1 < COLUMNS) mma_m16n8k16(sum[r][n + 1], a[r], b[2], b[3]);
            }
        }
    }
}

// Step 2: the gates and values of chunk i, for this warp's groups of 16 pixels.
DEVICE void expand(int i, const Place& at, const u32 (&a)[TILES][STEPS][4], u32 outside) {
    u32 in = IN_AT + (i & 1) * IN_BYTES;
    u32 rows = in + ((at.lane & 7) + (at.lane >> 4) * CHUNK) * ROW + (at.lane >> 3 & 1) * 16;
    u32 to = at.j * 8;
    u32 b[2][4];  // a step ahead of its use
    ldmatrix_x4(b[0], rows);
#pragma unroll
    for (int t = 0; t < PAIRS; ++t) {
        float gate[TILES][4], value[TILES][4];
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            const u32(&now)[4] = b[(t * STEPS + s) % 2];
            const int next = s + 1 < STEPS ? t * 8 * ROW + (s + 1) * 32 : (t + 1) * 8 * ROW;
            if (t * STEPS + s + 1 < PAIRS * STEPS) ldmatrix_x4(b[(t * STEPS + s + 1) % 2], rows + next);
#pragma unroll
            for (int m = 0; m < TILES; ++m) {
                if (s == 0) clear(gate[m]), clear(value[m]);
                mma_m16n8k16(gate[m], a[m][s], now[0], now[1]);
                mma_m16n8k16(value[m], a[m][s], now[2], now[3]);
            }
        }
#pragma unroll
        for (int m = 0; m < TILES; ++m)
            if (EXPAND_TILES % WARPS == 0 || at.warp + m * WARPS < EXPAND_TILES)
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    Vec2 four = {pack(gate[m][2 * r], gate[m][2 * r + 1]), pack(value[m][2 * r], value[m][2 * r + 1])};
                    st_shared_v2(to + (16 * (at.warp + m * WARPS) + 2 * at.g + r) * E_ROW + t * 32, four);
                }
    }
    if (outside) {  // of the image: then what is missing to zero, over what this thread has just written
        u32 missing = IN_AT + (i & 1) * IN_BYTES + W_BYTES + at.j * 8;
        for (int k = 0; k < 2 * TILES; ++k)
            if (outside >> k & 1)
                for (int t = 0; t < PAIRS; ++t)
                    st_shared_v2(at.j * 8 + (16 * (at.warp + k / 2 * WARPS) + 2 * at.g + k % 2) * E_ROW + t * 32,
                                  ld_shared_v2(missing + t * 32));
    }
}


// Step 3: a warp takes 8 hidden channels of STRETCH rows, a thread two of them and pixels 2g, 2g + 1, and goes down the
// rows. The results lie in G as step 4 reads them: [row][pair][lane], two neighbouring pixels of two channels.
DEVICE void gated(int i, const Place& at) {
    const int pair = at.warp % PAIRS, first = at.warp / PAIRS * STRETCH;
    u32 from = (first * ACROSS + 2 * at.g) * E_ROW + pair * 32 + at.j * 8;
    u32 taps = OUT_AT + (i & 1) * OUT_BYTES + P_BYTES + pair * 32 + at.j * 8;
    u32 to = G_AT + pair * 256 + at.lane * 8;
    const Vec2 bias = ld_shared_v2(taps + 9 * TAP_BYTES);
    Vec2 tap[9];
#pragma unroll
    for (int k = 0; k < 9; ++k) tap[k] = ld_shared_v2(taps + k * TAP_BYTES);
    Vec2 sum[3][2];  // of rows y, y - 1, y - 2, at their number mod 3
    Vec2 next[4];  // a row ahead of its use
#pragma unroll
    for (int x = 0; x < 4; ++x) next[x] = ld_shared_v2(from + x * E_ROW);
#pragma unroll
    for (int y = 0; y < STRETCH + 2; ++y) {
        Vec2 e[4];
#pragma unroll
        for (int x = 0; x < 4; ++x) {
            e[x] = next[x];
            if (y + 1 < STRETCH + 2) next[x] = ld_shared_v2(from + ((y + 1) * ACROSS + x) * E_ROW);
        }
#pragma unroll
        for (int dy = 0; dy < 3; ++dy) {
            const int row = y - dy;
            if (row < 0 || row >= STRETCH) continue;
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                Vec2& here = sum[row % 3][c];
                if (dy == 0) here = bias;
#pragma unroll
                for (int dx = 0; dx < 3; ++dx) {
                    here.x = fma2(e[c + dx].x, tap[dy * 3 + dx].x, here.x);
                    here.y = fma2(e[c + dx].y, tap[dy * 3 + dx].y, here.y);
                }
            }
        }
        if (y >= 2) {
            u32 result[2];
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                Vec2 here = sum[(y - 2) % 3][c];
                result[c] = mul2(gelu2(here.x), here.y);
            }
            st_shared_v2(to + (first + y - 2) * PAIRS * 256, Vec2{result[0], result[1]});
        }
    }
}

KERNEL(THREADS, BLOCKS)
gdfn_sm80(const u16* x, const u16* v, const u16* matrix, const float* attention_b, const u16* image, const float* out_b,
           u16* out, int h, int w_pixels) {
    Place at;
    at.lane = thread_idx() & 31, at.warp = thread_idx() >> 5;
    at.g = at.lane >> 2, at.j = at.lane & 3;
    at.n = block_idx(2), at.top = block_idx(1) * TALL, at.left = block_idx(0) * TILE_W;
    at.h = h, at.w = w_pixels;

    fetch_tile(at, v, matrix);
    fetch_in(0, image);
    cp_async_commit_group();

    // Groups of 16 pixels: RINGS of the halo's, then this warp's own rows. Where the halo has no pixel left, the first of
    // the group or this warp's own stand for one (another warp may be writing others). x is asked for before any waiting.
    const int spread_lane = spread(at.lane & 15);  // the row of A whose address this lane gives
    u32 pairs[GROUPS][COLUMNS][2];
    int p[GROUPS][2], mine[GROUPS];
    bool store[GROUPS][2];
#pragma unroll
    for (int k = 0; k < GROUPS; ++k) {
        const int own = (ROWS * at.warp + (k < RINGS ? 0 : k - RINGS) + 1) * ACROSS + 1;
        const int first = 16 * (at.warp + k * WARPS);
        if (k < RINGS) {
            const bool have = RING >= 16 * WARPS * RINGS || first < RING;
            mine[k] = have ? ring_pixel(first + (at.lane & 15) < RING ? first + (at.lane & 15) : first) : own;
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int place = first + at.g + 8 * i;
                p[k][i] = have ? ring_pixel(place < RING ? place : first) : own;
                store[k][i] = place < RING;
            }
        } else {
            mine[k] = own + spread_lane;
#pragma unroll
            for (int i = 0; i < 2; ++i) p[k][i] = own + 2 * at.g + i, store[k][i] = true;
        }
        load_pixels(at, pairs[k], p[k], x);
    }
    cp_async_wait_group<0>();
    syncthreads();

    float all[GROUPS][COLUMNS][4];
    residual(at, all, pairs, mine, attention_b);
    syncwarp();
#pragma unroll
    for (int k = 0; k < GROUPS; ++k) normalise(at, all[k], p[k], store[k]);
    float(&sum)[ROWS][COLUMNS][4] = *(float(*)[ROWS][COLUMNS][4])(all + RINGS);
    syncthreads();

    u32 a[TILES][STEPS][4];
    u32 outside = 0;  // bits 2 m, 2 m + 1: rows g, g + 8 of group m are pixels outside of the image
#pragma unroll
    for (int m = 0; m < TILES; ++m) {
        int first = 16 * (at.warp + m * WARPS);
        int row = first + spread_lane < PIXELS ? first + spread_lane : 0;
#pragma unroll
        for (int s = 0; s < STEPS; ++s) ldmatrix_x4(a[m][s], row * ROW + s * 32 + (at.lane >> 4) * 16);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            int pixel = first + 2 * at.g + r;
            outside |= (pixel < PIXELS && !inside(at, pixel) ? 1u : 0u) << (2 * m + r);
        }
    }
    syncthreads();

    if (CHUNKS > 1) fetch_in(1, image);
    fetch_out(0, image);
    cp_async_commit_group();
    expand(0, at, a, outside);
#pragma unroll 1
    for (int i = 0; i < CHUNKS; ++i) {
        cp_async_wait_group<0>();
            syncthreads();
        if (i + 2 < CHUNKS) fetch_in(i + 2, image);
        if (i + 1 < CHUNKS) fetch_out(i + 1, image);
        cp_async_commit_group();
        gated(i, at);
            syncthreads();
        project(i, at, sum);
        if (i + 1 < CHUNKS) expand(i + 1, at, a, outside);
    }

    // Through shared memory, so that 16 bytes go out at a time.
    syncthreads();
    u32 stage = at.warp * ROWS * TILE_W * OUT_ROW;
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int n = 0; n < COLUMNS; ++n)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
#if OUT_BIAS
                float b0 = out_b[8 * n + 2 * at.j], b1 = out_b[8 * n + 2 * at.j + 1];
                u32 pair = pack(sum[r][n][2 * i] + b0, sum[r][n][2 * i + 1] + b1);
#else
                u32 pair = pack(sum[r][n][2 * i], sum[r][n][2 * i + 1]);
#endif
                st_shared(stage + (r * TILE_W + 2 * at.g + i) * OUT_ROW + n * 16 + at.j * 4, pair);
            }
    syncwarp();
    for (int k = at.lane; k < ROWS * TILE_W * COLUMNS; k += 32) {
        int pixel = k / COLUMNS, unit = k % COLUMNS;
        int y = at.top + ROWS * at.warp + pixel / TILE_W, column = at.left + pixel % TILE_W;
        if (y < at.h && column < at.w)
            *(Vec4*)(out + (((u64)at.n * at.h + y) * at.w + column) * C + unit * 8) =
                ld_shared_v4(stage + pixel * OUT_ROW + unit * 16);
    }
}
