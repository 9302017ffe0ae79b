/* Vectors of VL lanes of REAL for one instruction set, with expm1, exp and log1p. Included once for every pair of
 * type and instruction set; the includer defines REAL, REAL_BITS (32 or 64), VECTOR_BYTES (0: no vector extension),
 * TARGET (a function attribute) and VN(name) (a suffix).
 *
 * GCC's and Clang's generic vectors are used because plain loops over 16 rows keep their accumulators in memory.
 */

#if REAL_BITS == 32
#define MANTISSA_BITS 23
#define EXPONENT_BIAS 127
#define ROUND_MAGIC 12582912.0f /* 1.5 · 2^23: adding it rounds to an integer kept in the low mantissa bits */
#define INT_MAGIC 8388608.0f
#define INT_MAGIC_BITS 0x4B000000
#define SQRT_HALF_BITS 0x3F3504F3
#define EXP_LOWEST -86.0f
#define LN2_HI 0.693145751953125f
#define LN2_LO 1.428606765330187e-06f
#define LOG2E 1.4426950408889634f
#else
#define MANTISSA_BITS 52
#define EXPONENT_BIAS 1023
#define ROUND_MAGIC 6755399441055744.0
#define INT_MAGIC 4503599627370496.0
#define INT_MAGIC_BITS 0x4330000000000000LL
#define SQRT_HALF_BITS 0x3FE6A09E667F3BCDLL
#define EXP_LOWEST -707.0
#define LN2_HI 6.93147180369123816490e-01
#define LN2_LO 1.90821492927058770002e-10
#define LOG2E 1.4426950408889634
#endif

#if VECTOR_BYTES
#if REAL_BITS == 32
typedef int32_t VN(lane_int);
#else
typedef int64_t VN(lane_int);
#endif
typedef REAL VN(vec) __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef REAL VN(unaligned) __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));
typedef VN(lane_int) VN(mask) __attribute__((vector_size(VECTOR_BYTES)));
#define VL ((int)(VECTOR_BYTES / sizeof(REAL)))
#else
typedef REAL VN(vec);
typedef REAL VN(unaligned);
typedef int VN(mask);
#define VL 1
#endif

#define VEC VN(vec)
#define MASK VN(mask)

#if VECTOR_BYTES
#define SET1(x) ((REAL)(x) - (VEC){0}) /* x − 0 is x for every x, so that compilers reduce it to a broadcast */

static TARGET INLINE VEC VN(select)(MASK m, VEC x, VEC y) {
#if VECTOR_BYTES == 32 && REAL_BITS == 32
    return (VEC)_mm256_blendv_ps((__m256)y, (__m256)x, (__m256)m);
#elif VECTOR_BYTES == 32
    return (VEC)_mm256_blendv_pd((__m256d)y, (__m256d)x, (__m256d)m);
#elif VECTOR_BYTES == 64 && REAL_BITS == 32
    return (VEC)_mm512_mask_blend_ps(_mm512_movepi32_mask((__m512i)m), (__m512)y, (__m512)x);
#elif VECTOR_BYTES == 64
    return (VEC)_mm512_mask_blend_pd(_mm512_movepi64_mask((__m512i)m), (__m512d)y, (__m512d)x);
#else
    return (VEC)(((MASK)x & m) | ((MASK)y & ~m));
#endif
}

static TARGET INLINE int VN(any)(MASK m) {
#if VECTOR_BYTES == 64
    return _mm512_movepi32_mask((__m512i)m) != 0;
#elif VECTOR_BYTES == 32
    return _mm256_movemask_epi8((__m256i)m) != 0;
#else
    int found = 0;
    for (int r = 0; r < VL; r++) found |= m[r] != 0;
    return found;
#endif
}

static TARGET INLINE REAL VN(sum)(VEC x) {
    REAL total = 0;
    for (int r = 0; r < VL; r++) total += x[r];
    return total;
}

/* exp(x) and expm1(x) for x ≤ 0; NaN stays NaN. x = n ln 2 + r, |r| ≤ ln(2)/2, expm1(r) by its series. */
static TARGET INLINE void VN(exp_expm1)(VEC x, VEC *exp_x, VEC *expm1_x) {
    const VEC lowest = SET1(EXP_LOWEST);
    x = VN(select)(x < lowest, lowest, x);
    VEC shifted = x * SET1(LOG2E) + SET1(ROUND_MAGIC);
    VEC n = shifted - SET1(ROUND_MAGIC);
    VEC r = x - n * SET1(LN2_HI);
    r = r - n * SET1(LN2_LO);
#if REAL_BITS == 32
    VEC p = SET1(1.0 / 5040);
#else
    VEC p = SET1(1.0 / 6227020800.0);
    p = p * r + SET1(1.0 / 479001600);
    p = p * r + SET1(1.0 / 39916800);
    p = p * r + SET1(1.0 / 3628800);
    p = p * r + SET1(1.0 / 362880);
    p = p * r + SET1(1.0 / 40320);
    p = p * r + SET1(1.0 / 5040);
#endif
    p = p * r + SET1(1.0 / 720);
    p = p * r + SET1(1.0 / 120);
    p = p * r + SET1(1.0 / 24);
    p = p * r + SET1(1.0 / 6);
    p = p * r + SET1(0.5);
    p = p * r * r + r;
    VEC power = (VEC)(((MASK)shifted + EXPONENT_BIAS) << MANTISSA_BITS);
    *exp_x = power + power * p;
    *expm1_x = power * p + (power - SET1(1));
}

/* log(u) for positive normal u; NaN for NaN and infinity. u = 2ᵉ m with m around 1, log m = 2 artanh((m − 1)/(m + 1)). */
static TARGET INLINE VEC VN(log)(VEC u) {
    MASK bits = (MASK)u - SQRT_HALF_BITS;
    MASK exponent = bits >> MANTISSA_BITS;
    VEC m = (VEC)((MASK)u - (exponent << MANTISSA_BITS));
    /* exponents are shifted to be positive while they are turned into floating point through the mantissa */
    VEC e = (VEC)((exponent + 2 * EXPONENT_BIAS) | INT_MAGIC_BITS) - SET1(INT_MAGIC + 2 * EXPONENT_BIAS);
    VEC f = m - SET1(1);
    VEC s = f / (f + SET1(2));
    VEC q = s * s;
#if REAL_BITS == 32
    VEC p = SET1(1.0 / 11);
#else
    VEC p = SET1(1.0 / 23);
    p = p * q + SET1(1.0 / 21);
    p = p * q + SET1(1.0 / 19);
    p = p * q + SET1(1.0 / 17);
    p = p * q + SET1(1.0 / 15);
    p = p * q + SET1(1.0 / 13);
    p = p * q + SET1(1.0 / 11);
#endif
    p = p * q + SET1(1.0 / 9);
    p = p * q + SET1(1.0 / 7);
    p = p * q + SET1(1.0 / 5);
    p = p * q + SET1(1.0 / 3);
    VEC log_m = (s + s) + (s + s) * (q * p);
    return e * SET1(LN2_HI) + (log_m + (e * SET1(LN2_LO) + (u - u)));
}

/* log(1 + x) for x > −1; the last term restores what rounding 1 + x lost. */
static TARGET INLINE VEC VN(log1p)(VEC x) {
    VEC u = x + SET1(1);
    VEC lost = VN(select)(x < SET1(1), x - (u - SET1(1)), SET1(1) - (u - x));
    return VN(log)(u) + lost / u;
}

/* Transposes VL vectors: at distances 1, 2, 4, … pairs of rows exchange the blocks off the diagonal. */
#ifdef __clang__
#define SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define SHUFFLE(x, y, ...) __builtin_shuffle(x, y, (MASK){__VA_ARGS__})
#endif
#define EXCHANGE(distance, first, second)                                           \
    for (int i = 0; i < VL; i++)                                                    \
        if (!(i & (distance))) {                                                    \
            VEC x = rows[i], y = rows[i + (distance)];                              \
            rows[i] = first, rows[i + (distance)] = second;                         \
        }

static TARGET INLINE void VN(transpose)(VEC rows[VL]) {
#if VECTOR_BYTES * 8 == REAL_BITS * 2
    EXCHANGE(1, SHUFFLE(x, y, 0, 2), SHUFFLE(x, y, 1, 3))
#elif VECTOR_BYTES * 8 == REAL_BITS * 4
    EXCHANGE(1, SHUFFLE(x, y, 0, 4, 2, 6), SHUFFLE(x, y, 1, 5, 3, 7))
    EXCHANGE(2, SHUFFLE(x, y, 0, 1, 4, 5), SHUFFLE(x, y, 2, 3, 6, 7))
#elif VECTOR_BYTES * 8 == REAL_BITS * 8
    EXCHANGE(1, SHUFFLE(x, y, 0, 8, 2, 10, 4, 12, 6, 14), SHUFFLE(x, y, 1, 9, 3, 11, 5, 13, 7, 15))
    EXCHANGE(2, SHUFFLE(x, y, 0, 1, 8, 9, 4, 5, 12, 13), SHUFFLE(x, y, 2, 3, 10, 11, 6, 7, 14, 15))
    EXCHANGE(4, SHUFFLE(x, y, 0, 1, 2, 3, 8, 9, 10, 11), SHUFFLE(x, y, 4, 5, 6, 7, 12, 13, 14, 15))
#else
    EXCHANGE(1, SHUFFLE(x, y, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30),
             SHUFFLE(x, y, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31))
    EXCHANGE(2, SHUFFLE(x, y, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29),
             SHUFFLE(x, y, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31))
    EXCHANGE(4, SHUFFLE(x, y, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27),
             SHUFFLE(x, y, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31))
    EXCHANGE(8, SHUFFLE(x, y, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),
             SHUFFLE(x, y, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
#endif
}
#undef EXCHANGE
#undef SHUFFLE

#else /* no vector extension: one lane, the C library's functions */
#define SET1(x) ((REAL)(x))
#define VN_SCALAR 1
static INLINE VEC VN(select)(MASK m, VEC x, VEC y) { return m ? x : y; }
static INLINE int VN(any)(MASK m) { return m; }
static INLINE void VN(transpose)(VEC *rows) { (void)rows; }
static INLINE REAL VN(sum)(VEC x) { return x; }
static INLINE void VN(exp_expm1)(VEC x, VEC *exp_x, VEC *expm1_x) {
    *exp_x = (REAL)exp(x);
    *expm1_x = (REAL)expm1(x);
}
static INLINE VEC VN(log)(VEC x) { return (REAL)log(x); }
static INLINE VEC VN(log1p)(VEC x) { return (REAL)log1p(x); }
#endif

static TARGET INLINE VEC VN(abs)(VEC x) { return VN(select)(x < SET1(0), -x, x); }
static TARGET INLINE VEC VN(max)(VEC x, VEC y) { return VN(select)(x > y, x, y); }
static TARGET INLINE VEC VN(min)(VEC x, VEC y) { return VN(select)(x < y, x, y); }
static TARGET INLINE VEC VN(load)(const REAL *p) { return *(const VEC *)p; }
static TARGET INLINE VEC VN(load_anywhere)(const REAL *p) { return (VEC) * (const VN(unaligned) *)p; }
static TARGET INLINE void VN(store_anywhere)(REAL *p, VEC x) { *(VN(unaligned) *)p = (VN(unaligned))x; }
static TARGET INLINE void VN(store)(REAL *p, VEC x) { *(VEC *)p = x; }

/* h, h′ and h″ at a. */
static TARGET INLINE void VN(activation)(const int name, REAL slope, VEC a, VEC *h, VEC *h1, VEC *h2) {
    const VEC zero = SET1(0), one = SET1(1);
    VEC e, e1;
    switch (name) {
    case LEAKY_RELU:
        *h1 = VN(select)(a >= zero, one, SET1(slope));
        *h = a * *h1;
        *h2 = zero;
        break;
    case TANH:
        VN(exp_expm1)(SET1(-2) * VN(abs)(a), &e, &e1);
        e = -e1 / (SET1(2) + e1);
        *h = VN(select)(a < zero, -e, e);
        *h1 = (one - *h) * (one + *h);
        *h2 = SET1(-2) * *h * *h1;
        break;
    case SIGMOID:
        VN(exp_expm1)(-VN(abs)(a), &e, &e1);
        e1 = one / (one + e);
        *h = VN(select)(a < zero, e * e1, e1);
        *h1 = e * e1 * e1;
        *h2 = *h1 * (one - SET1(2) * *h);
        break;
    case SOFTPLUS:
        VN(exp_expm1)(-VN(abs)(a), &e, &e1);
        /* linear above 20, as PyTorch's softplus */
        *h = VN(select)(a > SET1(20), a, VN(max)(a, zero) + VN(log1p)(e));
        e1 = one / (one + e);
        *h1 = VN(select)(a < zero, e * e1, e1);
        *h2 = e * e1 * e1;
        break;
    default: /* ELU */
        VN(exp_expm1)(VN(select)(a > zero, zero, a), &e, &e1);
        *h = VN(select)(a >= zero, a, e1);
        *h1 = VN(select)(a >= zero, one, e);
        *h2 = VN(select)(a >= zero, zero, e);
    }
}

/* What a free parameter θ and its layer's first tap become, see effective_gain in reference.py. With A = w₁u,
 * dA/dθ = w₁ du/dθ and dA/dw₁ = u + w₁ du/dw₁, so that u's derivatives are enough. */
typedef struct {
    VEC u, gain, u_theta, u_w;
} VN(gain);

static TARGET INLINE VN(gain) VN(effective_gain)(VEC theta, VEC w1, REAL bound, const int derivatives) {
    const VEC zero = SET1(0), one = SET1(1), cut = SET1(MIN_LOG_SLOPE), near = SET1(-0.25);
    VEC x = w1 * theta;
    if (bound != 1) x *= SET1(bound);
    MASK positive = x >= zero;
    VN(gain) g;
    /* ρ = expm1(x)/x and ρ′ by their series Σ xⁿ/(n+1)! and Σ n xⁿ⁻¹/(n+1)! up to −1/4, where the closed forms cancel */
    VEC t = VN(select)(x > zero, zero, VN(select)(x < near, near, x));
#if REAL_BITS == 32
    VEC rho = SET1(1.0 / 5040), rho1 = SET1(7.0 / 40320);
#else
    VEC rho = SET1(1.0 / 479001600), rho1 = SET1(12.0 / 6227020800.0);
    rho = rho * t + SET1(1.0 / 39916800);
    rho = rho * t + SET1(1.0 / 3628800);
    rho = rho * t + SET1(1.0 / 362880);
    rho = rho * t + SET1(1.0 / 40320);
    rho = rho * t + SET1(1.0 / 5040);
#endif
    rho = rho * t + SET1(1.0 / 720);
    rho = rho * t + SET1(1.0 / 120);
    rho = rho * t + SET1(1.0 / 24);
    rho = rho * t + SET1(1.0 / 6);
    rho = rho * t + SET1(1.0 / 2);
    rho = rho * t + one;
    if (derivatives) {
#if REAL_BITS == 64
        rho1 = rho1 * t + SET1(11.0 / 479001600);
        rho1 = rho1 * t + SET1(10.0 / 39916800);
        rho1 = rho1 * t + SET1(9.0 / 3628800);
        rho1 = rho1 * t + SET1(8.0 / 362880);
        rho1 = rho1 * t + SET1(7.0 / 40320);
#endif
        rho1 = rho1 * t + SET1(6.0 / 5040);
        rho1 = rho1 * t + SET1(5.0 / 720);
        rho1 = rho1 * t + SET1(4.0 / 120);
        rho1 = rho1 * t + SET1(3.0 / 24);
        rho1 = rho1 * t + SET1(2.0 / 6);
        rho1 = rho1 * t + SET1(1.0 / 2);
    }
    VEC elu = t * rho, elu1 = one + elu; /* expm1(t) and its derivative */
    if (VN(any)(x < near)) {
        MASK far = x < near;
        VEC e, e1, divisor = VN(select)(far, x, one), inverse = one / divisor;
        VN(exp_expm1)(VN(select)(x < cut, cut, VN(select)(x > zero, zero, x)), &e, &e1);
        rho = VN(select)(far, e1 * inverse, rho);
        elu = VN(select)(far, e1, elu);
        elu1 = VN(select)(far, VN(select)(x < cut, zero, e), elu1);
        rho1 = VN(select)(far, VN(select)(x < cut, -e1 * inverse, e - e1 * inverse) * inverse, rho1);
    }
    g.u = theta * rho;
    g.gain = VN(select)(positive, x, elu);
    if (bound != 1) g.gain /= SET1(bound);
    g.u_theta = elu1;
    g.u_w = VN(select)(positive, zero, SET1(bound) * theta * theta * rho1);
    return g;
}
