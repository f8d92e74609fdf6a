// PTX's instructions as functions of their names: 16-bit pairs, warp-wide products, copies to shared memory.
//
// T is __half or __nv_bfloat16 by BF16 = 0 or 1, but no header of CUDA is needed: a number is 16 bits of a
// `u16`, two neighbours are a `u32` (the first in the low half). Shared memory is addressed by byte offsets.
// With EMULATE defined the functions come from tests/emulator/emulator.h, which runs a block on the CPU.
//
// Fragments (PTX ISA, "Matrix fragments for mma.m16n8k16"), g = lane / 4, j = lane % 4:
//   A (16 rows x 16): a[0] row g columns 2j, 2j+1; a[1] row g+8; a[2], a[3] likewise with columns 2j+8, 2j+9
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

DEVICE int thread_idx() { return threadIdx.x; }
DEVICE int block_idx(int axis) { return axis == 0 ? blockIdx.x : axis == 1 ? blockIdx.y : blockIdx.z; }
DEVICE int grid_dim_x() { return gridDim.x; }
DEVICE int grid_dim_y() { return gridDim.y; }
DEVICE void syncthreads() { __syncthreads(); }
DEVICE void syncwarp() { __syncwarp(); }
DEVICE float shfl_xor(float value, int lanes) { return __shfl_xor_sync(0xffffffffu, value, lanes); }
// The value of the lane before (after); the first (last) lane gets its own.
DEVICE u32 shfl_up_1(u32 value) { return __shfl_up_sync(0xffffffffu, value, 1); }
DEVICE u32 shfl_down_1(u32 value) { return __shfl_down_sync(0xffffffffu, value, 1); }
// prmt: four of eight bytes, 0 to 3 being a's and 4 to 7 b's, by the hexadecimal digits of `which`, the last digit first.
DEVICE u32 byte_perm(u32 a, u32 b, u32 which) { return __byte_perm(a, b, which); }

// Returns `value`, but hides from the compiler what it is: what depends on it is computed again in each turn of a loop instead of
// being kept in registers.
DEVICE int launder(int value) {
    asm volatile("" : "+r"(value));
    return value;
}

// Returns a value that all lanes of a warp have, so that the compiler knows this and emits uniform branches.
DEVICE int warp_uniform(int value) { return __shfl_sync(0xffffffffu, value, 0); }

DEVICE float as_float(u32 bits) { return __uint_as_float(bits); }
DEVICE u32 shared_address(u32 offset) { return (u32)__cvta_generic_to_shared(shared_bytes) + offset; }
// Accesses have explicit 32-bit addresses: NVRTC, unlike nvcc, takes 64 bits for the address of a shared array, which costs
// registers and an addition for each access.
DEVICE u32 ld_shared(u32 offset) {
    u32 value;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(shared_address(offset)));
    return value;
}
DEVICE Vec2 ld_shared_v2(u32 offset) {
    Vec2 value;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(value.x), "=r"(value.y) : "r"(shared_address(offset)));
    return value;
}
DEVICE Vec4 ld_shared_v4(u32 offset) {
    Vec4 value;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w) : "r"(shared_address(offset)));
    return value;
}
DEVICE float ld_shared_f32(u32 offset) { return as_float(ld_shared(offset)); }
DEVICE void st_shared(u32 offset, u32 value) {
    asm volatile("st.shared.u32 [%0], %1;" :: "r"(shared_address(offset)), "r"(value) : "memory");
}
DEVICE void st_shared_v2(u32 offset, Vec2 value) {
    asm volatile("st.shared.v2.u32 [%0], {%1, %2};" :: "r"(shared_address(offset)), "r"(value.x), "r"(value.y) : "memory");
}
DEVICE void st_shared_if(u32 offset, u32 value, bool valid) {  // without a branch
    asm volatile("{.reg .pred p; setp.ne.u32 p, %2, 0; @p st.shared.u32 [%0], %1;}"
                 :: "r"(shared_address(offset)), "r"(value), "r"((u32)valid) : "memory");
}
DEVICE void st_shared_v2_if(u32 offset, Vec2 value, bool valid) {  // without a branch
    asm volatile("{.reg .pred p; setp.ne.u32 p, %3, 0; @p st.shared.v2.u32 [%0], {%1, %2};}"
                 :: "r"(shared_address(offset)), "r"(value.x), "r"(value.y), "r"((u32)valid) : "memory");
}
DEVICE void st_global_v2_if(void* to, Vec2 value, bool valid) {
    asm volatile("{.reg .pred p; setp.ne.u32 p, %3, 0; @p st.global.v2.u32 [%0], {%1, %2};}"
                 :: "l"(to), "r"(value.x), "r"(value.y), "r"((u32)valid) : "memory");
}
DEVICE void st_shared_v4(u32 offset, Vec4 value) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};"
                 :: "r"(shared_address(offset)), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w) : "memory");
}
DEVICE void st_shared_v4_if(u32 offset, Vec4 value, bool valid) {
    asm volatile("{.reg .pred p; setp.ne.u32 p, %5, 0; @p st.shared.v4.u32 [%0], {%1, %2, %3, %4};}"
                 :: "r"(shared_address(offset)), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "r"((u32)valid) : "memory");
}
DEVICE void st_shared_f32(u32 offset, float value) { st_shared(offset, __float_as_uint(value)); }

// Four 8 x 8 matrices of 16-bit numbers; lane 8 i + r gives the address of row r of matrix i.
DEVICE void ldmatrix_x4(u32 (&r)[4], u32 offset) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(offset)));
}
DEVICE void ldmatrix_x4_trans(u32 (&r)[4], u32 offset) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(offset)));
}

// Transposes an 8 x 8 matrix of which this lane has row g, columns 2j, 2j+1.
DEVICE u32 movmatrix_trans(u32 value) {
    u32 transposed;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(value));
    return transposed;
}

// 16 (or 8) bytes from global to shared memory, zeros unless `valid`; complete after cp_async_wait_group and a barrier.
DEVICE void cp_async_16(u32 offset, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(shared_address(offset)), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
DEVICE void cp_async_8(u32 offset, const void* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" :: "r"(shared_address(offset)), "l"(from) : "memory");
}
DEVICE void cp_async_commit_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING> DEVICE void cp_async_wait_group() {
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
// max(first, 0) and max(second, 0).
DEVICE u32 pack_relu(float first, float second) {
    u32 pair;
    asm("cvt.rn.relu." PAIR_TYPE ".f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}
DEVICE u32 fma2(u32 a, u32 b, u32 c) {
    u32 pair;
    asm("fma.rn." PAIR_TYPE " %0, %1, %2, %3;" : "=r"(pair) : "r"(a), "r"(b), "r"(c));
    return pair;
}
DEVICE u32 mul2(u32 a, u32 b) {
#if BF16
    return fma2(a, b, 0x80008000u);  // + -0; before sm_90 there is no product alone
#else
    u32 pair;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(pair) : "r"(a), "r"(b));
    return pair;
#endif
}
DEVICE u32 min2(u32 a, u32 b) {
    u32 pair;
    asm("min." PAIR_TYPE " %0, %1, %2;" : "=r"(pair) : "r"(a), "r"(b));
    return pair;
}
DEVICE u32 tanh2_approx(u32 x) {
    u32 pair;
    asm("tanh.approx." PAIR_TYPE " %0, %1;" : "=r"(pair) : "r"(x));
    return pair;
}
DEVICE void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32." MMA_TYPE "." MMA_TYPE ".f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// With 8 columns of A: a0, a1 are rows g, g + 8, columns 2j, 2j+1; b is rows 2j, 2j+1 of column g.
DEVICE void mma_m16n8k8(float (&d)[4], u32 a0, u32 a1, u32 b) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32." MMA_TYPE "." MMA_TYPE ".f32 "
        "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(b));
}
// d = c + a b.
DEVICE void mma_m16n8k16_from(float (&d)[4], const float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32." MMA_TYPE "." MMA_TYPE ".f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}
// Programmatic dependent launch (OVERLAP): after the wait a kernel may read what the launch before wrote; weights it may read
// before.
DEVICE void griddepcontrol_wait() {
#if OVERLAP && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
DEVICE void griddepcontrol_launch_dependents() {
#if OVERLAP && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
DEVICE float ex2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float rcp_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float tanh_approx(float x) {
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float rsqrt_approx(float x) {
    float y;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#endif

