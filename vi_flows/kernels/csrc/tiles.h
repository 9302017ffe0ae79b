/* A ConvFlow stack on tiles of TILE rows: between the caller's arrays and the layers of layers.h, for one type and
 * instruction set, with parameters shared (PER_ROW 0) or of each row (PER_ROW 1).
 */

/* Between `rows` rows of n numbers and the tile's [n][TILE]; absent rows are zero. */
static TARGET void FN(gather)(const REAL *from, int64_t row_step, int64_t rows, int64_t n, REAL *to, int64_t stride) {
    int64_t i = 0;
    for (; VL > 1 && i + VL <= n; i += VL)
        for (int v = 0; v < NV; v++) {
            VEC block[VL];
            for (int r = 0; r < VL; r++) {
                const int64_t row = v * VL + r;
                block[r] = SET1(0);
                if (row < rows) block[r] = VN(load_anywhere)(from + row * row_step + i);
            }
            VN(transpose)(block);
            for (int r = 0; r < VL; r++) VN(store)(to + (i + r) * stride + v * VL, block[r]);
        }
    for (; i < n; i++) {
        REAL *at = to + i * stride;
        for (int64_t r = 0; r < rows; r++) at[r] = from[r * row_step + i];
        for (int64_t r = rows; r < TILE; r++) at[r] = 0;
    }
}

static TARGET void FN(scatter)(REAL *to, int64_t row_step, int64_t rows, int64_t n, const REAL *from, int64_t stride) {
    int64_t i = 0;
    for (; VL > 1 && i + VL <= n; i += VL)
        for (int v = 0; v < NV && v * VL < rows; v++) {
            VEC block[VL];
            for (int r = 0; r < VL; r++) block[r] = VN(load)(from + (i + r) * stride + v * VL);
            VN(transpose)(block);
            for (int r = 0; r < VL; r++)
                if (v * VL + r < rows) VN(store_anywhere)(to + (v * VL + r) * row_step + i, block[r]);
        }
    for (; i < n; i++)
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
        for (int64_t l = 0; l < layers; l++) {
            FN(layer) p = FN(layer_of)(job, s, l);
            const int64_t from = FLIP(d, flipped), stride = flipped ? -TILE : TILE;
            if (keep) {
                FN(recorded_layer)(stack, &p, z + from, z + d * TILE + from, stride, s->tape_a + l * d * TILE);
                z += d * TILE;
            } else
                FN(forward_layer)(stack, &p, z + from, stride, ladj);
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
            FN(inverse_layer)(stack, &p, s->z + FLIP(d, flipped), flipped ? -TILE : TILE, ladj);
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
        REAL *d_u = s->d_u + l * d * ACC, *d_bias = s->d_bias + l * job->bias_dims * ACC;
        REAL *d_weight = s->d_weight + l * stack->k * ACC;
        if (back) {
            REAL *a = s->tape_a + l * d * TILE;
            FN(backward_layer)(stack, &p, a, s->g + from, stride, g_ladj, d_u, d_bias, d_weight);
            FN(weight_gradient)(stack, &p, a, z, stride, d_weight);
        } else {
            /* z here is the layer's input, which the preimage of the whole is for the first */
            FN(recorded_layer)(stack, &p, z, s->change + from, stride, s->a);
            FN(inverse_backward_layer)(stack, &p, s->a, s->g + from, stride, g_ladj, d_u, d_bias, d_weight);
            FN(weight_gradient)(stack, &p, s->a, z, stride, d_weight);
            memcpy(s->z, s->change, d * TILE * sizeof(REAL));
            flipped ^= stack->reverts[l];
        }
    }
    if (job->g_x) {
        const int finish = back ? 0 : end;
        FN(scatter)((REAL *)job->g_x + row * d, d, rows, d, s->g + FLIP(d, finish), finish ? -TILE : TILE);
    }
}

#if PER_ROW
/* The tile's parameters: gathered from each row's own, or copied from the shared ones, and turned into u. */
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
                REAL *at = s->u + i * TILE + v * VL;
                VN(store)(at, VN(effective_gain)(VN(load)(at), w1, (REAL)stack->bound, 0).u);
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
                VN(gain) g = VN(effective_gain)(VN(load)(s->u + i * TILE + v * VL), w1, (REAL)stack->bound, 1);
                REAL *at = s->d_u + i * TILE + v * VL;
                VEC du = VN(load)(at);
                VN(store)(at, du * g.u_theta);
                sum += du * g.u_w;
            }
            REAL *to = s->d_weight + l * k * TILE + v * VL;
            VN(store)(to, VN(load)(to) + sum);
        }
    FN(unload)(job->g_theta, row, job->theta_row, rows, layers * d, s->d_u, partial);
    FN(unload)(job->g_bias, row, job->bias_row, rows, layers * job->bias_dims, s->d_bias, partial + layers * d);
    FN(unload)(job->g_weight, row, job->weight_row, rows, layers * k, s->d_weight,
               partial + layers * (d + job->bias_dims));
}
#else
/* u, A and, for leaky ReLU, the two values of what else a layer needs: once a call, for all tiles. */
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
            VN(gain) g = VN(effective_gain)(VN(load)(theta + i), w1, (REAL)stack->bound, 0);
            VN(store)(to + i, g.u);
            VN(store)(to + padded + i, g.gain);
            if (stack->activation != LEAKY_RELU) continue;
            if (job->op != FORWARD_BACKWARD && job->op != INVERSE_BACKWARD) {
                VN(store)(to + 2 * padded + i, VN(log1p)(g.gain));
                VN(store)(to + 3 * padded + i, VN(log1p)(g.gain * SET1(slope)));
            }
            VEC above = one, below = one;
            if (job->op == INVERSE) above = g.u, below = g.u * SET1(slope);
            VN(store)(to + 4 * padded + i, above / (one + g.gain));
            VN(store)(to + 5 * padded + i, below / (one + g.gain * SET1(slope)));
        }
    }
}

/* This thread's accumulators, summed over their lanes. */
static TARGET void FN(store_gradients)(const Job *job, const FN(scratch) * s, REAL *partial) {
    const int64_t n = job->stack->layers * (job->stack->d + job->bias_dims + job->stack->k);
    for (int64_t i = 0; i < n; i++) partial[i] = VN(sum)(VN(load)(s->d_u + i * VL)); /* u, b, w lie in a row */
}

#endif

/* The threads' sums to the first place, then from gradients of u to those of θ and the first taps. */
static TARGET void FN(finish)(const Job *job, int64_t parts) {
    const Stack *stack = job->stack;
    const int64_t d = stack->d, layers = stack->layers, n = layers * (d + job->bias_dims + stack->k);
    REAL *total = (REAL *)job->partial;
    for (int64_t part = 1; part < parts; part++)
        for (int64_t i = 0; i < n; i++) total[i] += total[part * n + i];
    if (PER_ROW) return; /* every tile did the rest for its rows */
    REAL *d_weight = total + layers * (d + job->bias_dims);
    for (int64_t l = 0; l < layers; l++) {
        const VEC w1 = SET1(((const REAL *)job->weight)[l * stack->k]);
        VEC sum = SET1(0);
        for (int64_t i = 0; i < d; i += VL) {
            REAL lanes[2][VL] ALIGNED;
            const int64_t lanes_left = min_int(VL, d - i);
            memset(lanes, 0, sizeof lanes);
            memcpy(lanes[0], (const REAL *)job->theta + l * d + i, lanes_left * sizeof(REAL));
            memcpy(lanes[1], total + l * d + i, lanes_left * sizeof(REAL));
            VEC du = VN(load)(lanes[1]);
            VN(gain) g = VN(effective_gain)(VN(load)(lanes[0]), w1, (REAL)stack->bound, 1);
            VN(store)(lanes[0], du * g.u_theta);
            memcpy(total + l * d + i, lanes[0], lanes_left * sizeof(REAL));
            sum += du * g.u_w;
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
    const int64_t own = PER_ROW ? all + layers * (bias + k) * TILE : 0;
    const int64_t accumulators = grads ? layers * (d + bias + k) * ACC : 0;
    const int64_t tape = job->op == FORWARD_BACKWARD ? all + plane : 0, tape_a = job->op == FORWARD_BACKWARD ? all : 0;
    void *block = NULL;
    REAL *at = (REAL *)aligned_block((4 * plane + tape + tape_a + own + accumulators) * sizeof(REAL), &block);
    if (!at) return 1;
    FN(scratch) s;
    s.a = at, at += plane;
    s.z = at, at += plane;
    s.g = at, at += plane;
    s.change = at, at += plane;
    s.tape = at, at += tape;
    s.tape_a = at, at += tape_a;
    s.u = at;
    s.bias = s.u + all;
    s.weight = s.bias + layers * bias * TILE;
    at += own;
    s.d_u = at;
    s.d_bias = s.d_u + layers * d * ACC;
    s.d_weight = s.d_bias + layers * bias * ACC;
    REAL *partial = grads ? (REAL *)job->partial + part * layers * (d + bias + k) : NULL;

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
#undef FOR_TAPS
#undef LOG_NOW
#undef TABLED
