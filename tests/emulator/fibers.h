// Threads that take turns at their own wish. A change of stacks in assembly takes nanoseconds on x86-64; elsewhere
// ucontext.h does it, with two system calls each time.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

namespace emulator {

constexpr size_t STACK = 256 * 1024;

#ifdef __x86_64__

struct Fiber {
    void* top = nullptr;
    std::unique_ptr<char[]> stack;
};

// Keeps what a called function has to keep, and returns on the other stack.
__attribute__((naked, noinline)) inline void change_stacks(void**, void*) {
    asm volatile(
        "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
        "movq %rsp, (%rdi)\n"
        "movq %rsi, %rsp\n"
        "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n"
        "ret\n");
}
inline void change(Fiber& from, Fiber& to) { change_stacks(&from.top, to.top); }

// The first change to `fiber` calls `body`, which must never return.
inline void begin(Fiber& fiber, void (*body)()) {
    if (!fiber.stack) fiber.stack.reset(new char[STACK]);
    auto end = reinterpret_cast<uintptr_t>(fiber.stack.get() + STACK) & ~uintptr_t(15);
    void** top = reinterpret_cast<void**>(end);
    *--top = nullptr;  // where a caller's address would be: keeps the stack aligned as after a call
    *--top = reinterpret_cast<void*>(body);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    fiber.top = top;
}

#else
}
#include <ucontext.h>
namespace emulator {

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
};
inline void change(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }
inline void begin(Fiber& fiber, void (*body)()) {
    if (!fiber.stack) fiber.stack.reset(new char[STACK]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get(), fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, body, 0);
}

#endif

}  // namespace emulator
