// The gating of the feed-forward network on its own, y = gelu(gate) * value of the depthwise 3x3: kernel.py's _gate, by tiles.
//
// A block makes CHANNELS hidden channels of 16 x TALL pixels; depthwise.cuh says how. Neighbouring blocks have neighbouring
// channels of one tile, so that what is read at the same time lies together in memory, and the halos are still in the L2.
// REVERSE: the last tile comes first. What the launch before wrote last is what the L2 still has when the expanded array
// is larger than it, and the first rows of y are there for the launch after.

constexpr int F = STRIDE / PARTS;
constexpr int CHUNKS = F / CHANNELS;
static_assert(PARTS == 2 && FREE_AT == SHARED, "the binding computes the same number of bytes");

KERNEL(THREADS, BLOCKS)
gate_tile(const u16* expanded, const u16* dw, u16* y, int h, int w) {
    const int block = REVERSE ? block_count() - 1 - block_index(0) : block_index(0);
    const int first = block % CHUNKS * CHANNELS, tile = block / CHUNKS, across = (w + WIDE - 1) / WIDE;
    const int n = REVERSE ? image_count() - 1 - block_index(1) : block_index(1);
    const Tile at = {n, tile / across * TALL, tile % across * WIDE, h, w};
    fetch_tile(at, expanded, first);
    fetch_taps(dw, first);
    commit_copies();

    const Share mine = share();
    const int top = at.top + mine.strip * ROWS, left = at.left + 2 * mine.pair;
    u16* to = y + (((u64)n * h + top) * w + left) * F + first + mine.lane * 4;
    wait_copies<0>();
    block_barrier();
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
            store_global2_if(to + c * F, Vec2{multiply2(gelu2(g[c].x), v[c].x), multiply2(gelu2(g[c].y), v[c].y)},
                             top + row - 2 < h && left + c < w);
        to += (i64)w * F;
    }
}
