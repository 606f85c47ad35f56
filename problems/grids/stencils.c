/* Stencils and transfers on grids, each in one pass over its vectors; REAL is the type of numbers.

   Vectors are contiguous and lead to one another by (member of a batch, row, column); zeros lie outside of a grid.
   Interior loops are plain so that the compiler makes vectors of them. */

#include <math.h>

typedef REAL real;
#define IN const real *restrict
#define OUT real *restrict

/* One row of `five_points`: above and below are the neighbouring rows, or c with the weight zero. bend, load, rhs and
   w, the weights of columns, may be NULL; constants of the caller, as is `adds`, so that the loop has no branch. */
static inline __attribute__((always_inline)) void row(
    long m, real a, real up, real low, real middle, real constant, IN diagonal, IN bend, IN load, IN w, IN rhs,
    IN factor, int adds, IN c, const real *above, const real *below, OUT to)
{
#define CENTRE(j) \
    (constant + ((diagonal ? diagonal[j] : middle) + (bend ? bend[j] : 0)) * c[j] + (load ? load[j] : 0) - \
     (w ? w[j] : 1) * (up * above[j] + low * below[j]))
#define PUT(j, value) to[j] = (adds ? c[j] : 0) + (rhs ? factor[j] * (rhs[j] - (value)) : (value))
    if (m == 1) {
        PUT(0, CENTRE(0));
        return;
    }
    PUT(0, CENTRE(0) - a * c[1]);
    for (long j = 1; j + 1 < m; j++) PUT(j, CENTRE(j) - a * (c[j - 1] + c[j + 1]));
    PUT(m - 1, CENTRE(m - 1) - a * c[m - 2]);
}

/* out = load + (diagonal + bend) v - scale (sum of neighbours): [-1 2 -1] on one row, the five-point matrix on several;
   or factor times (rhs minus this), where rhs is not NULL, and v plus that, a Jacobi step, where `adds` is set.
   load, bend and the fields of edges may be NULL; without a field the load is `constant`, and the diagonal `middle`.
   across[i] and down[j] weigh the edges within row i and within column j, and `diagonal` is the sum of a node's edges.
   A member of the batch has fields of its own where their stride is 1, and shares one where it is 0. */
static inline __attribute__((always_inline)) void points(
    long members, long rows, long m, real scale, real middle, real constant, IN load, long load_stride, IN bend,
    long bend_stride, IN across, IN down, IN diagonal, long edge_stride, IN rhs, IN factor, int adds, IN v, OUT out)
{
    for (long p = 0; p < members; p++)
        for (long i = 0; i < rows; i++) {
            const long at = i * m, place = p * rows * m + at;
            IN c = v + place;
            IN l = load ? load + p * load_stride * rows * m + at : 0;
            IN b = bend ? bend + p * bend_stride * rows * m + at : 0;
            const real up = i ? scale : 0, low = i + 1 < rows ? scale : 0;
            const real *above = i ? c - m : c, *below = i + 1 < rows ? c + m : c;
#define ROW(a, d, b, l, w, r, f) \
    row(m, a, up, low, middle, constant, d, b, l, w, r, f, adds, c, above, below, out + place)
            if (diagonal) {
                IN d = diagonal + p * edge_stride * rows * m + at;
                IN w = down + p * edge_stride * m;
                const real a = across[p * edge_stride * rows + i];
                if (rhs && b) ROW(a, d, b, 0, w, rhs + place, factor + place);
                else if (rhs) ROW(a, d, 0, 0, w, rhs + place, factor + place);
                else if (b && l) ROW(a, d, b, l, w, 0, 0);
                else if (b) ROW(a, d, b, 0, w, 0, 0);
                else if (l) ROW(a, d, 0, l, w, 0, 0);
                else ROW(a, d, 0, 0, w, 0, 0);
            } else if (rhs && b) ROW(scale, 0, b, 0, 0, rhs + place, factor + place);
            else if (rhs) ROW(scale, 0, 0, 0, 0, rhs + place, factor + place);
            else if (b && l) ROW(scale, 0, b, l, 0, 0, 0);
            else if (b) ROW(scale, 0, b, 0, 0, 0, 0);
            else if (l) ROW(scale, 0, 0, l, 0, 0, 0);
            else ROW(scale, 0, 0, 0, 0, 0, 0);
        }
}

void five_points(long members, long rows, long m, real scale, real middle, real constant, IN load, long load_stride,
                 IN bend, long bend_stride, IN across, IN down, IN diagonal, long edge_stride, IN rhs, IN factor, IN v,
                 OUT out)
{
    points(members, rows, m, scale, middle, constant, load, load_stride, bend, bend_stride, across, down, diagonal,
           edge_stride, rhs, factor, 0, v, out);
}

/* `count` Jacobi steps v + factor (rhs - A v), with factors of their own, to and fro between v and other: the result is
   in v after an even number of steps. */
void relax_five_points(long members, long rows, long m, real scale, real middle, IN bend, long bend_stride, IN across,
                       IN down, IN diagonal, long edge_stride, IN rhs, long count, const real *const *factors, real *v,
                       real *other)
{
    for (long k = 0; k < count; k++) {
        points(members, rows, m, scale, middle, 0, 0, 0, bend, bend_stride, across, down, diagonal, edge_stride, rhs,
               factors[k], 1, v, other);
        real *swap = v;
        v = other, other = swap;
    }
}

/* out = diagonal v - sum over k of (weight_k[i] v[i + step_k] + weight_k[i - step_k] v[i - step_k]), for three links
   whose weights stand with the end of the smaller number, n - step_k of them; all members share them where `has_own`
   is 0; or factor times (rhs minus this), where rhs is not NULL, and v plus that, where `adds` is set. */
static void links_between(long members, long n, long has_own, long k0, long k1, long k2, IN diagonal, IN w0, IN w1,
                          IN w2, IN rhs, IN factor, int adds, IN v, OUT out)
{
    enum { BLOCK = 512 }; /* numbers whose sums stay in the cache between the links */
    const real *links[3] = {w0, w1, w2};
    const long steps[3] = {k0, k1, k2};
    for (long p = 0; p < members; p++)
        for (long first = 0; first < n; first += BLOCK) {
            const long last = first + BLOCK < n ? first + BLOCK : n;
            IN c = v + p * n;
            OUT to = out + p * n;
            IN d = diagonal + has_own * p * n;
            for (long i = first; i < last; i++) to[i] = d[i] * c[i];
            for (int k = 0; k < 3; k++) {
                const long step = steps[k], count = n - step;
                if (count <= 0) continue;
                IN w = links[k] + has_own * p * count;
                const long end = last < count ? last : count, begin = first > step ? first : step;
                for (long i = first; i < end; i++) to[i] -= w[i] * c[i + step];
                for (long i = begin; i < last; i++) to[i] -= w[i - step] * c[i - step];
            }
            IN b = rhs ? rhs + p * n : 0;
            IN f = rhs ? factor + p * n : 0;
            if (rhs && adds)
                for (long i = first; i < last; i++) to[i] = c[i] + f[i] * (b[i] - to[i]);
            else if (rhs)
                for (long i = first; i < last; i++) to[i] = f[i] * (b[i] - to[i]);
        }
}

void linked_points(long members, long n, long has_own, long k0, long k1, long k2, IN diagonal, IN w0, IN w1, IN w2,
                   IN rhs, IN factor, IN v, OUT out)
{
    links_between(members, n, has_own, k0, k1, k2, diagonal, w0, w1, w2, rhs, factor, 0, v, out);
}

/* Jacobi steps as those of `relax_five_points`. */
void relax_linked_points(long members, long n, long has_own, long k0, long k1, long k2, IN diagonal, IN w0, IN w1,
                         IN w2, IN rhs, long count, const real *const *factors, real *v, real *other)
{
    for (long k = 0; k < count; k++) {
        links_between(members, n, has_own, k0, k1, k2, diagonal, w0, w1, w2, rhs, factors[k], 1, v, other);
        real *swap = v;
        v = other, other = swap;
    }
}

/* Interpolation from k to n nodes of an axis: coarse node i is fine node 2 i + first, and a fine node between two
   takes half of both, or half of the one that there is. */
static void spread(IN coarse, OUT fine, long k, long n, long first)
{
    for (long i = 0; i + 1 < k; i++) {
        fine[2 * i + first] = coarse[i];
        fine[2 * i + first + 1] = (real)0.5 * (coarse[i] + coarse[i + 1]);
    }
    fine[2 * k - 2 + first] = coarse[k - 1];
    if (first) fine[0] = (real)0.5 * coarse[0];
    if (2 * k - 1 + first < n) fine[n - 1] = (real)0.5 * coarse[k - 1];
}

static void gather(IN fine, OUT coarse, long k, long n, long first)
{
    const long last = 2 * k - 2 + first, end = last + 1 < n ? k : k - 1;
    for (long i = 1 - first; i < end; i++)
        coarse[i] = fine[2 * i + first] + (real)0.5 * (fine[2 * i + first - 1] + fine[2 * i + first + 1]);
    if (!first) coarse[0] = fine[0] + (n > 1 ? (real)0.5 * fine[1] : 0);
    if (end < k) coarse[k - 1] = fine[last] + (last > 0 ? (real)0.5 * fine[last - 1] : 0);
}

/* Fine values (rows, columns) of coarse ones (coarse_rows, coarse_columns); scratch has room for a fine row. */
void prolong(long rows, long columns, long coarse_rows, long coarse_columns, long top, long left, IN coarse,
             OUT scratch, OUT fine)
{
    const long ck = coarse_columns;
    if (rows == 1) {
        spread(coarse, fine, ck, columns, left);
        return;
    }
    for (long i = 0; i < rows; i++) {
        const long twice = i - top;
        if (twice >= 0 && twice % 2 == 0) {
            spread(coarse + twice / 2 * ck, fine + i * columns, ck, columns, left);
            continue;
        }
        const long above = twice < 0 ? -1 : twice / 2, below = above + 1;
        for (long j = 0; j < ck; j++) {
            real sum = above < 0 ? 0 : coarse[above * ck + j];
            if (below < coarse_rows) sum += coarse[below * ck + j];
            scratch[j] = (real)0.5 * sum;
        }
        spread(scratch, fine + i * columns, ck, columns, left);
    }
}

/* The transpose of `prolong`. */
void restrict_to(long rows, long columns, long coarse_rows, long coarse_columns, long top, long left, IN fine,
                 OUT scratch, OUT coarse)
{
    if (rows == 1) {
        gather(fine, coarse, coarse_columns, columns, left);
        return;
    }
    for (long i = 0; i < coarse_rows; i++) {
        const long at = 2 * i + top;
        IN c = fine + at * columns;
        IN above = c - columns;
        IN below = c + columns;
        if (at > 0 && at + 1 < rows)
            for (long j = 0; j < columns; j++) scratch[j] = c[j] + (real)0.5 * (above[j] + below[j]);
        else if (at > 0)
            for (long j = 0; j < columns; j++) scratch[j] = c[j] + (real)0.5 * above[j];
        else if (at + 1 < rows)
            for (long j = 0; j < columns; j++) scratch[j] = c[j] + (real)0.5 * below[j];
        else
            for (long j = 0; j < columns; j++) scratch[j] = c[j];
        gather(scratch, coarse + i * coarse_columns, coarse_columns, columns, left);
    }
}

/* ------------------------------------------------------------------ areas over linear triangles

   A cell has the triangle of its upper left node, with the edges (dx, dy) that leave it, and that of its lower right
   node, with the edges that enter it; s = h / (2 sqrt(h^2 + dx^2 + dy^2)). x has (rows, m) unknowns, frame one ring
   of values more; row r of cells lies between the rows r and r + 1 with the frame. */

#define ROOT(x) (sizeof(real) == 4 ? (real)sqrtf((float)(x)) : (real)sqrt((double)(x)))

/* Row r with the frame, m + 2 numbers. */
static void framed(long rows, long m, long r, IN frame, IN x, OUT u)
{
    const int inside = r > 0 && r <= rows;
    IN ring = frame + r * (m + 2);
    IN values = inside ? x + (r - 1) * m : ring + 1;
    for (long j = 0; j < m; j++) u[j + 1] = values[j];
    u[0] = ring[0];
    u[m + 1] = ring[m + 1];
}

/* s of both triangles of a row of m + 1 cells between the rows u and d. */
static void slopes(long m, real factor, IN u, IN d, OUT first, OUT second)
{
    for (long j = 0; j < m + 1; j++) {
        const real ax = u[j + 1] - u[j], ay = d[j] - u[j], bx = d[j + 1] - d[j], by = d[j + 1] - u[j + 1];
        first[j] = 1 / ROOT(4 + factor * (ax * ax + ay * ay));
        second[j] = 1 / ROOT(4 + factor * (bx * bx + by * by));
    }
}

/* The gradient of the area of every member, and the sums of 1 / s over all triangles where `sums` is not NULL; scratch
   has room for 8 rows of m + 2 numbers. */
void surface_gradient(long members, long rows, long m, long frame_stride, real h, IN frame, IN x, OUT scratch,
                      OUT out, OUT sums)
{
    const long row = m + 2;
    const real factor = 4 / (h * h);
    real *first = scratch, *second = first + row, *before = second + row, *down = before + row;
    real *lower = down + row, *u = lower + row, *d = u + row, *total = d + row;
    for (long p = 0; p < members; p++) {
        IN ring = frame + p * frame_stride * (rows + 2) * row;
        IN values = x + p * rows * m;
        for (long j = 0; sums && j <= m; j++) total[j] = 0;
        framed(rows, m, 0, ring, values, u);
        for (long r = 0; r <= rows; r++) {
            framed(rows, m, r + 1, ring, values, d);
            slopes(m, factor, u, d, first, second);
            for (long j = 0; sums && j <= m; j++) total[j] += 1 / first[j] + 1 / second[j];
            for (long j = 0; j < m; j++) lower[j] = (first[j + 1] + second[j]) * (d[j + 1] - u[j + 1]);
            if (r) {
                OUT to = out + (p * rows + r - 1) * m;
                for (long j = 0; j < m; j++)
                    to[j] = (first[j] + before[j]) * (u[j + 1] - u[j]) -
                            (first[j + 1] + before[j + 1]) * (u[j + 2] - u[j + 1]) + down[j] - lower[j];
            }
            real *swap = before;
            before = second, second = swap;
            swap = down, down = lower, lower = swap;
            swap = u, u = d, d = swap;
        }
        if (sums) {
            sums[p] = 0;
            for (long j = 0; j <= m; j++) sums[p] += total[j];
        }
    }
}

/* Weights of the edges of a row of cells: along the upper (first triangle) and lower side (second), down the left and
   right one, and across both triangles. */
static void bends(long m, real factor, IN u, IN d, OUT along, OUT under, OUT left, OUT right, OUT slant)
{
    for (long j = 0; j < m + 1; j++) {
        const real ax = u[j + 1] - u[j], ay = d[j] - u[j], bx = d[j + 1] - d[j], by = d[j + 1] - u[j + 1];
        const real s = 1 / ROOT(4 + factor * (ax * ax + ay * ay)), t = 1 / ROOT(4 + factor * (bx * bx + by * by));
        const real a = factor * s * s * s, b = factor * t * t * t;
        along[j] = s - a * ax * (ax + ay);
        left[j] = s - a * ay * (ax + ay);
        under[j] = t - b * bx * (bx + by);
        right[j] = t - b * by * (bx + by);
        slant[j] = a * ax * ay + b * bx * by;
    }
}

/* The Hessian of the area as `linked_points` reads it: edges along rows, along columns and across cells; scratch has
   room for 10 rows of m + 2 numbers. */
void surface_links(long members, long rows, long m, long frame_stride, real h, IN frame, IN x, OUT scratch,
                   OUT diagonal, OUT w0, OUT w1, OUT w2)
{
    const long row = m + 2, n = rows * m;
    const real factor = 4 / (h * h);
    real *along = scratch, *under = along + row, *above = under + row, *left = above + row, *right = left + row;
    real *slant = right + row, *before = slant + row, *down = before + row, *u = down + row, *d = u + row;
    for (long p = 0; p < members; p++) {
        IN ring = frame + p * frame_stride * (rows + 2) * row;
        IN values = x + p * n;
        framed(rows, m, 0, ring, values, u);
        for (long r = 0; r <= rows; r++) {
            framed(rows, m, r + 1, ring, values, d);
            bends(m, factor, u, d, along, under, left, right, slant);
            for (long j = 0; j < m; j++) left[j] = left[j + 1] + right[j];
            if (r) {
                const long at = (r - 1) * m;
                for (long j = 0; j <= m; j++) above[j] += along[j];
                OUT to = diagonal + p * n + at;
                for (long j = 0; j < m; j++)
                    to[j] = above[j] + above[j + 1] + down[j] + left[j] + before[j + 1] + slant[j];
                const long last = r == rows; /* its last node has no edge along the row, and no edge goes down */
                OUT to0 = w0 + p * (n - 1) + at;
                for (long j = 0; j + 1 < m; j++) to0[j] = above[j + 1];
                if (!last) to0[m - 1] = 0;
                OUT to2 = w2 + p * (n - m + 1) + at;
                to2[0] = 0;
                if (!last) {
                    OUT to1 = w1 + p * (n - m) + at;
                    for (long j = 0; j < m; j++) to1[j] = left[j];
                    for (long j = 1; j < m; j++) to2[j] = slant[j];
                }
            }
            real *swap = above;
            above = under, under = swap;
            swap = down, down = left, left = swap;
            swap = before, before = slant, slant = swap;
            swap = u, u = d, d = swap;
        }
    }
}
