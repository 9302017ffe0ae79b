/* One type: its vectors, one-sided convolutions, then the tiles for shared parameters and for parameters of each row. */

#include "vector.h"
#include "substitution.h"

#define PER_ROW 0
#define FN(name) PASTE4(name, TYPE_NAME, ISA_NAME, shared)
#include "layers.h"
#include "tiles.h"
#undef PER_ROW
#undef FN

#define PER_ROW 1
#define FN(name) PASTE4(name, TYPE_NAME, ISA_NAME, per_row)
#include "layers.h"
#include "tiles.h"
#undef PER_ROW
#undef FN

#undef VEC
#undef MASK
#undef VL
#undef SET1
#undef MANTISSA_BITS
#undef EXPONENT_BIAS
#undef ROUND_MAGIC
#undef INT_MAGIC
#undef INT_MAGIC_BITS
#undef SQRT_HALF_BITS
#undef EXP_LOWEST
#undef LN2_HI
#undef LN2_LO
#undef LOG2E
