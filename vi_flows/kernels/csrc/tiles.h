/* A ConvFlow stack on tiles of TILE rows, for one type and instruction set (see vector.h). Included twice for each:
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
    const REAL *inverse_above, *inverse_below; /* and 1/(1 + A h′) */
    int64_t dilation, bias_step;
} FN(layer);

/* What one thread works with. */
typedef struct {
    REAL *a, *z, *g, *change;             /* [d][TILE] */
    REAL *tape;                           /* [L][d][TILE]: the input of every layer */
    REAL *u, *gain, *bias, *weight;       /* PER_ROW: the tile's parameters */
    REAL *d_u, *d_gain, *d_bias, *d_weight; /* [...][ACC] gradient accumulators */
} FN(scratch);

static INLINE TARGET FN(layer) FN(layer_of)(const Job *job, const FN(scratch) * s, int64_t l) {
    const Stack *stack = job->stack;
    FN(layer) p;
    p.dilation = stack->dilations[l];
    p.bias_step = job->bias_dims > 1;
#if PER_ROW
    p.u = s->u + l * stack->d * TILE;
    p.gain = s->gain + l * stack->d * TILE;
    p.log_above = p.log_below = p.inverse_above = p.inverse_below = NULL;
    p.bias = s->bias + l * job->bias_dims * TILE;
    p.weight = s->weight + l * stack->k * TILE;
#else
    (void)s;
    const REAL *prepared = (const REAL *)job->prepared + l * PREPARED * job->padded_d;
    p.u = prepared;
    p.gain = prepared + job->padded_d;
    p.log_above = prepared + 2 * job->padded_d;
    p.log_below = prepared + 3 * job->padded_d;
    p.inverse_above = prepared + 4 * job->padded_d;
    p.inverse_below = prepared + 5 * job->padded_d;
    p.bias = (const REAL *)job->bias + l * job->bias_dims;
    p.weight = (const REAL *)job->weight + l * stack->k;
#endif
    return p;
}

/* a = conv(z, w) + b for dimensions lo…hi, of which each has m live taps. */
static TARGET INLINE void FN(conv_range)(const int m, const FN(layer) * p, int64_t lo, int64_t hi, const REAL *z,
                                         int64_t stride, REAL *a) {
    for (int v = 0; v < NV; v++)
        for (int64_t i = lo; i < hi; i++) {
            const REAL *at = z + i * stride + v * VL;
            VEC sum = FN(param)(p->bias, i * p->bias_step, v);
            for (int t = 0; t < m; t++)
                sum += FN(param)(p->weight, t, v) * VN(load)(at + t * p->dilation * stride);
            VN(store)(a + i * TILE + v * VL, sum);
        }
}

static TARGET void FN(conv)(const Stack *stack, const FN(layer) * p, const REAL *z, int64_t stride, REAL *a) {
    const int64_t d = stack->d;
    for (int64_t m = live_taps(stack, p->dilation); m >= 1; m--) {
        int64_t lo = m == stack->k ? 0 : max_int(0, d - m * p->dilation), hi = d - (m - 1) * p->dilation;
        switch (m) {
        case 1: FN(conv_range)(1, p, lo, hi, z, stride, a); break;
        case 2: FN(conv_range)(2, p, lo, hi, z, stride, a); break;
        case 3: FN(conv_range)(3, p, lo, hi, z, stride, a); break;
        case 4: FN(conv_range)(4, p, lo, hi, z, stride, a); break;
        case 5: FN(conv_range)(5, p, lo, hi, z, stride, a); break;
        default: FN(conv_range)((int)m, p, lo, hi, z, stride, a);
        }
    }
}

/* g += the transpose of the convolution applied to ga. */
static TARGET INLINE void FN(transposed_range)(const int m, const FN(layer) * p, int64_t lo, int64_t hi, const REAL *ga,
                                               REAL *g, int64_t stride) {
    for (int v = 0; v < NV; v++)
        for (int64_t i = lo; i < hi; i++) {
            REAL *at = g + i * stride + v * VL;
            VEC sum = VN(load)(at);
            for (int t = 0; t < m; t++)
                sum += FN(param)(p->weight, t, v) * VN(load)(ga + (i - t * p->dilation) * TILE + v * VL);
            VN(store)(at, sum);
        }
}

static TARGET void FN(transposed)(const Stack *stack, const FN(layer) * p, const REAL *ga, REAL *g, int64_t stride) {
    const int64_t d = stack->d;
    for (int64_t m = live_taps(stack, p->dilation); m >= 1; m--) {
        int64_t lo = (m - 1) * p->dilation, hi = m == stack->k ? d : min_int(d, m * p->dilation);
        switch (m) {
        case 1: FN(transposed_range)(1, p, lo, hi, ga, g, stride); break;
        case 2: FN(transposed_range)(2, p, lo, hi, ga, g, stride); break;
        case 3: FN(transposed_range)(3, p, lo, hi, ga, g, stride); break;
        case 4: FN(transposed_range)(4, p, lo, hi, ga, g, stride); break;
        case 5: FN(transposed_range)(5, p, lo, hi, ga, g, stride); break;
        default: FN(transposed_range)((int)m, p, lo, hi, ga, g, stride);
        }
    }
}

/* d_weight[t] += Σᵢ gaᵢ z_{i+tδ}, the taps first…first+m−1 over dimensions lo…hi. */
static TARGET INLINE void FN(weight_range)(const int m, int64_t first, const FN(layer) * p, int64_t lo, int64_t hi,
                                           const REAL *ga, const REAL *z, int64_t stride, REAL *d_weight) {
    for (int v = 0; v < NV; v++) {
        VEC sum[4];
        for (int t = 0; t < m; t++) sum[t] = SET1(0);
        for (int64_t i = lo; i < hi; i++) {
            VEC left = VN(load)(ga + i * TILE + v * VL);
            const REAL *at = z + (i + first * p->dilation) * stride + v * VL;
            for (int t = 0; t < m; t++) sum[t] += left * VN(load)(at + t * p->dilation * stride);
        }
        for (int t = 0; t < m; t++) {
            REAL *to = d_weight + (first + t) * ACC + ACC_AT(v);
            VN(store)(to, VN(load)(to) + sum[t]);
        }
    }
}

static TARGET void FN(weight_gradient)(const Stack *stack, const FN(layer) * p, const REAL *ga, const REAL *z,
                                       int64_t stride, REAL *d_weight) {
    const int64_t d = stack->d, live = live_taps(stack, p->dilation);
    for (int64_t first = 0; first < live; first += 4) {
        /* m taps together over the dimensions where exactly these m of the four are live */
        int64_t block = min_int(4, live - first), lo = 0;
        for (int64_t m = block; m >= 1; m--) {
            int64_t hi = d - (first + m - 1) * p->dilation;
            switch (m) {
            case 1: FN(weight_range)(1, first, p, lo, hi, ga, z, stride, d_weight); break;
            case 2: FN(weight_range)(2, first, p, lo, hi, ga, z, stride, d_weight); break;
            case 3: FN(weight_range)(3, first, p, lo, hi, ga, z, stride, d_weight); break;
            default: FN(weight_range)(4, first, p, lo, hi, ga, z, stride, d_weight);
            }
            lo = hi;
        }
    }
}

/* to = z + u h(a); with `with_ladj` the log-determinant of the rows is added to ladj. */
static TARGET INLINE void FN(act_forward)(const int act, const int with_ladj, const Stack *stack, const FN(layer) * p,
                                          const REAL *a, const REAL *z, REAL *to, int64_t stride, REAL *ladj) {
    for (int v = 0; v < NV; v++) {
        VEC total = SET1(0);
        for (int64_t i = 0; i < stack->d; i++) {
            VEC h, h1, h2, x = VN(load)(a + i * TILE + v * VL);
            VN(activation)(act, (REAL)stack->slope, x, &h, &h1, &h2);
            VN(store)(to + i * stride + v * VL, VN(load)(z + i * stride + v * VL) + FN(param)(p->u, i, v) * h);
            if (with_ladj) {
                if (act == LEAKY_RELU && !PER_ROW) /* two values are all there are: no logarithm per row */
                    total += VN(select)(x >= SET1(0), FN(param)(p->log_above, i, v), FN(param)(p->log_below, i, v));
                else
                    total += VN(log1p)(FN(param)(p->gain, i, v) * h1);
            }
        }
        if (with_ladj) VN(store)(ladj + v * VL, VN(load)(ladj + v * VL) + total);
    }
}

/* 1/(1 + A h′) */
static TARGET INLINE VEC FN(inverse_slope)(const int act, const FN(layer) * p, VEC a, VEC gain, VEC h1, int64_t i, int v) {
    if (act == LEAKY_RELU && !PER_ROW)
        return VN(select)(a >= SET1(0), FN(param)(p->inverse_above, i, v), FN(param)(p->inverse_below, i, v));
    return SET1(1) / (SET1(1) + gain * h1);
}

/* Turns a into the gradient with respect to a, and adds to the accumulators of u, A and b. */
static TARGET INLINE void FN(act_backward)(const int act, const Stack *stack, const FN(layer) * p, REAL *a, const REAL *g,
                                           int64_t stride, const REAL *g_ladj, REAL *d_u, REAL *d_gain, REAL *d_bias) {
    for (int v = 0; v < NV; v++) {
        const VEC gl = VN(load)(g_ladj + v * VL);
        VEC bias_sum = SET1(0);
        for (int64_t i = 0; i < stack->d; i++) {
            VEC h, h1, h2, x = VN(load)(a + i * TILE + v * VL);
            VN(activation)(act, (REAL)stack->slope, x, &h, &h1, &h2);
            VEC gain = FN(param)(p->gain, i, v), gy = VN(load)(g + i * stride + v * VL);
            VEC scaled = gl * FN(inverse_slope)(act, p, x, gain, h1, i, v);
            VEC ga = gy * FN(param)(p->u, i, v) * h1;
            if (act != LEAKY_RELU) ga += scaled * gain * h2;
            VN(store)(a + i * TILE + v * VL, ga);
            REAL *to = d_u + i * ACC + ACC_AT(v);
            VN(store)(to, VN(load)(to) + gy * h);
            to = d_gain + i * ACC + ACC_AT(v);
            VN(store)(to, VN(load)(to) + scaled * h1);
            if (p->bias_step) {
                to = d_bias + i * ACC + ACC_AT(v);
                VN(store)(to, VN(load)(to) + ga);
            } else
                bias_sum += ga;
        }
        if (!p->bias_step) VN(store)(d_bias + ACC_AT(v), VN(load)(d_bias + ACC_AT(v)) + bias_sum);
    }
}

/* The root t of t + A h(t) = v. */
static TARGET INLINE VEC FN(solve)(const int act, const Stack *stack, const FN(layer) * p, VEC gain, VEC v, int64_t i,
                                   int lanes) {
    if (act == LEAKY_RELU) {
#if PER_ROW
        (void)p, (void)i, (void)lanes;
        return v / (SET1(1) + gain * VN(select)(v >= SET1(0), SET1(1), SET1(stack->slope)));
#else
        return v * VN(select)(v >= SET1(0), FN(param)(p->inverse_above, i, lanes), FN(param)(p->inverse_below, i, lanes));
#endif
    }
    (void)p, (void)i, (void)lanes;
    /* The left side's derivative lies between 1 and 1 + A sup h′, which brackets the root from v on. */
    VEC h, h1, h2;
    VN(activation)(act, (REAL)stack->slope, v, &h, &h1, &h2);
    VEC steepest = VN(min)(SET1(1), SET1(1) + gain * SET1(stack->bound));
    VEC end = v - gain * h / steepest, low = VN(min)(v, end), high = VN(max)(v, end);
    VEC t = v - gain * h / (SET1(1) + gain * h1);
    t = VN(select)(t < low, low, VN(select)(t > high, high, t));
    for (int step = 0; step < 200; step++) {
        VN(activation)(act, (REAL)stack->slope, t, &h, &h1, &h2);
        VEC residual = t + gain * h - v;
        low = VN(select)(residual <= SET1(0), t, low);
        high = VN(select)(residual >= SET1(0), t, high);
        VEC newton = t - residual / (SET1(1) + gain * h1);
        VEC next = VN(select)((newton > low) & (newton < high), newton, SET1(0.5) * (low + high));
        next = VN(select)(residual == SET1(0), t, next);
        VEC moved = VN(abs)(next - t), tolerance = SET1(REAL_EPS) * VN(abs)(next);
        t = next;
        if (!VN(any)((moved > tolerance) & (high - low > tolerance))) break;
    }
    return t;
}

/* z from y in place, last dimension first, and minus the log-determinant. */
static TARGET INLINE void FN(act_inverse)(const int act, const Stack *stack, const FN(layer) * p, REAL *z, int64_t stride,
                                          REAL *ladj) {
    const int64_t d = stack->d, live = live_taps(stack, p->dilation);
    VEC total[NV];
    for (int v = 0; v < NV; v++) total[v] = SET1(0);
    for (int64_t i = d - 1; i >= 0; i--) {
        const int64_t m = min_int(live, (d - 1 - i) / p->dilation + 1);
        for (int v = 0; v < NV; v++) { /* innermost: the chain along i is what takes the time */
            REAL *at = z + i * stride + v * VL;
            VEC y = VN(load)(at), gain = FN(param)(p->gain, i, v);
            VEC sum = FN(param)(p->bias, i * p->bias_step, v) + FN(param)(p->weight, 0, v) * y;
            for (int64_t t = m - 1; t >= 1; t--)
                sum += FN(param)(p->weight, t, v) * VN(load)(at + t * p->dilation * stride);
            VEC h, h1, h2, a = FN(solve)(act, stack, p, gain, sum, i, v);
            VN(activation)(act, (REAL)stack->slope, a, &h, &h1, &h2);
            VN(store)(at, y - FN(param)(p->u, i, v) * h);
            if (act == LEAKY_RELU && !PER_ROW)
                total[v] -= VN(select)(a >= SET1(0), FN(param)(p->log_above, i, v), FN(param)(p->log_below, i, v));
            else
                total[v] -= VN(log1p)(gain * h1);
        }
    }
    for (int v = 0; v < NV; v++) VN(store)(ladj + v * VL, VN(load)(ladj + v * VL) + total[v]);
}

/* Backward of the inverse, by the implicit function theorem: g, the gradient with respect to the preimage z, becomes the
 * one with respect to y by solving with the layer's transposed (lower triangular) Jacobian, first dimension first. a
 * becomes its own gradient, `change` what the layer adds to z. */
static TARGET INLINE void FN(inverse_backward)(const int act, const Stack *stack, const FN(layer) * p, REAL *a, REAL *g,
                                               int64_t stride, const REAL *g_ladj, REAL *change, REAL *d_u, REAL *d_gain,
                                               REAL *d_bias) {
    const int64_t live = live_taps(stack, p->dilation);
    for (int64_t i = 0; i < stack->d; i++) {
        const int64_t m = min_int(live, i / p->dilation + 1);
        for (int v = 0; v < NV; v++) {
            VEC h, h1, h2, x = VN(load)(a + i * TILE + v * VL);
            VN(activation)(act, (REAL)stack->slope, x, &h, &h1, &h2);
            VEC gain = FN(param)(p->gain, i, v), u = FN(param)(p->u, i, v);
            VEC inverse = FN(inverse_slope)(act, p, x, gain, h1, i, v);
            VEC scaled = -VN(load)(g_ladj + v * VL) * inverse, curved = scaled * gain * h2;
            REAL *at = g + i * stride + v * VL;
            VEC sum = VN(load)(at) + FN(param)(p->weight, 0, v) * curved;
            for (int64_t t = m - 1; t >= 1; t--)
                sum += FN(param)(p->weight, t, v) * VN(load)(a + (i - t * p->dilation) * TILE + v * VL);
            VEC adjoint = sum * inverse, ga = curved - u * h1 * adjoint;
            VN(store)(at, adjoint);
            VN(store)(a + i * TILE + v * VL, ga);
            VN(store)(change + i * TILE + v * VL, u * h);
            REAL *to = d_u + i * ACC + ACC_AT(v);
            VN(store)(to, VN(load)(to) - adjoint * h);
            to = d_gain + i * ACC + ACC_AT(v);
            VN(store)(to, VN(load)(to) + scaled * h1);
            to = d_bias + i * p->bias_step * ACC + ACC_AT(v);
            VN(store)(to, VN(load)(to) + ga);
        }
    }
}

#define FOR_ACTIVATION(call)                    \
    switch (stack->activation) {                \
    case LEAKY_RELU: call(LEAKY_RELU); break;   \
    case TANH: call(TANH); break;               \
    case SIGMOID: call(SIGMOID); break;         \
    case SOFTPLUS: call(SOFTPLUS); break;       \
    default: call(ELU);                         \
    }

static TARGET void FN(forward_step)(const Stack *stack, const FN(layer) * p, const REAL *a, const REAL *z, REAL *to,
                                    int64_t stride, REAL *ladj) {
#define CALL(act)                                                        \
    if (ladj)                                                            \
        FN(act_forward)(act, 1, stack, p, a, z, to, stride, ladj);       \
    else                                                                 \
        FN(act_forward)(act, 0, stack, p, a, z, to, stride, ladj)
    FOR_ACTIVATION(CALL)
#undef CALL
}

static TARGET void FN(backward_step)(const Stack *stack, const FN(layer) * p, REAL *a, const REAL *g, int64_t stride,
                                     const REAL *g_ladj, REAL *d_u, REAL *d_gain, REAL *d_bias) {
#define CALL(act) FN(act_backward)(act, stack, p, a, g, stride, g_ladj, d_u, d_gain, d_bias)
    FOR_ACTIVATION(CALL)
#undef CALL
}

static TARGET void FN(inverse_step)(const Stack *stack, const FN(layer) * p, REAL *z, int64_t stride, REAL *ladj) {
#define CALL(act) FN(act_inverse)(act, stack, p, z, stride, ladj)
    FOR_ACTIVATION(CALL)
#undef CALL
}

static TARGET void FN(inverse_backward_step)(const Stack *stack, const FN(layer) * p, REAL *a, REAL *g, int64_t stride,
                                             const REAL *g_ladj, REAL *change, REAL *d_u, REAL *d_gain, REAL *d_bias) {
#define CALL(act) FN(inverse_backward)(act, stack, p, a, g, stride, g_ladj, change, d_u, d_gain, d_bias)
    FOR_ACTIVATION(CALL)
#undef CALL
}

/* Between `rows` rows of `row_size` and the tile's [row_size][TILE]; absent rows are zero. */
static TARGET void FN(gather)(const REAL *from, int64_t row_step, int64_t rows, int64_t n, REAL *to, int64_t stride) {
    for (int64_t i = 0; i < n; i++) {
        REAL *at = to + i * stride;
        for (int64_t r = 0; r < rows; r++) at[r] = from[r * row_step + i];
        for (int64_t r = rows; r < TILE; r++) at[r] = 0;
    }
}

static TARGET void FN(scatter)(REAL *to, int64_t row_step, int64_t rows, int64_t n, const REAL *from, int64_t stride) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t r = 0; r < rows; r++) to[r * row_step + i] = from[i * stride + r];
}

/* One tile: `rows` rows from `row` on, in and out of the caller's arrays. */
static TARGET void FN(tile)(const Job *job, const FN(scratch) * s, int64_t row, int64_t rows) {
    const Stack *stack = job->stack;
    const int64_t d = stack->d, layers = stack->layers;
    REAL ladj[TILE] ALIGNED, g_ladj[TILE] ALIGNED;
    for (int r = 0; r < TILE; r++) {
        ladj[r] = 0;
        g_ladj[r] = r < rows && job->g_ladj ? ((const REAL *)job->g_ladj)[row + r] : 0;
    }
    int flipped = 0; /* whether the data entering the layer run backwards in memory */
    for (int64_t l = 0; l < layers; l++) flipped ^= stack->reverts[l];
    const int end = flipped;
    const REAL *x = (const REAL *)job->x + row * d;
    const int64_t end_stride = end ? -TILE : TILE;

    if (job->op == FORWARD || job->op == FORWARD_BACKWARD) {
        const int keep = job->op == FORWARD_BACKWARD;
        REAL *z = keep ? s->tape : s->z;
        FN(gather)(x, d, rows, d, z, TILE);
        flipped = 0;
        for (int64_t l = 0; l < layers - keep; l++) {
            FN(layer) p = FN(layer_of)(job, s, l);
            const int64_t from = FLIP(d, flipped), stride = flipped ? -TILE : TILE;
            REAL *to = keep ? z + d * TILE : z;
            FN(conv)(stack, &p, z + from, stride, s->a);
            FN(forward_step)(stack, &p, s->a, z + from, to + from, stride, keep ? NULL : ladj);
            z = to;
            flipped ^= stack->reverts[l];
        }
        if (!keep) FN(scatter)((REAL *)job->y + row * d, d, rows, d, z + FLIP(d, end), end_stride);
    }
    if (job->op == INVERSE) {
        FN(gather)(x, d, rows, d, s->z + FLIP(d, end), end_stride);
        flipped = end;
        for (int64_t l = layers - 1; l >= 0; l--) {
            FN(layer) p = FN(layer_of)(job, s, l);
            flipped ^= stack->reverts[l];
            FN(inverse_step)(stack, &p, s->z + FLIP(d, flipped), flipped ? -TILE : TILE, ladj);
        }
        FN(scatter)((REAL *)job->y + row * d, d, rows, d, s->z, TILE);
    }
    if (job->op == FORWARD || job->op == INVERSE) {
        for (int64_t r = 0; r < rows; r++) ((REAL *)job->ladj)[row + r] = ladj[r];
        return;
    }

    /* Gradients. */
    const REAL *g_out = (const REAL *)job->g_y;
    const int back = job->op == FORWARD_BACKWARD, start = back ? end : 0;
    FN(gather)(g_out ? g_out + row * d : x, d, g_out ? rows : 0, d, s->g + FLIP(d, start), start ? -TILE : TILE);
    if (!back) FN(gather)(x, d, rows, d, s->z, TILE);
    flipped = start;
    for (int64_t n = 0; n < layers; n++) {
        const int64_t l = back ? layers - 1 - n : n;
        FN(layer) p = FN(layer_of)(job, s, l);
        if (back) flipped ^= stack->reverts[l];
        const int64_t from = FLIP(d, flipped), stride = flipped ? -TILE : TILE;
        REAL *z = (back ? s->tape + l * d * TILE : s->z) + from;
        REAL *d_u = s->d_u + l * d * ACC, *d_gain = s->d_gain + l * d * ACC, *d_bias = s->d_bias + l * job->bias_dims * ACC;
        FN(conv)(stack, &p, z, stride, s->a);
        if (back)
            FN(backward_step)(stack, &p, s->a, s->g + from, stride, g_ladj, d_u, d_gain, d_bias);
        else
            FN(inverse_backward_step)(stack, &p, s->a, s->g + from, stride, g_ladj, s->change, d_u, d_gain, d_bias);
        FN(weight_gradient)(stack, &p, s->a, z, stride, s->d_weight + l * stack->k * ACC);
        if (back)
            FN(transposed)(stack, &p, s->a, s->g + from, stride);
        else {
            for (int64_t i = 0; i < d; i++)
                for (int r = 0; r < TILE; r++) z[i * stride + r] += s->change[i * TILE + r];
            flipped ^= stack->reverts[l];
        }
    }
    if (job->g_x) {
        const int finish = back ? 0 : end;
        FN(scatter)((REAL *)job->g_x + row * d, d, rows, d, s->g + FLIP(d, finish), finish ? -TILE : TILE);
    }
}

#if PER_ROW
/* The tile's parameters: gathered from each row's own, or copied from the shared ones, and turned into u and A. */
static TARGET void FN(load_parameters)(const Job *job, const FN(scratch) * s, int64_t row, int64_t rows) {
    const Stack *stack = job->stack;
    const int64_t d = stack->d, k = stack->k, layers = stack->layers;
    FN(gather)((const REAL *)job->theta + row * job->theta_row, job->theta_row, rows, layers * d, s->u, TILE);
    FN(gather)((const REAL *)job->weight + row * job->weight_row, job->weight_row, rows, layers * k, s->weight, TILE);
    FN(gather)((const REAL *)job->bias + row * job->bias_row, job->bias_row, rows, layers * job->bias_dims, s->bias, TILE);
    for (int64_t l = 0; l < layers; l++)
        for (int v = 0; v < NV; v++) {
            VEC w1 = VN(load)(s->weight + l * k * TILE + v * VL);
            for (int64_t i = l * d; i < (l + 1) * d; i++) {
                VN(gain) g = VN(effective_gain)(VN(load)(s->u + i * TILE + v * VL), w1, (REAL)stack->bound);
                VN(store)(s->u + i * TILE + v * VL, g.u);
                VN(store)(s->gain + i * TILE + v * VL, g.gain);
            }
        }
}

/* What a tile's accumulators [n][TILE] hold goes to each row's gradient, or into this thread's sum. */
static TARGET void FN(unload)(REAL *to, int64_t row, int64_t row_step, int64_t rows, int64_t n, const REAL *from,
                              REAL *partial) {
    if (row_step) {
        if (to) FN(scatter)(to + row * row_step, row_step, rows, n, from, TILE);
        return;
    }
    for (int64_t i = 0; i < n; i++)
        for (int64_t r = 0; r < rows; r++) partial[i] += from[i * TILE + r];
}

static TARGET void FN(store_gradients)(const Job *job, const FN(scratch) * s, int64_t row, int64_t rows, REAL *partial) {
    const Stack *stack = job->stack;
    const int64_t d = stack->d, k = stack->k, layers = stack->layers;
    /* θ again, in the place of u, which is no longer needed */
    FN(gather)((const REAL *)job->theta + row * job->theta_row, job->theta_row, rows, layers * d, s->u, TILE);
    for (int64_t l = 0; l < layers; l++)
        for (int v = 0; v < NV; v++) {
            VEC w1 = VN(load)(s->weight + l * k * TILE + v * VL), sum = SET1(0);
            for (int64_t i = l * d; i < (l + 1) * d; i++) {
                VN(gain) g = VN(effective_gain)(VN(load)(s->u + i * TILE + v * VL), w1, (REAL)stack->bound);
                VEC du = VN(load)(s->d_u + i * TILE + v * VL), da = VN(load)(s->d_gain + i * TILE + v * VL);
                VN(store)(s->d_u + i * TILE + v * VL, du * g.u_theta + da * g.gain_theta);
                sum += du * g.u_w + da * g.gain_w;
            }
            REAL *to = s->d_weight + l * k * TILE + v * VL;
            VN(store)(to, VN(load)(to) + sum);
        }
    FN(unload)(job->g_theta, row, job->theta_row, rows, layers * d, s->d_u, partial);
    FN(unload)(job->g_bias, row, job->bias_row, rows, layers * job->bias_dims, s->d_bias, partial + 2 * layers * d);
    FN(unload)(job->g_weight, row, job->weight_row, rows, layers * k, s->d_weight,
               partial + layers * (2 * d + job->bias_dims));
}
#else
/* u, A and, for leaky ReLU, the two values each of log(1 + A h′) and 1/(1 + A h′): once a call, for all tiles. */
static TARGET void FN(prepare)(const Job *job) {
    const Stack *stack = job->stack;
    const int64_t d = stack->d, padded = job->padded_d;
    REAL *theta = (REAL *)job->prepared + stack->layers * PREPARED * padded; /* one row of room behind the table */
    const REAL slope = (REAL)stack->slope;
    for (int64_t l = 0; l < stack->layers; l++) {
        REAL *to = (REAL *)job->prepared + l * PREPARED * padded;
        memset(theta, 0, padded * sizeof(REAL));
        memcpy(theta, (const REAL *)job->theta + l * d, d * sizeof(REAL));
        const VEC w1 = SET1(((const REAL *)job->weight)[l * stack->k]), one = SET1(1);
        for (int64_t i = 0; i < padded; i += VL) {
            VN(gain) g = VN(effective_gain)(VN(load)(theta + i), w1, (REAL)stack->bound);
            VN(store)(to + i, g.u);
            VN(store)(to + padded + i, g.gain);
            if (stack->activation != LEAKY_RELU) continue;
            if (job->op != FORWARD_BACKWARD && job->op != INVERSE_BACKWARD) {
                VN(store)(to + 2 * padded + i, VN(log1p)(g.gain));
                VN(store)(to + 3 * padded + i, VN(log1p)(g.gain * SET1(slope)));
            }
            VN(store)(to + 4 * padded + i, one / (one + g.gain));
            VN(store)(to + 5 * padded + i, one / (one + g.gain * SET1(slope)));
        }
    }
}

/* This thread's accumulators, summed over their lanes. */
static TARGET void FN(store_gradients)(const Job *job, const FN(scratch) * s, REAL *partial) {
    const int64_t n = job->stack->layers * (2 * job->stack->d + job->bias_dims + job->stack->k);
    for (int64_t i = 0; i < n; i++) partial[i] = VN(sum)(VN(load)(s->d_u + i * VL)); /* u, A, b, w lie in a row */
}

#endif

/* The threads' sums to the first place, then from gradients with respect to u and A to those with respect to θ and the first taps. */
static TARGET void FN(finish)(const Job *job, int64_t parts) {
    const Stack *stack = job->stack;
    const int64_t d = stack->d, layers = stack->layers, n = layers * (2 * d + job->bias_dims + stack->k);
    REAL *total = (REAL *)job->partial;
    for (int64_t part = 1; part < parts; part++)
        for (int64_t i = 0; i < n; i++) total[i] += total[part * n + i];
    if (PER_ROW) return; /* every tile did the rest for its rows */
    REAL *d_gain = total + layers * d, *d_weight = total + layers * (2 * d + job->bias_dims);
    for (int64_t l = 0; l < layers; l++) {
        const VEC w1 = SET1(((const REAL *)job->weight)[l * stack->k]);
        VEC sum = SET1(0);
        for (int64_t i = 0; i < d; i += VL) {
            REAL lanes[3][VL] ALIGNED;
            const int64_t lanes_left = min_int(VL, d - i);
            memset(lanes, 0, sizeof lanes);
            memcpy(lanes[0], (const REAL *)job->theta + l * d + i, lanes_left * sizeof(REAL));
            memcpy(lanes[1], total + l * d + i, lanes_left * sizeof(REAL));
            memcpy(lanes[2], d_gain + l * d + i, lanes_left * sizeof(REAL));
            VEC du = VN(load)(lanes[1]), da = VN(load)(lanes[2]);
            VN(gain) g = VN(effective_gain)(VN(load)(lanes[0]), w1, (REAL)stack->bound);
            VN(store)(lanes[0], du * g.u_theta + da * g.gain_theta);
            memcpy(total + l * d + i, lanes[0], lanes_left * sizeof(REAL));
            sum += du * g.u_w + da * g.gain_w;
        }
        d_weight[l * stack->k] += VN(sum)(sum);
    }
}

/* Part `part` of `parts`: its share of the tiles. Returns 0, or 1 when memory ran out. */
static TARGET int FN(run_part)(const Job *job, int64_t part, int64_t parts) {
    const Stack *stack = job->stack;
    const int64_t d = stack->d, k = stack->k, layers = stack->layers, bias = job->bias_dims;
    const int64_t plane = d * TILE, all = layers * plane;
    const int grads = job->op == FORWARD_BACKWARD || job->op == INVERSE_BACKWARD;
    const int64_t own = PER_ROW ? 2 * all + layers * (bias + k) * TILE : 0;
    const int64_t accumulators = grads ? layers * (2 * d + bias + k) * ACC : 0;
    const int64_t tape = job->op == FORWARD_BACKWARD ? all : 0;
    void *block = NULL;
    REAL *at = (REAL *)aligned_block((4 * plane + tape + own + accumulators) * sizeof(REAL), &block);
    if (!at) return 1;
    FN(scratch) s;
    s.a = at, at += plane;
    s.z = at, at += plane;
    s.g = at, at += plane;
    s.change = at, at += plane;
    s.tape = at, at += tape;
    s.u = at;
    s.gain = s.u + all;
    s.bias = s.gain + all;
    s.weight = s.bias + layers * bias * TILE;
    at += own;
    s.d_u = at;
    s.d_gain = s.d_u + layers * d * ACC;
    s.d_bias = s.d_gain + layers * d * ACC;
    s.d_weight = s.d_bias + layers * bias * ACC;
    REAL *partial = grads ? (REAL *)job->partial + part * layers * (2 * d + bias + k) : NULL;

    const int64_t tiles = (job->rows + TILE - 1) / TILE, first = tiles * part / parts, last = tiles * (part + 1) / parts;
    if (!PER_ROW) memset(s.d_u, 0, accumulators * sizeof(REAL));
    for (int64_t tile = first; tile < last; tile++) {
        const int64_t row = tile * TILE, rows = min_int(TILE, job->rows - row);
#if PER_ROW
        memset(s.d_u, 0, accumulators * sizeof(REAL));
        FN(load_parameters)(job, &s, row, rows);
#endif
        for (int64_t n = 0; n < job->outer; n++) FN(tile)(job, &s, n * job->rows + row, rows);
#if PER_ROW
        if (grads) FN(store_gradients)(job, &s, row, rows, partial);
#endif
    }
#if !PER_ROW
    if (grads) FN(store_gradients)(job, &s, partial);
#endif
    free(block);
    return 0;
}

#undef NV
#undef ACC
#undef ACC_AT
#undef FLIP
#undef FOR_ACTIVATION
