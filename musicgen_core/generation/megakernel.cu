// Megakernel: one generation step of one sample through all layers, as a single persistent cooperative kernel.
//
// The batch has two rows of activations, the sample under its text and under the null condition. A step then does a
// handful of operations per weight, so that its time is that of reading all weights once from memory (HBM). Run as
// hundreds of small kernels, it takes a third longer: each kernel drains before the next starts, and memory idles.
//
// Layout. One thread block per SM stays resident for the whole step, with WARPS consumer warps and one producer warp:
//
//   producer   streams weights into a ring of STAGES buffers in shared memory, by bulk copies (cp.async.bulk) that
//              signal mbarriers. Which rows of which matrix this block needs is independent of the activations, so the
//              producer runs ahead across layers and grid barriers, and memory never idles. It also prefetches this
//              block's keys and values into the L2 cache.
//   consumers  walk through the matrices in order. For each: compute its input (layer norm or attention), wait for the
//              ring, multiply on the Tensor Cores, store this block's part of the output, grid barrier.
//
// Partition. Of each matrix [N, K] block b owns the rows from N b / blocks to N (b + 1) / blocks, over the whole
// reduction, so that no sum crosses blocks. A row is cut into slices of D weights (one; FC2 four), and a stage of the
// ring holds SLICES slices. In mma.m16n8k16 slices are the M dimension and activation rows the N dimension. Each
// consumer warp reduces an eighth of D, and the eight partial sums are added through shared memory in a fixed order:
// equal inputs give equal bits. Self-attention is split in two per head (flash-decoding); readers combine the parts.
//
// What crosses blocks (x, q, the attentions' outputs, z) is some KB in global memory, read past the L1 cache after a
// grid barrier; a layer has eight. Each block normalizes both rows itself, which is cheaper than another barrier.
//
// Precision: activations are rounded to bf16 for weights in bf16, and to fp16 for weights in int8; sums are fp32.
//
// Compile-time sizes (-D): D, FFN and WIDTH, of the residual stream, the feed-forward layer and all codebooks' logits;
// BYTES of a weight (2: bf16, 1: int8 with a scale per row); STAGES of the ring; WARPS, consumer warps; RESULTS, the
// most slices of a matrix that a block owns. Everything is in one file, because NVRTC compiles one.

typedef unsigned int u32;
typedef unsigned short u16;  // of a bf16 or fp16
typedef unsigned long long u64;

constexpr int THREADS = 32 * WARPS;             // of the consumer warps; one more warp is the producer
constexpr int HEAD = 64, HEADS = D / HEAD, SPLITS = 2;
constexpr int SLICES = 16 / BYTES;              // of D weights each, in a stage
constexpr int STRIDE = D * BYTES + 64;          // of a slice: neighbours lie in different banks of shared memory
constexpr int STAGE_BYTES = SLICES * STRIDE;
static_assert(WARPS == 8 && 2 * RESULTS == THREADS, "four warps normalize a row, and a thread adds one result");

// One of the two bf16 in a word.
__device__ float bf16_at(u32 word, int which) {
    return __uint_as_float(which % 2 ? word & 0xffff0000u : word << 16);
}
__device__ u16 to_bf16(float value) {
    u16 half;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return half;
}
// To the precision of activations.
__device__ u16 to_half(float value) {
    if (BYTES == 2) return to_bf16(value);
    u16 half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return half;
}
__device__ u32 pair(float low, float high) { return to_half(low) | (u32)to_half(high) << 16; }

// ---- Grid barrier. What other thread blocks stored before it is read past the L1 cache (ld.cg).

__device__ float read(const float* at) { return __ldcg(at); }
__device__ float4 read(const float4* at) { return __ldcg(at); }
__device__ uint4 read(const uint4* at) { return __ldcg(at); }

__device__ void sync_consumers() { asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory"); }

__device__ void grid_barrier(u32* arrived, u32& barriers_passed) {
    sync_consumers();
    if (threadIdx.x == 0) {
        const u32 all = ++barriers_passed * gridDim.x;
        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(arrived) : "memory");
        u32 seen;
        do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(arrived) : "memory");
        while (seen < all);
    }
    sync_consumers();
}

// ---- The ring of stages between the producer and the consumers.

struct Ring {
    char* stages;
    u32 full, empty;  // shared-memory addresses of STAGES mbarriers each
    int stage;
    u32 parity;

    __device__ void next() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
    __device__ static void wait(u32 barrier, u32 parity) {
        u32 done;
        do asm volatile(
                "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
        while (!done);
    }
};

__device__ int first_row(int rows, int block) { return (int)((long long)rows * block / (int)gridDim.x); }

// The matrices of a layer in the order of their use, and at the end the output layers of all codebooks.
enum Matrix { QKV, OUT, TEXT_Q, TEXT_OUT, FC1, FC2, LOGITS };

__device__ Matrix matrix_of(int number, int layers) { return number == 6 * layers ? LOGITS : (Matrix)(number % 6); }
__device__ int rows_of(Matrix matrix) {
    return matrix == QKV ? 3 * D : matrix == FC1 ? FFN : matrix == LOGITS ? WIDTH : D;
}
__device__ int width_of(Matrix matrix) { return matrix == FC2 ? FFN : D; }

// Prefetch rows [HEAD] of a key-value cache into the L2 cache.
__device__ void prefetch(const u16* from, int rows) {
    if (rows > 0)
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(rows * HEAD * 2) : "memory");
}

// The producer warp: lane i copies slice i of a stage. `ahead` is called by one lane before each layer.
template <typename Ahead> __device__ void stream_weights(Ring ring, const u64* weights, int layers, Ahead ahead) {
    const int lane = threadIdx.x % 32;
    Ring last = ring;
    bool is_first = true;
    for (int number = 0; number <= 6 * layers; number++) {
        const Matrix matrix = matrix_of(number, layers);
        if (matrix == QKV && lane == 31) ahead(number / 6);
        const int rows = rows_of(matrix), slices_per_row = width_of(matrix) / D;
        const int begin = first_row(rows, blockIdx.x), end = first_row(rows, blockIdx.x + 1);
        const char* from = (const char*)weights[number] + ((size_t)begin * slices_per_row + lane) * D * BYTES;
        for (int slices = (end - begin) * slices_per_row; slices > 0; slices -= SLICES) {
            const u32 full = ring.full + 8 * ring.stage;
            const u32 to = (u32)__cvta_generic_to_shared(ring.stages + ring.stage * STAGE_BYTES + lane * STRIDE);
            Ring::wait(ring.empty + 8 * ring.stage, ring.parity ^ 1);
            // One stage in flight: accesses of the consumers would wait behind a longer queue.
            if (!is_first) Ring::wait(last.full + 8 * last.stage, last.parity);
            is_first = false;
            last = ring;
            if (lane == 0)
                asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                             ::"r"(full), "r"(min(slices, SLICES) * D * BYTES) : "memory");
            __syncwarp();
            if (lane < min(slices, SLICES))
                asm volatile(
                    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                    ::"r"(to), "l"(from), "n"(D * BYTES), "r"(full) : "memory");
            from += (size_t)SLICES * D * BYTES;
            ring.next();
        }
    }
}

// ---- GEMM on the Tensor Cores: mma.m16n8k16 multiplies 16 slices of weights (bf16: 8, and 8 of zeros) with 8 columns:
// the parts of D entries of the two activation rows. Each warp reduces an eighth of D; four lanes take 64 entries at a
// time, in any order that is the same for weights and activations.

constexpr int BLOCKS = D / WARPS / 64;

struct Activations {
    u32 pairs[BLOCKS][8];  // of the MMA column lane / 4
    float sum;             // for int8: over this warp's eighth of that column
};

// rows [2, width]
template <bool SHARED> __device__ void load_activations(Activations& x, const u16* rows, int width) {
    const int lane = threadIdx.x % 32, row = lane / 4 % 2, part = lane / 8;
    const uint4* from = (const uint4*)(rows + row * width + part * D + threadIdx.x / 32 * (D / WARPS));
    const bool mask = part < width / D;
    x.sum = 0;
#pragma unroll
    for (int block = 0; block < BLOCKS; block++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint4* at = from + 8 * block + (BYTES == 2 ? lane % 4 + 4 * i : lane % 4 * 2 + i);
            const uint4 eight = !mask ? uint4{0, 0, 0, 0} : SHARED ? *at : read(at);
            const u32 pairs[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
            for (int j = 0; j < 4; j++) {
                x.pairs[block][4 * i + j] = pairs[j];
                if (BYTES == 1)
                    asm("{ .reg .f16 a, b; .reg .f32 c, d; mov.b32 {a, b}, %1; cvt.f32.f16 c, a; cvt.f32.f16 d, b;"
                        "add.f32 c, c, d; add.f32 %0, %0, c; }" : "+f"(x.sum) : "r"(pairs[j]));
            }
        }
    if (BYTES == 1) {
        x.sum += __shfl_xor_sync(~0u, x.sum, 1);
        x.sum += __shfl_xor_sync(~0u, x.sum, 2);
    }
}

constexpr float OFFSET = BYTES == 2 ? 0 : 1024 + 128;  // that every multiplied int8 weight is too large by

// This lane's eight pairs of 64 weights of a slice. int8 becomes fp16 by one byte permutation: in fp16, 0x6400 is 1024,
// and with a byte as the low half 1024 + byte. The offset is subtracted from the sums.
__device__ void load_weights(const char* at, u32 (&pairs)[8]) {
    const uint4 first = *(const uint4*)at;
    if (BYTES == 2) {
        const uint4 second = *(const uint4*)(at + 64);
        pairs[0] = first.x, pairs[1] = first.y, pairs[2] = first.z, pairs[3] = first.w;
        pairs[4] = second.x, pairs[5] = second.y, pairs[6] = second.z, pairs[7] = second.w;
    } else {
        const u32 fours[4] = {first.x, first.y, first.z, first.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u32 positive = fours[i] ^ 0x80808080u;  // 128 more
            pairs[2 * i] = __byte_perm(positive, 0x64646464u, 0x4140);
            pairs[2 * i + 1] = __byte_perm(positive, 0x64646464u, 0x4342);
        }
    }
}

// sums [16, 8] += the i-th 16 of 64 weights of each slice (a: the first eight slices, b: the others) times x.
#define MMA(TYPE, sums, a, b, x, i)                                                                                   \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 "                                                \
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                             \
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                                                  \
        : "r"(a[2 * i]), "r"(b[2 * i]), "r"(a[2 * i + 1]), "r"(b[2 * i + 1]), "r"(x[2 * i]), "r"(x[2 * i + 1]))

// Stores in results [WARPS, RESULTS, 2] each warp's partial sums of this block's slices of a matrix times x.
__device__ void multiply(Ring& ring, const Activations& x, int slices, int slices_per_row, float* results) {
    const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, lane = threadIdx.x % 4;
    float2* own = (float2*)results + warp * RESULTS + group;
    const int part = group % slices_per_row;  // of x that these slices multiply, and whose columns these lanes hold
    const float offset_sums[2] = {OFFSET * __shfl_sync(~0u, x.sum, 8 * part),
                                  OFFSET * __shfl_sync(~0u, x.sum, 8 * part + 4)};
    for (int begin = 0; begin < slices; begin += SLICES, ring.next()) {
        Ring::wait(ring.full + 8 * ring.stage, ring.parity);
        const char* of_group = ring.stages + ring.stage * STAGE_BYTES + group * STRIDE;
        const char* from = of_group + warp * (D / WARPS) * BYTES + lane * 16;
        float sums[4][4] = {};
#pragma unroll
        for (int block = 0; block < BLOCKS; block++) {
            u32 pairs[8], others[8] = {};
            load_weights(from + block * 64 * BYTES, pairs);
            if (SLICES > 8) load_weights(from + 8 * STRIDE + block * 64 * BYTES, others);
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (BYTES == 2) MMA("bf16", sums[i], pairs, others, x.pairs[block], i);
                else MMA("f16", sums[i], pairs, others, x.pairs[block], i);
        }
        __syncwarp();
        if (threadIdx.x % 32 == 0)
            asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(ring.empty + 8 * ring.stage) : "memory");
        if (lane == part)
#pragma unroll
            for (int half = 0; half < 2 * SLICES / 8; half += 2) {
                const auto sum = [&](int i) { return (sums[0][i] + sums[1][i]) + (sums[2][i] + sums[3][i]); };
                if (begin + group + 4 * half < slices)
                    own[begin + 4 * half] = {sum(half) - offset_sums[0], sum(half + 1) - offset_sums[1]};
            }
    }
}

// ---- Inputs of the GEMMs: layer norm, and the combined splits of self-attention.

constexpr int LOADS = D / 512;  // 16-byte loads of a thread where four warps read a row

// A thread's part of a norm's weights and biases [2, D], loaded before the grid barrier that it would wait for.
struct Norm {
    uint2 weights[LOADS], biases[LOADS];
    __device__ void load(const u16* norm) {
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
            weights[i] = ((const uint2*)norm)[threadIdx.x % 128 + 128 * i];
            biases[i] = ((const uint2*)(norm + D))[threadIdx.x % 128 + 128 * i];
        }
    }
};

// y = layer norm of x [2, D], four warps per row.
__device__ void normalize(const float* x, const Norm& norm, u16* y, float* scratch) {
    const int row = threadIdx.x / 128, within = threadIdx.x % 128, warp = threadIdx.x / 32;
    float values[LOADS][4], sum = 0;
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        const float4 four = read((const float4*)(x + row * D) + within + 128 * i);
        values[i][0] = four.x, values[i][1] = four.y, values[i][2] = four.z, values[i][3] = four.w;
        sum += (four.x + four.y) + (four.z + four.w);
    }
    const auto mean_over_row = [&](float* warp_sums) {
#pragma unroll
        for (int away = 16; away > 0; away /= 2) sum += __shfl_xor_sync(~0u, sum, away);
        if (threadIdx.x % 32 == 0) warp_sums[warp] = sum;
        sync_consumers();
        const float* sums = warp_sums + row * 4;
        return ((sums[0] + sums[1]) + (sums[2] + sums[3])) / D;
    };
    const float mean = mean_over_row(scratch);
    sum = 0;
#pragma unroll
    for (int i = 0; i < LOADS; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            values[i][j] -= mean;
            sum += values[i][j] * values[i][j];
        }
    const float scale = rsqrtf(mean_over_row(scratch + WARPS) + 1e-5f);  // nn.LayerNorm's epsilon
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        const u32 weights[2] = {norm.weights[i].x, norm.weights[i].y};
        const u32 biases[2] = {norm.biases[i].x, norm.biases[i].y};
        float out[4];
#pragma unroll
        for (int j = 0; j < 4; j++)
            out[j] = values[i][j] * scale * bf16_at(weights[j / 2], j) + bf16_at(biases[j / 2], j);
        ((uint2*)(y + row * D))[within + 128 * i] = {pair(out[0], out[1]), pair(out[2], out[3])};
    }
    sync_consumers();
}

// y = self-attention, from its splits' softmax states: numerators [2 HEADS, SPLITS, HEAD], stats [2 HEADS, SPLITS, 2].
__device__ void combine_splits(const float* numerators, const float* stats, u16* y) {
#pragma unroll
    for (int i = threadIdx.x; i < 2 * D / 4; i += THREADS) {  // four entries
        const int first = i / (HEAD / 4) * SPLITS, within = i % (HEAD / 4);
        const float4 both = read((const float4*)stats + first / 2);
        const float4 a = read((const float4*)numerators + first * (HEAD / 4) + within);
        const float4 b = read((const float4*)numerators + (first + 1) * (HEAD / 4) + within);
        const float largest = fmaxf(both.x, both.z), u = __expf(both.x - largest), v = __expf(both.z - largest);
        const float scale = 1 / (u * both.y + v * both.w);
        const float out[4] = {u * a.x + v * b.x, u * a.y + v * b.y, u * a.z + v * b.z, u * a.w + v * b.w};
        ((uint2*)y)[i] = {pair(out[0] * scale, out[1] * scale), pair(out[2] * scale, out[3] * scale)};
    }
    sync_consumers();
}

// ---- Attention of one query [HEAD] to keys and values [·, HEAD], by all consumer warps: eight lanes per key.

constexpr int KEYS_PER_GROUP = 6, GROUPS = THREADS / 8;

struct KeyValueTile {
    uint4 keys[KEYS_PER_GROUP], values[KEYS_PER_GROUP];
};

struct KeyValues {
    const u16 *keys, *values;
    int begin, end;

    __device__ int index(int start, int i) const { return start + threadIdx.x / 8 + GROUPS * i; }
    __device__ void load(KeyValueTile& pairs, int start) const {
#pragma unroll
        for (int i = 0; i < KEYS_PER_GROUP; i++) load(pairs, start, i);
    }
    __device__ void load(KeyValueTile& pairs, int start, int i) const {
        const size_t at = (size_t)max(min(index(start, i), end - 1), 0) * HEAD + 8 * (threadIdx.x % 8);
        pairs.keys[i] = read((const uint4*)(keys + at));
        pairs.values[i] = read((const uint4*)(values + at));
    }
};

// The state of the online softmax over the keys that a lane has seen, for its eight entries of a head: the largest
// score, the sum of exp(score - largest), and that of exp(score - largest) * value.
struct SoftmaxState {
    float largest, denominator, numerator[8];
};

// Stores a split's softmax state in numerator [HEAD] and stats [2], or the attention in `whole` if that is given.
// `first` holds the beginning of `cache`, loaded before the position `newest` was stored.
__device__ void attend(const float* q, const KeyValues& cache, KeyValueTile& first, int newest, float* scratch,
                       float* numerator, float* stats, u16* whole) {
    const int lane = threadIdx.x % 8;
    const float4 low = read((const float4*)q + 2 * lane), high = read((const float4*)q + 2 * lane + 1);
#pragma unroll
    for (int i = 0; i < KEYS_PER_GROUP; i++)
        if (cache.index(cache.begin, i) == newest) cache.load(first, cache.begin, i);
    const float query[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    static_assert(HEAD == 64, "1 / sqrt(64) is 1 / 8");
    SoftmaxState state = {-1e30f, 0, {}};  // finite: a lane may have no key
    for (int start = cache.begin; start < cache.end; start += KEYS_PER_GROUP * GROUPS) {
        KeyValueTile next;
        cache.load(next, start + KEYS_PER_GROUP * GROUPS);
        float score[KEYS_PER_GROUP], new_largest = state.largest;
#pragma unroll
        for (int i = 0; i < KEYS_PER_GROUP; i++) {
            const u32 pairs[4] = {first.keys[i].x, first.keys[i].y, first.keys[i].z, first.keys[i].w};
            score[i] = 0;
#pragma unroll
            for (int j = 0; j < 8; j++) score[i] += query[j] * bf16_at(pairs[j / 2], j);
#pragma unroll
            for (int away = 4; away > 0; away /= 2) score[i] += __shfl_xor_sync(~0u, score[i], away);
            score[i] = cache.index(start, i) < cache.end ? score[i] * 0.125f : -2e30f;
            new_largest = fmaxf(new_largest, score[i]);
        }
        const float rescale = __expf(state.largest - new_largest);
        state.largest = new_largest;
        state.denominator *= rescale;
#pragma unroll
        for (int j = 0; j < 8; j++) state.numerator[j] *= rescale;
#pragma unroll
        for (int i = 0; i < KEYS_PER_GROUP; i++) {
            const float part = __expf(score[i] - new_largest);
            const u32 pairs[4] = {first.values[i].x, first.values[i].y, first.values[i].z, first.values[i].w};
            state.denominator += part;
#pragma unroll
            for (int j = 0; j < 8; j++) state.numerator[j] += part * bf16_at(pairs[j / 2], j);
        }
        first = next;
    }
#pragma unroll
    for (int away = 8; away < 32; away *= 2) {
        const float theirs = __shfl_xor_sync(~0u, state.largest, away), new_largest = fmaxf(state.largest, theirs);
        const float own = __expf(state.largest - new_largest), other = __expf(theirs - new_largest);
        state.largest = new_largest;
        state.denominator = state.denominator * own + __shfl_xor_sync(~0u, state.denominator, away) * other;
#pragma unroll
        for (int i = 0; i < 8; i++)
            state.numerator[i] = state.numerator[i] * own + __shfl_xor_sync(~0u, state.numerator[i], away) * other;
    }
    SoftmaxState* states = (SoftmaxState*)scratch;  // [WARPS, 8]
    if (threadIdx.x % 32 < 8) states[threadIdx.x / 32 * 8 + lane] = state;
    sync_consumers();
    if (threadIdx.x < HEAD) {
        const int eighth = threadIdx.x / 8;
        float largest = -1e30f, denominator = 0, sum = 0;
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) largest = fmaxf(largest, states[warp * 8 + eighth].largest);
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) {
            const float part = __expf(states[warp * 8 + eighth].largest - largest);
            denominator += part * states[warp * 8 + eighth].denominator;
            sum += part * states[warp * 8 + eighth].numerator[lane];
        }
        if (whole) whole[threadIdx.x] = to_half(sum / fmaxf(denominator, 1));  // 0 without text
        else numerator[threadIdx.x] = sum;
        if (!whole && threadIdx.x == 0) stats[0] = largest, stats[1] = denominator;
    }
    sync_consumers();
}

// ---- The step.
//
// weights [6 layers + 1]: addresses of the matrices in the order of their use.
// scales fp32: one per row of int8 matrices, one matrix after the other.
// norms bf16 [3 layers + 1, 2, D]: weights and biases.
// x fp32 [2, D]: the residual stream, updated in place.
// caches bf16 [layers, 2, 2, HEADS, positions, HEAD]: keys and values; those of `position` are added.
// text bf16 [layers, 2, 2, HEADS, max_text_length, HEAD]: keys and values, of which the first text_lengths [2] count.
// logits fp32 [2, WIDTH]: the output.
// arrived [2]: counters of the grid barrier, zero before and after.
// Scratch: q fp32 [2, D], attended [2, D], numerators and stats (see `combine_splits`), z [2, FFN].
extern "C" __global__ void __launch_bounds__(THREADS + 32, 1) megakernel(
    const u64* weights, const float* scales, const u16* norms, float* x, u16* caches, const u16* text,
    const int* text_lengths, const long long* position, float* logits, float* q, u16* attended,
    float* numerators, float* stats, u16* z, u32* arrived, int layers, int positions, int max_text_length) {
    extern __shared__ __align__(128) char shared[];
    u16* y = (u16*)(shared + STAGES * STAGE_BYTES);      // [2, D]
    float* scratch = (float*)(y + 2 * D);                // [WARPS, 8] softmax states
    float* results = scratch + WARPS * 8 * 10;           // [WARPS, RESULTS, 2]
    u64* barriers = (u64*)(results + 2 * WARPS * RESULTS);
    const u32 full = (u32)__cvta_generic_to_shared(barriers), empty = (u32)__cvta_generic_to_shared(barriers + STAGES);
    Ring ring = {shared, full, empty, 0, 0};
    if (threadIdx.x == 0)
        for (int stage = 0; stage < STAGES; stage++) {
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(ring.full + 8 * stage) : "memory");
            asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;"
                         ::"r"(ring.empty + 8 * stage), "n"(WARPS) : "memory");
        }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();

    const int at = (int)*position, half = (at + 1 + SPLITS - 1) / SPLITS;
    const int counts[2] = {text_lengths[0], text_lengths[1]};
    const auto units_of = [](Matrix matrix) { return 2 * HEADS * (matrix == OUT ? SPLITS : 1); };
    const auto cache_of = [&](Matrix matrix, int layer, int unit) {
        const int head = matrix == OUT ? unit / SPLITS : unit;
        const int of_head = (matrix == OUT ? positions : max_text_length) * HEAD;
        const u16* keys = (matrix == OUT ? caches : text) + ((size_t)layer * 4 * HEADS + head) * of_head;
        const int begin = matrix == OUT ? unit % SPLITS * half : 0;
        const int end = matrix == OUT ? min(at + 1, begin + half) : head < HEADS ? counts[0] : counts[1];
        return KeyValues{keys, keys + (size_t)2 * HEADS * of_head, begin, end};
    };
    if (threadIdx.x >= THREADS) {
        stream_weights(ring, weights, layers, [&](int layer) {  // and prefetch the keys and values of its attention
            for (Matrix matrix : {OUT, TEXT_OUT})
                if (blockIdx.x < units_of(matrix)) {
                    const KeyValues cache = cache_of(matrix, layer, blockIdx.x);
                    const int known = min(cache.end, matrix == OUT ? at : cache.end) - cache.begin;
                    prefetch(cache.keys + cache.begin * HEAD, known);
                    prefetch(cache.values + cache.begin * HEAD, known);
                }
        });
        return;
    }

    u32 barriers_passed = 0;
    Activations activations;
    Norm norm;
    KeyValueTile pairs;
    norm.load(norms);
    // One loop over all matrices, which differ in their inputs and in where the output goes.
    for (int number = 0; number <= 6 * layers; number++) {
        const Matrix matrix = matrix_of(number, layers);
        if (matrix == OUT || matrix == TEXT_OUT) {
            for (int unit = blockIdx.x; unit < units_of(matrix); unit += gridDim.x) {
                const KeyValues cache = cache_of(matrix, number / 6, unit);
                const int head = matrix == OUT ? unit / SPLITS : unit;
                if (unit != blockIdx.x) cache.load(pairs, cache.begin);
                attend(q + head * HEAD, cache, pairs, matrix == OUT ? at : -1, scratch, numerators + unit * HEAD,
                       stats + 2 * unit, matrix == OUT ? nullptr : attended + head * HEAD);
            }
            grid_barrier(arrived, barriers_passed);
            if (matrix == OUT) combine_splits(numerators, stats, y);
        } else if (matrix != FC2) {
            normalize(x, norm, y, scratch);
        }
        if (matrix == FC2 || matrix == TEXT_OUT)
            load_activations<false>(activations, matrix == FC2 ? z : attended, width_of(matrix));
        else load_activations<true>(activations, y, D);

        const int begin = first_row(rows_of(matrix), blockIdx.x), slices_per_row = width_of(matrix) / D;
        const int count = first_row(rows_of(matrix), blockIdx.x + 1) - begin;
        const int n = begin + threadIdx.x / 2, row = threadIdx.x % 2;
        const bool mask = threadIdx.x < 2 * count, adds = matrix == OUT || matrix == TEXT_OUT || matrix == FC2;
        const float scale = BYTES == 1 && mask ? scales[n] : 1, before = adds && mask ? read(x + row * D + n) : 0;
        scales += rows_of(matrix);
        multiply(ring, activations, count * slices_per_row, slices_per_row, results);
        sync_consumers();
        if (mask) {
            float value = 0;
            for (int slice = threadIdx.x / 2 * slices_per_row, end = slice + slices_per_row; slice < end; slice++)
#pragma unroll
                for (int warp = 0; warp < WARPS; warp++) value += results[2 * (warp * RESULTS + slice) + row];
            value = before + value * scale;
            if (adds) x[row * D + n] = value;
            else if (matrix == TEXT_Q || n < D && matrix == QKV) q[row * D + n] = value;
            else if (matrix == FC1) z[row * FFN + n] = to_half(0.5f * value * (1 + erff(value * 0.70710678f)));
            else if (matrix == LOGITS) logits[row * WIDTH + n] = value;
            else {
                const size_t of_kind = ((size_t)number / 6 * 2 + (n >= 2 * D)) * 2 + row;
                caches[((of_kind * HEADS + n % D / HEAD) * positions + at) * HEAD + n % HEAD] = to_bf16(value);
            }
        }
        if (matrix == LOGITS) break;

        // What the next matrix reads and no other block changes is loaded before the barrier.
        const Matrix next = matrix_of(number + 1, layers);
        if (next == OUT || next == TEXT_OUT) {
            const KeyValues cache = cache_of(next, number / 6, blockIdx.x);
            if (blockIdx.x < units_of(next)) cache.load(pairs, cache.begin);
        } else if (next != FC2) {
            norm.load(norms += 2 * D);
        }
        grid_barrier(arrived, barriers_passed);
    }
    if (threadIdx.x == 0) {
        u32 done;
        asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(done) : "l"(arrived + 1) : "memory");
        if (done == gridDim.x - 1) arrived[0] = arrived[1] = 0;  // the last block: no other waits any more
    }
}
