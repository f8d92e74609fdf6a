// Attention in windows of 4, 8 and 16 pixels and its projection, for a tile of 16 x WARPS pixels of a window of 16;
// the formula is in reference.py.
//
// A warp has a square of 4 x 4 pixels as the 16 rows of its products. Of each window size the tile's queries, which are keys too,
// and values lie in shared memory, with what is around the tile of the windows that reach out (moved by half their size):
//   of 8 in area A, of 16 in area B; then of 4 in A; then the weights of the projection in B.
// Each of these is copied there while the step before it computes, after a barrier that ends the last use of its area.
// A moved square lies in one window of 8 but touches four of 4, with 2 x 2 pixels each: of its products with all of their 64
// keys a thread uses those of its rows' own.
//
// `out` may be x: each pixel is read and written by one thread.

constexpr int THREADS = 32 * WARPS;
constexpr int TALL = WARPS;
constexpr int UNITS = DS / 8;                       // of 16 bytes in a pixel
constexpr int PITCH = UNITS % 2 ? DS * 2 : DS * 2 + 16;  // an odd number of 16
constexpr int STEPS = DS / 16;                      // of 16 channels, and perhaps 8 more
constexpr bool MORE = DS % 16 != 0;
constexpr int TILES = (C + 7) / 8;                  // of 8 channels of the result
constexpr int PADDED_C = (C + 63) / 64 * 64;
constexpr int CHUNK = 8;                            // groups of 8 keys a step, of windows of 16
constexpr int ROLL = ROLLED ? 8 : 0;

// Of window size 4 << PART: the area around the tile, in pixels.
template <int PART> DEVICE constexpr int around() { return ROLLED && PART < 2 ? 2 << PART : 0; }
template <int PART> DEVICE constexpr int across() { return 16 + 2 * around<PART>(); }
template <int PART> DEVICE constexpr int rows() { return PART == 2 ? 16 : TALL + 2 * around<PART>(); }
template <int PART> DEVICE constexpr int bytes() { return across<PART>() * rows<PART>() * PITCH; }  // of queries, and of values

constexpr int K_STEPS = 3 * DS / 16;
constexpr bool K_MORE = 3 * DS % 16 != 0;
constexpr int PARTS = (TILES + 3) / 4;              // of 32 channels of the result
constexpr int PART_BYTES = K_STEPS * 1024 + K_MORE * 512;
constexpr int WEIGHT_BYTES = PARTS * PART_BYTES;
constexpr int A_BYTES = 2 * (bytes<0>() > bytes<1>() ? bytes<0>() : bytes<1>());
constexpr int B_AT = (A_BYTES + 127) / 128 * 128;
constexpr int B_BYTES = 2 * bytes<2>() > WEIGHT_BYTES ? 2 * bytes<2>() : WEIGHT_BYTES;
static_assert(WARPS == 8 || WARPS == 16, "a tile is half a window or a whole one");
static_assert(DS % 8 == 0, "whole units");
static_assert(B_AT + B_BYTES == SHARED, "shared_bytes of the Python module is this number");

struct Place { int lane, g, j, a, b, n, top, left, h, w; };  // a, b: the warp's square, from the tile's corner

DEVICE int wrap(int i, int size) { return i >= size ? i - size : i; }

// Queries and values of a window size, to shared memory.
template <int PART> DEVICE void fetch(const Place& at, u32 area, const u16* q, const u16* v) {
    constexpr int ALL = 2 * UNITS, LINES = THREADS / ALL, PIXELS = across<PART>() * rows<PART>();
    const int unit = thread_idx() % ALL, line = thread_idx() / ALL;
    if (line >= LINES) return;
    const bool value = unit >= UNITS;
    const int part = value ? unit - UNITS : unit;
    const u16* from = (value ? v : q) + (u64)at.n * at.h * at.w * (3 * DS) + PART * DS + part * 8;
    const u32 to = area + (value ? bytes<PART>() : 0) + part * 16;
    const int top = (PART == 2 ? (at.top - ROLL) / 16 * 16 + ROLL : at.top) - around<PART>();
    const int left = at.left - around<PART>();
#pragma unroll 4
    for (int p = line; p < PIXELS; p += LINES) {
        int y = wrap(top + p / across<PART>(), at.h), x = wrap(left + p % across<PART>(), at.w);
        cp_async_16(to + p * PITCH, from + (u64)(y * at.w + x) * (3 * DS), true);
    }
}

// Where groups of 8 keys lie, in pixels of the area: two groups are a pair.
template <int PART> DEVICE int key(int group, int i) {  // the i-th key of a group of the first pair
    constexpr int W = across<PART>();
    return PART == 2 ? group * 8 + i : PART == 1 ? group * W + i : (2 * group + i / 4) * W + i % 4;
}
template <int PART> DEVICE int pair_at(int pair) {
    constexpr int W = across<PART>();
    return PART == 2 ? pair * 16 : PART == 1 ? pair * 2 * W : ROLLED ? pair / 2 * 4 * W + pair % 2 * 4 : 0;
}

struct Queries { u32 a[STEPS][4], more[2]; };
struct Keys { u32 pairs, values, fours, value_fours; };  // addresses that this lane gives

// s = the queries' products with N groups of keys, of which `keys` has the first.
template <int PART, int N> DEVICE void score(float (&s)[N][4], const Queries& queries, const Keys& keys) {
#pragma unroll
    for (int t = 0; t < N; ++t) s[t][0] = s[t][1] = s[t][2] = s[t][3] = 0;
#pragma unroll
    for (int first = 0; first < N; first += 4) {
#pragma unroll
        for (int t = first; t < first + 4 && t < N; t += 2)
#pragma unroll
            for (int k = 0; k < STEPS; ++k) {
                u32 b[4];
                ldmatrix_x4(b, keys.pairs + pair_at<PART>(t / 2) * PITCH + k * 32);
                mma_m16n8k16(s[t], queries.a[k], b[0], b[1]);
                mma_m16n8k16(s[t + 1], queries.a[k], b[2], b[3]);
            }
        if (MORE) {
            u32 b[4];
            ldmatrix_x4(b, keys.fours + pair_at<PART>(first / 2) * PITCH + STEPS * 32);
#pragma unroll
            for (int t = 0; t < 4; ++t)
                if (first + t < N) mma_m16n8k8(s[first + t], queries.more[0], queries.more[1], b[t]);
        }
    }
}

// y += p of N groups of keys, as left operands of 16, times their values.
template <int PART, int N> DEVICE void weigh(float (&y)[UNITS][4], const u32 (&p)[N / 2][4], const Keys& keys) {
#pragma unroll
    for (int first = 0; first < N / 2; first += 2) {
#pragma unroll
        for (int k = first; k < first + 2 && k < N / 2; ++k)
#pragma unroll
            for (int n = 0; n + 1 < UNITS; n += 2) {
                u32 b[4];
                ldmatrix_x4_trans(b, keys.values + pair_at<PART>(k) * PITCH + n * 16);
                mma_m16n8k16(y[n], p[k], b[0], b[1]);
                mma_m16n8k16(y[n + 1], p[k], b[2], b[3]);
            }
        if (UNITS % 2) {
            u32 b[4];
            ldmatrix_x4_trans(b, keys.value_fours + pair_at<PART>(first) * PITCH + (UNITS - 1) * 16);
            mma_m16n8k16(y[UNITS - 1], p[first], b[0], b[1]);
            if (first + 1 < N / 2) mma_m16n8k16(y[UNITS - 1], p[first + 1 < N / 2 ? first + 1 : first], b[2], b[3]);
        }
    }
}

DEVICE float largest(float x) {
    x = fmaxf(x, shfl_xor(x, 1));
    return fmaxf(x, shfl_xor(x, 2));
}

// The attention of this warp's square in windows of 4 << PART: rows g and g + 8, two channels of each 8.
template <int PART> DEVICE void attend(const Place& at, u32 area, u32 (&result)[UNITS][2]) {
    constexpr int W = across<PART>();
    const int m = at.lane >> 3, i = at.lane & 7;
    int top = 4 * at.a + around<PART>();
    if (PART == 2 && TALL == 8) top += (at.top - ROLL) % 16;
    const int row = at.lane & 15;
    u32 from = area + ((top + row / 4) * W + 4 * at.b + around<PART>() + row % 4) * PITCH;
    Queries queries;
#pragma unroll
    for (int k = 0; k < STEPS; ++k) ldmatrix_x4(queries.a[k], from + (at.lane >> 4) * 16 + k * 32);
    if (MORE) {
        u32 b[4];
        ldmatrix_x4(b, from + STEPS * 32);  // lanes 16 to 31 ask for the same once more
        queries.more[0] = b[0], queries.more[1] = b[1];
    }
    int window = 0;
    if (PART == 1) window = ROLLED ? (at.a + 1) / 2 * 8 * W + (at.b + 1) / 2 * 8 : at.a / 2 * 8 * W + at.b / 2 * 8;
    if (PART == 0) window = 4 * at.a * W + 4 * at.b;
    u32 base = area + window * PITCH;
    Keys keys;
    keys.pairs = base + key<PART>(m / 2, i) * PITCH + m % 2 * 16;
    keys.values = base + bytes<PART>() + key<PART>(m % 2, i) * PITCH + m / 2 * 16;
    keys.fours = base + (key<PART>(m % 2, i) + pair_at<PART>(m / 2)) * PITCH;
    keys.value_fours = keys.fours + bytes<PART>();

    float y[UNITS][4], sum[2] = {0, 0};
#pragma unroll
    for (int t = 0; t < UNITS; ++t) y[t][0] = y[t][1] = y[t][2] = y[t][3] = 0;
    if constexpr (PART == 0 && ROLLED) {
        float s[8][4];
        score<PART, 8>(s, queries, keys);
        const bool right = at.g % 4 >= 2;
        u32 p[4][4];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float mine[4];
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                int group = 4 * r + k / 2, number = 2 * r + k % 2;
                mine[k] = right ? s[group + 2][number] : s[group][number];
            }
            float highest = largest(fmaxf(fmaxf(mine[0], mine[1]), fmaxf(mine[2], mine[3])));
#pragma unroll
            for (int k = 0; k < 4; ++k) mine[k] = ex2_approx(mine[k] - highest), sum[r] += mine[k];
            u32 first = pack(mine[0], mine[1]), second = pack(mine[2], mine[3]);
            p[2 * r][r] = right ? 0 : first, p[2 * r][2 + r] = right ? 0 : second;
            p[2 * r + 1][r] = right ? first : 0, p[2 * r + 1][2 + r] = right ? second : 0;
            p[2 * r][1 - r] = p[2 * r][3 - r] = p[2 * r + 1][1 - r] = p[2 * r + 1][3 - r] = 0;
        }
        weigh<PART, 8>(y, p, keys);
    } else {
        constexpr int ALL = PART == 2 ? 32 : PART == 1 ? 8 : 2, N = PART == 2 ? CHUNK : ALL;
        float highest[2] = {as_float(0xff800000u), as_float(0xff800000u)};
#pragma unroll 1
        for (int first = 0; first < ALL; first += N) {
            float s[N][4];
            score<PART, N>(s, queries, keys);
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                float high = highest[r];
#pragma unroll
                for (int t = 0; t < N; ++t) high = fmaxf(high, fmaxf(s[t][2 * r], s[t][2 * r + 1]));
                high = largest(high);
                if (ALL > N) {
                    float keep = ex2_approx(highest[r] - high);
                    sum[r] *= keep;
#pragma unroll
                    for (int t = 0; t < UNITS; ++t) y[t][2 * r] *= keep, y[t][2 * r + 1] *= keep;
                    highest[r] = high;
                }
#pragma unroll
                for (int t = 0; t < N; ++t)
#pragma unroll
                    for (int k = 2 * r; k < 2 * r + 2; ++k) s[t][k] = ex2_approx(s[t][k] - high), sum[r] += s[t][k];
            }
            u32 p[N / 2][4];
#pragma unroll
            for (int t = 0; t < N; ++t)
#pragma unroll
                for (int r = 0; r < 2; ++r) p[t / 2][t % 2 * 2 + r] = pack(s[t][2 * r], s[t][2 * r + 1]);
            weigh<PART, N>(y, p, keys);
            if (ALL > N) {
                keys.pairs += N * 8 * PITCH, keys.fours += N * 8 * PITCH;
                keys.values += N * 8 * PITCH, keys.value_fours += N * 8 * PITCH;
            }
        }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float whole = sum[r] + shfl_xor(sum[r], 1);
        float scale = 1.0f / (whole + shfl_xor(whole, 2));
#pragma unroll
        for (int t = 0; t < UNITS; ++t) result[t][r] = pack(y[t][2 * r] * scale, y[t][2 * r + 1] * scale);
    }
}

// What this thread has of a pixel's channels: of each 32 (the last part has REMAIN tiles of 8) those from 2 REMAIN j on.
constexpr int FULL = TILES / 4, REMAIN = TILES % 4;
DEVICE void load_channels(const Place& at, u32 (&pairs)[TILES], const u16* pixel) {
#pragma unroll
    for (int part = 0; part < FULL; ++part) {
        Vec4 four = *(const Vec4*)(pixel + part * 32 + at.j * 8);
        pairs[4 * part] = four.x, pairs[4 * part + 1] = four.y, pairs[4 * part + 2] = four.z, pairs[4 * part + 3] = four.w;
    }
#pragma unroll
    for (int t = 0; t < REMAIN; ++t) pairs[4 * FULL + t] = *(const u32*)(pixel + FULL * 32 + 2 * REMAIN * at.j + 2 * t);
}

KERNEL(THREADS, BLOCKS)
window_attention_sm80(const u16* q, const u16* v, const u16* x, const u16* extra, const int* blob, u16* out, int h, int w) {
    Place at;
    const int warp = thread_idx() >> 5;
    at.lane = thread_idx() & 31, at.g = at.lane >> 2, at.j = at.lane & 3;
    at.a = warp / 4, at.b = warp % 4;
    at.n = block_idx(2), at.top = block_idx(1) * TALL + ROLL, at.left = block_idx(0) * 16 + ROLL;
    at.h = h, at.w = w;
    griddepcontrol_launch_dependents();
    griddepcontrol_wait();

    fetch<1>(at, 0, q, v);
    cp_async_commit_group();
    fetch<2>(at, B_AT, q, v);
    cp_async_commit_group();
    u32 y[3 * UNITS][2];

    cp_async_wait_group<1>();
    syncthreads();
    {
        u32 part[UNITS][2];
        attend<1>(at, 0, part);
#pragma unroll
        for (int t = 0; t < UNITS; ++t) y[UNITS + t][0] = part[t][0], y[UNITS + t][1] = part[t][1];
    }
    cp_async_wait_group<0>();
    syncthreads();
    fetch<0>(at, 0, q, v);
    cp_async_commit_group();
    {
        u32 part[UNITS][2];
        attend<2>(at, B_AT, part);
#pragma unroll
        for (int t = 0; t < UNITS; ++t) y[2 * UNITS + t][0] = part[t][0], y[2 * UNITS + t][1] = part[t][1];
    }
    cp_async_wait_group<0>();
    syncthreads();
    for (int i = thread_idx() * 16; i < WEIGHT_BYTES; i += THREADS * 16) cp_async_16(B_AT + i, (const char*)blob + i, true);
    cp_async_commit_group();
    u64 place[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        int row = wrap(at.top + 4 * at.a + 2 * r + at.g / 4, h), column = wrap(at.left + 4 * at.b + at.g % 4, w);
        place[r] = ((u64)(at.n * (h + 4) + row + 2) * (w + 4) + column + 2) * PADDED_C;
    }
#if EARLY
    u32 sum[2][TILES];
#pragma unroll
    for (int r = 0; r < 2; ++r) load_channels(at, sum[r], x + place[r]);
#endif
    {
        u32 part[UNITS][2];
        attend<0>(at, 0, part);
#pragma unroll
        for (int t = 0; t < UNITS; ++t) y[t][0] = part[t][0], y[t][1] = part[t][1];
    }
    cp_async_wait_group<0>();
    syncthreads();

#if !EARLY
    u32 sum[2][TILES];
#pragma unroll
    for (int r = 0; r < 2; ++r) load_channels(at, sum[r], x + place[r]);
#endif
#if ADD
    u32 other[2][TILES];
#pragma unroll
    for (int r = 0; r < 2; ++r) load_channels(at, other[r], extra + place[r]);
#endif
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
        float made[4][4];
#pragma unroll
        for (int t = 0; t < 4; ++t) {
            int tile = 4 * part + t;
            if (tile >= TILES) continue;
            Vec2 bias = *(const Vec2*)(blob + WEIGHT_BYTES / 4 + tile * 8 + at.j * 2);
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                made[t][2 * r] = low(sum[r][tile]) + as_float(bias.x), made[t][2 * r + 1] = high(sum[r][tile]) + as_float(bias.y);
#if ADD
                made[t][2 * r] += low(other[r][tile]), made[t][2 * r + 1] += high(other[r][tile]);
#endif
            }
        }
        const u32 mine = B_AT + part * PART_BYTES + at.lane * 16;
#pragma unroll
        for (int k = 0; k < K_STEPS; ++k) {
            const u32 a[4] = {y[2 * k][0], y[2 * k][1], y[2 * k + 1][0], y[2 * k + 1][1]};
            Vec4 b = ld_shared_v4(mine + k * 1024), c = ld_shared_v4(mine + k * 1024 + 512);
            mma_m16n8k16(made[0], a, b.x, b.y);
            if (4 * part + 1 < TILES) mma_m16n8k16(made[1], a, b.z, b.w);
            if (4 * part + 2 < TILES) mma_m16n8k16(made[2], a, c.x, c.y);
            if (4 * part + 3 < TILES) mma_m16n8k16(made[3], a, c.z, c.w);
        }
        if (K_MORE) {
            Vec4 b = ld_shared_v4(mine + K_STEPS * 1024);
            const u32 last[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
            for (int t = 0; t < 4; ++t)
                if (4 * part + t < TILES) mma_m16n8k8(made[t], y[3 * UNITS - 1][0], y[3 * UNITS - 1][1], last[t]);
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            u16* to = out + place[r] + part * 32;
            u32 pairs[4];
#pragma unroll
            for (int t = 0; t < 4; ++t)
                if (4 * part + t < TILES) pairs[t] = pack(made[t][2 * r], made[t][2 * r + 1]);
            if (part < FULL) *(Vec4*)(to + at.j * 8) = Vec4{pairs[0], pairs[1], pairs[2], pairs[3]};
            else
#pragma unroll
                for (int t = 0; t < REMAIN; ++t) *(u32*)(to + 2 * REMAIN * at.j + 2 * t) = pairs[t];
        }
    }
    if (TILES * 8 + at.j * 8 < PADDED_C)
#pragma unroll
        for (int r = 0; r < 2; ++r) *(Vec4*)(out + place[r] + TILES * 8 + at.j * 8) = Vec4{0, 0, 0, 0};
}
