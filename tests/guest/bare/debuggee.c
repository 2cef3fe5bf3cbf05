/* What a debugger looks at: a long way to a function, data that change, ring 3, an exception's frame, strings, a port. */
#include "bare.h"

volatile u64 turns, calls, datum, far_datum __attribute__((aligned(4096)));
u8 source[64] = "from here to there", target[64];
volatile u64 user_value;

__attribute__((noinline)) void far_function(u64 n) { calls += n; asm volatile("" ::: "memory"); }
__attribute__((noinline)) void copy(void)
{
    void *to = target, *from = source;
    u64 n = 64;
    asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n)::"memory");
}
static void user(void) { user_value = 3; asm volatile("int $0x80"); }
__attribute__((noinline)) void last_function(void) { outb(0x80, 1); }

int guest_main(void)
{
    for (u64 i = 0; i < WAY; i++)
        turns++;
    far_function(5);
    datum = 7;
    far_datum = datum + 1;
    copy();
    EQUAL(catch_user(user), 0x80);
    last_function();
    print("calls %d\n", calls);
    return PASS;
}
