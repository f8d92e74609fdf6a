// Shared by the two Hopper kernels of a Restormer block (gdfn/sm90.cu, mdta_gram/sm90.cu): a transposed expansion (A and B
// swapped) by wgmma, and a depthwise 3x3 in the registers that hold its result.
//
// A block has 16 x TALL pixels and the halo around them, normalised, in shared memory from 0 on: the columns of the products,
// whose rows are expanded channels with their weights in registers. A warp has 16 rows, two channels for each lane group g:
// `first` and `second`. Columns are ordered so that lane 4 g + j gets pixels 4j .. 4j + 3 of every row, paired 0 and 2, 1
// and 3; of the halo lane j = 0 has what is left of two rows and j = 3 what is right.
//
// Constants: C channels, WARPS, TALL. The words of a channel's taps are in the order of `pack` in the sm90.py.

constexpr int TILE_W = 16;
constexpr int THREADS = 32 * WARPS;
constexpr int GROUPS = WARPS / 4;
constexpr int CORE = TALL / 4;                      // times 64 pixels of the tile itself
constexpr int RING = 2 * (TILE_W + 2) + 2 * TALL;     // pixels of the halo
constexpr int RINGS = (RING + 63) / 64;
constexpr int PIECES = (TALL + 2) / 2;              // of two rows
constexpr int TILES = 5 * PIECES;                   // of 8 columns of the expansion's products
constexpr int STEPS = C / 16;
constexpr int COLUMNS = C / 8;
constexpr int RUN = C % 32 == 0 ? 8 : 4;            // neighbouring channels of a pixel that a thread has
constexpr int WORDS = RUN / 2;
constexpr int RUNS = C / (4 * RUN);
constexpr int A_UNIT = 128 * TILES + 32;            // bytes from 8 channels of all pixels to the next 8
constexpr int T_UNIT = 6 * 128;
static_assert(C % 16 == 0 && TALL % 4 == 0 && WARPS % 4 == 0, "channel counts");

struct Place { int lane, g, j, warp, group, n, top, left, h, w; };

// By row and column of the tile with its halo, that is from 0 to TALL + 1 and from 0 to 17.
DEVICE bool inside(const Place& at, int row, int column) {
    int y = at.top - 1 + row, x = at.left - 1 + column;
    return y >= 0 && y < at.h && x >= 0 && x < at.w;
}

struct Pixels { int row[2], column[2]; bool store[2]; };  // this thread's two of a group's 64

// A unit's rows of W', as A.
template <class Int> DEVICE void load_w(u32 (&a)[STEPS][4], const Place& at, Int unit, const u16* w) {
    const Vec4* from = (const Vec4*)w + unit * STEPS * 32 + at.lane;
#pragma unroll
    for (int s = 0; s < STEPS; ++s) {
        Vec4 four = from[s * 32];
        a[s][0] = four.x, a[s][1] = four.y, a[s][2] = four.z, a[s][3] = four.w;
    }
}

// Step 2, between warpgroup_arrive and warpgroup_commit_batch: two rows of pixels.
DEVICE void expand_piece(int piece, float (&e)[5][4], const u32 (&a)[STEPS][4]) {
    const auto from = advance_descriptor(matrix_descriptor(0, A_UNIT, 128), piece * 5 * 128);
    wgmma_rs_zero(e, a[0], from);
#pragma unroll
    for (int s = 1; s < STEPS; ++s) wgmma_rs(e, a[s], advance_descriptor(from, 2 * s * A_UNIT));
}

// Two rows of E, packed: of both halves of the unit this lane's four pixels, 0 and 2, 1 and 3, and in `halo` the first (low)
// and second half's pixel left of the tile (j = 0) or right of it (j = 3).
struct Rows { u32 first[2][2], second[2][2], halo[2]; };

DEVICE Rows pack_piece(const float (&e)[5][4]) {
    Rows rows;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            rows.first[r][c] = pack(e[2 * r + c][0], e[2 * r + c][1]);
            rows.second[r][c] = pack(e[2 * r + c][2], e[2 * r + c][3]);
        }
        rows.halo[r] = pack(e[4][r], e[4][2 + r]);
    }
    return rows;
}

// At the edge of the image: minus the shift, of what is outside of it. Bits of `Outside` are 1 for what is so in every row.
struct Outside { u32 pair[2], halo; };
DEVICE Outside outside(const Place& at) {
    const int x = at.left + 4 * at.j, beside = at.j == 0 ? at.left - 1 : at.left + TILE_W;
    Outside out;
#pragma unroll
    for (int c = 0; c < 2; ++c) out.pair[c] = (x + c >= at.w ? 0xffffu : 0) | (x + c + 2 >= at.w ? 0xffff0000u : 0);
    out.halo = beside < 0 || beside >= at.w ? ~0u : 0;
    return out;
}
DEVICE Vec2 shifts(u32 taps) { return ld_shared_v2(taps + 5 * 128); }
DEVICE void mend_piece(int piece, const Place& at, const Outside& out, Rows& rows, const Vec2& shift) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int y = at.top - 1 + 2 * piece + r;
        const u32 all = y < 0 || y >= at.h ? ~0u : 0;
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            const u32 which = all | out.pair[c];
            rows.first[r][c] = (rows.first[r][c] & ~which) | (shift.x & which);
            rows.second[r][c] = (rows.second[r][c] & ~which) | (shift.y & which);
        }
        const u32 which = all | out.halo;
        rows.halo[r] = (rows.halo[r] & ~which) | (byte_perm(shift.x, shift.y, 0x5410) & which);
    }
}

struct Sums { u32 first[3][2], second[3][2]; };  // of rows y, y - 1, y - 2, at their number mod 3

// Step 3 for row y of E: what it adds to the sums, which begin with what the lane itself has.
DEVICE void convolve(int y, const Place& at, Sums& sums, const u32 (&first)[2], const u32 (&second)[2], u32 halo,
                     const u32 (&tap)[20]) {
    u32 before = shfl_up_1(byte_perm(first[1], second[1], 0x7632)), after = shfl_down_1(byte_perm(first[0], second[0], 0x5410));
    before = at.j == 0 ? halo : before;
    after = at.j == 3 ? halo : after;
    // Of pixels -1 and 1, 0 and 2, 1 and 3, 2 and 4.
    const u32 p[4] = {byte_perm(before, first[1], 0x5410), first[0], first[1], byte_perm(first[0], after, 0x5432)};
    const u32 q[4] = {byte_perm(before, second[1], 0x5432), second[0], second[1], byte_perm(second[0], after, 0x7632)};
#pragma unroll
    for (int dy = 0; dy < 3; ++dy) {
        const int row = y - dy;
        if (row < 0 || row >= TALL) continue;
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            u32 &ps = sums.first[row % 3][c], &qs = sums.second[row % 3][c];
#pragma unroll
            for (int k = 0; k < 3; ++k) {
                const int dx = c == 0 ? (k + 1) % 3 : k;
                ps = fma2(p[c + dx], tap[dy * 3 + dx], dy + k == 0 ? tap[18] : ps);
                qs = fma2(q[c + dx], tap[9 + dy * 3 + dx], dy + k == 0 ? tap[19] : qs);
            }
        }
    }
}
