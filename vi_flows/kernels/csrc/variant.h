/* One instruction set, both types; the includer defines ISA_NAME, TARGET and VECTOR_BYTES. */

#define VN(name) PASTE3(name, TYPE_NAME, ISA_NAME)

#define REAL float
#define REAL_BITS 32
#define REAL_EPS 1.1920929e-07f
#define TYPE_NAME f32
#include "typed.h"
#undef REAL
#undef REAL_BITS
#undef REAL_EPS
#undef TYPE_NAME

#define REAL double
#define REAL_BITS 64
#define REAL_EPS 2.220446049250313e-16
#define TYPE_NAME f64
#include "typed.h"
#undef REAL
#undef REAL_BITS
#undef REAL_EPS
#undef TYPE_NAME

#undef VN
