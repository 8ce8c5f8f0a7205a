// One step of a single piece through all layers: two rows, the piece under its text and under the null condition.
//
// Such a step waits for memory alone, which hundreds of small kernels leave idle between them. Here a program a
// multiprocessor goes through all layers. Of each matrix [N, D] it computes the same rows in every step, so one of its
// warps can ask for weights far ahead, whatever the others wait for: they fill a ring of stages in shared memory. The
// other warps multiply, and meet those of all other programs between what depends on each other. Sums are added up in
// a fixed order: results are the same every time.
//
// Rows are rounded to bf16 to be multiplied with weights in bf16, and to fp16 with weights in int8.
//
// Given by the compiler's command line: D, FFN, WIDTH (sizes of the residual stream, of the layers between, of all
// heads' logits), BYTES of a weight (2: bf16, 1: int8 with a scale a row), STAGES of the ring, WARPS that multiply, and
// RESULTS: slices of a matrix, of one program, at most. One file, for NVRTC compiles one.

typedef unsigned int u32;
typedef unsigned short u16;  // of a bf16 or fp16
typedef unsigned long long u64;

constexpr int THREADS = 32 * WARPS;             // that multiply; one more warp asks for weights
constexpr int HEAD = 64, HEADS = D / HEAD, SPLITS = 2;
constexpr int SLICES = 16 / BYTES;              // of D weights of a row, in a stage
constexpr int STRIDE = D * BYTES + 64;          // so that two of them lie in different banks of shared memory
constexpr int STAGE_BYTES = SLICES * STRIDE;
static_assert(WARPS == 8 && 2 * RESULTS == THREADS, "four warps read a row, and a thread sums a result");

// Of two that a word holds.
__device__ float half_of(u32 word, int which) {
    return __uint_as_float(which % 2 ? word & 0xffff0000u : word << 16);
}
__device__ u16 to_bf16(float value) {
    u16 half;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return half;
}
// As rows are multiplied.
__device__ u16 to_half(float value) {
    if (BYTES == 2) return to_bf16(value);
    u16 half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return half;
}
__device__ u32 pair(float low, float high) { return to_half(low) | (u32)to_half(high) << 16; }

// ---- Between programs: what others have written is read past the L1 cache, after a meeting.

__device__ float read(const float* at) { return __ldcg(at); }
__device__ float4 read(const float4* at) { return __ldcg(at); }
__device__ uint4 read(const uint4* at) { return __ldcg(at); }

__device__ void sync() { asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory"); }

__device__ void meet(u32* arrived, u32& meetings) {
    sync();
    if (threadIdx.x == 0) {
        const u32 all = ++meetings * gridDim.x;
        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(arrived) : "memory");
        u32 there;
        do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(there) : "l"(arrived) : "memory");
        while (there < all);
    }
    sync();
}

// ---- The ring.

struct Ring {
    char* stages;
    u32 full, empty;  // addresses in shared memory of STAGES barriers each
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

__device__ int first_row(int rows, int program) { return (int)((long long)rows * program / (int)gridDim.x); }

// A layer's in the order of their use, and of all heads of the codebooks at last.
enum Matrix { QKV, OUT, TEXT_Q, TEXT_OUT, FC1, FC2, LOGITS };

__device__ Matrix matrix_of(int number, int layers) { return number == 6 * layers ? LOGITS : (Matrix)(number % 6); }
__device__ int rows_of(Matrix matrix) {
    return matrix == QKV ? 3 * D : matrix == FC1 ? FFN : matrix == LOGITS ? WIDTH : D;
}
__device__ int width_of(Matrix matrix) { return matrix == FC2 ? FFN : D; }

// Ask for rows [HEAD] of a cache, into the L2 cache.
__device__ void prefetch(const u16* from, int rows) {
    if (rows > 0)
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(rows * HEAD * 2) : "memory");
}

// By a whole warp. `ahead` is called before each layer.
template <typename Ahead> __device__ void ask_for_weights(Ring ring, const u64* weights, int layers, Ahead ahead) {
    const int lane = threadIdx.x % 32;
    Ring last = ring;
    bool is_first = true;
    for (int number = 0; number <= 6 * layers; number++) {
        const Matrix matrix = matrix_of(number, layers);
        if (matrix == QKV && lane == 31) ahead(number / 6);
        const int rows = rows_of(matrix), of_row = width_of(matrix) / D;
        const int begin = first_row(rows, blockIdx.x), end = first_row(rows, blockIdx.x + 1);
        const char* from = (const char*)weights[number] + ((size_t)begin * of_row + lane) * D * BYTES;
        for (int slices = (end - begin) * of_row; slices > 0; slices -= SLICES) {
            const u32 full = ring.full + 8 * ring.stage;
            const u32 to = (u32)__cvta_generic_to_shared(ring.stages + ring.stage * STAGE_BYTES + lane * STRIDE);
            Ring::wait(ring.empty + 8 * ring.stage, ring.parity ^ 1);
            // One at a time: every other access would wait behind a longer queue.
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

// ---- Products, by tensor cores: 16 slices (8 of bf16, the others are none) times 8 columns, which are the two rows'
// parts of D entries. Each warp has an eighth of D, of which four lanes take 64 entries at a time; which of these come
// first doesn't matter as long as it is the same for weights and rows.

constexpr int BLOCKS = D / WARPS / 64;

struct Rows {
    u32 of[BLOCKS][8];  // pairs, of the column lane / 4
    float sum;          // for int8: of this warp's share of that column
};

// rows [2, width]
template <bool SHARED> __device__ void load(Rows& x, const u16* rows, int width) {
    const int lane = threadIdx.x % 32, row = lane / 4 % 2, part = lane / 8;
    const uint4* from = (const uint4*)(rows + row * width + part * D + threadIdx.x / 32 * (D / WARPS));
    const bool there = part < width / D;
    x.sum = 0;
#pragma unroll
    for (int block = 0; block < BLOCKS; block++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint4* at = from + 8 * block + (BYTES == 2 ? lane % 4 + 4 * i : lane % 4 * 2 + i);
            const uint4 eight = !there ? uint4{0, 0, 0, 0} : SHARED ? *at : read(at);
            const u32 pairs[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
            for (int j = 0; j < 4; j++) {
                x.of[block][4 * i + j] = pairs[j];
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

constexpr float OFFSET = BYTES == 2 ? 0 : 1024 + 128;  // of every weight that is multiplied

// 64 weights of a slice: this lane's eight pairs. A byte as the lower half of fp16's 1024 is 1024 and itself.
__device__ void weights_of(const char* at, u32 (&pairs)[8]) {
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

// sums [16, 8] += the i-th 16 of 64 weights of each slice (the first eight slices in a, the others in b) times x.
#define MMA(TYPE, sums, a, b, x, i)                                                                                   \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 "                                                \
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                             \
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                                                  \
        : "r"(a[2 * i]), "r"(b[2 * i]), "r"(a[2 * i + 1]), "r"(b[2 * i + 1]), "r"(x[2 * i]), "r"(x[2 * i + 1]))

// results [WARPS, RESULTS, 2]: what each warp knows of this program's slices of a matrix times x.
__device__ void multiply(Ring& ring, const Rows& x, int slices, int of_row, float* results) {
    const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, lane = threadIdx.x % 4;
    float2* mine = (float2*)results + warp * RESULTS + group;
    const int part = group % of_row;  // of x, which these slices belong to, and whose columns these lanes know:
    const float too_much[2] = {OFFSET * __shfl_sync(~0u, x.sum, 8 * part),
                               OFFSET * __shfl_sync(~0u, x.sum, 8 * part + 4)};
    for (int begin = 0; begin < slices; begin += SLICES, ring.next()) {
        Ring::wait(ring.full + 8 * ring.stage, ring.parity);
        const char* of_group = ring.stages + ring.stage * STAGE_BYTES + group * STRIDE;
        const char* from = of_group + warp * (D / WARPS) * BYTES + lane * 16;
        float sums[4][4] = {};
#pragma unroll
        for (int block = 0; block < BLOCKS; block++) {
            u32 pairs[8], others[8] = {};
            weights_of(from + block * 64 * BYTES, pairs);
            if (SLICES > 8) weights_of(from + 8 * STRIDE + block * 64 * BYTES, others);
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (BYTES == 2) MMA("bf16", sums[i], pairs, others, x.of[block], i);
                else MMA("f16", sums[i], pairs, others, x.of[block], i);
        }
        __syncwarp();
        if (threadIdx.x % 32 == 0)
            asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(ring.empty + 8 * ring.stage) : "memory");
        if (lane == part)
#pragma unroll
            for (int half = 0; half < 2 * SLICES / 8; half += 2) {
                const auto sum = [&](int i) { return (sums[0][i] + sums[1][i]) + (sums[2][i] + sums[3][i]); };
                if (begin + group + 4 * half < slices)
                    mine[begin + 4 * half] = {sum(half) - too_much[0], sum(half + 1) - too_much[1]};
            }
    }
}

// ---- What products read.

constexpr int OWN = D / 512;  // 16-byte loads of a thread where four warps read a row

// A norm's weights and biases [2, D], of which each thread has its own; asked for before they are needed.
struct Norm {
    uint2 weights[OWN], biases[OWN];
    __device__ void ask(const u16* norm) {
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            weights[i] = ((const uint2*)norm)[threadIdx.x % 128 + 128 * i];
            biases[i] = ((const uint2*)(norm + D))[threadIdx.x % 128 + 128 * i];
        }
    }
};

// y = layer norm of x [2, D]: four warps a row.
__device__ void normalize(const float* x, const Norm& norm, u16* y, float* scratch) {
    const int row = threadIdx.x / 128, within = threadIdx.x % 128, warp = threadIdx.x / 32;
    float values[OWN][4], sum = 0;
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        const float4 four = read((const float4*)(x + row * D) + within + 128 * i);
        values[i][0] = four.x, values[i][1] = four.y, values[i][2] = four.z, values[i][3] = four.w;
        sum += (four.x + four.y) + (four.z + four.w);
    }
    const auto mean_of_row = [&](float* room) {
#pragma unroll
        for (int away = 16; away > 0; away /= 2) sum += __shfl_xor_sync(~0u, sum, away);
        if (threadIdx.x % 32 == 0) room[warp] = sum;
        sync();
        const float* of_row = room + row * 4;
        return ((of_row[0] + of_row[1]) + (of_row[2] + of_row[3])) / D;
    };
    const float mean = mean_of_row(scratch);
    sum = 0;
#pragma unroll
    for (int i = 0; i < OWN; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            values[i][j] -= mean;
            sum += values[i][j] * values[i][j];
        }
    const float scale = rsqrtf(mean_of_row(scratch + WARPS) + 1e-5f);  // nn.LayerNorm's epsilon
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        const u32 weights[2] = {norm.weights[i].x, norm.weights[i].y};
        const u32 biases[2] = {norm.biases[i].x, norm.biases[i].y};
        float of[4];
#pragma unroll
        for (int j = 0; j < 4; j++)
            of[j] = values[i][j] * scale * half_of(weights[j / 2], j) + half_of(biases[j / 2], j);
        ((uint2*)(y + row * D))[within + 128 * i] = {pair(of[0], of[1]), pair(of[2], of[3])};
    }
    sync();
}

// y = attention's result from its splits: totals [2 HEADS, SPLITS, HEAD], stats [2 HEADS, SPLITS, 2].
__device__ void join(const float* totals, const float* stats, u16* y) {
#pragma unroll
    for (int i = threadIdx.x; i < 2 * D / 4; i += THREADS) {  // four entries
        const int first = i / (HEAD / 4) * SPLITS, within = i % (HEAD / 4);
        const float4 both = read((const float4*)stats + first / 2);
        const float4 a = read((const float4*)totals + first * (HEAD / 4) + within);
        const float4 b = read((const float4*)totals + (first + 1) * (HEAD / 4) + within);
        const float most = fmaxf(both.x, both.z), share = __expf(both.x - most), other = __expf(both.z - most);
        const float whole = 1 / (share * both.y + other * both.w);
        const float of[4] = {share * a.x + other * b.x, share * a.y + other * b.y, share * a.z + other * b.z,
                             share * a.w + other * b.w};
        ((uint2*)y)[i] = {pair(of[0] * whole, of[1] * whole), pair(of[2] * whole, of[3] * whole)};
    }
    sync();
}

// ---- Attention of one query [HEAD] over keys and values [·, HEAD], by all warps: eight lanes a key.

constexpr int AT_ONCE = 6, GROUPS = THREADS / 8;

struct Pairs {
    uint4 keys[AT_ONCE], values[AT_ONCE];
};

struct Cache {
    const u16 *keys, *values;
    int begin, end;

    __device__ int place(int start, int i) const { return start + threadIdx.x / 8 + GROUPS * i; }
    __device__ void ask(Pairs& pairs, int start) const {
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) ask(pairs, start, i);
    }
    __device__ void ask(Pairs& pairs, int start, int i) const {
        const size_t at = (size_t)max(min(place(start, i), end - 1), 0) * HEAD + 8 * (threadIdx.x % 8);
        pairs.keys[i] = read((const uint4*)(keys + at));
        pairs.values[i] = read((const uint4*)(values + at));
    }
};

// What some lanes found: the greatest score, and relative to it the sum of shares and of values [8].
struct Share {
    float most, weight, total[8];
};

// first: what `cache` has at its beginning, but for what is `fresh`, written since. → a split's total and stats, or the
// `whole` result.
__device__ void attend(const float* q, const Cache& cache, Pairs& first, int fresh, float* scratch, float* total,
                       float* stats, u16* whole) {
    const int lane = threadIdx.x % 8;
    const float4 low = read((const float4*)q + 2 * lane), high = read((const float4*)q + 2 * lane + 1);
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++)
        if (cache.place(cache.begin, i) == fresh) cache.ask(first, cache.begin, i);
    const float query[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    static_assert(HEAD == 64, "1 / sqrt(64) is 1 / 8");
    Share share = {-1e30f, 0, {}};  // finite: some lanes may have nothing to look at
    for (int start = cache.begin; start < cache.end; start += AT_ONCE * GROUPS) {
        Pairs next;
        cache.ask(next, start + AT_ONCE * GROUPS);
        float score[AT_ONCE], highest = share.most;
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const u32 pairs[4] = {first.keys[i].x, first.keys[i].y, first.keys[i].z, first.keys[i].w};
            score[i] = 0;
#pragma unroll
            for (int j = 0; j < 8; j++) score[i] += query[j] * half_of(pairs[j / 2], j);
#pragma unroll
            for (int away = 4; away > 0; away /= 2) score[i] += __shfl_xor_sync(~0u, score[i], away);
            score[i] = cache.place(start, i) < cache.end ? score[i] * 0.125f : -2e30f;
            highest = fmaxf(highest, score[i]);
        }
        const float fading = __expf(share.most - highest);
        share.most = highest;
        share.weight *= fading;
#pragma unroll
        for (int j = 0; j < 8; j++) share.total[j] *= fading;
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const float part = __expf(score[i] - highest);
            const u32 pairs[4] = {first.values[i].x, first.values[i].y, first.values[i].z, first.values[i].w};
            share.weight += part;
#pragma unroll
            for (int j = 0; j < 8; j++) share.total[j] += part * half_of(pairs[j / 2], j);
        }
        first = next;
    }
#pragma unroll
    for (int away = 8; away < 32; away *= 2) {
        const float most = __shfl_xor_sync(~0u, share.most, away), highest = fmaxf(share.most, most);
        const float own = __expf(share.most - highest), other = __expf(most - highest);
        share.most = highest;
        share.weight = share.weight * own + __shfl_xor_sync(~0u, share.weight, away) * other;
#pragma unroll
        for (int i = 0; i < 8; i++)
            share.total[i] = share.total[i] * own + __shfl_xor_sync(~0u, share.total[i], away) * other;
    }
    Share* of_warps = (Share*)scratch;  // [WARPS, 8]
    if (threadIdx.x % 32 < 8) of_warps[threadIdx.x / 32 * 8 + lane] = share;
    sync();
    if (threadIdx.x < HEAD) {
        const int of = threadIdx.x / 8;
        float most = -1e30f, weight = 0, sum = 0;
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) most = fmaxf(most, of_warps[warp * 8 + of].most);
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) {
            const float part = __expf(of_warps[warp * 8 + of].most - most);
            weight += part * of_warps[warp * 8 + of].weight;
            sum += part * of_warps[warp * 8 + of].total[lane];
        }
        if (whole) whole[threadIdx.x] = to_half(sum / fmaxf(weight, 1));  // 0: no words
        else total[threadIdx.x] = sum;
        if (!whole && threadIdx.x == 0) stats[0] = most, stats[1] = weight;
    }
    sync();
}

// ---- The step.
//
// weights [6 layers + 1]: addresses; scales: of their rows, a matrix after the other. norms bf16 [3 layers + 1, 2, D]:
// weights and biases. x [2, D], which is changed. caches bf16 [layers, 2, 2, HEADS, positions, HEAD] get a position.
// text bf16 [layers, 2, 2, HEADS, longest, HEAD], of which words [2] count. logits [2, WIDTH]. arrived [2]: zero before
// and after. The rest is room: q [2, D], attended [2, D], totals and stats (see `join`), z [2, FFN].
extern "C" __global__ void __launch_bounds__(THREADS + 32, 1) megakernel(
    const u64* weights, const float* scales, const u16* norms, float* x, u16* caches, const u16* text, const int* words,
    const long long* position, float* logits, float* q, u16* attended, float* totals, float* stats, u16* z,
    u32* arrived, int layers, int positions, int longest) {
    extern __shared__ __align__(128) char shared[];
    u16* y = (u16*)(shared + STAGES * STAGE_BYTES);      // [2, D]
    float* scratch = (float*)(y + 2 * D);                // [WARPS, 8] Shares
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

    const int at = (int)*position, half = (at + 1 + SPLITS - 1) / SPLITS, counts[2] = {words[0], words[1]};
    const auto units_of = [](Matrix matrix) { return 2 * HEADS * (matrix == OUT ? SPLITS : 1); };
    const auto cache_of = [&](Matrix matrix, int layer, int unit) {
        const int head = matrix == OUT ? unit / SPLITS : unit, of_head = (matrix == OUT ? positions : longest) * HEAD;
        const u16* keys = (matrix == OUT ? caches : text) + ((size_t)layer * 4 * HEADS + head) * of_head;
        const int begin = matrix == OUT ? unit % SPLITS * half : 0;
        const int end = matrix == OUT ? min(at + 1, begin + half) : head < HEADS ? counts[0] : counts[1];
        return Cache{keys, keys + (size_t)2 * HEADS * of_head, begin, end};
    };
    if (threadIdx.x >= THREADS) {
        ask_for_weights(ring, weights, layers, [&](int layer) {  // and for what attention is going to read
            for (Matrix matrix : {OUT, TEXT_OUT})
                if (blockIdx.x < units_of(matrix)) {
                    const Cache cache = cache_of(matrix, layer, blockIdx.x);
                    const int known = min(cache.end, matrix == OUT ? at : cache.end) - cache.begin;
                    prefetch(cache.keys + cache.begin * HEAD, known);
                    prefetch(cache.values + cache.begin * HEAD, known);
                }
        });
        return;
    }

    u32 meetings = 0;
    Rows rows;
    Norm norm;
    Pairs pairs;
    norm.ask(norms);
    // One loop for all products, which differ in what they read and where they write.
    for (int number = 0; number <= 6 * layers; number++) {
        const Matrix matrix = matrix_of(number, layers);
        if (matrix == OUT || matrix == TEXT_OUT) {
            for (int unit = blockIdx.x; unit < units_of(matrix); unit += gridDim.x) {
                const Cache cache = cache_of(matrix, number / 6, unit);
                const int head = matrix == OUT ? unit / SPLITS : unit;
                if (unit != blockIdx.x) cache.ask(pairs, cache.begin);
                attend(q + head * HEAD, cache, pairs, matrix == OUT ? at : -1, scratch, totals + unit * HEAD,
                       stats + 2 * unit, matrix == OUT ? nullptr : attended + head * HEAD);
            }
            meet(arrived, meetings);
            if (matrix == OUT) join(totals, stats, y);
        } else if (matrix != FC2) {
            normalize(x, norm, y, scratch);
        }
        if (matrix == FC2 || matrix == TEXT_OUT) load<false>(rows, matrix == FC2 ? z : attended, width_of(matrix));
        else load<true>(rows, y, D);

        const int begin = first_row(rows_of(matrix), blockIdx.x), of_row = width_of(matrix) / D;
        const int count = first_row(rows_of(matrix), blockIdx.x + 1) - begin;
        const int n = begin + threadIdx.x / 2, row = threadIdx.x % 2;
        const bool mine = threadIdx.x < 2 * count, adds = matrix == OUT || matrix == TEXT_OUT || matrix == FC2;
        const float scale = BYTES == 1 && mine ? scales[n] : 1, before = adds && mine ? read(x + row * D + n) : 0;
        scales += rows_of(matrix);
        multiply(ring, rows, count * of_row, of_row, results);
        sync();
        if (mine) {
            float value = 0;
            for (int slice = threadIdx.x / 2 * of_row, end = slice + of_row; slice < end; slice++)
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

        const Matrix next = matrix_of(number + 1, layers);  // of which all is asked for that is known already
        if (next == OUT || next == TEXT_OUT) {
            const Cache cache = cache_of(next, number / 6, blockIdx.x);
            if (blockIdx.x < units_of(next)) cache.ask(pairs, cache.begin);
        } else if (next != FC2) {
            norm.ask(norms += 2 * D);
        }
        meet(arrived, meetings);
    }
    if (threadIdx.x == 0) {
        u32 done;
        asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(done) : "l"(arrived + 1) : "memory");
        if (done == gridDim.x - 1) arrived[0] = arrived[1] = 0;  // nobody waits any more
    }
}
