// What every machine of the target platform runs.
#define TARGET
#define LANES 4
#define REGISTERS 12
#define LEVEL plain_level
#define LEVEL_NAME "plain"
#include "level.h"
