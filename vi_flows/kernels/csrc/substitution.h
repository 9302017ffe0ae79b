/* Substitution pixel by pixel for convolutions that look towards one corner, VL images side by side. Included once for
 * every pair of type and instruction set, after vector.h.
 *
 * A row of VL images is kept as [column][channel][image], k − 1 columns of zeros before it: what a pixel sees of a row is
 * one piece of memory, and the last k rows are all that is needed. The weights of up to twelve outputs lie in the order
 * in which the pieces are read, so that their sums stay in registers.
 */

/* add: adds to `sums` the products of `count` inputs with n weights each, and returns where the next weights are.
 * pixel: n channels of one pixel, from the rows above it, its own row and its own Y. */
#define OUTPUTS(n)                                                                                                      \
    static TARGET INLINE const REAL *VN(add_##n)(VEC *sums, const REAL *inputs, int64_t count, const REAL *weights) {    \
        VEC total[n];                                                                                                   \
        for (int o = 0; o < n; o++) total[o] = sums[o];                                                                 \
        for (int64_t i = 0; i < count; i++, inputs += VL, weights += n) {                                               \
            const VEC input = VN(load)(inputs);                                                                         \
            for (int o = 0; o < n; o++) total[o] += input * SET1(weights[o]);                                           \
        }                                                                                                               \
        for (int o = 0; o < n; o++) sums[o] = total[o];                                                                 \
        return weights;                                                                                                 \
    }                                                                                                                   \
    static TARGET void VN(pixel_##n)(const Substitution *s, const REAL *const *above, const REAL *own, REAL *out,       \
                                     int64_t missing, const REAL *weights) {                                            \
        const int64_t window = s->k * s->channels;                                                                      \
        VEC sums[n];                                                                                                    \
        for (int o = 0; o < n; o++) sums[o] = SET1(0);                                                                  \
        weights += missing * window * n;                                                                                \
        for (int64_t a = missing; a + 1 < s->k; a++) weights = VN(add_##n)(sums, above[a], window, weights);            \
        weights = VN(add_##n)(sums, above[s->k - 1], window - s->channels, weights);                                    \
        VN(add_##n)(sums, own, s->channels, weights);                                                                   \
        for (int o = 0; o < n; o++) VN(store)(out + o * VL, sums[o]);                                                   \
    }
OUTPUTS(1)
OUTPUTS(2)
OUTPUTS(3)
OUTPUTS(4)
OUTPUTS(6)
OUTPUTS(8)
OUTPUTS(12)
#undef OUTPUTS

/* All images of the tiles that are this part's; returns 1 if memory ran out. */
static TARGET int VN(substitute)(const Substitution *s, int64_t part, int64_t parts) {
    const int64_t c = s->channels, h = s->height, w = s->width, k = s->k, edge = (k - 1) * c * VL;
    const int64_t line = edge + w * c * VL, inputs = k * k * c;
    const int64_t tiles = (s->images + VL - 1) / VL, last = tiles * (part + 1) / parts;
    void *block = NULL;
    const int64_t pointers = (k * (int64_t)sizeof(REAL *) + 63) / 64 * 64;
    const REAL **const above = (const REAL **)aligned_block(pointers + (k + 1) * line * sizeof(REAL), &block);
    if (!above) return 1;
    REAL *const staged = (REAL *)((char *)above + pointers), *const rows = staged + line;
    for (int64_t tile = tiles * part / parts; tile < last; tile++) {
        const int64_t first = tile * VL, lanes = min_int(VL, s->images - first);
        const REAL *from = (const REAL *)s->y + first * s->y_image;
        REAL *to = (REAL *)s->x + first * s->x_image;
        memset(staged, 0, (k + 1) * line * sizeof(REAL)); /* the edges, and the lanes without an image */
        for (int64_t i = 0; i < h; i++) {
            const int64_t row = s->bottom ? h - 1 - i : i, missing = max_int(0, k - 1 - i);
            REAL *const now = rows + i % k * line;
            for (int64_t r = 0; r < lanes; r++)
                for (int64_t channel = 0; channel < c; channel++) {
                    const REAL *source = from + r * s->y_image + channel * s->y_channel + row * s->y_row;
                    REAL *target = staged + channel * VL + r;
                    for (int64_t j = 0; j < w; j++)
                        target[(s->right ? w - 1 - j : j) * c * VL] = source[j * s->y_column];
                }
            for (int64_t j = 0; j < w; j++) {
                const REAL *weights = (const REAL *)s->packed, *own = staged + j * c * VL;
                REAL *out = now + edge + j * c * VL;
                for (int64_t a = missing; a < k; a++) above[a] = rows + (i + a + 1) % k * line + j * c * VL;
                for (int64_t o = 0; o < c;) {
                    const int64_t outputs = outputs_at_once(c - o);
                    switch (outputs) {
                    case 12: VN(pixel_12)(s, above, own, out, missing, weights); break;
                    case 8: VN(pixel_8)(s, above, own, out, missing, weights); break;
                    case 6: VN(pixel_6)(s, above, own, out, missing, weights); break;
                    case 4: VN(pixel_4)(s, above, own, out, missing, weights); break;
                    case 3: VN(pixel_3)(s, above, own, out, missing, weights); break;
                    case 2: VN(pixel_2)(s, above, own, out, missing, weights); break;
                    default: VN(pixel_1)(s, above, own, out, missing, weights);
                    }
                    o += outputs, out += outputs * VL, weights += outputs * inputs;
                }
            }
            for (int64_t r = 0; r < lanes; r++)
                for (int64_t channel = 0; channel < c; channel++) {
                    REAL *target = to + r * s->x_image + channel * s->x_channel + row * s->x_row;
                    const REAL *source = now + edge + channel * VL + r;
                    for (int64_t j = 0; j < w; j++)
                        target[j * s->x_column] = source[(s->right ? w - 1 - j : j) * c * VL];
                }
        }
    }
    free(block);
    return 0;
}

/* The weights in the order in which they are read: by groups of outputs, then by inputs, then by outputs. */
static void VN(pack)(const Substitution *s) {
    const int64_t c = s->channels, inputs = s->k * s->k * c;
    const REAL *matrix = (const REAL *)s->matrix;
    REAL *at = (REAL *)s->packed;
    for (int64_t o = 0; o < c;) {
        const int64_t outputs = outputs_at_once(c - o);
        for (int64_t i = 0; i < inputs; i++)
            for (int64_t p = 0; p < outputs; p++) *at++ = matrix[(o + p) * inputs + i];
        o += outputs;
    }
}
