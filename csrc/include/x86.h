// Whether the compiler can make functions for newer x86 processors than the one it compiles for.
#pragma once

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__)) && !defined(ADAPTC_PLAIN_LOOPS)
#define ADAPTC_X86
#endif
