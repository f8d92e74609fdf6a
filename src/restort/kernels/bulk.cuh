// Copies of whole pieces of memory to shared memory that one thread asks for (cp.async.bulk, compute capability 9.0), and the
// barriers that tell when they are there. A barrier is 8 bytes of shared memory; a phase of it ends when all its arrivals have
// come and all bytes that it expects, and phases are told apart by their parity.
//
// With CLUSTER > 1 blocks beside one another share what they copy: each asks for its part, for all of them.
//
// The emulator has none of this: kernels say under EMULATE how they do without.

#ifdef EMULATE
#define CLUSTERED
#else
#if CLUSTER > 1
#define CLUSTERED __cluster_dims__(CLUSTER, 1, 1)
#else
#define CLUSTERED
#endif

DEVICE void barrier_begin(u32 barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(window(barrier)), "r"(arrivals) : "memory");
}
// After the last of these, before the barrier at which the others learn of it.
DEVICE void barriers_begun() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async;" ::: "memory");
}
// Arrives; the phase ends when so many bytes have come, too.
DEVICE void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(window(barrier)), "r"(bytes) : "memory");
}
// Arrives at the barrier of the cluster's block `rank` at the same place.
DEVICE void barrier_arrive(u32 barrier, int rank) {
#if CLUSTER > 1
    asm volatile("{.reg .b32 there; mapa.shared::cluster.u32 there, %0, %1; mbarrier.arrive.shared::cluster.b64 _, [there];}"
                 :: "r"(window(barrier)), "r"(rank) : "memory");
#else
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(window(barrier)) : "memory");
#endif
}
// Until the phase of that parity has ended.
DEVICE void barrier_await(u32 barrier, u32 parity) {
    const u32 at = window(barrier);
    u32 there;
    do {
        asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                     : "=r"(there) : "r"(at), "r"(parity) : "memory");
    } while (!there);
}
// To this block alone.
DEVICE void bulk_copy_own(u32 to, const void* from, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 :: "r"(window(to)), "l"(from), "r"(bytes), "r"(window(barrier)) : "memory");
}
// This block's part, to the same place in every block of the cluster; each of their barriers is to expect all bytes.
DEVICE void bulk_copy(u32 to, const void* from, u32 bytes, u32 barrier) {
#if CLUSTER > 1
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    const u32 share = bytes / CLUSTER;
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;"
                 :: "r"(window(to) + rank * share), "l"((const char*)from + rank * share), "r"(share), "r"(window(barrier)),
                    "h"((u16)((1 << CLUSTER) - 1)) : "memory");
#else
    bulk_copy_own(to, from, bytes, barrier);
#endif
}

// All threads of the cluster. Nothing written is passed on by the relaxed arrival: a release would wait for all that this
// thread has stored to global memory.
DEVICE void cluster_arrive() {
#if CLUSTER > 1
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}
DEVICE void cluster_arrive_release() {
#if CLUSTER > 1
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
DEVICE void cluster_await() {
#if CLUSTER > 1
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
    block_barrier();
#endif
}
#endif
