// Fake quantization: one source for the GPU (NVRTC, no headers) and for its CPU twin (any C++17 compiler).
//
// A kernel is the program of one block, in phases: THREADS(t) runs a phase for every thread, SYNC ends it. On the GPU each
// thread runs its own share of a phase; on the CPU one thread plays them all in turn. Arithmetic is float32 and every operation
// rounds once (no contraction into fused multiply-adds, no reciprocals), so both agree with the plain-torch reference bit for bit.
// A block works on one row: an output channel of a weight, or a token of an activation.

constexpr int MAX_THREADS = 256;

#ifdef __CUDACC__
#define INLINE static __device__ __forceinline__
#define THREADS(t) for (int t = threadIdx.x, once = 1; once; once = 0)
#define SYNC __syncthreads()
#define KERNEL(name, program, ...)                         \
    extern "C" __global__ void name(__VA_ARGS__) {         \
        __shared__ float shared[2 * MAX_THREADS];          \
        const int block = blockIdx.x, threads = blockDim.x; \
        program;                                           \
    }
#else
#include <cmath>
#include <cstring>
#define INLINE static inline
#define THREADS(t) for (int t = 0; t < threads; t++)
#define SYNC (void)0
// The twin's entry takes the numbers of blocks and of threads in front of the kernel's own parameters.
#define KERNEL(name, program, ...)                                        \
    extern "C" void name(int blocks, int threads, __VA_ARGS__) {          \
        float shared[2 * MAX_THREADS];                                    \
        for (int block = 0; block < blocks; block++) { program; }         \
    }
#endif

// ---- 16-bit floats: stored as bits, computed as float32, rounded to nearest even ----

struct Half { unsigned short bits; };
struct Bfloat { unsigned short bits; };

INLINE float as_float(unsigned bits) {
#ifdef __CUDACC__
    return __uint_as_float(bits);
#else
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
#endif
}

INLINE unsigned as_bits(float x) {
#ifdef __CUDACC__
    return __float_as_uint(x);
#else
    unsigned bits;
    std::memcpy(&bits, &x, 4);
    return bits;
#endif
}

INLINE float load(float x) { return x; }
INLINE float load(Bfloat x) { return as_float((unsigned)x.bits << 16); }
INLINE float load(Half x) {
#ifdef __CUDACC__
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
#else
    const unsigned sign = (unsigned)(x.bits & 0x8000u) << 16, rest = x.bits & 0x7fffu;
    if (rest >= 0x7c00u) return as_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);  // infinity, NaN
    if (rest < 0x0400u) return as_float(sign | as_bits((float)rest * 5.9604644775390625e-8f));  // subnormal: times 2^-24
    return as_float(sign | ((rest << 13) + 0x38000000u));  // exponent bias 15 => 127
#endif
}

INLINE void store(float* p, float x) { *p = x; }
INLINE void store(Bfloat* p, float x) {
    const unsigned bits = as_bits(x);
    p->bits = x != x ? 0x7fc0 : (unsigned short)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
INLINE void store(Half* p, float x) {
#ifdef __CUDACC__
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(p->bits) : "f"(x));
#else
    const unsigned bits = as_bits(x), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
    unsigned h;
    if (rest > 0x7f800000u) h = 0x7e00u;                                    // NaN
    else if (rest >= 0x477ff000u) h = 0x7c00u;                              // rounds to 65520 or more: infinity
    else if (rest < 0x38800000u) h = as_bits(as_float(rest) + 0.5f) - 0x3f000000u;  // subnormal: 0.5 has an ulp of 2^-24
    else h = (rest - 0x38000000u + 0xfffu + (rest >> 13 & 1u)) >> 13;
    p->bits = (unsigned short)(sign | h);
#endif
}

// ---- the arithmetic ----

INLINE float nearest(float x) {
#ifdef __CUDACC__
    return rintf(x);
#else
    return std::nearbyintf(x);
#endif
}

// Comparisons that are false for NaN let it through, as torch.clamp does.
INLINE float clamp(float x, float low, float high) { return x < low ? low : (x > high ? high : x); }
INLINE float smaller(float a, float b) { return a < b || a != a ? a : b; }
INLINE float larger(float a, float b) { return a > b || a != a ? a : b; }

// w^ = (clamp(round(w / s) + z, 0, levels) - z) s
INLINE float affine(float x, float scale, float zero, float levels) {
    return (clamp(nearest(x / scale) + zero, 0.0f, levels) - zero) * scale;
}

// ---- programs ----

// Scale and zero point per group of ``group`` values of a row; x, out [rows, n]; scale, zero [rows, ceil(n / group)].
template <typename T>
INLINE void affine_row(const T* x, const float* scale, const float* zero, T* out, long long n, long long group, float levels,
                       int block, int threads) {
    const long long first = block * n, groups = (n + group - 1) / group;
    THREADS(t) for (long long i = t; i < n; i += threads) {
        const long long g = block * groups + i / group;
        store(out + first + i, affine(load(x[first + i]), scale[g], zero[g], levels));
    }
}

// Straight-through backward: the gradient passes where the value lies in the range.
template <typename T>
INLINE void affine_backward_row(const T* gradient, const T* x, const float* scale, const float* zero, T* out, long long n,
                                long long group, float levels, int block, int threads) {
    const long long first = block * n, groups = (n + group - 1) / group;
    THREADS(t) for (long long i = t; i < n; i += threads) {
        const long long g = block * groups + i / group;
        const float q = nearest(load(x[first + i]) / scale[g]) + zero[g];
        store(out + first + i, q >= 0.0f && q <= levels ? load(gradient[first + i]) : 0.0f);
    }
}

// Packed codes => values. Code i takes the bits i * bits ... of the stream; table [groups, 2^bits], or one line for all (``lines`` 1).
// A row of n values is n / inner channels of ``inner`` kernel positions. In memory, rows lie ``pitch`` values apart, channels ``across``
// and positions ``along``: a slice of a parameter's channels, or the order in which convolutions read, is written in place.
template <typename T>
INLINE void lookup_row(const unsigned char* codes, long long num_bytes, const float* table, T* out, long long n, long long group,
                       int bits, long long lines, long long pitch, long long inner, long long across, long long along, int block,
                       int threads, float* shared) {
    const long long first = block * n, groups = (n + group - 1) / group;
    const int size = 1 << bits;
    const bool staged = lines == 1 || groups == 1;  // the whole row uses one line
    const bool channels_last = inner > 1 && across < along;
    const float* line = table + (lines == 1 ? 0 : block * groups * size);
    const unsigned positions = (unsigned)inner, channels = (unsigned)(n / inner);
    THREADS(t) if (staged) for (int k = t; k < size; k += threads) shared[k] = line[k];
    SYNC;
    THREADS(t) for (unsigned j = t; j < n; j += threads) {  // in the order of memory, so that neighbors write to neighbors
        const unsigned channel = channels_last ? j % channels : (inner == 1 ? j : j / positions);
        const unsigned position = channels_last ? j / channels : (inner == 1 ? 0u : j % positions);
        const long long i = (long long)channel * inner + position;
        const long long bit = (first + i) * bits, byte = bit >> 3;
        const unsigned next = byte + 1 < num_bytes ? codes[byte + 1] : 0u;
        const unsigned code = ((codes[byte] | next << 8) >> (bit & 7)) & (size - 1);
        store(out + block * pitch + channel * across + position * along, staged ? shared[code] : line[i / group * size + code]);
    }
}

// A scale and a zero point per token, from its smallest and largest value (``from_zero``: from zero to the largest).
template <typename T>
INLINE void token_row(const T* x, T* out, long long n, float levels, int from_zero, int block, int threads, float* shared) {
    const T* row = x + block * n;
    float *low = shared, *high = shared + MAX_THREADS;
    THREADS(t) {
        float a = load(row[t < n ? t : 0]), b = a;
        for (long long i = t; i < n; i += threads) {
            const float value = load(row[i]);
            a = smaller(value, a), b = larger(value, b);
        }
        low[t] = a, high[t] = b;
    }
    SYNC;
    for (int half = threads / 2; half > 0; half /= 2) {  // threads is a power of two
        THREADS(t) if (t < half) {
            low[t] = smaller(low[t + half], low[t]);
            high[t] = larger(high[t + half], high[t]);
        }
        SYNC;
    }
    const float start = from_zero ? 0.0f : low[0];
    const float step = (high[0] - start) / levels;
    const float scale = step < 1e-8f ? 1e-8f : step;
    const float zero = nearest(-start / scale);
    THREADS(t) for (long long i = t; i < n; i += threads) store(out + block * n + i, affine(load(row[i]), scale, zero, levels));
}

#define FOR(T, suffix)                                                                                                        \
    KERNEL(affine_##suffix, affine_row(x, scale, zero, out, n, group, levels, block, threads); (void)shared, const T* x,      \
           const float* scale, const float* zero, T* out, long long n, long long group, float levels)                         \
    KERNEL(affine_backward_##suffix,                                                                                          \
           affine_backward_row(gradient, x, scale, zero, out, n, group, levels, block, threads);                              \
           (void)shared, const T* gradient, const T* x, const float* scale, const float* zero, T* out, long long n,           \
           long long group, float levels)                                                                                     \
    KERNEL(lookup_##suffix,                                                                                                   \
           lookup_row(codes, num_bytes, table, out, n, group, bits, lines, pitch, inner, across, along, block, threads,       \
                      shared),                                                                                                \
           const unsigned char* codes, long long num_bytes, const float* table, T* out, long long n, long long group,         \
           int bits, long long lines, long long pitch, long long inner, long long across, long long along)                    \
    KERNEL(tokens_##suffix, token_row(x, out, n, levels, from_zero, block, threads, shared), const T* x, T* out, long long n, \
           float levels, int from_zero)

FOR(float, f32)
FOR(Half, f16)
FOR(Bfloat, bf16)
