/* An interpreter of a small stack machine, twice: by a table of functions (indirect calls), and by computed jumps. */
#include "bench.h"

enum { PUSH, ADD, MUL, XOR, SHIFT, DUP, LOOP, OPERATIONS };
static unsigned char program[256];
static uint64_t stack[300];
static int top;

static void push(void) { stack[++top] = 12345; }
static void add(void) { top--, stack[top] += stack[top + 1]; }
static void mul(void) { top--, stack[top] *= stack[top + 1] | 1; }
static void xor(void) { top--, stack[top] ^= stack[top + 1]; }
static void shift(void) { stack[top] = stack[top] >> 3 | stack[top] << 61; }
static void duplicate(void) { stack[top + 1] = stack[top], top++; }
static void nothing(void) {}
static void (*const table[])(void) = {push, add, mul, xor, shift, duplicate, nothing};

void prepare(unsigned long percent) {
    uint64_t x = 3;
    int depth = 1;
    (void)percent;
    for (int k = 0; k < 255; k++) {
        x = next_random(x);
        int op = depth < 3 ? ((x >> 40) & 1 ? PUSH : DUP) : depth > 12 ? ADD + (x >> 40) % 3 : (x >> 40) % LOOP;
        depth += op == PUSH || op == DUP ? 1 : op == SHIFT ? 0 : -1;
        program[k] = op;
    }
    program[255] = LOOP;
}

static uint64_t by_calls(unsigned long rounds) {
    top = 1, stack[1] = 1;
    for (unsigned long round = 0; round < rounds; round++) {
        for (int pc = 0; pc < 256; pc++)
            table[program[pc]]();
        uint64_t result = stack[top];
        top = 1, stack[1] = result;
    }
    return stack[1];
}

static uint64_t by_jumps(unsigned long rounds) {
    static void *const labels[] = {&&push, &&add, &&mul, &&xor, &&shift, &&dup, &&loop};
    uint64_t *s = stack + 1;
    const unsigned char *pc = program;
    *s = 1;
#define NEXT goto *labels[*pc++]
    NEXT;
push:
    *++s = 12345;
    NEXT;
add:
    s--, s[0] += s[1];
    NEXT;
mul:
    s--, s[0] *= s[1] | 1;
    NEXT;
xor:
    s--, s[0] ^= s[1];
    NEXT;
shift:
    s[0] = s[0] >> 3 | s[0] << 61;
    NEXT;
dup:
    s[1] = s[0], s++;
    NEXT;
loop:
    stack[1] = *s, s = stack + 1, pc = program;
    if (--rounds)
        NEXT;
    return stack[1];
}

uint64_t work(unsigned long percent) {
    unsigned long rounds = 300 * percent;
    uint64_t a = by_calls(rounds), b = by_jumps(rounds);
    return a == b ? a : 0;
}
