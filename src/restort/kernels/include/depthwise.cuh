// A depthwise 3x3 over a tile of 16 x TALL pixels in shared memory: shared by gelu_gate_project/sm80.cu and
// depthwise_gram/sm80.cu.
//
// A pixel in global memory has STRIDE numbers, which are PARTS parts as long as each other (gates and values, or q, k and v).
// A block takes CHANNELS neighbouring channels of each part. It asks for all of its tile and the one pixel around it at once, by
// cp.async, which also writes the zeros that are outside of the image. Several blocks per SM keep the memory busy while one
// computes.
//
// A thread has four channels (8 bytes) of two neighbouring pixels and goes down ROWS rows; the threads of a strip have all
// channels of all 16 columns. Sums are of 16 bits, two to an instruction, as in mdta_gram and gdfn.
//
// Constants: STRIDE, PARTS, CHANNELS, TALL, WARPS. `dw` is (10, STRIDE): nine taps in the order dy * 3 + dx, and a bias.

constexpr int TILE_W = 16;
constexpr int ACROSS = TILE_W + 2;
constexpr int PIXELS = ACROSS * (TALL + 2);
constexpr int THREADS = 32 * WARPS;
constexpr int PIXEL = PARTS * CHANNELS * 2;         // bytes of a pixel in shared memory
constexpr int LANES = CHANNELS / 4;                 // threads that share a pixel
constexpr int STRIP = LANES * TILE_W / 2;             // threads of a strip
constexpr int STRIPS = THREADS / STRIP;
constexpr int ROWS = TALL / STRIPS;
constexpr int TAPS_AT = PIXELS * PIXEL;
constexpr int FREE_AT = TAPS_AT + PARTS * 10 * CHANNELS * 2;
static_assert(CHANNELS % 8 == 0 && STRIDE % PARTS == 0 && STRIDE / PARTS % CHANNELS == 0, "channels");
static_assert(STRIPS * STRIP == THREADS && STRIPS * ROWS == TALL, "every thread has as many rows");

struct Tile { int n, top, left, h, w; };

// Channels from `first` of each part: a thread takes 8 of one part, of every LINES-th pixel.
constexpr int UNITS = PIXEL / 16;
constexpr int LINES = THREADS / UNITS;
DEVICE void fetch_tile(const Tile& at, const u16* from, int first) {
    const int thread = launder(thread_idx()), unit = thread % UNITS, line = thread / UNITS;
    if (line >= LINES) return;
    const u16* corner = from + (((i64)at.n * at.h + at.top - 1) * at.w + at.left - 1) * STRIDE + first +
                        unit / (CHANNELS / 8) * (STRIDE / PARTS) + unit % (CHANNELS / 8) * 8;
    int row = line / ACROSS, column = line % ACROSS;
    u32 to = line * PIXEL + unit * 16;
#pragma unroll 4
    for (int pixel = line; pixel < PIXELS; pixel += LINES) {
        const bool inside = (u32)(at.top - 1 + row) < (u32)at.h && (u32)(at.left - 1 + column) < (u32)at.w;
        cp_async_16(to, corner + (i64)(row * at.w + column) * STRIDE, inside);
        to += LINES * PIXEL;
        row += LINES / ACROSS, column += LINES % ACROSS;
        if (column >= ACROSS) column -= ACROSS, ++row;
    }
}
// Of each part its nine taps and its bias.
DEVICE void fetch_taps(const u16* dw, int first) {
    for (int i = thread_idx(); i < PARTS * 10 * CHANNELS / 8; i += THREADS) {
        const int unit = i % (CHANNELS / 8), tap = i / (CHANNELS / 8) % 10, part = i / (CHANNELS / 8 * 10);
        cp_async_16(TAPS_AT + i * 16, dw + tap * STRIDE + part * (STRIDE / PARTS) + first + unit * 8, true);
    }
}

// What a thread has: of the strip's columns, 2 pair and 2 pair + 1; of each part's channels, 4 lane .. 4 lane + 3.
struct Share { int lane, pair, strip; };
DEVICE Share share() {
    const int thread = launder(thread_idx());
    return {thread % LANES, thread / LANES % (TILE_W / 2), thread / STRIP};
}
// Where the thread's pixels begin: row -1 of its strip, the column before its first.
DEVICE u32 begin(const Share& mine, int part) {
    return (mine.strip * ROWS * ACROSS + 2 * mine.pair) * PIXEL + part * CHANNELS * 2 + mine.lane * 8;
}

struct Taps { Vec2 tap[9], bias; };
DEVICE void load_taps(Taps& taps, const Share& mine, int part) {
    const u32 from = TAPS_AT + part * 10 * CHANNELS * 2 + mine.lane * 8;
#pragma unroll
    for (int k = 0; k < 9; ++k) taps.tap[k] = ld_shared_v2(from + k * CHANNELS * 2);
    taps.bias = ld_shared_v2(from + 9 * CHANNELS * 2);
}

// Rows y, y - 1, y - 2 of the results, at their number mod 3, of both pixels.
struct Sums { Vec2 at[3][2]; };

// What row y of the strip with its halo (from 0 to ROWS + 1) adds; row y - 2 is complete after that. `y` is known once loops
// are unrolled.
DEVICE void convolve(int y, Sums& sums, const Taps& taps, u32 from) {
    Vec2 e[4];
#pragma unroll
    for (int x = 0; x < 4; ++x) e[x] = ld_shared_v2(from + (y * ACROSS + x) * PIXEL);
#pragma unroll
    for (int dx = 0; dx < 3; ++dx)
#pragma unroll
        for (int dy = 0; dy < 3; ++dy) {
            const int row = y - dy;
            if (row < 0 || row >= ROWS) continue;
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                Vec2& sum = sums.at[row % 3][c];
                const Vec2 before = dy == 0 && dx == 0 ? taps.bias : sum, &tap = taps.tap[dy * 3 + dx];
                sum.x = fma2(e[c + dx].x, tap.x, before.x);
                sum.y = fma2(e[c + dx].y, tap.y, before.y);
            }
        }
}
