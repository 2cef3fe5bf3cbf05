/* The toolkit of small test kernels: 64-bit mode, ring 0, identity map, serial line, exceptions that C can catch. */
#ifndef BARE_H
#define BARE_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;
typedef long s64;

#define PASS 42
#define INLINE static inline __attribute__((always_inline, unused))

enum { DE = 0, DB, NMI, BP, OF, BR, UD, NM, DF, TS = 10, NP, SS, GP, PF, MF = 16, AC, XM = 19 };
enum { KERNEL_CS = 0x08, KERNEL_SS = 0x10, USER_SS = 0x23, USER_CS = 0x2b, TSS_SELECTOR = 0x30, SPARE_SELECTOR = 0x40 };
enum { P = 1, W = 2, U = 4, A = 0x20, D = 0x40, LARGE = 0x80, G = 0x100 };
#define NX (1UL << 63)
#define PAGE 4096UL
#define FRAME 0x000ffffffffff000UL

struct frame {
    u64 r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax;
    u64 vector, error, rip, cs, rflags, rsp, ss;
};

typedef void (*handler)(struct frame *);

struct __attribute__((packed)) table { u16 limit; u64 base; };
struct __attribute__((packed)) tss { u32 r0; u64 rsp[3]; u64 r1; u64 ist[7]; u64 r2; u16 r3; u16 iomap; };

extern handler handlers[256];       /* 0: the exception is caught by `catch`, or fails the test */
extern struct frame caught;         /* what `catch` caught last */
extern u64 caught_cr2;
extern u64 idt[512], gdt[16];
extern struct tss tss;
extern struct table idt_pointer, gdt_pointer;
extern u64 catch_stack;
extern u8 *boot_params;
extern u8 image_end[], stubs[];
extern u8 user_stack[4096], ist_stack[4096];
extern u64 pml4[512];

int catch(void (*function)(void *), void *argument);
int catch_user(void (*function)(void));
int catch_user_at(u64 rip, u64 rflags);
void catch_return(u64 vector) __attribute__((noreturn));
void to_user(u64 rip, u64 rsp, u64 rflags) __attribute__((noreturn));
void leave_machine(u32 value);
void print(const char *format, ...);
void fail(const char *file, int line, const char *what, u64 a, u64 b) __attribute__((noreturn));
u64 *pte_of(u64 va, int level, u64 flags);
void map(u64 va, u64 pa, u64 flags);
void gate(int vector, u64 target, int ist, int dpl);
void *new_page(void);
u64 random_state(u64 seed);
u64 rnd(void);
void *memset(void *to, int value, u64 n);
void *memcpy(void *to, const void *from, u64 n);
int memcmp(const void *a, const void *b, u64 n);
int guest_main(void);

#define CHECK(c) do { if (!(c)) fail(__FILE__, __LINE__, #c, 0, 0); } while (0)
#define EQUAL(a, b) do { u64 a_ = (u64)(a), b_ = (u64)(b); if (a_ != b_) fail(__FILE__, __LINE__, #a " == " #b, a_, b_); } while (0)

INLINE void outb(u16 port, u8 v) { asm volatile("outb %0, %1" ::"a"(v), "Nd"(port) : "memory"); }
INLINE void outw(u16 port, u16 v) { asm volatile("outw %0, %1" ::"a"(v), "Nd"(port) : "memory"); }
INLINE void outl(u16 port, u32 v) { asm volatile("outl %0, %1" ::"a"(v), "Nd"(port) : "memory"); }
INLINE u8 inb(u16 port) { u8 v; asm volatile("inb %1, %0" : "=a"(v) : "Nd"(port) : "memory"); return v; }
INLINE u16 inw(u16 port) { u16 v; asm volatile("inw %1, %0" : "=a"(v) : "Nd"(port) : "memory"); return v; }
INLINE u32 inl(u16 port) { u32 v; asm volatile("inl %1, %0" : "=a"(v) : "Nd"(port) : "memory"); return v; }
INLINE u64 rdmsr(u32 n) { u32 a, d; asm volatile("rdmsr" : "=a"(a), "=d"(d) : "c"(n) : "memory"); return a | (u64)d << 32; }
INLINE void wrmsr(u32 n, u64 v) { asm volatile("wrmsr" ::"c"(n), "a"((u32)v), "d"((u32)(v >> 32)) : "memory"); }
INLINE u64 rdtsc(void) { u32 a, d; asm volatile("rdtsc" : "=a"(a), "=d"(d) :: "memory"); return a | (u64)d << 32; }
#define CONTROL(name) \
    INLINE u64 get_##name(void) { u64 v; asm volatile("mov %%" #name ", %0" : "=r"(v) :: "memory"); return v; } \
    INLINE void set_##name(u64 v) { asm volatile("mov %0, %%" #name ::"r"(v) : "memory"); }
CONTROL(cr0) CONTROL(cr2) CONTROL(cr3) CONTROL(cr4) CONTROL(cr8)
CONTROL(dr0) CONTROL(dr1) CONTROL(dr2) CONTROL(dr3) CONTROL(dr6) CONTROL(dr7)
INLINE void invlpg(u64 va) { asm volatile("invlpg (%0)" ::"r"(va) : "memory"); }
INLINE void flush(void) { set_cr3(get_cr3()); }
INLINE void cli(void) { asm volatile("cli" ::: "memory"); }
INLINE void sti(void) { asm volatile("sti" ::: "memory"); }
INLINE u64 flags(void) { u64 v; asm volatile("pushf; pop %0" : "=r"(v) :: "memory"); return v; }
INLINE u32 mmio_read(u64 at) { return *(volatile u32 *)at; }
INLINE void mmio_write(u64 at, u32 v) { *(volatile u32 *)at = v; }

#endif
