#include "x86.h"
#ifdef ADAPTC_X86
#define ADAPTC_PAIRS
#define ADAPTC_MASKS
#define TARGET __attribute__((target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#define LANES 16
#define REGISTERS 24
#define LEVEL avx512bf16_level
#define LEVEL_NAME "avx512bf16"
#include "level.h"
#endif
