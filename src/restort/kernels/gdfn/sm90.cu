// The second half of a Restormer block in one kernel for Hopper. Formula: reference.py; order of the weights: sm90.py.
//
// All products are those of four warps (a group, wgmma), and the expanded tensor is never in memory of any kind. A block of
// GROUPS groups of warps makes 16 x TALL pixels from the 18 x (TALL + 2) around them:
//   1. x' = x + v matrix^T + attention_b, 64 pixels a product, v from registers. What a group has made of the tile itself stays
//      in its registers in float32 as the sum that ends as the output; all pixels, normalised, go to shared memory, in the
//      order in which step 2 wants them, and are 0 outside of the image.
//   2. The expansion, transposed: rows are channels, columns are pixels. A warp has 16 rows: the gates and the values of 8
//      hidden channels; its weights stay in registers for a pass over all pixels, 40 a product: two rows of 16, and four
//      of the halo. Columns are ordered so that lane 4 g + j gets the gate and the value of channel g of pixels
//      4j .. 4j + 3 of every row, as pairs 0 and 2, 1 and 3; of the halo lane j = 0 has what is left of the two rows and
//      j = 3 what is right.
//   3. Depthwise 3x3 and gate down the rows, in the same registers: neighbours beyond a lane's four come from the next
//      lane. The products of the next two rows are under way meanwhile. Results go to G, 8 bytes of a channel at a time.
//   4. Once for every CHUNK hidden channels, the projection of G onto the sums, begun after a barrier and beside a piece of
//      the next chunk (PROJECTS: the first has less to do), with which it is waited for.
// Products are always waited for all at once, before the next are begun, and never across the end of the loop: otherwise
// ptxas gives up and waits for each (its message C7514).
//
// A shift s of an expanded channel is no part of the products: inside of the image it adds s * (sum of the taps), which
// sm90.py adds to the depthwise bias. What is outside of the image is minus the shift then, which tiles at the edge put there.
//
// Races: A and the matrix are written in step 1 and read by products after a barrier. The matrix's place is that of G[0], first
// written after another barrier, which every warp passes when it has waited for its products with the matrix. G[k mod 2]
// is written in chunk k and read by the projection of k, which is begun after k's barrier and waited for (by every warp)
// before the barrier of k + 1, and so written again in k + 2. P[k mod 2] is read by the projection of k alone; P[k + 1] is
// fetched after the barrier of k, before which the projection of k - 1 has been waited for. Taps T[k mod 2] are read in
// chunk k, and T[k + 2] is fetched after its barrier. What is fetched after the barrier of k is waited for by the thread
// that asked for it before the barrier of k + 1. The first chunk begins with a projection of zeros, in G[1].
//
// `out` must not overlap x or v: other blocks read their halos there.

constexpr int OWN = CORE / GROUPS;                  // of them a group's
constexpr int PROJECTS = 1;                         // the piece of a chunk beside which the projection is
constexpr int CHUNK = 8 * WARPS;                    // hidden channels
constexpr int CHUNKS = F / CHUNK;
constexpr int MATRIX_UNIT = 128 * COLUMNS + 16;
constexpr int G_UNIT = 256 * TALL;
constexpr int G_BYTES = WARPS * G_UNIT;
constexpr int P_UNIT = 128 * COLUMNS;
constexpr int P_BYTES = WARPS * P_UNIT;
constexpr int T_BYTES = WARPS * T_UNIT;
constexpr int MATRIX_BYTES = COLUMNS * MATRIX_UNIT;
constexpr int G_AT = COLUMNS * A_UNIT;
constexpr int MATRIX_AT = G_AT + G_BYTES;             // where G[0] comes later
constexpr int P_AT = MATRIX_AT + (G_BYTES > MATRIX_BYTES ? G_BYTES : (MATRIX_BYTES + 127) / 128 * 128);
constexpr int T_AT = P_AT + 2 * P_BYTES;
constexpr int BYTES = T_AT + 2 * T_BYTES;
static_assert(F % CHUNK == 0 && CORE % GROUPS == 0 && CHUNKS > 1, "channel counts");
static_assert(BYTES == SHARED, "shared_bytes of the Python module is this number");

DEVICE u64 position(const Place& at, int row, int column) {
    return ((u64)at.n * at.h + (at.top - 1 + row)) * at.w + (at.left - 1 + column);
}
// Where 8 channels of a pixel lie among those of all pixels in A.
DEVICE u32 column_place(int row, int column) {
    int x = column - 1;
    int tile = column == 0 || column == TILE_W + 1 ? 4 : 2 * (row & 1) + (x & 1);
    int slot = column == 0 ? row & 1 : column == TILE_W + 1 ? 6 + (row & 1) : 2 * (x >> 2) + (x >> 1 & 1);
    return (5 * (row >> 1) + tile) * 128 + slot * 16;
}

// A piece of memory as it is, by all threads.
template <int SIZE> DEVICE void fetch(u32 to, const void* from) {
    const u32 mine = thread_idx() * 16;
#pragma unroll
    for (int k = 0; k < SIZE; k += 16 * THREADS)
        if (k + 16 * THREADS <= SIZE || k + mine < SIZE) cp_async_16(to + k + mine, (const char*)from + k + mine, true);
}
DEVICE u32 g_place(int i) { return i & 1 ? G_AT : MATRIX_AT; }
DEVICE void fetch_p(int i, const u16* p) { fetch<P_BYTES>(P_AT + (i & 1) * P_BYTES, p + (u64)i * (P_BYTES / 2)); }
DEVICE void fetch_t(int i, const int* t) { fetch<T_BYTES>(T_AT + (i & 1) * T_BYTES, t + (u64)i * (T_BYTES / 4)); }

// The matrix as B: both its rows and its columns in the order of a thread's runs. A thread takes 16 bytes of rows that are
// LINES apart and of columns that are 8 ACROSS apart: the places of these differ by constants. If threads are left, no branch
// keeps them from storing what others do as well: ptxas would ask for x and v after that.
constexpr int ACROSS = RUN == 8 ? 4 : C / 8;
DEVICE constexpr int power(int most) { return most < 2 ? 1 : 2 * power(most / 2); }
constexpr int MOST = power(THREADS / ACROSS);
constexpr int LINES = MOST < (C & -C) ? MOST : C & -C;
constexpr int SHARES = C / 8 / ACROSS;
constexpr int TURNS = SHARES * (C / LINES);
constexpr int BATCH = TURNS > 12 ? TURNS / 2 : TURNS;  // asked for at once
static_assert(TURNS % BATCH == 0 && C % LINES == 0 && (RUN == 4 || LINES >= 32), "whole batches");
DEVICE constexpr u32 matrix_row(int row) {
    return (row / (4 * RUN) * WORDS + row % RUN / 2) * 128 + (row % (4 * RUN) / RUN * 2 + row % 2) * 16;
}
DEVICE int matrix_line() {
    const int k = thread_idx() / ACROSS % LINES;  // by 8: the rows of a warp that share no banks
    return RUN == 8 ? (k & 1) + (k & 6) * 4 + (k >> 3 & 3) * 2 + (k & ~31) : k;
}
DEVICE void load_matrix(Vec4 (&four)[BATCH], const Place& at, int first, const u16* matrix) {
    const u16* from = matrix + (u64)at.n * C * C + matrix_line() * C + thread_idx() % ACROSS * 8;
#pragma unroll
    for (int k = 0; k < BATCH; ++k)
        four[k] = *(const Vec4*)(from + (first + k) / SHARES * LINES * C + (first + k) % SHARES * ACROSS * 8);
}
DEVICE void store_matrix(const Vec4 (&four)[BATCH], int first) {
    const int unit = thread_idx() % ACROSS;
    const u32 to = MATRIX_AT + matrix_row(matrix_line()) + (RUN == 8 ? unit * 4 : unit / 2 * WORDS * MATRIX_UNIT + unit % 2 * 8);
#pragma unroll
    for (int k = 0; k < BATCH; ++k) {
        const u32 value[4] = {four[k].x, four[k].y, four[k].z, four[k].w};
        const u32 turn = matrix_row((first + k) / SHARES * LINES) + (first + k) % SHARES * WORDS * MATRIX_UNIT;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const u32 place = to + turn + i % WORDS * MATRIX_UNIT + (RUN == 8 ? 0 : i / 2 * 4);
            if constexpr (ACROSS * LINES == THREADS)
                st_shared(place, value[i]);
            else
                st_shared_if(place, value[i], thread_idx() < ACROSS * LINES);
        }
    }
}

// A run of each of these pixels: pairs[2 i .. of run r][pixel]. For a pixel outside of the image, whatever its nearest has.
DEVICE void load_runs(const Place& at, u32 (&pairs)[COLUMNS][2], const Pixels& mine, const u16* from) {
    const u16* corner = from + (((u64)at.n * at.h + at.top) * at.w + at.left) * C;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int above = 1 - mine.row[i], before = 1 - mine.column[i];
        const int row = at.top < above ? 0 : at.top - above >= at.h ? at.h - 1 - at.top : -above;
        const int column = at.left < before ? 0 : at.left - before >= at.w ? at.w - 1 - at.left : -before;
        const u16* pixel = corner + ((row * at.w + column) * C + at.j * RUN);
#pragma unroll
        for (int r = 0; r < RUNS; ++r) {
            if constexpr (RUN == 8) {
                const Vec4 four = *(const Vec4*)(pixel + r * 4 * RUN);
                pairs[r * WORDS][i] = four.x, pairs[r * WORDS + 1][i] = four.y;
                pairs[r * WORDS + WORDS - 2][i] = four.z, pairs[r * WORDS + WORDS - 1][i] = four.w;
            } else {
                const Vec2 two = *(const Vec2*)(pixel + r * 4 * RUN);
                pairs[r * WORDS][i] = two.x, pairs[r * WORDS + 1][i] = two.y;
            }
        }
    }
}

// sum = x + attention_b + v matrix^T of 64 pixels of this group of warps. sum[n][2 i + k]: pixel i, channel k of pair n of the runs.
// There when residual_end has been called.
DEVICE void residual(const Place& at, float (&sum)[COLUMNS][4], const u32 (&x)[COLUMNS][2], const u32 (&v)[COLUMNS][2],
                     const float* attention_b) {
#pragma unroll
    for (int n = 0; n < COLUMNS; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            sum[n][2 * i] = low(x[n][i]);
            sum[n][2 * i + 1] = high(x[n][i]);
        }
#if ATTENTION_BIAS
#pragma unroll
    for (int n = 0; n < COLUMNS; ++n)
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            float b = attention_b[n / WORDS * 4 * RUN + at.j * RUN + n % WORDS * 2 + k];
            sum[n][k] += b;
            sum[n][2 + k] += b;
        }
#endif
    u32 a[STEPS][4];
#pragma unroll
    for (int s = 0; s < STEPS; ++s)
#pragma unroll
        for (int k = 0; k < 4; ++k) a[s][k] = v[2 * s + k / 2][k % 2];
    warpgroup_fence_operand(sum);
    warpgroup_arrive();
#pragma unroll
    for (int s = 0; s < STEPS; ++s)
        wgmma_rs(sum, a[s], advance_descriptor(matrix_descriptor(MATRIX_AT, MATRIX_UNIT, 128), 2 * s * MATRIX_UNIT));
    warpgroup_commit_batch();
}
DEVICE void residual_end(float (&sum)[COLUMNS][4]) {
    warpgroup_wait<0>();
    warpgroup_fence_operand(sum);
}

// The normalised pixels to shared memory: the columns of the expansion.
DEVICE void normalise(const Place& at, const float (&sum)[COLUMNS][4], const Pixels& mine) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        float means[2] = {0, 0}, squares[2] = {0, 0};
#pragma unroll
        for (int n = 0; n < COLUMNS; ++n)
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                means[k] += sum[n][2 * i + k];
                squares[k] += sum[n][2 * i + k] * sum[n][2 * i + k];
            }
        float mean = means[0] + means[1], square = squares[0] + squares[1];
        mean += shfl_xor(mean, 1);
        mean += shfl_xor(mean, 2);
        mean *= 1.0f / C;
        square += shfl_xor(square, 1);
        square += shfl_xor(square, 2);
        float scale =
            inside(at, mine.row[i], mine.column[i]) ? rsqrt_approx(fmaxf(square * (1.0f / C) - mean * mean, 0) + 1e-5f) : 0;
#if CENTRED
        const float shift = -mean * scale;
#else
        const float shift = 0;
#endif
        if (!mine.store[i]) continue;
        u32 to = column_place(mine.row[i], mine.column[i]);
#pragma unroll
        for (int r = 0; r < RUNS; ++r) {
            u32 four[4];
#pragma unroll
            for (int k = 0; k < WORDS; ++k)
                four[k] = pack(sum[r * WORDS + k][2 * i] * scale + shift, sum[r * WORDS + k][2 * i + 1] * scale + shift);
            if constexpr (RUN == 8)
                st_shared_v4(to + (4 * r + at.j) * A_UNIT, Vec4{four[0], four[1], four[2], four[3]});
            else
                st_shared_v2(to + (2 * r + at.j / 2) * A_UNIT + at.j % 2 * 8, Vec2{four[0], four[1]});
        }
    }
}

// Pixels of 64 of the tile itself: a row each warp, columns in the order of G, in which each four are 0, 2, 1, 3.
DEVICE Pixels core_pixels(const Place& at, int which) {
    int row = 4 * which + at.warp % 4 + 1, column = (at.g & 4) + 2 * (at.g & 1) + (at.g >> 1 & 1) + 1;
    return {{row, row}, {column, column + 8}, {true, true}};
}
// And of the halo; what is beyond it stands for its first pixel.
DEVICE Pixels ring_pixels(const Place& at, int which) {
    Pixels mine;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        int k = 64 * which + 16 * (at.warp % 4) + at.g + 8 * i;
        mine.store[i] = k < RING;
        if (k >= RING) k = 0;
        int side = k - 2 * (TILE_W + 2);
        mine.row[i] = k < TILE_W + 2 ? 0 : side < 0 ? TALL + 1 : 1 + (side >> 1);
        mine.column[i] = k < TILE_W + 2 ? k : side < 0 ? k - (TILE_W + 2) : (side & 1) * (TILE_W + 1);
    }
    return mine;
}

// 2 gelu(x) value: the value has been halved.
DEVICE u32 gated(u32 x, u32 value) {
#if BF16
    return mul2(pack(2 * gelu_tanh(low(x)), 2 * gelu_tanh(high(x))), value);
#else
    u32 s = min2(mul2(x, x), pack(16.0f, 16.0f));  // as gelu2
    u32 p = fma2(s, pack(-3.515353e-4f, -3.515353e-4f), pack(0.0370058f, 0.0370058f));
    return mul2(fma2(x, tanh2_approx(mul2(x, fma2(s, p, pack(0.7975091f, 0.7975091f)))), x), value);
#endif
}

// Row y of E, and the gates of the row before the last.
DEVICE void gated_row(int y, const Place& at, Sums& sums, const u32 (&gate)[2], const u32 (&value)[2], u32 halo,
                      const u32 (&tap)[20], u32 to) {
    convolve(y, at, sums, gate, value, halo, tap);
    if (y >= 2) {
        const int row = (y - 2) % 3;
        st_shared_v2(to + (y - 2) * 256, Vec2{gated(sums.first[row][0], sums.second[row][0]),
                                               gated(sums.first[row][1], sums.second[row][1])});
    }
}

// Step 4, between warpgroup_arrive and warpgroup_commit_batch.
DEVICE void projection(int i, const Place& at, float (&sum)[OWN][COLUMNS][4]) {
    const auto g = advance_descriptor(matrix_descriptor(G_AT, G_UNIT, 128), (i & 1 ? 0 : G_BYTES) + at.group * OWN * 1024);
    const auto p = advance_descriptor(matrix_descriptor(P_AT, P_UNIT, 128), (i & 1) * P_BYTES);
#pragma unroll
    for (int s = 0; s < CHUNK / 16; ++s)
#pragma unroll
        for (int r = 0; r < OWN; ++r)
            wgmma_ss_transposed_a(sum[r], advance_descriptor(g, 2 * s * G_UNIT + r * 1024), advance_descriptor(p, 2 * s * P_UNIT));
}

KERNEL(THREADS, BLOCKS)
gdfn_sm90(const u16* x, const u16* v, const u16* matrix, const float* attention_b, const u16* w, const u16* p, const int* t,
                const float* out_b, u16* out, int h, int w_pixels) {
    Place at;
    at.lane = thread_idx() & 31, at.warp = thread_idx() >> 5, at.group = GROUPS == 1 ? 0 : at.warp / 4;
    at.g = at.lane >> 2, at.j = at.lane & 3;
    at.n = block_idx(2), at.top = block_idx(1) * TALL, at.left = block_idx(0) * TILE_W;
    at.h = h, at.w = w_pixels;

    fetch_p(0, p);
    fetch<P_BYTES>(P_AT + P_BYTES, p);  // numbers to multiply zeros with
    fetch_t(0, t);
    fetch_t(1, t);
    cp_async_commit_group();
    // All that registers can hold is asked for before anything is waited for.
    constexpr bool ALL = C <= 96 && RINGS == GROUPS;
    Vec4 four[BATCH];
#pragma unroll
    for (int k = 0; k + BATCH < TURNS; k += BATCH) {
        load_matrix(four, at, k, matrix);
        store_matrix(four, k);
    }
    load_matrix(four, at, TURNS - BATCH, matrix);
    static_assert(RINGS <= GROUPS, "a group has pixels of the halo once at most");
    const bool have = at.group < RINGS;
    u32 ring_x[COLUMNS][2], ring_v[COLUMNS][2], own_x[OWN][COLUMNS][2], own_v[OWN][COLUMNS][2];
    if (have) {
        load_runs(at, ring_x, ring_pixels(at, at.group), x);
        load_runs(at, ring_v, ring_pixels(at, at.group), v);
    }
#pragma unroll
    for (int r = 0; r < (ALL ? OWN : 0); ++r) {
        load_runs(at, own_x[r], core_pixels(at, at.group * OWN + r), x);
        load_runs(at, own_v[r], core_pixels(at, at.group * OWN + r), v);
    }
    store_matrix(four, TURNS - BATCH);
    fence_proxy_async();
    syncthreads();
    float sum[OWN][COLUMNS][4];
    if (ALL) {  // what has been summed up is normalised beside the next products
        float ring[COLUMNS][4];
        residual(at, ring, ring_x, ring_v, attention_b);
        residual_end(ring);
        residual(at, sum[0], own_x[0], own_v[0], attention_b);
        normalise(at, ring, ring_pixels(at, at.group));
    } else if (have) {
        float ring[COLUMNS][4];
        residual(at, ring, ring_x, ring_v, attention_b);
        residual_end(ring);
        normalise(at, ring, ring_pixels(at, at.group));
    }
#pragma unroll
    for (int r = 0; r < OWN; ++r) {
        if (!ALL) {
            load_runs(at, own_x[r], core_pixels(at, at.group * OWN + r), x);
            load_runs(at, own_v[r], core_pixels(at, at.group * OWN + r), v);
            residual(at, sum[r], own_x[r], own_v[r], attention_b);
        }
        residual_end(sum[r]);
        if (ALL && r + 1 < OWN) residual(at, sum[r + 1], own_x[r + 1], own_v[r + 1], attention_b);
        normalise(at, sum[r], core_pixels(at, at.group * OWN + r));
    }
    u32 a[STEPS][4];
    load_w(a, at, (u64)at.warp, w);
#pragma unroll
    for (int k = 0; k < G_BYTES; k += 16 * THREADS) st_shared_v4(g_place(1) + k + thread_idx() * 16, Vec4{0, 0, 0, 0});
    cp_async_wait_group<0>();
    fence_proxy_async();
    syncthreads();

    const bool outer = at.top == 0 || at.left == 0 || at.top + TALL >= h || at.left + TILE_W >= w_pixels;
    const bool edge = C > 96 ? outer : launder(outer);  // where a register is cheaper than a predicate
    const Outside out_of = outside(at);
    u32 taps = T_AT + at.warp * T_UNIT + at.g * 16;
    float e[5][4];
    warpgroup_fence_operand(e);
    warpgroup_arrive();
    expand_piece(0, e, a);
    warpgroup_commit_batch();
    warpgroup_wait<0>();
    warpgroup_fence_operand(e);
    Rows rows = pack_piece(e);
#pragma unroll 1
    for (int i = 0; i < CHUNKS; ++i) {
        const u32 to = launder(g_place(i) + at.warp * G_UNIT + (at.j >> 1) * 128 + at.g * 16 + (at.j & 1) * 8);
        u32 tap[20];  // of gates, of values, biases: each twice in a word
#pragma unroll
        for (int q = 0; q < 5; ++q) {
            Vec4 four = ld_shared_v4(taps + q * 128);
            tap[4 * q] = four.x, tap[4 * q + 1] = four.y, tap[4 * q + 2] = four.z, tap[4 * q + 3] = four.w;
        }
        Sums sums;
#pragma unroll
        for (int piece = 0; piece < PIECES; ++piece) {
            const bool last = piece + 1 == PIECES, projects = piece == PROJECTS;
            if (!last) {
                warpgroup_fence_operand(e);
                if (projects)
#pragma unroll
                    for (int r = 0; r < OWN; ++r) warpgroup_fence_operand(sum[r]);
                warpgroup_arrive();
                expand_piece(piece + 1, e, a);
                if (projects) projection(i - 1, at, sum);
                warpgroup_commit_batch();
            } else {
                w += i + 1 < CHUNKS ? WARPS * STEPS * 32 * 8 : 0;
                load_w(a, at, (u64)at.warp, w);
            }
            // A branch here also keeps ptxas from beginning the products late, among what follows.
            if (edge) mend_piece(piece, at, out_of, rows, shifts(taps));
#pragma unroll
            for (int r = 0; r < 2; ++r)
                gated_row(2 * piece + r, at, sums, rows.first[r], rows.second[r], rows.halo[r], tap, to);
            if (last) {
                warpgroup_fence_operand(e);
                warpgroup_arrive();
                expand_piece(0, e, a);  // after the last chunk once more, for nothing
                warpgroup_commit_batch();
                cp_async_wait_group<0>();
                fence_proxy_async();
                syncthreads();
                if (i + 1 < CHUNKS) fetch_p(i + 1, p);
                if (i + 2 < CHUNKS) fetch_t(i + 2, t);
                cp_async_commit_group();
                taps = T_AT + (i + 1 & 1) * T_BYTES + at.warp * T_UNIT + at.g * 16;
            }
            warpgroup_wait<0>();
            warpgroup_fence_operand(e);
            if (projects)
#pragma unroll
                for (int r = 0; r < OWN; ++r) warpgroup_fence_operand(sum[r]);
            rows = pack_piece(e);
        }
    }
#pragma unroll
    for (int r = 0; r < OWN; ++r) warpgroup_fence_operand(sum[r]);
    warpgroup_arrive();
    projection(CHUNKS - 1, at, sum);
    warpgroup_commit_batch();
    warpgroup_wait<0>();
#pragma unroll
    for (int r = 0; r < OWN; ++r) warpgroup_fence_operand(sum[r]);

#pragma unroll
    for (int r = 0; r < OWN; ++r) {
        Pixels mine = core_pixels(at, at.group * OWN + r);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            if (!inside(at, mine.row[i], mine.column[i])) continue;
            u16* pixel = out + position(at, mine.row[i], mine.column[i]) * C + at.j * RUN;
#pragma unroll
            for (int b = 0; b < RUNS; ++b) {
                u32 four[4];
#pragma unroll
                for (int k = 0; k < WORDS; ++k) {
                    float first = sum[r][b * WORDS + k][2 * i], second = sum[r][b * WORDS + k][2 * i + 1];
#if OUT_BIAS
                    const float* bias = out_b + b * 4 * RUN + at.j * RUN + 2 * k;
                    first += bias[0], second += bias[1];
#endif
                    four[k] = pack(first, second);
                }
                if constexpr (RUN == 8)
                    *(Vec4*)(pixel + b * 4 * RUN) = Vec4{four[0], four[1], four[2], four[3]};
                else
                    *(Vec2*)(pixel + b * 4 * RUN) = Vec2{four[0], four[1]};
            }
        }
    }
}
