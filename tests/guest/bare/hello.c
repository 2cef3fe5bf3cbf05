/* The toolkit itself: print, catch exceptions in both rings, map pages. */
#include "bare.h"

static void divide(void *unused) { (void)unused; asm volatile("div %0" ::"r"(0), "a"(1), "d"(0)); }
static void load(void *at) { *(volatile u8 *)at; }
static void user(void) { asm volatile("int $0x80"); }
static void user_bad(void) { asm volatile("cli"); }

int guest_main(void)
{
    print("hello %s %d %x\n", "world", 12UL, 0xabcUL);
    EQUAL(catch(divide, 0), DE);
    EQUAL(catch(load, (void *)0x8000000000), PF);
    EQUAL(caught_cr2, 0x8000000000);
    EQUAL(caught.error, 0);
    EQUAL(catch_user(user), 0x80);
    EQUAL(caught.cs, USER_CS);
    EQUAL(catch_user(user_bad), GP);
    u8 *page = new_page();
    page[5] = 77;
    map(0x8000000000, (u64)page, P | W);
    EQUAL(*(volatile u8 *)0x8000000005, 77);
    return PASS;
}
