#include "x86.h"
#ifdef ADAPTC_X86
#define ADAPTC_MASKS
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#define LANES 16
#define REGISTERS 24
#define LEVEL avx512_level
#define LEVEL_NAME "avx512"
#include "level.h"
#endif
