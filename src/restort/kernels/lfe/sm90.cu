// Local feature extraction with its projections for Hopper. Formula: reference.py; order of the weights: sm90.py.
//
// All products are those of four warps (a group, wgmma). A group has 8 x 8 pixels, its warps two rows of them each, and a block
// has groups side by side: 16 x TALL pixels.
//   1. The tile with one pixel around it goes to shared memory *shifted*: where pixel p stands, channels of part k are those of
//      p + d(k). 8 channels of all pixels lie together, 16 bytes a pixel: eight pixels of a row are the piece of which the left
//      operands of products are made, wherever the row begins, and the next eight are a row of the tile further on. So the
//      left operand of the hidden channels at pixels p + d(g) is the tile, by another address.
//   2. For each part g of the second shift all its hidden channels: their products are rectified, set to zero outside of the
//      picture and, as they lie in registers, the left operand of the second product. The products of the next part's hidden
//      channels and those of this part's onto the result are under way together.
//   3. The result is multiplied by the projections from registers, too, while what was made before is stored.
// Products are always waited for all at once, before the next are begun, and never across the end of the loop.
//
// The weights come as `blob`: all biases, which a block copies once and keeps, then matrices in the order of use, in stages: the
// first part's hidden channels; for each part its second product and the next part's hidden channels; pieces of the projections.
// Thread 0 asks for a stage whole (cp.async.bulk), to come into one of SLOTS slots; its barrier tells that it is there. With
// CLUSTER 2 two blocks above one another each ask for a half of it, for both. A block makes several tiles after one another: the
// first stages of the next come during the last ones, and so do its pixels, when the projections need no tile any more.
//
// Races: stage i is read by products alone, which each thread waits for, and after which it arrives (stage_end). Nothing else may
// read a slot: the arrival does not wait for loads, and behind stores one can take longer than the slot's next fill. The slot is
// filled again by thread 0 (of either block) after stage_ended, that is when all threads of the cluster have arrived. No block
// ends before all that is sent to it has come, since it waits for every stage. A stage's barrier is in the phase of its fill: a
// slot is not asked for before all have seen the last one's end. The next tile's pixels are asked for after stage_ended in stage
// 5: stage 4 is the last to read the tile.
//
// Columns of results are permuted within 32 channels (sm90.py) so that a thread has eight that lie together.

constexpr int THREADS = 32 * WARPS;
constexpr int GROUPS = WARPS / 4;
constexpr int TALL = 4 * GROUPS;
constexpr int ACROSS = 18;
constexpr int PIXELS = ACROSS * (TALL + 2);
constexpr int PART = C / 5;
constexpr int STEPS = (C + 15) / 16;                // of 16 channels
constexpr int TILES = (C + 7) / 8;                  // of 8 channels
constexpr int PADDED_C = (C + 63) / 64 * 64;            // channels of a pixel in memory
constexpr int HIDDEN = 2 * C / 5 / 8;               // tiles of hidden channels of a part
constexpr int HIDDEN_STEPS = (HIDDEN + 1) / 2;
constexpr int X_UNIT = PIXELS * 16 + 16;            // bytes from 8 channels of all pixels to the next 8
constexpr int W0_BYTES = 2 * STEPS * HIDDEN * 128;
constexpr int W1_BYTES = 2 * HIDDEN_STEPS * TILES * 128;
constexpr int B0_BYTES = HIDDEN * 32;
constexpr int MADE = 3 * DS / 8;                    // tiles of a projection
constexpr int SHARES = MADE > 12 ? 2 : 1;           // pieces of it
constexpr int SHARE = MADE / SHARES;
constexpr int P_BYTES = 2 * STEPS * SHARE * 128;
constexpr int PART_BYTES = W1_BYTES + W0_BYTES;
constexpr int PIECES = SHARES * (HAS_Q ? 2 : 1);
constexpr int STAGES = 6 + PIECES;
static_assert(SLOTS == 2 && STAGES % 2 == 0, "a barrier in every stage, which come to the same slots in every tile");
constexpr int SLOT = PART_BYTES > P_BYTES ? PART_BYTES : P_BYTES;
constexpr int SLOTS_AT = (2 * STEPS * X_UNIT + 127) / 128 * 128;
constexpr int BIASES_AT = SLOTS_AT + SLOTS * SLOT;   // of the five parts' hidden channels, the result, the projections
constexpr int B1_AT = BIASES_AT + 5 * B0_BYTES;
constexpr int BP_AT = B1_AT + TILES * 32;
constexpr int BIAS_BYTES = BP_AT - BIASES_AT + PIECES * SHARE * 32;  // in the blob
constexpr int BARRIERS_AT = BP_AT + 2 * MADE * 32;
static_assert(PART % 4 == 0 && C % 5 == 0 && 2 * C % 40 == 0 && GROUPS % 2 == 0 && (CLUSTER == 1 || GROUPS == 2),
              "parts in halves of 16 bytes, and of 8 hidden channels");
static_assert(MADE % SHARES == 0 && (SHARES == 1 || SHARE % 4 == 0) && SLOTS > 1, "whole pieces");
static_assert(2 * STEPS * 8 <= PADDED_C && SLOT % 128 == 0, "operands where products can read them");
static_assert(BARRIERS_AT + 64 == SHARED, "shared_bytes of the Python module is this number");

DEVICE constexpr int stage_begin(int i) {  // in the blob
    return BIAS_BYTES + (i == 0 ? 0 : i < 6 ? W0_BYTES + (i - 1) * PART_BYTES : 5 * PART_BYTES + (i - 6) * P_BYTES);
}
DEVICE constexpr u32 slot(int i) { return SLOTS_AT + i % SLOTS * SLOT; }

#ifdef EMULATE
DEVICE void stages_begin() {}
DEVICE void fetch(int i, const int* blob) {
    if (thread_idx() != 0) return;
    for (int k = 0; k < stage_begin(i + 1) - stage_begin(i); k += 16) cp_async_16(slot(i) + k, (const char*)blob + stage_begin(i) + k, true);
    cp_async_commit_group();
}
DEVICE void stage_wait(int, int) {
    if (thread_idx() == 0) cp_async_wait_group<0>();
    syncthreads();
}
DEVICE void stage_end() {}
DEVICE void stage_ended() { syncthreads(); }
#else
DEVICE u32 stage_barrier(int i) { return BARRIERS_AT + i % SLOTS * 8; }
// Relaxed: what has been read was read by products that this thread has waited for.
DEVICE void stage_end() { cluster_arrive_relaxed(); }
DEVICE void stage_ended() { cluster_wait(); }
DEVICE void stages_begin() {
    if (thread_idx() == 0) {
#pragma unroll
        for (int i = 0; i < SLOTS; ++i) mbarrier_init(stage_barrier(i), 1);
        fence_mbarrier_init();
    }
    __syncwarp();
    cluster_arrive_release();
    stage_ended();
}
DEVICE void fetch(int i, const int* blob) {
    if (thread_idx() == 0) {
        const u32 bytes = stage_begin(i + 1) - stage_begin(i);
        mbarrier_arrive_expect_tx(stage_barrier(i), bytes);
        cp_async_bulk(slot(i), (const char*)blob + stage_begin(i), bytes, stage_barrier(i));
    }
    __syncwarp();
}
DEVICE void stage_wait(int i, int phase) {
    mbarrier_wait_parity(stage_barrier(i), i / SLOTS + phase & 1);
    __syncwarp();
}
#endif

// While stage i's products are under way: the slot of the stage before is free when all have ended that. Beyond a tile's last
// stage come the first ones of the next tile.
DEVICE void refill(int i, bool first, bool last, const int* blob) {
    const int next = i - 1 + SLOTS;
    if (i == 0 && first) return;
    stage_ended();
    if (next < STAGES) fetch(next, blob);
    else if (!last) fetch(next - STAGES, blob);
}

struct Place { int lane, g, j, warp, group, column, row, n, top, left, h, w; };  // row, column: of this thread's first pixel in the tile

// d(part).
DEVICE int down(int part) { return part == 2 ? 1 : part == 3 ? -1 : 0; }
DEVICE int right(int part) { return part == 0 ? 1 : part == 1 ? -1 : 0; }

// Step 1. A thread copies one 16-byte unit of pixels; it may be halves of two parts.
DEVICE void fetch_tile(const Place& at, const u16* x) {
    constexpr int UNITS = STEPS * 2, LINES = THREADS / UNITS;
    const int unit = thread_idx() % UNITS, line = thread_idx() / UNITS;
    if (line >= LINES) return;
    const int across = at.w + 4;
    int part0 = unit * 8 / PART, part1 = (unit * 8 + 4) / PART;
    int move0 = (down(part0) * across + right(part0)) * PADDED_C, move1 = (down(part1) * across + right(part1)) * PADDED_C;
    const u16* from = x + ((u64)(at.n * (at.h + 4) + at.top + 1) * across + at.left + 1) * PADDED_C + unit * 8;
    u32 to = unit * X_UNIT;
#pragma unroll 6
    for (int p = line; p < PIXELS; p += LINES) {
        const u16* pixel = from + (p / ACROSS * across + p % ACROSS) * PADDED_C;
        if (move0 == move1) cp_async_16(to + p * 16, pixel + move0, true);
        else {
            cp_async_8(to + p * 16, pixel + move0);
            cp_async_8(to + p * 16 + 8, pixel + 4 + move1);
        }
    }
}

DEVICE void fetch_biases(const int* blob) {
#pragma unroll 1
    for (int i = thread_idx() * 16; i < BIAS_BYTES; i += THREADS * 16) cp_async_16(BIASES_AT + i, (const char*)blob + i, true);
}

// Between warpgroup_arrive and warpgroup_commit_batch: the hidden channels of a part and (REDUCE) those of another onto the
// result.
template <bool EXPAND, bool REDUCE>
DEVICE void products(int part, const Place& at, float (&h)[HIDDEN][4], u32 w0, float (&sum)[TILES][4],
                     const u32 (&left)[HIDDEN_STEPS][4], u32 w1) {
    const u32 from = ((at.group / 2 * 8 + 1 + down(part)) * ACROSS + at.group % 2 * 8 + 1 + right(part)) * 16;
    const auto a = matrix_descriptor(from, X_UNIT, ACROSS * 16), b = matrix_descriptor(w0, HIDDEN * 128, 128);
    const auto second = matrix_descriptor(w1, TILES * 128, 128);
    if (EXPAND) wgmma_ss_zero(h, a, b);
#pragma unroll
    for (int s = 1; s < STEPS; ++s)
        if (EXPAND) wgmma_ss(h, advance_descriptor(a, 2 * s * X_UNIT), advance_descriptor(b, 2 * s * HIDDEN * 128));
#pragma unroll
    for (int s = 0; s < HIDDEN_STEPS; ++s)
        if (REDUCE) wgmma_rs(sum, left[s], advance_descriptor(second, 2 * s * TILES * 128));
}
template <int N> DEVICE void load_bias(float (&bias)[N][2], const Place& at, u32 from) {
#pragma unroll
    for (int t = 0; t < N; ++t) {
        Vec2 b = ld_shared_v2(from + t * 32 + at.j * 8);
        bias[t][0] = as_float(b.x), bias[t][1] = as_float(b.y);
    }
}
DEVICE void rectify(int part, const Place& at, u32 (&a)[HIDDEN_STEPS][4], const float (&h)[HIDDEN][4], const float (&bias)[HIDDEN][2]) {
    const int y = at.top + at.row + down(part), x = at.left + at.column + right(part);
    const bool inside = x >= 0 && x < at.w;
    const bool keep[2] = {inside && y >= 0 && y < at.h, inside && y + 1 >= 0 && y + 1 < at.h};
#pragma unroll
    for (int t = 0; t < 2 * HIDDEN_STEPS; ++t)
#pragma unroll
        for (int r = 0; r < 2; ++r)
            a[t / 2][t % 2 * 2 + r] =
                t < HIDDEN && keep[r] ? pack_relu(h[t < HIDDEN ? t : 0][2 * r] + bias[t < HIDDEN ? t : 0][0],
                                                      h[t < HIDDEN ? t : 0][2 * r + 1] + bias[t < HIDDEN ? t : 0][1]) : 0;
}

// Rows of 8 N columns at `to`, in the order of channel_order (fragments.py).
template <int N> DEVICE void store_rows(const u32 (&pairs)[N], const Place& at, u16* to) {
    constexpr int FULL = N / 4, REMAIN = N % 4;
#pragma unroll
    for (int part = 0; part < FULL; ++part)
        *(Vec4*)(to + part * 32 + at.j * 8) = Vec4{pairs[4 * part], pairs[4 * part + 1], pairs[4 * part + 2], pairs[4 * part + 3]};
#pragma unroll
    for (int t = 0; t < REMAIN; ++t) *(u32*)(to + FULL * 32 + 2 * REMAIN * at.j + 2 * t) = pairs[4 * FULL + t];
}
// Step 3: piece i of the projections.
DEVICE void store_piece(int i, const Place& at, u64 pixel, const u32 (&pairs)[2][SHARE], u16* v, u16* q) {
    u16* to = (i >= SHARES ? q : v) + i % SHARES * SHARE * 8;
#pragma unroll
    for (int r = 0; r < 2; ++r)
        store_rows(pairs[r], at, to + (pixel + r * at.w) * (3 * DS));
}

// Tile number `tile` of those of a block's place in its cluster; those of a cluster are above one another.
DEVICE void place(Place& at, int tile) {
    const int across = at.w / 16, rows = at.h / TALL;
    const int row = tile / across * CLUSTER + block_idx(0) % CLUSTER;
    at.left = tile % across * 16, at.n = row / rows, at.top = row % rows * TALL;
}

KERNEL(THREADS, BLOCKS) CLUSTER_DIMS
lfe_sm90(const u16* x, const int* blob, u16* out, u16* v, u16* q, int images, int h_pixels, int w_pixels) {
    Place at;
    at.lane = thread_idx() & 31, at.warp = thread_idx() >> 5;
    at.g = at.lane >> 2, at.j = at.lane & 3;
    at.group = warp_uniform(at.warp / 4);
    at.row = at.warp / 8 * 8 + at.warp % 4 * 2, at.column = at.warp / 4 % 2 * 8 + at.g;
    at.h = h_pixels, at.w = w_pixels;
    const int tiles = images * (at.h / TALL) * (at.w / 16) / CLUSTER, stride = grid_dim_x() / CLUSTER;
    int tile = block_idx(0) / CLUSTER;
    place(at, tile);
    griddepcontrol_launch_dependents();
    stages_begin();
#pragma unroll
    for (int i = 0; i < SLOTS && i < STAGES; ++i) fetch(i, blob);
    fetch_biases(blob);
    griddepcontrol_wait();
    fetch_tile(at, x);
    cp_async_commit_group();
    const int across = at.w + 4;
    bool first = true;
    int phase = 0;
#pragma unroll 1
    for (;;) {
        const bool last = tile + stride >= tiles;
        cp_async_wait_group<0>();
        fence_proxy_async();
        syncthreads();
        constexpr int FULL = TILES / 4, REMAIN = TILES % 4;
        const u64 place_own = ((u64)(at.n * (at.h + 4) + at.top + at.row + 2) * across + at.left + at.column + 2) * PADDED_C;
        const u64 pixel = (u64)(at.n * at.h + at.top + at.row) * at.w + at.left + at.column;
        u32 own[2][TILES];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const u16* from = x + place_own + r * across * PADDED_C;
#pragma unroll
            for (int part = 0; part < FULL; ++part) {
                Vec4 four = *(const Vec4*)(from + part * 32 + at.j * 8);
                own[r][4 * part] = four.x, own[r][4 * part + 1] = four.y, own[r][4 * part + 2] = four.z, own[r][4 * part + 3] = four.w;
            }
#pragma unroll
            for (int t = 0; t < REMAIN; ++t) own[r][4 * FULL + t] = *(const u32*)(from + FULL * 32 + 2 * REMAIN * at.j + 2 * t);
        }

        float h[HIDDEN][4], sum[TILES][4];
        u32 a[HIDDEN_STEPS][4];
        {
            float bias[HIDDEN][2];
            stage_wait(0, phase);
            warpgroup_fence_operand(h);
            warpgroup_arrive();
            products<true, false>(0, at, h, slot(0), sum, a, 0);
            warpgroup_commit_batch();
            refill(0, first, last, blob);
            // The sum starts as x and the bias.
#pragma unroll
            for (int t = 0; t < TILES; ++t) {
                Vec2 b = ld_shared_v2(B1_AT + t * 32 + at.j * 8);
#pragma unroll
                for (int r = 0; r < 2; ++r)
                    sum[t][2 * r] = low(own[r][t]) + as_float(b.x), sum[t][2 * r + 1] = high(own[r][t]) + as_float(b.y);
            }
            load_bias(bias, at, BIASES_AT);
            warpgroup_wait<0>();
            warpgroup_fence_operand(h);
            stage_end();
            rectify(0, at, a, h, bias);
        }
#pragma unroll 2  // not 1: ptxas would wait for each product (its message C7513)
        for (int i = 1; i < 5; ++i) {
            float bias[HIDDEN][2];
            const u32 weights = slot(i);
            stage_wait(i, phase);
            warpgroup_fence_operand(h);
            warpgroup_fence_operand(sum);
            warpgroup_fence_operand(a);
            warpgroup_arrive();
            products<true, true>(i, at, h, weights + W1_BYTES, sum, a, weights);
            warpgroup_commit_batch();
            refill(i, first, last, blob);
            load_bias(bias, at, BIASES_AT + i * B0_BYTES);
            warpgroup_wait<0>();
            warpgroup_fence_operand(h);
            warpgroup_fence_operand(sum);
            stage_end();
            rectify(i, at, a, h, bias);
        }
        stage_wait(5, phase);
        warpgroup_fence_operand(sum);
        warpgroup_fence_operand(a);
        warpgroup_arrive();
        products<false, true>(0, at, h, 0, sum, a, slot(5));
        warpgroup_commit_batch();
        refill(5, first, last, blob);
        if (!last) {  // all have ended stage 4, and with it this tile's pixels
            place(at, tile + stride);
            fetch_tile(at, x);
            cp_async_commit_group();
            syncwarp();
        }
        warpgroup_wait<0>();
        warpgroup_fence_operand(sum);
        stage_end();

        u32 made[STEPS][4];
#pragma unroll
        for (int t = 0; t < 2 * STEPS; ++t)
#pragma unroll
            for (int r = 0; r < 2; ++r)
                made[t / 2][t % 2 * 2 + r] = t < TILES ? pack(sum[t < TILES ? t : 0][2 * r], sum[t < TILES ? t : 0][2 * r + 1]) : 0;
        u32 pairs[2][SHARE];
#pragma unroll
        for (int i = 0; i < PIECES; ++i) {
            float y[SHARE][4];
            stage_wait(6 + i, phase);
            const auto b = matrix_descriptor(slot(6 + i), SHARE * 128, 128);
            warpgroup_fence_operand(y);
            warpgroup_fence_operand(made);
            warpgroup_arrive();
            wgmma_rs_zero(y, made[0], b);
#pragma unroll
            for (int s = 1; s < STEPS; ++s) wgmma_rs(y, made[s], advance_descriptor(b, 2 * s * SHARE * 128));
            warpgroup_commit_batch();
            refill(6 + i, first, last, blob);
            if (i == 0) {
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    u16* to = out + place_own + r * across * PADDED_C;
                    u32 row[TILES];
#pragma unroll
                    for (int t = 0; t < TILES; ++t) row[t] = made[t / 2][t % 2 * 2 + r];
                    store_rows(row, at, to);
                    if (TILES * 8 + at.j * 8 < PADDED_C) *(Vec4*)(to + TILES * 8 + at.j * 8) = Vec4{0, 0, 0, 0};
                }
            } else
                store_piece(i - 1, at, pixel, pairs, v, q);
            warpgroup_wait<0>();
            warpgroup_fence_operand(y);
#pragma unroll
            for (int t = 0; t < SHARE; ++t) {
                Vec2 bias = ld_shared_v2(BP_AT + (i * SHARE + t) * 32 + at.j * 8);
#pragma unroll
                for (int r = 0; r < 2; ++r) pairs[r][t] = pack(y[t][2 * r] + as_float(bias.x), y[t][2 * r + 1] + as_float(bias.y));
            }
            stage_end();
        }
        store_piece(PIECES - 1, at, pixel, pairs, v, q);
        if (last) break;
        first = false;
        tile += stride, phase += STAGES / SLOTS;
    }
    if (CLUSTER > 1) stage_ended();
}
