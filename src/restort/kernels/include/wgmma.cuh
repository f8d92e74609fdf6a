// Hopper's asynchronous products of a warpgroup (four warps): wgmma.mma_async, compute capability 9.0a only.
//
// d += a b (or d = a b: *_zero) with d of 64 rows x N columns in registers (16 rows a warp, laid out as D in ptx.cuh) and 16
// numbers a row of `a` at a time. `rs`: a from registers (as A in ptx.cuh), b from shared memory; `ss`: both from shared memory.
// The order of calls is CUTLASS's:
//   warpgroup_fence_operand(d); warpgroup_arrive(); wgmma...; warpgroup_commit_batch(); warpgroup_wait<0>();
//   warpgroup_fence_operand(d);
// What ordinary stores have written to shared memory has to pass fence_proxy_async (by the writer) and then a barrier.
//
// Matrices in shared memory are made of 8 x 8 pieces of 128 bytes without swizzle:
//   b         a column's 8 rows are 16 bytes in a row; the next 8 columns are `columns` bytes on, the next 8 rows `rows` bytes.
//   a         8 numbers of a row are 16 bytes; the next 8 rows are `columns` bytes on, the next 8 numbers `rows` bytes.
//   a, transposed  a number of 8 rows is 16 bytes, else as a.
#ifndef EMULATE

// The matrix descriptor (PTX ISA, "Matrix descriptor format"): addresses and strides in units of 16 bytes.
DEVICE u64 matrix_descriptor(u32 offset, u32 rows, u32 columns) {
    return (u64)((shared_address(offset) & 0x3ffff) >> 4) | (u64)(rows >> 4) << 16 | (u64)(columns >> 4) << 32;
}
// The descriptor of the matrix `bytes` further on. Only the low word changes, which saves the carry of a 64-bit addition.
DEVICE u64 advance_descriptor(u64 descriptor, u32 bytes) {
    u32 low, high;
    asm("mov.b64 {%0, %1}, %2;" : "=r"(low), "=r"(high) : "l"(descriptor));
    asm("mov.b64 %0, {%1, %2};" : "=l"(descriptor) : "r"(low + (bytes >> 4)), "r"(high));
    return descriptor;
}
DEVICE void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
DEVICE void warpgroup_arrive() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void warpgroup_commit_batch() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> DEVICE void warpgroup_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(PENDING) : "memory"); }
// Keeps the compiler from moving reads and writes of these registers across the products that use them.
template <int N> DEVICE void warpgroup_fence_operand(float (&d)[N][4]) {
#pragma unroll
    for (int t = 0; t < N; ++t)
        asm volatile("" : "+f"(d[t][0]), "+f"(d[t][1]), "+f"(d[t][2]), "+f"(d[t][3]) :: "memory");
}
template <int N> DEVICE void warpgroup_fence_operand(u32 (&a)[N][4]) {
#pragma unroll
    for (int s = 0; s < N; ++s) asm volatile("" : "+r"(a[s][0]), "+r"(a[s][1]), "+r"(a[s][2]), "+r"(a[s][3]) :: "memory");
}

// Operand lists of the inline assembly: QUADS_n names the 4 n registers of d, NUMBERS_n their first n placeholders.
#define QUAD(t) "+f"(d[t][0]), "+f"(d[t][1]), "+f"(d[t][2]), "+f"(d[t][3])
#define QUADS_3(t) QUAD(t), QUAD(t + 1), QUAD(t + 2)
#define QUADS_4(t) QUADS_3(t), QUAD(t + 3)
#define QUADS_5(t) QUADS_3(t), QUAD(t + 3), QUAD(t + 4)
#define QUADS_6(t) QUADS_3(t), QUADS_3(t + 3)
#define QUADS_8(t) QUADS_6(t), QUAD(t + 6), QUAD(t + 7)
#define QUADS_9(t) QUADS_6(t), QUADS_3(t + 6)
#define QUADS_12(t) QUADS_6(t), QUADS_6(t + 6)
#define QUADS_16(t) QUADS_8(t), QUADS_8(t + 8)
#define QUADS_23(t) QUADS_12(t), QUADS_6(t + 12), QUADS_5(t + 18)
#define QUADS_24(t) QUADS_12(t), QUADS_12(t + 12)
#define NUMBERS_12 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11"
#define NUMBERS_16 NUMBERS_12 ", %12, %13, %14, %15"
#define NUMBERS_20 NUMBERS_16 ", %16, %17, %18, %19"
#define NUMBERS_24 NUMBERS_20 ", %20, %21, %22, %23"
#define NUMBERS_32 NUMBERS_24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define NUMBERS_36 NUMBERS_32 ", %32, %33, %34, %35"
#define NUMBERS_48 NUMBERS_36 ", %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define NUMBERS_64 NUMBERS_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NUMBERS_92 \
    NUMBERS_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, " \
    "%85, %86, %87, %88, %89, %90, %91"
#define NUMBERS_96 NUMBERS_92 ", %92, %93, %94, %95"
#define NUMBERS(N) NUMBERS_OF_##N
#define QUADS(N) QUADS_OF_##N
#define NUMBERS_OF_24 NUMBERS_12
#define NUMBERS_OF_32 NUMBERS_16
#define NUMBERS_OF_40 NUMBERS_20
#define NUMBERS_OF_48 NUMBERS_24
#define NUMBERS_OF_64 NUMBERS_32
#define NUMBERS_OF_72 NUMBERS_36
#define NUMBERS_OF_96 NUMBERS_48
#define NUMBERS_OF_128 NUMBERS_64
#define NUMBERS_OF_184 NUMBERS_92
#define NUMBERS_OF_192 NUMBERS_96
#define QUADS_OF_24 QUADS_3(0)
#define QUADS_OF_32 QUADS_4(0)
#define QUADS_OF_40 QUADS_5(0)
#define QUADS_OF_48 QUADS_6(0)
#define QUADS_OF_64 QUADS_8(0)
#define QUADS_OF_72 QUADS_9(0)
#define QUADS_OF_96 QUADS_12(0)
#define QUADS_OF_128 QUADS_16(0)
#define QUADS_OF_184 QUADS_23(0)
#define QUADS_OF_192 QUADS_24(0)

// The predicate p is the instruction's scale-d: false drops what d held. After it come the scales of a and b and, of the
// operands in shared memory, whether each is transposed.
#define WGMMA_TEXT(N, SET) \
    "{.reg .pred p; setp." SET ".u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." MMA_TYPE "." MMA_TYPE \
    " {" NUMBERS(N) "}, "
#define WGMMA_RS(NAME, SET, N, A0, A1, A2, A3, B) \
    DEVICE void NAME(float (&d)[N / 8][4], const u32 (&a)[4], u64 b) { \
        asm volatile(WGMMA_TEXT(N, SET) "{" A0 ", " A1 ", " A2 ", " A3 "}, " B ", p, 1, 1, 0;}" \
                     : QUADS(N) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)); \
    }
#define WGMMA_SS(NAME, SET, N, A, B, TRANSPOSED_A) \
    DEVICE void NAME(float (&d)[N / 8][4], u64 a, u64 b) { \
        asm volatile(WGMMA_TEXT(N, SET) A ", " B ", p, 1, 1, " TRANSPOSED_A ", 0;}" : QUADS(N) : "l"(a), "l"(b)); \
    }
WGMMA_RS(wgmma_rs, "eq", 40, "%20", "%21", "%22", "%23", "%24")
WGMMA_RS(wgmma_rs, "eq", 48, "%24", "%25", "%26", "%27", "%28")
WGMMA_RS(wgmma_rs, "eq", 64, "%32", "%33", "%34", "%35", "%36")
WGMMA_RS(wgmma_rs, "eq", 72, "%36", "%37", "%38", "%39", "%40")
WGMMA_RS(wgmma_rs, "eq", 96, "%48", "%49", "%50", "%51", "%52")
WGMMA_RS(wgmma_rs, "eq", 128, "%64", "%65", "%66", "%67", "%68")
WGMMA_RS(wgmma_rs, "eq", 184, "%92", "%93", "%94", "%95", "%96")
WGMMA_RS(wgmma_rs, "eq", 192, "%96", "%97", "%98", "%99", "%100")
WGMMA_RS(wgmma_rs_zero, "ne", 40, "%20", "%21", "%22", "%23", "%24")
WGMMA_RS(wgmma_rs_zero, "ne", 64, "%32", "%33", "%34", "%35", "%36")
WGMMA_RS(wgmma_rs_zero, "ne", 72, "%36", "%37", "%38", "%39", "%40")
WGMMA_RS(wgmma_rs_zero, "ne", 96, "%48", "%49", "%50", "%51", "%52")
WGMMA_RS(wgmma_rs_zero, "ne", 128, "%64", "%65", "%66", "%67", "%68")
WGMMA_SS(wgmma_ss_transposed_a, "eq", 48, "%24", "%25", "1")
WGMMA_SS(wgmma_ss_transposed_a, "eq", 96, "%48", "%49", "1")
WGMMA_SS(wgmma_ss_transposed_a, "eq", 192, "%96", "%97", "1")
#define WGMMA_SS_BOTH(N, A, B) WGMMA_SS(wgmma_ss, "eq", N, A, B, "0") WGMMA_SS(wgmma_ss_zero, "ne", N, A, B, "0")
WGMMA_SS_BOTH(24, "%12", "%13")
WGMMA_SS_BOTH(32, "%16", "%17")
WGMMA_SS_BOTH(48, "%24", "%25")
WGMMA_SS_BOTH(72, "%36", "%37")
WGMMA_SS_BOTH(96, "%48", "%49")
WGMMA_SS_BOTH(192, "%96", "%97")

#endif
