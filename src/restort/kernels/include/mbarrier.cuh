// cp.async.bulk, by which one thread copies a whole piece of memory to shared memory, and the mbarriers that signal its arrival
// (compute capability 9.0). An mbarrier is 8 bytes of shared memory. A phase of it ends when all arrivals and all bytes that it
// expects have come; waiting threads know phases by their parity.
//
// With CLUSTER > 1 the blocks of a cluster share what they copy: each copies its part to all of them. A kernel without clusters
// need not define CLUSTER.
//
// The emulator has none of this: under EMULATE kernels have substitutes.

#ifdef EMULATE
#define CLUSTER_DIMS
#else
#if CLUSTER > 1
#define CLUSTER_DIMS __cluster_dims__(CLUSTER, 1, 1)
#else
#define CLUSTER_DIMS
#endif

DEVICE void mbarrier_init(u32 barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// After the last mbarrier_init, before the barrier that other threads wait at.
DEVICE void fence_mbarrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async;" ::: "memory");
}
// Arrives; the phase also waits for so many bytes.
DEVICE void mbarrier_arrive_expect_tx(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(shared_address(barrier)), "r"(bytes) : "memory");
}
// Arrives at an mbarrier of this block.
DEVICE void mbarrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(shared_address(barrier)) : "memory");
}
// Waits until the phase of that parity has ended.
DEVICE void mbarrier_wait_parity(u32 barrier, u32 parity) {
    const u32 at = shared_address(barrier);
    u32 there;
    do {
        asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                     : "=r"(there) : "r"(at), "r"(parity) : "memory");
    } while (!there);
}
// In a cluster each block copies its part to one offset in every block, and each of their mbarriers must expect all bytes.
DEVICE void cp_async_bulk(u32 to, const void* from, u32 bytes, u32 barrier) {
#if CLUSTER > 1
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    const u32 share = bytes / CLUSTER;
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;"
                 :: "r"(shared_address(to) + rank * share), "l"((const char*)from + rank * share), "r"(share), "r"(shared_address(barrier)),
                    "h"((u16)((1 << CLUSTER) - 1)) : "memory");
#else
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 :: "r"(shared_address(to)), "l"(from), "r"(bytes), "r"(shared_address(barrier)) : "memory");
#endif
}

// All threads of the cluster. A relaxed arrival publishes nothing that was written; a release would wait for all that this thread
// has stored to global memory.
DEVICE void cluster_arrive_relaxed() {
#if CLUSTER > 1
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}
DEVICE void cluster_arrive_release() {
#if CLUSTER > 1
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
DEVICE void cluster_wait() {
#if CLUSTER > 1
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
    syncthreads();
#endif
}
#endif
