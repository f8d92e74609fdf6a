// The gating of the feed-forward network alone: y = gelu(gate) * value of the depthwise 3x3.
//
// A block makes CHANNELS hidden channels of 16 x TALL pixels; depthwise.cuh describes the convolution. Neighbouring blocks have neighbouring
// channels of one tile, so that blocks that run together read neighbouring memory, and the halos are still in the L2.
// The last tile comes first: what the launch before wrote last is what the L2 still has when the expanded array
// is larger than it, and the first rows of y are there for the launch after.

constexpr int F = STRIDE / PARTS;
constexpr int CHUNKS = F / CHANNELS;
static_assert(PARTS == 2 && FREE_AT == SHARED, "shared_bytes of the Python module is this number");

KERNEL(THREADS, BLOCKS)
gelu_gate_sm80(const u16* expanded, const u16* dw, u16* y, int h, int w) {
    const int block = grid_dim_x() - 1 - block_idx(0);
    const int first = block % CHUNKS * CHANNELS, tile = block / CHUNKS, across = (w + TILE_W - 1) / TILE_W;
    const int n = grid_dim_y() - 1 - block_idx(1);
    const Tile at = {n, tile / across * TALL, tile % across * TILE_W, h, w};
    fetch_tile(at, expanded, first);
    fetch_taps(dw, first);
    cp_async_commit_group();

    const Share mine = share();
    const int top = at.top + mine.strip * ROWS, left = at.left + 2 * mine.pair;
    u16* to = y + (((u64)n * h + top) * w + left) * F + first + mine.lane * 4;
    cp_async_wait_group<0>();
    syncthreads();
    Taps gate, value;
    load_taps(gate, mine, 0);
    load_taps(value, mine, 1);
    const u32 gates_at = begin(mine, 0), values_at = begin(mine, 1);
    Sums gates, values;
#pragma unroll
    for (int row = 0; row < ROWS + 2; ++row) {
        convolve(row, gates, gate, gates_at);
        convolve(row, values, value, values_at);
        if (row < 2) continue;
        const Vec2(&g)[2] = gates.at[(row - 2) % 3], (&v)[2] = values.at[(row - 2) % 3];
#pragma unroll
        for (int c = 0; c < 2; ++c)
            st_global_v2_if(to + c * F, Vec2{mul2(gelu2(g[c].x), v[c].x), mul2(gelu2(g[c].y), v[c].y)},
                             top + row - 2 < h && left + c < w);
        to += (i64)w * F;
    }
}
