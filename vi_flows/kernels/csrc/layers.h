/* The layers of a ConvFlow stack on a tile of TILE rows, for one type and instruction set (see vector.h). Included twice for each:
 * with PER_ROW 0, parameters are shared by all rows and are broadcast scalars; with PER_ROW 1 every row has its own, laid
 * out like the data. FN(name) adds a suffix.
 *
 * A tile is kept as [dimension][row], so that a tap is a shift by whole vectors and all rows run in step. Reverts move
 * nothing: a flipped tile is walked from its last dimension with a negative stride. Pointers named z, g carry such a
 * signed stride; everything else is in the layer's own order.
 */

#define NV (TILE / VL)
#define ACC (PER_ROW ? TILE : VL)        /* lanes of one gradient accumulator */
#define ACC_AT(v) (PER_ROW ? (v) * VL : 0)
#define FLIP(d, on) ((on) ? ((d) - 1) * TILE : 0)

/* Parameter i (of a layer) for the rows of vector v. */
static TARGET INLINE VEC FN(param)(const REAL *base, int64_t i, int v) {
#if PER_ROW
    return VN(load)(base + i * TILE + v * VL);
#else
    (void)v;
    return SET1(base[i]);
#endif
}

/* One layer of the prepared parameters. */
typedef struct {
    const REAL *u, *gain, *bias, *weight;
    const REAL *log_above, *log_below;         /* leaky ReLU, shared: log(1 + A h′) above and below zero */
    const REAL *above, *below;                 /* 1/(1 + A h′); for the inverse u h′/(1 + A h′) */
    int64_t dilation, bias_step;
} FN(layer);

/* What one thread works with. */
typedef struct {
    REAL *a, *z, *g, *change;               /* [d][TILE] */
    REAL *tape, *tape_a;                    /* [L][d][TILE]: the input of every layer, and its a */
    REAL *u, *bias, *weight;               /* PER_ROW: the tile's parameters */
    REAL *d_u, *d_bias, *d_weight;         /* [...][ACC] gradient accumulators; of u also through A = w₁u */
} FN(scratch);

static INLINE TARGET FN(layer) FN(layer_of)(const Job *job, const FN(scratch) * s, int64_t l) {
    const Stack *stack = job->stack;
    FN(layer) p;
    p.dilation = stack->dilations[l];
    p.bias_step = job->bias_dims > 1;
#if PER_ROW
    p.u = s->u + l * stack->d * TILE;
    p.gain = NULL;
    p.log_above = p.log_below = p.above = p.below = NULL;
    p.bias = s->bias + l * job->bias_dims * TILE;
    p.weight = s->weight + l * stack->k * TILE;
#else
    (void)s;
    const REAL *prepared = (const REAL *)job->prepared + l * PREPARED * job->padded_d;
    p.u = prepared;
    p.gain = prepared + job->padded_d;
    p.log_above = prepared + 2 * job->padded_d;
    p.log_below = prepared + 3 * job->padded_d;
    p.above = prepared + 4 * job->padded_d;
    p.below = prepared + 5 * job->padded_d;
    p.bias = (const REAL *)job->bias + l * job->bias_dims;
    p.weight = (const REAL *)job->weight + l * stack->k;
#endif
    return p;
}

/* Runs range(taps, cached, lo, hi) over the dimensions lo…hi that have `taps` live taps: constants up to five, whose
 * weights then stay in registers. `act` is the activation; only leaky ReLU is worth the code for each number. */
#define FOR_TAPS(act, m, range)                             \
    switch ((act) == LEAKY_RELU ? (m) : 0) {                \
    case 1: range(1, 1); break;                             \
    case 2: range(2, 2); break;                             \
    case 3: range(3, 3); break;                             \
    case 4: range(4, 4); break;                             \
    case 5: range(5, 5); break;                             \
    default: range((int)(m), 0);                            \
    }

#define FOR_ACTIVATION(call)                    \
    switch (stack->activation) {                \
    case LEAKY_RELU: call(LEAKY_RELU); break;   \
    case TANH: call(TANH); break;               \
    case SIGMOID: call(SIGMOID); break;         \
    case SOFTPLUS: call(SOFTPLUS); break;       \
    default: call(ELU);                         \
    }

/* Logarithms of slopes are taken of products of a few: no slope is below e^MIN_LOG_SLOPE, and none near the root of the
 * type's range occurs. */
#define LOG_NOW(i) (((i) & (REAL_BITS == 32 ? 1 : 3)) == 0)
#define TABLED(act) ((act) == LEAKY_RELU && !PER_ROW) /* leaky ReLU: a layer's dimension has but two slopes */

/* A = w₁u, from the table where there is one. */
static TARGET INLINE VEC FN(gain_of)(const FN(layer) * p, int64_t i, int v) {
#if PER_ROW
    return FN(param)(p->weight, 0, v) * FN(param)(p->u, i, v);
#else
    return FN(param)(p->gain, i, v);
#endif
}

static TARGET INLINE VEC FN(either)(VEC a, const REAL *above, const REAL *below, int64_t i, int v) {
    return VN(select)(a >= SET1(0), FN(param)(above, i, v), FN(param)(below, i, v));
}

static TARGET INLINE void FN(load_weights)(VEC *w, int cached, const FN(layer) * p, int v) {
    for (int t = 0; t < cached; t++) w[t] = FN(param)(p->weight, t, v);
}
#define WEIGHT(t) ((t) < cached ? w[t] : FN(param)(p->weight, t, v))

/* to = z + u h(a) with a = conv(z, w) + b; adds to ladj, or keeps a instead. */
static TARGET INLINE void FN(forward_range)(const int act, const int m, const int cached, const int keep,
                                            const Stack *stack, const FN(layer) * p, int64_t lo, int64_t hi,
                                            const REAL *z, REAL *to, int64_t stride, REAL *a, REAL *ladj) {
    const int64_t step = p->dilation * stride;
    for (int v = 0; v < NV; v++) {
        VEC total = SET1(0), product = SET1(1), w[5];
        FN(load_weights)(w, cached, p, v);
        for (int64_t i = lo; i < hi; i++) {
            const REAL *at = z + i * stride + v * VL;
            VEC h, h1, h2, x = VN(load)(at), sum = FN(param)(p->bias, i * p->bias_step, v) + WEIGHT(0) * x;
            for (int t = 1; t < m; t++) sum += WEIGHT(t) * VN(load)(at + t * step);
            VN(activation)(act, (REAL)stack->slope, sum, &h, &h1, &h2);
            VN(store)(to + i * stride + v * VL, x + FN(param)(p->u, i, v) * h);
            if (keep)
                VN(store)(a + i * TILE + v * VL, sum);
            else if (TABLED(act))
                total += FN(either)(sum, p->log_above, p->log_below, i, v);
            else {
                product *= SET1(1) + FN(gain_of)(p, i, v) * h1;
                if (LOG_NOW(i)) total += VN(log)(product), product = SET1(1);
            }
        }
        if (keep) continue;
        if (!TABLED(act)) total += VN(log)(product);
        VN(store)(ladj + v * VL, VN(load)(ladj + v * VL) + total);
    }
}

static TARGET INLINE void FN(forward_ranges)(const int act, const int keep, const Stack *stack, const FN(layer) * p,
                                             const REAL *z, REAL *to, int64_t stride, REAL *a, REAL *ladj) {
    const int64_t d = stack->d;
    /* in place: a dimension's output replaces its input after all that read it, which come before it */
    for (int64_t m = live_taps(stack, p->dilation); m >= 1; m--) {
        const int64_t lo = m == stack->k ? 0 : max_int(0, d - m * p->dilation), hi = d - (m - 1) * p->dilation;
#define RANGE(m, cached) FN(forward_range)(act, m, cached, keep, stack, p, lo, hi, z, to, stride, a, ladj)
        FOR_TAPS(act, m, RANGE)
#undef RANGE
    }
}

static TARGET void FN(forward_layer)(const Stack *stack, const FN(layer) * p, REAL *z, int64_t stride, REAL *ladj) {
#define CALL(act) FN(forward_ranges)(act, 0, stack, p, z, z, stride, NULL, ladj)
    FOR_ACTIVATION(CALL)
#undef CALL
}

static TARGET void FN(recorded_layer)(const Stack *stack, const FN(layer) * p, const REAL *z, REAL *to, int64_t stride,
                                      REAL *a) {
#define CALL(act) FN(forward_ranges)(act, 1, stack, p, z, to, stride, a, NULL)
    FOR_ACTIVATION(CALL)
#undef CALL
}

/* 1/(1 + A h′) */
static TARGET INLINE VEC FN(inverse_slope)(const int act, const FN(layer) * p, VEC a, VEC h1, int64_t i, int v) {
    if (TABLED(act)) return FN(either)(a, p->above, p->below, i, v);
    return SET1(1) / (SET1(1) + FN(gain_of)(p, i, v) * h1);
}

static TARGET INLINE void FN(accumulate)(REAL *to, int64_t i, int v, VEC x) {
    REAL *at = to + i * ACC + ACC_AT(v);
    VN(store)(at, VN(load)(at) + x);
}

/* Turns a into its gradient and g from the output's into the input's, g += convᵀ(ga); adds to the gradients of u and b,
 * and to that of the first tap what comes through A. */
static TARGET INLINE void FN(backward_range)(const int act, const int m, const int cached, const Stack *stack,
                                             const FN(layer) * p, int64_t lo, int64_t hi, REAL *a, REAL *g,
                                             int64_t stride, const REAL *g_ladj, REAL *d_u, REAL *d_bias, REAL *d_weight) {
    const int64_t step = p->dilation * TILE;
    for (int v = 0; v < NV; v++) {
        const VEC gl = VN(load)(g_ladj + v * VL);
        VEC bias_sum = SET1(0), tap_sum = SET1(0), w[5];
        FN(load_weights)(w, cached, p, v);
        for (int64_t i = lo; i < hi; i++) {
            REAL *at = a + i * TILE + v * VL, *g_at = g + i * stride + v * VL;
            VEC h, h1, h2, x = VN(load)(at), gy = VN(load)(g_at);
            VN(activation)(act, (REAL)stack->slope, x, &h, &h1, &h2);
            VEC scaled = gl * FN(inverse_slope)(act, p, x, h1, i, v), u = FN(param)(p->u, i, v), ga = gy * (u * h1);
            if (act != LEAKY_RELU) ga += scaled * FN(gain_of)(p, i, v) * h2;
            VN(store)(at, ga);
            scaled *= h1;
            tap_sum += scaled * u;
            FN(accumulate)(d_u, i, v, gy * h + scaled * WEIGHT(0));
            if (p->bias_step) FN(accumulate)(d_bias, i, v, ga);
            bias_sum += ga;
            gy += WEIGHT(0) * ga;
            for (int t = 1; t < m; t++) gy += WEIGHT(t) * VN(load)(at - t * step);
            VN(store)(g_at, gy);
        }
        if (!p->bias_step) FN(accumulate)(d_bias, 0, v, bias_sum);
        FN(accumulate)(d_weight, 0, v, tap_sum);
    }
}

static TARGET INLINE void FN(backward_ranges)(const int act, const Stack *stack, const FN(layer) * p, REAL *a, REAL *g,
                                              int64_t stride, const REAL *g_ladj, REAL *d_u, REAL *d_bias, REAL *d_weight) {
    const int64_t live = live_taps(stack, p->dilation);
    for (int64_t m = 1; m <= live; m++) {
        const int64_t lo = (m - 1) * p->dilation, hi = m == live ? stack->d : m * p->dilation;
#define RANGE(m, cached) \
    FN(backward_range)(act, m, cached, stack, p, lo, hi, a, g, stride, g_ladj, d_u, d_bias, d_weight)
        FOR_TAPS(act, m, RANGE)
#undef RANGE
    }
}

static TARGET void FN(backward_layer)(const Stack *stack, const FN(layer) * p, REAL *a, REAL *g, int64_t stride,
                                      const REAL *g_ladj, REAL *d_u, REAL *d_bias, REAL *d_weight) {
#define CALL(act) FN(backward_ranges)(act, stack, p, a, g, stride, g_ladj, d_u, d_bias, d_weight)
    FOR_ACTIVATION(CALL)
#undef CALL
}

/* d_weight[t] += Σᵢ gaᵢ z_{i+tδ} for m taps from `first` on, over dimensions lo…hi. */
static TARGET INLINE void FN(weight_range)(const int m, int64_t first, const FN(layer) * p, int64_t lo, int64_t hi,
                                           const REAL *ga, const REAL *z, int64_t stride, REAL *d_weight) {
    const int64_t step = p->dilation * stride;
    for (int v = 0; v < NV; v++) {
        VEC sum[5];
        for (int t = 0; t < m; t++) sum[t] = SET1(0);
        for (int64_t i = lo; i < hi; i++) {
            VEC left = VN(load)(ga + i * TILE + v * VL);
            const REAL *at = z + i * stride + first * step + v * VL;
            for (int t = 0; t < m; t++) sum[t] += left * VN(load)(at + t * step);
        }
        for (int t = 0; t < m; t++) FN(accumulate)(d_weight, first + t, v, sum[t]);
    }
}

static TARGET void FN(weight_gradient)(const Stack *stack, const FN(layer) * p, const REAL *ga, const REAL *z,
                                       int64_t stride, REAL *d_weight) {
    const int64_t live = live_taps(stack, p->dilation);
    for (int64_t first = 0; first < live; first += 5) {
        /* five taps together over the dimensions where all of them are live, then four over the next, … */
        int64_t lo = 0;
        for (int64_t m = min_int(5, live - first); m >= 1; m--) {
            const int64_t hi = stack->d - (first + m - 1) * p->dilation;
#define RANGE(m, cached) FN(weight_range)(m, first, p, lo, hi, ga, z, stride, d_weight)
            switch (m) {
            case 1: RANGE(1, 0); break;
            case 2: RANGE(2, 0); break;
            case 3: RANGE(3, 0); break;
            case 4: RANGE(4, 0); break;
            default: RANGE(5, 0);
            }
#undef RANGE
            lo = hi;
        }
    }
}

/* One round of the root finder: Newton's step where it stays in the bracket (and, if asked, moves by half of the last
 * move at most), else the bracket's middle. Whether a root of any row is still moving. */
static TARGET INLINE int FN(solve_round)(const int act, const int halving, const Stack *stack, VEC gain, VEC v, VEC *t,
                                         VEC *low, VEC *high, VEC *moved) {
    VEC h, h1, h2;
    VN(activation)(act, (REAL)stack->slope, *t, &h, &h1, &h2);
    VEC residual = *t + gain * h - v;
    *low = VN(select)(residual <= SET1(0), *t, *low);
    *high = VN(select)(residual >= SET1(0), *t, *high);
    VEC newton = *t - residual / (SET1(1) + gain * h1), middle = SET1(0.5) * (*low + *high);
    VEC next = VN(select)((newton > *low) & (newton < *high), newton, middle);
    if (halving) next = VN(select)(SET1(2) * VN(abs)(newton - *t) <= *moved, next, middle);
    next = VN(select)(residual == SET1(0), *t, next);
    VEC tolerance = SET1(REAL_EPS) * VN(abs)(next);
    *moved = VN(abs)(next - *t);
    *t = next;
    return VN(any)((*moved > tolerance) & (*high - *low > tolerance));
}

/* The root t of t + A h(t) = v. */
static TARGET INLINE VEC FN(solve)(const int act, const Stack *stack, VEC gain, VEC v) {
    if (act == LEAKY_RELU) return v / (SET1(1) + gain * VN(select)(v >= SET1(0), SET1(1), SET1(stack->slope)));
    /* The left side's derivative lies between 1 and 1 + A sup h′, which brackets the root from v on. */
    VEC h, h1, h2;
    VN(activation)(act, (REAL)stack->slope, v, &h, &h1, &h2);
    VEC steepest = VN(min)(SET1(1), SET1(1) + gain * SET1(stack->bound));
    VEC end = v - gain * h / steepest, low = VN(min)(v, end), high = VN(max)(v, end), moved = high - low;
    VEC t = v - gain * h / (SET1(1) + gain * h1);
    t = VN(select)(t < low, low, VN(select)(t > high, high, t));
    for (int step = 0; step < PATIENCE; step++)
        if (!FN(solve_round)(act, 0, stack, gain, v, &t, &low, &high, &moved)) return t;
    /* At steep gains Newton's steps can go to and fro between the flat sides for ever; from here on they don't. */
    for (int step = PATIENCE; step < 200; step++)
        if (!FN(solve_round)(act, 1, stack, gain, v, &t, &low, &high, &moved)) return t;
    return t;
}

/* z from y in place, last dimension first; subtracts from ladj. The rows' vectors are the innermost loop, because the
 * chain along i is what takes the time. */
static TARGET INLINE void FN(inverse_range)(const int act, const int m, const int cached, const Stack *stack,
                                            const FN(layer) * p, int64_t lo, int64_t hi, REAL *z, int64_t stride,
                                            REAL *ladj) {
    const int64_t step = p->dilation * stride;
    VEC total[NV], product[NV], w[5];
    for (int v = 0; v < NV; v++) total[v] = SET1(0), product[v] = SET1(1);
    FN(load_weights)(w, cached, p, 0);
    for (int64_t i = hi - 1; i >= lo; i--)
        for (int v = 0; v < NV; v++) {
            REAL *at = z + i * stride + v * VL;
            VEC y = VN(load)(at), sum = FN(param)(p->bias, i * p->bias_step, v) + WEIGHT(0) * y;
            for (int t = m - 1; t >= 1; t--) sum += WEIGHT(t) * VN(load)(at + t * step);
            if (TABLED(act)) { /* both branches, so that the comparison is off the chain */
                VEC above = y - FN(param)(p->above, i, v) * sum, below = y - FN(param)(p->below, i, v) * sum;
                VN(store)(at, VN(select)(sum >= SET1(0), above, below));
                total[v] += FN(either)(sum, p->log_above, p->log_below, i, v);
                continue;
            }
            VEC h, h1, h2, gain = FN(gain_of)(p, i, v), a = FN(solve)(act, stack, gain, sum);
            VN(activation)(act, (REAL)stack->slope, a, &h, &h1, &h2);
            VN(store)(at, y - FN(param)(p->u, i, v) * h);
            product[v] *= SET1(1) + gain * h1;
            if (LOG_NOW(i)) total[v] += VN(log)(product[v]), product[v] = SET1(1);
        }
    for (int v = 0; v < NV; v++) {
        if (!TABLED(act)) total[v] += VN(log)(product[v]);
        VN(store)(ladj + v * VL, VN(load)(ladj + v * VL) - total[v]);
    }
}

static TARGET INLINE void FN(inverse_ranges)(const int act, const Stack *stack, const FN(layer) * p, REAL *z,
                                             int64_t stride, REAL *ladj) {
    const int64_t d = stack->d, live = live_taps(stack, p->dilation);
    for (int64_t m = 1; m <= live; m++) {
        const int64_t lo = m == live ? 0 : d - m * p->dilation, hi = d - (m - 1) * p->dilation;
#define RANGE(m, cached) FN(inverse_range)(act, m, PER_ROW ? 0 : cached, stack, p, lo, hi, z, stride, ladj)
        FOR_TAPS(act, m, RANGE)
#undef RANGE
    }
}

static TARGET void FN(inverse_layer)(const Stack *stack, const FN(layer) * p, REAL *z, int64_t stride, REAL *ladj) {
#define CALL(act) FN(inverse_ranges)(act, stack, p, z, stride, ladj)
    FOR_ACTIVATION(CALL)
#undef CALL
}

/* Backward of the inverse, by the implicit function theorem: g, the gradient with respect to the preimage z, becomes the
 * one with respect to y by solving with the layer's transposed (lower triangular) Jacobian, first dimension first; a
 * becomes its own gradient. */
static TARGET INLINE void FN(inverse_backward_ranges)(const int act, const Stack *stack, const FN(layer) * p, REAL *a,
                                                      REAL *g, int64_t stride, const REAL *g_ladj, REAL *d_u,
                                                      REAL *d_bias, REAL *d_weight) {
    const int64_t live = live_taps(stack, p->dilation), step = p->dilation * TILE;
    for (int64_t m = 1; m <= live; m++) {
        const int64_t lo = (m - 1) * p->dilation, hi = m == live ? stack->d : m * p->dilation;
        for (int64_t i = lo; i < hi; i++)
            for (int v = 0; v < NV; v++) {
                REAL *at = a + i * TILE + v * VL, *g_at = g + i * stride + v * VL;
                VEC h, h1, h2, x = VN(load)(at), u = FN(param)(p->u, i, v);
                VN(activation)(act, (REAL)stack->slope, x, &h, &h1, &h2);
                VEC inverse = FN(inverse_slope)(act, p, x, h1, i, v), scaled = -VN(load)(g_ladj + v * VL) * inverse;
                VEC sum = VN(load)(g_at), curved = SET1(0);
                if (act != LEAKY_RELU) {
                    curved = scaled * FN(gain_of)(p, i, v) * h2;
                    sum += FN(param)(p->weight, 0, v) * curved;
                }
                for (int64_t t = m - 1; t >= 1; t--) sum += FN(param)(p->weight, t, v) * VN(load)(at - t * step);
                VEC adjoint = sum * inverse, ga = curved - u * h1 * adjoint;
                VN(store)(g_at, adjoint);
                VN(store)(at, ga);
                scaled *= h1;
                FN(accumulate)(d_u, i, v, scaled * FN(param)(p->weight, 0, v) - adjoint * h);
                FN(accumulate)(d_weight, 0, v, scaled * u);
                FN(accumulate)(d_bias, i * p->bias_step, v, ga);
            }
    }
}

static TARGET void FN(inverse_backward_layer)(const Stack *stack, const FN(layer) * p, REAL *a, REAL *g, int64_t stride,
                                              const REAL *g_ladj, REAL *d_u, REAL *d_bias, REAL *d_weight) {
#define CALL(act) FN(inverse_backward_ranges)(act, stack, p, a, g, stride, g_ladj, d_u, d_bias, d_weight)
    FOR_ACTIVATION(CALL)
#undef CALL
}

#undef WEIGHT
