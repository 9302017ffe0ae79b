/* The ConvFlow stack: forward, inverse, and the gradients of both; the inverse of one-sided convolutions. For float and
 * double.
 *
 * A Python extension module without contents: it is loaded by ctypes, so that it needs neither PyTorch's headers nor
 * Python's calling convention. vi_flows_run and vi_flows_substitute work on plain pointers; native.py and
 * substitution.py hold the same structures.
 */

#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#endif
#ifndef _WIN32
#include <unistd.h>
#endif

#if defined(_MSC_VER)
#define EXPORT __declspec(dllexport)
#define INLINE __forceinline
#define ALIGNED /* vectors of one lane need none */
#else
#define EXPORT __attribute__((visibility("default")))
#define INLINE inline __attribute__((always_inline))
#define ALIGNED __attribute__((aligned(64)))
#endif

#if (defined(__GNUC__) || defined(__clang__)) && !defined(VI_FLOWS_SCALAR)
#define HAVE_VECTORS 1
#if defined(__x86_64__)
#define HAVE_X86 1
#include <immintrin.h>
#endif
#endif

#define TILE 16
#define PREPARED 6           /* rows a layer in the table of prepared parameters */
#define MIN_LOG_SLOPE -7.0   /* as in reference.py */

enum { LEAKY_RELU, TANH, SIGMOID, SOFTPLUS, ELU };

/* Rounds of the root finder in which Newton's steps are taken as they come. */
enum { PATIENCE = 8 };
enum { FORWARD, INVERSE, FORWARD_BACKWARD, INVERSE_BACKWARD };
enum { ISA_AUTO = -1, ISA_BASELINE, ISA_AVX2, ISA_AVX512 };

/* A ConvFlowSpec. */
typedef struct {
    int64_t d, k, layers;
    int64_t activation;
    double slope, bound; /* of the leaky ReLU; sup h′ */
    const int64_t *dilations;
    const int64_t *reverts;
} Stack;

/* One call. Parameters of each row have a row step (in elements), shared ones 0. */
typedef struct {
    const Stack *stack;
    int64_t op, is_double, isa, threads;
    int64_t rows, outer; /* outer × rows points; parameters belong to a row */
    int64_t theta_row, weight_row, bias_row, bias_dims;
    const void *x, *theta, *weight, *bias; /* x: input of the forward pass; of INVERSE y; of its backward the preimage */
    const void *g_y, *g_ladj;              /* gradients with respect to the two outputs, or NULL for zero */
    void *y, *ladj;                        /* outputs of FORWARD and INVERSE */
    void *g_x, *g_theta, *g_weight, *g_bias; /* outputs of the others, or NULL */
    /* the driver's own */
    void *prepared, *partial;
    int64_t padded_d;
} Job;

/* Images Y, of which each pixel is Y = Σ K X over the k × k pixels that end at it in the chosen corner's orientation, and
 * X. `matrix`, (channels, k k channels), holds −K₀⁻¹ K by taps in raster order, then K₀⁻¹, where K₀ is the last tap. */
typedef struct {
    int64_t is_double, isa, threads;
    int64_t images, channels, height, width, k, bottom, right;
    int64_t y_image, y_channel, y_row, y_column; /* steps in elements */
    int64_t x_image, x_channel, x_row, x_column;
    const void *matrix, *y;
    void *x;
    void *packed; /* the driver's own */
} Substitution;

/* How many channels are computed side by side where `left` are left: what registers hold. */
static int64_t outputs_at_once(int64_t left) {
    return left >= 12 ? 12 : left >= 8 ? 8 : left >= 6 ? 6 : left >= 4 ? 4 : left;
}

static int64_t min_int(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max_int(int64_t a, int64_t b) { return a > b ? a : b; }

/* Taps that meet at least one dimension. */
static int64_t live_taps(const Stack *stack, int64_t dilation) { return min_int(stack->k, (stack->d - 1) / dilation + 1); }

static void *aligned_block(size_t bytes, void **block) {
    *block = malloc(bytes + 64);
    return *block ? (void *)(((uintptr_t)*block + 63) & ~(uintptr_t)63) : NULL;
}


#define PASTE3_(a, b, c) a##_##b##_##c
#define PASTE3(a, b, c) PASTE3_(a, b, c)
#define PASTE4_(a, b, c, d) a##_##b##_##c##_##d
#define PASTE4(a, b, c, d) PASTE4_(a, b, c, d)

/* The vectors of the platform's minimum: 16 bytes are SSE2 on x86-64, NEON on 64-bit ARM, and lowered elsewhere. */
#define ISA_NAME baseline
#define TARGET
#ifdef HAVE_VECTORS
#define VECTOR_BYTES 16
#else
#define VECTOR_BYTES 0
#endif
#include "variant.h"
#undef ISA_NAME
#undef TARGET
#undef VECTOR_BYTES

#ifdef HAVE_X86
#define ISA_NAME avx2
#define TARGET __attribute__((target("avx2,fma,bmi,bmi2")))
#define VECTOR_BYTES 32
#include "variant.h"
#undef ISA_NAME
#undef TARGET
#undef VECTOR_BYTES

#define ISA_NAME avx512
#define TARGET __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma,bmi,bmi2")))
#define VECTOR_BYTES 64
#include "variant.h"
#undef ISA_NAME
#undef TARGET
#undef VECTOR_BYTES
#endif

typedef struct {
    void (*prepare)(const Job *);
    int (*run[2])(const Job *, int64_t, int64_t); /* shared parameters, parameters of each row */
    void (*finish[2])(const Job *, int64_t);
    void (*pack)(const Substitution *);
    int (*substitute)(const Substitution *, int64_t, int64_t);
} Variant;

#define VARIANT(type, isa)                                                               \
    {                                                                                    \
        prepare_##type##_##isa##_shared,                                                 \
            {run_part_##type##_##isa##_shared, run_part_##type##_##isa##_per_row},       \
            {finish_##type##_##isa##_shared, finish_##type##_##isa##_per_row},           \
            pack_##type##_##isa, substitute_##type##_##isa                               \
    }

static const Variant variants[][2] = {
    {VARIANT(f32, baseline), VARIANT(f64, baseline)},
#ifdef HAVE_X86
    {VARIANT(f32, avx2), VARIANT(f64, avx2)},
    {VARIANT(f32, avx512), VARIANT(f64, avx512)},
#endif
};

/* The widest instruction set that this machine has. */
EXPORT int64_t vi_flows_best_isa(void) {
#ifdef HAVE_X86
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return ISA_BASELINE;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw"))
        return ISA_AVX512;
    return ISA_AVX2;
#else
    return ISA_BASELINE;
#endif
}

/* What the extension was built as. */
EXPORT const char *vi_flows_build(void) {
#if defined(__clang__)
#define COMPILER "clang " __clang_version__
#elif defined(__GNUC__)
#define COMPILER "gcc " __VERSION__
#else
#define COMPILER "another compiler"
#endif
#ifdef _OPENMP
    return COMPILER ", OpenMP";
#else
    return COMPILER ", no OpenMP";
#endif
}

/* Threads for `work` layer-dimension-tiles when `wanted` are offered: calls that run at the same time share them, and a
 * child of a fork stays alone, because an OpenMP runtime's threads don't survive a fork. */
static int64_t active_calls = 0;

static int64_t choose_threads(int64_t wanted, int64_t tiles, int64_t work, int64_t active) {
#ifdef _OPENMP
#ifndef _WIN32
    static int64_t owner = 0;
    if (wanted > 1 && !owner) owner = (int64_t)getpid();
    if (wanted > 1 && owner != (int64_t)getpid()) return 1;
#endif
    return max_int(1, min_int(min_int(wanted / max_int(1, active), tiles), work / 4000));
#else
    (void)wanted, (void)tiles, (void)work, (void)active;
    return 1;
#endif
}

static int64_t begin_call(void) {
#if defined(__GNUC__) || defined(__clang__)
    return __atomic_add_fetch(&active_calls, 1, __ATOMIC_RELAXED);
#else
    return 1;
#endif
}

static void end_call(void) {
#if defined(__GNUC__) || defined(__clang__)
    __atomic_sub_fetch(&active_calls, 1, __ATOMIC_RELAXED);
#endif
}

static int run(Job *job, int64_t threads) {
    const Stack *stack = job->stack;
    const Variant *variant = &variants[job->isa][job->is_double];
    const int per_row = job->theta_row || job->weight_row || job->bias_row;
    const int grads = job->op == FORWARD_BACKWARD || job->op == INVERSE_BACKWARD;
    const size_t size = job->is_double ? sizeof(double) : sizeof(float);
    const int64_t gradients = stack->layers * (stack->d + job->bias_dims + stack->k);
    void *table = NULL, *sums = NULL;
    int failed = 0;

    job->padded_d = (stack->d + TILE - 1) / TILE * TILE;
    if (!per_row) {
        job->prepared = aligned_block((stack->layers * PREPARED + 1) * job->padded_d * size, &table);
        if (!job->prepared) return 1;
        variant->prepare(job);
    }
    if (grads) {
        job->partial = sums = calloc(threads * gradients, size);
        failed = !sums;
    }
    if (!failed && threads == 1) failed = variant->run[per_row](job, 0, 1);
#ifdef _OPENMP
    if (!failed && threads > 1) {
#pragma omp parallel for schedule(static, 1) num_threads((int)threads) reduction(| : failed)
        for (int64_t part = 0; part < threads; part++) failed |= variant->run[per_row](job, part, threads);
    }
#endif
    if (!failed && grads) {
        variant->finish[per_row](job, threads);
        const char *from = (const char *)sums;
        const int64_t layers = stack->layers, d = stack->d;
        if (job->g_theta && !job->theta_row) memcpy(job->g_theta, from, layers * d * size);
        from += layers * d * size;
        if (job->g_bias && !job->bias_row) memcpy(job->g_bias, from, layers * job->bias_dims * size);
        from += layers * job->bias_dims * size;
        if (job->g_weight && !job->weight_row) memcpy(job->g_weight, from, layers * stack->k * size);
    }
    free(table);
    free(sums);
    return failed;
}

/* Returns 0, 1 when memory ran out, or 2 when the instruction set is not there. */
EXPORT int64_t vi_flows_run(const Job *call) {
    Job job = *call;
    const int64_t best = vi_flows_best_isa();
    /* The inverse waits for its own results: two vectors of half the width in flight beat one. */
    if (job.isa == ISA_AUTO) job.isa = best == ISA_AVX512 && job.op == INVERSE ? ISA_AVX2 : best;
    if (job.isa < 0 || job.isa > best) return 2;
    if (job.stack->activation < LEAKY_RELU || job.stack->activation > ELU) return 3; /* never as another one */
    const int64_t tiles = (job.rows + TILE - 1) / TILE;
    const int64_t work = tiles * job.outer * job.stack->layers * job.stack->d;
    const int failed = run(&job, choose_threads(job.threads, tiles, work, begin_call()));
    end_call();
    return failed;
}

static int substitute(Substitution *job, int64_t threads) {
    const Variant *variant = &variants[job->isa][job->is_double];
    const size_t size = job->is_double ? sizeof(double) : sizeof(float);
    void *weights = NULL;
    int failed = 0;
    job->packed = aligned_block(job->channels * job->channels * job->k * job->k * size, &weights);
    if (!job->packed) return 1;
    variant->pack(job);
    if (threads == 1) failed = variant->substitute(job, 0, 1);
#ifdef _OPENMP
    if (threads > 1) {
#pragma omp parallel for schedule(static, 1) num_threads((int)threads) reduction(| : failed)
        for (int64_t part = 0; part < threads; part++) failed |= variant->substitute(job, part, threads);
    }
#endif
    free(weights);
    return failed;
}

/* Returns what vi_flows_run does. */
EXPORT int64_t vi_flows_substitute(const Substitution *call) {
    Substitution job = *call;
    const int64_t best = vi_flows_best_isa();
    if (job.isa == ISA_AUTO) job.isa = best;
    if (job.isa < 0 || job.isa > best) return 2;
    const int64_t tiles = (job.images + TILE - 1) / TILE;
    const int64_t products = tiles * job.height * job.width * job.channels * job.channels * job.k * job.k;
    const int failed = substitute(&job, choose_threads(job.threads, tiles, products / 16, begin_call()));
    end_call();
    return failed;
}

static struct PyModuleDef module = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_conv_flow",
    .m_doc = "Compiled ConvFlow kernel; loaded through ctypes.",
    .m_size = 0,
};

PyMODINIT_FUNC PyInit__conv_flow(void) { return PyModuleDef_Init(&module); }
