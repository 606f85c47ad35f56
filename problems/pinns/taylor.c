/* The sweeps of mldd.problems.pinns.taylor_sweeps through plain tanh networks, block of points by block of points.

   Compiled once for float and once for double (REAL) by mldd.problems.pinns.compiled_sweeps. Streams of a layer are rows
   of `S * block` numbers, one per unit: a stream of `block` points after the other. Points that pad a block have zero
   adjoints. With t = tanh(z), d = 1 - t^2 and the adjoints a of the streams of h, those of z are

       d a - 2 t sum_k (h_k a_k + h_kk a_kk) - 2 sum_k h_k^2 a_kk,    d a_k - 4 t h_k a_kk,    d a_kk.               */

#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__ /* 32 registers hold a tile of 4 x 5 vectors, 16 one of 4 x 3 */
#define BYTES 64
#define COLUMNS 5
#else
#define BYTES 32
#define COLUMNS 3
#endif
#define LANES ((long)(BYTES / sizeof(REAL)))
#define ROWS 4
typedef REAL vector __attribute__((vector_size(BYTES)));
typedef REAL loose __attribute__((vector_size(BYTES), aligned(sizeof(REAL)), may_alias));

/* Small loops over registers are unrolled at once, and a vector that is used several times is loaded once: compilers else
   read it from memory with every product. */
#if defined(__GNUC__) && !defined(__clang__)
#define UNROLL _Pragma("GCC unroll 8")
#else
#define UNROLL _Pragma("clang loop unroll(full)")
#endif
#if defined(__x86_64__) && (defined(__AVX__) || defined(__AVX512F__))
#define KEEP(v) __asm__("" : "+v"(v))
#else
#define KEEP(v)
#endif

#define IS_FLOAT (sizeof(REAL) == 4)

typedef struct {
    long networks, layers, points, block, slopes, bends; /* bends: the last of the slopes have a second derivative */
    long stride;                                         /* between the points of networks; 0 if they share them */
    const long *widths, *coordinates;                    /* coordinates of the slopes */
} Shape;

static inline long streams_of(const Shape *s) { return 1 + s->slopes + s->bends; }
static inline long blocks_of(const Shape *s) { return (s->points + s->block - 1) / s->block; }

static long states_of(const Shape *s) { /* numbers of the states of one block */
    long units = 0;
    for (long l = 1; l < s->layers; l++) units += s->widths[l];
    return units * streams_of(s) * s->block;
}

/* exp(x) for |x| <= 87 (700), by x = n log 2 + r and the series in r; NaN stays NaN. */
static inline REAL exponential(REAL x) {
    const REAL limit = IS_FLOAT ? 87 : 700;
    x = x < -limit ? -limit : x;
    x = x > limit ? limit : x;
    const REAL magic = IS_FLOAT ? (REAL)12582912.0 : (REAL)6755399441055744.0; /* 1.5 times 2^23, 2^52 */
    const REAL shifted = x * (REAL)1.4426950408889634 + magic, n = shifted - magic;
    const REAL high = IS_FLOAT ? (REAL)0.693359375 : (REAL)0.693147180369123816490;
    const REAL low = IS_FLOAT ? (REAL)-2.12194440e-4 : (REAL)1.90821492927058770002e-10;
    const REAL r = (x - n * high) - n * low;
    REAL y;
    if (IS_FLOAT) {
        y = (REAL)(1.0 / 5040);
    } else {
        y = (REAL)(1.0 / 6227020800.0);
        y = y * r + (REAL)(1.0 / 479001600.0);
        y = y * r + (REAL)(1.0 / 39916800.0);
        y = y * r + (REAL)(1.0 / 3628800.0);
        y = y * r + (REAL)(1.0 / 362880.0);
        y = y * r + (REAL)(1.0 / 40320.0);
        y = y * r + (REAL)(1.0 / 5040.0);
    }
    y = y * r + (REAL)(1.0 / 720);
    y = y * r + (REAL)(1.0 / 120);
    y = y * r + (REAL)(1.0 / 24);
    y = y * r + (REAL)(1.0 / 6);
    y = y * r + (REAL)0.5;
    y = y * r + 1;
    y = y * r + 1;
    REAL scale;
    if (IS_FLOAT) {
        uint32_t bits;
        memcpy(&bits, &shifted, 4);
        bits = (bits + 127) << 23;
        memcpy(&scale, &bits, 4);
    } else {
        uint64_t bits;
        memcpy(&bits, &shifted, 8);
        bits = (bits + 1023) << 52;
        memcpy(&scale, &bits, 8);
    }
    return y * scale;
}

/* out[r][0 .. columns vectors) = sum_k w[r][k] x[k][...] for `rows` <= ROWS rows; w has any strides. */
#define PRODUCT(NAME, R, C)                                                                                            \
    static inline void NAME(const REAL *w, long wr, long wk, const REAL *x, long n, long length, REAL *out) {          \
        vector sum[R][C];                                                                                              \
        UNROLL for (int r = 0; r < R; r++)                                                                             \
            UNROLL for (int c = 0; c < C; c++) sum[r][c] = (vector){0};                                                \
        for (long k = 0; k < n; k++) {                                                                                 \
            vector row[C];                                                                                             \
            UNROLL for (int c = 0; c < C; c++) {                                                                       \
                row[c] = *(const loose *)(x + k * length + c * LANES);                                                 \
                KEEP(row[c]);                                                                                          \
            }                                                                                                          \
            UNROLL for (int r = 0; r < R; r++) {                                                                       \
                const REAL factor = w[r * wr + k * wk];                                                                \
                UNROLL for (int c = 0; c < C; c++) sum[r][c] += factor * row[c];                                       \
            }                                                                                                          \
        }                                                                                                              \
        UNROLL for (int r = 0; r < R; r++)                                                                             \
            UNROLL for (int c = 0; c < C; c++) *(loose *)(out + r * length + c * LANES) = sum[r][c];                   \
    }
PRODUCT(product_tile, ROWS, COLUMNS)
PRODUCT(product_column, ROWS, 1)
PRODUCT(product_row, 1, COLUMNS)
PRODUCT(product_vector, 1, 1)

/* out = W x for W of shape (m, n), strides wr and wk; x and out are rows of `length` numbers, full vectors. */
static void multiply(const REAL *w, long wr, long wk, const REAL *x, long m, long n, long length, REAL *out) {
    for (long c = 0; c < length;) {
        const int wide = c + COLUMNS * LANES <= length;
        long r = 0;
        for (; r + ROWS <= m; r += ROWS)
            (wide ? product_tile : product_column)(w + r * wr, wr, wk, x + c, n, length, out + r * length + c);
        for (; r < m; r++)
            (wide ? product_row : product_vector)(w + r * wr, wr, wk, x + c, n, length, out + r * length + c);
        c += (wide ? COLUMNS : 1) * LANES;
    }
}

typedef REAL half __attribute__((vector_size(BYTES / 2)));
typedef REAL quarter __attribute__((vector_size(BYTES / 4)));

static inline REAL total(vector v) { /* of the lanes, by halves */
    half h[2];
    quarter q[2];
    memcpy(h, &v, sizeof v);
    h[0] += h[1];
    memcpy(q, h, sizeof h[0]);
    q[0] += q[1];
    REAL sum = 0;
    for (long k = 0; k < LANES / 4; k++) sum += q[0][k];
    return sum;
}

#define OUTER(NAME, R, C)                                                                                              \
    static inline void NAME(const REAL *a, const REAL *x, long length, REAL *out, long n) {                            \
        vector sum[R][C];                                                                                              \
        UNROLL for (int r = 0; r < R; r++)                                                                             \
            UNROLL for (int c = 0; c < C; c++) sum[r][c] = (vector){0};                                                \
        for (long k = 0; k < length; k += LANES) {                                                                     \
            vector row[C];                                                                                             \
            UNROLL for (int c = 0; c < C; c++) {                                                                       \
                row[c] = *(const loose *)(x + c * length + k);                                                         \
                KEEP(row[c]);                                                                                          \
            }                                                                                                          \
            UNROLL for (int r = 0; r < R; r++) {                                                                       \
                const vector left = *(const loose *)(a + r * length + k);                                              \
                UNROLL for (int c = 0; c < C; c++) sum[r][c] += left * row[c];                                         \
            }                                                                                                          \
        }                                                                                                              \
        UNROLL for (int r = 0; r < R; r++)                                                                             \
            UNROLL for (int c = 0; c < C; c++) out[r * n + c] += total(sum[r][c]);                                     \
    }
OUTER(outer_tile, ROWS, COLUMNS)
OUTER(outer_column, ROWS, 1)
OUTER(outer_row, 1, COLUMNS)
OUTER(outer_vector, 1, 1)

/* out += a x^T for a of m rows and x of n rows; out has shape (m, n). */
static void add_outer(const REAL *a, const REAL *x, long m, long n, long length, REAL *out) {
    for (long r = 0; r < m;) {
        const int tall = r + ROWS <= m;
        for (long c = 0; c < n;) {
            const int wide = c + COLUMNS <= n;
            (tall ? (wide ? outer_tile : outer_column) : (wide ? outer_row : outer_vector))(
                a + r * length, x + c * length, length, out + r * n + c, n);
            c += wide ? COLUMNS : 1;
        }
        r += tall ? ROWS : 1;
    }
}

static REAL sum_of(const REAL *x, long length) {
    vector sum = {0};
    for (long k = 0; k < length; k += LANES) sum += *(const loose *)(x + k);
    return total(sum);
}

/* Turn z into t = tanh(z + bias), relative to 1: 2 / (1 + exp(-2 z)) - 1. */
static void squash(REAL *z, REAL bias, long block) {
    for (long k = 0; k < block; k++) z[k] = 2 / (1 + exponential(-2 * (z[k] + bias))) - 1;
}

/* The vector at an address, to read and to write: compilers doubt that six pointers do not overlap. */
#define AT(address) (*(loose *)(address))

/* Turn the streams of z of one unit into those of h. */
static void activate(const Shape *s, REAL *row, REAL bias) {
    const long block = s->block, flat = s->slopes - s->bends;
    squash(row, bias, block);
    for (long j = 0; j < s->slopes; j++) {
        REAL *slope = row + (1 + j) * block, *bend = row + (1 + s->slopes + j - flat) * block;
        for (long k = 0; k < block; k += LANES) {
            const vector t = AT(row + k), d = 1 - t * t, z = AT(slope + k), h = d * z;
            AT(slope + k) = h;
            if (j >= flat) AT(bend + k) = d * AT(bend + k) - 2 * t * h * z;
        }
    }
}

/* Turn the adjoints of the streams of h of one unit into those of z. */
static void pull(const Shape *s, REAL *row, REAL *a) {
    const long block = s->block, flat = s->slopes - s->bends;
    for (long k = 0; k < block; k += LANES) {
        const vector t = AT(row + k), d = 1 - t * t;
        vector sum = d * AT(a + k);
        for (long j = 0; j < s->slopes; j++) {
            const long slope = (1 + j) * block + k, bend = (1 + s->slopes + j - flat) * block + k;
            const vector h = AT(row + slope), of_slope = AT(a + slope);
            sum -= 2 * t * h * of_slope;
            AT(a + slope) = d * of_slope;
            if (j >= flat) {
                const vector of_bend = AT(a + bend), both = h * of_bend;
                sum -= 2 * (t * AT(row + bend) * of_bend + h * both);
                AT(a + slope) -= 4 * t * both;
                AT(a + bend) = d * of_bend;
            }
        }
        AT(a + k) = sum;
    }
}

/* The streams of h of the first layer, where derivatives of z are constant. */
static void enter(const Shape *s, const REAL *w, const REAL *b, const REAL *x, REAL *out) {
    const long block = s->block, length = streams_of(s) * block, d = s->widths[0];
    for (long o = 0; o < s->widths[1]; o++) {
        REAL *row = out + o * length;
        memset(row, 0, length * sizeof(REAL));
        for (long i = 0; i < d; i++)
            for (long k = 0; k < block; k++) row[k] += w[o * d + i] * x[i * block + k];
        for (long j = 0; j < s->slopes; j++)
            for (long k = 0; k < block; k++) row[(1 + j) * block + k] = w[o * d + s->coordinates[j]];
        activate(s, row, b[o]);
    }
}

/* Gradients of the first layer from the adjoints a of the streams of its z. */
static void leave(const Shape *s, const REAL *a, const REAL *x, REAL *of_w, REAL *of_b) {
    const long block = s->block, length = streams_of(s) * block, d = s->widths[0];
    for (long o = 0; o < s->widths[1]; o++) {
        const REAL *row = a + o * length;
        for (long i = 0; i < d; i++) outer_vector(row, x + i * block, block, of_w + o * d + i, d);
        for (long j = 0; j < s->slopes; j++) of_w[o * d + s->coordinates[j]] += sum_of(row + (1 + j) * block, block);
        of_b[o] += sum_of(row, block);
    }
}

/* Copy between streams of shape (S, points, outputs) and rows of a block; points that pad it become zero. */
static void exchange(const Shape *s, long begin, REAL *streams, REAL *rows, int inwards) {
    const long outputs = s->widths[s->layers], length = streams_of(s) * s->block;
    const long here = s->points - begin < s->block ? s->points - begin : s->block;
    for (long o = 0; o < outputs; o++)
        for (long j = 0; j < streams_of(s); j++) {
            REAL *row = rows + o * length + j * s->block, *stream = streams + (j * s->points + begin) * outputs + o;
            if (inwards) {
                for (long k = 0; k < here; k++) row[k] = stream[k * outputs];
                for (long k = here; k < s->block; k++) row[k] = 0;
            } else {
                for (long k = 0; k < here; k++) stream[k * outputs] = row[k];
            }
        }
}

/* Streams of the outputs, (networks, S, points, outputs). Parameters are W, b per layer, each with the stride between
   networks; points are (blocks, d, block) per network; the states are kept for `backward`. */
void forward(const Shape *s, REAL *const *parameters, const long *strides, const REAL *points, REAL *states,
             REAL *scratch, REAL *streams) {
    const long count = streams_of(s), length = count * s->block, blocks = blocks_of(s), last = s->layers - 1;
    for (long p = 0; p < s->networks; p++)
        for (long b = 0; b < blocks; b++) {
            REAL *state = states + (p * blocks + b) * states_of(s);
            const REAL *x = points + p * s->stride + b * s->widths[0] * s->block;
            enter(s, parameters[0] + p * strides[0], parameters[1] + p * strides[1], x, state);
            for (long l = 1; l <= last; l++) {
                const REAL *w = parameters[2 * l] + p * strides[2 * l], *bias = parameters[2 * l + 1] + p * strides[2 * l + 1];
                const long inner = s->widths[l], outer = s->widths[l + 1];
                REAL *out = l == last ? scratch : state + inner * length;
                multiply(w, inner, 1, state, outer, inner, length, out);
                for (long o = 0; o < outer; o++) {
                    if (l < last) activate(s, out + o * length, bias[o]);
                    else for (long k = 0; k < s->block; k++) out[o * length + k] += bias[o];
                }
                state = out;
            }
            exchange(s, b * s->block, streams + p * count * s->points * s->widths[s->layers], scratch, 0);
        }
}

/* Gradients with respect to the parameters from that with respect to the streams; states are those of `forward`. */
void backward(const Shape *s, REAL *const *parameters, const long *strides, const REAL *points, REAL *states,
              REAL *scratch, REAL *g, REAL *const *gradients, const long *gradient_strides) {
    const long count = streams_of(s), length = count * s->block, blocks = blocks_of(s), last = s->layers - 1;
    long widest = 0;
    for (long l = 1; l <= s->layers; l++) widest = s->widths[l] > widest ? s->widths[l] : widest;
    for (long p = 0; p < s->networks; p++) {
        for (long l = 0; l < s->layers; l++) {
            memset(gradients[2 * l] + p * gradient_strides[2 * l], 0, s->widths[l] * s->widths[l + 1] * sizeof(REAL));
            memset(gradients[2 * l + 1] + p * gradient_strides[2 * l + 1], 0, s->widths[l + 1] * sizeof(REAL));
        }
        for (long b = 0; b < blocks; b++) {
            REAL *a = scratch, *other = scratch + widest * length;
            const REAL *x = points + p * s->stride + b * s->widths[0] * s->block;
            REAL *state = states + (p * blocks + b + 1) * states_of(s);
            exchange(s, b * s->block, g + p * count * s->points * s->widths[s->layers], a, 1);
            for (long l = last; l >= 1; l--) {
                const REAL *w = parameters[2 * l] + p * strides[2 * l];
                REAL *of_w = gradients[2 * l] + p * gradient_strides[2 * l];
                REAL *of_b = gradients[2 * l + 1] + p * gradient_strides[2 * l + 1];
                const long inner = s->widths[l], outer = s->widths[l + 1];
                state -= inner * length;
                add_outer(a, state, outer, inner, length, of_w);
                for (long o = 0; o < outer; o++) of_b[o] += sum_of(a + o * length, s->block);
                multiply(w, 1, inner, a, inner, outer, length, other);
                for (long i = 0; i < inner; i++) pull(s, state + i * length, other + i * length);
                REAL *swap = a;
                a = other, other = swap;
            }
            leave(s, a, x, gradients[0] + p * gradient_strides[0], gradients[1] + p * gradient_strides[1]);
        }
    }
}

/* Fields are sums over networks of coefficients, (networks, fields, S, points), times their streams of one output each;
   places, (networks, fields, points), say where in all fields those of a network lie. */
void add_fields(const Shape *s, long fields, const REAL *coefficients, const int64_t *places, const REAL *streams,
                REAL *out) {
    const long count = streams_of(s), m = s->points;
    for (long p = 0; p < s->networks; p++, streams += count * m)
        for (long r = 0; r < fields; r++, places += m, coefficients += count * m)
            for (long k = 0; k < m; k++) {
                REAL sum = 0;
                for (long j = 0; j < count; j++) sum += coefficients[j * m + k] * streams[j * m + k];
                out[places[k]] += sum;
            }
}

/* The gradient with respect to the streams from g, that with respect to the fields. */
void pull_fields(const Shape *s, long fields, const REAL *coefficients, const int64_t *places, const REAL *g,
                 REAL *of_streams) {
    const long count = streams_of(s), m = s->points;
    memset(of_streams, 0, s->networks * count * m * sizeof(REAL));
    for (long p = 0; p < s->networks; p++, of_streams += count * m)
        for (long r = 0; r < fields; r++, places += m, coefficients += count * m)
            for (long j = 0; j < count; j++)
                for (long k = 0; k < m; k++) of_streams[j * m + k] += coefficients[j * m + k] * g[places[k]];
}
