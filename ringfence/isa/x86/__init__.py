"""x86-64.  Manual references: Intel 64 and IA-32 Architectures Software Developer's Manual (SDM), edition of December 2023,
and AMD64 Architecture Programmer's Manual (APM)."""
