// The first half of a Restormer block in one kernel for Hopper. Formula: reference.py; order of the weights: sm90.py.
//
// A block goes over every gridDim.x-th tile of 16 x TALL pixels of an image. Of a tile:
//   1. The 18 x (TALL + 2) pixels around it, normalised, go to shared memory A, in the order in which step 2 wants them;
//      they are 0 outside of the image.
//   2. The expansion, transposed, by products of four warps (wgmma): rows are channels, columns are pixels. A warp has a
//      unit of 16 channels, whose weights stay in registers for a pass over all pixels, 40 a product: two rows of 16, and four
//      of the halo. Columns are ordered so that lane 4 g + j gets channels g of both halves of the unit, of pixels
//      4j .. 4j + 3 of every row, as pairs 0 and 2, 1 and 3; of the halo lane j = 0 has what is left of the two rows and
//      j = 3 what is right.
//   3. Depthwise 3x3 down the rows, in the same registers: neighbours beyond a lane's four come from the next lane. The
//      products of the next two rows are under way meanwhile. What comes of it is a fragment of products over 16 pixels
//      (in an order that is the same for all channels), 16 bytes a lane, and goes to shared memory QK as it is.
//   4. At the end of a unit each lane reads its own again: squares of q and k by products of a fragment with itself,
//      whose diagonals are wanted; v, transposed between the lanes, 32 bytes of a pixel at a time, to global memory.
//   5. When all of q and k are there: q^T k over the tile's pixels, by products, onto sums that stay in registers from
//      tile to tile. The next tile's pixels are on their way to registers meanwhile.
// Units are those of v, then of q, then of k. Of the last pass some warps have none: which, changes from tile to tile.
// At the end each block writes one partial sum; none is added in an order that could change.
//
// Products are waited for before the next are begun, and never across the end of a loop: otherwise ptxas gives up and waits
// for each (its message C7514). A shift s of an expanded channel is no part of the products: inside of the image it adds
// s * (sum of the taps), which sm90.py adds to the depthwise bias. What is outside of the image is minus the shift then, which
// tiles at the edge put there.
//
// Races: A is written in step 1, after the barrier before step 5 of the tile before, by when every warp has waited for its
// products; it is read after the barrier that follows. Units of v lie in QK where the same warp has one of q or k in a later
// pass, or, where that cannot be said, in a place of their own (V). QK is read by other warps in step 5 alone, between these
// two barriers. Squares (S) are added to by one warp a tile.

constexpr int SETS = RINGS + CORE;                  // of 64 pixels
constexpr int OWN = (SETS + GROUPS - 1) / GROUPS;   // of them a group's
constexpr int OF_V = C / 16, UNITS = 3 * OF_V;
constexpr int PASSES = (UNITS + WARPS - 1) / WARPS;
constexpr int LAST = UNITS - (PASSES - 1) * WARPS;  // units of the last pass
constexpr int LATER = (OF_V + WARPS - 1) / WARPS;   // the first pass without any of v
constexpr int QK_UNIT = 512 * TALL;
constexpr int QK_AT = COLUMNS * A_UNIT;
constexpr int T_AT = QK_AT + 2 * OF_V * QK_UNIT;
constexpr int S_AT = T_AT + UNITS * T_UNIT;
constexpr bool V_APART = LATER >= PASSES - (LAST < WARPS ? 1 : 0);  // no pass after those with v has every warp
constexpr int V_AT = S_AT + 8 * C;
constexpr int BYTES = V_AT + (V_APART ? (OF_V < WARPS ? OF_V : WARPS) * QK_UNIT : 0);
static_assert(BYTES == SHARED, "shared_bytes of the Python module is this number");
constexpr int CH = C / HEADS;
constexpr int PART = 48;                            // q channels of a warp's part of the Gram matrix; PART_K of k
constexpr int SPLIT = CH / PART, SPLIT_K = CH / PART_K;
constexpr int PARTS = HEADS * SPLIT * SPLIT_K;
constexpr int SEGMENTS = WARPS / PARTS;             // of the tile's rows, for warps with the same part
constexpr int GM = PART / 16, GN = PART_K / 8, QUADS = GM * GN;
static_assert(CH % PART == 0 && CH % PART_K == 0 && PART_K % 8 == 0 && WARPS % PARTS == 0 && TALL % SEGMENTS == 0, "heads");
static_assert(S_AT >= (SEGMENTS - 1) * PARTS * 32 * QUADS * 16, "other warps' sums fit");

// Where 8 channels of a pixel lie among those of all pixels in A. Without branches, as all of step 1: what its threads
// compute of their pixels is to overlap.
DEVICE u32 column_place(int row, int column) {
    const int x = column - 1;
    const bool halo = (u32)x >= (u32)TILE_W;
    const int tile = 2 * (row & 1) + (x & 1), slot = 2 * (x >> 2) + (x >> 1 & 1);
    const int halo_slot = (column & 1) * 6 + (row & 1);  // columns 0 and 17
    return (5 * (row >> 1) + (halo ? 4 : tile)) * 128 + (halo ? halo_slot : slot) * 16;
}

// Pixels of 64 of the tile itself: a row each warp, columns g and g + 8; or of the halo, whose first stands for what is beyond it.
DEVICE Pixels set_pixels(const Place& at, int set) {
    Pixels mine;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int number = 64 * set + 16 * (at.warp % 4) + at.g + 8 * i, k = number < RING ? number : 0;
        const int side = k - 2 * (TILE_W + 2);
        const int row = k < TILE_W + 2 ? 0 : side < 0 ? TALL + 1 : 1 + (side >> 1);
        const int column = k < TILE_W + 2 ? k : side < 0 ? k - (TILE_W + 2) : (side & 1) * (TILE_W + 1);
        const bool core = set >= RINGS && set < SETS;
        mine.row[i] = core ? 4 * (set - RINGS) + at.warp % 4 + 1 : row;
        mine.column[i] = core ? at.g + 8 * i + 1 : column;
        mine.store[i] = core || number < RING;
    }
    return mine;
}

// A thread's part of its two pixels: the runs, in pairs.
struct Part { u32 pair[2][COLUMNS]; };

// Of pixels outside of the image those beside them: they are multiplied by 0 later.
DEVICE void load_pixels(Place at, Part& part, int set, const u16* from) {
    if (C > 96) at.g = launder(at.g);  // places are worked out again for each tile: registers are full
    const Pixels mine = set_pixels(at, set);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        int y = at.top - 1 + mine.row[i], x = at.left - 1 + mine.column[i];
        y = y < 0 ? 0 : y < at.h ? y : at.h - 1;
        x = x < 0 ? 0 : x < at.w ? x : at.w - 1;
        const u16* pixel = from + (((u64)at.n * at.h + y) * at.w + x) * C + at.j * RUN;
#pragma unroll
        for (int r = 0; r < RUNS; ++r) {
            u32* to = part.pair[i] + r * WORDS;
            if constexpr (RUN == 8) {
                const Vec4 four = *(const Vec4*)(pixel + r * 4 * RUN);
                to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
            } else {
                const Vec2 two = *(const Vec2*)(pixel + r * 4 * RUN);
                to[0] = two.x, to[1] = two.y;
            }
        }
    }
}

// Step 1.
DEVICE void normalise(Place at, const Part& part, int set) {
    if (GROUPS == 1) at.g = launder(at.g);  // as in load_pixels
    const Pixels mine = set_pixels(at, set);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        if (C > 96) syncwarp();  // here there are no registers for both pixels at once
        float means[4] = {}, squares[4] = {};  // in four chains or, for want of registers, two
#pragma unroll
        for (int n = 0; n < COLUMNS; ++n) {
            const float first = low(part.pair[i][n]), second = high(part.pair[i][n]);
            const int k = C > 96 ? 0 : n % 2 * 2;
            means[k] += first, means[k + 1] += second;
            squares[k] += first * first, squares[k + 1] += second * second;
        }
        float mean = (means[0] + means[1]) + (means[2] + means[3]);
        float square = (squares[0] + squares[1]) + (squares[2] + squares[3]);
        mean += shfl_xor(mean, 1);
        square += shfl_xor(square, 1);
        mean += shfl_xor(mean, 2);
        square += shfl_xor(square, 2);
        mean *= 1.0f / C;
        const float inverse = rsqrt_approx(fmaxf(square * (1.0f / C) - mean * mean, 0) + 1e-5f);
        const float scale = inside(at, mine.row[i], mine.column[i]) ? inverse : 0;
#if CENTRED
        const float shift = -mean * scale;
#else
        const float shift = 0;
#endif
        const u32 to = column_place(mine.row[i], mine.column[i]);
#pragma unroll
        for (int r = 0; r < RUNS; ++r) {
            u32 four[4];
#pragma unroll
            for (int k = 0; k < WORDS; ++k) {
                const u32 pair = part.pair[i][r * WORDS + k];
                four[k] = pack(low(pair) * scale + shift, high(pair) * scale + shift);
            }
            if constexpr (RUN == 8)
                st_shared_v4_if(to + (4 * r + at.j) * A_UNIT, Vec4{four[0], four[1], four[2], four[3]}, mine.store[i]);
            else
                st_shared_v2_if(to + (2 * r + at.j / 2) * A_UNIT + at.j % 2 * 8, Vec2{four[0], four[1]}, mine.store[i]);
        }
    }
}

// Row y of E, and the row before the last as fragments. Those of k (`for_b`) are pairs for B, of the first half of the unit,
// then of the second; those of q, and v's, are for A.
DEVICE void convolve_row(int y, const Place& at, Sums& sums, const u32 (&first)[2], const u32 (&second)[2], u32 halo,
                         const u32 (&tap)[20], u32 to, bool for_b) {
    convolve(y, at, sums, first, second, halo, tap);
    if (y >= 2) {
        const u32(&a)[2] = sums.first[(y - 2) % 3], (&b)[2] = sums.second[(y - 2) % 3];
        st_shared_v4(to + (y - 2) * 512, Vec4{a[0], for_b ? a[1] : b[0], for_b ? b[0] : a[1], b[1]});
    }
}

// Pixels outside of the image count for nothing.
DEVICE void clear_outside(const Place& at, u32 from, bool for_b) {
    const Outside out = outside(at);
    const u32 left = ~out.pair[0], right = ~out.pair[1];
#pragma unroll 1
    for (int y = 0; y < TALL; ++y) {
        const bool there = at.top + y < at.h;
        Vec4 four = ld_shared_v4(from + y * 512);
        four.x = there ? four.x & left : 0;
        four.y = there ? four.y & (for_b ? right : left) : 0;
        four.z = there ? four.z & (for_b ? left : right) : 0;
        four.w = there ? four.w & right : 0;
        st_shared_v4(from + y * 512, four);
    }
}

// Step 4 for q and k. A product of 8 numbers of 16 rows with the first (second) 8 of these rows has squares where row and column
// are equal; the rest of it is not used.
DEVICE void add_squares(const Place& at, u32 from, int unit, bool for_b) {
    float d[4][4] = {};
#pragma unroll
    for (int y = 0; y < TALL; ++y) {
        const Vec4 four = ld_shared_v4(from + y * 512);
        mma_m16n8k8(d[0], four.x, four.y, four.x);
        mma_m16n8k8(d[1], four.x, four.y, four.y);
        mma_m16n8k8(d[2], four.z, four.w, four.z);
        mma_m16n8k8(d[3], four.z, four.w, four.w);
    }
    const bool odd = at.g & 1;
    const float xx = odd ? d[0][1] : d[0][0], yy = odd ? d[1][3] : d[1][2];
    const float zz = odd ? d[2][1] : d[2][0], ww = odd ? d[3][3] : d[3][2];
    if (at.g / 2 == at.j) {  // this lane holds the diagonal
        const u32 to = S_AT + (unit * 16 + at.g / 2 * 4 + at.g % 2) * 4;
        st_shared_f32(to, ld_shared_f32(to) + (xx + (for_b ? yy : zz)));
        st_shared_f32(to + 8, ld_shared_f32(to + 8) + ((for_b ? zz : yy) + ww));
    }
}

// Step 4 for v.
DEVICE void store_v(const Place& at, u32 from, int unit, u16* v) {
    const int column = at.left + 2 * at.g, rows = at.h - at.top;
    const int left_rows = column < at.w ? rows : 0, right_rows = column + 1 < at.w ? rows : 0;
    u16* to = v + (((u64)at.n * at.h + at.top) * at.w + column) * C + unit * 16 + at.j * 4;
    const u64 line = (u64)at.w * C;
#pragma unroll
    for (int y = 0; y < TALL; ++y) {
        const Vec4 four = ld_shared_v4(from + y * 512);
        const Vec2 left = {movmatrix_trans(four.x), movmatrix_trans(four.y)};
        const Vec2 right = {movmatrix_trans(four.z), movmatrix_trans(four.w)};
        st_global_v2_if(to, left, y < left_rows);
        st_global_v2_if(to + C, right, y < right_rows);
        to += line;
    }
}

struct Share { int part, segment, head, q, k; };  // of a warp in step 5

DEVICE Share share_of(int warp) {
    const int part = warp % PARTS;
    return {part, warp / PARTS, part / (SPLIT * SPLIT_K), part / SPLIT_K % SPLIT, part % SPLIT_K};
}

// Step 5.
DEVICE u32 half_unit(int number) { return number / 2 * QK_UNIT + number % 2 * 8; }
DEVICE void multiply_parts(const Place& at, float (&sums)[QUADS][4]) {
    const Share mine = share_of(GROUPS == 1 ? at.warp : launder(at.warp));
    const int part_k = mine.k;
    const u32 rows_at = QK_AT + mine.segment * (TALL / SEGMENTS) * 512 + at.lane * 16;
    u32 q_at = rows_at + (mine.head * CH + mine.q * PART) / 16 * QK_UNIT, k_at = rows_at + (OF_V + mine.head * CH / 16) * QK_UNIT;
#pragma unroll GRAM
    for (int y = 0; y < TALL / SEGMENTS; ++y) {
        Vec4 a[GM];
        Vec2 b[GN];
#pragma unroll
        for (int m = 0; m < GM; ++m) a[m] = ld_shared_v4(q_at + m * QK_UNIT);
        if constexpr (GN % 2 == 0)
#pragma unroll
            for (int n = 0; n < GN; n += 2) {
                const Vec4 four = ld_shared_v4(k_at + half_unit(part_k * GN) + half_unit(n));
                b[n] = {four.x, four.y}, b[n + 1] = {four.z, four.w};
            }
        else
#pragma unroll
            for (int n = 0; n < GN; ++n) b[n] = ld_shared_v2(k_at + half_unit(part_k * GN + n));
#pragma unroll
        for (int m = 0; m < GM; ++m) {
            const u32 four[4] = {a[m].x, a[m].y, a[m].z, a[m].w};
#pragma unroll
            for (int n = 0; n < GN; ++n) mma_m16n8k16(sums[m * GN + n], four, b[n].x, b[n].y);
        }
        q_at += 512, k_at += 512;
    }
}

// Units of the last pass go around from tile to tile; UNITS or more: none.
DEVICE int unit_of(const Place& at, int pass, int turn) {
    int mine = at.warp;
    if (LAST < WARPS && pass == PASSES - 1) {
        mine -= turn;
        mine += mine < 0 ? WARPS : 0;
    }
    return pass * WARPS + mine;
}

KERNEL(THREADS, BLOCKS)
mdta_gram_sm90(const u16* x, const u16* w, const int* t, u16* v, float* partial, int h, int width) {
    Place at;
    at.lane = thread_idx() & 31, at.warp = thread_idx() >> 5, at.group = GROUPS == 1 ? 0 : at.warp / 4;
    at.g = at.lane >> 2, at.j = at.lane & 3;
    at.n = block_idx(1), at.h = h, at.w = width;
    const int across = (width + TILE_W - 1) / TILE_W, tiles = across * ((h + TALL - 1) / TALL);

    for (int k = thread_idx() * 16; k < UNITS * T_UNIT; k += 16 * THREADS) cp_async_16(T_AT + k, (const char*)t + k, true);
    cp_async_commit_group();
    for (int k = thread_idx() * 4; k < 8 * C; k += 4 * THREADS) st_shared(S_AT + k, 0);

    float sums[QUADS][4];
#pragma unroll
    for (int c = 0; c < 4 * QUADS; ++c) sums[c / 4][c % 4] = 0;

    int tile = block_idx(0), turn = 0;
    at.top = tile / across * TALL, at.left = tile % across * TILE_W;
    Part pixels[OWN];
#pragma unroll
    for (int r = 0; r < OWN; ++r) load_pixels(at, pixels[r], r * GROUPS + at.group, x);
    cp_async_wait_group<0>();
#pragma unroll 1
    for (; tile < tiles; tile += grid_dim_x()) {
#pragma unroll
        for (int r = 0; r < OWN; ++r) normalise(at, pixels[r], r * GROUPS + at.group);
        u32 a[STEPS][4];
        int unit = unit_of(at, 0, turn);
        load_w(a, at, unit, w);
        fence_proxy_async();
        syncthreads();

        const bool edge = at.top == 0 || at.left == 0 || at.top + TALL >= h || at.left + TILE_W >= width;
        u32 taps = T_AT + unit * T_UNIT + at.g * 16;
        float e[5][4];
        warpgroup_fence_operand(e);
        warpgroup_arrive();
        expand_piece(0, e, a);
        warpgroup_commit_batch();
        warpgroup_wait<0>();
        warpgroup_fence_operand(e);
        Rows rows = pack_piece(e);
#pragma unroll 1
        for (int pass = 0; pass < PASSES; ++pass) {
            const bool for_b = unit >= 2 * OF_V, active = LAST == WARPS || unit < UNITS;
            const u32 own = V_APART ? V_AT + at.warp * QK_UNIT : QK_AT + (LATER * WARPS + at.warp - OF_V) * QK_UNIT;
            const u32 to = (unit < OF_V ? own : QK_AT + (unit - OF_V) * QK_UNIT) + at.lane * 16;
            u32 tap[20];  // of the first half, of the second, biases: each twice in a word
#pragma unroll
            for (int q = 0; q < 5; ++q) {
                Vec4 four = ld_shared_v4(taps + q * 128);
                tap[4 * q] = four.x, tap[4 * q + 1] = four.y, tap[4 * q + 2] = four.z, tap[4 * q + 3] = four.w;
            }
            const int next = unit_of(at, pass + 1 < PASSES ? pass + 1 : 0, turn);
            const int there = LAST == WARPS || next < UNITS ? next : 0;  // of a warp without a unit, whatever
#if AHEAD
            u32 ahead[STEPS][4];
            load_w(ahead, at, there, w);
#endif
            Sums lines;
#pragma unroll
            for (int piece = 0; piece < PIECES; ++piece) {
                const bool last = piece + 1 == PIECES;
#if AHEAD
                if (last)
#pragma unroll
                    for (int s = 0; s < STEPS; ++s)
#pragma unroll
                        for (int k = 0; k < 4; ++k) a[s][k] = ahead[s][k];
#endif
                if (AHEAD || !last) {
                    warpgroup_fence_operand(e);
                    if (!last || pass + 1 < PASSES) {
                        warpgroup_arrive();
                        expand_piece(last ? 0 : piece + 1, e, a);
                        warpgroup_commit_batch();
                    }
                } else {
                    load_w(a, at, there, w);
                }
                // A branch here also keeps ptxas from beginning the products late, among what follows.
                if (edge) {
                    const Vec2 shift = shifts(taps);
                    mend_piece(piece, at, outside(at), rows, shift);
                }
                if (active)
#pragma unroll
                    for (int r = 0; r < 2; ++r)
                        convolve_row(2 * piece + r, at, lines, rows.first[r], rows.second[r], rows.halo[r], tap, to, for_b);
                if (last) {
#if !AHEAD
                    warpgroup_fence_operand(e);
                    if (pass + 1 < PASSES) {
                        warpgroup_arrive();
                        expand_piece(0, e, a);
                        warpgroup_commit_batch();
                    }
#endif
                    if (unit < OF_V) {
                        store_v(at, to, unit, v);
                    } else if (active) {
                        if (at.top + TALL > h || at.left + TILE_W > width) clear_outside(at, to, for_b);
                        add_squares(at, to, unit - OF_V, for_b);
                    }
                    taps = T_AT + there * T_UNIT + at.g * 16;
                }
                warpgroup_wait<0>();
                warpgroup_fence_operand(e);
                rows = pack_piece(e);
            }
            unit = next;
        }
        syncthreads();
        const int following = tile + grid_dim_x() < tiles ? tile + grid_dim_x() : tile;  // at the end some pixels for nothing
        at.top = following / across * TALL, at.left = following % across * TILE_W;
#pragma unroll
        for (int r = 0; r < OWN; ++r) load_pixels(at, pixels[r], r * GROUPS + at.group, x);
        multiply_parts(at, sums);
        turn += LAST;
        turn -= turn < WARPS ? 0 : WARPS;
    }

    const Share mine = share_of(at.warp);
    // Warps with the same part add up, the first one last: one partial sum a block.
    if (SEGMENTS > 1) {
        syncthreads();
        if (mine.segment > 0) {
            u32 to = (((mine.segment - 1) * PARTS + mine.part) * QUADS * 32 + at.lane) * 16;
#pragma unroll
            for (int c = 0; c < QUADS; ++c)
#pragma unroll
                for (int k = 0; k < 4; ++k) st_shared_f32(to + 512 * c + 4 * k, sums[c][k]);
        }
        syncthreads();
        if (mine.segment == 0)
            for (int s = 0; s < SEGMENTS - 1; ++s) {
                u32 from = ((s * PARTS + mine.part) * QUADS * 32 + at.lane) * 16;
#pragma unroll
                for (int c = 0; c < QUADS; ++c)
#pragma unroll
                    for (int k = 0; k < 4; ++k) sums[c][k] += ld_shared_f32(from + 512 * c + 4 * k);
            }
    }
    float* image = partial + ((u64)block_idx(0) * grid_dim_y() + at.n) * HEADS * (CH * (CH + 2));
    for (int c = thread_idx(); c < 2 * C; c += THREADS)
        image[c % C / CH * (CH * (CH + 2)) + CH * CH + c / C * CH + c % CH] = ld_shared_f32(S_AT + 4 * c);
    if (mine.segment > 0) return;
    float* to = image + mine.head * (CH * (CH + 2));
#pragma unroll
    for (int m = 0; m < GM; ++m)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float* row = to + (mine.q * PART + m * 16 + at.g / 2 * 4 + at.g % 2 + 2 * i) * CH + 4 * at.j;
#pragma unroll
            for (int n = 0; n < GN; ++n) {
                const int number = mine.k * GN + n, column = number / 2 * 16 + number % 2 * 2;
                row[column] = sums[m * GN + n][2 * i];
                row[column + 1] = sums[m * GN + n][2 * i + 1];
            }
        }
}
