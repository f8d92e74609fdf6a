// What the CUDA kernels are written in: 16-bit pairs, warp-wide products, copies to shared memory.
//
// T is __half or __nv_bfloat16 by BF16 = 0 or 1, but no header of CUDA is needed: a number is 16 bits of a
// `u16`, two neighbours are a `u32` (the first in the low half). Shared memory is addressed by byte offsets.
// With EMULATE defined the same names come from tests/emulator/emulator.h, which runs a block on the CPU.
//
// Fragments (PTX ISA, "Matrix fragments for mma.m16n8k16"), g = lane / 4, j = lane % 4:
//   A (16 rows x 16): a[0] row g columns 2j, 2j+1; a[1] row g+8; a[2], a[3] the same with columns 2j+8, 2j+9
//   B (16 x 8 columns): b[0] rows 2j, 2j+1 of column g; b[1] rows 2j+8, 2j+9
//   D (16 x 8): d[0], d[1] row g, columns 2j, 2j+1; d[2], d[3] row g+8
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#ifndef EMULATE

#define DEVICE __device__ __forceinline__
#define KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)

extern __shared__ __align__(16) unsigned char shared_bytes[];

struct __align__(16) Vec4 { u32 x, y, z, w; };
struct __align__(8) Vec2 { u32 x, y; };

DEVICE int thread_index() { return threadIdx.x; }
DEVICE int block_index(int axis) { return axis == 0 ? blockIdx.x : axis == 1 ? blockIdx.y : blockIdx.z; }
DEVICE int block_count() { return gridDim.x; }
DEVICE int image_count() { return gridDim.y; }
DEVICE void block_barrier() { __syncthreads(); }
DEVICE void warp_barrier() { __syncwarp(); }
DEVICE float shuffle_xor(float value, int lanes) { return __shfl_xor_sync(0xffffffffu, value, lanes); }
// Of the lane before (the first lane's: its own) and of the lane after (the last's: its own).
DEVICE u32 shuffle_before(u32 value) { return __shfl_up_sync(0xffffffffu, value, 1); }
DEVICE u32 shuffle_after(u32 value) { return __shfl_down_sync(0xffffffffu, value, 1); }
// Four of eight bytes, a's being 0 to 3 and b's 4 to 7, by the hexadecimal digits of `which`, the last digit first.
DEVICE u32 pick(u32 a, u32 b, u32 which) { return __byte_perm(a, b, which); }

// The same; but what follows from it is computed again in each turn of a loop, not kept in registers through it.
DEVICE int hidden(int value) {
    asm volatile("" : "+r"(value));
    return value;
}

// The same, of a value that all lanes of a warp have: so that the compiler knows, and branches on it without looking for others.
DEVICE int uniform(int value) { return __shfl_sync(0xffffffffu, value, 0); }

DEVICE float as_float(u32 bits) { return __uint_as_float(bits); }
DEVICE u32 window(u32 offset) { return (u32)__cvta_generic_to_shared(shared_bytes) + offset; }
// By 32-bit addresses, said outright: NVRTC, unlike nvcc, takes 64 bits for the address of a shared array, which costs
// registers and an addition for each access.
DEVICE u32 load_shared(u32 offset) {
    u32 value;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(window(offset)));
    return value;
}
DEVICE Vec2 load_shared2(u32 offset) {
    Vec2 value;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(value.x), "=r"(value.y) : "r"(window(offset)));
    return value;
}
DEVICE Vec4 load_shared4(u32 offset) {
    Vec4 value;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w) : "r"(window(offset)));
    return value;
}
DEVICE float load_shared_float(u32 offset) { return as_float(load_shared(offset)); }
DEVICE void store_shared(u32 offset, u32 value) {
    asm volatile("st.shared.u32 [%0], %1;" :: "r"(window(offset)), "r"(value) : "memory");
}
DEVICE void store_shared2(u32 offset, Vec2 value) {
    asm volatile("st.shared.v2.u32 [%0], {%1, %2};" :: "r"(window(offset)), "r"(value.x), "r"(value.y) : "memory");
}
DEVICE void store_shared_if(u32 offset, u32 value, bool valid) {  // without a branch
    asm volatile("{.reg .pred p; setp.ne.u32 p, %2, 0; @p st.shared.u32 [%0], %1;}"
                 :: "r"(window(offset)), "r"(value), "r"((u32)valid) : "memory");
}
DEVICE void store_shared2_if(u32 offset, Vec2 value, bool valid) {  // without a branch
    asm volatile("{.reg .pred p; setp.ne.u32 p, %3, 0; @p st.shared.v2.u32 [%0], {%1, %2};}"
                 :: "r"(window(offset)), "r"(value.x), "r"(value.y), "r"((u32)valid) : "memory");
}
DEVICE void store_global2_if(void* to, Vec2 value, bool valid) {
    asm volatile("{.reg .pred p; setp.ne.u32 p, %3, 0; @p st.global.v2.u32 [%0], {%1, %2};}"
                 :: "l"(to), "r"(value.x), "r"(value.y), "r"((u32)valid) : "memory");
}
DEVICE void store_shared4(u32 offset, Vec4 value) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};"
                 :: "r"(window(offset)), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w) : "memory");
}
DEVICE void store_shared4_if(u32 offset, Vec4 value, bool valid) {
    asm volatile("{.reg .pred p; setp.ne.u32 p, %5, 0; @p st.shared.v4.u32 [%0], {%1, %2, %3, %4};}"
                 :: "r"(window(offset)), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "r"((u32)valid) : "memory");
}
DEVICE void store_shared_float(u32 offset, float value) { store_shared(offset, __float_as_uint(value)); }

// Four 8 x 8 matrices of 16-bit numbers; lane 8 i + r gives the address of row r of matrix i.
DEVICE void load_matrices(u32 (&r)[4], u32 offset) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(window(offset)));
}
DEVICE void load_matrices_transposed(u32 (&r)[4], u32 offset) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(window(offset)));
}

// An 8 x 8 matrix whose row g, columns 2j, 2j+1, is this lane's, turned over: row g is what was column g.
DEVICE u32 transpose_matrix(u32 value) {
    u32 turned;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(value));
    return turned;
}

// 16 (or 4) bytes from global to shared memory, zeros unless `valid`; complete after wait_copies and a barrier.
DEVICE void copy16(u32 offset, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(window(offset)), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING> DEVICE void wait_copies() {
    asm volatile("cp.async.wait_group %0;" :: "n"(PENDING) : "memory");
}

#if BF16
#define PAIR_TYPE "bf16x2"
#define MMA_TYPE "bf16"
DEVICE float low(u32 pair) { return __uint_as_float(pair << 16); }
DEVICE float high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
#else
#define PAIR_TYPE "f16x2"
#define MMA_TYPE "f16"
DEVICE float low(u32 pair) {
    float value;
    asm("{.reg .b16 lo, hi; mov.b32 {lo, hi}, %1; cvt.f32.f16 %0, lo;}" : "=f"(value) : "r"(pair));
    return value;
}
DEVICE float high(u32 pair) {
    float value;
    asm("{.reg .b16 lo, hi; mov.b32 {lo, hi}, %1; cvt.f32.f16 %0, hi;}" : "=f"(value) : "r"(pair));
    return value;
}
#endif

DEVICE u32 pack(float first, float second) {
    u32 pair;
    asm("cvt.rn." PAIR_TYPE ".f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}
DEVICE u32 fma2(u32 a, u32 b, u32 c) {
    u32 pair;
    asm("fma.rn." PAIR_TYPE " %0, %1, %2, %3;" : "=r"(pair) : "r"(a), "r"(b), "r"(c));
    return pair;
}
DEVICE u32 multiply2(u32 a, u32 b) {
#if BF16
    return fma2(a, b, 0x80008000u);  // + -0; before sm_90 there is no product alone
#else
    u32 pair;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(pair) : "r"(a), "r"(b));
    return pair;
#endif
}
DEVICE u32 minimum2(u32 a, u32 b) {
    u32 pair;
    asm("min." PAIR_TYPE " %0, %1, %2;" : "=r"(pair) : "r"(a), "r"(b));
    return pair;
}
DEVICE u32 tanh2_fast(u32 x) {
    u32 pair;
    asm("tanh.approx." PAIR_TYPE " %0, %1;" : "=r"(pair) : "r"(x));
    return pair;
}
DEVICE void multiply(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32." MMA_TYPE "." MMA_TYPE ".f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// The same of 8 columns of A: rows g and g + 8 of these, columns 2j, 2j+1; b is rows 2j, 2j+1 of column g.
DEVICE void multiply_half(float (&d)[4], u32 a0, u32 a1, u32 b) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32." MMA_TYPE "." MMA_TYPE ".f32 "
        "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(b));
}
// d = c + a b.
DEVICE void multiply_onto(float (&d)[4], const float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32." MMA_TYPE "." MMA_TYPE ".f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}
// Where launches overlap (PDL): what the launch before wrote may be read after this; weights may before.
DEVICE void await_predecessor() {
#if OVERLAP && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
DEVICE void start_successor() {
#if OVERLAP && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
#if WGMMA
// Hopper's products of four warps, 64 rows (16 each, A as above) by up to 64 columns, B from shared memory: d += a b, done
// in the background after group_begin, these, group_commit, and at an end after group_wait. B is 8 columns x 8 rows at a time
// (128 bytes, a column's 8 rows in a piece); the next 8 columns are `columns` bytes on, the next 8 rows `rows` bytes.
// What other instructions have written there has to pass publish_to_groups (by the writer) and a barrier first.
DEVICE u64 group_operand(u32 offset, u32 rows, u32 columns) {
    return (u64)((window(offset) & 0x3ffff) >> 4) | (u64)(rows >> 4) << 16 | (u64)(columns >> 4) << 32;
}
// The same so many bytes further on.
DEVICE u64 group_operand_at(u64 operand, u32 bytes) {
    u32 low, high;
    asm("mov.b64 {%0, %1}, %2;" : "=r"(low), "=r"(high) : "l"(operand));
    asm("mov.b64 %0, {%1, %2};" : "=l"(operand) : "r"(low + (bytes >> 4)), "r"(high));
    return operand;
}
DEVICE void publish_to_groups() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
DEVICE void group_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void group_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> DEVICE void group_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(PENDING) : "memory"); }
// Between the writing of sums and their products, and after these: the compiler is not to move either across.
template <int N> DEVICE void group_touch(float (&d)[N][4]) {
#pragma unroll
    for (int t = 0; t < N; ++t)
        asm volatile("" : "+f"(d[t][0]), "+f"(d[t][1]), "+f"(d[t][2]), "+f"(d[t][3]) :: "memory");
}
// d += a b with a of 16 numbers a row from registers, and b as above.
#define QUAD(t) "+f"(d[t][0]), "+f"(d[t][1]), "+f"(d[t][2]), "+f"(d[t][3])
#define QUADS_3(t) QUAD(t), QUAD(t + 1), QUAD(t + 2)
#define QUADS_4(t) QUADS_3(t), QUAD(t + 3)
#define QUADS_5(t) QUADS_3(t), QUAD(t + 3), QUAD(t + 4)
#define QUADS_6(t) QUADS_3(t), QUADS_3(t + 3)
#define QUADS_8(t) QUADS_6(t), QUAD(t + 6), QUAD(t + 7)
#define QUADS_9(t) QUADS_6(t), QUADS_3(t + 6)
#define QUADS_12(t) QUADS_6(t), QUADS_6(t + 6)
#define QUADS_23(t) QUADS_12(t), QUADS_6(t + 12), QUADS_5(t + 18)
#define QUADS_24(t) QUADS_12(t), QUADS_12(t + 12)
#define NUMBERS_12 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11"
#define NUMBERS_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define NUMBERS_20 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19"
#define NUMBERS_24 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
    "%22, %23"
#define NUMBERS_32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
    "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NUMBERS_36 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
    "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35"
#define NUMBERS_48 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
    "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, " \
    "%42, %43, %44, %45, %46, %47"
#define NUMBERS_92 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
    "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, " \
    "%44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, " \
    "%66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, " \
    "%88, %89, %90, %91"
#define NUMBERS_96 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
    "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, " \
    "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, " \
    "%62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, " \
    "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define GROUP_MULTIPLY(N, A0, A1, A2, A3, B) \
    DEVICE void group_multiply(float (&d)[N / 8][4], const u32 (&a)[4], u64 b) { \
        asm volatile("{.reg .pred p; setp.eq.u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." MMA_TYPE "." MMA_TYPE \
                     " {" NUMBERS(N) "}, {" A0 ", " A1 ", " A2 ", " A3 "}, " B ", p, 1, 1, 0;}" \
                     : QUADS(N) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)); \
    }
#define NUMBERS(N) NUMBERS_OF_##N
#define QUADS(N) QUADS_OF_##N
#define NUMBERS_OF_24 NUMBERS_12
#define NUMBERS_OF_32 NUMBERS_16
#define NUMBERS_OF_40 NUMBERS_20
#define NUMBERS_OF_48 NUMBERS_24
#define NUMBERS_OF_64 NUMBERS_32
#define NUMBERS_OF_72 NUMBERS_36
#define NUMBERS_OF_96 NUMBERS_48
#define NUMBERS_OF_184 NUMBERS_92
#define NUMBERS_OF_192 NUMBERS_96
#define QUADS_OF_24 QUADS_3(0)
#define QUADS_OF_32 QUADS_4(0)
#define QUADS_OF_40 QUADS_5(0)
#define QUADS_OF_48 QUADS_6(0)
#define QUADS_OF_64 QUADS_8(0)
#define QUADS_OF_72 QUADS_9(0)
#define QUADS_OF_96 QUADS_12(0)
#define QUADS_OF_184 QUADS_23(0)
#define QUADS_OF_192 QUADS_24(0)
GROUP_MULTIPLY(48, "%24", "%25", "%26", "%27", "%28")
GROUP_MULTIPLY(64, "%32", "%33", "%34", "%35", "%36")
// d = a b with a from registers; and d += a b with both from shared memory, a turned: 8 x 8 pieces of 8 numbers of 8 rows each
// (16 bytes are a number of 8 rows), the next 8 rows `columns` bytes on, the next 8 numbers `rows` bytes; b as it comes first.
#define GROUP_PRODUCT(N, A0, A1, A2, A3, B) \
    DEVICE void group_product(float (&d)[N / 8][4], const u32 (&a)[4], u64 b) { \
        asm volatile("{.reg .pred p; setp.ne.u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." MMA_TYPE "." MMA_TYPE \
                     " {" NUMBERS(N) "}, {" A0 ", " A1 ", " A2 ", " A3 "}, " B ", p, 1, 1, 0;}" \
                     : QUADS(N) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)); \
    }
#define GROUP_MULTIPLY_TURNED(N, A, B) \
    DEVICE void group_multiply_turned(float (&d)[N / 8][4], u64 a, u64 b) { \
        asm volatile("{.reg .pred p; setp.eq.u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." MMA_TYPE "." MMA_TYPE \
                     " {" NUMBERS(N) "}, " A ", " B ", p, 1, 1, 1, 0;}" : QUADS(N) : "l"(a), "l"(b)); \
    }
GROUP_MULTIPLY(40, "%20", "%21", "%22", "%23", "%24")
GROUP_MULTIPLY(96, "%48", "%49", "%50", "%51", "%52")
GROUP_MULTIPLY(192, "%96", "%97", "%98", "%99", "%100")
GROUP_PRODUCT(40, "%20", "%21", "%22", "%23", "%24")
GROUP_MULTIPLY_TURNED(48, "%24", "%25")
GROUP_MULTIPLY_TURNED(96, "%48", "%49")
GROUP_MULTIPLY_TURNED(192, "%96", "%97")
GROUP_MULTIPLY(72, "%36", "%37", "%38", "%39", "%40")
GROUP_MULTIPLY(184, "%92", "%93", "%94", "%95", "%96")
GROUP_PRODUCT(72, "%36", "%37", "%38", "%39", "%40")
GROUP_PRODUCT(96, "%48", "%49", "%50", "%51", "%52")
// d = a b and d += a b with both from shared memory, a as it is: 8 x 8 pieces of 8 rows of 8 numbers each (16 bytes are 8 numbers
// of a row), the next 8 rows `columns` bytes on, the next 8 numbers `rows` bytes; b as it comes first.
#define GROUP_STRAIGHT(N, A, B) \
    DEVICE void group_product_straight(float (&d)[N / 8][4], u64 a, u64 b) { \
        asm volatile("{.reg .pred p; setp.ne.u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." MMA_TYPE "." MMA_TYPE \
                     " {" NUMBERS(N) "}, " A ", " B ", p, 1, 1, 0, 0;}" : QUADS(N) : "l"(a), "l"(b)); \
    } \
    DEVICE void group_multiply_straight(float (&d)[N / 8][4], u64 a, u64 b) { \
        asm volatile("{.reg .pred p; setp.eq.u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." MMA_TYPE "." MMA_TYPE \
                     " {" NUMBERS(N) "}, " A ", " B ", p, 1, 1, 0, 0;}" : QUADS(N) : "l"(a), "l"(b)); \
    }
GROUP_STRAIGHT(24, "%12", "%13")
GROUP_STRAIGHT(32, "%16", "%17")
GROUP_STRAIGHT(48, "%24", "%25")
GROUP_STRAIGHT(72, "%36", "%37")
GROUP_STRAIGHT(96, "%48", "%49")
GROUP_STRAIGHT(192, "%96", "%97")
#else
DEVICE void publish_to_groups() {}
#endif

DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float reciprocal_fast(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float tanh_fast(float x) {
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float rsqrt_fast(float x) {
    float y;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#endif

// GELU = x Phi(x) in one of three ways, all by Phi(x) = (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u)), u = x P(x^2), with P fitted
// here by least squares, reweighted towards the smallest largest error of x Phi(x).
// GELU 0: P of degree 4 in float32; off by 3.1e-6 (absolute, all x).
DEVICE float gelu_exact(float x) {
    float s = x * x;
    float p = 3.2293051e-6f;
    p = p * s - 8.8243337e-5f;
    p = p * s - 3.6025006e-4f;
    p = p * s + 1.0522665e-1f;
    p = p * s + 2.3020454f;
    return x * reciprocal_fast(1.0f + exp2_fast(-x * p));
}
// GELU 1: P of degree 2, off by 2.5e-5, and tanh.approx, off by 2^-11 of its value: one special instruction, not two.
DEVICE float gelu_tanh(float x) {
    float s = fminf(x * x, 60.0f);  // P turns back after that
    float u = x * (0.7975091f + s * (0.0370058f - s * 3.515353e-4f));
    float half = 0.5f * x;
    return half * tanh_fast(u) + half;
}
// GELU 2: the same on pairs of 16-bit numbers. In float16 the relative L2 error on normal inputs of deviation 0.1 to 3 is
// 2.0e-4 to 3.0e-4, where rounding the exact result alone gives 1.1e-4 to 2.1e-4.
DEVICE u32 gelu_pair(u32 x) {
    u32 s = minimum2(multiply2(x, x), pack(16.0f, 16.0f));  // tanh is 1 to 16 bits by then
    u32 p = fma2(s, pack(-3.515353e-4f, -3.515353e-4f), pack(0.0370058f, 0.0370058f));
    u32 u = multiply2(x, fma2(s, p, pack(0.7975091f, 0.7975091f)));
    u32 half = multiply2(x, pack(0.5f, 0.5f));
    return fma2(half, tanh2_fast(u), half);
}
DEVICE u32 gelu2(u32 x) {
#if GELU == 2
    return gelu_pair(x);
#elif GELU == 1
    return pack(gelu_tanh(low(x)), gelu_tanh(high(x)));
#else
    return pack(gelu_exact(low(x)), gelu_exact(high(x)));
#endif
}
DEVICE float gelu(float x) {
#if GELU
    return gelu_tanh(x);
#else
    return gelu_exact(x);
#endif
}
