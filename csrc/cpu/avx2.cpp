#include "x86.h"
#ifdef ADAPTC_X86
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define REGISTERS 12
#define LEVEL avx2_level
#define LEVEL_NAME "avx2"
#include "level.h"
#endif
