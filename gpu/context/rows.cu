// Rows of matrices of WIDTH columns. A warp works on a row: each lane holds pieces of V numbers of it, PIECES at once,
// LANES * V apart. What has more columns is done part by part: `first` is the lane's first column of the part.

#define LANES 32
#define EVERY_LANE 0xffffffffu
#define AT_ONCE (PIECES == 1 ? 8 : 4)  // rows on their way to a warp, so that it waits for memory once for all of them

// Lanes go from part to part together, also those that have no column of the last one.
#define EACH_PART(first)                                                  \
    for (u64 first = lane_number() * V, part_begin = 0; part_begin < WIDTH; \
         first += PIECES * LANES * V, part_begin += PIECES * LANES * V)
#define EACH_PIECE(first)                                              \
    _Pragma("unroll") for (int piece = 0; piece < PIECES; piece++)     \
        if (WIDTH % (PIECES * LANES * V) == 0 || (first) + piece * LANES * V < WIDTH)

struct Piece {
    float at[V];
};

__device__ static inline u32 lane_number() { return threadIdx.x % LANES; }
__device__ static inline u64 warp_number() { return ((u64)blockIdx.x * blockDim.x + threadIdx.x) / LANES; }
__device__ static inline u64 warp_count() { return (u64)gridDim.x * blockDim.x / LANES; }
__device__ static inline float number(u64 bits) { return __uint_as_float((u32)bits); }

__device__ static inline float total(float mine) {
    for (int far = LANES / 2; far; far /= 2) mine += __shfl_xor_sync(EVERY_LANE, mine, far);
    return mine;
}

__device__ static inline u64 total(u64 mine) {
    for (int far = LANES / 2; far; far /= 2) mine += __shfl_xor_sync(EVERY_LANE, mine, far);
    return mine;
}

// What a lane has found goes to the end of a list, whose length is counted; all lanes of a warp call it.
template <class T>
__device__ static inline void append(bool found, T what, T* list, u64* count) {
    const u32 lane = lane_number(), lanes = __ballot_sync(EVERY_LANE, found);
    if (!lanes) return;
    u64 begin = 0;
    if (!lane) begin = atomicAdd(count, (u64)__popc(lanes));
    begin = __shfl_sync(EVERY_LANE, begin, 0);
    if (found) list[begin + __popc(lanes & ((1u << lane) - 1))] = what;
}

// A finite number as the bits of bf16, rounded to the nearest, of two as near to the even one.
__device__ static inline u32 half(float number) {
    const u32 bits = __float_as_uint(number);
    return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}

#if V == 4
__device__ static inline Piece unpacked(const float4& four) { return {{four.x, four.y, four.z, four.w}}; }
__device__ static inline Piece load(const float* from) { return unpacked(*(const float4*)from); }
// Of what no thread of the launch writes.
__device__ static inline Piece load_fixed(const float* from) { return unpacked(__ldg((const float4*)from)); }
// bf16 is the upper half of float32. What is read or written once leaves the cache to rows that others hear, too.
__device__ static inline Piece load_half(const u16* from) {
    const uint2 read = __ldcs((const uint2*)from);
    return {{__uint_as_float(read.x << 16), __uint_as_float(read.x & 0xffff0000u), __uint_as_float(read.y << 16),
             __uint_as_float(read.y & 0xffff0000u)}};
}
__device__ static inline void copy_half(u16* to, const u16* from) { *(uint2*)to = *(const uint2*)from; }
__device__ static inline void store_half(u16* to, const Piece& what) {
    *(uint2*)to = make_uint2(half(what.at[0]) | half(what.at[1]) << 16, half(what.at[2]) | half(what.at[3]) << 16);
}
__device__ static inline void store(float* to, const Piece& what) {
    *(float4*)to = make_float4(what.at[0], what.at[1], what.at[2], what.at[3]);
}
__device__ static inline void store_once(float* to, const Piece& what) {
    __stcs((float4*)to, make_float4(what.at[0], what.at[1], what.at[2], what.at[3]));
}
#else
__device__ static inline Piece load(const float* from) { return {{*from}}; }
__device__ static inline Piece load_fixed(const float* from) { return {{__ldg(from)}}; }
__device__ static inline Piece load_half(const u16* from) { return {{__uint_as_float((u32)__ldcs(from) << 16)}}; }
__device__ static inline void copy_half(u16* to, const u16* from) { *to = *from; }
__device__ static inline void store_half(u16* to, const Piece& what) { *to = half(what.at[0]); }
__device__ static inline void store(float* to, const Piece& what) { *to = what.at[0]; }
__device__ static inline void store_once(float* to, const Piece& what) { __stcs(to, what.at[0]); }
#endif

// Add to what others add to at the same time.
__device__ static inline void add(float* to, const Piece& what, float times) {
#if V == 4 && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(times * what.at[0]),
                 "f"(times * what.at[1]), "f"(times * what.at[2]), "f"(times * what.at[3])
                 : "memory");
#else
    for (int number = 0; number < V; number++) atomicAdd(to + number, times * what.at[number]);
#endif
}

// The sum of the squares of what a lane holds of a part of a row.
__device__ static inline float squares(const Piece* part, u64 first) {
    float sum = 0;
    EACH_PIECE(first) {
        for (int number = 0; number < V; number++) sum += part[piece].at[number] * part[piece].at[number];
    }
    return sum;
}

// The length of a row; all lanes have it.
__device__ static inline float length_of(const float* row) {
    float sum = 0;
    EACH_PART(first) {
        Piece part[PIECES];
        EACH_PIECE(first) part[piece] = load(row + first + piece * LANES * V);
        sum += squares(part, first);
    }
    return sqrtf(total(sum));
}

// Rows of a matrix with weights, those at `begin` to `end` of a list, added to a part of a sum in this order. `instead`
// is a row that is read where the list has no more, with weight 0.
__device__ static inline void add_rows(Piece* sum, u64 first, const float* rows, const i32* other,
                                       const float* weight, u64 begin, u64 end, u32 instead) {
    for (u64 from = begin; from < end; from += LANES) {
        const u64 mine = from + lane_number();
        const u32 row = mine < end ? (u32)other[mine] : instead;
        const float share = mine < end ? weight[mine] : 0.0f;
        const int many = end - from < LANES ? (int)(end - from) : LANES;
        for (int next = 0; next < many; next += AT_ONCE) {
            Piece read[AT_ONCE][PIECES];
            float by[AT_ONCE];
            _Pragma("unroll") for (int one = 0; one < AT_ONCE; one++) {
                const u64 at = (u64)__shfl_sync(EVERY_LANE, row, next + one) * WIDTH + first;
                by[one] = __shfl_sync(EVERY_LANE, share, next + one);
                EACH_PIECE(first) read[one][piece] = load_fixed(rows + at + piece * LANES * V);
            }
            _Pragma("unroll") for (int one = 0; one < AT_ONCE; one++) {
                EACH_PIECE(first) {
                    for (int number = 0; number < V; number++)
                        sum[piece].at[number] += by[one] * read[one][piece].at[number];
                }
            }
        }
    }
}
